"""A plan's jobs in the processes of one of Hydra's launchers, round after round until each has an end."""

import io
import json
import logging
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from igap.cli.launchers import Launcher
from igap.console import show_stage, terminal_console
from igap.errors import InputError
from igap.errors.failures import reason_of
from igap.storage.atomic import write_text
from igap.sweep.folder import SweepFolder
from igap.sweep.plan import Job, Plan
from igap.sweep.terminal import show_job

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from igap.sweep.worker import Outcome

_TRIES = 3
"""A job is started again when its process died, at most this often in all."""
_LOOK_EVERY = 1.0
"""Seconds between two looks at the folder while other processes work."""

log = logging.getLogger("igap")


@dataclass(frozen=True)
class Worker:
    """The function that each process of the launcher calls; picklable."""

    packs: tuple[tuple[Job, ...], ...]
    folder: SweepFolder
    wait: bool
    threads: int | None
    shown: bool
    """Whether this process writes to the user's terminal, and no other does."""

    def __call__(self, config: "DictConfig") -> "list[Outcome]":  # noqa: ARG002 - the interface of Hydra's task functions
        """Does the jobs of the pack that Hydra gave this process."""
        from hydra.core.hydra_config import HydraConfig

        from igap import pipeline
        from igap.sweep.worker import do_all

        progress, out = Console(stderr=True), terminal_console()
        numbers = {job.key: index for index, job in enumerate((job for pack in self.packs for job in pack), start=1)}

        def on_done(job: Job, outcome: "Outcome") -> None:
            if self.shown and outcome.end != "busy":
                count = f"{numbers[job.key]}/{len(numbers)}"
                show_job(out, count, job.distinct_overrides, self.folder.status(job.key), outcome.reason)

        lines = not progress.is_terminal  # in a log no bar gets in the way of another
        stage = (lambda name: show_stage(progress, name)) if lines or self.shown else pipeline.silent
        pack = self.packs[HydraConfig.get().job.num]
        return do_all(pack, self.folder, stage, on_done, wait=self.wait, threads=self.threads, draw_beside=self.shown)


class _Pending:
    """The jobs that have not ended, and what is known of each from the rounds before."""

    def __init__(self, plan: Plan) -> None:
        self.folder = SweepFolder(plan.folder.path.resolve())
        self.reasons: dict[str, str] = {}
        """By key, why a job has no finished run."""
        self.jobs: list[Job] = []
        self._deaths: Counter[str] = Counter()
        self._n_idle = 0
        """Rounds one after the other in which nothing happened."""
        for job in plan.to_do:
            self.folder.take_death_notice(job.key)  # before this sweep: forgotten
            try:
                self.folder.forget_failure(job.key)
                _write_config(job, self.folder.run(job.key))
            except OSError as error:
                self.reasons[job.key] = str(error)
            else:
                self.jobs.append(job)

    def next_packs(self, size: int) -> tuple[tuple[Job, ...], ...]:
        """The next round's jobs, `size` for each process; a job whose process died is tried alone, last."""
        fresh = [job for job in self.jobs if not self._deaths[job.key]]
        jobs, size = (fresh, size) if fresh else (self.jobs[:1], 1)
        return tuple(tuple(jobs[start : start + size]) for start in range(0, len(jobs), size))

    def settle(self, jobs: Sequence[Job], outcomes: "Iterable[Outcome]", problem: str) -> None:
        """Takes the jobs of a round that have ended off the list; `problem` is what went wrong in the launcher."""
        before = (len(self.jobs), self._deaths.total())
        self.reasons |= {outcome.key: outcome.reason for outcome in outcomes if outcome.end == "failed"}
        for job in jobs:
            status = self.folder.status(job.key)
            if status.state == "failed":
                self.reasons[job.key] = status.detail
            elif not status.finished and job.key not in self.reasons and self.folder.take_death_notice(job.key):
                self._deaths[job.key] += 1
                if self._deaths[job.key] == _TRIES:
                    self.reasons[job.key] = f"its process ended without a word {_TRIES} times: killed, or out of memory"
        self.jobs = [
            job for job in self.jobs if job.key not in self.reasons and not self.folder.status(job.key).finished
        ]
        self._n_idle = self._n_idle + 1 if (len(self.jobs), self._deaths.total()) == before else 0
        if self._n_idle == _TRIES:
            reason = f"it was not started {_TRIES} times: {problem or 'no process came'}"
            self.reasons |= {job.key: reason for job in self.jobs}
            self.jobs = []


