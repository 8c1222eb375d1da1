"""Copies of a folder of results, each with one thing in it damaged: a file, a field, a cell, a name.

    for description, copy in damaged_runs(finished_run, tmp_path):
        ...  # `copy` is the run's folder with that damage; nothing else has been changed

Any folder will do, also a sweep's: every .json, .csv, .safetensors and .jsonl file below it is damaged in turn.
"""

import csv
import io
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

HUGE = 10 * 2**30
"""Bytes of a file that takes no room on the disk."""

VALUES = {
    "null": "null",
    "true": "true",
    "-1": "-1",
    "0": "0",
    "a fraction": "0.5",
    "1e300": "1e300",
    "999,999,999": "999999999",
    "400 digits": "9" * 400,
    "5,000 digits": "9" * 5000,
    "1e999": "1e999",
    "NaN": "NaN",
    "-Infinity": "-Infinity",
    "no text": '""',
    "a text": '"x"',
    "a text of a number": '"1e300"',
    "a lone surrogate": '"a\\ud800b"',
    "control characters": '"\\u0000\\u0007\\r\\n\\u001b]0;title\\u0007\\u001b[2J\\u001b[31mred\\u009b"',
    "right-to-left marks": '"\\u202eabc\\u2066\\u200f"',
    "HTML": '"</script><script>document.title=1</script><img src=x onerror=alert(1)>&amp;"',
    "markup": '"[red]a[/] [/nope] {0} %s"',
    "10,000 characters": json.dumps("word " * 2000),
    "10,000 letters": json.dumps("x" * 10_000),
    "a path outside": '"../../../etc"',
    "a pattern": '"*/../*"',
    "a list": "[1, [2]]",
    "names": '{"a": 1, "b": {"c": null}}',
    "nested 100,000 deep": "[" * 100_000 + "]" * 100_000,
    "nested 400 deep": '{"a":' * 400 + "1" + "}" * 400,
}
"""JSON texts of values, by what they are."""

NAMES = {
    "no name": '""',
    "a name with a lone surrogate": '"\\udcff"',
    "a name with control characters": '"a\\u001b[31m\\nb\\u0000"',
    "a name with HTML": '"</script><b>"',
    "a name of 10,000 characters": json.dumps("x" * 10_000),
    "__proto__": '"__proto__"',
    "constructor": '"constructor"',
}
"""JSON texts of names."""

CELLS = ("", "x", "nan", "-inf", "1e300", "1e999", "-1", "0.5", "999999999", "9" * 400, "9" * 5000, "\x1b[31m", "\0")
"""Cells of a table."""

_HERE = '"the damage goes here"'


@dataclass(frozen=True)
class Damage:
    """One thing that can happen to a copy of a folder."""

    description: str
    do: Callable[[Path], Path | None]
    """Damages the copy at a path; gives the copy's new path where that has changed."""


def damaged_runs(folder: Path, into: Path) -> Iterator[tuple[str, Path]]:
    """What was damaged, and the copy of `folder` in `into` that has this damage and no other."""
    for number, damage in enumerate(damages(folder)):
        yield damage.description, damaged(folder, into / f"{number:04}", damage)


def damaged(folder: Path, copy: Path, damage: Damage) -> Path:
    """The copy of `folder` with this damage: at `copy`, unless the damage is to its name."""
    shutil.copytree(folder, copy, symlinks=True)
    return damage.do(copy) or copy


def damages(folder: Path) -> list[Damage]:
    """All that this module knows to damage in a folder of results, in an order that does not change."""
    found = [Damage(f"the folder: {name}", do) for name, do in _FOLDERS.items()]
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".json", ".csv", ".safetensors") and path.is_file():
            place = path.relative_to(folder)
            every = {**_FILES, **_of_content(path)}
            found += [Damage(f"{place}: {name}", partial(_to_file, place, do)) for name, do in every.items()]
    return found


def _to_file(place: Path, do: Callable[[Path], object], copy: Path) -> None:
    do(copy / place)


