"""The table over runs: the settings that differ, the metrics, the order. Pure: reads and writes nothing."""

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeGuard

from igap.components import PLACES, SITES
from igap.config import EXECUTION_KEYS
from igap.errors import InputError, did_you_mean, printable
from igap.output.dashboard import prompt_labels
from igap.storage.finished import FinishedRun, Value
from igap.storage.tables import escape_formula

if TYPE_CHECKING:
    import pandas as pd

_OF_SITES = tuple(f"{site}/{name}" for site in PLACES if site not in SITES for name in ("pearson", "ap_on_ig"))

DEFAULT = (
    "gap",
    "heads/pearson",
    "heads/ap_on_ig",
    "heads/spearman",
    "heads/jaccard@10",
    "heads/max_abs_delta",
    "neurons/pearson",
    "neurons/ap_on_ig",
    "neurons/jaccard@30",
    "heads/n_outliers",
    *_OF_SITES,
)
"""The metrics that are shown unless others are asked for, where a summary has them."""

_SCALE = "/ap_on_ig"
"""End of the names that no summary has: `with_scale`."""

_SCALE_NOTE = "ap_on_ig is the slope of AP on IG by least squares: where r is near 1, AP is about ap_on_ig times IG."

ABSENT = ""
"""Text of a setting that a run does not have, or whose settings could not be read."""

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that end a line or a cell for some readers of a CSV file though nothing quotes them, or are no text."""

_NOT_METRICS = ("schema", "seed", "ig/n_steps", "prompts/n", "prompts/seed")
"""Numbers of a summary that repeat a setting, or say how it is written."""
_NOT_SHOWN = frozenset(EXECUTION_KEYS) - {"device"}
"""Keys and groups that say where and how a run is done; the device, whose rounding may differ, is shown."""


@dataclass(frozen=True, eq=False)
class Table:
    """Runs in the order they are shown in, and what is shown of each."""

    runs: Sequence[FinishedRun]
    labels: Sequence[str]
    """The runs' folders, without what all of them share."""
    settings: Sequence[str]
    """Dotted keys that differ among the runs whose settings are known, in the config's order."""
    metrics: Sequence[str]
    """The chosen ones."""
    every_metric: Sequence[str]
    """Names that hold a number in a run's summary at least, in the order of the summaries."""

    @property
    def shown_settings(self) -> dict[str, list[str]]:
        """The settings' columns on a terminal and on the page, a text a run: several texts of prompts are one label."""
        texts = [key for key in self.settings if key in prompt_labels.KEYS]
        columns: dict[str, list[str]] = {}
        for key in self.settings:
            if len(texts) > 1 and key in texts:
                columns.setdefault(prompt_labels.NAME, prompt_labels.prompt_labels(self.runs))
            else:
                columns[key] = [setting(run, key) for run in self.runs]
        return columns

    @property
    def rows(self) -> list[list[str | int | float | None]]:
        """One a run: label, settings as they are shown, chosen metrics (None: not defined, or not measured)."""
        return [
            [label, *texts, *(metric(run, name) for name in self.metrics)]
            for run, label, *texts in zip(self.runs, self.labels, *self.shown_settings.values(), strict=True)
        ]

    def frame(self) -> "pd.DataFrame":
        """One row a run, by its label: differing settings as they are (None: the run has none), chosen metrics."""
        import pandas as pd

        columns: dict[str, list[object]] = {key: [run.settings.get(key) for run in self.runs] for key in self.settings}
        columns |= {name: [metric(run, name) for run in self.runs] for name in self.metrics}
        return pd.DataFrame(columns, index=pd.Index(self.labels, name="run"))

    def csv(self) -> str:
        """Folder, key, differing settings and every metric of each run, numbers in full; empty where there is none."""
        header = ["folder", "key", *map(escape_formula, (*self.settings, *self.every_metric))]
        rows = (
            [
                escape_formula(str(run.folder)),
                escape_formula(run.key),
                *(setting_cell(run, key) for key in self.settings),
                *(metric(run, name) for name in self.every_metric),
            ]
            for run in self.runs
        )
        return csv_text([header, *rows])

    def notes(self) -> list[str]:
        """What the table does not show by itself: that nothing differs, versions or tokens before prompts, warnings,
        why a number is missing.
        """
        known = [run for run in self.runs if run.settings]
        lines = []
        if len(self.runs) == 1:
            lines.append("One run: there is no other to set it beside.")
        elif len(known) > 1 and not self.settings:
            lines.append(f"No setting differs among the {len(known)} runs whose settings are known.")
        lines += self._prompt_texts()
        if any(name.endswith(_SCALE) for name in self.metrics):
            lines.append(_SCALE_NOTE)
        names = {name for run in self.runs for name in run.summary if name.startswith("version/")}
        for name in [*sorted(names), "prompts/bos"]:
            values = sorted({str(run.summary.get(name, "unknown")) for run in self.runs})
            if len(values) > 1:
                lines.append(f"{name} differs among the runs: {', '.join(values)}.")
        warned = [label for run, label in zip(self.runs, self.labels, strict=True) if run.summary.get("warnings")]
        if warned:
            who = f"{len(warned)} of {len(self.runs)} runs {'has' if len(warned) == 1 else 'have'}"
            who = who if len(self.runs) > 1 else "It has"
            lines.append(f"{who} warnings, in summary.json: {', '.join(warned)}.")
        for name in self.metrics:
            missing = [run for run in self.runs if metric(run, name) is None]
            reasons = sorted({_why_missing(run, name) for run in missing})
            if missing:
                where = f" in {len(missing)} of {len(self.runs)} runs" if len(self.runs) > 1 else ""
                lines.append(f"{name}: no number{where}: {'; '.join(reasons)}.")
        return [printable(line, 2000) for line in lines]

    def _prompt_texts(self) -> list[str]:
        """What the labels of the prompts stand for: the texts where nothing else differs, else where they are."""
        if prompt_labels.NAME not in self.shown_settings:
            return []
        if not all(key.startswith("prompts.") for key in self.settings):
            return [f"The texts of the prompts are in compare.csv ({', '.join(prompt_labels.KEYS[:4])})."]
        texts = {
            label: " | ".join(setting(run, key) for key in prompt_labels.KEYS[:2])
            for label, run in zip(self.shown_settings[prompt_labels.NAME], self.runs, strict=True)
            if run.settings.get(prompt_labels.KEYS[0]) is not None
        }
        return [f"{label}: {text}" for label, text in sorted(texts.items())]


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as the text of a CSV file, in which no control character ends a line or a cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return _CONTROLS.sub(lambda control: control[0].encode("unicode_escape").decode(), text.getvalue())


