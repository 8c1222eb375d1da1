"""The storages of a study: files and servers, checked when they are opened, with one-line errors."""

import errno
import os
import re
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import unquote

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from sqlalchemy.exc import SQLAlchemyError

from igap.counterfactual.quiet import allow_experimental, quiet_logs
from igap.counterfactual.trials.locking import Journal
from igap.errors import InputError, printable
from igap.storage.studies import STUDY_FILES

URL = "IGAP_STORAGE_URL"
"""The environment's variable with the URL of a PostgreSQL storage, which holds a password and is written nowhere."""

REACH = 5.0
"""Seconds that a storage has to answer."""

FREE = 30.0
"""Seconds that a file may be held by another worker, which reads or writes it whole."""

_LOOKS = 10
"""Times that a database is opened whose tables another worker is making."""

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


class StorageError(OSError):
    """A storage failed, not by its input; the message is one line."""


@contextmanager
def one_line_errors(what: str, remedy: str, *, in_use: bool = False) -> Iterator[None]:
    """Turn whatever a storage raises in the block into one line; Ctrl-C waits for the end of the block.

    Raises OSError where the machine has no room, or the storage had answered before (`in_use`); InputError on all else,
    for what a storage holds may be anything.
    """
    try:
        with quiet_logs(), defer_interrupt():
            yield
    except (InputError, StorageError, MemoryError):
        raise
    except Exception as error:
        if _is_out_of_space(error):
            raise StorageError(
                f"search.storage: {_redact(error)}. What it has is kept: make room, and the same command goes on."
            ) from None
        message = f"search.storage: got {what}: {_redact(error)}. {remedy}"
        raise (StorageError if in_use else InputError)(message) from None