def _of_content(path: Path) -> Iterator[tuple[str, Callable[[Path], object]]] | dict[str, Callable[[Path], object]]:
    try:
        return {".json": _of_json, ".csv": _of_table, ".safetensors": _of_tensors}[path.suffix](path)
    except ValueError:  # not whole to begin with
        return {}


def _of_json(path: Path) -> dict[str, Callable[[Path], object]]:
    whole = json.loads(path.read_text())
    texts = {f"all of it is {name}": text for name, text in VALUES.items()}
    for place in _places(whole):
        shown = ".".join(map(str, place))
        texts |= {f"{shown} is {name}": _with(whole, place, text) for name, text in VALUES.items()}
        texts[f"{shown} is missing"] = _with(whole, place, None)
        if isinstance(place[-1], str):
            twice = _with(whole, place, f"1, {json.dumps(place[-1])}: 2")
            texts[f"{shown} is there twice"] = twice
    if isinstance(whole, dict):
        for name, text in NAMES.items():
            texts[f"{name} beside the others"] = f"{json.dumps(whole)[:-1]}, {text}: 1}}"
        many = ", ".join(f'"name{i}": {i}' for i in range(20_000))
        texts["20,000 names"] = f"{json.dumps(whole)[:-1]}, {many}}}"
    return {name: partial(_rewrite, text=text) for name, text in texts.items()}


