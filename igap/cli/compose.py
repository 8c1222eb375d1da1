"""Overrides to checked configs, through Hydra: every job of a run or a multirun, before the first of them runs."""

import itertools
import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igap.cli.texts import SHARED, grammar_length, kind_of, quoted
from igap.errors import InputError, nearest, one_line, shown
from igap.sweep.plan import Composed, Refused

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from omegaconf import DictConfig

    from igap.config import Frozen, RunConfig, Schema
    from igap.counterfactual.config import SearchConfig

_PAIR_KEYS = ("prompts.clean", "prompts.corrupted", "prompts.answer", "prompts.distractor")
_MOST_JOBS = 10_000
"""Jobs that a multirun may have: composing so many takes minutes."""
_MOST_GRAMMAR = 10_000
"""Characters of an override outside quotes: Hydra reads a list in seconds that grow with the square of its length."""
launcher_schemas: "dict[str, DictConfig]" = {}
"""What the plugins of Hydra's launchers say of their settings, by target."""
_PACKAGE = Path(__file__).parent.parent


def data_folder(name: str) -> Path:
    """The folder `conf` or `sweeps`: inside the installed package (wheel), or beside it (checkout, editable)."""
    packaged = _PACKAGE / name
    return packaged if packaged.is_dir() else _PACKAGE.parent / name


def compose_one(overrides: Sequence[str], config_name: str | None = None, config_dir: str | None = None) -> Composed:
    """The job that these overrides ask for. Raises InputError when there are several, or when it cannot be."""
    (job,) = compose_jobs(overrides, multirun=False, config_name=config_name, config_dir=config_dir)
    if isinstance(job, Refused):
        raise InputError(job.reason)
    return job


