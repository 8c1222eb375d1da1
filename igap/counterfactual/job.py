"""Searches from their configs: checked before the model loads, explored, written to disk, shown, logged."""

import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformer_lens.model_bridge import TransformerBridge

from igap import disk, pipeline, records, tracking
from igap.config import TEXTS, RunConfig, TrackingConfig
from igap.counterfactual import remembered, report, scan
from igap.counterfactual.config import SearchConfig
from igap.counterfactual.exploration import OnProgress, Progress, Search, prepare
from igap.counterfactual.objectives import Objective
from igap.counterfactual.records import write
from igap.counterfactual.search import SearchResult, concluded
from igap.counterfactual.storages import only_study, storage_of
from igap.errors import InputError
from igap.failures import reason_of
from igap.finished import failures_of, lost_findings, read
from igap.memory import most_processes
from igap.models.fingerprint import fingerprint
from igap.models.load import Header, check_sites, read_header
from igap.prompts import PromptPair
from igap.runs import frozen
from igap.sites import Site, component_names, locate

INTERRUPTED = 130
"""The exit code of a search that Ctrl-C has ended."""

RUNS = "runs"
"""In a search's folder: the full runs of its best pairs, named by their keys."""

log = logging.getLogger("igap")


@dataclass(frozen=True)
class Study:
    """One search: a config with one component, and what was found out about it before the weights load."""

    config: SearchConfig
    folder: Path
    checkpoint: str
    size: int
    """Candidates of its space."""

    @property
    def place(self) -> Path:
        """Its folder, in the folder of searches."""
        return self.folder.relative_to(self.config.output)


def planned(searches: Sequence[SearchConfig]) -> tuple[list[Study], list[SearchConfig]]:
    """The studies, and every worker asked for, in order; a worker's config is one of a single component.

    Raises InputError on the first search that cannot be, before anything is computed.
    """
    studies: dict[Path, Study] = {}
    workers: list[SearchConfig] = []
    for search in searches:
        header = read_header(search.model.name, search.model.revision)
        for config, folder in _single(search, header):
            study = Study(config, folder, fingerprint(header.folder), _check(config, header))
            asked = config.search.model_dump(exclude={"worker"})
            known = studies.setdefault(folder, study)
            if known.config.model_copy(update={"search": None}) != config.model_copy(update={"search": None}) or (
                known.config.search.model_dump(exclude={"worker"}) != asked
            ):
                raise InputError(
                    f"name: got one folder ({folder}) for two searches that differ. Write several heads as one "
                    "(head=0.6,1.2), sweep search.worker only, or give each search a name."
                )
            workers.append(config)
    asked_for, most = max(config.search.workers for config in workers), most_processes()
    if asked_for > most:
        raise InputError(
            f"search.workers: got {asked_for}, wanted at most {most}, four a core: each is a process with a model of "
            "its own. Use fewer, or search.worker='range(N)' with a cluster's launcher."
        )
    shared = [config.search.storage.kind for config in workers if config.search.workers > 1]
    if "memory" in shared or (len(workers) > len(studies) and workers[0].search.storage.kind == "memory"):
        raise InputError(
            "search.storage: got memory, which several workers cannot share. Use search/storage=sqlite, or journal."
        )
    return list(studies.values()), workers


def described(study: Study) -> str:
    """A study in a line, before it runs."""
    config = study.config
    rest = "brute force" if study.size <= config.search.until else config.search.sampler
    return (
        f"{config.head}: {' and '.join(config.objective)}, {study.size:.4g} candidates, {config.search.until} trials "
        f"({rest}), {config.clean.n} clean prompts, {config.heldout.n} held out, in {study.folder}"
    )


