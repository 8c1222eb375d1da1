"""Frozen dataclasses as JSON values and named arrays, and back by their type hints; no pickle.

What is read back is checked against the type hints of the class, field by field, shapes and number types of arrays
included, so that a file from anywhere gives either such an object or a ValueError.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from inspect import isclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from jaxtyping import AbstractArray, jaxtyped

from igap.errors import printable

_ARRAY = "array"
"""The only key of the JSON object that stands for an array: its name among the tensors."""

_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
"""Floats that JSON does not have, by the text that stands for them."""


def encode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Return the value as JSON takes it; its arrays go into `tensors`, and stand in it by their names there.

    Raises:
        TypeError: It holds something that is no dataclass, mapping from texts or whole numbers, list or tuple, array,
            number, text, bool or None.
    """
    if isinstance(value, np.ndarray | torch.Tensor):
        name = str(len(tensors))
        tensors[name] = torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value
        return {_ARRAY: name}
    if dataclasses.is_dataclass(value) and not isclass(value):
        return {name: encode(getattr(value, name), tensors) for name in _fields_to_save(value)}
    if isinstance(value, Mapping) and all(type(key) in (str, int) for key in value):
        return {str(key): encode(each, tensors) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [encode(each, tensors) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str | int | float | None):
        return value
    raise TypeError(
        f"a {type(value).__name__} cannot be saved; wanted a dataclass of numbers, texts, arrays, tuples and mappings"
    )


def decode(hint: Any, tree: Any, tensors: Mapping[str, torch.Tensor], where: str = "") -> Any:
    """Return what `encode` was given, which the hint names. Raises ValueError on anything else."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return decode(parts[0], tree, tensors, where)
    if origin in (Union, UnionType):
        for part in sorted(parts, key=lambda part: part is not type(tree)):  # 1 is an int before it is a float
            try:
                return decode(part, tree, tensors, where)
            except ValueError as error:
                refused = error
        raise refused
    if isclass(hint) and issubclass(hint, AbstractArray):
        return _array(hint, tree, tensors, where)
    if isclass(hint) and dataclasses.is_dataclass(hint):
        return _dataclass(hint, tree, tensors, where)
    if isinstance(tree, dict) and isclass(origin) and issubclass(origin, Mapping):
        return {
            _key(parts[0], key, where): decode(parts[1], each, tensors, f"{where}[{printable(key, 60)}]")
            for key, each in tree.items()
        }
    if isinstance(tree, list) and isclass(origin) and issubclass(origin, Sequence):
        hints = [parts[0]] * len(tree) if origin is not tuple or parts[1:] == (...,) else list(parts)
        if len(hints) == len(tree):
            entries = (decode(h, each, tensors, f"{where}[{i}]") for i, (h, each) in enumerate(zip(hints, tree)))  # noqa: B905
            return list(entries) if origin is list else tuple(entries)
    if hint is float and type(tree) in (int, float, str) and (type(tree) is not str or tree in _NOT_FINITE):
        return _NOT_FINITE[tree] if isinstance(tree, str) else float(tree)
    if (origin is Literal and tree in parts) or (hint in (str, int, bool) and type(tree) is hint):
        return tree
    if hint in (None, NoneType) and tree is None:
        return None
    raise ValueError(f"{where or 'it'} holds {type(tree).__name__}, wanted {getattr(hint, '__name__', hint)}")


def _key(hint: Any, key: str, where: str) -> Any:
    return decode(hint, int(key) if hint is int and key.isdecimal() else key, {}, f"a key of {where or 'it'}")


def _array(hint: Any, tree: Any, tensors: Mapping[str, torch.Tensor], where: str) -> Any:
    name = tree.get(_ARRAY) if isinstance(tree, dict) and tree.keys() == {_ARRAY} else None
    tensor = tensors.get(name) if isinstance(name, str) else None
    array = tensor.numpy() if tensor is not None and hint.array_type is np.ndarray else tensor
    with jaxtyped("context"):  # axes have their own lengths here, whatever they have in a caller
        is_named = isinstance(array, hint)
    if not is_named:
        got = type(tree).__name__ if tensor is None else f"{tensor.dtype} of shape {tuple(tensor.shape)}"
        raise ValueError(f"{where or 'it'} holds {got}, wanted an array {hint.__name__}")
    return array


def _fields_to_save(kind: Any) -> list[str]:
    """Return the fields of a dataclass that are written; one with the metadata `saved=False` is not.

    A field with the metadata `later=True` was added when there were files already: where it is missing it has its
    default.
    """
    return [field.name for field in dataclasses.fields(kind) if field.metadata.get("saved", True)]


def _dataclass(hint: Any, tree: Any, tensors: Mapping[str, torch.Tensor], where: str) -> Any:
    fields = _fields_to_save(hint)
    if isinstance(tree, dict):  # files from before there was such a field lack it; one that is gone may be empty there
        later = {field.name for field in dataclasses.fields(hint) if field.metadata.get("later", False)}
        fields = [name for name in fields if name in tree or name not in later]
        tree = {key: value for key, value in tree.items() if key in fields or value is not None}
    if not isinstance(tree, dict) or tree.keys() != set(fields):
        got = ", ".join(map(str, tree)) if isinstance(tree, dict) else type(tree).__name__
        raise ValueError(f"{where or 'it'} holds {printable(got, 200)}, wanted {', '.join(fields)}")
    hints = get_type_hints(hint, include_extras=True)
    return hint(**{name: decode(hints[name], tree[name], tensors, f"{where}.{name}") for name in fields})
