"""The table over runs on a terminal: in as many parts as its width asks for, so that no number is cut or folded."""

import itertools
from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Shown

from igap.console import terminal_console
from igap.errors import printable
from igap.output.dashboard.searches import Searches
from igap.output.dashboard.table import Table

_MAX_TEXT = 24
"""Characters of a run's name or a setting on one line; longer names are folded, longer settings cut."""

_LONGEST = 500
"""Characters of which more are cut in any case."""

_Column = tuple[str, bool, list[str]]
"""Heading, whether it holds numbers, cells."""


def shorten(texts: Sequence[str]) -> list[str]:
    """Texts of one column in _MAX_TEXT characters each: "..." stands for what all begin with, and for what is cut.

    Of a long path the last part is left, where that tells all of them apart.
    """
    if max(map(len, texts)) <= _MAX_TEXT:
        return list(texts)
    last = ["…/" + text.rpartition("/")[2] if len(text) > _MAX_TEXT and "/" in text else text for text in texts]
    if not any(" " in text for text in texts) and len(set(last)) == len(set(texts)):
        texts = last
    same = "".join(
        a for a, _ in itertools.takewhile(lambda ab: ab[0] == ab[1], zip(min(texts), max(texts), strict=False))
    )
    start = max(same.rfind(" "), same.rfind("/")) + 1
    rest = ["…" + text[start:] for text in texts] if start > 1 else texts
    cut = [text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…" for text in rest]
    return cut if len(set(cut)) == len(set(texts)) else list(texts)  # they differ later; the column folds


def show(table: Table) -> None:
    """Prints the table of runs and its notes."""
    _show(f"{len(table.runs)} finished run{'s' if len(table.runs) > 1 else ''}", "the same runs", _columns(table))
    for note in table.notes():
        terminal_console(width=1_000_000).print(note, markup=False, highlight=False, soft_wrap=True)


def show_searches(searches: Searches) -> None:
    """Prints the table of searches."""
    n = len(searches.searches)
    columns = [
        (name, numbers, [printable(cell, _LONGEST) for cell in cells]) for name, numbers, cells in searches.columns
    ]
    _show(f"{n} finished search{'es' if n > 1 else ''}", "the same searches", columns)


def _show(title: str, again: str, whole: Sequence[_Column]) -> None:
    """Prints columns, in parts that each begin with the first one; where there is no terminal, in one part."""
    console = terminal_console(width=1_000_000)
    label, *columns = whole
    if console.is_terminal:
        columns = [(name, numbers, cells if numbers else shorten(cells)) for name, numbers, cells in columns]
    for part in _parts(columns, console.width - _width(label, console), console):
        shown = Shown(title=title, title_justify="left")
        for column in (label, *part):
            name, numbers, _ = column
            width = _width(column, console) - 3
            shown.add_column(escape(name), width=width, justify="right" if numbers else "left", overflow="fold")
        for cells in zip(*(cells for *_, cells in (label, *part)), strict=True):
            shown.add_row(*map(escape, cells))
        console.print(shown)
        title = again


def _columns(table: Table) -> list[_Column]:
    heads = ["run", *(printable(key).replace(".", ".\n") for key in table.shown_settings)]
    rows = table.rows
    texts = [(name, False, [printable(row[i], _LONGEST) or "-" for row in rows]) for i, name in enumerate(heads)]
    numbers = [
        (printable(name).replace("/", "/\n"), True, ["-" if row[i] is None else f"{row[i]:.5g}" for row in rows])
        for i, name in enumerate(table.metrics, len(heads))
    ]
    return texts + numbers


def _width(column: _Column, console: Console) -> int:
    """Cells that a column takes, with its border."""
    name, numbers, cells = column
    widest = max(cell_len(line) for text in (name, *cells) for line in text.split("\n"))
    return 3 + (widest if numbers or not console.is_terminal else min(widest, _MAX_TEXT))


def _parts(columns: Sequence[_Column], room: int, console: Console) -> Iterator[list[_Column]]:
    """The columns in order, as many at a time as fit into `room`, one at least."""
    part: list[_Column] = []
    left = room
    for column in columns:
        width = _width(column, console)
        if part and width >= left:
            yield part
            part, left = [], room
        part.append(column)
        left -= width
    yield part
