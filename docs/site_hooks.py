"""Pages of the site that are made from other sources each time it is built: the keys, and files of the repository."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from igap.cli.settings import Key, config_keys, group_defaults, option_meaning, options
from igap.config import Frozen, RunConfig, field_at
from igap.counterfactual.config import SearchConfig

ROOT = Path(__file__).parents[1]
COPIED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "LICENSE": "LICENSE",
    "CITATION.cff": "CITATION.cff",
    "igap/models/ioi_mini/README.md": "reference/ioi-mini.md",
}
"""Files from elsewhere in the repository, and where they are in the site."""

_PLAIN = {str: "text", int: "whole number", float: "number", bool: "true or false"}
_BOUNDS = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}"}


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds the pages that no file of docs/ holds."""
    pages = {page: _in_site((ROOT / file).read_text(encoding="utf-8")) for file, page in COPIED.items()}
    pages["reference/keys.md"] = keys_page()
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))


def _in_site(text: str) -> str:
    """The text of a file at the top of the repository, with its links as they are in the site."""
    return re.sub(r"\]\(([^):#]+)", lambda link: f"]({COPIED.get(link[1], link[1].removeprefix('docs/'))}", text)


def keys_page() -> str:
    """Every key of a run and of a search, as `igap run --help` and `igap search --help` read them from conf/."""
    return "\n".join(
        (
            "# Every key\n",
            "This page is made from the files in `conf/` and the schema that checks them. `igap run --help` and",
            "`igap search --help` print the same. A key is set as `igap run ig.n_steps=100`, and an option of a group,",
            "which sets several keys at once, as `igap run baseline=zero`.\n",
            *_config("Keys of a run", "config", RunConfig),
            *_config("Keys of a search", "search", SearchConfig),
        )
    )


def _config(title: str, config: str, schema: type[Frozen]) -> Iterator[str]:
    yield f"## {title}\n"
    keys = config_keys(config)
    for group, default in group_defaults(config).items():
        dotted = group.replace("/", ".")
        own = [key for key in keys if key.name.startswith(f"{dotted}.")]
        if not own and not options(group):
            continue
        yield f"### `{group}` {{ #{config}-{dotted.replace('.', '-')} }}\n"
        if len(options(group)) > 1:
            yield from ("| option | |", "|---|---|")
            for option in options(group):
                meaning = option_meaning(group, option) + (" (default)" if option == default else "")
                yield f"| `{group}={option}` | {_cell(meaning)} |"
            yield ""
        yield from _table(own, schema)
    groups = tuple(f"{group.replace('/', '.')}." for group in group_defaults(config))
    yield f"### Keys without a group {{ #{config}-plain }}\n"
    yield from _table([key for key in keys if not key.name.startswith(groups)], schema)


def _table(keys: list[Key], schema: type[Frozen]) -> Iterator[str]:
    if keys:
        yield from ("| key | type | default | meaning |", "|---|---|---|---|")
    for key in keys:
        meaning = f"{key.meaning} (only with `{key.option}`)" if key.option else key.meaning
        default = "" if key.default == "???" else f"`{key.default}`"
        yield f"| `{key.name}` | {_type_of(key.name, schema)} | {default} | {_cell(meaning)} |"
    yield ""


def _type_of(name: str, schema: type[Frozen]) -> str:
    """The type of a key in words, as the schema has it."""
    field = field_at(tuple(name.split(".")), schema)
    assert field is not None, name
    return "; ".join(filter(None, (_words(field.annotation), _bounds(field.metadata))))


def _words(kind: Any) -> str:
    """A type of the schema: "whole number or `null`"."""
    if kind in _PLAIN:
        return _PLAIN[kind]
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _words(parts[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in parts)
    if origin is tuple:
        return f"list of: {_words(parts[0])}"
    if origin is dict:
        return "mapping"
    if origin in (Union, UnionType):
        return " or ".join("`null`" if part is type(None) else _words(part) for part in parts)
    raise TypeError(f"no words for the type {kind}")


def _bounds(metadata: list[Any]) -> str:
    """What a number may be: "≥ 2, ≤ 100000"."""
    return ", ".join(
        sign.format(f"{limit:g}" if limit < 10**6 else f"{limit:.4g}")
        for name, sign in _BOUNDS.items()
        for entry in metadata
        if (limit := getattr(entry, name, None)) is not None and limit < 2**63 - 1
    )


def _cell(text: str) -> str:
    """A text as a cell of a table of Markdown."""
    return re.sub(r"([|<*])", r"\\\1", text)
