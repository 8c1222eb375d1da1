"""Files that are there whole or not at all: written beside their place, made durable, renamed into it."""

import os
from collections.abc import Callable
from pathlib import Path

from igap.errors import InputError

_SPACE = 8 * 2**20
"""Bytes that a job should find free before it starts: more than its files take."""


def atomically(path: Path, write_to: Callable[[Path], object]) -> None:
    """The file at `path`, as `write_to` writes it; what was there before stays until then.

    Raises OSError, which names the file.
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
    """The file at `path` with this content. Raises OSError."""
    atomically(path, lambda unfinished: unfinished.write_bytes(content))


def write_text(path: Path, content: str) -> None:
    """The file at `path` with this content, in UTF-8. Raises OSError."""
    write_bytes(path, content.encode())


def check_writable(folder: Path) -> None:
    """An existing folder that takes files. Raises InputError where there can be none, or where the disk is full."""
    probe = folder / f".space.{os.getpid()}.unfinished"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".space.*.unfinished"):  # by a process that was killed
            left.unlink(missing_ok=True)
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
