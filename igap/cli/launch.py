"""A plan's jobs in the processes of one of Hydra's launchers, round after round until each has an end."""

import json
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from igap import report
from igap.disk import write_text
from igap.errors import InputError
from igap.sweep.folder import SweepFolder
from igap.sweep.plan import Job, Plan

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from omegaconf import DictConfig

    from igap.sweep.work import Outcome

_ROUNDS = 3
"""A job is started again when another process was at it, or when its own process died, at most this often."""
_EXTRAS = {"joblib": "joblib", "submitit_local": "submitit", "submitit_slurm": "submitit"}
_LOOK_EVERY = 1.0
"""Seconds between two looks at the folder while other processes work."""

log = logging.getLogger("igap")


@dataclass(frozen=True)
class Launcher:
    """How the processes are started."""

    config: "DictConfig"
    """Of the multirun."""
    loader: "ConfigLoader"
    at_once: int
    """Jobs side by side, as far as is known."""
    pack: int
    """Jobs one process does after each other, with the model loaded once."""
    threads: int | None
    """Of each process; None leaves them to torch."""

    @property
    def in_this_process(self) -> bool:
        """Whether the jobs run here, one after the other."""
        return str(self.config.hydra.launcher._target_).endswith(".BasicLauncher")


def launcher_of(config: "DictConfig", loader: "ConfigLoader") -> Launcher:
    """The launcher of a multirun's config. Raises InputError on settings that cannot be."""
    from omegaconf import open_dict

    settings = config.hydra.launcher
    with open_dict(config):
        pack = settings.pop("pack") if "pack" in settings else 1  # Hydra's basic launcher has no such key
        # All that the processes' own configs need of Hydra: where they may write. The launcher is this process's.
        place = str(Path(str(config.hydra.sweep.dir)).resolve()).replace("'", r"\'")
        config.hydra.overrides.hydra = [f"hydra.sweep.dir='{place}'", "hydra/hydra_logging=none"]
    if type(pack) is not int or pack < 1:
        raise InputError(f"hydra.launcher.pack: got {pack!r}, wanted a whole number of jobs from 1. Try 4.")
    cores, at_once, threads = os.cpu_count() or 1, 1, None
    if "n_jobs" in settings:
        n_jobs = int(settings.n_jobs)
        if n_jobs == 0:
            raise InputError("hydra.launcher.n_jobs: got 0, wanted a number of processes, or -1: one a core.")
        at_once = n_jobs if n_jobs > 0 else max(1, cores + 1 + n_jobs)
        threads = max(1, cores // at_once)
    elif "cpus_per_task" in settings:
        threads = settings.cpus_per_task
        at_once = settings.get("array_parallelism", 1)
    return Launcher(config, loader, at_once, pack, threads)


def check_extra(overrides: Sequence[str]) -> None:
    """Raises InputError on a launcher whose package is not installed."""
    import importlib.util

    for key, _, name in (override.partition("=") for override in overrides):
        extra = _EXTRAS.get(name) if key.lstrip("+") == "hydra/launcher" else None
        if extra and importlib.util.find_spec(f"hydra_plugins.hydra_{extra}_launcher") is None:
            raise InputError(
                f"hydra/launcher: got {name}, whose package is not installed. "
                f"pip install -e '.[{extra}]' -c constraints.txt, or hydra/launcher=basic."
            )


@dataclass(frozen=True)
class Worker:
    """What each process of the launcher calls; made of what can be pickled."""

    packs: tuple[tuple[Job, ...], ...]
    folder: SweepFolder
    wait: bool
    threads: int | None
    shown: bool
    """Whether this process's terminal is the user's and no other writes to it."""

    def __call__(self, config: "DictConfig") -> "list[Outcome]":  # noqa: ARG002 - the interface of Hydra's task functions
        """What became of each job of the pack that Hydra gave this process."""
        from hydra.core.hydra_config import HydraConfig

        from igap import pipeline
        from igap.sweep.work import do_all

        progress, out = Console(stderr=True), report.terminal()
        numbers = {job.key: index for index, job in enumerate((job for pack in self.packs for job in pack), start=1)}

        def told(job: Job, outcome: "Outcome") -> None:
            if self.shown and outcome.end != "busy":
                count = f"{numbers[job.key]}/{len(numbers)}"
                report.show_job(out, count, job.own, self.folder.standing(job.key), outcome.reason)

        stage = (lambda name: report.stage(progress, name)) if self.shown else pipeline.silent
        pack = self.packs[HydraConfig.get().job.num]
        return do_all(pack, self.folder, stage, told, wait=self.wait, threads=self.threads)


def launch(plan: Plan, launcher: Launcher) -> dict[str, str]:
    """The reason of each job without a finished run, by key, once every job has been tried."""
    for job in plan.to_do:
        _write_config(job, plan.folder.run(job.key))
    reasons: dict[str, str] = {}
    left = plan.to_do
    for turn in range(_ROUNDS):
        packs = tuple(tuple(left[start : start + launcher.pack]) for start in range(0, len(left), launcher.pack))
        worker = Worker(
            packs, SweepFolder(plan.folder.path.resolve()), turn > 0, launcher.threads, launcher.in_this_process
        )
        with _watched(left, plan.folder, quiet=launcher.in_this_process):
            outcomes = _one_round(worker, launcher)
        reasons |= {one.key: one.reason for one in outcomes if one.end == "failed"}
        for job in left:
            standing = plan.folder.standing(job.key)
            if standing.state == "failed":
                reasons[job.key] = standing.detail
        left = [job for job in left if job.key not in reasons and plan.folder.standing(job.key).run is None]
        if not left:
            break
    return reasons | {job.key: "its process ended without a word: killed, or out of memory" for job in left}


def _one_round(worker: Worker, launcher: Launcher) -> "list[Outcome]":
    """What the processes said of their jobs; less than all where one of them died."""
    from hydra._internal.callbacks import Callbacks
    from hydra.core.plugins import Plugins
    from hydra.core.utils import JobStatus
    from hydra.types import HydraContext

    for name in ("hydra", "hydra_plugins"):  # their lists of jobs have no overrides to show
        logging.getLogger(name).setLevel(logging.WARNING)
    context = HydraContext(config_loader=launcher.loader, callbacks=Callbacks(launcher.config))
    found = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=worker, config=launcher.config)
    try:
        ends = found.launch([[] for _ in worker.packs], initial_job_idx=0)
    except Exception as error:  # joblib, submitit and SLURM each have their own for a process that died
        log.warning("%s: %s", type(error).__name__, " ".join(str(error).split())[:300])
        return []
    finally:
        for handler in logging.getLogger().handlers[:]:
            if isinstance(handler, logging.FileHandler):  # Hydra's, of the jobs that ran in this process
                logging.getLogger().removeHandler(handler)
                handler.close()
    return [outcome for end in ends if end.status == JobStatus.COMPLETED for outcome in end.return_value]


@contextmanager
def _watched(jobs: Sequence[Job], folder: SweepFolder, *, quiet: bool) -> Iterator[None]:
    """A block in which each job that ends, in whatever process, is told on the terminal."""
    if quiet:
        yield
        return
    over, out = threading.Event(), report.terminal()
    told: set[str] = set()

    def look() -> None:
        for job in jobs:
            standing = folder.standing(job.key) if job.key not in told else None
            if standing is not None and (standing.run is not None or standing.state == "failed"):
                told.add(job.key)
                report.show_job(out, f"{len(told)}/{len(jobs)}", job.own, standing)

    def watch() -> None:
        while not over.wait(_LOOK_EVERY):
            look()

    for job in jobs:
        folder.forget_failure(job.key)  # or that of the last time would be told
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        look()


def _write_config(job: Job, folder: Path) -> None:
    """The composed config and its overrides, as Hydra leaves them in the folder of a single run."""
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    write_text(folder / ".hydra" / "config.yaml", job.composed.text)
    write_text(folder / ".hydra" / "overrides.yaml", "".join(f"- {json.dumps(o)}\n" for o in job.composed.overrides))
