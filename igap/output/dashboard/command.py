"""The work of `igap compare`: what it reads, says and writes."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from igap.errors import InputError
from igap.output.dashboard import site_maps, table
from igap.output.dashboard.site_maps import Maps
from igap.output.dashboard.table import Table
from igap.storage.atomic import write_text
from igap.storage.finished import FinishedRun, find_runs


def compare_runs(
    folders: Sequence[Path],
    *,
    sort: str | None = None,
    metrics: Sequence[str] | None = None,
    output: Path = Path("."),
    project: str | None = None,
) -> list[Path]:
    """Shows finished runs side by side on the terminal, and writes compare.csv and compare.html.

    Args:
        folders: folders of finished runs, or folders that hold such folders.
        sort: the metric, setting, folder or key that rows are sorted by; "-NAME" the largest first; None keeps the
            order of the folders.
        metrics: names of summary.json; None takes those of `table.DEFAULT` that the runs have.
        output: the folder that the two files are written to.
        project: "ENTITY/PROJECT" of W&B, whose runs are shown beside those of the folders.

    Returns:
        The files written.

    Raises:
        InputError: when there is no run to show, a name that no run has, or an output that cannot be written.
    """
    if project is not None and (project.count("/") != 1 or not all(project.split("/"))):
        raise InputError(f"--wandb: got {project!r}, wanted ENTITY/PROJECT, as in the project's address on wandb.ai.")
    if not folders and project is None:
        raise InputError("folder: got none, wanted a run's folder or one that holds runs. Name one: igap compare runs.")
    _check_output(output)
    runs, maps, problems = _collect(folders, project)
    from igap.console import warn  # rich, which help does without

    warn(problems)
    if not runs:
        raise InputError("folder: got no run that can be read, wanted one at least. The lines above say what is wrong.")
    from igap.output.dashboard import terminal

    shown = table.tabulate(runs, metrics=metrics, sort=sort)
    written = _write(output, shown, maps, problems)
    terminal.show(shown)
    for path in written:
        sys.stdout.write(f"written: {path}\n")
    return written


def _check_output(folder: Path) -> None:
    """Raises InputError on a folder in a run's, whose files are the run's own, and on one that cannot be written."""
    for place in (folder.resolve(), *folder.resolve().parents):
        if (place / "summary.json").is_file():
            raise InputError(
                f"output: got {folder}, in the run's folder {place}, wanted a folder of its own. Set output=FOLDER."
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if not writable:
        raise InputError(f"output: got {folder}, wanted a folder that can be written to. Set output=FOLDER.")


def _collect(folders: Sequence[Path], project: str | None) -> tuple[list[FinishedRun], Maps, list[str]]:
    """The runs, their maps that can be read, and a line for each thing that cannot be."""
    runs, problems = find_runs(folders) if folders else ([], [])
    maps: Maps = {}
    for run in runs:
        maps[run.folder] = {}
        for site in site_maps.mapped_sites(run):
            values, problem = site_maps.read(run.folder, site)
            problems += [problem] if problem else []
            maps[run.folder] |= {} if values is None else {site: values}
    if project is not None:
        from igap.output.dashboard import wandb_runs

        logged, their_maps, their_problems = wandb_runs.fetch_runs(project)
        runs, maps, problems = runs + logged, maps | their_maps, problems + their_problems
    return runs, maps, problems


def _write(folder: Path, shown: Table, maps: Maps, problems: Sequence[str]) -> list[Path]:
    from igap.output.dashboard.page import page

    texts = {"compare.csv": shown.csv(), "compare.html": page(shown, maps, problems)}
    try:
        for name, text in texts.items():
            write_text(folder / name, text)
    except OSError as error:
        raise InputError(f"output: {folder} does not take the files ({error.strerror}). Set output=FOLDER.") from error
    return [folder / name for name in texts]
