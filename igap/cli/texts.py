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
"""Keys that are a multirun's, so that all its jobs have them in common."""

_PATHS = ("model.name", "prompts.file", "ablation.file", "search.space.file", "output")
_SEPARATED = ("model.name", "model.revision", "prompts.file", "ablation.file", "device", "name")
"""Keys in whose values a comma stands between two values (of a multirun); in all others it belongs to the text."""
_FOLDERS_OF_HYDRA = ("hydra.run.dir", "hydra.sweep.dir")

_QUOTED = r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\""
_ELEMENT = re.compile(rf"\s*({_QUOTED})\s*(?:,|\Z)|([^,]*)(?:,|\Z)", re.DOTALL)
_FUNCTION = re.compile(r"(choice|shuffle|sort|tag|glob)\((.*)\)", re.DOTALL)


class _Kind(NamedTuple):
    """What a key of texts takes."""

    null: bool = False
    """Whether null is none."""
    several: bool = False
    """Whether it is a list of texts."""


def quote_text(argument: str, *, separated: bool = False) -> str:
    """The override with its texts quoted for Hydra; `separated`: commas stand between values, whatever the key.

    Texts already quoted, and functions such as choice(...), stay as they are. Raises InputError on bytes that are no
    text.
    """
    key, equals, value = argument.partition("=")
    name = key.lstrip("+")
    if not _is_utf8(argument):
        raise InputError(f"{key!a}: got {value!a}, which is no UTF-8 text. Correct it, or rename the file.")
    kind = kind_of(name)
    if not equals or (kind is None and name not in _FOLDERS_OF_HYDRA) or _is_quoted(argument, name, value):
        return argument
    if kind is None:
        return f"{key}={quoted(value, literal=False)}"
    if kind.several:
        return f"{key}={_quoted_list(value)}"
    if kind.null and value == "null":
        return argument
    if _is_there(name, value):
        return f"{key}={quoted(value)}"
    function = _FUNCTION.fullmatch(value)
    if function is not None:
        values = _quoted_values(function[2], kind)
        if function[1] == "choice" and kind.null and "null" in values.split(","):  # which Hydra's choice() refuses
            return f"{key}={values}"
        return f"{key}={function[1]}({values})" if function[1] in ("choice", "shuffle") and values else argument
    if (separated or name in _SEPARATED) and "," in value:
        return f"{key}={_quoted_values(value, kind)}"
    return f"{key}={quoted(value.strip() if separated else value)}"


def quoted(text: str, *, literal: bool = True) -> str:
    """The text in quotes, as Hydra's grammar reads them; unless `literal` with its interpolations, ${...}, as such."""
    if literal:
        text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    escaped = re.sub(r"(\\+)\Z", r"\1\1", escaped)
    return f"'{escaped}'"


def grammar_length(argument: str) -> int:
    """Characters of the override that Hydra's grammar takes apart one by one: those outside quotes."""
    return len(re.sub(_QUOTED, "", argument))


def kind_of(key: str) -> _Kind | None:
    """What a key takes whose value is a text or a list of texts; None of another key."""
    above, _, _ = key.rpartition(".")
    return _kinds().get(key) or _kinds().get(f"{above}.*")


@functools.cache
def _kinds() -> dict[str, _Kind]:
    """By dotted key; KEY.* stands for the entries of a mapping."""
    found: dict[str, _Kind] = {}
    schemas: tuple[type[Frozen], ...] = (SearchConfig, RunConfig)
    for schema in schemas:
        for key in keys(schema):
            annotation: Any = getattr(field_at(tuple(key.split(".")), schema), "annotation", None)
            options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
            if {getattr(option, "__origin__", option) for option in options} <= {str, type(None)}:  # of Annotated, too
                found[key] = _Kind(null=len(options) > 1)
            elif annotation == tuple[str, ...]:
                found[key] = _Kind(several=True)
            elif get_origin(annotation) is dict and get_args(annotation)[1] == tuple[str, ...]:
                found[f"{key}.*"] = _Kind(several=True)
    return found


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of the terminal's that Python could not read
        return False
    return True


def _is_quoted(argument: str, name: str, value: str) -> bool:
    """Whether the value is in quotes that Hydra reads, and not a file's name with quotes in it."""
    several = name in _SEPARATED and sum(1 for _ in _elements(value)) > 1
    if value[:1] not in ("'", '"') or several or _is_there(name, value):
        return False
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    return True


def _is_there(name: str, value: str) -> bool:
    """Whether this key takes a path and the value, commas, brackets and all, is one of this machine's."""
    return name in _PATHS and os.path.exists(os.path.expanduser(value))


def _quoted_values(value: str, kind: _Kind) -> str:
    """The values between commas, each quoted; null stays what it is where the key can have it."""
    return ",".join(
        element if is_quoted or (kind.null and element == "null") else quoted(element)
        for element, is_quoted in _elements(value)
    )


def _quoted_list(value: str) -> str:
    """A list, [a,b], with each of its texts quoted; what is no single list stays as it is."""
    if not (value.startswith("[") and value.endswith("]")):
        return value
    depths = itertools.accumulate({"[": 1, "]": -1}.get(character, 0) for character in re.sub(_QUOTED, "", value[1:-1]))
    if min(depths, default=0) < 0:  # [a],[b]
        return value
    return f"[{','.join(text if is_quoted else quoted(text) for text, is_quoted in _elements(value[1:-1]))}]"


def _elements(value: str) -> Iterator[tuple[str, bool]]:
    """What stands between commas outside quotes, without spaces around it; whether it is in quotes."""
    for match in _ELEMENT.finditer(value) if value.strip() else ():
        yield (match[1], True) if match[1] is not None else (match[2].strip(), False)
        if match.end() == len(value) and not match[0].endswith(","):
            break  # what a comma ends is followed by another element, if an empty one
