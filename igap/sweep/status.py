"""`igap status DIR...`: how the jobs of each sweep and the trials of each search stand, from the disk alone."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from igap.console import folding_table, number, terminal_console, warn
from igap.errors import InputError, printable
from igap.output.tracking import places
from igap.storage.finished import read_run
from igap.storage.studies import SearchStatus, find_searches, read_status
from igap.storage.untrusted import is_text
from igap.sweep.folder import PLAN, STATES, JobStatus, PlannedJob, SweepFolder

_LOOK_EVERY = 2.0
"""Seconds between two looks with `watch`."""


def show_status(folders: Sequence[Path], *, watch: bool = False) -> int:
    """Shows how the jobs of each sweep stand: done, stale, running, failed or planned; and how far each search is.

    Args:
        folders: folders of sweeps and searches, or folders that hold such folders.
        watch: look again every two seconds until nothing is running or planned, and no search has trials to make.

    Returns:
        The exit code: 0, or 1 where jobs have failed, or a plan or a study cannot be read.

    Raises:
        InputError: when there is no folder, or one with neither a sweep nor a search.
    """
    if not folders:
        raise InputError("folder: got none, wanted the folder of a sweep or a search. igap status runs/NAME --watch.")
    sweeps, searches, unread = list[SweepFolder](), list[Path](), list[str]()
    for folder in folders:
        of_folder, in_folder = _find(folder, unread)
        sweeps += of_folder
        searches += [path for path in in_folder if path not in searches]
    warn(unread)
    console = terminal_console()
    if not watch:
        shown, states, problems = _show(sweeps, searches)
        warn(problems)
        console.print(shown)
        return 1 if "failed" in states or problems or unread else 0
    with Live(console=console, auto_refresh=False) as live:
        while True:
            shown, states, problems = _show(sweeps, searches)
            live.update(Group(*map(escape, problems), shown), refresh=True)
            if not {"running", "planned"} & states:
                return 1 if "failed" in states or problems or unread else 0
            time.sleep(_LOOK_EVERY)


def _find(folder: Path, problems: list[str]) -> tuple[list[SweepFolder], list[Path]]:
    """The sweep at a path or those in it, and the folders of the searches there; lines for what cannot be read."""
    name = printable(folder)
    if not os.path.isdir(folder):
        raise InputError(
            f"folder: got {name}, which is no folder, wanted a sweep's or a search's folder or one that holds such."
        )
    if os.path.lexists(folder / PLAN):
        return [SweepFolder(folder)], []
    try:
        sweeps = sorted(path for path in folder.iterdir() if os.path.lexists(path / PLAN))
    except OSError as error:
        raise InputError(f"folder: got {name}, which cannot be read ({error.strerror}).") from None
    unread: list[str] = []
    searches = find_searches(folder, unread)
    if not sweeps and not searches:
        raise InputError(
            f"folder: got {name}, without a sweep or a search in it (no {PLAN}, no study), wanted the folder of one. "
            "Start one with igap sweep NAME or igap search; igap compare shows single runs."
        )
    problems += unread if searches else []
    return list(map(SweepFolder, sweeps)), searches


def _show(sweeps: Sequence[SweepFolder], searches: Sequence[Path]) -> tuple[Group, set[str], list[str]]:
    """A table for each sweep, one of the searches, the states that occur, and a line for each that is left out.

    Raises InputError where that is the only one.
    """
    parts: list[RenderableType] = []
    states: set[str] = set()
    problems: list[str] = []
    for sweep in sweeps:
        if not is_text(sweep.path):
            problems.append(f"{printable(sweep.path)}: left out: its name is no UTF-8 text. Rename it.")
            continue
        try:
            jobs = sweep.read_plan()
        except ValueError as error:
            problems.append(f"{printable(sweep.path / PLAN)}: left out: {error}. Start the sweep again.")
            continue
        statuses = [sweep.status(job.key) for job in jobs]
        states |= {status.state for status in statuses}
        parts.append(_table(sweep, jobs, statuses))
        if n_here := sum(map(_waits_for_wandb, statuses)):
            n_finished = sum(status.finished for status in statuses)
            place = escape(printable(sweep.path))
            parts.append(f"{n_here} of {n_finished} finished runs wait on this machine for W&B: igap sync {place}")
        n_others = _count_others(sweep, {job.key for job in jobs})
        if n_others:
            parts.append(f"{n_others} finished runs beside this grid, of grids started here before")
    of_searches: list[SearchStatus] = []
    for folder in searches:
        try:
            of_searches.append(read_status(folder))
        except ValueError as error:
            problems.append(f"{printable(folder)}: left out: {printable(error)}.")
    if len(problems) == len(sweeps) + len(searches) == 1:
        raise InputError(problems[0])
    if of_searches:
        parts.append(_table_of_searches(of_searches))
        states |= {"done" if search.is_done else "running" for search in of_searches}
    return Group(*parts), states, problems


def _table(sweep: SweepFolder, jobs: Sequence[PlannedJob], statuses: Sequence[JobStatus]) -> Table:
    counts = {state: sum(status.state == state for status in statuses) for state in STATES}
    title = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    more = ("detail",) if any(status.detail for status in statuses) else ()
    table = folding_table(
        f"{printable(sweep.path)}: {len(jobs)} job{'s' * (len(jobs) != 1)}: {title}",
        *("folder", "overrides", "state", *more),
    )
    for job, status in zip(jobs, statuses, strict=True):
        cells = (job.key, escape(printable(" ".join(job.overrides), 2000)), status.state, escape(status.detail))
        table.add_row(*cells[: 3 + len(more)])
    return table


def _table_of_searches(searches: Sequence[SearchStatus]) -> Table:
    n_done = sum(search.is_done for search in searches)
    title = f"{len(searches)} search{'es' * (len(searches) != 1)}: {n_done} done"
    table = folding_table(title, "folder", "head", "objective", "trials", "best", "report")
    for search in searches:
        of = "" if search.until is None else f" of {search.until}"
        if search.reported is None:
            report = "none yet"
        else:
            report = "written" if search.reported == search.n_trials else f"of {search.reported} trials"
        texts = (str(search.folder), search.head, search.objective)
        cells = (f"{search.n_trials}{of}", number(search.best), report)
        table.add_row(*(escape(printable(text, 2000)) for text in texts), *cells)
    return table


def _waits_for_wandb(status: JobStatus) -> bool:
    """Whether a finished run is to be in W&B and is not, or only in its offline files, as its own folder tells."""
    if status.run is None or not status.finished or status.run.settings.get("tracking.mode") in (None, "disabled"):
        return False
    folder = status.run.folder.resolve()
    logged = places.find_logged_run(folder)
    return logged is None or (logged.mode == "offline" and not places.is_uploaded(folder, folder / logged.place))


def _count_others(sweep: SweepFolder, keys: set[str]) -> int:
    """The number of finished runs that the plan does not name."""
    beside = [path.parent for path in sweep.path.glob("*/summary.json") if path.parent.name not in keys]
    return sum(read_run(path)[0] is not None for path in beside)
