"""`igap sync DIR...`: finished runs to W&B from disk, also those that a kill or a dead network kept out."""

import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from rich.markup import escape

from igap.config import TrackingConfig
from igap.console import folding_table, terminal_console, warn
from igap.errors import InputError, printable
from igap.output.tracking import places
from igap.storage.finished import FinishedRun, Value, find_runs

UPLOAD_SECONDS = 600.0
"""Seconds that one wandb sync may take."""

_ROUNDING = 1e-5
"""Logits by which another number of threads moves a number at most: `tests/programs/survival.py` measures it."""


@dataclass(frozen=True)
class _Outcome:
    """What became of one run."""

    message: str
    waits: bool = False
    """Whether it is kept on this machine until a server is there."""
    failed: bool = False


def sync_runs(folders: Sequence[Path], *, project: str | None = None, entity: str | None = None) -> int:
    """Logs finished runs and searches to W&B from disk, and uploads those that were logged offline.

    What is in W&B already is left alone. A table on the terminal says what was done with each.

    Args:
        folders: folders of finished runs, or folders that hold such folders.
        project: the W&B project; None takes the one in each run's own settings.
        entity: the W&B user or team; None takes the one in each run's own settings.

    Returns:
        The exit code: 0, or 1 where a run could not be logged or uploaded.

    Raises:
        InputError: when there is no folder, or one without runs.
    """
    from igap.output.tracking import wandb_run

    if not folders:
        raise InputError("folder: got none, wanted a run's folder or one that holds runs. Name one: igap sync runs.")
    overrides = {name: value for name, value in (("project", project), ("entity", entity)) if value is not None}
    runs, problems = find_runs(folders, searches=True)
    warn(problems)
    resolved, message = wandb_run.resolve_mode(TrackingConfig.model_validate({"mode": "auto"}))
    console = terminal_console()
    console.print(message, markup=False)
    warn(list(_shared_ids(runs, overrides)))
    table = folding_table("Runs", "folder", "W&B")
    outcomes = []
    for run in runs:
        outcome = _sync(run, overrides, online=resolved.mode == "online")
        outcomes.append(outcome)
        table.add_row(escape(printable(run.folder)), escape(printable(outcome.message)))
    console.print(table)
    waiting = sum(outcome.waits for outcome in outcomes)
    if waiting:
        console.print(
            f"{waiting} of {len(outcomes)} runs wait on this machine; igap sync uploads them once W&B is online"
        )
    return 1 if any(outcome.failed for outcome in outcomes) else 0


def _shared_ids(runs: Sequence[FinishedRun], overrides: Mapping[str, str]) -> Iterator[str]:
    """A line about runs of equal numbers, and one about others, that are one run in W&B: the same key and project.

    Only where one of them is still to be sent. The one that is sent last replaces what W&B has of the others.
    """
    by_id: dict[tuple[Value, ...], list[tuple[FinishedRun, bool]]] = {}
    for run in runs:
        project, entity, sent = _destination(run, overrides)
        by_id.setdefault((run.key, project, entity), []).append((run, sent))
    alike: dict[bool, list[str]] = {True: [], False: []}
    for (key, project, _), group in by_id.items():
        waiting = [run for run, sent in group if not sent]
        if len(group) < 2 or not waiting:
            continue
        last = waiting[-1]
        others = [run for run, _ in group if run is not last]
        differing = next((text for run in others if (text := _difference(run, last))), None)
        alike[differing is None].append(
            f"{' and '.join(printable(run.folder) for run in (*others, last))} have the key {key}, and so are one run "
            f"in the W&B project {printable(project)}: that of {printable(last.folder)}, which is sent last"
            + (f". Their numbers differ: {differing}" if differing else ". Their numbers are equal")
        )
    for equal, lines in alike.items():
        if lines:
            remedy = "" if equal else " To keep both, sync one of the folders with project=NAME."
            more = f" {len(lines) - 1} more likewise." if len(lines) > 1 else ""
            yield f"{lines[0]}.{remedy}{more}"


