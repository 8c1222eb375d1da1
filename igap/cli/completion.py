"""Shell completion of overrides: groups, options, keys and their values. The rest is click's own."""

from collections.abc import Iterable, Sequence
from typing import get_args

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class

from igap.cli.settings import (
    LAUNCHERS,
    config_keys,
    group_defaults,
    option_meaning,
    options,
    sweep_meaning,
    sweep_names,
)


@add_completion_class
class Bash(BashComplete):
    """Click's, but that no space follows `baseline=`."""

    name = "bash"
    source_template = BashComplete.source_template.replace("-o nosort", "-o nosort -o nospace")

    def format_completion(self, item: "CompletionItem[str]") -> str:
        """A line of what the script reads."""
        return super().format_completion(item) + ("" if item.value.endswith("=") or item.type != "plain" else " ")


def complete_overrides(ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem[str]]":
    """What an override can go on with; before the overrides of a sweep or a search, the names of files in sweeps/."""
    config = "search" if ctx.command.name == "search" else "config"
    typed: Sequence[str] = ctx.params.get(str(param.name)) or ()
    items: list[tuple[str, str | None]] = []
    key, equals, value = incomplete.partition("=")
    if not equals and typed[-1:] == ("=",):  # bash takes KEY=VALUE apart
        return _items_for(_values(typed[-2], config), value or key)
    if not incomplete and typed and "=" not in typed[-1] and _values(typed[-1], config):
        return _items_for(_values(typed[-1], config), "")
    if equals:
        return _items_for(((f"{key}={name}", meaning) for name, meaning in _values(key, config)), incomplete)
    if config == "search" and not typed:
        items += [(name, sweep_meaning(name, "search")) for name in sweep_names("search")]
    items += [(f"{group}=", None) for group in (*group_defaults(config), LAUNCHERS)]
    items += [(f"{known.name}=", known.meaning) for known in config_keys(config)]
    return _items_for(items, incomplete)


def complete_sweeps(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> "list[CompletionItem[str]]":
    """The names of the files in sweeps/."""
    return _items_for(((name, sweep_meaning(name)) for name in sweep_names()), incomplete)


def _values(key: str, config: str) -> list[tuple[str, str | None]]:
    """The options of a group, or the values of a key that takes few."""
    if key in (*group_defaults(config), LAUNCHERS):
        return [(option, option_meaning(key, option)) for option in options(key)]
    from igap.config import RunConfig, field_at
    from igap.counterfactual.config import SearchConfig

    field = field_at(tuple(key.split(".")), SearchConfig if config == "search" else RunConfig)
    annotation = getattr(field, "annotation", None)
    if annotation is bool or bool in get_args(annotation):
        return [("true", None), ("false", None)]
    return [(value, None) for value in get_args(annotation) if isinstance(value, str)]


def _items_for(items: Iterable[tuple[str, str | None]], text: str) -> "list[CompletionItem[str]]":
    return [CompletionItem(value, help=meaning or None) for value, meaning in items if value.startswith(text)]
