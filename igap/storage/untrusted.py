"""Reading files that may be damaged or foreign: with bounds on size, JSON as plain values.

A full disk, a copy cut short, another program or another user may have left anything in a folder of results. All
results are read through this module. Imports nothing heavy.
"""

import json
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from math import isfinite
from operator import itemgetter
from pathlib import Path
from typing import Any

from igap.errors import printable

LARGEST = 64 * 2**20
"""Bytes of the largest text file that is read as a whole, far above any that igap writes."""

LARGEST_TABLE = 2**30
"""Bytes of the largest table that is read; one of a million trials has about 200 MB."""

_LONGEST_LINE = 2**20
_DEEPEST = 50
"""Levels of nesting that are read, far above those of any file that igap writes."""
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_file(path: Path, most: int | None = None) -> int:
    """Size in bytes of a regular file. Raises ValueError with the reason if it is none, or larger than `most` bytes.

    Pipes and devices are not opened: reading one could wait for ever.
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
    """Read a UTF-8 text file. Raises ValueError with the reason if it cannot be read."""
    size = check_file(path, LARGEST)
    try:
        with path.open("rb") as file:
            return file.read(size).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no UTF-8 text, at byte {error.start}") from None
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None


def read_lines(path: Path) -> Iterator[str]:
    """Read the lines of a UTF-8 table one by one, each with its end.

    Raises ValueError as `read_text` does, on a line above 1 MiB, and on one without an end: the file has been cut.
    """
    check_file(path, LARGEST_TABLE)
    before = 0
    try:
        with path.open("rb") as file:
            while line := file.readline(_LONGEST_LINE):
                if not line.endswith(b"\n"):
                    is_long = len(line) == _LONGEST_LINE
                    raise ValueError(
                        f"a line has more than {_LONGEST_LINE:,} bytes"
                        if is_long
                        else "its last line has no end: it has been cut"
                    )
                yield line.decode()
                before += len(line)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no UTF-8 text, at byte {before + error.start}") from None
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None


def read_json_object(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file. Raises ValueError as `read_text` and `parse_json` do, and on other JSON."""
    value = parse_json(read_text(path))
    if not isinstance(value, dict):
        raise ValueError(f"it holds {type(value).__name__}, wanted names and values")
    return value


def parse_json(text: str, *, holes: bool = False) -> Any:
    """Parse a JSON text. With `holes`, NaN reads as None: W&B writes empty cells so.

    Raises ValueError on invalid JSON, a duplicate name, a number that no float holds (NaN, infinity, 400 digits), half
    a surrogate pair, and more than 50 levels of nesting.
    """
    constant = (lambda name: None if name == "NaN" else _parse_float(name)) if holes else _parse_float
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique_names,
            parse_int=_parse_int,
            parse_float=_parse_float,
            parse_constant=constant,
        )
        level = [value]
        for _ in range(_DEEPEST):
            level = [inner for outer in level for inner in _children(outer)]
            if not level:
                return value
    except UnicodeEncodeError:
        raise ValueError("it holds half of a surrogate pair, which is no text") from None
    except RecursionError:
        pass
    raise ValueError(f"it is nested more than {_DEEPEST} deep")


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) < len(pairs):
        twice = max(Counter(name for name, _ in pairs).items(), key=itemgetter(1))[0]
        raise ValueError(f"{printable(twice, 60)} is there twice")
    return names


def _parse_float(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{printable(text, 20)} is no finite number")
    return number


def _parse_int(text: str) -> int:
    _parse_float(text)
    return int(text)


def _children(value: object) -> Iterable[Any]:
    """The values in a list or object. Raises UnicodeEncodeError on half a surrogate pair."""
    if isinstance(value, dict):
        for name in value:
            name.encode()
        return value.values()
    if isinstance(value, str):
        value.encode()
    return value if isinstance(value, list) else ()


def is_text(path: Path) -> bool:
    """Whether a path is valid Unicode, which not every file name is, and can stand in a table or page."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True
