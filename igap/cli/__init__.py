"""The command line. Hydra and OmegaConf are imported in this package only; `igap --help` imports nothing heavy.

Hydra composes and launches; before it does, every job is composed, validated and tokenised here, so that a mistake
costs one line and no time.
"""

import contextlib
import functools
import gc
import logging
import os
import sys
from collections.abc import Sequence
from typing import TextIO

from igap.errors import InputError
from igap.errors.failures import reason_of
from igap.errors.interrupts import keep_interrupts

_COMPLETE = "_IGAP_COMPLETE"
"""The variable in which a shell says what it asks for: bash_source, bash_complete, ..."""
_WITHOUT_MEMORY = (
    *("out of memory", "failed to map segment", "can't allocate memory", "could not create a primitive"),
    "error return without exception set",
)
"""What the loader of libraries, torch, its oneDNN and Python's own imports say where memory is used up."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: as typed after `igap`; None takes those of the process.

    Returns:
        The exit code: 0 done, 1 something failed, 2 bad input, 130 interrupted.
    """
    if sys.stdout is None or sys.stderr is None:  # closed by the caller
        sys.stdout, sys.stderr = sys.stdout or _nowhere(), sys.stderr or _nowhere()
    if arguments is None:
        gc.set_threshold(20_000, 10, 10)  # at Python's own, a fifth of the time to import torch goes to the collector
    logging.raiseExceptions = False  # a log file on a full disk costs its own lines, and no traceback beside each
    try:
        with keep_interrupts():
            code = _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return code
    except InputError as error:
        _tell(str(error))
        return 2
    except KeyboardInterrupt:
        typed = sys.argv[1:] if arguments is None else arguments
        what, summary = ("search", "search_summary.json") if "search" in typed[:1] else ("run", "summary.json")
        _tell(f"interrupted; a {what} without {summary} is not finished.")
        return 130
    except BrokenPipeError:  # whoever reads has seen enough
        _tell("")
        return 1
    except OSError as error:
        _tell(f"output: {error.strerror}." if error.strerror and not error.filename else reason_of(error))
        return 1
    except (MemoryError, ImportError, RuntimeError, SystemError) as error:
        if not isinstance(error, MemoryError) and not any(text in str(error) for text in _WITHOUT_MEMORY):
            raise
        _tell("memory is used up. Free some, or ask for less: memory_gib=1.")
        return 1


@functools.cache
def _nowhere() -> TextIO:
    """A stream that takes everything and keeps nothing, in place of a closed one."""
    return open(os.devnull, "w")


def _tell(line: str) -> None:
    """Writes a line on standard error, if it can; what cannot be written is forgotten, also at the process's end."""
    for stream, text in ((sys.stderr, line and f"igap: {line}\n"), (sys.stdout, "")):
        try:
            stream.write(text)
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):  # no stream of the process, but of a test
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run(arguments: list[str]) -> int:
    """The exit code of one command, or of what a shell asks for completion. Raises InputError."""
    import click
    from click.shell_completion import shell_complete

    from igap.cli.commands import igap
    from igap.cli.parsing import explain

    instruction = os.environ.get(_COMPLETE)
    if instruction:
        from igap.cli import completion  # noqa: F401 - registers the completion of bash

        return shell_complete(igap, {}, "igap", _COMPLETE, instruction)
    try:
        with igap.make_context("igap", arguments) as ctx:
            code: int | None = igap.invoke(ctx)
            return code or 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.UsageError as error:
        raise InputError(explain(error, click.Context(igap, info_name="igap"))) from None
