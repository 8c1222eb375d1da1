"""Commands that are killed at drawn moments and started again: what both survival programs share."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from pathlib import Path

PATIENCE = 1800.0
"""Seconds after which something hangs."""
MOMENT = 1.0
"""Seconds within which a kill comes, once what it waits for is there."""
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


class Command(ABC):
    """A command in a folder of its own, and what it has finished there, in pieces of about one size."""

    def __init__(self, folder: Path, arguments: list[str], *, threads: int = 1) -> None:
        """`igap` with these arguments, in `folder`, which is made."""
        self.folder, self.arguments, self.threads = folder, arguments, threads
        self.n_starts = 0
        folder.mkdir(exist_ok=True)

    def start(self) -> "subprocess.Popen[str]":
        """The command, in a process group of its own; its paths are relative, as a user's are."""
        self.n_starts += 1
        return self.begin(self.folder / f"said{self.n_starts}")

    def begin(self, said: Path) -> "subprocess.Popen[str]":
        """Its process, whose output goes into this file: no pipe, which workers would keep open."""
        with said.open("w") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "igap.cli", *self.arguments],
                cwd=self.folder,
                env={**os.environ, "OMP_NUM_THREADS": str(self.threads)},
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def said(self) -> str:
        """The output of the last start."""
        return (self.folder / f"said{self.n_starts}").read_text()

    def to_the_end(self) -> int:
        """Exit code of the command, undisturbed."""
        return self.start().wait(timeout=PATIENCE)

    @abstractmethod
    def progress(self) -> int:
        """Pieces of the work that are finished: jobs of a sweep, batches of a search."""

    @abstractmethod
    def works(self, since: float) -> bool:
        """Whether the work on a piece was begun after this time."""

    @abstractmethod
    def writes(self) -> bool:
        """Whether a file is being written at this moment, as far as can be seen."""

    @abstractmethod
    def check(self) -> None:
        """Raises where something finished is lost, doubled or half written, at any moment."""

    @abstractmethod
    def finished(self) -> None:
        """Raises where the end is not that of a command that nobody disturbed."""


def descendants(pid: int) -> list[int]:
    """Processes below this one, nearest first."""
    below = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                below += [int(child), *descendants(int(child))]
    return below


def alive(pids: list[int], what: bytes = b"spawn_main") -> list[int]:
    """Those that still run, and whose command line has this in it: Python's own workers."""
    there = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if what in Path(f"/proc/{pid}/cmdline").read_bytes():
                there.append(pid)
    return there


def kill(pids: list[int], number: signal.Signals) -> None:
    """Sends a signal to those that are still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]", seconds: float) -> bool:
    """Whether the condition came true before the process ended and the time was over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if condition():
            return True
        time.sleep(0.005)
    return False


def survive(make: Callable[[int], Command], *, kills: int, seed: int, alone: bool) -> str:
    """What was done: commands killed `kills` times in all, each carried on until it is done, and checked.

    Of three kills two come after the command has finished a piece, and so does a part of the third ones. `alone`: the
    command has no workers.
    """
    rng, tally, n_commands = random.Random(seed), Counter[str](), 0
    while tally["kills"] < kills:
        command = make(n_commands)
        n_commands += 1
        left: list[int] = []
        code = None
        while code != 0:
            before, since = command.progress(), time.time()
            process = command.start()
            whom, number = "nobody", SIGNALS[tally["kills"] % len(SIGNALS)]
            if tally["kills"] < kills and _drawn(
                command, process, before, since, rng, late=tally["kills"] // 3 % 3 < 2
            ):
                below = descendants(process.pid)
                left += below
                whom = "parent" if alone or not below else rng.choice(["parent", "worker", "all"])
                tally["in writes"] += command.writes()
                tally["late"] += command.progress() > before
                _strike(process, number, whom, below, rng)
                tally["kills"] += 1
                tally[number.name] += 1
                tally[f"of {'all' if whom == 'all' else f'the {whom}'}"] += 1
            code = process.wait(timeout=PATIENCE)
            _check_end(command, code, number, whom)
            command.check()
            assert command.progress() >= before, "something finished is gone"
            if rng.random() < 0.5:  # or else they work beside the next ones
                kill(alive(left, b"python"), signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE
        while alive(left):
            assert time.monotonic() < deadline, "a worker does not end"
            time.sleep(0.1)
        command.finished()
    assert 2 * tally["late"] >= kills, tally
    told = ", ".join(f"{n} {what}" for what, n in tally.items() if what not in ("kills", "late"))
    return (
        f"{kills} kills ({told}), {tally['late']} of them after the command had finished a piece, in {n_commands} "
        "commands"
    )


def _drawn(
    command: Command, process: "subprocess.Popen[str]", before: int, since: float, rng: random.Random, *, late: bool
) -> bool:
    """Waits for a moment to kill; whether there is still something to be killed."""
    goal = before + rng.randrange(1, 4)
    if late:
        wait_for(lambda: command.progress() >= goal, process, PATIENCE)
    else:
        wait_for(lambda: command.works(since), process, PATIENCE)
    if rng.random() < 0.5:
        wait_for(command.writes, process, rng.uniform(0, 2 * MOMENT))
    else:
        wait_for(lambda: False, process, rng.uniform(0, MOMENT))
    return process.poll() is None


def _strike(
    process: "subprocess.Popen[str]", number: signal.Signals, whom: str, below: list[int], rng: random.Random
) -> None:
    """Kills the parent, one of its workers, or all; by Ctrl-C, all that a terminal reaches."""
    if whom == "all" and number == signal.SIGINT:
        os.killpg(process.pid, number)
    elif whom == "worker":
        kill([rng.choice(below)], number)
    else:
        kill([process.pid, *(below if whom == "all" else [])], number)
    if whom == "worker":  # the parent goes on by itself, for a while
        wait_for(lambda: False, process, rng.uniform(2, 15))
        if process.poll() is None:
            kill([process.pid, *descendants(process.pid)], signal.SIGKILL)


def _check_end(command: Command, code: int, number: signal.Signals, whom: str) -> None:
    """Raises where a command did not end as it should: by its signal, after Ctrl-C with a word and 130."""
    said = command.said()
    ends = {"nobody": {0}, "worker": {0, -signal.SIGKILL}}.get(whom, {0, -number})
    ends |= {130} if number == signal.SIGINT and whom in ("parent", "all") else set()  # at Python's own end: its signal
    assert code in ends, (code, number, whom, said)
    assert code != 130 or "interrupted" in said, said
    assert "Traceback" not in said, said
    assert "Logging error" not in said, said
