"""Several workers, one storage: what one of them writes at once, the others see as a whole and never in between."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import sqlalchemy
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock


@contextmanager
def alone(storage: BaseStorage, study: str) -> Iterator[None]:
    """A block that no other worker of the study is in at the same time.

    In a database it is one transaction, kept as a whole or, of a worker that is killed, not at all; it is also made
    durable once and not for every trial. Behind a gRPC proxy it is neither.
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

    def __init__(self, file: Path) -> None:
        """Reads the file, or makes it. Raises ValueError on one that is damaged."""
        self.lock = JournalLock(file)
        super().__init__(JournalFileBackend(str(file), self.lock))


class JournalLock(JournalFileOpenLock):
    """The kernel's lock, which ends with the process that holds it, however that ends; it may be taken again inside.

    Optuna's locks are files: one that a killed worker leaves behind stops the others for half a minute, its default one
    for ever where the path is relative. The better of them is inherited, for file systems without locks.
    """

    def __init__(self, file: Path) -> None:
        """Of the journal in `file`."""
        super().__init__(str(file))
        self._file, self._depth = file, 0
        self._held: IO[bytes] | None = None

    def acquire(self) -> bool:
        """True, once the lock is held."""
        if not self._depth:
            self._held = _locked(self._file.with_suffix(".lock"))
            if self._held is None:
                super().acquire()
            _cut(self._file)
        self._depth += 1
        return True

    def release(self) -> None:
        """Gives it back, the last time it is called."""
        self._depth -= 1
        if self._depth:
            return
        if self._held is None:
            super().release()
        else:
            self._held.close()


def _locked(file: Path) -> IO[bytes] | None:
    """The file, open and locked; None where there are no such locks."""
    opened = file.open("ab")
    try:
        import fcntl  # not on every system

        fcntl.flock(opened, fcntl.LOCK_EX)
    except (ImportError, OSError):
        opened.close()
        return None
    return opened


def _cut(file: Path) -> None:
    """Takes away a line without an end, which its writer did not live to finish: the next would make it unreadable."""
    with file.open("r+b") as journal:
        if not journal.seek(0, os.SEEK_END):
            return
        journal.seek(-1, os.SEEK_END)
        if journal.read() != b"\n":
            journal.seek(0)
            journal.truncate(journal.read().rfind(b"\n") + 1)
