"""The jobs of a multirun before the first of them runs: keys, duplicates, what is done already, how long is left."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from igap.config import MetricConfig, RunConfig, TrackingConfig
from igap.errors import InputError
from igap.storage.finished import FinishedRun, flatten
from igap.sweep.folder import JobStatus, SweepFolder


@dataclass(frozen=True)
class Composed:
    """A job as Hydra composes it."""

    overrides: tuple[str, ...]
    config: RunConfig
    text: str
    """The whole config as YAML."""


@dataclass(frozen=True)
class RejectedJob:
    """A job that was rejected."""

    overrides: tuple[str, ...]
    reason: str
    """One line: what is wrong with it."""


@dataclass(frozen=True)
class Job:
    """A job that can be done."""

    key: str
    distinct_overrides: tuple[str, ...]
    """The overrides that tell it from the plan's other jobs: those that not all of them have."""
    composed: Composed
    n_pairs: int
    """Prompt pairs."""
    tracking: TrackingConfig
    """With mode auto resolved."""
    beside: tuple[MetricConfig, ...] = ()
    """Metrics of other jobs to do that share this one's patches: they differ in what AP does not depend on."""


@dataclass(frozen=True)
class Plan:
    """The distinct jobs of a multirun, and the status of each."""

    folder: SweepFolder
    jobs: tuple[Job, ...]
    statuses: Mapping[str, JobStatus]
    """By key."""
    n_duplicates: int
    """Jobs left out because another job of the plan has the same key."""
    rejected: tuple[RejectedJob, ...]

    def in_state(self, *states: str) -> list[Job]:
        """The jobs in any of these states, in the plan's order."""
        return [job for job in self.jobs if self.statuses[job.key].state in states]

    @property
    def to_do(self) -> list[Job]:
        """The jobs whose runs are not finished; stale ones only where asked for (`stale=redo`)."""
        redo = any(job.composed.config.stale == "redo" for job in self.jobs)
        return self.in_state("planned", "failed", "running", *(["stale"] if redo else []))


def plan(
    folder: SweepFolder,
    composed: Sequence[Composed | RejectedJob],
    check: Callable[[RunConfig], tuple[str, int]],
    on_progress: Callable[[int, int], None],
) -> Plan:
    """The plan of a multirun.

    Args:
        folder: the sweep's folder, from which the status of each job is read.
        composed: the jobs in the order of the grid.
        check: gives a job's key and its number of prompt pairs, or raises InputError.
        on_progress: called after each job with how many are checked, of how many.

    Returns:
        The jobs with distinct keys, the first of each key, and those that were rejected.
    """
    keyed: dict[str, tuple[Composed, int]] = {}
    rejected: list[RejectedJob] = []
    n_duplicates = 0
    for index, job in enumerate(composed):
        if isinstance(job, RejectedJob):
            rejected.append(job)
        else:
            try:
                key, n_pairs = check(job.config)
            except InputError as error:
                rejected.append(RejectedJob(job.overrides, str(error)))
            else:
                n_duplicates += key in keyed
                keyed.setdefault(key, (job, n_pairs))
        on_progress(index + 1, len(composed))
    common = set.intersection(*(set(job.overrides) for job in composed)) if len(composed) > 1 else set()
    statuses = {key: folder.status(key) for key in keyed}
    alike: dict[str, dict[str, MetricConfig]] = {}
    for key, (job, _) in keyed.items():
        if not statuses[key].finished and not job.config.study:
            alike.setdefault(_patches(job.config), {})[repr(job.config.metric)] = job.config.metric
    jobs = tuple(
        Job(
            key,
            tuple(text for text in job.overrides if text not in common),
            job,
            n_pairs,
            job.config.tracking,
            tuple(each for each in alike.get(_patches(job.config), {}).values() if each != job.config.metric),
        )
        for key, (job, n_pairs) in keyed.items()
    )
    return Plan(folder, jobs, statuses, n_duplicates, tuple(rejected))


def _patches(config: RunConfig) -> str:
    """What the patches of a run depend on beside the metric."""
    return config.model_dump_json(include={"model", "prompts", "positions", "sites", "direction"})


_FEWEST_BESIDE = 3
"""Jobs with pictures for which a process that draws is worth its start of a few seconds."""