def _destination(run: FinishedRun, overrides: Mapping[str, str]) -> tuple[Value, Value, bool]:
    """The project and entity of a run in W&B, and whether it is there already."""
    logged = places.find_logged_run(run.folder)
    project, entity = (run.settings.get(f"tracking.{name}") for name in ("project", "entity"))
    if logged is not None and logged.mode == "online":
        address = logged.place.split("/")  # .../ENTITY/PROJECT/runs/ID
        return address[-3] if len(address) > 3 else project, entity, True
    if logged is not None and places.is_uploaded(folder := run.folder.resolve(), folder / logged.place):
        return project, entity, True
    return overrides.get("project", project), overrides.get("entity", entity), False


def _difference(run: FinishedRun, other: FinishedRun) -> str | None:
    """The first number in which two summaries differ by more than rounding, with both values; times do not count."""
    for name in dict.fromkeys([*run.summary, *other.summary]):
        first, second = run.summary.get(name), other.summary.get(name)
        numbers = [value for value in (first, second) if isinstance(value, int | float)]
        if not numbers or name.startswith("seconds"):
            continue
        if len(numbers) < 2 or not math.isclose(*numbers, rel_tol=1e-3, abs_tol=_ROUNDING):
            return f"{name} {first} and {second}"
    return None


def _sync(run: FinishedRun, overrides: Mapping[str, str], *, online: bool) -> _Outcome:
    """Logs or uploads one run, and says what was done."""
    from igap.output.tracking import wandb_run

    logged = places.find_logged_run(run.folder)
    if logged is not None and logged.mode == "online":
        return _Outcome("there already")
    folder = run.folder.resolve()
    if logged is not None and places.is_uploaded(folder, folder / logged.place):
        return _Outcome("uploaded already")
    if not run.settings:
        return _Outcome("left out: its settings cannot be read", failed=True)
    if logged is None or not places.is_complete(folder, folder / logged.place):
        settings = {name: run.settings.get(f"tracking.{name}") for name in ("project", "entity", "group", "timeout")}
        try:
            wanted = TrackingConfig.model_validate({**settings, **overrides, "mode": "online" if online else "offline"})
        except ValidationError as error:
            names = ", ".join(f"tracking.{part['loc'][0]}" for part in error.errors())
            return _Outcome(f"left out: config.json: invalid {names}", failed=True)
        try:
            place = wandb_run.log(run.folder, wanted)
        except Exception as error:
            return _Outcome(f"W&B did not take it: {type(error).__name__}: {error}", failed=True)
        logged = places.find_logged_run(run.folder)
        if logged is None or logged.mode == "offline":
            return _Outcome("logged offline from disk", waits=True, failed=online)
        return _Outcome(f"logged from disk: {place}")
    return _upload(folder / logged.place, overrides) if online else _Outcome("logged offline already", waits=True)


def _upload(offline: Path, overrides: Mapping[str, str]) -> _Outcome:
    """Uploads one offline run with `wandb sync`."""
    options = [part for name, value in overrides.items() for part in (f"--{name}", value)]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as own:
        try:
            done = subprocess.run(
                [sys.executable, "-m", "wandb", "sync", "--yes", *options, str(offline)],
                env={**places.own_environment(), "WANDB_DIR": own, "WANDB_CACHE_DIR": own},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=UPLOAD_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return _Outcome(f"wandb sync did not end within {UPLOAD_SECONDS:.0f} s", waits=True, failed=True)
        refused = places.first_refusal(Path(own) / "wandb" / "logs")
    marks = list(offline.glob("*.synced"))
    if done.returncode or refused or not marks:
        for mark in marks:
            mark.unlink()  # W&B sets it whatever its server took
        lines = (refused or done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()
        return _Outcome(f"wandb sync failed: {lines[-1][:200]}", waits=True, failed=True)
    shutil.rmtree(offline / places.STAGED, ignore_errors=True)
    return _Outcome("uploaded")
