"""What several commands take: overrides, their completion, and sections of help that are made when asked for."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from igap.cli.parsing import Section

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

Function = TypeVar("Function", bound=Callable[..., Any])


def complete_with(name: str) -> "Callable[[click.Context, click.Parameter, str], list[CompletionItem[str]]]":
    """A function of `igap.cli.completion`, imported when a shell asks."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem[str]]":
        from igap.cli import completion

        items: list[CompletionItem[str]] = getattr(completion, name)(ctx, param, incomplete)
        return items

    return complete


def sections_of(name: str, *arguments: str) -> Callable[[], Sequence[Section]]:
    """A function of `igap.cli.help`, imported when help is asked for."""

    def sections() -> Sequence[Section]:
        from igap.cli import help as details

        made: Sequence[Section] = getattr(details, name)(*arguments)
        return made

    return sections


def takes_overrides(function: Function) -> Function:
    """Adds the overrides, which are Hydra's to read."""
    argument = click.argument(
        "overrides",
        metavar="[KEY=VALUE]...",
        nargs=-1,
        type=click.UNPROCESSED,
        shell_complete=complete_with("complete_overrides"),
    )
    return argument(function)
