"""`igap sync DIR...`: finished runs to W&B from disk, also those that a kill or a dead network kept out."""

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from igap.config import TrackingConfig
from igap.errors import InputError, printable
from igap.output.tracking import places
from igap.storage.finished import Finished, find

USAGE = """\
usage: igap sync DIR... [project=NAME] [entity=NAME]

Logs every finished run and search in these folders to W&B, from what is on disk, under its key: online where there is
a key and the server answers, offline into the run's folder where not. Runs logged offline before are uploaded with
wandb sync, or logged from disk again where the folder was moved since or lacks a file. What is in W&B already is left
alone; the same command again does the rest.
"""

UPLOAD_SECONDS = 600.0
"""That one wandb sync may take."""


@dataclass(frozen=True)
class _Done:
    what: str
    waits: bool = False
    """On this machine, for a server."""
    failed: bool = False


def main(arguments: list[str]) -> int:
    """The exit code of `igap sync`: 0, or 1 where a run could not be logged or uploaded."""
    if not arguments or {"-h", "--help"} & set(arguments):
        sys.stdout.write(USAGE)
        return 0 if arguments else 2
    from igap.output.tracking import wandb_run

    given = dict(text.split("=", 1) for text in arguments if "=" in text and not Path(text).exists())
    unknown = set(given) - {"project", "entity"} | {text for text in arguments if text.startswith("-")}
    if unknown:
        raise InputError(f"sync: got {min(unknown)}, wanted folders, project=NAME or entity=NAME.")
    folders = [Path(text) for text in arguments if "=" not in text or Path(text).exists()]
    if not folders:
        raise InputError("folder: got none, wanted a run's folder or one that holds runs. Name one: igap sync runs.")
    runs, troubles = find(folders, searches=True)
    for trouble in troubles:
        sys.stderr.write(f"igap: {trouble}\n")
    settled, said = wandb_run.decided(TrackingConfig.model_validate({"mode": "auto"}))
    console = Console()
    if not console.is_terminal:
        console.width = 160
    console.print(said, markup=False)
    table = Table(title="Runs", title_justify="left")
    for column in ("folder", "W&B"):
        table.add_column(column, overflow="fold")
    ends = []
    for run in runs:
        end = _one(run, given, online=settled.mode == "online")
        ends.append(end)
        table.add_row(escape(printable(run.folder)), escape(printable(end.what)))
    console.print(table)
    waiting = sum(end.waits for end in ends)
    if waiting:
        console.print(f"{waiting} of {len(ends)} runs wait on this machine; igap sync uploads them once W&B is online")
    return 1 if any(end.failed for end in ends) else 0


def _one(run: Finished, given: dict[str, str], *, online: bool) -> _Done:
    """What was done with one run."""
    from igap.output.tracking import wandb_run

    found = wandb_run.logged(run.folder)
    if found is not None and found.mode == "online":
        return _Done("there already")
    folder = run.folder.resolve()
    if found is not None and places.sent(folder, folder / found.place):
        return _Done("uploaded already")
    if not run.settings:
        return _Done("left out: its settings cannot be read", failed=True)
    if found is None or not places.whole(folder, folder / found.place):
        settings = {name: run.settings.get(f"tracking.{name}") for name in ("project", "entity", "group", "timeout")}
        try:
            wanted = TrackingConfig.model_validate({**settings, **given, "mode": "online" if online else "offline"})
        except ValidationError as error:
            names = ", ".join(f"tracking.{part['loc'][0]}" for part in error.errors())
            return _Done(f"left out: config.json: {names} cannot be used", failed=True)
        try:
            place = wandb_run.log(run.folder, wanted)
        except Exception as error:
            return _Done(f"W&B did not take it: {type(error).__name__}: {error}", failed=True)
        found = wandb_run.logged(run.folder)
        if found is None or found.mode == "offline":
            return _Done("logged offline from disk", waits=True, failed=online)
        return _Done(f"logged from disk: {place}")
    return _upload(folder / found.place, given) if online else _Done("logged offline", waits=True)


def _upload(offline: Path, given: dict[str, str]) -> _Done:
    """`wandb sync` of one offline run."""
    options = [part for name, value in given.items() for part in (f"--{name}", value)]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as own:
        try:
            done = subprocess.run(
                [sys.executable, "-m", "wandb", "sync", "--yes", *options, str(offline)],
                env={**places.apart(), "WANDB_DIR": own, "WANDB_CACHE_DIR": own},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=UPLOAD_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return _Done(f"wandb sync did not end within {UPLOAD_SECONDS:.0f} s", waits=True, failed=True)
        refused = places.refused(Path(own) / "wandb" / "logs")
    marks = list(offline.glob("*.synced"))
    if done.returncode or refused or not marks:
        for mark in marks:
            mark.unlink()  # W&B sets it whatever its server took
        lines = (refused or done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()
        return _Done(f"wandb sync failed: {lines[-1][:200]}", waits=True, failed=True)
    shutil.rmtree(offline / places.STAGED, ignore_errors=True)
    return _Done("uploaded")