def tabulate(runs: Iterable[FinishedRun], *, metrics: Sequence[str] | None = None, sort: str | None = None) -> Table:
    """The table of these runs, at least one; in their order, or by the column `sort` ("-gap": largest first).

    A column is folder, key, a setting or a metric. Rows without a value come last either way; equal ones stay as they
    are. Raises InputError on a metric that no summary has, and on a column that there is not.
    """
    runs = [with_scale(run) for run in runs]
    assert runs
    every = every_metric(runs)
    for name in metrics or ():
        if name not in every:
            raise InputError(f"metrics: got {name!r}, which is no number of any run's summary.{_nearest(name, every)}")
    chosen = list(dict.fromkeys(metrics)) if metrics else [name for name in DEFAULT if name in every]
    if sort is not None:
        runs = _sort(runs, sort.removeprefix("-"), every, largest_first=sort.startswith("-"))
    with_number = [name for name in every if any(metric(run, name) is not None for run in runs)]
    return Table(runs, labels(runs), differing_keys(runs), chosen, with_number)


def _sort(runs: list[FinishedRun], name: str, metrics: Sequence[str], *, largest_first: bool) -> list[FinishedRun]:
    keys = list(dict.fromkeys(key for run in runs for key in run.settings))
    prompts = dict(zip(runs, prompt_labels.prompt_labels(runs), strict=True))
    if name not in (columns := ["folder", "key", *keys, *metrics, prompt_labels.NAME]):
        raise InputError(f"sort: got {name!r}, which is no column.{_nearest(name, columns)}")

    def value(run: FinishedRun) -> Value:
        if name in ("folder", "key"):
            return str(run.folder) if name == "folder" else run.key
        if name == prompt_labels.NAME:
            return prompts[run]
        return metric(run, name) if name in metrics else run.settings.get(name)

    def rank(run: FinishedRun) -> tuple[bool, float, str]:
        cell = value(run)
        number = float(cell) if isinstance(cell, int | float) else math.inf
        return isinstance(cell, str | tuple), number, format_setting(cell)

    some = [run for run in runs if value(run) is not None]
    return sorted(some, key=rank, reverse=largest_first) + [run for run in runs if value(run) is None]


