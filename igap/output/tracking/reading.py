"""What igap asks of W&B: a key, whether the server answers, the runs of a project, the records of an offline run.

wandb is imported here to read and in `writing` to write, nowhere else, and only when it is used.
"""

import contextlib
import io
import os
import struct
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

from igap.errors import InputError, one_line
from igap.storage.untrusted import check_file

PROBE_SECONDS = 3.0
"""That W&B's server has to answer anything at all."""

REQUEST_SECONDS = 5
"""That one request for the runs of a project may take."""

_BLOCK, _HEAD = 32 * 1024, 7
_MOST = 2**31
"""Bytes of a .wandb file."""


def missing_key() -> str | None:
    """Why W&B has no credentials on this machine, without a prompt; None where it has."""
    import wandb

    try:
        with contextlib.redirect_stderr(io.StringIO()):  # where it tells which key it found
            return None if wandb.login(prompt=False, verify=False) else "W&B has no key for this machine"
    except wandb.errors.Error as error:
        return f"W&B takes no key of this machine ({one_line(error).rstrip('.')})"


def answers() -> bool:
    """Whether W&B's server says anything within PROBE_SECONDS."""
    from wandb.sdk import wandb_setup

    url, heard = wandb_setup.singleton().settings.base_url, threading.Event()  # wandb.setup() starts its service

    def ask() -> None:
        try:
            with urllib.request.urlopen(url, timeout=PROBE_SECONDS):
                heard.set()
        except urllib.error.HTTPError:  # an answer too
            heard.set()
        except (OSError, ValueError, HTTPException):  # the last: no server of W&B's
            pass

    asking = threading.Thread(target=ask, daemon=True)  # a name server may take longer than any time limit of a socket
    asking.start()
    asking.join(PROBE_SECONDS)
    return heard.is_set()


@contextlib.contextmanager
def project_runs(project: str) -> Iterator[Iterable[Any]]:
    """The runs of "entity/project" on W&B's server, as its API gives them, to be read inside the block.

    Raises InputError without a key, and where the server or the project cannot be reached, inside the block too.
    """
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    # What login waits for; it takes no argument for that.
    os.environ.setdefault("WANDB_HTTP_TIMEOUT", str(REQUEST_SECONDS))
    try:
        if not wandb.login(prompt=False):
            raise InputError(
                f"--wandb: got {project}, but W&B has no key for this machine. Run wandb login, or set WANDB_API_KEY."
            )
        yield wandb.Api(timeout=REQUEST_SECONDS).runs(project, lazy=False)
    except (wandb.errors.Error, WandbApiFailedError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())
        raise InputError(
            f"--wandb: {project} cannot be read ({type(error).__name__}: {reason}). Check its name, the key and the "
            "network, or compare folders on disk."
        ) from error


def read_records(file: Path) -> Iterator[Any]:
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