def _places(value: object, above: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where something lies in nested names and lists; of a list its first item."""
    inside = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for name, inner in inside:
        yield (*above, name)
        yield from _places(inner, (*above, name))


def _with(whole: object, place: tuple[str | int, ...], text: str | None) -> str:
    """The JSON text of `whole` with `text` as the value at a place; None takes it away."""
    copy = json.loads(json.dumps(whole))
    inner = copy
    for name in place[:-1]:
        inner = inner[name]
    if text is None:
        del inner[place[-1]]
        return json.dumps(copy)
    inner[place[-1]] = json.loads(_HERE)
    return json.dumps(copy).replace(_HERE, text, 1)


def _of_table(path: Path) -> dict[str, Callable[[Path], object]]:
    rows = [*csv.reader(io.StringIO(path.read_text(), newline=""))]
    tables = {}
    for column, name in enumerate(rows[0]):
        for cell in CELLS:
            told = repr(cell) if len(cell) < 20 else f"{len(cell)} digits"
            tables[f"{name} is {told} in a row"] = [
                [*row[:column], cell, *row[column + 1 :]] if i == 1 else row for i, row in enumerate(rows)
            ]
        tables[f"the column {name} is missing"] = [row[:column] + row[column + 1 :] for row in rows]
        tables[f"the column {name} is there twice"] = [[*row, row[column]] for row in rows]
        tables[f"the column {name} has another name"] = [
            [*rows[0][:column], "\x1b[31m", *rows[0][column + 1 :]],
            *rows[1:],
        ]
    tables |= {
        "a row is there twice": [*rows, rows[-1]],
        "a row is missing": [rows[0], *rows[2:]],
        "a row has a cell more": [*rows[:-1], [*rows[-1], "1"]],
        "a row has a cell less": [*rows[:-1], rows[-1][:-1]],
        "there is no row": rows[:1],
        "there is no header": rows[1:],
        "a cell of 200,000 characters": [*rows[:-1], ["x" * 200_000, *rows[-1][1:]]],
    }
    return {
        **{name: partial(_rewrite_table, rows=changed) for name, changed in tables.items()},
        "a quote that is not closed": partial(_rewrite, text=path.read_text() + '"1.'),
    }


def _of_tensors(path: Path) -> dict[str, Callable[[Path], object]]:
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + size], content[8 + size :]
    heads = {
        "a header longer than the file": (2**62).to_bytes(8, "little") + content[8:],
        "a header that is no JSON": _tensors(b"{" * len(header), data),
        "a header nested 100,000 deep": _tensors(b"[" * 100_000, data),
        "a changed number": content[:-1] + bytes([content[-1] ^ 1]),
        "no tensors": _tensors(b"{}", b""),
        "a header of an unknown type": _tensors(header.replace(b'"F32"', b'"F8_E8M0"'), data),
        "a tensor beyond the end": _tensors(header.replace(b'offsets":[0,', b'offsets":[999999999999,'), data),
    }  # fmt: skip
    return {name: partial(_rewrite_bytes, content=changed) for name, changed in heads.items()}


def _tensors(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def _rewrite(path: Path, text: str) -> None:
    path.write_bytes(text.encode())


def _rewrite_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _rewrite_table(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def _instead(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def _filled_folder(path: Path) -> None:
    path.mkdir()
    (path / "summary.json").write_text("{}")


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # its name may have 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


_FILES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "a blank": lambda path: path.write_bytes(b" \n"),
    "cut in half": lambda path: _cut(path, 0.5),
    "cut at nine tenths": lambda path: _cut(path, 0.9),
    "its last two bytes lost": lambda path: path.write_bytes(path.read_bytes()[:-2]),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 20),
    "only zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a byte order mark before it": lambda path: path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes()),
    "line ends of Windows": lambda path: path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n")),
    "in UTF-16": lambda path: path.write_bytes(path.read_bytes().decode("latin-1").encode("utf-16")),
    "a byte that is no UTF-8": lambda path: path.write_bytes(path.read_bytes().replace(b"a", b"\xff", 1)),
    "a folder": lambda path: _instead(path, Path.mkdir),
    "a folder that holds something": lambda path: _instead(path, _filled_folder),
    "a link to nothing": lambda path: _instead(path, lambda it: it.symlink_to("gone")),
    "a link to itself": lambda path: _instead(path, lambda it: it.symlink_to(it.name)),
    "a link to a folder": lambda path: _instead(path, lambda it: it.symlink_to(".")),
    "a named pipe": lambda path: _instead(path, os.mkfifo),
    "a socket": lambda path: _instead(path, _socket),
    "an endless device": lambda path: _instead(path, lambda it: it.symlink_to("/dev/zero")),
    "a full device": lambda path: _instead(path, lambda it: it.symlink_to("/dev/full")),
    "the terminal": lambda path: _instead(path, lambda it: it.symlink_to("/dev/tty")),
    "10 GB of nothing": lambda path: os.truncate(path, HUGE),
    "not to be read": lambda path: path.chmod(0),
}
"""What can happen to a whole file, whatever is in it."""


def _renamed(name: bytes, copy: Path) -> Path:
    place = copy.with_name(os.fsdecode(os.fsencode(copy.name) + name))
    copy.rename(place)
    return place


def _gone(copy: Path, make: Callable[[Path], object]) -> None:
    shutil.rmtree(copy)
    make(copy)


def _deep(copy: Path) -> None:
    inner = copy / "deep"
    for _ in range(600):  # 1,200 bytes of a path's 4,096
        inner /= "a"
    inner.mkdir(parents=True)
    (copy / "summary.json").unlink(missing_ok=True)


_FOLDERS: dict[str, Callable[[Path], Path | None]] = {
    "a name that is no UTF-8": partial(_renamed, b"\xff\xfe"),
    "a name with control characters": partial(_renamed, b"\x1b[31m\n\r\x07"),
    "a name with markup": partial(_renamed, b"[red]<b>[bold]"),
    "a name with right-to-left marks": partial(_renamed, "\u202eabc".encode()),
    "a file": lambda copy: _gone(copy, lambda place: place.write_text("x")),
    "a link to nothing": lambda copy: _gone(copy, lambda place: place.symlink_to("gone")),
    "a link to itself": lambda copy: _gone(copy, lambda place: place.symlink_to(place.name)),
    "a link to what is above": lambda copy: _gone(copy, lambda place: place.symlink_to("..")),
    "a named pipe": lambda copy: _gone(copy, os.mkfifo),
    "empty": lambda copy: _gone(copy, Path.mkdir),
    "folders 600 deep": _deep,
    "not to be read": lambda copy: copy.chmod(0),
}
"""What can happen to the folder itself."""
