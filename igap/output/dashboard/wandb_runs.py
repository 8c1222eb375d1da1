"""Runs read back from W&B's server as `finished` reads them from disk."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from igap.components import Site
from igap.errors import InputError
from igap.output.dashboard import site_maps
from igap.output.dashboard.site_maps import Maps, SiteMap
from igap.output.tracking import places, reading
from igap.storage.finished import SCHEMA, FinishedRun, flatten
from igap.storage.untrusted import parse_json


def fetch_runs(project: str) -> tuple[list[FinishedRun], Maps, list[str]]:
    """The finished igap runs of "entity/project", their maps, and a line for each thing that cannot be read.

    A run's folder is entity/project/NAME (ID), which is on no disk. Raises InputError without a key, and where the
    server or the project cannot be reached.
    """
    runs: list[FinishedRun] = []
    maps: Maps = {}
    problems: list[str] = []
    with places.no_cache(), reading.project_runs(project) as logged_runs:
        for logged in logged_runs:
            run, problem = _to_finished_run(project, logged)
            problems += [problem] if problem else []
            if run is not None:
                runs.append(run)
                maps[run.folder] = {}
                for site in site_maps.mapped_sites(run):
                    values, problem = _map(run, site, logged)
                    problems += [problem] if problem else []
                    maps[run.folder] |= {} if values is None else {site: values}
    if not runs and not problems:
        raise InputError(f"--wandb: got {project}, in which there is no run, wanted one with igap's runs.")
    return runs, maps, problems


def _to_finished_run(project: str, logged: Any) -> tuple[FinishedRun | None, str | None]:
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


def _map(run: FinishedRun, site: Site, logged: Any) -> tuple[SiteMap | None, str | None]:
    try:
        name = logged.summary_metrics[f"tables/{site}"]["path"]
        if not name.startswith("media/table/") or ".." in name:
            raise ValueError(f"its table is at {name!r}")
        with tempfile.TemporaryDirectory() as folder, logged.file(name).download(root=folder) as file:
            table = parse_json(file.read(), holes=True)
        header, rows = table["columns"], table["data"]
        wanted = run.summary.get(f"{site}/n_components", len(rows))
        if len(rows) != wanted:  # cut, it may be a map of fewer layers
            raise ValueError(f"W&B has {len(rows)} of its {wanted} rows; the run's folder has all")
        return site_maps.of_table(site, header, rows), None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return None, f"{run.folder}: its {site} cannot be read (tables/{site}: {type(error).__name__}: {error})."
