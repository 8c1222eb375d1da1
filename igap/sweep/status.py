"""`igap status DIR...`: how the jobs of each sweep stand, from the disk alone."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from igap.errors import InputError, printable
from igap.storage.finished import read
from igap.storage.untrusted import is_text
from igap.sweep.folder import PLAN, STATES, Planned, Standing, SweepFolder

USAGE = """\
usage: igap status DIR... [--watch]

How the jobs of each sweep in these folders stand: done, stale (made by other versions of the code), running (host,
process, since), failed (why), planned. --watch looks again every 2 seconds until nothing is running or planned; Ctrl-C
ends it.
"""

_LOOK_EVERY = 2.0


def main(arguments: list[str]) -> int:
    """The exit code of `igap status`: 0, or 1 where jobs have failed. Raises InputError on folders without a sweep."""
    if not arguments or {"-h", "--help"} & set(arguments):
        sys.stdout.write(USAGE)
        return 0 if arguments else 2
    folders = [SweepFolder(path) for text in arguments if text != "--watch" for path in _sweeps(text)]
    if not folders:
        raise InputError("folder: got none, wanted the folder of a sweep. igap status runs/NAME --watch.")
    console = Console()
    if not console.is_terminal:
        console.width = 160
    if "--watch" not in arguments:
        shown, states, troubles = _show(folders)
        for trouble in troubles:
            sys.stderr.write(f"igap: {trouble}\n")
        console.print(shown)
        return 1 if "failed" in states or troubles else 0
    with Live(console=console, auto_refresh=False) as live:
        while True:
            shown, states, troubles = _show(folders)
            live.update(Group(*map(escape, troubles), shown), refresh=True)
            if not {"running", "planned"} & states:
                return 1 if "failed" in states or troubles else 0
            time.sleep(_LOOK_EVERY)


def _sweeps(text: str) -> Iterator[Path]:
    """The sweep at a path, or those in it."""
    folder = Path(text)
    if text.startswith("-"):
        raise InputError(f"option: got {text}, wanted --watch or --help.")
    if not os.path.isdir(folder):
        raise InputError(
            f"folder: got {printable(text)}, which is none, wanted a sweep's folder or one that holds sweeps."
        )
    try:
        sweeps = sorted(path for path in folder.iterdir() if os.path.lexists(path / PLAN))
    except OSError as error:
        raise InputError(f"folder: got {printable(text)}, which cannot be read ({error.strerror}).") from None
    if os.path.lexists(folder / PLAN):
        sweeps = [folder]
    if not sweeps:
        raise InputError(
            f"folder: got {printable(text)}, without a sweep in it (no {PLAN}), wanted the folder of one. Start one "
            "with igap sweep NAME; igap compare shows single runs."
        )
    yield from sweeps


def _show(folders: list[SweepFolder]) -> tuple[Group, set[str], list[str]]:
    """A table a sweep, the states that occur in any, and a line a sweep that is left out.

    Raises InputError where that is the only one.
    """
    parts: list[RenderableType] = []
    states: set[str] = set()
    troubles: list[str] = []
    for folder in folders:
        if not is_text(folder.path):
            troubles.append(f"{printable(folder.path)}: left out: its name is no UTF-8 text. Rename it.")
            continue
        try:
            jobs = folder.read_plan()
        except ValueError as error:
            troubles.append(f"{printable(folder.path / PLAN)}: left out: {error}. Start the sweep again.")
            continue
        standings = [folder.standing(job.key) for job in jobs]
        states |= {one.state for one in standings}
        parts.append(_table(folder, jobs, standings))
        others = _others(folder, {job.key for job in jobs})
        if others:
            parts.append(f"{others} finished runs beside this grid, of grids started here before")
    if len(troubles) == len(folders) == 1:
        raise InputError(troubles[0])
    return Group(*parts), states, troubles


def _table(folder: SweepFolder, jobs: list[Planned], standings: list[Standing]) -> Table:
    counts = {state: sum(one.state == state for one in standings) for state in STATES}
    title = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    table = Table(
        title=escape(f"{printable(folder.path)}: {len(jobs)} job{'s' * (len(jobs) != 1)}: {title}"),
        title_justify="left",
    )
    more = ("detail",) if any(one.detail for one in standings) else ()
    for column in ("folder", "overrides", "state", *more):
        table.add_column(column, overflow="fold")
    for job, one in zip(jobs, standings, strict=True):
        cells = (job.key, escape(printable(" ".join(job.overrides), 2000)), one.state, escape(one.detail))
        table.add_row(*cells[: 3 + len(more)])
    return table


def _others(folder: SweepFolder, keys: set[str]) -> int:
    """Finished runs that the plan does not name."""
    beside = [path.parent for path in folder.path.glob("*/summary.json") if path.parent.name not in keys]
    return sum(read(path)[0] is not None for path in beside)
