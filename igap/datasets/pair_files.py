"""Files of prompt pairs: a JSON list, JSON lines or CSV, read as texts; what they say is checked elsewhere."""

import csv
import difflib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from igap.config import TEXTS
from igap.errors import InputError

_TASKS = Path(__file__).parent / "tasks"


def tasks() -> list[str]:
    """Names of the tasks that igap brings as files of pairs, for models of the hub."""
    return sorted(path.stem for path in _TASKS.glob("*.csv"))


def read_pairs(file: str) -> list[dict[str, str]]:
    """The prompt pairs of a file, each with exactly TEXTS. Raises InputError as `read_rows` does."""
    return read_rows(file, (TEXTS,), item="prompts.file")


def read_rows(file: str, shapes: Sequence[Sequence[str]], *, item: str) -> list[dict[str, str]]:
    """The rows of a .json, .jsonl or .csv file, in its order, each with exactly the fields of one of `shapes`.

    Rows count from 1, without a CSV's header and without empty lines. Raises InputError naming file and row; `item` is
    the key that names the file.
    """
    path = Path(file).expanduser()
    if file in tasks():
        path = _TASKS / f"{file}.csv"
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"{item}: got {file}, wanted a name that ends in {', '.join(_READERS)}, or one of igap's own tasks "
            f"({', '.join(tasks())}). Rename it after its content."
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{item}: got {file}, which cannot be read ({error.strerror}). Correct the path.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{item}: got {file}, which is no UTF-8 text ({error}). Save it as UTF-8.") from None
    rows = [
        _checked(row, shapes, f"{file}, row {index}") for index, row in enumerate(reader(text, file, item), start=1)
    ]
    if not rows:
        raise InputError(f"{item}: got {file}, which holds no row, wanted at least one. Add some.")
    return rows


def _checked(row: object, shapes: Sequence[Sequence[str]], place: str) -> dict[str, str]:
    # Of several shapes that which shares most fields: its missing ones are what was forgotten.
    names = max(shapes, key=lambda shape: len(set(shape) & set(row if isinstance(row, Mapping) else ())))
    wanted = " or ".join(", ".join(shape) for shape in shapes)
    if not isinstance(row, Mapping):
        raise InputError(f"{place}: got {_short(row)}, wanted the fields {wanted}. Write an object.")
    missing = [name for name in names if name not in row]
    unknown = [name for name in row if name not in names]
    if missing or unknown:
        near = difflib.get_close_matches(str(unknown[0]), missing, n=1) if unknown else []
        remedy = f"Rename {unknown[0]} to {near[0]}." if near else f"Add {', '.join(missing)}."
        if not missing:
            remedy = f"Remove {', '.join(map(str, unknown))}."
        raise InputError(
            f"{place}: got the fields {', '.join(map(str, row)) or 'none'}, wanted exactly {wanted}. {remedy}"
        )
    for name in names:
        if not isinstance(row[name], str) or not row[name].strip():
            raise InputError(f"{place}: {name}: got {_short(row[name])}, wanted a text with words. Fill it in.")
    return {name: row[name] for name in names}


def _json(text: str, file: str, item: str) -> Iterable[object]:
    rows = _parsed(text, file, item)
    if not isinstance(rows, list):
        raise InputError(
            f"{item}: got {file}, whose JSON is {_short(rows)}, wanted a list of objects. Put them in "
            "brackets, or write one object a line and name the file .jsonl."
        )
    return rows


def _json_lines(text: str, file: str, item: str) -> Iterator[object]:
    lines = [line for line in text.split("\n") if line.strip()]  # splitlines would also cut at U+2028 within a text
    for index, line in enumerate(lines, start=1):
        yield _parsed(line, f"{file}, row {index}", item)


def _parsed(text: str, place: str, item: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=lambda fields: _once(fields, place))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{item}: got {place}, which is no JSON ({error}). Correct it.") from None


def _once(fields: list[tuple[str, object]], place: str) -> dict[str, object]:
    _no_name_twice([name for name, _ in fields], place)
    return dict(fields)


def _csv(text: str, file: str, item: str) -> Iterator[object]:
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if any(map(str.strip, row))]
    except csv.Error as error:
        raise InputError(f"{item}: got {file}, which is no CSV ({error}). Correct it.") from None
    header = [name.strip() for name in rows[0]] if rows else []
    _no_name_twice(header, file)
    for index, row in enumerate(rows[1:], start=1):
        if len(row) != len(header):
            raise InputError(
                f"{file}, row {index}: got {len(row)} cells, wanted {len(header)}, one for each of "
                f"{', '.join(header)}. Put a text that holds a comma in double quotes."
            )
        yield dict(zip(header, row, strict=True))


def _no_name_twice(names: list[str], place: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{place}: got the field {twice[0]} twice, wanted each once. Remove one.")


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


_READERS: dict[str, Callable[[str, str, str], Iterable[object]]] = {".json": _json, ".jsonl": _json_lines, ".csv": _csv}
