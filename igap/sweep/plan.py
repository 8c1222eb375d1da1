"""The jobs of a multirun before the first of them runs: keys, duplicates, what is done already, how long is left."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from igap.config import RunConfig, TrackingConfig
from igap.errors import InputError
from igap.storage.finished import Finished, flat
from igap.sweep.folder import Standing, SweepFolder


@dataclass(frozen=True)
class Composed:
    """A job as Hydra composes it."""

    overrides: tuple[str, ...]
    config: RunConfig
    text: str
    """The whole config as YAML."""


@dataclass(frozen=True)
class Refused:
    """A job that cannot be."""

    overrides: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Job:
    """A job that can be."""

    key: str
    own: tuple[str, ...]
    """The overrides that not all jobs of the plan have."""
    composed: Composed
    n_pairs: int
    """Prompt pairs."""
    tracking: TrackingConfig
    """With mode auto settled."""


@dataclass(frozen=True)
class Plan:
    """The distinct jobs of a multirun, and how each stands."""

    folder: SweepFolder
    jobs: tuple[Job, ...]
    standings: Mapping[str, Standing]
    """By key."""
    n_duplicates: int
    """Jobs that would find what another job of the plan finds."""
    refused: tuple[Refused, ...]

    def in_state(self, *states: str) -> list[Job]:
        """The jobs that stand so, in the plan's order."""
        return [job for job in self.jobs if self.standings[job.key].state in states]

    @property
    def to_do(self) -> list[Job]:
        """The jobs whose runs are not finished; stale ones only where asked for (`stale=redo`)."""
        redo = any(job.composed.config.stale == "redo" for job in self.jobs)
        return self.in_state("planned", "failed", "running", *(["stale"] if redo else []))


def plan(
    folder: SweepFolder,
    composed: Sequence[Composed | Refused],
    check: Callable[[RunConfig], tuple[str, int]],
    on_progress: Callable[[int, int], None],
) -> Plan:
    """The plan of these jobs; `check` gives a job's key and number of pairs or raises InputError."""
    keyed: dict[str, tuple[Composed, int]] = {}
    refused: list[Refused] = []
    n_duplicates = 0
    for index, one in enumerate(composed):
        if isinstance(one, Refused):
            refused.append(one)
        else:
            try:
                key, n_pairs = check(one.config)
            except InputError as error:
                refused.append(Refused(one.overrides, str(error)))
            else:
                n_duplicates += key in keyed
                keyed.setdefault(key, (one, n_pairs))
        on_progress(index + 1, len(composed))
    common = set.intersection(*(set(one.overrides) for one in composed)) if len(composed) > 1 else set()
    jobs = tuple(
        Job(key, tuple(text for text in one.overrides if text not in common), one, n_pairs, one.config.tracking)
        for key, (one, n_pairs) in keyed.items()
    )
    standings = {job.key: folder.standing(job.key) for job in jobs}
    return Plan(folder, jobs, standings, n_duplicates, tuple(refused))


def estimate(jobs: Iterable[Job], runs: Sequence[Finished], at_once: int) -> float | None:
    """Seconds these jobs take, `at_once` of them side by side, from runs of their kind; None where there are none.

    Of a kind are runs of one model that do the same analyses.

    IG's seconds go with steps and pairs, those of the files with neither, all others with pairs; each is the median of
    the finished runs' rates, of those with as many pairs where there are any: pairs that share a pass take less each.
    """
    total = 0.0
    for job in jobs:
        config = job.composed.config
        rates = [rate for run in runs if (rate := _rates(run, config)) is not None]
        if not rates:
            return None
        n_pairs = job.n_pairs
        alike = [rate for rate in rates if rate.n_pairs == n_pairs] or rates
        steps = config.ig.n_steps if isinstance(config.ig.n_steps, int) else 50
        total += n_pairs * (median(rate.node for rate in alike) * steps + median(rate.pair for rate in alike))
        total += median(rate.files for rate in alike)
    return total / at_once


class _Rate(NamedTuple):
    """Seconds a finished run took: of IG a pair and node, others a pair, of its files; and its pairs."""

    node: float
    pair: float
    files: float
    n_pairs: float


_KIND = ("model.name", "model.processing", "sites", "study", "faithfulness", "ablation.kind")
"""Settings that decide what is done; others how long it takes."""


_MOST = 1e9
"""Seconds, or pairs, that no run has."""


def _rates(run: Finished, config: RunConfig) -> _Rate | None:
    """What a finished run of this job's kind took; None of another kind, or where its summary does not say."""
    asked, summary = dict(flat(config.model_dump(mode="json"))), run.summary
    settings = {"sites": "both"} | dict(run.settings)  # as runs from before there was a choice had them
    same = all(settings.get(name) == asked[name] for name in _KIND)
    names = ("seconds/ig", "seconds/total", "seconds/files", "seconds/model", "n_pairs")
    numbers = [number for name in names if isinstance(number := summary.get(name), int | float) and 0 <= number < _MOST]
    if not same or len(numbers) < len(names) or not summary["n_pairs"]:
        return None
    ig, whole, files, model, n_pairs = numbers
    steps = summary.get("ig/n_steps")
    node = ig / n_pairs / (steps if isinstance(steps, int) and steps > 0 else 50)
    return _Rate(node, max(0.0, whole - model - ig) / n_pairs, files, int(n_pairs))