def draws_beside(jobs: Iterable[Job]) -> bool:
    """True if a process of its own is to draw the jobs' pictures while this one, which has the machine, computes."""
    return sum(job.composed.config.plots != "none" for job in jobs) >= _FEWEST_BESIDE and (os.cpu_count() or 1) > 1


@dataclass(frozen=True)
class Estimate:
    """How long jobs take."""

    seconds: float
    n_runs: int
    """Finished runs of the jobs' kinds, which it goes by."""


def estimate(
    jobs: Sequence[Job], runs: Iterable[FinishedRun], at_once: int, *, beside: bool = False
) -> Estimate | None:
    """Estimates how long jobs take, from finished runs of their kind: of one model, with the same analyses.

    The time of IG grows with steps and pairs, that of the files with neither, all other time with pairs. Each rate is
    the median over the finished runs; over those with as many pairs, where there are any, as pairs that share a pass
    take less time each; that of the files over those with the same pictures.

    Args:
        jobs: the jobs to do.
        runs: finished runs to go by.
        at_once: jobs done side by side.
        beside: whether another process draws, which is most of the time of the files, while the next job is computed.

    Returns:
        None where no run of some job's kind is finished.
    """
    rates: dict[str, list[_Rate]] = {}
    for run in runs:
        if (rate := _rate(run)) is not None:
            rates.setdefault(_kind(run.settings), []).append(rate)
    computing = files = 0.0
    used = dict[str, int]()
    for job in jobs:
        config, n_pairs = job.composed.config, job.n_pairs
        kind = _kind(dict(flatten(config.model_dump(mode="json"))))
        if kind not in rates:
            return None
        used[kind] = len(rates[kind])
        alike = [rate for rate in rates[kind] if rate.n_pairs == n_pairs] or rates[kind]
        steps = config.ig.n_steps if isinstance(config.ig.n_steps, int) else 50
        computing += n_pairs * (median(rate.node for rate in alike) * steps + median(rate.pair for rate in alike))
        drawn = [rate for rate in alike if rate.plots == config.plots]
        if drawn or config.plots != "none":  # files without pictures take next to nothing
            files += median(rate.files for rate in drawn or alike)
    # Where too many pictures wait for the process that draws, the other one draws as well.
    seconds = max(computing, (computing + files) / 2) if beside else (computing + files) / at_once
    return Estimate(seconds, sum(used.values()))


class _Rate(NamedTuple):
    """Seconds that a finished run took for each part of its work."""

    node: float
    """IG: seconds a pair and quadrature node."""
    pair: float
    """Everything else that grows with pairs: seconds a pair."""
    files: float
    """Seconds for the files, pictures included."""
    n_pairs: int
    """Pairs of the run."""
    plots: object
    """The pictures that were asked for."""


_KIND = (
    "model.name",
    "model.processing",
    "metric.name",
    "positions.kind",
    "sites",
    "explain",
    "study",
    "faithfulness",
    "ablation.kind",
)
"""Settings by which finished runs are told apart for the time estimate: what kind of work a run does."""

_BEFORE = {"sites": "both", "explain": True, "plots": "all", "metric.name": "logit_diff", "positions.kind": "all"}
"""What runs from before there was such a setting did."""

_MOST = 1e9
"""Seconds, or pairs: larger numbers in a summary are damage."""


def _kind(settings: Mapping[str, object]) -> str:
    """The work that a run with these settings does."""
    return repr([settings.get(name, _BEFORE.get(name)) for name in _KIND])


def _rate(run: FinishedRun) -> _Rate | None:
    """The rates of a finished run; None where its summary does not say."""
    names = ("seconds/ig", "seconds/total", "seconds/files", "seconds/model", "n_pairs")
    summary = run.summary
    numbers = [number for name in names if isinstance(number := summary.get(name), int | float) and 0 <= number < _MOST]
    if len(numbers) < len(names) or not summary["n_pairs"]:
        return None
    ig, whole, files, model, n_pairs = numbers
    steps = summary.get("ig/n_steps")
    node = ig / n_pairs / (steps if isinstance(steps, int) and steps > 0 else 50)
    plots = run.settings.get("plots", _BEFORE["plots"])
    return _Rate(node, max(0.0, whole - model - ig) / n_pairs, files, int(n_pairs), plots)
