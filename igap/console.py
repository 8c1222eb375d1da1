"""The consoles that commands write to, and what several of them write in the same way."""

import sys
from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from igap.errors import printable

_WIDTH = 160
"""Columns of a table where there is no terminal to fold it to."""


def terminal(width: int = _WIDTH) -> Console:
    """The console for results, on standard output.

    Args:
        width: columns where standard output is no terminal but a file or a pipe; a terminal has its own.
    """
    console = Console()
    if not console.is_terminal:
        console.width = width
    return console


def folding_table(title: str, *columns: str) -> Table:
    """An empty table whose long cells are folded, and not cut.

    Args:
        title: plain text above it.
        columns: the headings.
    """
    table = Table(title=escape(printable(title, 2000)), title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def warn(problems: Iterable[str]) -> None:
    """Writes each problem as a line on standard error."""
    for problem in problems:
        sys.stderr.write(f"igap: {problem}\n")
