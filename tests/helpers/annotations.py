"""The annotations of igap, checked as a test calls it: jaxtyping's import hook with beartype, without work done twice.

For every function jaxtyping binds the arguments and opens a set of axes; where no annotation is of an array, beartype
alone checks the same in less time. A function within another is defined at each call of the other, with annotations
that stay the same: so does their checker. Of the calls of one function in one test the first few are checked, and of a
function within another those of its first definitions: the rest come from loops, and checks of all of them took a
quarter of the suite's time.
"""

import dataclasses
import functools
import inspect
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

import jaxtyping
from beartype import beartype

ENOUGH = 2
"""Calls of a function that are checked in a test."""

DEFINITIONS = 2
"""Definitions of a function within another that are checked in a test."""


class _Left:
    """What is left to check of one function in this test."""

    __slots__ = ("calls", "definitions")

    def __init__(self) -> None:
        self.calls, self.definitions = ENOUGH, DEFINITIONS


_left: defaultdict[tuple[str, str], _Left] = defaultdict(_Left)
_used: list[_Left] = []
_tests_have_begun = False
_jaxtyped = jaxtyping.jaxtyped
_checkers: dict[object, Callable[..., Any]] = {}


def install() -> None:
    """Every function and dataclass of igap is checked that is imported from here on."""
    jaxtyping.jaxtyped = jaxtyped  # by this name the hook's decorators call it
    jaxtyping.install_import_hook("igap", "helpers.annotations.checker")


def restart() -> None:
    """A test begins."""
    global _tests_have_begun
    _tests_have_begun = True
    for left in _used:
        left.calls, left.definitions = ENOUGH, DEFINITIONS
    _used.clear()


def jaxtyped(*decorated: Any, **options: Any) -> Any:
    """The decorator of every function and class, which the hook asks for by its options; else jaxtyping's own."""
    with_axes = _jaxtyped(*decorated, **options)
    if decorated:
        return with_axes

    def decorate(decorated: Any) -> Any:
        own = vars(decorated).get("__init__") if dataclasses.is_dataclass(decorated) else None
        if own is not None and not hasattr(own, "__wrapped__"):  # one that igap wraps converts before it checks
            left = _left[decorated.__module__, f"{decorated.__qualname__}.__init__"]
            decorated.__init__ = _checked_at_first(left, own, with_axes(decorated).__init__)
            return decorated
        if not inspect.isfunction(decorated):
            return decorated if own is not None else with_axes(decorated)
        annotations = decorated.__annotations__
        if not annotations:
            return decorated
        left, within = _left[decorated.__module__, decorated.__qualname__], "<locals>" in decorated.__qualname__
        if within and _tests_have_begun:  # at import each is defined once
            if not left.calls or not left.definitions:
                return decorated
            left.definitions -= 1
            _used.append(left)
        with_arrays = within or any(map(mentions_arrays, annotations.values()))
        return _checked_at_first(left, decorated, with_axes(decorated) if with_arrays else beartype(decorated))

    return decorate


def _checked_at_first(left: _Left, plain: Callable[..., Any], checked: Callable[..., Any]) -> Any:
    """The checked function for the first calls of a test, and the plain one for the rest."""

    @functools.wraps(plain)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if not left.calls or jaxtyping.config.jaxtyping_disable:
            return plain(*args, **kwargs)
        left.calls -= 1
        _used.append(left)
        return checked(*args, **kwargs)

    return call


def mentions_arrays(annotation: Any) -> bool:
    """Whether an array stands anywhere in it; a text may name one."""
    if isinstance(annotation, list):
        return any(map(mentions_arrays, annotation))
    if isinstance(annotation, str):
        return True
    if get_origin(annotation) is Literal:
        return False
    is_array = inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray)
    return is_array or any(map(mentions_arrays, get_args(annotation)))


def checker(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype's checker of a function of jaxtyping's making, which has the signature of another and no body."""
    key = (
        function.__module__, function.__qualname__, function.__code__.co_varnames, *function.__annotations__.items(),
    )  # fmt: skip
    try:
        if key not in _checkers:
            _checkers[key] = beartype(function)
        return _checkers[key]
    except TypeError:  # an annotation without a hash
        return beartype(function)
