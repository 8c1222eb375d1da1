"""Runs read back from W&B's server as `finished` reads them from disk. wandb is imported here, late, for reading only;
what is written to W&B is in `tracking`.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from igap.errors import InputError
from igap.output.dashboard import head_maps
from igap.output.dashboard.head_maps import Heads
from igap.output.tracking import places
from igap.storage.finished import SCHEMA, FinishedRun, flatten
from igap.storage.untrusted import parse_json

TIMEOUT = 5
"""Seconds that one request may take."""


def fetch_runs(project: str) -> tuple[list[FinishedRun], dict[Path, Heads], list[str]]:
    """The finished igap runs of "entity/project", their heads, and a line for each thing that cannot be read.

    A run's folder is entity/project/NAME (ID), which is on no disk. Raises InputError without a key, and where the
    server or the project cannot be reached.
    """
    with places.no_cache():
        return _fetched(project)


def _fetched(project: str) -> tuple[list[FinishedRun], dict[Path, Heads], list[str]]:
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    os.environ.setdefault("WANDB_HTTP_TIMEOUT", str(TIMEOUT))  # what login waits for; it takes no argument for that
    runs: list[FinishedRun] = []
    maps: dict[Path, Heads] = {}
    troubles: list[str] = []
    try:
        if not wandb.login(prompt=False):
            raise InputError(
                f"--wandb: got {project}, but W&B has no key for this machine. Run wandb login, or set WANDB_API_KEY."
            )
        for logged in wandb.Api(timeout=TIMEOUT).runs(project, lazy=False):
            run, trouble = _finished(project, logged)
            troubles += [trouble] if trouble else []
            if run is not None:
                runs.append(run)
                found, trouble = _heads(run.folder, logged) if run.has_heads else (None, None)
                maps |= {} if found is None else {run.folder: found}
                troubles += [trouble] if trouble else []
    except (wandb.errors.Error, WandbApiFailedError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())
        raise InputError(
            f"--wandb: {project} cannot be read ({type(error).__name__}: {reason}). Check its name, the key and the "
            "network, or compare folders on disk."
        ) from error
    if not runs and not troubles:
        raise InputError(f"--wandb: got {project}, in which there is no run, wanted one with igap's runs.")
    return runs, maps, troubles


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
