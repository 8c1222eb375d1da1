"""The finished runs of a sweep, opened from disk; each run when it is asked for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from igap.display import markup
from igap.errors import InputError, did_you_mean, printable
from igap.errors.arguments import checks_arguments
from igap.interactive.opened import Run, absolute, format_path, open_run
from igap.output.dashboard.table import Table, tabulate
from igap.storage.finished import FinishedRun, find_runs


@checks_arguments
@dataclass(frozen=True, eq=False)
class Sweep:
    """The finished runs of a sweep, as `open_sweep` gives them; one is opened when it is asked for.

    Example:
        >>> sweep = open_sweep("runs")
        >>> sweep.labels, sweep["first"].config.baseline.kind, sweep.to_frame()["heads/pearson"].round(3).tolist()
        (('first',), 'corrupted', [0.957])
    """

    folder: Path
    finished: tuple[FinishedRun, ...]
    """Summary and settings of each run, in the order of their paths."""
    problems: tuple[str, ...] = field(default=())
    """A line for each run that cannot be read, or only in part."""

    @cached_property
    def _table(self) -> Table:
        return tabulate(self.finished)

    @property
    def labels(self) -> tuple[str, ...]:
        """The runs' folders, without what all of them share: what a run is asked for by."""
        return tuple(self._table.labels)

    @checks_arguments
    def to_frame(self, metrics: Sequence[str] | None = None) -> pd.DataFrame:
        """Return one row a run, by its label: the settings that differ, then numbers of its summary.

        `metrics` are names of summary.json; None (default) takes those that `igap compare` shows. Raises InputError on
        a name that no run's summary has.
        """
        return tabulate(self.finished, metrics=metrics).frame()

    def __len__(self) -> int:
        return len(self.finished)

    def __iter__(self) -> Iterator[Run]:
        return (open_run(each.folder) for each in self.finished)

    def __getitem__(self, which: int | str) -> Run:
        if isinstance(which, str):
            if which not in self.labels:
                near = did_you_mean(which, self.labels, most=3)
                raise InputError(f"run: got {which!r}, which the sweep does not have.{near} .labels lists them.")
            which = self.labels.index(which)
        return open_run(self.finished[which].folder)

    def __repr__(self) -> str:
        left_out = f", {len(self.problems)} problems" if self.problems else ""
        differing = self._find_differing()
        return f"Sweep({len(self)} finished runs{left_out}; differing: {differing}; {format_path(self.folder)})"

    def _repr_html_(self) -> str:
        lines = [f"differing: {self._find_differing()}", *self._table.notes(), *self.problems]
        return markup.block(f"{len(self)} runs in {format_path(self.folder)}", lines, markup.table(self.to_frame()))

    def _find_differing(self) -> str:
        return ", ".join(self._table.settings) or "nothing"


@checks_arguments
def open_sweep(folder: str | Path) -> Sweep:
    """The finished runs in a folder: a sweep's, or any that holds runs.

    Args:
        folder: `runs/SWEEP`, or a folder above several of them.

    Returns:
        The runs in the order of their paths, with the table of `igap compare`. None is opened before it is asked for;
        what cannot be read is left out, with a line in `problems`.

    Raises:
        InputError: There is no such folder, or no finished run in it that can be read.

    Example:
        >>> len(open_sweep("runs"))
        1
    """
    folder = absolute(folder)
    runs, problems = find_runs([folder])
    if not runs:
        raise InputError(f"folder: got {printable(folder)}, without a run that can be read ({problems[0]})")
    return Sweep(folder, tuple(runs), tuple(problems))
