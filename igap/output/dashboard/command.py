"""`igap compare`: its arguments, what it says, what it writes. The work is in the modules beside."""

import difflib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from igap.errors import InputError
from igap.output.dashboard import head_maps, table
from igap.output.dashboard.head_maps import Heads
from igap.output.dashboard.table import Table
from igap.storage.atomic import write_text
from igap.storage.finished import Finished, find

USAGE = f"""\
usage: igap compare DIR... [sort=NAME] [metrics=A,B,...] [output=FOLDER] [--wandb ENTITY/PROJECT]

DIR: folders of finished runs, or folders that hold such folders (a sweep, all of runs/); any number, mixed

  sort=NAME            rows by a metric, a setting, folder or key; sort=-NAME the largest first
  metrics=A,B,...      names of summary.json; default: those of these that the runs have:
                       {", ".join(table.DEFAULT[:4])},
                       {", ".join(table.DEFAULT[4:])}
  output=FOLDER        where compare.csv and compare.html go; default: this folder
  --wandb ENTITY/PROJECT
                       the runs that were logged there, beside those of the folders, if any

  igap compare runs sort=-heads/pearson
  igap compare runs/monday runs/tuesday/3 metrics=gap,heads/slope output=comparison

The terminal shows the settings that differ; compare.csv holds every metric; compare.html, one file that needs no
network, has heatmaps, scatter, convergence and the settings of two runs side by side.
"""

_OPTIONS = ("sort", "metrics", "output")


@dataclass(frozen=True)
class _Asked:
    folders: Sequence[Path]
    sort: str | None
    metrics: Sequence[str] | None
    output: Path
    wandb: str | None


def main(arguments: Sequence[str]) -> int:
    """The exit code: 0 done, 2 nothing asked. Raises InputError on what cannot be used."""
    if not arguments or {"-h", "--help"} & set(arguments):
        sys.stdout.write(USAGE)
        return 0 if arguments else 2
    asked = _parse(arguments)
    _check_output(asked.output)
    runs, maps, troubles = _collect(asked)
    for trouble in troubles:
        sys.stderr.write(f"igap: {trouble}\n")
    if not runs:
        raise InputError("folder: got no run that can be read, wanted one at least. The lines above say what is wrong.")
    from igap.output.dashboard import terminal

    found = table.tabulate(runs, metrics=asked.metrics, sort=asked.sort)
    written = _write(asked.output, found, maps, troubles)
    terminal.show(found)
    for path in written:
        sys.stdout.write(f"written: {path}\n")
    return 0


def _parse(arguments: Sequence[str]) -> _Asked:
    folders: list[Path] = []
    options: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        if name == "--wandb":
            options[name] = value if equals else rest.pop(0) if rest else ""
        elif name in _OPTIONS and equals:
            options[name] = value
        elif argument.startswith("-") or (equals and not Path(argument).is_dir()):
            known = ["--wandb", *_OPTIONS]
            near = difflib.get_close_matches(name, known, n=1)
            raise InputError(
                f"option: got {argument!r}, wanted a folder or one of {', '.join(known)}."
                f"{f' Did you mean {near[0]}?' if near else ''} igap compare --help shows them."
            )
        else:
            folders.append(Path(argument))
    for name, value in options.items():
        if not value.strip():
            raise InputError(f"{name}: got nothing, wanted a value. igap compare --help shows what it takes.")
    project = options.get("--wandb")
    if project is not None and (project.count("/") != 1 or not all(project.split("/"))):
        raise InputError(f"--wandb: got {project!r}, wanted ENTITY/PROJECT, as in the project's address on wandb.ai.")
    if not folders and project is None:
        raise InputError("folder: got none, wanted a run's folder or one that holds runs. Name one: igap compare runs.")
    metrics = [name.strip() for name in options["metrics"].split(",") if name.strip()] if "metrics" in options else None
    return _Asked(folders, options.get("sort"), metrics, Path(options.get("output", ".")), project)


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


def _collect(asked: _Asked) -> tuple[list[Finished], dict[Path, Heads], list[str]]:
    """The runs, the heads of those that have them readable, and a line for each thing that cannot be read."""
    runs, troubles = find(asked.folders) if asked.folders else ([], [])
    maps: dict[Path, Heads] = {}
    for run in runs:
        one, trouble = head_maps.read(run.folder) if run.has_heads else (None, None)
        troubles += [trouble] if trouble else []
        if one is not None:
            maps[run.folder] = one
    if asked.wandb is not None:
        from igap.output.dashboard import wandb_runs

        logged, their_maps, their_troubles = wandb_runs.fetch_runs(asked.wandb)
        runs, maps, troubles = runs + logged, maps | their_maps, troubles + their_troubles
    return runs, maps, troubles


def _write(folder: Path, found: Table, maps: dict[Path, Heads], troubles: Sequence[str]) -> list[Path]:
    from igap.output.dashboard.page import page

    texts = {"compare.csv": found.csv(), "compare.html": page(found, maps, troubles)}
    try:
        for name, text in texts.items():
            write_text(folder / name, text)
    except OSError as error:
        raise InputError(f"output: {folder} does not take the files ({error.strerror}). Set output=FOLDER.") from error
    return [folder / name for name in texts]
