"""What igap's commands have beyond click's: settings written NAME=VALUE, errors in one line, sections of help."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import click

from igap.errors import InputError, did_you_mean

Section = tuple[str, Sequence[tuple[str, str]]]
"""A title, and rows of a term and its meaning."""

_EXIT_CODES = "Exit codes: 0 done, 1 something failed, 2 bad input, 130 interrupted."
_WIDEST_TERM = 34
"""Columns of help for terms; longer ones have a line of their own."""


class Setting(click.Option):
    """An option written NAME=VALUE, as a key of Hydra's is; --NAME VALUE does as well."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        """The option as help shows it."""
        return f"{self.name}={self.make_metavar(ctx)}", self.help or ""


class OneOf(click.Choice[str]):
    """One of several values."""

    def get_invalid_choice_message(self, value: object, ctx: click.Context | None) -> str:  # noqa: ARG002 - click's
        """The error in igap's words."""
        return f"got {str(value)!r}, wanted one of {', '.join(self.choices)}."


class Positive(click.ParamType[int]):
    """A whole number from 1 on."""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number. Refuses everything else."""
        try:
            number = int(value)
        except ValueError:
            number = 0
        return number if number > 0 else self.fail(f"got {value!r}, wanted a whole number from 1 on.", param, ctx)


class Command(click.Command):
    """A command whose help has further sections, and whose settings may be written NAME=VALUE.

    Args:
        arguments: rows of help for what is no option.
        examples: rows of a command line and what it does.
        sections: further sections of help, made when they are asked for.
        needs_arguments: whether help is shown, with exit code 2, where nothing is given.
        shorthands: arguments to what they stand for.
    """

    def __init__(
        self,
        *args: Any,
        arguments: Sequence[tuple[str, str]] = (),
        examples: Sequence[tuple[str, str]] = (),
        sections: Callable[[], Sequence[Section]] = tuple,
        needs_arguments: bool = False,
        shorthands: dict[str, str] | None = None,
        **options: Any,
    ) -> None:
        """Takes click's arguments, and those of the class."""
        super().__init__(*args, **options)
        self.arguments = arguments
        self.examples = examples
        self.sections = sections
        self.needs_arguments = needs_arguments
        self.shorthands = shorthands or {}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parses the arguments. Raises InputError on an unknown setting, and on an empty value."""
        if not args and self.needs_arguments and not ctx.resilient_parsing:
            click.echo(ctx.get_help())
            ctx.exit(2)
        try:
            rest = super().parse_args(ctx, [self._as_option(ctx, argument) for argument in args])
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise
        for param in self.params:
            if isinstance(param, click.Option) and ctx.params.get(str(param.name)) == "" and not ctx.resilient_parsing:
                raise InputError(_nothing(_label(param), ctx))
            if isinstance(param, click.Argument) and "" in args and not ctx.resilient_parsing:
                raise InputError(_nothing(_label(param), ctx, param.make_metavar(ctx)))
        return rest

    def _as_option(self, ctx: click.Context, argument: str) -> str:
        """The argument as click knows it: NAME=VALUE as --NAME=VALUE, unless it is the name of a file."""
        settings = {param.name for param in self.params if isinstance(param, Setting)}
        name, equals, _ = argument.partition("=")
        if not (settings and equals) or argument.startswith("-") or os.path.exists(argument):
            return self.shorthands.get(argument, argument)
        if name not in settings and not ctx.resilient_parsing:
            raise InputError(_unknown_option(argument, ctx))
        return f"--{argument}"

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes arguments, options, examples and the further sections."""
        options = [param.get_help_record(ctx) for param in self.get_params(ctx) if isinstance(param, click.Option)]
        for title, rows in (
            ("Arguments", self.arguments),
            ("Options", [record for record in options if record is not None]),
            ("Examples", self.examples),
            *self.sections(),
        ):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows, col_max=_WIDEST_TERM)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        """Writes the exit codes."""
        formatter.write_paragraph()
        formatter.write_text(_EXIT_CODES)


