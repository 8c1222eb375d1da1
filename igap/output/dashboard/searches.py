"""The table over finished searches, and the history of each: the best value so far, trial after trial."""

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from igap.errors import printable
from igap.output.dashboard.table import csv_text, differing_keys, every_metric, labels, metric, setting_cell
from igap.storage.finished import FinishedRun
from igap.storage.tables import escape_formula
from igap.storage.untrusted import read_lines

Steps = Sequence[tuple[int, float]]
"""Trials at which the best value so far rises, with that value; the last trial comes last."""

Cell = int | float | str | None

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "model": ("model",),
    "head": ("head",),
    "objective": ("objective", "estimator"),
    "metric": ("metric",),
    "by hand": ("by_hand/value",),
    "best": ("best/value",),
    "best of random": ("random/best",),
    "held out": ("heldout/value",),
    "mean held out [interval]": ("heldout/mean", "heldout/low", "heldout/high"),
    "sampler": ("sampler",),
    "trials": ("n_trials",),
    "rule of the best prompt": ("best/rule",),
    "better prompts": ("space/exact", "optimality/upper"),
}
"""The heading of each column, and the names of search_summary.json that it shows."""

_TEXTS = ("model", "head", "objective", "estimator", "metric", "metric/unit", "sampler", "best/rule", "best/corrupted")


@dataclass(frozen=True, eq=False)
class Searches:
    """Searches in the order of their folders."""

    searches: Sequence[FinishedRun]
    histories: Sequence[Steps]
    """Of each search; empty where it is not known."""

    @property
    def labels(self) -> list[str]:
        """The searches' folders, without what all of them share."""
        return labels(self.searches)

    @property
    def columns(self) -> list[tuple[str, bool, list[str]]]:
        """Heading, whether it holds numbers, a text a search; "-" where there is no value."""
        shown: list[tuple[str, bool, list[str]]] = [("search", False, self.labels)]
        for heading, names in COLUMNS.items():
            cells = [_SHOWN.get(heading, _first)(search, names) for search in self.searches]
            if any(cell != "-" for cell in cells) or heading != "better prompts":
                numbers = heading in ("by hand", "best", "best of random", "held out", "trials")
                shown.append((heading, numbers, cells))
        return shown

    def csv(self) -> str:
        """Folder, key, texts, differing settings and every number of each search, in full; empty where there is none.

        The numbers of the table come first.
        """
        settings = [key for key in differing_keys(self.searches) if key not in _TEXTS]
        first = [name for names in COLUMNS.values() for name in names if name not in _TEXTS]
        every = every_metric(self.searches)
        numbers = [name for name in dict.fromkeys([*first, *every]) if name in every]
        header = ["folder", "key", *_TEXTS, *map(escape_formula, settings), *numbers]
        rows = (
            [
                *map(escape_formula, (str(search.folder), search.key)),
                *(escape_formula(_text(search, name)) for name in _TEXTS),
                *(setting_cell(search, key) for key in settings),
                *(metric(search, name) for name in numbers),
            ]
            for search in self.searches
        )
        return csv_text([header, *rows])

    def panels(self) -> list[dict[str, object]]:
        """The plot of each history: its title, what its axis has, and its line in a box of 300 x 160.

        Searches of one objective and unit share an axis, so that the lines can be compared.
        """
        groups: dict[str, list[Steps]] = {}
        for search, steps in zip(self.searches, self.histories, strict=True):
            groups.setdefault(_axis(search), []).append(steps)
        panels = []
        for search, steps, label in zip(self.searches, self.histories, self.labels, strict=True):
            values = [value for each in groups[_axis(search)] for _, value in each]
            low, high = min(values, default=0.0), max(values, default=0.0)
            last = steps[-1][0] if steps else 0
            panels.append(
                {
                    "label": label,
                    "axis": _axis(search),
                    "low": f"{low:.4g}",
                    "high": f"{high:.4g}",
                    "last": last,
                    "line": " ".join(_corners(steps, low, high)),
                }
            )
        return panels


def _corners(steps: Steps, low: float, high: float) -> list[str]:
    """The corners of the staircase, from the upper left of a box of 300 x 160."""
    last = max(1, steps[-1][0]) if steps else 1
    span = high / 2 - low / 2
    corners: list[str] = []
    before = None
    for trial, value in steps:
        x, y = 300 * trial / last, 160 * (1 - (value / 2 - low / 2) / span if span else 0.5)
        corners += [f"{x:.1f},{before:.1f}"] if before is not None else []
        corners.append(f"{x:.1f},{y:.1f}")
        before = y
    return corners


def _axis(search: FinishedRun) -> str:
    """What the first term's value is of, and its unit."""
    term = _text(search, "objective").partition(",")[0]
    unit = "nats a token" if term == "fluency" else "slots" if term == "edits" else _text(search, "metric/unit")
    estimator = _text(search, "estimator")
    return f"{term}{f' of {estimator}' if estimator else ''}, {unit}"


def _text(search: FinishedRun, name: str) -> str:
    """A text of the summary; of a metric and a unit that it does not name, those that are usual."""
    usual = {"metric": "logit_diff", "metric/unit": "logits"}.get(name, "")
    return str(search.summary.get(name, usual))


def _first(search: FinishedRun, names: Sequence[str]) -> str:
    """The first value of these names as a text, the others after a space."""
    number = metric(search, names[0])
    if number is not None:
        return str(number) if isinstance(number, int) else _digits(number)
    texts = [] if names[0] not in _TEXTS else [_text(search, name) for name in names]
    return " ".join(filter(None, texts)) or "-"


def _with_interval(search: FinishedRun, names: Sequence[str]) -> str:
    value, low, high = (metric(search, name) for name in names)
    if value is None:
        return "-"
    return _digits(value) + ("" if low is None or high is None else f" [{_digits(low)}, {_digits(high)}]")


def _better(search: FinishedRun, names: Sequence[str]) -> str:
    """How many prompts of the space are better, as far as that was asked."""
    exact, upper = (metric(search, name) for name in names)
    return "none: all tried" if exact else "-" if upper is None else f"at most {upper:.2g} of the space (95%)"


_SHOWN: Mapping[str, Callable[[FinishedRun, Sequence[str]], str]] = {
    "mean held out [interval]": _with_interval,
    "better prompts": _better,
}


def _digits(number: float) -> str:
    return f"{number + 0.0:.5g}"  # of -0.0 it is 0.0


def read_history(search: FinishedRun) -> tuple[Steps, str | None]:
    """The best first term so far of the trials that count, from trials.csv, and why it cannot be read, if so."""
    term = _text(search, "objective").partition(",")[0]
    try:
        return _steps(read_lines(Path(search.folder) / "trials.csv"), term), None
    except (ValueError, KeyError, csv.Error) as error:
        reason = f"no column {error}" if isinstance(error, KeyError) else printable(error)
        return (), f"{printable(search.folder)}: its history cannot be read (trials.csv: {reason})."


def _steps(lines: Iterable[str], term: str) -> Steps:
    """Raises ValueError, KeyError or csv.Error on what is no table of trials."""
    best, steps, number = -math.inf, list[tuple[int, float]](), -1
    rows = csv.reader(lines, strict=True)  # one after another: there may be a million
    header = next(rows, None)
    if header is None:
        raise ValueError("it is empty")
    at = {name: header.index(name) for name in header}
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise ValueError(f"row {number + 1} has {len(row)} cells, wanted {len(header)}")
        if row[at["counts"]] == "True" and best < (value := float(row[at[term]])) < math.inf:
            best = value
            steps.append((number, best))
    return [*steps, (number, best)] if steps and steps[-1][0] < number else steps
