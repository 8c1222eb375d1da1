"""The command line. Hydra and OmegaConf are imported in this package only; `igap --help` imports nothing heavy.

Hydra composes and launches; before it does, every job is composed, validated and tokenised here, so that a mistake
costs one line and no time.
"""

import contextlib
import functools
import importlib
import importlib.metadata
import logging
import os
import sys
from collections.abc import Sequence
from typing import TextIO

from igap.errors import InputError
from igap.failures import reason_of

USAGE = """\
igap: when do Integrated Gradients and activation patching agree about which heads and neurons matter, and why not?

usage: igap COMMAND [overrides]

commands
  run              one comparison of both methods; igap run -m KEY=A,B ... runs every combination
  sweep NAME       the combinations listed in sweeps/NAME.yaml; the same command again does what is left
  search head=9.6  corrupted prompts for which a head's effect is as large as it gets
  check            says what a run, or run -m, or sweep NAME would do, and whether it can; computes nothing
  status DIR...    how the jobs of a sweep stand: done, stale, running, failed, planned
  plot RUN...      the pictures of finished runs, drawn from their records: again, or for the first time
  compare DIR...   finished runs side by side: a table, a CSV file and a page
  sync DIR...      logs finished runs to W&B from disk, and uploads those logged offline
  verify DIR...    W&B's offline runs against what is on disk
  workspace        a saved W&B workspace for comparing runs
  store DIR...     what the jobs of a sweep share; --prune removes what no job can use
  COMMAND --help   more; run --help lists every option, with examples

  igap run                                  the embedded model on the notebook's prompt pair, offline
  igap run baseline=zero ig.n_steps=200     another baseline, more steps
  igap run prompts.n=100                    means over 100 generated pairs, with intervals
  igap run model=gpt2-small                 GPT-2 small from the Hugging Face hub or its cache

exit codes: 0 done, 1 something failed, 2 bad input
"""

_COMMANDS = {
    "run": "igap.cli.run:main",
    "sweep": "igap.cli.run:sweep",
    "search": "igap.cli.search:main",
    "check": "igap.cli.run:check",
    "status": "igap.sweep.status:main",
    "plot": "igap.output.plot_command:main",
    "compare": "igap.output.dashboard.command:main",
    "sync": "igap.output.tracking.sync:main",
    "verify": "igap.output.tracking.verify:main",
    "workspace": "igap.output.tracking.workspace:main",
    "store": "igap.sweep.cache_command:main",
}
"""Name to the function that takes the arguments after it and gives the exit code; imported when it is asked for."""


_WITHOUT_MEMORY = ("out of memory", "failed to map segment", "can't allocate memory", "could not create a primitive")
"""What the loader of libraries, torch and its oneDNN say where memory is used up."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of one command: 0 done, 1 something failed, 2 bad input, 130 interrupted."""
    if sys.stdout is None or sys.stderr is None:  # closed by the caller
        sys.stdout, sys.stderr = sys.stdout or _nowhere(), sys.stderr or _nowhere()
    logging.raiseExceptions = False  # a log file on a full disk costs its own lines, and no traceback beside each
    try:
        try:
            code = _run(list(sys.argv[1:] if arguments is None else arguments))
        except SystemExit as end:  # Hydra's, after its help
            if not isinstance(end.code, int | None):
                raise
            code = end.code or 0
        sys.stdout.flush()
        return code
    except InputError as error:
        _tell(str(error))
        return 2
    except KeyboardInterrupt:
        _tell("interrupted; a run without summary.json is not finished.")
        return 130
    except BrokenPipeError:  # whoever reads has seen enough
        _tell("")
        return 1
    except OSError as error:
        _tell(f"output: {error.strerror}." if error.strerror and not error.filename else reason_of(error))
        return 1
    except (MemoryError, ImportError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(text in str(error) for text in _WITHOUT_MEMORY):
            raise
        _tell("memory is used up. Free some, or ask for less: memory_gib=1.")
        return 1


@functools.cache
def _nowhere() -> TextIO:
    """What takes the place of a closed stream, until the process ends."""
    return open(os.devnull, "w")


def _tell(line: str) -> None:
    """Writes a line where errors go, if it can; what cannot be written is forgotten, also at the process's end."""
    for stream, text in ((sys.stderr, line and f"igap: {line}\n"), (sys.stdout, "")):
        try:
            stream.write(text)
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):  # no stream of the process, but of a test
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run(arguments: list[str]) -> int:
    """The exit code of one command. Raises InputError."""
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help", "help"):
        sys.stdout.write(USAGE)
        return 0
    if command == "--version":
        sys.stdout.write(f"igap {importlib.metadata.version('igap')}\n")
        return 0
    if command not in _COMMANDS:
        from igap.errors import nearest

        raise InputError(
            f"command: got {command!r}, wanted one of {', '.join(_COMMANDS)}."
            f"{nearest(command, list(_COMMANDS))} igap --help shows them."
        )
    module, _, function = _COMMANDS[command].partition(":")
    code: int = getattr(importlib.import_module(module), function)(arguments[1:])
    return code
