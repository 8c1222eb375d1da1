"""`igap run -m`, `igap sweep NAME` and `igap check`: plan all jobs first, then launch those that are not done."""

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igap.cli import settings
from igap.cli.compose import compose_jobs, compose_multirun
from igap.cli.settings import sweep_names
from igap.cli.texts import kind_of, quote_override
from igap.errors import InputError, did_you_mean, one_line
from igap.storage.finished import FinishedRun, find_runs

if TYPE_CHECKING:
    from igap.cli.launchers import Launcher
    from igap.sweep.plan import Job, Plan


_GRID = "hydra.sweeper.params"
"""Where a file of sweeps/ has its grid."""


@dataclass(frozen=True)
class MultirunRequest:
    """What the command line asks for."""

    overrides: tuple[str, ...]
    """As Hydra takes them, their texts quoted."""
    config_name: str | None = None
    """The config in place of conf/config.yaml."""
    config_dir: str | None = None
    """A folder with further config groups."""
    sweep: str | None = None
    """The name of the file in sweeps/ whose settings lie below the overrides."""
    single: bool = False
    """Whether it is one run, in a folder of its own."""


def sweep_request(name: str, overrides: Sequence[str]) -> MultirunRequest:
    """The multirun over the grid of sweeps/NAME.yaml.

    Args:
        name: the file's name, without suffix.
        overrides: as they were typed; they replace keys of the file's grid.

    Raises:
        InputError: on an unknown name, or a file without a grid.
    """
    import yaml  # type: ignore[import-untyped]
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    names = sweep_names()
    if name in sweep_names("search"):
        raise InputError(f"sweep: got {name!r}, which is a search, wanted a grid. Use igap search {name}.")
    if name not in names:
        raise InputError(f"sweep: got {name!r}, wanted one of {', '.join(names)}.{did_you_mean(name, names)}")
    file = settings.SWEEPS / f"{name}.yaml"
    try:
        section = OmegaConf.select(OmegaConf.load(file), _GRID)
    except (OmegaConfBaseException, yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"sweep: got {file}, which is no YAML ({one_line(error)}). Correct it.") from error
    grid = OmegaConf.to_container(section) if OmegaConf.is_dict(section) else None
    if not isinstance(grid, dict) or not grid:
        raise InputError(f"sweep: got {file}, without a grid, wanted KEY: VALUE,VALUE under hydra.sweeper.params.")
    written = OmegaConf.select(OmegaConf.create(yaml.load(file.read_text(encoding="utf-8"), _as_written())), _GRID)
    typed = OmegaConf.to_container(written)
    assert isinstance(typed, dict)
    given = {override.partition("=")[0].lstrip("+~") for override in overrides}
    texts = {str(key): values for key, values in typed.items()}
    lines = [_line(str(key), values, texts[str(key)]) for key, values in grid.items() if str(key) not in given]
    place = [] if "sweep" in given else [quote_override(f"sweep={name}")]
    return MultirunRequest((*place, *lines, *map(quote_override, overrides)), sweep=name)


@functools.cache
def _as_written() -> Any:
    """A YAML loader that reads null and merges, and every other scalar as the text that it is: 007, 1e5, yes."""
    import yaml

    known = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return type("AsWritten", (yaml.SafeLoader,), {"yaml_implicit_resolvers": known})


def _line(key: str, values: object, typed: object) -> str:
    """A line of the grid as an override; a text's values as they stand in the file, 007 and not 7."""
    if kind_of(key) is None or values is None:
        return f"{key}={_values(key, values)}"
    if isinstance(typed, list):
        texts = ["null" if text is None else quote_override(f"{key}={text}").partition("=")[2] for text in typed]
        return f"{key}={','.join(texts)}"
    return quote_override(f"{key}={_values(key, typed)}", separated=True)


def _values(key: object, values: object) -> str:
    """A value of the grid as the command line has it."""
    if isinstance(values, dict):
        raise InputError(
            f"{key}: got a mapping in the sweep's grid, wanted VALUE,VALUE. Write {key}.NAME: VALUE,VALUE."
        )
    if isinstance(values, list):
        return ",".join(_values(key, value) for value in values)
    if values is None:
        return "null"
    return str(values).lower() if isinstance(values, bool) else str(values)


def check_jobs(request: MultirunRequest) -> None:
    """Shows the plan of a multirun, or of one run; computes nothing and writes nothing.

    Raises InputError when a job is invalid (without keep_going=true).
    """
    _make_plan(request)


