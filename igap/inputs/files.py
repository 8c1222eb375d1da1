"""Files of prompt pairs: a JSON list, JSON lines or CSV. Fields are checked here, their texts where they are used.

What the fields of a published layout say is in `layouts`.
"""

import csv
import difflib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from igap.config import TEXTS
from igap.errors import InputError, printable, short_repr
from igap.inputs.answers import to_cell
from igap.inputs.layouts import LAYOUTS
from igap.storage.untrusted import check_file

_TASKS = Path(__file__).parent / "tasks"
_MOST_BYTES = 2**30
"""The largest file of texts that is read."""


def task_names() -> list[str]:
    """Names of the tasks that igap ships as files of pairs, for models from the hub."""
    return sorted(path.stem for path in _TASKS.glob("*.csv"))


def read_pairs(file: str, item: str = "prompts.file") -> dict[str, dict[str, str]]:
    """Read the prompt pairs of a file, as `read_rows` does, with the fields TEXTS or those of a published layout.

    A row may have other fields beside them.
    """
    return {place: row_or_raise(row) for place, row in read_pairs_or_errors(file, item)}


def read_pairs_or_errors(file: str, item: str = "prompts.file") -> Iterator[tuple[str, dict[str, str] | InputError]]:
    """As `read_pairs`, one row after the other, with the reason in place of one whose texts are none."""
    shapes = (TEXTS, *(("clean", "corrupted", *layout.columns) for layout in LAYOUTS.values()))
    return _read(file, _Fields(shapes, others=True), item=item)


def read_rows(file: str, shapes: Sequence[Sequence[str]], *, item: str) -> dict[str, dict[str, str]]:
    """Read the rows of a .json, .jsonl or .csv file in order, each with exactly the fields of one of `shapes`.

    They are given by their place, what messages call them: "pairs.csv, row 2 (line 3)"; of .json there is no line. Rows
    are numbered from 1; a CSV header and empty lines do not count, nor does a first column without a name, which pandas
    writes. Raises InputError naming file, row and line, or the line of the header. `item` is the configuration key that
    named the file.
    """
    return {place: row_or_raise(row) for place, row in _read(file, _Fields(shapes), item=item)}


def row_or_raise(row: dict[str, str] | InputError) -> dict[str, str]:
    """The row. Raises the InputError that stands in its place."""
    if isinstance(row, InputError):
        raise row
    return row


@dataclass(frozen=True)
class _Fields:
    """The fields that a row may have."""

    shapes: Sequence[Sequence[str]]
    others: bool = False
    """Whether there may be more than those of a shape."""

    def nearest(self, fields: Sequence[object]) -> Sequence[str]:
        """The shape that was meant: the one that shares most fields with the row, of those that are whole there."""
        whole = [shape for shape in self.shapes if self.others and set(shape) <= set(fields)]
        return max(whole or self.shapes, key=lambda shape: len(set(shape) & set(fields)))

    @property
    def shown(self) -> Sequence[Sequence[str]]:
        """The shapes that messages name."""
        return self.shapes[:1] if self.others else self.shapes

    def __str__(self) -> str:
        return " or ".join(", ".join(shape) for shape in self.shown)


def _read(file: str, fields: _Fields, *, item: str) -> Iterator[tuple[str, dict[str, str] | InputError]]:
    name = printable(file)
    path = _TASKS / f"{file}.csv" if file in task_names() else Path(os.path.expanduser(file))
    reader = _READERS.get(path.suffix.lower())
    if reader is None and file.startswith(("[", "{")):
        raise InputError(f"{item}: got {short_repr(file)}, wanted the name of one file. Write its rows into a file.")
    if reader is None:
        raise InputError(
            f"{item}: got {name}, wanted a name that ends in {', '.join(_READERS)}, or one of igap's own tasks "
            f"({', '.join(task_names())}). Rename it after its content."
        )
    text = read_text(path, name, item=item)
    index = 0
    for index, (line, row) in enumerate(reader(text, name, item, fields), start=1):
        place = f"{name}, row {index}" + (f" (line {line})" if line else "")
        try:
            checked: dict[str, str] | InputError = _check_row(row, fields, place)
        except InputError as error:
            checked = error
        yield place, checked
    if not index:
        raise InputError(f"{item}: got {name}, which holds no row, wanted at least one. Add some.")