def run(
    studies: Sequence[Study], defaults: RunConfig, out: Console, progress: Console, *, interrupted: bool = False
) -> int:
    """The exit code: 0, 1 when something failed, 130 when interrupted, or when it was before (no further trials then).

    `defaults` are the settings of the run of the best pair, beside model and prompts. Raises InputError where no study
    can be.
    """
    code, results = 0, list[tuple[str, SearchResult]]()
    settled, said = tracking.resolve_mode(studies[0].config.tracking)
    if said:
        out.print(said, markup=False)
    for study in studies:
        disk.check_writable(study.folder)
    for number, study in enumerate(studies, start=1):
        if len(studies) > 1:
            out.print(f"\n{number}/{len(studies)}  {described(study)}", markup=False, soft_wrap=True)
        try:
            result = _one(study, progress, interrupted=interrupted)
        except InputError as error:
            if len(studies) == 1:
                raise
            log.error("%s: %s", study.config.head, error)
            code = 1
            continue
        except KeyboardInterrupt:  # before the first trial of this one
            if not results:
                raise
            code = INTERRUPTED
            break
        failures, unwritten = dict[str, str](), None
        try:
            failures = failures_of(write(result, study.config, study.folder))
        except OSError as error:  # what was found is shown all the same
            unwritten = reason_of(error)
        report.show(out, result, study.config.head, brief=len(studies) > 1)
        for reason in [*(f"{name}: {why}" for name, why in failures.items()), *filter(None, [unwritten])]:
            log.error("%s: %s", study.config.head, reason)
            code = 1
        if unwritten:
            continue
        if study.config.full_run and not result.interrupted:
            code = max(code, _run_of_the_best(result, study, defaults, settled, progress))
        tracked = _log(study.folder, settled)
        out.print(f"W&B run: {tracked or settled.mode}", markup=False, soft_wrap=True)
        report.show_paths(out, study.folder)
        results.append((study.config.head, result))
        if result.interrupted:
            out.print(f"interrupted at {len(result.tried)} trials; the same command goes on", markup=False)
            code = INTERRUPTED
            if not interrupted:
                break
    if len(results) > 1 and _of_several_heads(studies):
        scan.write(results, studies[0].folder.parent)
        report.show_scan(out, results, studies[0].folder.parent)
    return code


def _of_several_heads(studies: Sequence[Study]) -> bool:
    """Whether the studies are one question of several heads, in a folder of their own."""
    asked = [study.config.model_copy(update={"head": "", "name": None, "search": None}) for study in studies]
    return len({study.folder.parent for study in studies}) == 1 and all(one == asked[0] for one in asked)


def explore(config: SearchConfig, threads: int | None = None, parent: int | None = None) -> None:
    """One worker's trials, without a certificate: until the study has as many as it should, or `parent` has ended.

    Raises InputError.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    (study,), _ = planned([config])
    study.folder.mkdir(parents=True, exist_ok=True)
    storage = _storage(study)
    model = pipeline.loaded(config.model, config.device, study.checkpoint)
    with frozen(model):
        _explored(_opened(study, model, storage), config, None if parent is None else partial(_go_on, parent))


def _explore_beside(config: SearchConfig, threads: int, parent: int) -> None:
    """A worker of this command: what ends it early is one line, and the command does its part."""
    try:
        explore(config, threads, parent)
    except (InputError, OSError, MemoryError) as error:
        log.error("worker %d: %s", config.search.worker, reason_of(error))
        sys.exit(1)


def _go_on(parent: int, progress: Progress) -> None:  # noqa: ARG001 - the interface of OnProgress
    """Ends this process with its batch done where the one that started it is no more."""
    if os.getppid() != parent:
        sys.exit(1)


def _one(study: Study, progress: Console, *, interrupted: bool) -> SearchResult:
    """A study's result, once it has all its trials; what others have left undone is done here.

    `interrupted`, a result of the trials that there are.
    """
    config, storage = study.config, _storage(study)  # refused before the model loads
    children = [] if interrupted else _workers(config)
    since = time.perf_counter()
    try:
        with report.stage(progress, "load model"):
            model = pipeline.loaded(config.model, config.device, study.checkpoint)
        with frozen(model):
            opened = _opened(study, model, storage)
            if interrupted:
                config = config.model_copy(update={"search": config.search.model_copy(update={"until": 0})})
            try:
                with report.searching(progress) as tell:
                    _explored(opened, config, tell)
                    for child in children:  # a batch in flight
                        child.join()
                    _explored(opened, config, tell)
            except KeyboardInterrupt:
                interrupted = True
                _end(children)  # the report is of what there is now
            if interrupted and not opened.trials.tried():
                raise KeyboardInterrupt
            with report.stage(progress, "certificate"):
                return concluded(opened, since, interrupted=interrupted)
    finally:
        _end(children)


def _end(children: "Sequence[multiprocessing.process.BaseProcess]") -> None:
    for child in children:
        child.terminate()
        child.join()


def _workers(config: SearchConfig) -> "list[multiprocessing.process.BaseProcess]":
    """The other processes of search.workers, at work."""
    n = config.search.workers
    if n == 1:
        return []
    threads = max(1, (os.cpu_count() or 1) // n)
    torch.set_num_threads(threads)
    children: list[multiprocessing.process.BaseProcess] = []
    # Ctrl-C reaches all processes of a terminal; the children leave the report to this one, which ends them.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for worker in range(1, n):
            own_search = config.search.model_copy(update={"worker": worker, "workers": 1})
            own = config.model_copy(update={"search": own_search})
            child = multiprocessing.get_context("spawn").Process(
                target=_explore_beside, args=(own, threads, os.getpid()), daemon=True
            )
            child.start()
            children.append(child)
    finally:
        signal.signal(signal.SIGINT, handler)
    return children


def _storage(study: Study) -> Any:
    asked = study.config.search.storage
    return storage_of(asked.kind, study.folder, asked.address)


def _opened(study: Study, model: TransformerBridge, storage: Any) -> Search:
    config = study.config
    return Search(
        model,
        _pair(config),
        config.head,
        Objective(config.objective, config.sign, config.aggregate, config.penalty, config.constraints),
        space=config.search.space,
        clean_n=config.clean.n,
        heldout_n=config.heldout.n,
        seed=config.seed,
        storage=storage,
        name=_name(study, storage),
        identity={
            "model": study.checkpoint,
            "processing": config.model.processing,
            "dtype": config.model.dtype,
        },
        remember=Path(config.output) / remembered.FILE,
        memory_gib=config.memory_gib,
    )


def _name(study: Study, storage: Any) -> str:
    """Of the study in the storage: a file has one, whatever its folder is called now; others have many searches'."""
    if study.config.search.storage.kind in ("sqlite", "journal"):
        return only_study(storage) or study.folder.name
    return str(study.place)


