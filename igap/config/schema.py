"""What every schema has: it refuses unknown keys and wrong types, in one line a mistake, and can be asked for its keys.

A key is dotted, `ig.n_steps`. This module reads no file and imports no heavy library.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from igap.errors import InputError, did_you_mean_of, short_repr

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)


class _Checked(ModelMetaclass):
    """Makes invalid settings from Python an InputError, with the lines of the command line."""

    def __call__(self, **values: Any) -> Any:
        schema: Any = self
        return validate_settings(schema, values)


class Frozen(BaseModel, metaclass=_Checked):
    """A group of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _as_cell(words: object) -> object:
    """A list of words as the cell of a table has it, a JSON list."""
    return json.dumps(list(words), ensure_ascii=False) if isinstance(words, list | tuple) and words else words


Words = Annotated[str, BeforeValidator(_as_cell)]
"""A word, or a set of words as a JSON list."""

Schema = TypeVar("Schema", bound=Frozen)


def validate_settings(schema: type[Schema], values: Mapping[str, Any]) -> Schema:
    """Validate settings against a schema. Raises InputError as `parse` does."""
    try:
        return schema.model_validate(dict(values))
    except ValidationError as error:
        mistakes: list[dict[str, Any]] = [dict(mistake) for mistake in error.errors(include_url=False)]
        lists = {
            mistake["loc"][:-1] for mistake in mistakes
        }  # pydantic calls a list with bad entries too short as well
        mistakes = [each for each in mistakes if each["type"] != "too_short" or each["loc"] not in lists]
        # A key that takes its value from a key of the same name at the top is reported there.
        at_top = {(each["loc"], each["type"], short_repr(each["input"])) for each in mistakes if len(each["loc"]) == 1}
        mistakes = [
            each
            for each in mistakes
            if len(each["loc"]) < 2 or (each["loc"][-1:], each["type"], short_repr(each["input"])) not in at_top
        ]
        lines: dict[tuple[str, ...], str] = {}
        for mistake in mistakes:
            lines.setdefault(_path(mistake), _explain(mistake, schema))  # one line a list, about its first bad entry
        raise InputError("\n".join(lines.values())) from None


def field_at(path: tuple[str, ...], schema: type[Frozen]) -> Any | None:
    """The pydantic field (or the group's class) at a dotted key; None if there is none."""
    model: Any = schema
    field: Any = None
    for name in path:
        if not (isinstance(model, type) and issubclass(model, BaseModel)) or name not in model.model_fields:
            return None
        field = model.model_fields[name]
        model = field.annotation
    return field


def example(path: tuple[str, ...], schema: type[Frozen]) -> str:
    """An override with a valid value of this key: "ig.n_steps=50"."""
    field = field_at(path, schema)
    default = None if field is None or field.is_required() else field.get_default()
    value = default if default is not None else next(iter(getattr(field, "examples", None) or []), "VALUE")
    value = f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else value
    return f"{'.'.join(path)}={value}"


def noun(schema: type[Frozen]) -> str:
    """The schema's subject: "run" or "search"."""
    return schema.__name__.removesuffix("Config").lower()


def keys(schema: type[Frozen]) -> list[str]:
    """All dotted keys of a schema, in order."""
    names = []
    for name, field in schema.model_fields.items():
        group = field.annotation
        if isinstance(group, type) and issubclass(group, Frozen):
            names += [f"{name}.{key}" for key in keys(group)]
        else:
            names.append(name)
    return names


def _path(error: dict[str, Any]) -> tuple[str, ...]:
    """The dotted key of a mistake, without indices of a list."""
    return tuple(part for part in error["loc"] if isinstance(part, str))


def _explain(error: dict[str, Any], schema: type[Frozen]) -> str:
    path = _path(error)
    item, got, kind, details = ".".join(path), error["input"], error["type"], error.get("ctx", {})
    group = getattr(field_at(path, schema), "annotation", None) if kind == "value_error" else None
    if not path or (isinstance(group, type) and issubclass(group, Frozen)):
        # a combination, explained where it is checked
        return str(details["error"])
    if kind == "extra_forbidden":
        known = ", ".join(keys(schema))
        return f"{item}: got a key that no {noun(schema)} has, wanted one of {known}. Remove it or correct the name."
    if kind == "model_type" and isinstance(got, str):
        option = f"{'/'.join(path)}={got}"
        return f"{item}: got {short_repr(got)}, wanted settings of this group. Choose an option of it: {option}."
    wanted = {
        "missing": "a value",
        "bool_type": "true or false",
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "string_type": "a text",
        "string_too_short": "a text that is not empty",
        "string_too_long": f"at most {details.get('max_length')} characters",
        "too_short": "at least one entry",
        "tuple_type": "a list, [A,B]",
        "dict_type": "settings by name, {NAME: {KEY: VALUE}}",
        "greater_than_equal": f"at least {details.get('ge')}",
        "greater_than": f"more than {details.get('gt', 0):g}",
        "less_than": f"less than {details.get('lt', 0):g}",
        "less_than_equal": f"at most {details.get('le')}",
        "finite_number": "a finite number",
        "literal_error": f"one of {details.get('expected')}",
        "string_pattern_mismatch": getattr(field_at(path, schema), "description", None) or "another text",
        "value_error": str(details.get("error")),
    }.get(kind, error["msg"])
    value = "nothing" if kind == "missing" else short_repr(got)
    near = did_you_mean_of(got, wanted) if wanted.startswith("one of ") else ""
    return f"{item}: got {value}, wanted {wanted}.{near or f' Try {example(path, schema)}.'}"
