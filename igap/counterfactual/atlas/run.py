"""The atlas of a command's searches: written, shown and logged; and the one search for all heads, which ends in one."""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from igap.config import TrackingConfig
from igap.console import show_stage
from igap.counterfactual.atlas import write
from igap.counterfactual.atlas.atlas import Atlas
from igap.counterfactual.atlas.shared import open_trials, search_together
from igap.counterfactual.config import SearchConfig
from igap.counterfactual.output import terminal
from igap.counterfactual.output.note import fence_block
from igap.counterfactual.plan import PlannedStudy, locate
from igap.counterfactual.samplers.registry import samplers_for
from igap.counterfactual.trials import dashboard
from igap.counterfactual.trials.storages import open_storage
from igap.counterfactual.trials.study import TrialStore
from igap.counterfactual.workers import check_storage, open_session, study_name
from igap.engine.activations import borrow
from igap.errors import InputError
from igap.errors.failures import reason_of
from igap.models import cached
from igap.output.tracking import wandb_run
from igap.storage import atomic
from igap.storage.finished import SUMMARIES, FinishedRun, flatten, read_run
from igap.storage.studies import STUDY_FILES

_ASIDE = ("output", "tracking.", "device", "name")
"""How the names of settings begin that no number depends on."""

log = logging.getLogger("igap")


def check_place(studies: Sequence[PlannedStudy]) -> None:
    """Raises InputError where the searches' atlas would take the place of one of another kind of search."""
    folder, asked = studies[0].folder.parent / write.FOLDER, studies[0].config
    has_study = any(os.path.lexists(folder / name) for name in STUDY_FILES.values())
    file = STUDY_FILES.get(asked.search.storage.kind)
    if asked.atlas is True and has_study:
        raise _is_taken(folder)
    if asked.atlas == "shared" and file and _read_finished(folder) and not os.path.lexists(folder / file):
        raise _is_taken(folder)


def run_together(
    studies: Sequence[PlannedStudy], command: str, tracking: TrackingConfig, out: Console, progress: Console
) -> int:
    """One search for the heads of all studies, and its atlas; the exit code. Raises InputError or OSError."""
    study = replace(studies[0], folder=studies[0].folder.parent / write.FOLDER)
    config, asked = study.config, study.config.search
    atomic.check_writable(study.folder.parent)
    storage, since = check_storage(study), time.perf_counter()
    with show_stage(progress, "load model"):
        model = cached.cached_model(config.model, config.device, study.checkpoint)
    with borrow(model):
        session = open_session(study, model, open_storage("memory", Path()))
        header = cached.header_of(config.model.name, config.model.revision)
        members = tuple(member for each in studies for member in locate(each.config, header).members)
        target = replace(session.target, members=members)
        study.folder.mkdir(exist_ok=True)
        storage = storage or open_storage(asked.storage.kind, study.folder, asked.storage.address)
        trials = open_trials(session, target, storage, study_name(study, storage))
        before = _read_finished(study.folder)
        same = before is not None and _settings(dict(before.settings)) == _settings(dict(flatten(_as_json(config))))
        if before and before.key != trials.id and not (same and asked.storage.kind == "memory"):
            raise _is_taken(study.folder)
        n = len(trials.all())
        if same and before and before.key == trials.id and before.summary.get("atlas/n_tried") == n >= asked.until:
            out.print(f"{n:,} prompts were tried for {len(members)} heads before", highlight=False)
            return _show(study.folder, tracking, out)
        with terminal.progress_bar(progress) as on_progress:
            sampler = samplers_for(1)[0] if asked.sampler == "auto" else asked.sampler
            made = search_together(
                session, target, asked.until, sampler, asked.batch, asked.control, on_progress, trials=trials
            )
    out.print(
        f"{made.n_tried:,} prompts tried for {len(members)} heads; this time {time.perf_counter() - since:.0f} s, "
        f"{made.cost:,.0f} forward equivalents",
        highlight=False,
    )
    code = write_atlas(lambda: made, trials.id, config, study.folder.parent, tracking, out)
    try:
        _write_note(made, study, trials, command, out)
    except (InputError, OSError) as error:
        log.error("atlas: %s", reason_of(error))
        code = 1
    if made.interrupted:
        out.print(f"interrupted at {made.n_tried} prompts; the same command goes on", markup=False)
    return 130 if made.interrupted else code


def key_of(made_of: Sequence[str]) -> str:
    """The key of an atlas of searches, by their ids."""
    return hashlib.sha256(" ".join(made_of).encode()).hexdigest()[:12]


def write_atlas(
    make: Callable[[], Atlas], key: str, config: SearchConfig, folder: Path, tracking: TrackingConfig, out: Console
) -> int:
    """The atlas, written into `atlas/` in the folder, shown and logged; the exit code."""
    try:
        made = make()
        write.write(made, config.model_copy(update={"head": "all"}), folder, key)
    except Exception as error:
        log.error("atlas: %s", reason_of(error))
        return 1
    out.print("", *made.sentences(), sep="\n", markup=False, highlight=False, soft_wrap=True)
    return _show(folder / write.FOLDER, tracking, out)


def _show(folder: Path, tracking: TrackingConfig, out: Console) -> int:
    for line in wandb_run.log_or_warn(folder, tracking, "the atlas"):
        out.print(line, markup=False, soft_wrap=True)
    out.print(f"written to {folder}: atlas.html, heads.csv, prompts.csv", markup=False, soft_wrap=True)
    return 0


def _write_note(made: Atlas, study: PlannedStudy, trials: TrialStore, command: str, out: Console) -> None:
    asked = study.config.search
    if asked.storage.kind == "memory":
        return
    pictures = {}
    if asked.dashboard:
        pictures = dashboard.save_pictures(trials, study.folder, [study.folder / "plots" / "atlas.png"])
        shows = dashboard.dashboard_command(asked.storage.kind, study.folder)
        out.print(f"in Optuna Dashboard: {shows}", markup=False, highlight=False, soft_wrap=True)
    shown = [f"![{name}]({address})" for name, address in pictures.items()]
    title = f"# Atlas of {len(made.heads)} heads: {made.n_tried} prompts tried"
    parts = [title, fence_block("\n".join(made.sentences())), fence_block(command), *shown]
    dashboard.save_note(trials, "\n\n".join(parts) + "\n")


def _as_json(config: SearchConfig) -> dict[str, object]:
    dumped: dict[str, object] = config.model_copy(update={"head": "all"}).model_dump(mode="json")
    return dumped


def _settings(settings: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in settings.items() if not name.startswith(_ASIDE)}


def _read_finished(folder: Path) -> FinishedRun | None:
    """The atlas that is there; None where there is none that can be read."""
    return read_run(folder)[0] if os.path.lexists(folder / SUMMARIES[2]) else None


def _is_taken(folder: Path) -> InputError:
    return InputError(
        f"name: got one whose folder {folder} has the atlas of another search, wanted one without. Set name=NAME."
    )
