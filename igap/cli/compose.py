"""Overrides to checked configs, through Hydra: every job of a run or a multirun, before the first of them runs."""

import itertools
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from igap.cli import settings
from igap.cli.overrides import expand
from igap.cli.settings import LAUNCHERS, group_defaults, options, options_with
from igap.cli.texts import quote
from igap.errors import InputError, one_line
from igap.sweep.plan import Composed, RejectedJob

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra
    from hydra.core.config_loader import ConfigLoader
    from omegaconf import DictConfig

    from igap.config import PromptsConfig, RunConfig, Schema
    from igap.counterfactual.config import SearchConfig

launcher_schemas: "dict[str, DictConfig]" = {}
"""What the plugins of Hydra's launchers say of their settings, by target."""


@contextmanager
def open_hydra() -> "Iterator[Hydra]":
    """Hydra on igap's own conf/, while the block runs; one that the process has opened itself is there again after."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    theirs = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(settings.CONF), version_base="1.3", job_name="igap"):
            instance = GlobalHydra.instance().hydra
            assert instance is not None
            yield instance
    finally:
        GlobalHydra.instance().hydra = theirs


def compose_one(overrides: Sequence[str], config_name: str | None = None, config_dir: str | None = None) -> Composed:
    """The job of these overrides.

    Args:
        overrides: as Hydra takes them, their texts quoted.
        config_name: the config in place of conf/config.yaml.
        config_dir: a folder with further config groups.

    Raises:
        InputError: when they give several jobs, or an invalid one.
    """
    (job,) = compose_jobs(overrides, multirun=False, config_name=config_name, config_dir=config_dir)
    if isinstance(job, RejectedJob):
        raise InputError(job.reason)
    return job


def compose_jobs(
    overrides: Sequence[str],
    *,
    multirun: bool = True,
    config_name: str | None = None,
    config_dir: str | None = None,
    sweep: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Composed | RejectedJob]:
    """The jobs of these overrides, in the order of the grid.

    Args:
        overrides: as Hydra takes them, their texts quoted.
        multirun: whether an override may have several values.
        config_name: the config in place of conf/config.yaml.
        config_dir: a folder with further config groups.
        sweep: the name of the file in sweeps/ whose settings lie below the overrides.
        on_progress: called after each job with how many are composed, of how many.

    Raises:
        InputError: on an override that no job can have.
    """
    from hydra import compose
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from igap.config import RunConfig

    extra = search_path(config_dir, sweep)
    groups = {group: options(group) for group in group_defaults("config")}
    for folder in Path(config_dir).iterdir() if config_dir else ():
        groups[folder.name] = sorted({*groups.get(folder.name, ()), *options(folder.name, Path(str(config_dir)))})
    jobs: list[Composed | RejectedJob] = []
    with open_hydra() as hydra:
        parser = OverridesParser.create(hydra.config_loader)
        choices = expand(parser, overrides, groups, RunConfig, multirun=multirun)
        n_jobs = math.prod(map(len, choices))
        for job in itertools.product(*choices):
            try:
                composed = compose(config_name or "config", [*extra, *job])
                config = parse_config(composed)
                _check_texts(config.prompts, job)
                jobs.append(Composed(job, config, OmegaConf.to_yaml(composed)))
            except (HydraException, OmegaConfBaseException) as error:
                jobs.append(RejectedJob(job, f"{' '.join(job) or 'config'}: {one_line(error)}"))
            except InputError as error:
                jobs.append(RejectedJob(job, str(error)))
            if on_progress:
                on_progress(len(jobs), n_jobs)
    return jobs


def compose_searches(
    overrides: Sequence[str], preset: str | None = None, *, multirun: bool = False
) -> "list[SearchConfig]":
    """The searches of these overrides, in the order of the grid.

    Args:
        overrides: as Hydra takes them, their texts quoted.
        preset: the name of the file in sweeps/search/ whose settings lie below the overrides.
        multirun: whether an override may have several values.

    Raises:
        InputError: on an invalid search.
    """
    from hydra import compose
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from igap.counterfactual.config import SearchConfig

    extra = search_path(None, preset, "sweeps/search")
    groups = {group: options(group) for group in group_defaults("search")}
    with open_hydra() as hydra:
        parser = OverridesParser.create(hydra.config_loader)
        choices = expand(parser, overrides, groups, SearchConfig, multirun=multirun)
        searches = []
        try:
            for job in itertools.product(*choices):
                searches.append(checked_config(compose("search", [*extra, *job]), SearchConfig))
                _check_texts(searches[-1].prompts, job, "clean.file" if searches[-1].clean.file else None)
        except (HydraException, OmegaConfBaseException) as error:
            missing = re.match(r"Could not override '([\w.]+)'", one_line(error))
            raise InputError(_explain_missing(missing[1]) if missing else f"search: {one_line(error)}") from error
    return searches


def _explain_missing(key: str) -> str:
    """The message for a key of a search that the chosen options do not have."""
    having = options_with(key, "search")
    return (
        f"{key}: got a value, but the chosen option of {having[0].partition('=')[0]} has no such key. Choose one that "
        f"has: {' or '.join(having)}."
        if having
        else f"{key}: got a value, but no option has such a key. igap search --help lists every key."
    )


def compose_multirun(
    overrides: Sequence[str], config_name: str | None = None, config_dir: str | None = None, sweep: str | None = None
) -> "tuple[DictConfig, ConfigLoader]":
    """The config of a multirun itself, Hydra's part included (launcher, folder), and the loader of its jobs' configs.

    Raises InputError on settings that Hydra refuses.
    """
    from hydra.core.config_store import ConfigStore
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    with open_hydra() as hydra:
        # A launcher's plugin registers a schema under the name of our file, and Hydra would hold it to that: no `pack`.
        registered = ConfigStore.instance().repo["hydra"]["launcher"]
        for name in options(LAUNCHERS):
            if (plugins_own := registered.pop(f"{name}.yaml", None)) is not None:
                launcher_schemas[plugins_own.node._target_] = plugins_own.node
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", "provider=hydra.searchpath")  # a folder that is not there
                config = hydra.compose_config(
                    config_name or "config",
                    [*search_path(config_dir, sweep), "hydra/hydra_logging=none", *overrides],
                    run_mode=RunMode.MULTIRUN,
                )
            OmegaConf.to_container(config.hydra.sweep, resolve=True)  # raises on invalid settings
        except Exception as error:  # of settings of its own Hydra raises whatever it stumbles over
            raise InputError(f"hydra: {one_line(error)}") from error
        return config, hydra.config_loader


def search_path(config_dir: str | None, name: str | None = None, group: str = "sweeps") -> list[str]:
    """Overrides that make Hydra find configs elsewhere.

    Args:
        config_dir: a folder of config groups.
        name: the name of a file in `group`, which may set any key.
        group: "sweeps", or "sweeps/search".

    Raises:
        InputError: when `config_dir` is no folder.
    """
    if config_dir and not Path(config_dir).is_dir():
        raise InputError(f"--config-dir: got {config_dir!r}, wanted a folder of config groups. Correct the path.")
    places = [str(Path(config_dir).resolve())] if config_dir else []
    if name is None:
        return [f"hydra.searchpath=[{quote(places[0])}]"] if places else []
    places.append(str(settings.SWEEPS.parent))
    return [f"hydra.searchpath=[{','.join(map(quote, places))}]", f"+{group}@_global_={quote(name)}"]


def _check_texts(prompts: "PromptsConfig", overrides: Sequence[str], source: str | None = None) -> None:
    """Raises InputError on texts of a pair that would be ignored, and on a clean prompt with other texts of a preset's.

    They are ignored where a `source` of pairs is given; None: where the prompts are of a file or generated.
    Another corrupted prompt, answer or distractor alone is a question about the same clean prompt. Another clean prompt
    is another question, which the preset's other texts would not fit: it would run, and give wrong numbers.
    """
    from igap.config import TEXTS

    split = (override.lstrip("+").partition("=") for override in overrides)
    given = {key: value for key, _, value in split if value != "null"}
    texts = [f"prompts.{name}" for name in TEXTS]
    if source is None and not prompts.has_texts:
        source = "prompts.n" if prompts.n is not None else "prompts.file"
    for key in texts:
        if key in given and source is not None:
            raise InputError(
                f"{key}: got {given[key]} together with {source}, wanted one of the two: the text belongs to a single "
                f"pair. Leave it out, or set {source}=null."
            )
    left = [name for name, key in zip(TEXTS, texts, strict=True) if key not in given]
    if "prompts.clean" in given and left:
        kept = ", ".join(f"prompts.{name}={getattr(prompts, name)!r}" for name in left)
        raise InputError(
            f"prompts.clean: got {prompts.clean!r}, and from the preset {kept}, wanted all four texts of the question: "
            "a preset's answer need not be that of another clean prompt. Add "
            f"{' '.join(f'prompts.{name}=...' for name in left)}; repeat what you mean to keep."
        )


def parse_config(config: "DictConfig") -> "RunConfig":
    """The checked config of a run. Raises InputError on an invalid value, and on one that is missing."""
    from igap.config import RunConfig

    return checked_config(config, RunConfig)


def checked_config(config: "DictConfig", schema: "type[Schema]") -> "Schema":
    """As `parse_config`, of this schema."""
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue

    from igap.config import example, validate_settings

    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        item = str(error.full_key)
        raise InputError(
            f"{item}: got nothing, wanted a value. Add {example(tuple(item.split('.')), schema)}."
        ) from None
    assert isinstance(values, dict)
    return validate_settings(schema, {str(key): value for key, value in values.items()})
