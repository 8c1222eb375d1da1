"""The work of one job of a sweep, in whatever process it lands: claim it, compute, write to disk, log, show."""

import logging
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from igap import pipeline, records, report, store, tracking
from igap.config import RunConfig
from igap.console import terminal
from igap.disk import check_writable
from igap.failures import reason_of
from igap.finished import failures_of
from igap.notebook import jobs
from igap.pipeline import Checked, Result, Stage
from igap.sweep.folder import SweepFolder
from igap.sweep.plan import Job

log = logging.getLogger("igap")


@dataclass(frozen=True)
class Outcome:
    """How a job ended in one process."""

    key: str
    end: Literal["done", "before", "busy", "failed"]
    """Done now; finished before; another process is at it; failed."""
    reason: str = ""


def check(config: RunConfig) -> Checked:
    """Checks a run, or every run of a study, as far as is possible without weights. Raises InputError."""
    checked = pipeline.check(config)
    for other in jobs.configs(config).values() if config.study else ():
        pipeline.check(other)
    return checked


def compute(config: RunConfig, stage: Stage, store: Path | None = None) -> Result:
    """The numbers of a run, or of a study of several runs (`study` in its config).

    Args:
        config: the settings.
        stage: shows the progress of a stage of work by its name.
        store: the folder of maps that several jobs share; None shares none.
    """
    return (jobs.run if config.study else pipeline.run)(config, stage, store)


def do(job: Job, folder: SweepFolder, stage: Stage, *, wait: bool) -> Outcome:
    """Does one job, unless it is done or another process is at it; the run is on disk before W&B hears of it.

    Never raises but on interruption.

    Args:
        job: the job.
        folder: the sweep's folder.
        stage: shows the progress of a stage of work by its name.
        wait: whether to wait for another process that is at the job.
    """
    try:
        with folder.claimed(job.key, wait=wait) as mine:
            if not mine:
                return Outcome(job.key, "busy")
            if folder.status(job.key).finished:  # meanwhile, by another process
                return Outcome(job.key, "before")
            return _do(job, folder, stage)
    except OSError as error:  # the folder is gone, or the disk is full
        log.error("%s: %s", job.key, error)
        return Outcome(job.key, "failed", str(error))


def _do(job: Job, folder: SweepFolder, stage: Stage) -> Outcome:
    config, place = job.composed.config, folder.run(job.key)
    try:
        check_writable(place / "plots")
        folder.forget_failure(job.key)
        for left in place.rglob("*.unfinished"):  # by a process that was killed
            left.unlink(missing_ok=True)
        result = compute(config, stage, folder.path / store.FOLDER)
        if result.key != job.key:
            raise RuntimeError(
                f"the run's key is {result.key}, the plan's {job.key}: a file or the checkpoint has changed since the "
                "plan was made. Start the sweep again."
            )
        (place / tracking.MARK).unlink(missing_ok=True)  # W&B has what is replaced
        summary = _write(result, place)
    except Exception as error:
        return _fail(job, folder, reason_of(error), traceback.format_exc())
    try:
        tracking.log(place, job.tracking)
    except Exception as error:
        log.warning("W&B did not take %s (%s: %s); everything is in %s", job.key, type(error).__name__, error, place)
    failures = failures_of(summary)
    if failures:
        reason, story = "; ".join(f"{name}: {why}" for name, why in failures.items()), place / "failure.log"
        return _fail(job, folder, reason, story.read_text(encoding="utf-8") if story.exists() else reason)
    return Outcome(job.key, "done")


def _write(result: Result, place: Path) -> Mapping[str, object]:
    """Writes the result and gives its summary; a result that cannot be written is shown, and the error raised."""
    records.unfinish(place)
    try:
        return records.write(result, place)
    except Exception:
        report.show(terminal(), result)
        raise


def _fail(job: Job, folder: SweepFolder, reason: str, story: str) -> Outcome:
    log.error("%s (%s) failed: %s", job.key, " ".join(job.distinct_overrides), reason)
    with suppress(OSError):  # a disk that the run did not fit on
        folder.fail(job.key, reason, story)
    return Outcome(job.key, "failed", reason)


def do_all(
    pack: Sequence[Job],
    folder: SweepFolder,
    stage: Stage,
    on_done: Callable[[Job, Outcome], None],
    *,
    wait: bool,
    threads: int | None,
) -> list[Outcome]:
    """Does the jobs of a pack one after the other, in one process, so that the model loads once.

    Args:
        pack: the jobs.
        folder: the sweep's folder.
        stage: shows the progress of a stage of work by its name.
        on_done: called with each job and its outcome.
        wait: whether to wait for jobs that another process is at.
        threads: threads of torch; None leaves them as they are.

    Returns:
        The outcomes in the order of the jobs.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    logging.raiseExceptions = False  # as in `cli.main`: in the processes of a launcher
    outcomes = []
    for job in pack:
        outcome = do(job, folder, stage, wait=wait)
        on_done(job, outcome)
        outcomes.append(outcome)
    return outcomes
