"""Texts on the command line: quoted for Hydra, so that what arrives is what was typed.

Hydra's grammar reads numbers, booleans, lists, functions and interpolations into a value. A key whose value is a text,
a name or a path has none of those; which keys these are, the schemas of runs and searches say.
"""

import functools
import itertools
import os
import re
from collections.abc import Iterator
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin

from igap.config import Frozen, RunConfig, field_at, keys
from igap.counterfactual.config import SearchConfig
from igap.errors import InputError

SHARED = ("output", "sweep")
"""Keys of the whole multirun, which all its jobs have in common."""

_PATHS = (
    "model.name",
    "prompts.file",
    "prompts.ids_of",
    "ablation.file",
    "search.space.file",
    "clean.file",
    "heldout.file",
    "reference.file",
    "output",
)
_SEPARATED = ("model.name", "model.revision", "metric.function", "prompts.file", "ablation.file", "device", "name")
"""Keys in whose values a comma stands between two values (of a multirun); in all others it belongs to the text."""
NAMES = ("sites", "methods", "explain", "faithfulness")
"""Keys of one name or several, which Hydra's grammar reads: a list of them is `[A,B]`."""
_FOLDERS_OF_HYDRA = ("hydra.run.dir", "hydra.sweep.dir")

_QUOTED = r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\""
_ELEMENT = re.compile(rf"\s*({_QUOTED})\s*(?:,|\Z)|([^,]*)(?:,|\Z)", re.DOTALL)
_FUNCTION = re.compile(r"(choice|shuffle|sort|tag|glob)\((.*)\)", re.DOTALL)


class _Kind(NamedTuple):
    """The values that a key of texts takes."""

    null: bool = False
    """Whether null stands for no text."""
    several: bool = False
    """Whether the value is a list of texts."""


def quote_override(argument: str, *, separated: bool = False, single: bool = False) -> str:
    """Quotes the texts of an override, so that Hydra reads them as they were typed.

    Args:
        argument: "KEY=VALUE". Texts already quoted, and functions such as choice(...), stay as they are.
        separated: whether commas stand between values, whatever the key.
        single: whether it is of one run, in which `sites=heads,q` are names for that run and no grid.

    Returns:
        The override as Hydra takes it.

    Raises:
        InputError: on bytes that are no text.

    >>> quote_override("prompts.answer= John")
    "prompts.answer=' John'"
    >>> quote_override("ig.n_steps=50")
    'ig.n_steps=50'
    """
    key, equals, value = argument.partition("=")
    name = key.lstrip("+")
    if not _is_utf8(argument):
        raise InputError(f"{key!a}: got {value!a}, which is no UTF-8 text. Correct it, or rename the file.")
    if single and name in NAMES and re.fullmatch(r"\w+(,\w+)+", value):
        return f"{key}=[{value}]"
    kind = kind_of(name)
    if not equals or (kind is None and name not in _FOLDERS_OF_HYDRA) or _is_quoted(argument, name, value):
        return argument
    if kind is None:
        return f"{key}={quote(value, literal=False)}"
    if kind.several:
        return f"{key}={_quote_list(value)}"
    if kind.null and value == "null":
        return argument
    if _exists(name, value):
        return f"{key}={quote(value)}"
    function = _FUNCTION.fullmatch(value)
    if function is not None:
        values = _quote_values(function[2], kind)
        if function[1] == "choice" and kind.null and "null" in values.split(","):  # which Hydra's choice() refuses
            return f"{key}={values}"
        return f"{key}={function[1]}({values})" if function[1] in ("choice", "shuffle") and values else argument
    if (separated or name in _SEPARATED) and "," in value:
        return f"{key}={_quote_values(value, kind)}"
    return f"{key}={quote(value.strip() if separated else value)}"


def quote(text: str, *, literal: bool = True) -> str:
    """Puts a text in quotes, as Hydra's grammar reads them.

    Args:
        text: any text.
        literal: whether ${...} is part of the text, and no interpolation.
    """
    if literal:
        text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    escaped = re.sub(r"(\\+)\Z", r"\1\1", escaped)
    return f"'{escaped}'"


def grammar_length(argument: str) -> int:
    """The number of characters that Hydra's grammar takes apart one by one: those outside quotes."""
    return len(re.sub(_QUOTED, "", argument))


def kind_of(key: str) -> _Kind | None:
    """The values of a key that takes a text or a list of texts; None for any other key."""
    above, _, _ = key.rpartition(".")
    return _kinds().get(key) or _kinds().get(f"{above}.*")


@functools.cache
def _kinds() -> dict[str, _Kind]:
    """By dotted key; KEY.* stands for the entries of a mapping."""
    kinds: dict[str, _Kind] = {}
    schemas: tuple[type[Frozen], ...] = (SearchConfig, RunConfig)
    for schema in schemas:
        for key in keys(schema):
            if key in NAMES:
                continue
            annotation: Any = getattr(field_at(tuple(key.split(".")), schema), "annotation", None)
            options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
            if {getattr(option, "__origin__", option) for option in options} <= {str, type(None)}:  # of Annotated, too
                kinds[key] = _Kind(null=len(options) > 1)
            elif annotation == tuple[str, ...]:
                kinds[key] = _Kind(several=True)
            elif get_origin(annotation) is dict and get_args(annotation)[1] == tuple[str, ...]:
                kinds[f"{key}.*"] = _Kind(several=True)
    return kinds


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of the terminal's that Python could not read
        return False
    return True


def _is_quoted(argument: str, name: str, value: str) -> bool:
    """True if the value is in quotes that Hydra reads, and no file's name with quotes in it."""
    several = name in _SEPARATED and sum(1 for _ in _elements(value)) > 1
    if value[:1] not in ("'", '"') or several or _exists(name, value):
        return False
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    return True


def _exists(name: str, value: str) -> bool:
    """True if this key takes a path and the value, commas, brackets and all, is one that exists."""
    return name in _PATHS and os.path.exists(os.path.expanduser(value))


def _quote_values(value: str, kind: _Kind) -> str:
    """Quotes each value between commas; null stays null where the key can have it."""
    return ",".join(
        element if is_quoted or (kind.null and element == "null") else quote(element)
        for element, is_quoted in _elements(value)
    )


def _quote_list(value: str) -> str:
    """Quotes each text of a list, [a,b]; what is no single list stays as it is."""
    if not (value.startswith("[") and value.endswith("]")):
        return value
    depths = itertools.accumulate({"[": 1, "]": -1}.get(character, 0) for character in re.sub(_QUOTED, "", value[1:-1]))
    if min(depths, default=0) < 0:  # [a],[b]
        return value
    return f"[{','.join(text if is_quoted else quote(text) for text, is_quoted in _elements(value[1:-1]))}]"


def _elements(value: str) -> Iterator[tuple[str, bool]]:
    """Each part between commas outside quotes, without spaces around it, and whether it is in quotes."""
    for match in _ELEMENT.finditer(value) if value.strip() else ():
        yield (match[1], True) if match[1] is not None else (match[2].strip(), False)
        if match.end() == len(value) and not match[0].endswith(","):
            break  # what a comma ends is followed by another element, if an empty one
