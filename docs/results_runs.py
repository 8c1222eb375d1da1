"""What docs/results.py reads: finished runs by task, and the output curves of every head."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy import stats

import igap
from igap.errors import printable
from igap.models.load import load_model
from igap.statistics.bootstrap import LEVEL, mean_intervals, resample_counts, row_correlations
from igap.storage import finished
from igap.storage.atomic import write_atomically
from igap.storage.untrusted import check_file

TASKS = {
    "generated": "IOI, generated",
    "capital-country": "capital, country",
    "gendered-pronoun": "gendered pronoun",
    "subject-verb": "subject, verb",
}
"""prompts= to what the page calls it."""
METHODS = {"ig": "IG", "atp": "AtP", "atp_star": "AtP*"}
AREAS = ("cpr", "cmd")
TERMS = ("curvature", "quadrature", "interaction", "direction")
Maps = Mapping[str, np.ndarray]
"""By name scores `[pair, head]`."""
N_ZERO = 10
"""Pairs of each task from zero."""
N_BENT = 6
"""Pairs of generated IOI whose heads all get an output curve."""
ALPHAS = np.linspace(0, 1, 11)
TOLD = 8
"""Rows of a table of heads."""


T = TypeVar("T")


def whole(read: Callable[[Path], T], file: Path) -> T:
    """What `read` makes of a file of results. Raises SystemExit, with a line, on one that is damaged."""
    try:
        check_file(file)
        return read(file)
    except (OSError, ValueError, SafetensorError) as error:
        sys.exit(f"{file}: it cannot be read ({printable(error)}); the page is not written.")


@dataclass(frozen=True, eq=False)
class Task:
    """The runs of one task, IG from the corrupted prompt and from zero."""

    title: str
    corrupted: finished.FinishedRun
    zero: finished.FinishedRun

    @cached_property
    def maps(self) -> Maps:
        """Scores of the pairs that have some: ap, ig, atp, atp_star."""
        return _scores(self.corrupted, ("ap", "ig", "atp", "atp_star"))

    @cached_property
    def zero_maps(self) -> Maps:
        """The same of the pairs of which there is IG from zero: ap, ig."""
        return _scores(self.zero, ("ap", "ig"))

    @cached_property
    def complete(self) -> np.ndarray:
        """Whether IG from zero is complete to 5% in the head's layer, `[head]`, for every pair."""
        maps = whole(load_file, self.zero.folder / "attributions.safetensors")
        layers = np.abs(maps["delta.ig.heads"]) <= 0.05 * np.abs(maps["layer_effect.ig.heads"])
        return layers.repeat(self.zero_maps["ig"].shape[1] // len(layers))

    @cached_property
    def baseline_term(self) -> np.ndarray:
        """IG from the corrupted prompt minus IG from zero, in logits, the mean over pairs that have both.

        Of the heads whose layer is `complete`.
        """
        texts = ["clean", "corrupted", "answer", "distractor"]
        theirs, ours = (
            whole(pd.read_csv, run.folder / "pairs.csv")[texts].apply(tuple, axis=1).tolist()
            for run in (self.corrupted, self.zero)
        )
        effects = [
            whole(load_file, run.folder / "attributions.safetensors")["pairs.effect.ig.heads"]
            for run in (self.corrupted, self.zero)
        ]
        moved = effects[0][[theirs.index(pair) for pair in ours]] - effects[1]
        return moved.mean(0).ravel()[self.complete].astype(np.float64)

    def table(self, name: str) -> pd.DataFrame:
        """A CSV file of the run from the corrupted baseline."""
        texts = {"name": str, "part": str, "components": str}
        return whole(partial(pd.read_csv, dtype=texts), self.corrupted.folder / f"{name}.csv")


def _scores(run: finished.FinishedRun, names: Sequence[str]) -> Maps:
    stored = whole(load_file, run.folder / "attributions.safetensors")
    found = {name: stored[f"pairs.{name}.heads"] for name in names}
    flat = {name: values.reshape(len(values), -1).astype(np.float64) for name, values in found.items()}
    scored = ~np.isnan(np.stack([*flat.values()])).any((0, 2))
    return {name: values[scored] for name, values in flat.items()}


@dataclass(frozen=True, eq=False)
class Bends:
    """Of the first pairs of a run every head's output curve between clean and corrupted, each `[pair, head]`."""

    bend: np.ndarray
    """In logits: the largest signed distance from the chord."""
    beyond: np.ndarray
    """In logits: how far F leaves the range between its ends; 0 for a monotone curve."""
    effect: np.ndarray
    """AP, in logits."""
    off: Mapping[str, np.ndarray]
    """|AP - IG| and |AP - AtP|, in logits, by ig and atp."""


def read_tasks(folder: Path) -> dict[str, Task]:
    """The finished runs by task."""
    runs, troubles = finished.find_runs([folder])
    for trouble in troubles:
        print(trouble, file=sys.stderr)
    by_name: dict[tuple[str, str], finished.FinishedRun] = {}
    for run in runs:
        settings = run.settings
        if not settings:  # told above
            continue
        by_name[str(settings["prompts.file"] or "generated"), str(settings["baseline.kind"])] = run
    whole = [name for name in TASKS if {(name, "corrupted"), (name, "zero")} <= set(by_name)]
    return {name: Task(TASKS[name], by_name[name, "corrupted"], by_name[name, "zero"]) for name in whole}


def read_bends(task: Task, folder: Path) -> Bends:
    """The curves of every head on the run's first pairs, computed once for a run."""
    file = folder / f"curves-{task.corrupted.key}.safetensors"
    if not file.exists():
        pairs = [
            igap.PromptPair(row.clean, row.corrupted, row.answer, row.distractor, min_gap=0.0)
            for row in task.table("pairs").head(N_BENT).itertuples()
        ]
        print(f"output curves of every head, {len(pairs)} pairs: some minutes")
        model = load_model(str(task.corrupted.settings["model.name"]))
        computed = igap.output_curve(model, pairs, list(task.table("heads")["name"]), alphas=ALPHAS.tolist())
        write_atomically(file, lambda path: save_file({"F": np.ascontiguousarray(computed.by_pair)}, path))
    curves = whole(load_file, file)["F"]
    bend, beyond = departures(curves)
    maps = whole(load_file, task.corrupted.folder / "attributions.safetensors")
    effects = {
        name: maps[f"pairs.effect.{name}.heads"][: len(bend)].reshape(bend.shape) for name in ("ap", "ig", "atp")
    }
    off = np.abs(curves[..., -1] - curves[..., 0] - effects["ap"]).max()
    if off > 1e-3:
        sys.exit(f"{file}: its curves end {off:.2g} logits away from AP of the same heads; remove it.")
    return Bends(bend, beyond, effects["ap"], {name: np.abs(effects["ap"] - effects[name]) for name in ("ig", "atp")})


def departures(curves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest signed distance of curves `[..., alpha]` at ALPHAS from the chord; how far they leave its range."""
    start, end = curves[..., :1], curves[..., -1:]
    off = curves - (start + ALPHAS * (end - start))
    bend = np.take_along_axis(off, np.abs(off).argmax(-1)[..., None], -1)[..., 0]
    ends = np.concatenate([start, end], -1)
    return bend, np.maximum(curves.max(-1) - ends.max(-1), ends.min(-1) - curves.min(-1))


def r_over_pairs(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Pearson r of the mean scores of two methods, and the ends of its 95% bootstrap interval over pairs."""
    counts = resample_counts(len(x), seed=0) / len(x)
    drawn = row_correlations(counts @ x, counts @ y)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(row_correlations(x.mean(0)[None], y.mean(0)[None])[0]), float(low), float(high)


def spearman_over_pairs(bends: Bends, name: str) -> tuple[float, float, float]:
    """Mean over pairs of the Spearman correlation over heads of |bend| with |AP - IG| or |AP - AtP|; its interval."""
    each = np.array([stats.spearmanr(np.abs(x), y).statistic for x, y in zip(bends.bend, bends.off[name], strict=True)])
    ends = mean_intervals(each[:, None], seed=0)
    return float(each.mean()), float(ends.low[0]), float(ends.high[0])
