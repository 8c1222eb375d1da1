"""Where W&B keeps its own files: all that a run needs is in the run's folder, nothing is left in the home folder."""

import contextlib
import json
import os
import struct
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from igap.storage.untrusted import check_file

SETTLED_SECONDS = 60.0
"""That W&B's process may take to write the end of an offline run after it was told to."""

STAGED = Path("artifacts") / "staging"
"""In the folder of W&B's run: copies of what goes into artifacts."""

_LOST = ("sender: failed to log artifact", "file transfer:", "filestream:", "runfiles:")
"""How W&B's messages begin that say so. Others, of a question to the server that failed, cost nothing."""

_BLOCK, _HEAD = 32 * 1024, 7
_MOST = 2**31
"""Bytes of a .wandb file."""


@contextlib.contextmanager
def variables(**values: str) -> Iterator[None]:
    """The environment has these values meanwhile."""
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
    """W&B's cache and the log of its process, which would be in the home folder, are gone at the end."""
    cache = tempfile.TemporaryDirectory(prefix="igap-wandb-", ignore_cleanup_errors=True)
    with cache as folder, variables(WANDB_CACHE_DIR=folder):
        yield


def records(file: Path) -> Iterator[Any]:
    """The records (protobuf) of a .wandb file: LevelDB's log format after 7 bytes. Raises ValueError on damage."""
    from wandb.proto import wandb_internal_pb2

    messages: Any = wandb_internal_pb2  # generated, without types
    check_file(file, _MOST)
    data, at, parts = file.read_bytes(), _HEAD, b""
    if not data.startswith(b":W&B"):
        raise ValueError(f"{file}: not a file of W&B's")
    while at + _HEAD <= len(data):
        left = _BLOCK - at % _BLOCK
        checksum, length, kind = struct.unpack_from("<IHB", data, at)
        if left < _HEAD or not (checksum or length or kind):
            at += left  # what is left of a block is zeros
            continue
        chunk = data[at + _HEAD - 1 : at + _HEAD + length]
        if len(chunk) != 1 + length or zlib.crc32(chunk) != checksum:
            raise ValueError(f"{file}: cut off or damaged at byte {at}")
        parts += chunk[1:]
        if kind in (1, 4):  # whole, or the last part
            yield messages.Record.FromString(parts)
            parts = b""
        at += _HEAD + length


def needed(place: Path) -> set[Path]:
    """The files that W&B's offline run in `place` needs for its upload. Raises ValueError where its end is missing."""
    (file,) = place.glob("*.wandb")
    needs, ended = {file}, False
    for record in records(file):
        needs |= {Path(entry.local_path) for entry in record.artifact.manifest.contents if entry.local_path}
        needs |= {place / "files" / entry.path for entry in record.files.files}
        ended = ended or record.HasField("exit")
    if not ended:
        raise ValueError(f"{file}: its end is missing")
    return needs


def settle(place: Path) -> None:
    """Waits until the offline run in `place` is on disk to its end, and removes the copies of files that it names not.

    Raises ValueError where W&B does not get there in time.
    """
    until = time.monotonic() + SETTLED_SECONDS
    while True:
        try:
            needs = needed(place)
            break
        except ValueError:
            if time.monotonic() > until:
                raise
        time.sleep(0.01)
    for path in (place / STAGED).glob("*"):
        if path not in needs:
            path.unlink()


def whole(folder: Path, place: Path) -> bool:
    """Whether all that the offline run in `place` needs is in the run's `folder`.

    W&B names the files of an artifact by their whole path: after a move it would take them from the old place.
    """
    try:
        return all(path.is_file() and path.is_relative_to(folder) for path in needed(place))
    except (OSError, ValueError):
        return False


def sent(folder: Path, place: Path) -> bool:
    """Whether `wandb sync` has uploaded the offline run in `place`.

    It says so even where it did not find the files of an artifact, as after a move. Once all is uploaded, igap removes
    their copies.
    """
    return any(place.glob("*.synced")) and (not any((place / STAGED).glob("*")) or whole(folder, place))


def refused(logs: Path) -> str | None:
    """The first thing that W&B's server did not take, None where there is none: W&B tells it to its own log alone."""
    for file in sorted(logs.glob("*.log")):
        for line in file.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError, TypeError):
                told = dict(json.loads(line))
                message = str(told.get("msg"))
                if str(told.get("level")).startswith("ERROR") and message.startswith(_LOST):
                    return " ".join(message.split())[:200]
    return None


def apart() -> dict[str, str]:
    """The environment for a process that starts a W&B process of its own, which ends with it."""
    return {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
