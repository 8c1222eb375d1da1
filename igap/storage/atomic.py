"""Atomic writes: a file is written beside its place, synced to disk, and renamed into it."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from igap.errors import InputError

_SPACE = 8 * 2**20
"""Bytes of free disk space that a job needs before it starts: more than its files take."""


def write_atomically(path: Path, write_to: Callable[[Path], object]) -> None:
    """Write the file at `path` with `write_to`; until it is whole, the file that was there stays.

    Raises OSError naming the file.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        try:
            write_to(unfinished)
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically. Raises OSError."""
    write_atomically(path, lambda unfinished: unfinished.write_bytes(content))


def write_text(path: Path, content: str) -> None:
    """Write `content` to `path` atomically, in UTF-8. Raises OSError."""
    write_bytes(path, content.encode())


@contextmanager
def without_empty_folders(folders: Iterable[Path]) -> Iterator[None]:
    """Take away, after the block, these folders and those above them, where it has made them and left them empty."""
    made = [place for folder in folders for place in (folder, *folder.parents) if not place.exists()]
    try:
        yield
    finally:
        for place in made:
            with suppress(OSError):  # it has something in it, or was never made
                place.rmdir()


def check_writable(folder: Path) -> None:
    """Create the folder and check that files can be written. Raises InputError if not, or if the disk is full."""
    probe = folder / f".space.{os.getpid()}.unfinished"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".space.*.unfinished"):  # of a process that was killed
            leftover.unlink(missing_ok=True)
        try:
            with probe.open("wb") as file:
                file.write(bytes(_SPACE))
                file.flush()
                os.fsync(file.fileno())
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"output: got {folder}, wanted a folder that can be written to ({error.strerror}). Set output=FOLDER."
        ) from error
