"""The work of the jobs of a sweep, in whatever process they land: claim, compute, write, draw, log to W&B, show.

A job is finished when its pictures are on disk: `summary.json` comes after them. Until then it stays claimed by this
process, also while the next job is computed and another process draws. Where this process dies in between, the record
in the run's folder is all that the next one needs to finish the job.
"""

import logging
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from igap import pipeline
from igap.config import MetricConfig, RunConfig
from igap.console import terminal_console
from igap.errors.failures import Failure, reason_of
from igap.output import disk, figures, record, terminal
from igap.output.drawing_process import DrawingProcess
from igap.output.tracking import places, wandb_run
from igap.pipeline import Checked, Result, Stage
from igap.replication import jobs
from igap.storage import cache, versions
from igap.storage.atomic import check_writable
from igap.storage.finished import failed_findings, failures_of
from igap.sweep.folder import SweepFolder
from igap.sweep.plan import Job, draws_beside

log = logging.getLogger("igap")

_MOST_WAITING = 4
"""Computed jobs that wait for that process; beyond them this one draws, too."""

_MOST_ASKED = 2
"""Jobs that it has been asked for: the one it draws, and the next, so that it never waits for this one."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended in one process."""

    key: str
    end: Literal["done", "before", "busy", "failed"]
    """Done now; finished before; another process is at it; failed."""
    reason: str = ""


def check(config: RunConfig) -> Checked:
    """Check a run, or every run of a study, as far as is possible without weights.

    Raises:
        InputError: The first thing that is refused.
    """
    checked = pipeline.check(config)
    for other in jobs.configs(config).values() if config.study else ():
        pipeline.check(other)
    figures.parse_names(config.plots)
    return checked


def compute(config: RunConfig, stage: Stage, store: Path | None = None, beside: Sequence[MetricConfig] = ()) -> Result:
    """Return the numbers of a run, or of a study of several runs (`study` in its config).

    Args:
        config: The settings.
        stage: Shows the progress of a stage of work by its name.
        store: The folder of maps that several jobs share; None shares none.
        beside: Metrics of jobs that share this one's patches.
    """
    return jobs.run(config, stage, store) if config.study else pipeline.run(config, stage, store, beside)


@dataclass(frozen=True)
class Computed:
    """A job whose files are on disk but for its pictures and its summary."""

    job: Job
    summary: record.Summary
    failures: Mapping[str, Failure]
    seconds: float
    """What writing its files took."""
    claim: ExitStack
    """Closed when the job is finished."""

    @property
    def wanted(self) -> frozenset[str]:
        """Names of its pictures."""
        return figures.parse_names(self.job.composed.config.plots)