def run_jobs(request: MultirunRequest) -> int:
    """Runs every job of a multirun that is not done, and shows how all of them ended.

    Args:
        request: the grid.

    Returns:
        The exit code: 0 where all jobs are finished, 1 where some failed.

    Raises:
        InputError: before the first job, when one is invalid (without keep_going=true).
    """
    from igap.cli.launch import launch
    from igap.console import terminal_console
    from igap.output.tracking import places, wandb_run
    from igap.storage import atomic
    from igap.sweep.folder import PlannedJob
    from igap.sweep.terminal import show_plan_end

    plan, launcher = _make_plan(request)
    out = terminal_console()
    atomic.check_writable(plan.folder.path)
    message = plan.folder.write_plan([PlannedJob(job.key, job.distinct_overrides) for job in plan.jobs])
    if message:
        out.print(message, markup=False, highlight=False)
    modes: dict[str, str] = {}
    for mode, wanted in {job.tracking.mode: job.tracking for job in plan.to_do}.items():  # once for all jobs
        resolved, message = wandb_run.resolve_mode(wanted)
        modes[mode] = resolved.mode
        if message:
            out.print(message, markup=False)
    plan = replace(plan, jobs=tuple(_with_mode(job, modes) for job in plan.jobs))
    stale = [job.key for job in plan.to_do if plan.statuses[job.key].state == "stale"]
    n_aside = sum(plan.folder.set_aside(key) is not None for key in stale)
    if n_aside:
        out.print(f"{n_aside} stale runs moved to {plan.folder.path / '.stale'} and done again", markup=False)
    reasons: dict[str, str] = {}
    try:
        if plan.to_do:
            reasons = launch(plan, launcher)
    finally:  # also when interrupted
        show_plan_end(out, plan, reasons)
        done = [job for job in plan.jobs if plan.folder.status(job.key).run and job.tracking.mode != "disabled"]
        n_lost = sum(places.find_logged_run(plan.folder.run(job.key)) is None for job in done)
        if n_lost:
            out.print(f"W&B lacks {n_lost} of the finished runs: igap sync {plan.folder.path}", markup=False)
    return 1 if reasons else 0


def _with_mode(job: "Job", modes: Mapping[str, str]) -> "Job":
    """The job with its tracking mode resolved."""
    mode = modes.get(job.tracking.mode, job.tracking.mode)
    return replace(job, tracking=job.tracking.model_copy(update={"mode": mode}))


def _make_plan(request: MultirunRequest) -> "tuple[Plan, Launcher]":
    """Plans the jobs and shows the plan. Raises InputError when a job is invalid (without keep_going=true)."""
    from rich.console import Console

    from igap.cli.launchers import launcher_of
    from igap.config import RunConfig, TrackingConfig
    from igap.console import show_stage, terminal_console
    from igap.output.tracking import wandb_run
    from igap.sweep.folder import SweepFolder
    from igap.sweep.plan import RejectedJob, draws_beside, estimate, plan
    from igap.sweep.terminal import show_plan
    from igap.sweep.worker import check

    about: Any = {"config_name": request.config_name, "config_dir": request.config_dir, "sweep": request.sweep}
    with show_stage(Console(stderr=True), "compose jobs", announced=False) as progress:
        composed = compose_jobs(request.overrides, **about, on_progress=progress)
    shared = [o for o in request.overrides if o.lstrip("+~").startswith(("hydra", "output=", "sweep="))]
    launcher = launcher_of(*compose_multirun(shared, *about.values()))

    trackings: list[TrackingConfig] = []

    def check_one(config: RunConfig) -> tuple[str, int]:
        checked = check(config)
        if config.tracking not in trackings:
            trackings.append(config.tracking)
            wandb_run.check(config.tracking)
        return checked.key, len(checked.pairs)

    folder = SweepFolder(Path(str(launcher.config.hydra.sweep.dir)))
    with show_stage(Console(stderr=True), "check jobs", announced=False) as progress:
        planned = plan(folder, composed, check_one, progress)
    keep_going = [job.config.keep_going for job in composed if not isinstance(job, RejectedJob)]
    if planned.rejected and not (keep_going and all(keep_going)):
        first = planned.rejected[0]
        if len(composed) == 1:
            raise InputError(first.reason)
        number = [job.overrides for job in composed].index(first.overrides) + 1
        raise InputError(
            f"job {number} of {len(composed)} ({' '.join(first.overrides)}): {first.reason} Invalid jobs: "
            f"{len(planned.rejected)} of {len(composed)}; keep_going=true drops them."
        )
    if not planned.jobs:
        raise InputError(f"sweep: none of its {len(composed)} jobs is valid. The first: {planned.rejected[0].reason}")
    runs: list[FinishedRun] = []
    if planned.to_do:
        with contextlib.suppress(InputError):  # nothing has run here yet
            runs, _ = find_runs([folder.path.parent])
    at_once = min(launcher.at_once, max(1, len(planned.to_do)))
    beside = launcher.in_this_process and draws_beside(planned.to_do)
    time_left = estimate(planned.to_do, runs, at_once, beside=beside)
    show_plan(terminal_console(), planned, time_left, single=request.single)
    return planned, launcher
