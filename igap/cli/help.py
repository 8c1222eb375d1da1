"""The sections of `--help` that are made from conf/ and sweeps/."""

from collections.abc import Sequence

from igap.cli import settings
from igap.cli.parsing import Section
from igap.cli.settings import (
    LAUNCHERS,
    Key,
    config_keys,
    group_defaults,
    option_meaning,
    options,
    sweep_meaning,
    sweep_names,
)

_LONGEST_DEFAULT = 40
"""Characters of a default that are shown."""


def config_sections(config: str) -> list[Section]:
    """The groups with their options, and every key with its default and its meaning.

    Args:
        config: "config" (a run) or "search".
    """
    groups = [
        (f"{group}={option}", _mark_default(option_meaning(group, option), option == default))
        for group, default in group_defaults(config).items()
        if options(group) != [default]
        for option in options(group)
    ]
    keys = [(f"{key.name}={_short(key.default)}", _add_limit(key)) for key in config_keys(config)]
    return [
        ("Groups, GROUP=OPTION: several keys at once, from a file of conf/", groups),
        ("Launchers of a multirun's processes", launcher_rows()),
        ("Keys, KEY=VALUE, with their defaults", keys),
    ]


def launcher_rows() -> list[tuple[str, str]]:
    """Each launcher and what it does."""
    others = [(f"{LAUNCHERS}={name}", option_meaning(LAUNCHERS, name)) for name in options(LAUNCHERS)]
    return [(f"{LAUNCHERS}=basic", _mark_default("This process, one job after the other.", True)), *others]


def sweep_sections(kind: str = "") -> list[Section]:
    """The files of sweeps/, or with `kind` "search" of sweeps/search/, and what each does."""
    rows: Sequence[tuple[str, str]] = [(name, sweep_meaning(name, kind)) for name in sweep_names(kind)]
    return [(f"Names, of files in {settings.SWEEPS / kind}", rows)]


def _mark_default(meaning: str, is_default: bool) -> str:
    return f"{meaning} (default)" if is_default else meaning


def _add_limit(key: Key) -> str:
    return f"{key.meaning} (only with {key.option})" if key.option else key.meaning


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_DEFAULT else f"{text[: _LONGEST_DEFAULT - 1]}…"
