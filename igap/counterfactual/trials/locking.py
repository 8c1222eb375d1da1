"""Several workers, one storage: a batch that one of them writes is seen as a whole by the others."""

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import FileIO
from pathlib import Path
from typing import Any

import sqlalchemy
from optuna.distributions import json_to_distribution
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.storages.journal._storage import JournalStorageReplayResult
from optuna.trial import FrozenTrial

_LINE = b'{"op_code":'
"""Every line of a journal begins with this."""

_LOOK_EVERY = 0.005
"""Seconds between two tries for a lock."""


@contextmanager
def exclusive(storage: BaseStorage, study: str) -> Iterator[None]:
    """Hold the study's lock; in a database, run the block as one transaction.

    A transaction is kept as a whole or, if the worker is killed, not at all, and is made durable once and not for every
    trial. Behind a gRPC proxy there is neither a lock nor a transaction.
    """
    if isinstance(storage, RDBStorage):
        with _transaction(storage, study):
            yield
    elif isinstance(storage, Journal):
        storage.lock.acquire()
        try:
            yield
        finally:
            storage.lock.release()
    else:
        yield


@contextmanager
def _transaction(storage: RDBStorage, study: str) -> Iterator[None]:
    with storage.engine.begin() as connection:
        if storage.engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            row = sqlalchemy.text("SELECT study_id FROM studies WHERE study_name = :name FOR UPDATE")
            connection.execute(row, {"name": study})
        storage.scoped_session.remove()
        storage.scoped_session(bind=connection)  # of this thread: its commits wait for the end of the block
        try:
            yield
        finally:
            storage.scoped_session.remove()


class Journal(JournalStorage):
    """A log that only grows, in a file, with a lock that outlives nobody."""

    def __init__(self, file: Path, patience: float = 60.0) -> None:
        """Reads the file, or makes it, once it is free: within `patience` seconds.

        Raises ValueError on one that is damaged, TimeoutError on one that another program holds.
        """
        if file.exists():
            with file.open("rb") as lines:  # as long as nothing has been changed
                bad = next((n for n, line in enumerate(lines, 1) if line.endswith(b"\n") and not _is_entry(line)), None)
            if bad is not None:
                raise ValueError(f"line {bad} of {file.name} is none of a journal")
        self.lock = JournalLock(file)
        self.lock.patience, usual = patience, self.lock.patience
        self._held: list[dict[str, Any]] | None = []
        super().__init__(_Batches(str(file), self.lock))
        self._replay_result, self._held = _Replay(self._worker_id_prefix), None
        self._sync_with_backend()
        self.lock.patience = usual

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Hold back what is written in the block; then append it all, made durable once, and read it."""
        self._held = []
        try:
            yield
            lines = self._held
        finally:
            self._held = None
        with self._thread_lock:
            if lines:
                self._backend.append_logs(lines)
            self._sync_with_backend()

    def trials_from(self, study: int, first: int) -> list[FrozenTrial]:
        """The study's trials of this number and larger ones."""
        with self._thread_lock:
            self._sync_with_backend()
            state = self._replay_result
            return [state.get_trial(trial_id) for trial_id in state._study_id_to_trial_ids[study][first:]]

    def _write_log(self, op_code: int, extra_fields: dict[str, Any]) -> None:
        if self._held is None:
            super()._write_log(op_code, extra_fields)
        else:
            self._held.append({"op_code": op_code, "worker_id": self._replay_result.worker_id, **extra_fields})

    def _sync_with_backend(self) -> None:
        if self._held is None:
            super()._sync_with_backend()


