"""Overrides before Hydra composes them: the values of each, and one line for each that no job can have."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from igap.cli.texts import SHARED, grammar_length, kind_of, quote
from igap.errors import InputError, did_you_mean, one_line, short_repr

if TYPE_CHECKING:
    from igap.config import Frozen

_MOST_JOBS = 10_000
"""Jobs that a multirun may have: composing so many takes minutes."""
_MOST_GRAMMAR = 10_000
"""Characters of an override outside quotes: Hydra reads a list in seconds that grow with the square of its length."""


def expand(
    parser: Any,
    overrides: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    schema: "type[Frozen]",
    *,
    multirun: bool,
) -> list[list[str]]:
    """The overrides that each override stands for: several where it has several values.

    Args:
        parser: Hydra's OverridesParser.
        overrides: as Hydra takes them, their texts quoted; those of Hydra itself are checked and left out.
        groups: config group to its options.
        schema: RunConfig or SearchConfig, whose keys there are.
        multirun: whether an override may have several values.

    Raises:
        InputError: on an override that no job can have, and on more than _MOST_JOBS jobs.
    """
    choices: list[list[str]] = []
    for text in overrides:
        override = _parse(parser, text)
        values = _values(override, text)
        if values is not None:
            choices.append([f"{override.get_key_element()}={value!s}" for value in values])
            if not values or override.key_or_group.startswith("hydra") or override.key_or_group in SHARED:
                raise InputError(
                    f"{override.key_or_group}: got {short_repr(text)}, wanted "
                    + ("at least one value." if not values else "one value: all jobs of a multirun share it.")
                )
            if not multirun and values[0].startswith(("[", "'[")) and values[-1].endswith(("]", "]'")):
                written = ",".join(value.strip("'") for value in values)
                raise InputError(f"{override.key_or_group}: got the list {written}, wanted one text. Name one.")
            if not multirun:
                raise InputError(
                    f"{override.key_or_group}: got {len(values)} values ({', '.join(values[:10])}"
                    f"{', ...' if len(values) > 10 else ''}), wanted one. Add -m to run each of them, or quote a text "
                    "that holds a comma."
                )
        elif not override.key_or_group.startswith("hydra"):
            choices.append([text])
        _check(override, text, values, groups, schema)
    if (n_jobs := math.prod(map(len, choices))) > _MOST_JOBS:
        raise _too_many(f"{n_jobs} jobs, " + " times ".join(str(len(values)) for values in choices if len(values) > 1))
    return choices


def _parse(parser: Any, text: str) -> Any:
    """An override as Hydra reads it. Raises InputError on what is none."""
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
            f"{text.partition('=')[0]}: got {short_repr(text)}, which is no override ({reason}), wanted KEY=VALUE. "
            "Quote values with special characters: KEY='\"some, text\"'."
        ) from None
    override.config_loader = parser.config_loader  # which knows what a glob's pattern is to match
    return override


def _values(override: Any, text: str) -> list[str] | None:
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
                values = [text if text == "null" or text[:1] in ("'", '"') else quote(text) for text in values]
    except (HydraException, ArithmeticError, ValueError, TypeError) as error:
        raise InputError(
            f"{override.key_or_group}: got {short_repr(text)}, whose values cannot be listed ({one_line(error)}). Name "
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


def _check(
    override: Any,
    text: str,
    values: list[str] | None,
    groups: Mapping[str, Sequence[str]],
    schema: "type[Frozen]",
) -> None:
    """Raises InputError on a group option or a key that does not exist."""
    from igap.config import field_at, keys, noun

    what, key = noun(schema), override.key_or_group
    if override.is_delete() and not _is_entry(key, schema):
        raise InputError(
            f"{key}: got a deletion ({short_repr(text)}); a {what} needs every key. Set another value: {key}=VALUE."
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
                known = f"one of {', '.join(groups[key])}" if groups[key] else "none, as there are no options"
                raise InputError(
                    f"{key}: got {short_repr(option)}, wanted {known}."
                    f"{did_you_mean(str(option), groups[key])} "
                    f"igap {what} --help lists every group."
                )
    elif not _is_key(key, schema):
        raise InputError(
            f"{key}: got a key that no {what} has (in {short_repr(text)})."
            f"{did_you_mean(key, [*keys(schema), *groups])} "
            f"igap {what} --help lists every key."
        )
    if override.is_add() and field_at(tuple(key.split(".")), schema) is not None:
        raise InputError(
            f"{key}: got {short_repr(text)}, but every {what} has that key. Write {text.lstrip('+')!r} without the +."
        )


def _is_key(key: str, schema: "type[Frozen]") -> bool:
    """True if this names a setting, or an entry of one that holds a mapping (search.space.slots.verb)."""
    from igap.config import field_at

    return field_at(tuple(key.split(".")), schema) is not None or _is_entry(key, schema)


def _is_entry(key: str, schema: "type[Frozen]") -> bool:
    """True if this names an entry of a setting that holds a mapping."""
    from igap.config import field_at

    parts = key.split(".")
    above = [field_at(tuple(parts[:n]), schema) for n in range(1, len(parts))]
    return any(getattr(field and field.annotation, "__origin__", None) is dict for field in above)
