"""Runs read back from W&B's server as `finished` reads them from disk."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from igap.errors import InputError
from igap.output.dashboard import head_maps
from igap.output.dashboard.head_maps import Heads
from igap.output.tracking import places, reading
from igap.storage.finished import SCHEMA, FinishedRun, flatten
from igap.storage.untrusted import parse_json


def fetch_runs(project: str) -> tuple[list[FinishedRun], dict[Path, Heads], list[str]]:
    """The finished igap runs of "entity/project", their heads, and a line for each thing that cannot be read.

    A run's folder is entity/project/NAME (ID), which is on no disk. Raises InputError without a key, and where the
    server or the project cannot be reached.
    """
    runs: list[FinishedRun] = []
    maps: dict[Path, Heads] = {}
    problems: list[str] = []
    with places.no_cache(), reading.project_runs(project) as logged_runs:
        for logged in logged_runs:
            run, problem = _finished(project, logged)
            problems += [problem] if problem else []
            if run is not None:
                runs.append(run)
                heads, problem = _heads(run.folder, logged) if run.has_heads else (None, None)
                maps |= {} if heads is None else {run.folder: heads}
                problems += [problem] if problem else []
    if not runs and not problems:
        raise InputError(f"--wandb: got {project}, in which there is no run, wanted one with igap's runs.")
    return runs, maps, problems


def _finished(project: str, logged: Any) -> tuple[FinishedRun | None, str | None]:
    place = Path(project, f"{logged.name} ({logged.id})")
    whole: Mapping[str, Any] = logged.summary_metrics
    summary = {
        name: value
        for name, value in whole.items()
        if not name.startswith("_") and isinstance(value, int | float | str | None)
    }
    if logged.state != "finished" or "key" not in summary:
        return None, f"{place}: left out: {'no run of igap' if logged.state == 'finished' else logged.state}."
    if summary.get("schema") != SCHEMA:
        return FinishedRun(place, summary, {}), (
            f"{place}: its schema is {summary.get('schema', 'none')}, this igap knows {SCHEMA}: its numbers are shown "
            "under their names, its settings are not."
        )
    config = {name: value for name, value in logged.config.items() if name != "key" and not name.startswith("_")}
    return FinishedRun(place, summary, dict(flatten(config))), None


def _heads(place: Path, logged: Any) -> tuple[Heads | None, str | None]:
    try:
        name = logged.summary_metrics["tables/heads"]["path"]
        if not name.startswith("media/table/") or ".." in name:
            raise ValueError(f"its table is at {name!r}")
        with tempfile.TemporaryDirectory() as folder, logged.file(name).download(root=folder) as file:
            table = parse_json(file.read(), holes=True)
        return head_maps.from_rows(dict(zip(table["columns"], row, strict=True)) for row in table["data"]), None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return None, f"{place}: its heads cannot be read (tables/heads: {type(error).__name__}: {error})."
