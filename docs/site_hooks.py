"""Pages that are made while the site is built: the keys, the notebook, files from elsewhere in the repository."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from igap.analyses.registry import ANALYSES
from igap.cli.settings import Key, config_keys, group_defaults, option_meaning, options
from igap.config import Frozen, RunConfig, field_at
from igap.counterfactual.config import SearchConfig
from igap.vocabulary import LARGEST_SEED

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

NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"

_PLAIN = {str: "text", int: "whole number", float: "number", bool: "true or false"}
_BOUNDS = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}"}


def on_config(config: MkDocsConfig) -> None:
    """Puts the notebook first among the tutorials, once it is there."""
    if NOTEBOOK.is_file():
        (tutorials,) = (entry["Tutorials"] for entry in config.nav or () if "Tutorials" in entry)
        tutorials.insert(0, "tutorial.md")


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds the pages that no file of docs/ holds."""
    pages = {page: _in_site((ROOT / file).read_text(encoding="utf-8")) for file, page in COPIED.items()}
    pages["reference/keys.md"] = keys_page()
    if NOTEBOOK.is_file():
        pages["tutorial.md"] = notebook_page(json.loads(NOTEBOOK.read_text(encoding="utf-8")))
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))


def _in_site(text: str) -> str:
    """The text of a file at the top of the repository, with its links as they are in the site."""
    return re.sub(r"\]\(([^):#]+)", lambda link: f"]({COPIED.get(link[1], link[1].removeprefix('docs/'))}", text)


def notebook_page(notebook: dict[str, Any]) -> str:
    """The cells of a notebook and what they gave, as Markdown."""
    blocks = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            blocks.append(source)
        elif cell["cell_type"] == "code":
            blocks.append(_fenced(source, "python"))
            blocks += map(_output, cell["outputs"])
    return "\n\n".join(blocks)


def _output(output: dict[str, Any]) -> str:
    """What a cell gave, in the richest form that it has."""
    if output["output_type"] == "stream":
        return _fenced("".join(output["text"]))
    data = {kind: "".join(text) for kind, text in output["data"].items()}
    if "text/html" in data:
        html = re.sub(r"\n\s*\n", "\n", data["text/html"].strip())  # a blank line would end it for Markdown
        return f"<div>{html}</div>"
    if "image/png" in data:
        return f"![{data.get('text/plain', '')}](data:image/png;base64,{data['image/png'].strip()})"
    return _fenced(data["text/plain"])


def _fenced(text: str, language: str = "") -> str:
    return f"```{language}\n{text.rstrip()}\n```"


def keys_page() -> str:
    """Every key of a run and of a search, as `igap run --help` and `igap search --help` read them from conf/."""
    return "\n".join(
        (
            "---\nsearch: {boost: 2}\n---\n# Every key\n",
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
    parts = name.split(".")
    if parts[0] == "analyses" and len(parts) == 3:  # an analysis checks its own settings
        parts, schema = parts[2:], ANALYSES[parts[1]].settings or schema
    field = field_at(tuple(parts), schema)
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
    """What a number may be: "≥ 2, ≤ 100,000"."""
    return ", ".join(
        sign.format(f"{limit:,}")
        for name, sign in _BOUNDS.items()
        for entry in metadata
        if (limit := getattr(entry, name, None)) is not None and limit < LARGEST_SEED
    )


def _cell(text: str) -> str:
    """A text as a cell of a table of Markdown."""
    return re.sub(r"([|<*])", r"\\\1", text)
