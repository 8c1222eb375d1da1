"""A whole job from Python: `igap run` without its process, its terminal and its exit codes."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from igap.cli.run import execute
from igap.cli.texts import quote, quote_override
from igap.console import show_stage
from igap.errors import InputError, short_repr
from igap.errors.arguments import checks_arguments
from igap.interactive.opened import Run, open_run
from igap.pipeline import Stage

if TYPE_CHECKING:
    from igap.attribution.maps import Progress

_SECONDS_BETWEEN = 0.5
"""Least time between two changes of the line in a notebook."""


@checks_arguments
def run(*overrides: str, folder: str | Path | None = None) -> Run:
    """Do a whole job, as `igap run` does it, and open what it has written.

    Args:
        overrides: As on the command line: "baseline=zero", "ig.n_steps=100"; `igap run --help` lists them.
        folder: The run's, which may not hold a finished run. None (default): a new one, named by date and time, in the
            folder that `output` names ("runs").

    Returns:
        The run, opened from its folder: maps, comparisons, tables, summary, config. Analyses and figures that failed
        are in its `failures`.

    Raises:
        InputError: What the command line would refuse, with the same line.

    Example:
        >>> finished = run("baseline=zero", "sites=heads", "plots=none", "tracking=disabled", folder="zero")
        >>> finished.config.baseline.kind, round(finished.comparisons["heads"].pearson, 3)
        ('zero', 0.631)
    """
    for override in overrides:
        if not isinstance(override, str) or not ("=" in override or override.startswith("~")):
            several = type(override).__name__ in ("list", "tuple")
            remedy = "Write igap.run(*overrides)." if several else "Try baseline=zero."
            raise InputError(f"overrides: got {short_repr(override)}, wanted KEY=VALUE. {remedy}")
    given = [quote_override(override, single=True) for override in overrides]
    if folder is not None:
        place = os.path.abspath(os.path.expanduser(folder))
        given.append(f"hydra.run.dir={quote(place)}")
    with _stages() as stage:
        done = execute(given, stage)
    return open_run(done)


@contextmanager
def _stages() -> Iterator[Stage]:
    """What shows progress: in a notebook one line, which the next replaces; elsewhere what `igap run` shows."""
    shell: Any = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if getattr(shell, "kernel", None) is None:
        console = Console(stderr=True)
        yield lambda name: show_stage(console, name)
        return
    display: Any = sys.modules["IPython.display"].display
    line = display({"text/plain": "igap run"}, raw=True, display_id=True)

    def say(text: str) -> None:
        line.update({"text/plain": text}, raw=True)

    @contextmanager
    def stage(name: str) -> "Iterator[Progress]":
        last = time.monotonic()
        say(f"igap run: {name}")

        def advance(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last > _SECONDS_BETWEEN:
                last = time.monotonic()
                say(f"igap run: {name}, {done} of {total}")

        yield advance

    yield stage
    say("igap run: done")