class Group(click.Group):
    """Commands in the order in which they are defined.

    Args:
        default: the command that is meant where the first argument is no command's name; None: there is none.
        examples: rows of a command line and what it does.
    """

    command_class = Command

    def __init__(
        self, *args: Any, default: str | None = None, examples: Sequence[tuple[str, str]] = (), **options: Any
    ) -> None:
        """Takes click's arguments, and those of the class."""
        super().__init__(*args, **options)
        self.default = default
        self.examples = examples

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's
        """The names of the commands."""
        return list(self.commands)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parses what stands before the command."""
        helps = ("-h", "--help")
        if self.default is None:
            args = ["--help"] if args[:1] in ([], ["help"]) else args
        elif (not args or "=" in args[0] or args[0].startswith("-")) and args[:1] not in ([each] for each in helps):
            args = args if ctx.resilient_parsing else [self.default, *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command and its arguments. Raises InputError on an unknown one."""
        if args[0] not in self.commands and not args[0].startswith("-") and not ctx.resilient_parsing:
            known = list(self.commands)
            raise InputError(
                f"command: got {args[0]!r}, wanted one of {', '.join(known)}.{did_you_mean(args[0], known)} "
                f"{ctx.command_path} --help shows them."
            )
        return super().resolve_command(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the examples and the exit codes."""
        if self.examples:
            with formatter.section("Examples"):
                formatter.write_dl(self.examples, col_max=_WIDEST_TERM)
        formatter.write_paragraph()
        formatter.write_text(f"{_EXIT_CODES} {ctx.command_path} COMMAND --help says more of a command.")


def explain(error: click.UsageError, program: click.Context) -> str:
    """What click refuses, in one line: item, got, wanted, remedy.

    Args:
        error: raised while arguments were parsed.
        program: the context of the program, for errors that know none of their own.
    """
    ctx = error.ctx or program
    match error:
        case click.NoSuchOption():
            return _unknown_option(error.option_name, ctx)
        case click.BadOptionUsage():
            params = [param for param in ctx.command.get_params(ctx) if error.option_name in param.opts]
            if any(getattr(param, "is_flag", False) for param in params):
                return f"{error.option_name}: got a value, wanted none. Write {error.option_name}."
            return _nothing(error.option_name, ctx)
        case click.MissingParameter(param=click.Parameter() as param):
            return _nothing(_label(param), ctx, param.make_metavar(ctx))
        case click.BadParameter(param=click.Parameter() as param):
            return f"{_label(param)}: {error.message} {ctx.command_path} --help says what each means."
    wanted = " ".join(ctx.command.collect_usage_pieces(ctx))
    message = error.message.rstrip(".")
    return (
        f"{ctx.command_path}: {message[:1].lower()}{message[1:]}, wanted {wanted}. {ctx.command_path} --help says more."
    )


def _label(param: click.Parameter) -> str:
    """The parameter as one types it."""
    return str(param.name) if isinstance(param, Setting | click.Argument) else max(param.opts, key=len)


def _nothing(label: str, ctx: click.Context, wanted: str = "a value") -> str:
    return f"{label}: got nothing, wanted {wanted}. {ctx.command_path} --help shows what it takes."


def _unknown_option(got: str, ctx: click.Context) -> str:
    params = ctx.command.get_params(ctx)
    wanted = [param.make_metavar(ctx).strip("[].") for param in params if isinstance(param, click.Argument)]
    known = [_label(param) for param in params if isinstance(param, click.Option)]
    names = [*known, *(name for param in params for name in param.opts)]
    return (
        f"option: got {got!r}, which {ctx.command_path} does not have, wanted "
        f"{' or '.join([*wanted, 'one of ' + ', '.join(known)])}.{did_you_mean(got.partition('=')[0], names)} "
        f"{ctx.command_path} --help shows them."
    )