class _Replay(JournalStorageReplayResult):
    """What a journal's lines come to; trials share their distributions, which are few, and long to read."""

    def __init__(self, prefix: str) -> None:
        super().__init__(prefix)
        self._last_created_trial_id_by_this_process = -1  # asked for before the first line is read back
        self._distribution = cache(json_to_distribution)

    def _apply_create_trial(self, log: dict[str, Any]) -> None:
        n, shared = len(self._trials), {k: self._distribution(v) for k, v in log.get("distributions", {}).items()}
        params = {k: shared[k].to_external_repr(option) for k, option in log.get("params", {}).items()}
        super()._apply_create_trial({**log, "distributions": {}, "params": {}})
        if len(self._trials) > n:
            self._trials[n].distributions, self._trials[n].params = shared, params


class _Batches(JournalFileBackend):
    """A journal's lines, read while nobody writes: a batch that its writer did not live to finish was never there."""

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """The lines from this one on."""
        self._lock.acquire()
        try:
            return iter(list(super().read_logs(log_number_from)))
        finally:
            self._lock.release()


class JournalLock(JournalFileOpenLock):
    """The kernel's lock, which ends with the process that holds it, however that ends; it may be taken again inside.

    Optuna's locks are files: one that a killed worker leaves behind stops the others for half a minute, its default one
    for ever where the path is relative. The better of them is inherited, for file systems without locks.
    """

    def __init__(self, file: Path) -> None:
        """Args: the journal's file."""
        super().__init__(str(file))
        self._file, self._depth = file, 0
        self.patience = 60.0
        """Seconds to wait for another worker that writes a batch."""
        self._held: FileIO | None = None

    def acquire(self) -> bool:
        """True, once the lock is held. Raises TimeoutError where another program does not give it back."""
        if not self._depth:
            self._held = _open_locked(self._file.with_suffix(".lock"), self.patience)
            if self._held is None:
                super().acquire()
            try:
                if self._held is not None:
                    _roll_back(self._file, self._held)
                _drop_partial_line(self._file)
                if self._held is not None:
                    self._held.write(str(self._file.stat().st_size).encode())
            except BaseException:
                self._unlock()
                raise
        self._depth += 1
        return True

    def release(self) -> None:
        """Gives it back, the last time it is called."""
        self._depth -= 1
        if not self._depth:
            self._unlock()

    def _unlock(self) -> None:
        if self._held is None:
            super().release()
        else:
            with contextlib.suppress(OSError):  # what a full disk did not take
                self._held.truncate(0)
            self._held.close()


def _is_entry(line: bytes) -> bool:
    return line.startswith(_LINE) and line.rstrip().endswith(b"}")


def _open_locked(file: Path, patience: float) -> FileIO | None:
    """The file, open and locked; None where there are no such locks. Raises TimeoutError after `patience` seconds."""
    opened, deadline = file.open("a+b", buffering=0), time.monotonic() + patience
    while True:
        try:
            import fcntl  # not on every system

            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return opened
        except BlockingIOError:
            if time.monotonic() > deadline:
                opened.close()
                raise TimeoutError(f"{file.name} is held by another program") from None
            time.sleep(_LOOK_EVERY)
        except (ImportError, OSError):
            opened.close()
            return None


def _roll_back(file: Path, lock: FileIO) -> None:
    """Remove what was written under a lock that was never given back; the lock has the file's size before that."""
    lock.seek(0)
    size = lock.read(20)
    if size.isdigit() and int(size) < file.stat().st_size:
        os.truncate(file, int(size))
    lock.truncate(0)


def _drop_partial_line(file: Path) -> None:
    """Remove a line without an end, whose writer was killed: the next line would make it unreadable.

    Raises ValueError where it is no line of a journal.
    """
    with file.open("r+b") as journal:
        if not journal.seek(0, os.SEEK_END):
            return
        journal.seek(-1, os.SEEK_END)
        if journal.read() == b"\n":
            return
        journal.seek(0)
        content = journal.read()
        end = content.rfind(b"\n") + 1
        if not content[end:].startswith(_LINE[: len(content) - end]):
            raise ValueError(f"{file.name} is no journal, or damaged: its end is none of a line")
        journal.truncate(end)
