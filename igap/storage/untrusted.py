"""What may not be as igap wrote it: files read back with bounds, JSON as plain values.

A disk that was full, a copy that was cut, another program or another user may have left anything in a folder of
results. Whatever reads results reads them through here. Imports nothing heavy.
"""

import json
import os
import stat
from collections import Counter
from collections.abc import Iterable
from math import isfinite
from operator import itemgetter
from pathlib import Path
from typing import Any

from igap.errors import printable

LARGEST = 64 * 2**20
"""Bytes of a file of text that is read: far more than any has."""

_DEEPEST = 50
"""Lists and names inside each other: far more than any file has."""
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_file(path: Path, most: int | None = None) -> int:
    """Bytes of a file that can be read to an end. Raises ValueError, whose text says why it cannot.

    A pipe would be waited for, a device read for ever: neither is opened. `most` are the bytes it may have.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"it is {_KINDS.get(stat.S_IFMT(status.st_mode), 'none')}, no file")
    if most is not None and status.st_size > most:
        raise ValueError(f"it has {status.st_size:,} bytes, more than {most:,}")
    return status.st_size


def read_text(path: Path) -> str:
    """The text of a file, in UTF-8. Raises ValueError, whose text says why there is none."""
    size = check_file(path, LARGEST)
    try:
        with path.open("rb") as file:
            return file.read(size).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no UTF-8 text, at byte {error.start}") from None
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None


def read_names(path: Path) -> dict[str, Any]:
    """The values by name of a JSON file. Raises ValueError as `read_text` and `parse` do, and on another shape."""
    read = parse(read_text(path))
    if not isinstance(read, dict):
        raise ValueError(f"it holds {type(read).__name__}, wanted names and values")
    return read


def parse(text: str, *, holes: bool = False) -> Any:
    """What a JSON text holds; `holes`: NaN stands for nothing, as W&B writes an empty cell.

    Raises ValueError on what is no JSON, a name that is there twice, a number that no float holds (NaN, infinity, 400
    digits), text that is no Unicode (half a surrogate pair), and lists or names more than 50 deep.
    """
    constant = (lambda name: None if name == "NaN" else _finite(name)) if holes else _finite
    try:
        read = json.loads(text, object_pairs_hook=_once, parse_int=_whole, parse_float=_finite, parse_constant=constant)
        level = [read]
        for _ in range(_DEEPEST):
            level = [inner for value in level for inner in _inside(value)]
            if not level:
                return read
    except UnicodeEncodeError:
        raise ValueError("it holds half of a surrogate pair, which is no text") from None
    except RecursionError:
        pass
    raise ValueError(f"it is nested more than {_DEEPEST} deep")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) < len(pairs):
        twice = max(Counter(name for name, _ in pairs).items(), key=itemgetter(1))[0]
        raise ValueError(f"{printable(twice, 60)} is there twice")
    return names


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{printable(text, 20)} is no finite number")
    return number


def _whole(text: str) -> int:
    _finite(text)
    return int(text)


def _inside(value: object) -> Iterable[Any]:
    """What a list or names hold. Raises UnicodeEncodeError on text that is none."""
    if isinstance(value, dict):
        for name in value:
            name.encode()
        return value.values()
    if isinstance(value, str):
        value.encode()
    return value if isinstance(value, list) else ()


def is_text(path: Path) -> bool:
    """Whether a path is a name that a table or page can hold: not every name of a file is Unicode."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True
