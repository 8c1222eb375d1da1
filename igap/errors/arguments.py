"""Checks of the arguments of public functions, from their annotations, when a user calls them.

A public function or class needs `@checks_arguments` only; `Range` in an annotation says which numbers are valid. numpy
scalars, and numpy arrays in place of lists, are converted to Python's own numbers. A missing or unknown argument stays
Python's own TypeError.
"""

import collections.abc
import functools
import inspect
import itertools
import math
import os
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
from jaxtyping import jaxtyped

from igap.errors import InputError, did_you_mean_of, short_repr
from igap.vocabulary import LARGEST_SEED, MOST_COUNT

Public = TypeVar("Public", bound=Callable[..., Any])


@dataclass(frozen=True, repr=False)
class Range:
    """The valid numbers of an annotated int or float; NaN and infinity are never valid."""

    least: int | float = -math.inf
    most: int | float = math.inf
    above: int | float = -math.inf

    def __contains__(self, number: int | float) -> bool:
        return self.least <= number <= self.most and self.above < number < math.inf

    def __repr__(self) -> str:
        limits = (("at least", self.least), ("above", self.above), ("at most", self.most))
        return " and ".join(f"{words} {limit}" for words, limit in limits if math.isfinite(limit)) or "finite"


Finite = Annotated[float, Range()]
NotNegative = Annotated[float, Range(least=0)]
Positive = Annotated[float, Range(above=0)]
Count = Annotated[int, Range(least=1, most=MOST_COUNT)]
Seed = Annotated[int, Range(least=0, most=LARGEST_SEED)]
"""A seed that numpy's and torch's generators take."""


def checks_arguments(public: Public) -> Public:
    """Make a function or class raise InputError on an argument that does not fit its annotation."""
    if isinstance(public, type):
        public.__init__ = _check_calls(public.__init__, public)  # type: ignore[misc]
        return public
    return _check_calls(public, public)  # type: ignore[no-any-return]


def _check_calls(function: Any, annotated: Callable[..., Any]) -> Any:
    parameters = inspect.signature(function).parameters
    by_place = [name for name, each in parameters.items() if each.kind is each.POSITIONAL_OR_KEYWORD]

    @functools.cache
    def hints() -> dict[str, Any]:  # at the first call: an annotation may name the class itself
        return get_type_hints(annotated, include_extras=True)

    def take(name: str, value: object) -> object:
        if name not in hints():
            return value
        try:
            return _convert(hints()[name], value)
        except _RefusedError as refused:
            default = parameters[name].default
            remedy = "Leave it out." if default is None else f"Try {name}={default!r}."
            if not isinstance(default, str | int | float | None):
                remedy = f"help(igap.{annotated.__qualname__}) says what it is."
            remedy = did_you_mean_of(refused.got, refused.wanted).lstrip() or remedy
            raise InputError(
                f"{name}{refused.where}: got {short_repr(refused.got)}, wanted {refused.wanted}. {remedy}"
            ) from None

    @functools.wraps(function)
    def checked_call(*args: Any, **given: Any) -> Any:
        with jaxtyped("context"):  # axis lengths agree within this call, whatever they are in the caller
            placed = itertools.chain(map(take, by_place, args), args[len(by_place) :])
            args, given = tuple(placed), {name: take(name, value) for name, value in given.items()}
        return function(*args, **given)

    return checked_call


class _RefusedError(Exception):
    """An invalid value, what was wanted, and the place in the argument, such as "[2]"."""

    def __init__(self, got: object, wanted: str, where: str = "") -> None:
        self.got, self.wanted, self.where = got, wanted, where


def _convert(hint: Any, value: Any) -> Any:
    """Convert a value to its annotated type. Raises _RefusedError on one that does not fit."""
    origin, parts = get_origin(hint), get_args(hint)
    value = value.item() if isinstance(value, np.generic) else value
    if origin is Annotated:
        try:
            converted = _convert(parts[0], value)
        except _RefusedError:
            fits = False
        else:
            fits = converted in parts[1]
            value = converted if fits else value
    elif origin in (Union, types.UnionType):
        return _convert_union(hint, parts, value)
    elif origin in (collections.abc.Sequence, tuple):
        value = value.tolist() if isinstance(value, np.ndarray) and value.ndim == 1 else value
        fits = isinstance(value, collections.abc.Sequence) and not isinstance(value, str | bytes | bytearray)
        if fits:
            entries = (_convert_entry(parts[0], each, f"[{place}]") for place, each in enumerate(value))
            return tuple(entries) if origin is tuple else list(entries)
    elif origin is collections.abc.Mapping:
        fits = isinstance(value, Mapping)
        if fits:
            key, entry = parts
            return {
                _convert_entry(key, k, ", a key"): _convert_entry(entry, each, f"[{k!r}]") for k, each in value.items()
            }
    elif origin is Literal:
        fits = isinstance(value, str) and value in parts
    elif origin is collections.abc.Callable:
        fits = callable(value)
    elif hint is str:
        fits = isinstance(value, str)
        if fits and not _is_writable(value):
            raise _RefusedError(value, "a text without NUL and lone surrogates")
    elif hint is Path:
        fits = isinstance(value, str | os.PathLike) and _is_writable(os.fspath(value))
        value = Path(value) if fits else value
    elif hint in (int, float):
        whole = isinstance(value, int) and not isinstance(value, bool)
        fits = whole if hint is int else isinstance(value, float) or (whole and abs(value) <= sys.float_info.max)
        value = hint(value) if fits else value
    else:
        fits = hint in (Any, object) or isinstance(value, types.NoneType if hint is None else hint)
    if not fits:
        raise _RefusedError(value, _describe(hint))
    return value


def _convert_union(hint: Any, parts: tuple[Any, ...], value: Any) -> Any:
    """Convert to the first type of a union that fits; if one fits up to a part, the error is about that part."""
    if Path in parts and isinstance(value, str) and not value:  # as a path it would be the working folder
        raise _RefusedError(value, "a text that is not empty")
    nearly = None
    for part in parts:
        try:
            return _convert(part, value)
        except _RefusedError as refused:
            nearly = refused if refused.where or refused.wanted != _describe(part) else nearly
    raise nearly or _RefusedError(value, _describe(hint))


def _convert_entry(hint: Any, value: Any, where: str) -> Any:
    try:
        return _convert(hint, value)
    except _RefusedError as refused:
        raise _RefusedError(refused.got, refused.wanted, where + refused.where) from None


def _is_writable(text: object) -> bool:
    """Whether a text has no NUL and no lone surrogate, which tokenizers, files and databases reject."""
    try:
        return isinstance(text, str) and b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def _describe(hint: Any) -> str:
    """Describe an annotation in words."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f"{_describe(parts[0])}, {parts[1]}"
    if origin in (Union, types.UnionType):
        return " or ".join(map(_describe, parts))
    if origin in (collections.abc.Sequence, tuple):
        return f"a list, each entry {_describe(parts[0])}"
    if origin is collections.abc.Mapping:
        return f"a mapping from {_describe(parts[0])} to {_describe(parts[1])}"
    if origin is Literal:
        return f"one of {', '.join(parts)}" if len(parts) > 2 else " or ".join(parts)
    if origin is collections.abc.Callable:
        return "a function"
    return _WORDS.get(hint) or f"{'an' if hint.__name__[0] in 'AEIOU' else 'a'} {hint.__name__}"


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    Path: "a path",
    types.NoneType: "None",
}
