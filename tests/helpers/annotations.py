"""The annotations of igap, checked at every call: jaxtyping's import hook with beartype, without work done twice.

jaxtyping binds the arguments and calls two functions of its own making, which check the arguments twice. Here beartype
checks them once, and opens a set of axes where an annotation is of an array. A function within another is defined at
each call of the other, with annotations that stay the same: so does its checker.
"""

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, ForwardRef, Literal, get_args, get_origin, get_type_hints

import jaxtyping
from beartype import beartype

_jaxtyped = jaxtyping.jaxtyped
_axes = _jaxtyped("context")
_checked: dict[object, Callable[..., Any]] = {}


def install() -> None:
    """Every function and dataclass of igap is checked that is imported from here on."""
    jaxtyping.jaxtyped = jaxtyped  # by this name the hook's decorators call it
    jaxtyping.install_import_hook("igap", "helpers.annotations.checker")


def jaxtyped(*decorated: Any, **options: Any) -> Any:
    """The decorator of every function and class, which the hook asks for by its options; else jaxtyping's own."""
    with_axes = _jaxtyped(*decorated, **options)
    if decorated:
        return with_axes

    def decorate(decorated: Any) -> Any:
        if not inspect.isfunction(decorated):
            return with_axes(decorated)
        annotations = decorated.__annotations__
        if not annotations:
            return decorated
        if any(mentions(annotation, is_text) for annotation in annotations.values()):
            annotations = {name: resolve(annotation, decorated) for name, annotation in annotations.items()}
        arrays = any(mentions(annotation, is_array) for annotation in annotations.values())
        if arrays and inspect.isgeneratorfunction(decorated):  # beartype checks its arguments when the axes are closed
            return with_axes(decorated)
        checked = check_function(decorated, annotations)

        @functools.wraps(decorated)
        def call(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            return (decorated if jaxtyping.config.jaxtyping_disable else checked)(*args, **kwargs)

        @functools.wraps(decorated)
        def call_with_axes(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if jaxtyping.config.jaxtyping_disable:
                return decorated(*args, **kwargs)
            with _axes:
                return checked(*args, **kwargs)

        return call_with_axes if arrays else call

    return decorate


def check_function(function: types.FunctionType, annotations: dict[str, Any]) -> Callable[..., Any]:
    """The function with its arguments and what it returns checked by beartype, for these annotations."""
    bare = with_annotations(function, annotations)
    try:
        key = (function.__code__, *annotations.items())
        if key not in _checked:
            _checked[key] = beartype(bare)
    except TypeError:  # an annotation without a hash
        return beartype(bare)
    made = _checked[key]
    if "__beartype_func" not in (made.__kwdefaults__ or {}):  # anything is allowed
        return function
    again = types.FunctionType(made.__code__, made.__globals__, made.__name__, made.__defaults__, made.__closure__)
    again.__kwdefaults__ = {**made.__kwdefaults__, "__beartype_func": function}  # what its code calls after the checks
    return again


def with_annotations(function: types.FunctionType, annotations: dict[str, Any]) -> types.FunctionType:
    """The same function with other annotations."""
    code, scope, name, defaults, closure = (
        getattr(function, f"__{part}__") for part in ("code", "globals", "name", "defaults", "closure")
    )
    other = types.FunctionType(code, scope, name, defaults, closure)
    other.__module__, other.__qualname__, other.__kwdefaults__ = (
        function.__module__, function.__qualname__, function.__kwdefaults__,
    )  # fmt: skip
    other.__annotations__ = annotations
    return other


def resolve(annotation: Any, function: types.FunctionType) -> Any:
    """What the texts in an annotation name; anything where the module does not hold it, or not yet, as in jaxtyping."""

    def of(value: annotation) -> None: ...

    try:
        return get_type_hints(of, function.__globals__, include_extras=True)["value"]
    except Exception:
        return Any


def mentions(annotation: Any, asked: Callable[[Any], bool]) -> bool:
    """Whether such an annotation stands anywhere in it."""
    if isinstance(annotation, list):
        return any(mentions(each, asked) for each in annotation)
    if get_origin(annotation) is Literal:
        return False
    return asked(annotation) or any(mentions(each, asked) for each in get_args(annotation))


def is_text(annotation: Any) -> bool:
    """Whether it is a name, to be looked up."""
    return isinstance(annotation, str | ForwardRef)


def is_array(annotation: Any) -> bool:
    """Whether it is an array with axes."""
    return inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray)


def checker(function: Callable[..., Any]) -> Callable[..., Any]:
    """What jaxtyping's own decorator checks with, that of dataclasses and generators."""
    return beartype(function)
