"""The processes that add trials to a study: this one, others that it starts, and those of a launcher."""

import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge

from igap.config import MetricConfig
from igap.counterfactual.config import SearchConfig
from igap.counterfactual.objective import cache
from igap.counterfactual.plan import PlannedStudy, given_prompts, objective_of, plan_studies
from igap.counterfactual.session import OnProgress, Progress, SearchSession
from igap.counterfactual.trials.storages import find_only_study, open_storage
from igap.engine.activations import borrow
from igap.engine.user_metrics import source_digest
from igap.errors import InputError
from igap.errors.failures import reason_of
from igap.models import cached
from igap.storage.studies import STUDY_FILES

log = logging.getLogger("igap")

_CONTEXT = multiprocessing.get_context("spawn")
"""How other processes start: torch's threads and a card's state do not survive a fork."""


def check_storage(study: PlannedStudy) -> Any | None:
    """The Optuna storage of a study; None where it is a file that is not there yet, which is not made here.

    Raises InputError on one that cannot be used.
    """
    name = STUDY_FILES.get(study.config.search.storage.kind)
    return None if name and not os.path.lexists(study.folder / name) else _open_storage(study)


def _open_storage(study: PlannedStudy) -> Any:
    asked = study.config.search.storage
    return open_storage(asked.kind, study.folder, asked.address)


def open_session(study: PlannedStudy, model: TransformerBridge, storage: Any | None = None) -> SearchSession:
    """The session of a study on its model, which is frozen meanwhile; without a storage, its own. Raises InputError."""
    config = study.config
    given = given_prompts(config, model.tokenizer)
    return SearchSession(
        model,
        given.pair,
        config.head,
        objective_of(config),
        heldout=given.heldout,
        reference=given.reference,
        space=config.search.space,
        clean_n=config.clean.n,
        heldout_n=config.heldout.n,
        clean_lengths=config.clean.lengths,
        seed=config.seed,
        storage=partial(_open_storage, study) if storage is None else storage,
        name=partial(study_name, study),
        identity={
            "model": study.checkpoint,
            "processing": config.model.processing,
            "dtype": config.model.dtype,
            **_function_of(config.metric),
        },
        remember=Path(config.output) / cache.FILE,
        memory_gib=config.memory_gib,
    )


def _function_of(metric: MetricConfig) -> dict[str, str]:
    """The user's metric by its name and a hash of its text; nothing of one of igap's."""
    if metric.name != "custom":
        return {}
    return {"metric/function": str(metric.function).strip(), "metric/source": source_digest(metric)}


def study_name(study: PlannedStudy, storage: Any) -> str:
    """The study's name in the storage: a file has one study, whatever its folder is called now; servers have many."""
    if study.config.search.storage.kind in ("sqlite", "journal"):
        return find_only_study(storage) or study.folder.name
    return str(study.place)


def explore(session: SearchSession, config: SearchConfig, on_progress: OnProgress | None = None) -> None:
    """Add the trials that the config asks for and the study does not have yet."""
    asked = config.search
    session.explore(asked.until, asked.sampler, asked.batch, asked.control, asked.worker, on_progress)


def run_worker(config: SearchConfig, threads: int | None = None, parent: int | None = None) -> None:
    """Add one worker's trials, without a validation, until the study has all of them or `parent` has ended.

    Args:
        config: a search of one component.
        threads: torch's threads in this process; None: as they are.
        parent: the process that started this one, by its id; None: nobody is looked for.

    Raises:
        InputError: an invalid search, or a storage that cannot be opened.
        OSError: a storage that fails later.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    (study,), _ = plan_studies([config])
    study.folder.mkdir(parents=True, exist_ok=True)
    storage = check_storage(study)
    model = cached.cached_model(config.model, config.device, study.checkpoint)
    with borrow(model):
        on_progress = None if parent is None else partial(_stop_if_orphaned, parent)
        explore(open_session(study, model, storage), config, on_progress)


def _run_child_worker(config: SearchConfig, threads: int, parent: int) -> None:
    """Run a worker of this command: an error is one line in the log, and the command makes the missing trials."""
    try:
        run_worker(config, threads, parent)
    except (InputError, OSError, MemoryError) as error:
        log.error("worker %d: %s", config.search.worker, reason_of(error))
        sys.exit(1)


def _stop_if_orphaned(parent: int, progress: Progress) -> None:  # noqa: ARG001 - the interface of OnProgress
    """End this process after its batch if the one that started it has ended."""
    if os.getppid() != parent:
        sys.exit(1)


def stop_workers(children: Sequence[BaseProcess]) -> None:
    """End these processes, and wait until they have ended."""
    for child in children:
        child.terminate()
        child.join()


def start_workers(config: SearchConfig) -> list[BaseProcess]:
    """Start the other processes of search.workers; none for one worker."""
    n = config.search.workers
    if n == 1:
        return []
    threads = max(1, (os.cpu_count() or 1) // n)
    torch.set_num_threads(threads)
    children: list[BaseProcess] = []
    # Ctrl-C reaches all processes of a terminal; the children leave the report to this one, which ends them.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for worker in range(1, n):
            own_search = config.search.model_copy(update={"worker": worker, "workers": 1})
            own = config.model_copy(update={"search": own_search})
            child = _CONTEXT.Process(target=_run_child_worker, args=(own, threads, os.getpid()), daemon=True)
            child.start()
            children.append(child)
    finally:
        signal.signal(signal.SIGINT, handler)
    return children
