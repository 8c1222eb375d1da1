"""The work of one job of a sweep, in whatever process it lands: claim it, compute, write to disk, log, show."""

import logging
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from igap import pipeline
from igap.console import terminal_console
from igap.failures import reason_of
from igap.output import disk, terminal
from igap.output.tracking import wandb_run
from igap.pipeline import Result, Stage
from igap.replication import jobs
from igap.storage import cache
from igap.storage.atomic import check_writable
from igap.storage.finished import failures_of
from igap.sweep.folder import SweepFolder
from igap.sweep.plan import Job

log = logging.getLogger("igap")


@dataclass(frozen=True)
class Outcome:
    """What became of a job in one process."""

    key: str
    end: Literal["done", "before", "busy", "failed"]
    """Done now; finished before; another process is at it; failed."""
    reason: str = ""


def do(job: Job, folder: SweepFolder, stage: Stage, *, wait: bool) -> Outcome:
    """What became of the job. Never raises but on interruption; the run is on disk before W&B hears of it."""
    try:
        with folder.claimed(job.key, wait=wait) as mine:
            if not mine:
                return Outcome(job.key, "busy")
            if folder.standing(job.key).finished:  # meanwhile, by another process
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
        run = jobs.run if config.study else pipeline.run
        result = run(config, stage, folder.path / cache.FOLDER)
        if result.key != job.key:
            raise RuntimeError(
                f"the run's key is {result.key}, the plan's {job.key}: a file or the checkpoint has changed since the "
                "plan was made. Start the sweep again."
            )
        (place / wandb_run.MARK).unlink(missing_ok=True)  # W&B has what is replaced
        summary = _write(result, place)
    except Exception as error:
        return _failed(job, folder, reason_of(error), traceback.format_exc())
    try:
        wandb_run.log(place, job.tracking)
    except Exception as error:
        log.warning("W&B did not take %s (%s: %s); everything is in %s", job.key, type(error).__name__, error, place)
    failures = failures_of(summary)
    if failures:
        reason, story = "; ".join(f"{name}: {why}" for name, why in failures.items()), place / "failure.log"
        return _failed(job, folder, reason, story.read_text(encoding="utf-8") if story.exists() else reason)
    return Outcome(job.key, "done")


def _write(result: Result, place: Path) -> Mapping[str, object]:
    """The summary; a result that cannot be written is shown, and the error raised."""
    disk.unfinish(place)
    try:
        return disk.write(result, place)
    except Exception:
        terminal.show(terminal_console(), result)
        raise


def _failed(job: Job, folder: SweepFolder, reason: str, story: str) -> Outcome:
    log.error("%s (%s) failed: %s", job.key, " ".join(job.own), reason)
    with suppress(OSError):  # a disk that the run did not fit on
        folder.fail(job.key, reason, story)
    return Outcome(job.key, "failed", reason)


def do_all(
    pack: Sequence[Job],
    folder: SweepFolder,
    stage: Stage,
    told: Callable[[Job, Outcome], None],
    *,
    wait: bool,
    threads: int | None,
) -> list[Outcome]:
    """What became of each job of a pack, which shares a process and so a loaded model; `told` hears of each."""
    if threads is not None:
        torch.set_num_threads(threads)
    logging.raiseExceptions = False  # as in `cli.main`: in the processes of a launcher
    outcomes = []
    for job in pack:
        outcome = do(job, folder, stage, wait=wait)
        told(job, outcome)
        outcomes.append(outcome)
    return outcomes
