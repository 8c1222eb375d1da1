"""What there is to choose from: the groups, options and keys of conf/, the files of sweeps/, and what each means.

All of it is read from the YAML files, whose comments say what each key and each option means, without Hydra: `--help`
and shell completion answer at once.
"""

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

_PACKAGE = Path(__file__).parent.parent
_ROOT = _PACKAGE if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent  # in a wheel, or in a checkout
CONF = _ROOT / "conf"
SWEEPS = _ROOT / "sweeps"
BASE = "base"
"""The file of a group that holds what its options have in common; no option itself."""
LAUNCHERS = "hydra/launcher"


@dataclass(frozen=True)
class Key:
    """A key that can be set on the command line."""

    name: str
    """Dotted: "ig.n_steps"."""
    default: str
    """As it stands in the YAML file: "50", "null", "${seed}"."""
    meaning: str
    """What it means, with its unit; empty where the file does not say."""
    option: str | None = None
    """GROUP=OPTION, where only that option has the key."""


@functools.cache
def group_defaults(config: str) -> dict[str, str | None]:
    """The config groups of conf/CONFIG.yaml, in its order, and the option that each has unless another is chosen.

    Args:
        config: "config" (a run) or "search".
    """
    entries = yaml.safe_load((CONF / f"{config}.yaml").read_text(encoding="utf-8"))["defaults"]
    return {group: option for entry in entries if isinstance(entry, dict) for group, option in entry.items()}


def options(group: str, folder: Path | None = None) -> list[str]:
    """The options of a config group, sorted.

    Args:
        group: "baseline", or "search/space".
        folder: the folder of groups; None is igap's own conf/.
    """
    return sorted(file.stem for file in ((folder or CONF) / group).glob("*.yaml") if file.stem != BASE)


def option_meaning(group: str, option: str) -> str:
    """What an option of a group means: the comment at the head of its file, or else that of its first key."""
    file = CONF / group / f"{option}.yaml"
    return _head(file) or next((meaning for _, meaning in _parse(file)[1].values() if meaning), "")


def options_with(key: str, config: str) -> list[str]:
    """Each GROUP=OPTION of conf/CONFIG.yaml that has this dotted key, or the mapping that it is an entry of."""
    having = []
    for group in group_defaults(config):
        package = f"{group.replace('/', '.')}."
        for option in options(group) if key.startswith(package) else ():
            names = _compose(CONF / group / f"{option}.yaml")
            if any(f"{key}.".startswith(f"{package}{name}.") for name in names):
                having.append(f"{group}={option}")
    return having


def sweep_names(kind: str = "") -> list[str]:
    """The names of the files in sweeps/, or with `kind` "search" of those in sweeps/search/, sorted."""
    return sorted(file.stem for file in (SWEEPS / kind).glob("*.yaml"))


def sweep_meaning(name: str, kind: str = "") -> str:
    """What a file of sweeps/, or sweeps/search/, does: the comment at its head, without the command that runs it."""
    return re.sub(r"^igap \w+ [\w-]+: ", "", _head(SWEEPS / kind / f"{name}.yaml"))


@functools.cache
def config_keys(config: str) -> tuple[Key, ...]:
    """Every key of conf/CONFIG.yaml with its default and its meaning.

    Args:
        config: "config" (a run) or "search".
    """
    own = _parse(CONF / f"{config}.yaml")[1]
    keys = {name: Key(name, *entry) for name, entry in own.items() if not name.startswith("hydra.")}
    for group, default in group_defaults(config).items():
        if group == "experiment":  # sets keys of other groups, and has none of its own
            continue
        for option in (*([default] if default else []), *options(group)):
            for name, (value, meaning) in _compose(CONF / group / f"{option}.yaml").items():
                name = f"{group.replace('/', '.')}.{name}"
                if name not in keys and name.rpartition(".")[0] not in keys:  # else an entry of a mapping
                    keys[name] = Key(name, value, meaning, None if option == default else f"{group}={option}")
    return tuple(keys.values())


def _compose(file: Path) -> dict[str, tuple[str, str]]:
    """Value and meaning of each key of an option, with those of the files that its defaults name below them."""
    below, own = _parse(file)
    entries: dict[str, tuple[str, str]] = {}
    for name in below:
        for key, (value, meaning) in (own if name == "_self_" else _compose(file.with_name(f"{name}.yaml"))).items():
            entries[key] = (value, entries[key][1] if key in entries else meaning)
    return entries


@functools.cache
def _parse(file: Path) -> tuple[list[str], dict[str, tuple[str, str]]]:
    """The defaults that a YAML file names, and by dotted key its values as they stand there with their comments.

    The comment of a key stands behind its value, or in the lines above it. A mapping with a comment behind its name is
    one value.
    """
    text = file.read_text(encoding="utf-8")
    root = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    defaults = [value for key, value in root.value if key.value == "defaults"]
    names = [entry.value for entry in defaults[0].value if isinstance(entry.value, str)] if defaults else ["_self_"]
    return names, dict(_entries(root, "", text.splitlines()))


def _entries(node: Any, above: str, lines: list[str]) -> Iterator[tuple[str, tuple[str, str]]]:
    for key, value in node.value:
        name = f"{above}{key.value}"
        nested = isinstance(value, yaml.MappingNode) and not value.flow_style
        end = key.end_mark if nested else value.end_mark
        comment = re.match(r":?\s*#\s*(.*)", lines[end.line][end.column :]) if end.line < len(lines) else None
        meaning = comment[1] if comment else " ".join(_comment_above(lines, key.start_mark.line))
        if nested and not comment:
            yield from _entries(value, f"{name}.", lines)
        elif name != "defaults":
            text = "{...}" if nested else lines[end.line][value.start_mark.column : end.column]
            yield name, (text or "null", meaning)


def _comment_above(lines: list[str], line: int) -> list[str]:
    """The lines of comment right above a line, but for those at the head of the file, which are about all of it."""
    first = line
    while first and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return [text.strip().removeprefix("#").strip() for text in lines[first:line]] if first else []


def _head(file: Path) -> str:
    """The comment at the head of a file, as one line, without what is meant for Hydra."""
    lines = file.read_text(encoding="utf-8").splitlines()
    head = lines[: next((index for index, line in enumerate(lines) if not line.startswith("#")), len(lines))]
    return " ".join(line.removeprefix("#").strip() for line in head if not line.startswith("# @package"))