@contextmanager
def defer_interrupt() -> Iterator[None]:
    """Hold Ctrl-C back until the end of the block: SQLAlchemy prints what stops it while it cleans up.

    A second Ctrl-C takes effect at once.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    held = False

    def hold(number: int, frame: FrameType | None) -> None:
        nonlocal held
        if held:
            before(number, frame)
        held = True

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held:
            before(signal.SIGINT, None)


def find_only_study(storage: BaseStorage) -> str | None:
    """The name of the one study in a storage; None where there is none, or several."""
    with one_line_errors("studies that cannot be read", "Remove a damaged file, or set name=NAME for a new one."):
        names = optuna.get_all_study_names(storage)
    return names[0] if len(names) == 1 else None


def open_storage(kind: str, folder: Path, address: str = "") -> BaseStorage:
    """The storage of a search.

    Raises InputError where it cannot be used, does not answer within REACH seconds or is not free within FREE; OSError
    where there is no room.
    """
    if kind == "memory":
        return InMemoryStorage()
    where = {"postgres": f"the server in {URL}", "grpc": address}.get(kind, str(folder))
    with one_line_errors(
        f"{kind} ({where}), which cannot be used",
        "Start it, end the program that holds it, remove a damaged file, or use another: search/storage=journal, "
        "name=NAME.",
    ):
        if kind == "postgres":
            return _postgres()
        if kind == "grpc":
            return _grpc(address)
        file = folder / STUDY_FILES[kind]
        _check_file(file)
        if kind == "journal":
            with allow_experimental():
                return Journal(file, FREE)
        _check_database(file)
        # Another worker may hold the file while it writes a batch.
        return _database(sqlite_url(file), {"connect_args": {"timeout": 60}})


def _check_file(file: Path) -> None:
    """Raises ValueError on what is no file, or on an empty one beside a report of trials that were in it."""
    if file.exists() and not file.is_file():
        raise ValueError(f"{file.name} is no file")
    if file.exists() and not file.stat().st_size and (file.parent / "trials.csv").exists():
        raise ValueError(f"{file.name} is empty, though trials.csv beside it has trials")


def _check_database(file: Path) -> None:
    """Raises ValueError or sqlite3.Error on a file that another program holds, is damaged, or is another program's."""
    with closing(sqlite3.connect(file, timeout=FREE, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")  # a file that another program holds is told now, not in the middle
        connection.execute("ROLLBACK")
        trouble = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if trouble != "ok":
        raise ValueError(f"{file.name} is damaged ({trouble})")
    if tables and "studies" not in tables:
        raise ValueError(f"{file.name} is another program's database, with tables {', '.join(sorted(tables)[:3])}")


def sqlite_url(file: Path) -> str:
    """SQLAlchemy's URL of a database file of whatever name, as Optuna takes it."""
    return _for_optuna(sqlalchemy.URL.create("sqlite", database=str(file)).render_as_string(hide_password=False))


def _for_optuna(url: str) -> str:
    """The URL with its braces doubled: Optuna formats it."""
    return url.replace("{", "{{").replace("}", "}}")


def _postgres() -> BaseStorage:
    url = os.environ.get(URL)
    if not url or not re.match(r"postgresql(\+psycopg2?)?://", url):
        raise InputError(
            f"search.storage: got postgres, but {URL} is {'no address of such a server' if url else 'not set'}. "
            f"Set {URL}=postgresql+psycopg://USER:PASSWORD@HOST/DATABASE."
        )
    try:
        import psycopg  # noqa: F401 - SQLAlchemy's driver
    except ImportError:
        raise InputError(
            "search.storage: got postgres, whose package is not installed. "
            'pip install -e ".[postgres]" -c constraints.txt, or search/storage=sqlite.'
        ) from None
    return _database(_for_optuna(url), {"connect_args": {"connect_timeout": int(REACH)}, "pool_pre_ping": True})


def _database(url: str, settings: dict[str, Any]) -> RDBStorage:
    """The storage, with its tables; where other workers make them at this moment, once they are there."""
    for _ in range(_LOOKS):
        try:
            return RDBStorage(url, engine_kwargs=settings)
        except Exception as error:
            if not re.search("already exists|unique constraint", f"{error} {error.__cause__}", re.IGNORECASE):
                raise
            time.sleep(0.2)
    return RDBStorage(url, engine_kwargs=settings)


def _grpc(address: str) -> BaseStorage:
    try:
        import grpc
    except ImportError:
        raise InputError(
            "search.storage: got grpc, whose package is not installed. "
            'pip install -e ".[grpc]" -c constraints.txt, or search/storage=sqlite.'
        ) from None
    from optuna.storages import GrpcStorageProxy

    try:
        with grpc.insecure_channel(address) as channel:
            grpc.channel_ready_future(channel).result(timeout=REACH)
    except grpc.FutureTimeoutError:
        raise InputError(
            f"search.storage: got grpc, but nothing answers at {address} within {REACH:.0f} s. Start "
            "optuna.storages.run_grpc_proxy_server there, or set search.storage.address."
        ) from None
    host, _, port = address.rpartition(":")
    with allow_experimental():
        return GrpcStorageProxy(host=host, port=int(port))


def _iterate_causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those behind it, SQLAlchemy's last ones too."""
    while error is not None:
        yield error
        error = getattr(error, "orig", None) or error.__cause__


def _is_out_of_space(error: Exception) -> bool:
    """True if the machine is at fault: no space, no quota, a disk that does not write."""
    for cause in _iterate_causes(error):
        name, state = getattr(cause, "sqlite_errorname", None) or "", getattr(cause, "sqlstate", None) or ""
        if name.startswith(("SQLITE_FULL", "SQLITE_IOERR")) or state.startswith("53"):
            return True
        if isinstance(cause, OSError) and cause.errno in _NO_ROOM:
            return True
    return False


def _redact(error: Exception) -> str:
    """The first line of what went wrong, without an address that may hold a password, nor a piece of that.

    A password with @, : or / in it is cut in the wrong place, and its rest taken for a host or a port.
    """
    root = error.__cause__ or error
    text = " ".join(re.split(r"\(Background|\[SQL", str(root))[0].split())
    if not isinstance(root, SQLAlchemyError | sqlite3.Error | OSError) and type(root) is not ValueError:
        text = f"{type(root).__name__} {text}".rstrip()
    url = os.environ.get(URL, "")
    password = url.rpartition("@")[0].partition("://")[2].partition(":")[2]
    pieces = [url, password, unquote(password), *re.split(r"\W", unquote(password))]
    for secret in sorted((piece for piece in pieces if len(piece) > 2), key=len, reverse=True):
        text = text.replace(secret, "...")
    return printable(text, 200).rstrip(".?")