def launch(plan: Plan, launcher: Launcher) -> dict[str, str]:
    """Does the jobs of a plan in the launcher's processes, round after round, until each has been tried.

    A process that dies may take others with it, and the jobs they had not begun. So what has not been begun is started
    again, and a job whose process died is tried alone, last.

    Args:
        plan: the plan, whose `to_do` is done.
        launcher: how the processes are started.

    Returns:
        Key to reason, of each job without a finished run.
    """
    pending, wait = _Pending(plan), False
    while pending.jobs:
        packs = pending.next_packs(len(pending.jobs) if launcher.in_this_process else launcher.pack)
        jobs = [job for pack in packs for job in pack]
        worker = Worker(packs, pending.folder, wait, launcher.threads, launcher.in_this_process)
        with _announce(jobs, pending.folder, quiet=launcher.in_this_process):
            results, problem = one_round(worker, len(packs), launcher)
            while any(pending.folder.holder(job.key) for job in jobs):  # one that died ends Hydra's wait for the others
                time.sleep(_LOOK_EVERY)
        pending.settle(jobs, (outcome for outcomes in results for outcome in outcomes), problem)
        wait = True
    return pending.reasons


def one_round(task: "Callable[[DictConfig], Any]", n: int, launcher: Launcher) -> tuple[list[Any], str]:
    """Calls the task `n` times in the launcher's processes.

    Args:
        task: finds the number of its call in Hydra's config (`HydraConfig.get().job.num`).
        n: calls.
        launcher: how the processes are started.

    Returns:
        What the calls returned, less than all where a process died or failed, and one line on what went wrong, or "";
        an InputError is no process's fault.
    """
    from hydra._internal.callbacks import Callbacks
    from hydra.core.plugins import Plugins
    from hydra.core.utils import JobStatus
    from hydra.types import HydraContext

    for name in ("hydra", "hydra_plugins"):  # their lists of jobs have no overrides to show
        logging.getLogger(name).setLevel(logging.WARNING)
    context = HydraContext(config_loader=launcher.loader, callbacks=Callbacks(launcher.config))
    plugin = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=launcher.config)
    try:
        with warnings.catch_warnings():
            # joblib restarts a process whose memory has grown (by a larger batch, say): no job is lost
            warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
            returns = plugin.launch([[] for _ in range(n)], initial_job_idx=0)
    except Exception as error:  # joblib, submitit and SLURM each have their own for a process that died
        problem = reason_of(error)
        log.warning("%s", problem)
        return [], problem
    finally:
        for handler in logging.getLogger().handlers[:]:
            if isinstance(handler, logging.FileHandler):  # Hydra's, of the jobs that ran in this process
                logging.getLogger().removeHandler(handler)
                handler.close()
    problem = ""
    for job_return in returns:
        if job_return.status != JobStatus.COMPLETED:
            try:
                with redirect_stderr(io.StringIO()):  # Hydra names the job's overrides, and it has none
                    job_return.return_value  # noqa: B018 - raises what went wrong
            except Exception as error:
                log.warning("a process failed: %s", reason_of(error))
                problem = problem if isinstance(error, InputError) else reason_of(error)
    return [job_return.return_value for job_return in returns if job_return.status == JobStatus.COMPLETED], problem


@contextmanager
def _announce(jobs: Sequence[Job], folder: SweepFolder, *, quiet: bool) -> Iterator[None]:
    """Prints a line whenever a job ends, in whatever process, while the block runs."""
    if quiet:
        yield
        return
    over, out = threading.Event(), terminal_console()
    announced: set[str] = set()

    def look() -> None:
        for job in jobs:
            status = folder.status(job.key) if job.key not in announced else None
            if status is not None and (status.finished or status.state == "failed"):
                announced.add(job.key)
                show_job(out, f"{len(announced)}/{len(jobs)}", job.distinct_overrides, status)

    def watch() -> None:
        while not over.wait(_LOOK_EVERY):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        look()


def _write_config(job: Job, folder: Path) -> None:
    """Writes the composed config and its overrides, as Hydra leaves them in the folder of a single run."""
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    write_text(folder / ".hydra" / "config.yaml", job.composed.text)
    write_text(folder / ".hydra" / "overrides.yaml", "".join(f"- {json.dumps(o)}\n" for o in job.composed.overrides))