def read_text(path: Path, name: str, *, item: str) -> str:
    """Read a UTF-8 file, with or without byte order mark. Raises InputError on another encoding or too large a file.

    Pipes and devices are rejected: reading one could wait for ever.
    """
    try:
        check_file(path, _MOST_BYTES)
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{item}: got {name}, which cannot be read ({reason}). Correct the path.") from None
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{item}: got {name}, which is no UTF-8 text (its mark says UTF-16). Save it as UTF-8.")
    place = content.find(b"\0")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place, byte = error.start, f"byte 0x{content[error.start]:02x}"
    else:
        if place < 0:
            return text
        byte = "a NUL byte"
    line = content[:place].count(b"\n") + 1
    raise InputError(f"{item}: got {name}, which is no UTF-8 text ({byte} in line {line}). Save it as UTF-8.")


def _check_row(row: object, fields: _Fields, place: str) -> dict[str, str]:
    if isinstance(row, InputError):
        raise row
    if not isinstance(row, Mapping):
        raise InputError(f"{place}: got {_shorten(row)}, wanted the fields {fields}. Write an object.")
    names = _check_fields(list(row), fields, place)
    # A published layout's own fields hold numbers and lists, answers may be lists, and other fields may be anything.
    strict = [name for name in names if name in TEXTS or not fields.others]
    texts = {name: value if name in strict else _as_text(value) for name, value in row.items()}
    if fields.others:
        texts |= {
            name: to_cell(tuple(texts[name]))
            for name in strict
            if name in ("answer", "distractor") and _are_words(texts[name])
        }
    for name in names:
        value = texts[name]
        if not isinstance(value, str) or not value.strip():
            remedy = "Put it in quotes" if isinstance(value, int | float) else "Fill it in"
            if isinstance(value, list | dict) and value:
                remedy = "Write a text in quotes"
            raise InputError(f"{place}: {name}: got {_shorten(value)}, wanted a text with words. {remedy}.")
    for name, value in ((name, text) for pair in texts.items() for name, text in [pair, (pair[0], pair[0])]):
        if not value.isascii() and value.encode(errors="replace").decode() != value:
            raise InputError(f"{place}: {name}: got {_shorten(value)}, half of a character, wanted a text. Correct it.")
    return {name: texts[name] for name in (*names, *(name for name in texts if name not in names))}


def _check_fields(fields: Sequence[object], known: _Fields, place: str) -> Sequence[str]:
    """The shape whose fields these are. Raises InputError where they are those of none."""
    names = known.nearest(fields)
    missing = [name for name in names if name not in fields]
    unknown = [name for name in fields if name not in names]
    if missing or (unknown and not known.others):
        near = difflib.get_close_matches(str(unknown[0]), missing, n=1) if unknown else []
        remedy = f"Rename {unknown[0]} to {near[0]}." if near else f"Add {', '.join(missing)}."
        if not missing:
            remedy = f"Remove {', '.join(map(str, unknown))}."
        got = ", ".join(map(str, fields)) or "none"
        wanted = f"at least {', '.join(names)}" if known.others else f"exactly {known}"
        raise InputError(f"{place}: got the fields {got}, wanted {wanted}. {remedy}")
    return names


_Rows = Iterator[tuple[int | None, object]]
"""Each row with the line it begins in, None where that is unknown; an InputError in place of a line that is no row."""


def _json(text: str, name: str, item: str, fields: _Fields) -> _Rows:
    rows = _parse(text, name, item, "Correct it. A file with one object a line is named .jsonl.")
    if not isinstance(rows, list):
        lists = [key for key, value in rows.items() if isinstance(value, list)] if isinstance(rows, dict) else []
        remedy = "Put them in brackets, or write one object a line and name the file .jsonl."
        if isinstance(rows, dict) and all(isinstance(value, dict | list) for value in rows.values()):
            columns = any(key in rows for shape in fields.shapes for key in shape)
            remedy = "Save it row by row (pandas: orient='records')." if columns else remedy
            remedy = f"Save the list {lists[0]} alone." if len(lists) == 1 and not columns else remedy
        raise InputError(f"{item}: got {name}, whose JSON is {_shorten(rows)}, wanted a list of objects. {remedy}")
    yield from ((None, row) for row in rows)


def _json_lines(text: str, name: str, item: str, fields: _Fields) -> _Rows:  # noqa: ARG001 - as the other readers
    row = 0
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines would also cut at U+2028 within a text
        if line.strip():
            row += 1
            try:
                parsed = _parse(line, f"{name}, row {row} (line {number})", item, "Write one whole object a line.")
            except InputError as error:
                parsed = error
            yield number, parsed


def _parse(text: str, place: str, item: str, remedy: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=lambda fields: _unique_fields(fields, place))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:  # RecursionError: thousands of brackets
        raise InputError(f"{item}: got {place}, which is no JSON ({error}). {remedy}") from None