def compose_jobs(
    overrides: Sequence[str],
    *,
    multirun: bool = True,
    config_name: str | None = None,
    config_dir: str | None = None,
    sweep: str | None = None,
) -> list[Composed | Refused]:
    """Every job that these overrides ask for, on top of the sweep file's settings, in the order of the grid.

    Raises InputError on an override that no job can have.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    extra = _beside(config_dir, sweep)
    if config_dir and not Path(config_dir).is_dir():
        raise InputError(f"--config-dir: got {config_dir!r}, wanted a folder of config groups. Correct the path.")
    jobs: list[Composed | Refused] = []
    with initialize_config_dir(str(data_folder("conf")), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        groups = {name: set(loader.get_group_options(name)) for name in loader.list_groups("") if name != "hydra"}
        for group in Path(config_dir).iterdir() if config_dir else ():
            groups[group.name] = groups.get(group.name, set()) | {file.stem for file in group.glob("*.yaml")}
        choices = _choices(OverridesParser.create(loader), overrides, groups, multirun=multirun)
        for job in itertools.product(*choices):
            try:
                composed = compose(config_name or "config", [*extra, *job])
                config = parse_config(composed)
                _check_source(config, job)
                jobs.append(Composed(job, config, OmegaConf.to_yaml(composed)))
            except (HydraException, OmegaConfBaseException) as error:
                jobs.append(Refused(job, f"{' '.join(job) or 'config'}: {one_line(error)}"))
            except InputError as error:
                jobs.append(Refused(job, str(error)))
    return jobs


def compose_searches(
    overrides: Sequence[str], preset: str | None = None, *, multirun: bool = False
) -> "list[SearchConfig]":
    """The searches that these overrides ask for, on top of the preset's settings.

    Raises InputError on one that cannot be.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from igap.counterfactual.config import SearchConfig

    with initialize_config_dir(str(data_folder("conf")), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        names = ["model", "prompts", "tracking", "search/space", "search/storage"]
        groups = {name: set(loader.get_group_options(name)) for name in names}
        choices = _choices(OverridesParser.create(loader), overrides, groups, multirun=multirun, schema=SearchConfig)
        try:
            return [
                checked_config(compose("search", [*_beside(None, preset), *job]), SearchConfig)
                for job in itertools.product(*choices)
            ]
        except (HydraException, OmegaConfBaseException) as error:
            missing = re.match(r"Could not override '([\w.]+)'", one_line(error))
            raise InputError(_of_another_option(missing[1]) if missing else f"search: {one_line(error)}") from error


def _of_another_option(key: str) -> str:
    """What is wrong with a key that the chosen option of its group does not have."""
    group, _, name = key.rpartition(".")
    group = group.replace(".", "/")
    having = [
        file.stem
        for file in sorted((data_folder("conf") / group).glob("*.yaml"))
        if re.search(rf"^{name}:", file.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    return (
        f"{key}: got a value, but the chosen option of {group} has no such key. Choose one that has: "
        f"{' or '.join(f'{group}={option}' for option in having)}."
    )


def _choices(
    parser: Any,
    overrides: Sequence[str],
    groups: dict[str, set[str]],
    *,
    multirun: bool,
    schema: "type[Frozen] | None" = None,
) -> list[list[str]]:
    """The values of each override, one or several; what is Hydra's is the multirun's and is left out.

    Raises InputError on what no job can have, and on more than _MOST_JOBS jobs.
    """
    choices: list[list[str]] = []
    for text in overrides:
        override = _parsed(parser, text)
        values = _swept(override, text)
        if values is not None:
            choices.append([f"{override.get_key_element()}={value!s}" for value in values])
            if not values or override.key_or_group.startswith("hydra") or override.key_or_group in SHARED:
                raise InputError(
                    f"{override.key_or_group}: got {shown(text)}, wanted "
                    + ("at least one value." if not values else "one value: all jobs of a multirun share it.")
                )
            if not multirun:
                raise InputError(
                    f"{override.key_or_group}: got {len(values)} values ({', '.join(values[:10])}"
                    f"{', ...' if len(values) > 10 else ''}), wanted one. Add -m to run each of them, or quote a text "
                    "that holds a comma."
                )
        elif not override.key_or_group.startswith("hydra"):
            choices.append([text])
        _check_override(override, text, values, groups, schema)
    if (n_jobs := math.prod(map(len, choices))) > _MOST_JOBS:
        raise _too_many(f"{n_jobs} jobs, " + " times ".join(str(len(values)) for values in choices if len(values) > 1))
    return choices


def _parsed(parser: Any, text: str) -> Any:
    """Hydra's reading of an override. Raises InputError on what is none."""
    from hydra.errors import HydraException

    if grammar_length(text) > _MOST_GRAMMAR:
        raise InputError(
            f"{text.partition('=')[0]}: got {len(text)} characters, wanted at most {_MOST_GRAMMAR} outside quotes. Put "
            "long lists into a file of conf/ or sweeps/."
        )
    try:
        override = parser.parse_override(text)
    except (HydraException, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0]
        raise InputError(
            f"{text.partition('=')[0]}: got {shown(text)}, which is no override ({reason}), wanted KEY=VALUE. "
            "Quote values with special characters: KEY='\"some, text\"'."
        ) from None
    override.config_loader = parser.config_loader  # which knows what a glob's pattern is to match
    return override


def _swept(override: Any, text: str) -> list[str] | None:
    """The values of an override with several, as Hydra writes them; None of a plain one.

    Raises InputError on a sweep without values to list (an interval), and on one of more than _MOST_JOBS.
    """
    from hydra.core.override_parser.types import RangeSweep
    from hydra.errors import HydraException

    if not override.is_sweep_override():
        return None
    n, values = 0, list[str]()
    try:
        if isinstance(override._value, RangeSweep):  # a shuffled one Hydra lists as a whole
            n = sum(1 for _ in itertools.islice(override._value.range(), _MOST_JOBS + 1))
        if n <= _MOST_JOBS:
            values = [str(value) for value in override.sweep_string_iterator()]
            if kind_of(override.key_or_group) is not None:  # a list in choice() or shuffle() loses its quotes
                values = [text if text == "null" or text[:1] in ("'", '"') else quoted(text) for text in values]
    except (HydraException, ArithmeticError, ValueError, TypeError) as error:
        raise InputError(
            f"{override.key_or_group}: got {shown(text)}, whose values cannot be listed ({one_line(error)}). Name "
            "them: A,B."
        ) from None
    if max(n, len(values)) > _MOST_JOBS:
        raise _too_many(f"more than {_MOST_JOBS} values of {override.key_or_group}")
    return values


def _too_many(got: str) -> InputError:
    return InputError(
        f"multirun: got {got}, wanted at most {_MOST_JOBS}. Take it in parts: each is a multirun of its own, and all "
        "can share the folder of one sweep=NAME."
    )


def compose_multirun(
    overrides: Sequence[str], config_name: str | None = None, config_dir: str | None = None, sweep: str | None = None
) -> "tuple[DictConfig, ConfigLoader]":
    """The config of the multirun itself, Hydra's part included (launcher, folder), and what loads that of its jobs."""
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    with initialize_config_dir(str(data_folder("conf")), version_base="1.3", job_name="igap"):
        instance = GlobalHydra.instance().hydra
        assert instance is not None
        # A launcher's plugin registers a schema under the name of our file, and Hydra would hold it to that: no `pack`.
        registered = ConfigStore.instance().repo["hydra"]["launcher"]
        for file in (data_folder("conf") / "hydra" / "launcher").glob("*.yaml"):
            if (plugins_own := registered.pop(file.name, None)) is not None:
                launcher_schemas[plugins_own.node._target_] = plugins_own.node
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", "provider=hydra.searchpath")  # a folder that is not there
                config = instance.compose_config(
                    config_name or "config",
                    [*_beside(config_dir, sweep), "hydra/hydra_logging=none", *overrides],
                    run_mode=RunMode.MULTIRUN,
                )
            OmegaConf.to_container(config.hydra.sweep, resolve=True)  # raises on what cannot be
        except Exception as error:  # of settings of its own Hydra raises whatever it stumbles over
            raise InputError(f"hydra: {one_line(error)}") from error
        return config, instance.config_loader


def _beside(config_dir: str | None, sweep: str | None) -> list[str]:
    """Overrides for configs from elsewhere: a folder of groups, and a file of sweeps/, which may set any key."""
    places = [str(Path(config_dir).resolve())] if config_dir else []
    if sweep is None:
        return [f"hydra.searchpath=[{quoted(places[0])}]"] if places else []
    places.append(str(data_folder("sweeps").parent))
    return [f"hydra.searchpath=[{','.join(map(quoted, places))}]", f"+sweeps@_global_={quoted(sweep)}"]


def _check_source(config: "RunConfig", overrides: Sequence[str]) -> None:
    """Raises InputError on a text for one pair in a run whose pairs come from elsewhere, where it would be ignored."""
    source = "prompts.n" if config.prompts.n is not None else "prompts.file"
    for key, _, value in (override.partition("=") for override in overrides):
        if key in _PAIR_KEYS and value != "null" and not config.prompts.given:
            raise InputError(
                f"{key}: got {value} together with {source}, wanted one of the two: the text belongs to a single "
                f"pair. Leave it out, or set {source}=null."
            )


def _check_override(
    override: Any,
    text: str,
    values: list[str] | None,
    groups: dict[str, set[str]],
    schema: "type[Frozen] | None" = None,
) -> None:
    """Raises InputError on a group option or a key that does not exist; `schema` None is a run's."""
    from igap.config import RunConfig, field_at, keys, noun

    schema = schema or RunConfig
    what, key = noun(schema), override.key_or_group
    if override.is_delete() and not _is_entry(key, schema):
        raise InputError(
            f"{key}: got a deletion ({shown(text)}); a {what} needs every key. Set another value: {key}=VALUE."
        )
    if key.split(".")[0] == "hydra" or key.startswith("hydra/"):
        return
    if key in groups:
        options = [override.value()] if values is None else values
        if key == "analyses" and isinstance(options[0], list):
            options = options[0]  # several at once; of the other groups one option makes the run
        for option in options:
            if key == "experiment" and option is None:
                continue
            if str(option) not in groups[key]:
                wanted = sorted(groups[key])
                raise InputError(
                    f"{key}: got {shown(option)}, wanted one of {', '.join(wanted)}.{nearest(str(option), wanted)} "
                    f"igap {what} --help lists every group."
                )
    elif not _is_key(key, schema):
        raise InputError(
            f"{key}: got a key that no {what} has (in {shown(text)}).{nearest(key, [*keys(schema), *groups])} "
            f"igap {what} --help lists every key."
        )
    if override.is_add() and field_at(tuple(key.split(".")), schema) is not None:
        raise InputError(
            f"{key}: got {shown(text)}, but every {what} has that key. Write {text.lstrip('+')!r} without the +."
        )


def _is_key(key: str, schema: "type[Frozen]") -> bool:
    """Whether this names a setting, or an entry of one that holds a mapping (search.space.slots.verb)."""
    from igap.config import field_at

    return field_at(tuple(key.split(".")), schema) is not None or _is_entry(key, schema)


def _is_entry(key: str, schema: "type[Frozen]") -> bool:
    """Whether this names an entry of a setting that holds a mapping."""
    from igap.config import field_at

    parts = key.split(".")
    above = [field_at(tuple(parts[:n]), schema) for n in range(1, len(parts))]
    return any(getattr(field and field.annotation, "__origin__", None) is dict for field in above)


def parse_config(config: "DictConfig") -> "RunConfig":
    """The checked config of a run. Raises InputError on what cannot be, and on a value that is missing."""
    from igap.config import RunConfig

    return checked_config(config, RunConfig)


def checked_config(config: "DictConfig", schema: "type[Schema]") -> "Schema":
    """As `parse_config`, of this schema."""
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue

    from igap.config import checked, example

    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        item = str(error.full_key)
        raise InputError(
            f"{item}: got nothing, wanted a value. Add {example(tuple(item.split('.')), schema)}."
        ) from None
    assert isinstance(values, dict)
    return checked(schema, {str(key): value for key, value in values.items()})