def do_all(
    pack: Sequence[Job],
    folder: SweepFolder,
    stage: Stage,
    on_done: Callable[[Job, Outcome], None],
    *,
    wait: bool,
    threads: int | None,
    draw_beside: bool = False,
) -> list[Outcome]:
    """Do the jobs of a pack, which shares a process and so a loaded model, and return what became of each.

    Args:
        pack: The jobs.
        folder: The sweep's.
        stage: Opens a stage of work on the terminal.
        on_done: Hears of each job when it has ended.
        wait: Whether to wait for a job that another process has claimed.
        threads: Of torch; None leaves them as they are.
        draw_beside: Whether a process of its own may draw while the next job is computed: where this process has the
            machine to itself.

    Raises:
        KeyboardInterrupt: Nothing else: a job that fails is an Outcome.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    logging.raiseExceptions = False  # as in `cli.main`: in the processes of a launcher
    outcomes: list[Outcome] = []

    def end(job: Job, outcome: Outcome) -> None:
        on_done(job, outcome)
        outcomes.append(outcome)

    beside = draw_beside and draws_beside(pack)
    with ExitStack() as claims, Pictures(folder, end, beside=beside) as pictures:
        for job in pack:
            if wait:  # for another process, which may wait for what this one holds
                pictures.finish()
            begun = begin(job, folder, stage, claims, wait=wait)
            if isinstance(begun, Outcome):
                end(job, begun)
            else:
                pictures.add(begun)
        pictures.finish()
    return outcomes


def begin(job: Job, folder: SweepFolder, stage: Stage, claims: ExitStack, *, wait: bool) -> Outcome | Computed:
    """Claim a job and compute what is not on disk; a job that is not left to be drawn has an outcome at once."""
    claim = claims.enter_context(ExitStack())  # released early by who finishes the job, or with `claims`
    try:
        mine = claim.enter_context(folder.claim(job.key, wait=wait))
        if not mine:
            ended: Outcome | Computed = Outcome(job.key, "busy")
        elif folder.status(job.key).finished:  # meanwhile, by another process
            ended = Outcome(job.key, "before")
        else:
            ended = _compute(job, folder, stage, claim)
        if isinstance(ended, Outcome):
            claim.close()
    except OSError as error:  # the folder is gone, or the disk is full
        log.error("%s: %s", job.key, error)
        with suppress(OSError):
            claim.close()
        return Outcome(job.key, "failed", str(error))
    return ended


def _compute(job: Job, folder: SweepFolder, stage: Stage, claim: ExitStack) -> Outcome | Computed:
    config, place = job.composed.config, folder.run(job.key)
    try:
        check_writable(place / figures.FOLDER)
        folder.forget_failure(job.key)
        for left in place.rglob("*.unfinished"):  # by a process that was killed
            left.unlink(missing_ok=True)
        summary = _read_record(job.key, place)
        if summary is not None:
            disk.unfinish(place)
            disk.write_config(config, place)
            return Computed(job, summary, {}, 0.0, claim)
        result = compute(config, stage, folder.path / cache.FOLDER, job.beside)
        if result.key != job.key:
            raise RuntimeError(
                f"the run's key is {result.key}, the plan's {job.key}: a file or the checkpoint has changed since the "
                "plan was made. Start the sweep again."
            )
        (place / places.MARK).unlink(missing_ok=True)  # W&B has what is replaced
        disk.unfinish(place)
        return _write(job, folder, result, claim)
    except Exception as error:
        return _fail(job, folder, reason_of(error), traceback.format_exc())


def _write(job: Job, folder: SweepFolder, result: Result, claim: ExitStack) -> Outcome | Computed:
    """Write a result; one that cannot be written is shown, and the error raised."""
    place, started = folder.run(job.key), time.perf_counter()
    try:
        if job.composed.config.study:  # its page is made of the result and of the pictures of several runs
            return _log(job, folder, disk.write(result, place))
        failures = dict(result.failures)
        summary = disk.write_numbers(result, place, failures).summary
    except Exception:
        terminal.show(terminal_console(), result)
        raise
    return Computed(job, summary, failures, time.perf_counter() - started, claim)


def _read_record(key: str, place: Path) -> record.Summary | None:
    """Return the summary in the record that a process left which died before the run was finished.

    None where there is no such record, where the files beside it are not as it says, where another analysis may succeed
    at another try, and where other versions of the code have made it.
    """
    try:
        left = record.read(place)
        summary = left.summary
        if not left.is_whole(place):
            return None
    except (OSError, ValueError):
        return None
    return (
        summary
        if summary.get("key") == key and not failed_findings(summary) and not versions.version_differences(summary)
        else None
    )


class Pictures:
    """Jobs that are computed, until they are drawn and finished: here, or in a process beside this one."""

    def __init__(self, folder: SweepFolder, end: Callable[[Job, Outcome], None], *, beside: bool) -> None:
        """`end` hears of each job when it is finished."""
        self._folder, self._end = folder, end
        self._process = DrawingProcess() if beside else None
        self._waiting: deque[Computed] = deque()
        self._asked: deque[Computed] = deque()

    def __enter__(self) -> "Pictures":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.close()

    def add(self, computed: Computed) -> None:
        """Take a job, and finish those that are drawn by now."""
        self._waiting.append(computed)
        self._exchange(wait=False)
        while len(self._waiting) > (_MOST_WAITING if self._process else 0):
            self._draw_one_here()

    def finish(self) -> None:
        """Return when every job is finished."""
        while self._waiting or self._asked:
            self._exchange(wait=not self._waiting)
            if self._waiting:
                self._draw_one_here()

    def _draw_one_here(self) -> None:
        computed = self._waiting.popleft()
        self._finish(computed, record.draw_or_say(self._folder.run(computed.job.key), computed.wanted))
        self._exchange(wait=False)

    def _exchange(self, *, wait: bool) -> None:
        """Ask the other process for as much as it should have, and finish what it has drawn."""
        process = self._process
        if process is None:
            return
        while True:
            while self._waiting and len(self._asked) < _MOST_ASKED:
                computed = self._waiting.popleft()
                self._asked.append(computed)
                process.ask(self._folder.run(computed.job.key), sorted(computed.wanted))
            drawn = process.answer(wait=wait and bool(self._asked))
            if drawn is None:
                break
            self._finish(self._asked.popleft(), drawn)
            wait = False
        if process.dead:
            log.warning("the process that draws pictures has ended; this one draws them")
            process.close()
            self._process = None
            self._waiting.extendleft(reversed(self._asked))
            self._asked.clear()

    def _finish(self, computed: Computed, drawn: figures.Drawn) -> None:
        job, seconds = computed.job, computed.seconds + drawn.seconds
        failures = {**computed.failures, **drawn.failures}
        try:
            summary = disk.finish(self._folder.run(job.key), computed.summary, failures, seconds)
        except Exception as error:
            outcome = _fail(job, self._folder, reason_of(error), traceback.format_exc())
        else:
            outcome = _log(job, self._folder, summary)
        with suppress(OSError):  # a mark that a full or read-only disk keeps says nothing once the lock is gone
            computed.claim.close()
        self._end(job, outcome)


def _log(job: Job, folder: SweepFolder, summary: Mapping[str, object]) -> Outcome:
    """Log a finished run to W&B, and return what became of its job."""
    place = folder.run(job.key)
    wandb_run.log_or_warn(place, job.tracking, job.key)
    failures = failures_of(summary)
    if failures:
        reason, story = "; ".join(f"{name}: {why}" for name, why in failures.items()), place / "failure.log"
        return _fail(job, folder, reason, story.read_text(encoding="utf-8") if story.exists() else reason)
    return Outcome(job.key, "done")


def _fail(job: Job, folder: SweepFolder, reason: str, story: str) -> Outcome:
    log.error("%s (%s) failed: %s", job.key, " ".join(job.distinct_overrides), reason)
    with suppress(OSError):  # a disk that the run did not fit on
        folder.fail(job.key, reason, story)
    return Outcome(job.key, "failed", reason)
