"""A process that draws the pictures of finished computations while the next one runs.

    python -m igap.output.drawing_process

It is told a run's folder and the pictures' names, a line of JSON each, and answers what failed in a line. It ends when
whoever tells it ends, whatever the end: then its input does. What it writes is there whole or not at all.
"""

import contextlib
import gc
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igap.errors.failures import Failure

if TYPE_CHECKING:
    from igap.output.figures import Drawn


class DrawingProcess:
    """The other process, as this one sees it: at most one a sweep. `close` it, or use `with`."""

    def __init__(self) -> None:
        """Start the process, which takes a few seconds of its own until it draws."""
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.n_waiting = 0
        """Runs that it has been told of and has not answered."""
        self.dead = False
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "igap.output.drawing_process"],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                "OMP_NUM_THREADS": "1",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            process_group=0,  # a terminal's Ctrl-C is for the process that tells it
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def __enter__(self) -> "DrawingProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process at once, in the middle of a picture as well."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                assert stream is not None
                stream.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError):  # closed
            for line in self._process.stdout:
                self._answers.put(line)
        self._answers.put(None)

    def ask(self, folder: Path, names: Sequence[str]) -> None:
        """Ask for the pictures with these names of the run in a folder."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([str(folder.resolve()), list(names)]) + "\n")
            self._process.stdin.flush()
        except OSError:
            self.dead = True
        self.n_waiting += 1

    def answer(self, *, wait: bool) -> "Drawn | None":
        """Return what became of the pictures asked for first; None where none are done, or none will be (`dead`)."""
        from igap.output.figures import Drawn

        if self.dead:
            return None
        try:
            line = self._answers.get(wait)
        except queue.Empty:
            return None
        if line is None:
            self.dead = True
            return None
        self.n_waiting -= 1
        told = json.loads(line)
        return Drawn({name: Failure(*failure) for name, failure in told["failures"].items()}, told["seconds"])


def _tasks() -> Iterator[tuple[Path, list[str]]]:
    """Return what standard input asks for; when that ends, so does this process, whatever it is doing."""
    asked: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            asked.put(json.loads(line))
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    return ((Path(folder), names) for folder, names in iter(asked.get, None))


def main() -> None:
    """Draw what standard input asks for, until it ends."""
    tasks = _tasks()
    os.nice(10)  # the next job's threads wait for each other: one that is put off by a picture holds up all
    gc.disable()  # what is imported stays: the collector need not look at it, neither now nor after every few figures
    from igap.output.record import draw_or_say

    gc.freeze()
    gc.enable()
    for folder, names in tasks:
        drawn = draw_or_say(folder, frozenset(names))
        failures = {name: [failure.reason, failure.story] for name, failure in drawn.failures.items()}
        sys.stdout.write(json.dumps({"failures": failures, "seconds": drawn.seconds}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
