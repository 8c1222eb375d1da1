"""Where W&B keeps its own files: all that a run needs is in the run's folder, nothing is left in the home folder.

A mark beside them, `MARK`, says that they are whole.
"""

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from igap.output.tracking import reading
from igap.storage.untrusted import read_json_object

SETTLED_SECONDS = 60.0
"""That W&B's process may take to write the end of an offline run after it was told to."""

STAGED = Path("artifacts") / "staging"
"""In the folder of W&B's run: copies of what goes into artifacts."""

MARK = Path("wandb") / "logged.json"
"""In a run's folder: that W&B's files beside it are whole, and where they are."""

Mode = Literal["offline", "online"]

_LOST = ("sender: failed to log artifact", "file transfer:", "filestream:", "runfiles:")
"""How W&B's messages begin that say so. Others, of a question to the server that failed, cost nothing."""


@dataclass(frozen=True)
class LoggedRun:
    """What W&B has of a run."""

    mode: Mode
    place: str
    """The offline run's folder in the run's folder, or the address."""


def find_logged_run(folder: Path) -> LoggedRun | None:
    """What W&B has of a run; None where nothing is, or where the process that logged was killed meanwhile."""
    try:
        mark = read_json_object(folder / MARK)
    except ValueError:
        return None
    match mark:
        case {"mode": "online", "place": str(place)}:
            return LoggedRun("online", place)
        case {"mode": "offline", "place": str(place)} if _is_inside(place) and os.path.isdir(folder / place):
            return LoggedRun("offline", place)
    return None


def _is_inside(place: str) -> bool:
    """Whether a path is one in W&B's folder of a run: what a mark says is uploaded, or removed."""
    parts = Path(place).parts
    return len(parts) > 1 and parts[0] == MARK.parent.name and ".." not in parts


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """A block in which environment variables have these values."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def no_cache() -> Iterator[None]:
    """A block at whose end W&B's cache and the log of its process, otherwise in the home folder, are gone."""
    cache = tempfile.TemporaryDirectory(prefix="igap-wandb-", ignore_cleanup_errors=True)
    with cache as folder, environment(WANDB_CACHE_DIR=folder):
        yield


def missing_key() -> str | None:
    """As `reading.missing_key`: its question starts W&B's process, which keeps a log."""
    with no_cache():
        return reading.missing_key()


def files_to_upload(place: Path) -> set[Path]:
    """The files that W&B's offline run in `place` needs for its upload. Raises ValueError where its end is missing."""
    (file,) = place.glob("*.wandb")
    needs, ended = {file}, False
    for record in reading.read_records(file):
        needs |= {Path(entry.local_path) for entry in record.artifact.manifest.contents if entry.local_path}
        needs |= {place / "files" / entry.path for entry in record.files.files}
        ended = ended or record.HasField("exit")
    if not ended:
        raise ValueError(f"{file}: its end is missing")
    return needs


def wait_until_written(place: Path) -> None:
    """Waits until the offline run in `place` is on disk to its end, and removes copies of files that it does not name.

    Raises ValueError where W&B does not get there in time.
    """
    until = time.monotonic() + SETTLED_SECONDS
    while True:
        try:
            needs = files_to_upload(place)
            break
        except ValueError:
            if time.monotonic() > until:
                raise
        time.sleep(0.01)
    for path in (place / STAGED).glob("*"):
        if path not in needs:
            path.unlink()


def is_complete(folder: Path, place: Path) -> bool:
    """Whether all that the offline run in `place` needs is in the run's `folder`.

    W&B names the files of an artifact by their whole path: after a move it would take them from the old place.
    """
    try:
        return all(path.is_file() and path.is_relative_to(folder) for path in files_to_upload(place))
    except (OSError, ValueError):
        return False


def is_uploaded(folder: Path, place: Path) -> bool:
    """Whether `wandb sync` has uploaded the offline run in `place`.

    It says so even where it did not find the files of an artifact, as after a move. Once all is uploaded, igap removes
    their copies.
    """
    return any(place.glob("*.synced")) and (not any((place / STAGED).glob("*")) or is_complete(folder, place))


def first_refusal(logs: Path) -> str | None:
    """The first thing that W&B's server did not take, None where there is none: W&B tells it to its own log alone."""
    for file in sorted(logs.glob("*.log")):
        for line in file.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError, TypeError):
                told = dict(json.loads(line))
                message = str(told.get("msg"))
                if str(told.get("level")).startswith("ERROR") and message.startswith(_LOST):
                    return " ".join(message.split())[:200]
    return None


def own_environment() -> dict[str, str]:
    """The environment for a process that starts a W&B process of its own, which ends with it."""
    return {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
