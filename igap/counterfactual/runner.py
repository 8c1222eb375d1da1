"""Searches from their configs: explored, written to disk, shown, logged."""

import logging
import time
from collections.abc import Sequence
from functools import partial

from rich.console import Console

from igap import pipeline
from igap.components import PLACES, SITES
from igap.config import TEXTS, BaselineConfig, RunConfig, TrackingConfig
from igap.console import show_stage
from igap.counterfactual.atlas import run as atlas
from igap.counterfactual.atlas.atlas import make_atlas
from igap.counterfactual.config import SearchConfig
from igap.counterfactual.objective.errors import find_estimator
from igap.counterfactual.output import scan, terminal
from igap.counterfactual.output.note import describe_in_markdown
from igap.counterfactual.output.write import write
from igap.counterfactual.plan import PlannedStudy, describe, locate
from igap.counterfactual.search import SearchResult, explore_and_validate
from igap.counterfactual.trials import dashboard
from igap.counterfactual.trials.study import TrialStore
from igap.counterfactual.workers import check_storage, explore, open_session, start_workers, stop_workers
from igap.engine.activations import borrow
from igap.errors import InputError
from igap.errors.failures import reason_of
from igap.models import cached
from igap.output import disk
from igap.output.tracking import places, wandb_run
from igap.storage import atomic
from igap.storage.finished import failed_findings, failures_of, read_run

INTERRUPTED = 130
"""The exit code of a search that Ctrl-C has ended."""

RUNS = "runs"
"""In a search's folder: the full runs of its best pairs, named by their keys."""

log = logging.getLogger("igap")


def run_studies(
    studies: Sequence[PlannedStudy],
    defaults: RunConfig | None,
    command: str,
    out: Console,
    progress: Console,
    *,
    interrupted: bool = False,
) -> int:
    """Run the studies one after another: trials, validation, files, W&B, and a full run of each best pair.

    Args:
        studies: as planned, at least one.
        defaults: settings of the run of the best pair; the model and the prompts are the search's. None: no such run.
        command: what was typed, as the studies' notes have it.
        out: for results.
        progress: for progress and stages.
        interrupted: whether Ctrl-C has ended this command's workers already; then no trials are added, and what
            there is is reported.

    Returns:
        The exit code: 0; 1: something failed; 130: interrupted.

    Raises:
        InputError: the only study is invalid.
        OSError: its storage or the disk fails.
    """
    atlas.check_place(studies)
    code, results = 0, list[tuple[str, SearchResult]]()
    tracking, message = wandb_run.resolve_mode(studies[0].config.tracking)
    if message:
        out.print(message, markup=False)
    if studies[0].config.atlas == "shared":
        return atlas.run_together(studies, command, tracking, out, progress)
    for study in studies:
        atomic.check_writable(study.folder)
    for number, study in enumerate(studies, start=1):
        if len(studies) > 1:
            out.print(f"\n{number}/{len(studies)}  {describe(study)}", markup=False, soft_wrap=True)
        try:
            result, trials = _run_study(study, progress, interrupted=interrupted)
        except (InputError, OSError) as error:
            if len(studies) == 1:
                raise
            log.error("%s: %s", study.config.head, reason_of(error))
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
        terminal.show(out, result, study.config.head, brief=len(studies) > 1)
        for reason in [*(f"{name}: {why}" for name, why in failures.items()), *filter(None, [unwritten])]:
            log.error("%s: %s", study.config.head, reason)
            code = 1
        if unwritten:
            continue
        try:
            _write_note(result, study, trials, command)
        except (InputError, OSError) as error:
            log.error("%s: %s", study.config.head, reason_of(error))
            code = 1
        if defaults is not None and study.config.full_run and not result.interrupted:
            code = max(code, _run_best_pair(result, study, defaults, tracking, progress))
        for line in wandb_run.log_or_warn(study.folder, tracking, f"the search of {study.config.head}"):
            out.print(line, markup=False, soft_wrap=True)
        terminal.show_paths(out, study.folder)
        asked = study.config.search
        if asked.dashboard:
            shows = dashboard.dashboard_command(asked.storage.kind, study.folder)
            out.print(f"in Optuna Dashboard: {shows}", markup=False, highlight=False, soft_wrap=True)
        results.append((study.config.head, result))
        if result.interrupted:
            out.print(f"interrupted at {len(result.trials)} trials; the same command goes on", markup=False)
            code = INTERRUPTED
            if not interrupted:
                break
    if len(results) > 1 and _of_several_heads(studies):
        folder = studies[0].folder.parent
        terminal.show_scan(out, results)  # also where it cannot be written
        try:
            scan.write(results, folder)
        except Exception as error:
            log.error("scan: %s", reason_of(error))
            return max(code, 1)
        out.print(f"written to {folder}: scan.csv, matrix.csv, plots/", markup=False, soft_wrap=True)
        if studies[0].config.atlas and not interrupted and code == 0:
            key = atlas.key_of([result.id for _, result in results])
            return atlas.write_atlas(partial(make_atlas, results), key, studies[0].config, folder, tracking, out)
    return code