def with_scale(run: FinishedRun) -> FinishedRun:
    """The run with SITE/ap_on_ig, the slope of AP on IG by least squares, which its r and its `slope` determine.

    With k = SD(AP) / SD(IG), `slope` is b = 2 (k^2 - 1) / (k^2 + 1 + 2 r k), the slope of AP - IG on their mean. So k
    is (b r + sqrt(b^2 r^2 + 4 - b^2)) / (2 - b), and the slope of AP on IG is r k. Beyond |b| = 2, which takes a
    negative r, two values of k give one b.
    """
    added: dict[str, float | int | str | None] = {}
    for site in PLACES:
        names = [f"{site}/pearson", f"{site}/slope"]
        if not all(name in run.summary for name in names):
            continue
        r, b = (metric(run, name) for name in names)
        name = site + _SCALE
        if r is not None and b is not None and abs(r) <= 1 and abs(b) < 2:
            added[name] = r * (b * r + math.sqrt((b * r) ** 2 + 4 - b**2)) / (2 - b)
        else:
            reasons = [run.summary[f"{each}/reason"] for each in names if f"{each}/reason" in run.summary]
            added |= {name: None, f"{name}/reason": (*reasons, "not determined by pearson and slope")[0]}
    return replace(run, summary={**run.summary, **added})


def differing_keys(runs: Iterable[FinishedRun], *, all_keys: bool = False) -> list[str]:
    """Keys whose value is not the same in all runs whose settings are known, in the config's order.

    A key that only some runs have differs. Where and how a run is done is left out unless `all_keys`.
    """
    known = [run for run in runs if run.settings]
    keys = dict.fromkeys(key for run in known for key in run.settings)
    return [
        key
        for key in keys
        if (all_keys or key.partition(".")[0] not in _NOT_SHOWN)
        and len({_identity(run.settings, key) for run in known}) > 1
    ]


def every_metric(runs: Iterable[FinishedRun]) -> list[str]:
    """Names whose value is a number, or None for one that is not defined, in some run's summary."""
    names = dict.fromkeys(
        name for run in runs for name, value in run.summary.items() if value is None or is_number(value)
    )
    return [name for name in names if name not in _NOT_METRICS]


def metric(run: FinishedRun, name: str) -> int | float | None:
    """A number of the run's summary; None where it is not there, not defined or not finite."""
    value = run.summary.get(name)
    return value if is_number(value) and math.isfinite(value) else None


def _why_missing(run: FinishedRun, name: str) -> str:
    if isinstance(run.summary.get(name), str):
        return "a text in its place"
    return str(run.summary.get(f"{name}/reason", "not measured"))


def setting(run: FinishedRun, key: str) -> str:
    """A setting as text; ABSENT where the run has none."""
    return format_setting(run.settings[key]) if key in run.settings else ABSENT


def setting_cell(run: FinishedRun, key: str) -> str:
    """A setting as compare.csv has it: a text guarded against spreadsheets, a number as it is."""
    text = setting(run, key)
    return escape_formula(text) if isinstance(run.settings.get(key), str) else text


def format_setting(value: Value) -> str:
    """A setting as one types it: text as it is, null, true, [a, b]."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def labels(runs: Sequence[FinishedRun]) -> list[str]:
    """The folders' paths below the deepest folder that holds all runs; of one run its folder's name."""
    paths = [os.path.abspath(run.folder) for run in runs]
    above = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, above) for path in paths]


def _identity(settings: Mapping[str, Value], key: str) -> str | None:
    """A text that two values share if they are equal; 1 and 1.0 are (W&B gives back either), 1 and "1" are not."""
    if key not in settings:
        return None
    value = settings[key]
    return json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a number, which a boolean is not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _nearest(name: str, known: Sequence[str]) -> str:
    shown = [printable(each, 100) for each in known]
    return (
        did_you_mean(name, shown, most=3) or f" There are {', '.join(shown[:20])}{', ...' if len(shown) > 20 else ''}."
    )
