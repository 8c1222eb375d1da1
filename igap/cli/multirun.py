"""`igap run -m`, `igap sweep NAME` and `igap check`: plan all jobs first, then launch those that are not done."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igap.cli.compose import compose_jobs, compose_multirun, data_folder
from igap.cli.search import is_preset
from igap.cli.texts import kind_of, quote_text
from igap.errors import InputError, nearest, one_line
from igap.storage.finished import find

if TYPE_CHECKING:
    from igap.cli.launch import Launcher
    from igap.sweep.plan import Job, Plan


_GRID = "hydra.sweeper.params"
"""Where a file of sweeps/ has its grid."""


@dataclass(frozen=True)
class Asked:
    """A multirun as it was asked for."""

    overrides: tuple[str, ...]
    config_name: str | None = None
    config_dir: str | None = None
    sweep: str | None = None
    """The file of sweeps/ below the overrides."""
    single: bool = False
    """A run by itself, in a folder of its own."""


def sweep_names() -> list[str]:
    """The files of sweeps/, without suffix; searches are not among them."""
    return sorted(file.stem for file in data_folder("sweeps").glob("*.yaml") if not is_preset(file.stem))


def named(arguments: Sequence[str]) -> Asked:
    """What `igap sweep NAME [overrides]` asks for; overrides replace keys of the file's grid.

    Raises InputError on an unknown name, an option, or a file without a grid.
    """
    import yaml  # type: ignore[import-untyped]
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    name, *overrides = arguments
    options = [override for override in overrides if override.startswith("-")]
    if options:
        raise InputError(f"option: got {options[0]}, which a sweep, many jobs at once, does not have. Try igap run.")
    names = sweep_names()
    if name not in names:
        raise InputError(f"sweep: got {name!r}, wanted one of {', '.join(names)}.{nearest(name, names)}")
    file = data_folder("sweeps") / f"{name}.yaml"
    try:
        found = OmegaConf.select(OmegaConf.load(file), _GRID)
    except (OmegaConfBaseException, yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"sweep: got {file}, which is no YAML ({one_line(error)}). Correct it.") from error
    grid = OmegaConf.to_container(found) if OmegaConf.is_dict(found) else None
    if not isinstance(grid, dict) or not grid:
        raise InputError(f"sweep: got {file}, without a grid, wanted KEY: VALUE,VALUE under hydra.sweeper.params.")
    written = OmegaConf.select(OmegaConf.create(yaml.load(file.read_text(encoding="utf-8"), _as_written())), _GRID)
    typed = OmegaConf.to_container(written)
    assert isinstance(typed, dict)
    given = {override.partition("=")[0].lstrip("+~") for override in overrides}
    texts = {str(key): values for key, values in typed.items()}
    lines = [_line(str(key), values, texts[str(key)]) for key, values in grid.items() if str(key) not in given]
    place = [] if "sweep" in given else [quote_text(f"sweep={name}")]
    return Asked((*place, *lines, *map(quote_text, overrides)), sweep=name)


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
        texts = ["null" if text is None else quote_text(f"{key}={text}").partition("=")[2] for text in typed]
        return f"{key}={','.join(texts)}"
    return quote_text(f"{key}={_values(key, typed)}", separated=True)


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


def check(asked: Asked) -> int:
    """0 and the plan on the terminal when every job can be; computes nothing and writes nothing."""
    _planned(asked)
    return 0


def multirun(asked: Asked) -> int:
    """The exit code: 0 all jobs finished, 1 some failed. Raises InputError before the first when one cannot be."""
    from igap.cli.launch import launch
    from igap.console import terminal_console
    from igap.output.tracking import wandb_run
    from igap.storage import atomic
    from igap.sweep.folder import Planned
    from igap.sweep.terminal import show_plan_end

    plan, launcher = _planned(asked)
    out = terminal_console()
    atomic.check_writable(plan.folder.path)
    said = plan.folder.write_plan([Planned(job.key, job.own) for job in plan.jobs])
    if said:
        out.print(said, markup=False, highlight=False)
    trackings = {job.tracking.mode: job.tracking for job in plan.to_do}
    settled = {mode: wandb_run.decided(one) for mode, one in trackings.items()}  # once for all jobs
    for _, sentence in settled.values():
        if sentence:
            out.print(sentence, markup=False)
    modes: dict[str, str] = {mode: one.mode for mode, (one, _) in settled.items()}
    plan = replace(plan, jobs=tuple(_tracked(job, modes) for job in plan.jobs))
    stale = [job.key for job in plan.to_do if plan.standings[job.key].state == "stale"]
    n_aside = sum(plan.folder.set_aside(key) is not None for key in stale)
    if n_aside:
        out.print(f"{n_aside} stale runs moved to {plan.folder.path / '.stale'} and done again", markup=False)
    reasons: dict[str, str] = {}
    try:
        if plan.to_do:
            reasons = launch(plan, launcher)
    finally:  # also when interrupted
        show_plan_end(out, plan, reasons)
        done = [job for job in plan.jobs if plan.folder.standing(job.key).run and job.tracking.mode != "disabled"]
        n_lost = sum(wandb_run.logged(plan.folder.run(job.key)) is None for job in done)
        if n_lost:
            out.print(f"W&B lacks {n_lost} of the finished runs: igap sync {plan.folder.path}", markup=False)
    return 1 if reasons else 0


def _tracked(job: "Job", modes: Mapping[str, str]) -> "Job":
    """The job with its tracking mode settled."""
    mode = modes.get(job.tracking.mode, job.tracking.mode)
    return replace(job, tracking=job.tracking.model_copy(update={"mode": mode}))


def _planned(asked: Asked) -> "tuple[Plan, Launcher]":
    """The plan and its launcher, told on the terminal. Raises InputError when a job cannot be (but for keep_going)."""
    from rich.console import Console

    from igap import pipeline
    from igap.cli.launch import launcher_of
    from igap.config import RunConfig, TrackingConfig
    from igap.console import show_stage, terminal_console
    from igap.output import figures
    from igap.output.tracking import wandb_run
    from igap.replication.jobs import configs
    from igap.sweep.folder import SweepFolder
    from igap.sweep.plan import Refused, estimate, plan
    from igap.sweep.terminal import show_plan

    composed = compose_jobs(
        asked.overrides, config_name=asked.config_name, config_dir=asked.config_dir, sweep=asked.sweep
    )
    shared = [o for o in asked.overrides if o.lstrip("+~").startswith(("hydra", "output=", "sweep="))]
    launcher = launcher_of(*compose_multirun(shared, asked.config_name, asked.config_dir, asked.sweep))

    trackings: list[TrackingConfig] = []

    def check_one(config: RunConfig) -> tuple[str, int]:
        checked = pipeline.check(config)
        figures.chosen(config.plots)
        for other in configs(config).values() if config.study else ():
            pipeline.check(other)
        if config.tracking not in trackings:
            trackings.append(config.tracking)
            wandb_run.check(config.tracking)
        return checked.key, len(checked.pairs)

    folder = SweepFolder(Path(str(launcher.config.hydra.sweep.dir)))
    with show_stage(Console(stderr=True), "check jobs", announced=False) as progress:
        found = plan(folder, composed, check_one, progress)
    going = [one.config.keep_going for one in composed if not isinstance(one, Refused)]
    if found.refused and not (going and all(going)):
        first = found.refused[0]
        if len(composed) == 1:
            raise InputError(first.reason)
        number = [one.overrides for one in composed].index(first.overrides) + 1
        raise InputError(
            f"job {number} of {len(composed)} ({' '.join(first.overrides)}): {first.reason} {len(found.refused)} of "
            "the jobs cannot be; keep_going=true drops them."
        )
    if not found.jobs:
        raise InputError(f"sweep: none of its {len(composed)} jobs can be. The first: {found.refused[0].reason}")
    try:
        runs = find([folder.path.parent])[0]
    except InputError:  # nothing has run here yet
        runs = []
    at_once = min(launcher.at_once, max(1, len(found.to_do)))
    seconds = estimate(found.to_do, runs, at_once)
    show_plan(terminal_console(), found, seconds, len(runs), single=asked.single)
    return found, launcher