def _explored(opened: Search, config: SearchConfig, tell: OnProgress | None) -> None:
    asked = config.search
    opened.explore(asked.until, asked.sampler, asked.batch, asked.control, asked.worker, tell)


def _single(config: SearchConfig, header: Header) -> list[tuple[SearchConfig, Path]]:
    """The config for each of its components, with the folder of its search."""
    output = Path(config.output)
    names = config.head.split()
    if names == ["all"]:
        assert header.n_layers is not None
        assert header.n_heads is not None
        names = component_names("heads", header.n_layers, header.n_heads)
    if len(names) == 1:
        return [(config, output / config.folder_name)]
    parent = output / (config.name or f"heads-{'-'.join(config.objective)}")
    singles = [config.model_copy(update={"head": name, "name": None}) for name in names]
    return [(single, parent / single.folder_name) for single in singles]


def _check(config: SearchConfig, header: Header) -> int:
    """The size of the space, once all is refused that can be before the weights load. Raises InputError."""
    pipeline.resolve_device(config.device)
    widths: dict[Site, int | None] = {"heads": header.n_heads, "neurons": header.n_neurons}
    site, _, _ = locate(config.head, header.n_layers, widths, item="head")
    check_sites(header, [site], config.model.name)
    refused = None
    # Whether the model wants a BOS token, which shifts positions, only the model itself knows.
    for prepend_bos in (True, False) if header.tokenizer.bos_token_id is not None else (False,):
        try:
            return prepare(
                _pair(config),
                header.tokenizer,
                space=config.search.space,
                clean_n=config.clean.n,
                heldout_n=config.heldout.n,
                seed=config.seed,
                prepend_bos=prepend_bos,
            ).space.size
        except InputError as error:
            refused = refused or error
    assert refused is not None
    raise refused


def _run_of_the_best(
    result: SearchResult, study: Study, defaults: RunConfig, settled: TrackingConfig, progress: Console
) -> int:
    """The exit code of the full run of the best pair, in a folder of its own, unless it is there already."""
    config, texts = study.config, dict(zip(TEXTS, result.best.texts, strict=True))
    prompts = config.prompts.model_copy(update=texts)
    settings = {
        "model": config.model, "prompts": prompts, "tracking": config.tracking, "device": config.device,
        "memory_gib": config.memory_gib,
    }  # fmt: skip
    if read_header(config.model.name, config.model.revision).neurons_reason is not None:
        settings["sites"] = "heads"
    asked = defaults.model_copy(update=settings)
    place = study.folder / RUNS / pipeline.check(asked).key
    before = read(place)[0]
    if before is not None and not lost_findings(before.summary):
        return 0
    try:
        disk.check_writable(place / "plots")
        found = pipeline.run(asked, lambda name: report.stage(progress, name))
        records.unfinish(place)
        (place / tracking.MARK).unlink(missing_ok=True)
        failures = failures_of(records.write(found, place))
    except Exception as error:
        log.error("the run of the best pair, in %s, failed: %s", place, reason_of(error))
        return 1
    for name, reason in failures.items():
        log.error("of the run of the best pair, in %s, %s failed: %s", place, name, reason)
    _log(place, settled)
    return 1 if failures else 0


def _log(folder: Path, settled: TrackingConfig) -> str | None:
    """Where W&B keeps what is in the folder; what W&B does costs no result."""
    try:
        return tracking.log(folder, settled)
    except Exception as error:
        log.warning("W&B did not take it (%s: %s); everything is in %s", type(error).__name__, error, folder)
        return None


def _pair(config: SearchConfig) -> PromptPair:
    prompts = config.prompts
    clean, corrupted, answer, distractor = (str(getattr(prompts, name)) for name in TEXTS)
    return PromptPair(clean, corrupted, answer, distractor, prompts.min_gap, bos=prompts.bos)
