"""The terminal: its width, how the progress of long work is shown, and what several commands write alike."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from igap.errors import printable

if TYPE_CHECKING:
    from igap.attribution.maps import Progress as OnProgress

_WIDTH = 160
"""Columns of a table where there is no terminal to fold it to."""


def terminal_console(width: int = _WIDTH) -> Console:
    """The console for results, on standard output.

    Args:
        width: columns where standard output is no terminal but a file or a pipe; a terminal has its own.
    """
    console = Console()
    if not console.is_terminal:
        console.width = width
    return console


_SECONDS_BETWEEN = 60.0
"""Least time between two lines of a log file about one stage."""


def log_progress(
    console: Console, name: str, *, clock: Callable[[], float] = time.monotonic, announced: bool = True
) -> Callable[[int, int, str], None]:
    """Log a stage of work in place of a progress bar: a line now, then about every minute how far it is.

    Args:
        console: where to.
        name: of the stage.
        clock: gives seconds.
        announced: whether there is a line now.

    Returns:
        A function to call with what is done, of how much, and what else to say.
    """
    started = last_line = clock()
    if announced:
        console.print(name, markup=False, highlight=False, soft_wrap=True)

    def tell(done: int, total: int, more: str = "") -> None:
        nonlocal last_line
        now = clock()
        if now - last_line >= _SECONDS_BETWEEN:
            last_line = now
            left = f", about {duration((now - started) * (total - done) / done)} left" if done else ""
            text = f"{name}: {done} of {total} after {duration(now - started)}{left}{more}"
            console.print(text, markup=False, highlight=False, soft_wrap=True)

    return tell


@contextmanager
def show_stage(
    console: Console, name: str, *, clock: Callable[[], float] = time.monotonic, announced: bool = True
) -> Iterator["OnProgress"]:
    """A progress bar for one stage of work, gone when it is done; lines where there is no terminal.

    Without `announced` there the first line comes after a minute.
    """
    if not console.is_terminal:
        tell = log_progress(console, name, clock=clock, announced=announced)
        yield lambda done, total: tell(done, total, "")
        return
    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def show_route(console: Console, route: str, why: str) -> None:
    """Say that F was computed by the slow route, where it was, and why."""
    if route == "hooks":
        console.print(f"route: hooks, the slower one: {why}", markup=False, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Seconds as one reads them: "90 s", "12 min"."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def number(value: float | int | str | None) -> str:
    """A number as tables show it; a dash where it is not defined."""
    if not isinstance(value, float | int) or value != value:
        return "-"
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value + 0.0:.3f}"  # + 0.0: zero has no sign


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