def _unique_fields(fields: list[tuple[str, object]], place: str) -> dict[str, object]:
    _check_unique([name for name, _ in fields], place)
    return dict(fields)


def _csv(text: str, name: str, item: str, fields: _Fields) -> _Rows:
    records = _records(text, name, item)
    line, header = next(records, (1, []))
    nameless = 1 if len(header) > 1 and not header[0].strip() else 0  # pandas' index
    header = [field.strip() for field in header[nameless:]]
    _check_header(header, f"{name}, line {line}", fields)
    for index, (line, row) in enumerate(records, start=1):
        place = f"{name}, row {index} (line {line})"
        if len(row) != nameless + len(header):
            yield (
                line,
                InputError(
                    f"{place}: got {len(row)} cells, wanted {nameless + len(header)}, one for each of "
                    f"{', '.join(header)}. Put a text that holds a comma in double quotes."
                ),
            )
        else:
            yield line, dict(zip(header, row[nameless:], strict=True))


def _records(text: str, name: str, item: str) -> Iterator[tuple[int, list[str]]]:
    """The records that are not blank, each with the line it begins in."""
    lines = io.StringIO(text, newline="").readlines()
    reader, done = csv.reader(lines, strict=True), 0
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            last = reader.line_num
            reason = {
                "unexpected end of data": f"a quote that line {done + 1} opens is never closed. Close it",
                "',' expected after '\"'": f"text after the closing quote in line {last}. Double a quote within a text",
            }.get(str(error), f"{error}, in line {last}. Correct it")
            raise InputError(f"{item}: got {name}, which is no CSV: {reason}.") from None
        _check_quotes(row, lines[done : reader.line_num], f"{name}, line {done + 1}")
        if any(map(str.strip, row)):
            yield done + 1, row
        done = reader.line_num


def _check_quotes(row: list[str], lines: list[str], place: str) -> None:
    """Raises InputError on `, "text"`: after a blank the quotes, and commas between them, count as text."""
    suspects = [index for index, cell in enumerate(row) if cell[:1] in (" ", "\t") and cell.lstrip()[:1] == '"']
    if not suspects:
        return
    try:
        meant = next(csv.reader([line.replace("\t", " ") for line in lines], skipinitialspace=True))
    except csv.Error:
        meant = []
    # A text with quotes and a blank of its own stands in quotes, and reads the same either way.
    if len(meant) != len(row) or any(meant[index] != row[index].replace("\t", " ") for index in suspects):
        raise InputError(
            f"{place}: got a blank between a comma and a quote ({row[suspects[0]][:40]}), wanted none: the quote would "
            'count as text. Write ,"text" and not , "text".'
        )


_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def _check_header(header: list[str], place: str, fields: _Fields) -> None:
    """Raises InputError on a header that is not that of a comma-separated file with these columns."""
    known = {name for shape in fields.shapes for name in shape}
    for separator, what in _SEPARATORS.items():
        if len(header) == 1 and len(known.intersection(map(str.strip, header[0].split(separator)))) > 1:
            raise InputError(
                f"{place}: got columns separated by {what}, wanted commas. Save it comma-separated, with texts that "
                "hold a comma in double quotes."
            )
    if header and header[0].startswith("sep="):
        raise InputError(f"{place}: got {_shorten(header[0])}, wanted the columns' names. Remove the line.")
    if "" in header:
        raise InputError(
            f"{place}: got a column without a name after {header[header.index('') - 1]}, wanted {fields}. Remove it."
        )
    if header and not known & set(header) and not difflib.get_close_matches(header[0].lower(), known):
        raise InputError(
            f"{place}: got {_shorten(', '.join(header))}, wanted the columns' names, "
            f"{' or '.join(','.join(shape) for shape in fields.shown)}. Add them as the first line."
        )
    _check_unique(header, place)
    if header:
        _check_fields(header, fields, place)


def _check_unique(names: list[str], place: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{place}: got the field {twice[0]} twice, wanted each once. Remove one.")


def _are_words(value: object) -> bool:
    """Whether it is a set of answers."""
    return isinstance(value, list) and bool(value) and all(isinstance(word, str) and word.strip() for word in value)


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


def _shorten(value: object) -> str:
    try:
        text = json.dumps(value, ensure_ascii=isinstance(value, str) and not value.isprintable())
    except RecursionError:
        text = f"a {type(value).__name__} of many brackets"
    return text if len(text) <= 60 else f"{text[:57]}..."


_READERS: dict[str, Callable[[str, str, str, _Fields], _Rows]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".csv": _csv,
}
