"""The work of `igap compare`: what it reads, says and writes."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from igap.errors import InputError
from igap.output.dashboard import site_maps, table
from igap.output.dashboard.searches import Searches, read_history
from igap.output.dashboard.site_maps import Maps
from igap.output.dashboard.table import Table
from igap.storage.atomic import write_text
from igap.storage.finished import SUMMARIES, FinishedRun, find_runs


def compare_runs(
    folders: Sequence[Path],
    *,
    sort: str | None = None,
    metrics: Sequence[str] | None = None,
    output: Path = Path("."),
    project: str | None = None,
) -> list[Path]:
    """Shows finished runs, and finished searches, side by side on the terminal, and writes what compares them.

    compare.csv has the runs, compare_searches.csv the searches, compare.html both.

    Args:
        folders: folders of finished runs and searches, or folders that hold such folders.
        sort: of runs, the metric, setting, folder or key that rows are sorted by; "-NAME" the largest first; None keeps
            the order of the folders.
        metrics: of runs, names of summary.json; None takes those of `table.DEFAULT` that the runs have.
        output: the folder that the files are written to.
        project: "ENTITY/PROJECT" of W&B, whose runs are shown beside those of the folders.

    Returns:
        The files written.

    Raises:
        InputError: when there is nothing to show, a name that no run has, or an output that cannot be written.
    """
    if project is not None and (project.count("/") != 1 or not all(project.split("/"))):
        raise InputError(f"--wandb: got {project!r}, wanted ENTITY/PROJECT, as in the project's address on wandb.ai.")
    if not folders and project is None:
        raise InputError("folder: got none, wanted a run's folder or one that holds runs. Name one: igap compare runs.")
    _check_output(output)
    finished, maps, problems = _collect(folders, project)
    runs, searches, unread = _divide(finished)
    problems += unread
    from igap.console import warn  # rich, which help does without

    warn(problems)
    if not finished:
        raise InputError("folder: got no run that can be read, wanted one at least. The lines above say what is wrong.")
    if not runs and (metrics or sort):
        name, got = ("metrics", metrics[0]) if metrics else ("sort", sort)
        raise InputError(
            f"{name}: got {got!r}, but there are only searches, whose table has neither. Name a "
            "folder of runs as well, or leave it out."
        )
    from igap.output.dashboard import terminal

    shown = table.tabulate(runs, metrics=metrics, sort=sort) if runs else None
    written = _write(output, shown, maps, searches, problems)
    if shown:
        terminal.show(shown)
    if searches.searches:
        terminal.show_searches(searches)
    for path in written:
        sys.stdout.write(f"written: {path}\n")
    return written


def _divide(finished: Sequence[FinishedRun]) -> tuple[list[FinishedRun], Searches, list[str]]:
    """The runs, the searches with their histories, and a line for each history that cannot be read."""
    searches = [each for each in finished if each.is_search]
    histories = [read_history(search) for search in searches]
    problems = [problem for _, problem in histories if problem]
    return (
        [each for each in finished if not each.is_search],
        Searches(searches, [steps for steps, _ in histories]),
        problems,
    )


def _check_output(folder: Path) -> None:
    """Raises InputError on a folder in a run's or a search's, and on one that cannot be written."""
    for place in (folder.resolve(), *folder.resolve().parents):
        for what, summary in zip(("run", "search", "atlas"), SUMMARIES, strict=True):
            if (place / summary).is_file():
                raise InputError(
                    f"output: got {folder}, in the {what}'s folder {place}, wanted a folder of its own. Set "
                    "output=FOLDER."
                )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if not writable:
        raise InputError(f"output: got {folder}, wanted a folder that can be written to. Set output=FOLDER.")


def _collect(folders: Sequence[Path], project: str | None) -> tuple[list[FinishedRun], Maps, list[str]]:
    """The runs and searches, the runs' maps that can be read, and a line for each thing that cannot be."""
    runs, problems = find_runs(folders, searches=True) if folders else ([], [])
    runs = [run for run in runs if not run.is_atlas]  # an atlas has a page of its own, of the same searches
    maps: Maps = {}
    for run in runs:
        maps[run.folder] = {}
        if run.is_search:
            continue
        for site in site_maps.mapped_sites(run):
            values, problem = site_maps.read(run.folder, site)
            problems += [problem] if problem else []
            maps[run.folder] |= {} if values is None else {site: values}
    if project is not None:
        from igap.output.dashboard import wandb_runs

        logged, their_maps, their_problems = wandb_runs.fetch_runs(project)
        runs, maps, problems = runs + logged, maps | their_maps, problems + their_problems
    return runs, maps, problems


def _write(folder: Path, shown: Table | None, maps: Maps, searches: Searches, problems: Sequence[str]) -> list[Path]:
    from igap.output.dashboard.page import page

    texts = {"compare.csv": shown.csv()} if shown else {}
    texts |= {"compare_searches.csv": searches.csv()} if searches.searches else {}
    texts["compare.html"] = page(shown, maps, problems, searches)
    try:
        for name, text in texts.items():
            write_text(folder / name, text)
    except OSError as error:
        raise InputError(f"output: {folder} does not take the files ({error.strerror}). Set output=FOLDER.") from error
    return [folder / name for name in texts]