def _of_several_heads(studies: Sequence[PlannedStudy]) -> bool:
    """Whether the studies are one config's of several heads, in a folder of their own."""
    asked = [study.config.model_copy(update={"head": "", "name": None, "search": None}) for study in studies]
    return len({study.folder.parent for study in studies}) == 1 and all(each == asked[0] for each in asked)


def _write_note(result: SearchResult, study: PlannedStudy, trials: TrialStore, command: str) -> None:
    """The report as the note of the study, with its pictures where they are asked for. Raises InputError or OSError."""
    if study.config.search.storage.kind == "memory":
        return
    pictures = None
    if study.config.search.dashboard:
        pictures = dashboard.save_pictures(trials, study.folder, sorted((study.folder / "plots").glob("*.png")))
    dashboard.save_note(trials, describe_in_markdown(result, study.config, command, pictures))


def _run_study(study: PlannedStudy, progress: Console, *, interrupted: bool) -> tuple[SearchResult, TrialStore]:
    """The result of a study that has all its trials, and these; what other workers have not made is made here.

    `interrupted`: the result of the trials that there are.
    """
    config, storage = study.config, check_storage(study)  # refused before the model loads
    if interrupted:
        config = config.model_copy(update={"search": config.search.model_copy(update={"until": 0})})
    children = [] if interrupted else start_workers(config)
    since = time.perf_counter()
    try:
        with show_stage(progress, "load model"):
            model = cached.cached_model(config.model, config.device, study.checkpoint)
        with borrow(model):
            session = open_session(study, model, storage)

            def make_trials() -> None:
                try:
                    with terminal.progress_bar(progress) as on_progress:
                        explore(session, config, on_progress)
                        for child in children:  # a batch in flight
                            child.join()
                        explore(session, config, on_progress)
                except KeyboardInterrupt:
                    stop_workers(children)  # the validation is of the trials that there are now
                    raise

            validating = show_stage(progress, "validate")
            result = explore_and_validate(
                session,
                make_trials,
                since,
                interrupted=interrupted,
                validating=validating,
                optimality=config.optimality,
                estimating=show_stage(progress, "estimate"),
                heldout_heads=bool(config.atlas),
            )
            return result, session.trials
    finally:
        stop_workers(children)


def _run_best_pair(
    result: SearchResult, study: PlannedStudy, defaults: RunConfig, tracking: TrackingConfig, progress: Console
) -> int:
    """Run `igap run` on the best pair, in a folder of its own, unless it is there already; return the exit code."""
    config, texts = study.config, dict(zip(TEXTS, result.best.cells, strict=True))
    prompts = config.prompts.model_copy(update=texts)
    settings = {
        "model": config.model, "prompts": prompts, "tracking": config.tracking, "device": config.device,
        "memory_gib": config.memory_gib, "metric": config.metric, **_show(config),
    }  # fmt: skip
    asked = defaults.model_copy(update=settings)
    place = study.folder / RUNS
    try:
        place /= pipeline.check(asked).key
        before = read_run(place)[0]
        if before is not None and not failed_findings(before.summary):
            return 0
        atomic.check_writable(place / "plots")
        run_result = pipeline.run(asked, lambda name: show_stage(progress, name))
        disk.unfinish(place)
        (place / places.MARK).unlink(missing_ok=True)
        failures = failures_of(disk.write(run_result, place))
    except Exception as error:
        log.error("the run of the best pair, in %s, failed: %s", place, reason_of(error))
        return 1
    for name, reason in failures.items():
        log.error("of the run of the best pair, in %s, %s failed: %s", place, name, reason)
    wandb_run.log_or_warn(place, tracking, "the run of the best pair")
    return 1 if failures else 0


def _show(config: SearchConfig) -> dict[str, object]:
    """The settings with which a run shows the target: its sites, its positions and, where a run can, its set."""
    header = cached.header_of(config.model.name, config.model.revision)
    target, examines = locate(config, header), "error" in config.objective
    usual = SITES if header.neurons_reason is None else ("heads",)
    sites = tuple(site for site in PLACES if site in (*usual, *target.sites))
    shown: dict[str, object] = {"sites": "both" if sites == SITES else " ".join(sites)}
    if target.span is not None:
        shown["positions"] = target.positions
    if examines:
        estimator = find_estimator(config.estimator)
        if estimator.baseline != "corrupted":
            shown["baseline"] = BaselineConfig(kind=estimator.baseline)
        if estimator.method.optional:
            shown["methods"] = estimator.method.name
    elif target.single is None and target.span in (None, "last", "diff"):
        shown["analyses"] = {"sets": {"components": target.component}}
    return shown
