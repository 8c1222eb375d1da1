"""The page of refusals, made from the sources each time the site is built: every message of an InputError."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PACKAGE = Path(__file__).parents[1] / "igap"
ROOMS = {
    "config": "Settings",
    "arguments": "Arguments of Python functions",
    "inputs": "Prompts and their files",
    "models": "Models",
    "engine": "The engine",
    "attribution": "IG, AP, AtP",
    "statistics": "Comparing maps",
    "analyses": "Analyses",
    "pipeline": "Preparing a run",
    "storage": "Files",
    "output": "Results, pictures, W&B",
    "sweep": "Sweeps",
    "counterfactual": "Searches",
    "cli": "The command line",
}
"""The title of each room's section, in the order of the page."""


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds the page."""
    files.append(File.generated(config, "reference/messages.md", content=messages_page()))


def messages_page() -> str:
    """Every message, by the room that says it."""
    sections = [
        "# What igap refuses, and what to do",
        "Input that is invalid gets one line: the item, what it got, what was wanted, and a remedy. The command line "
        "prints it and exits with 2, where possible before the model loads. In Python it is an `igap.InputError` (a "
        "`ValueError`). What each key may be stands on the page of [keys](keys.md). This page is made from the "
        "sources. *Italics* stand for what depends on your input.",
    ]
    for room, title in ROOMS.items():
        lines = sorted(set(_messages_of(room)))
        if lines:
            sections += [f"## {title}", "\n".join(f"- {line}" for line in lines)]
    return "\n\n".join(sections) + "\n"


def _messages_of(room: str) -> Iterator[str]:
    """The messages of all modules of a room, as Markdown."""
    for path in sorted([*PACKAGE.glob(f"{room}.py"), *(PACKAGE / room).rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "").endswith("InputError") and node.args:
                text = re.sub(r"(?<=\w)\*\*(?=\w)", "* *", _text(node.args[0]).strip())  # two names side by side
                # What is nothing but names is put together elsewhere.
                if re.sub(r"\*[^*]*\*", "", text).strip(" ,:;.()"):
                    yield text


def _text(node: ast.expr) -> str:
    """A string, with the names of what is filled in as italics."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"([*_<>`\[\]|])", r"\\\1", node.value).replace("\n", " ")
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    if isinstance(node, ast.FormattedValue):
        return _text(node.value)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    if isinstance(node, ast.IfExp):
        return f"{_text(node.body)} *or* {_text(node.orelse)}"
    names = [part.id for part in ast.walk(node) if isinstance(part, ast.Name)]
    attributes = [part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)]
    name = next(iter([*attributes, *reversed(names)]), "...")
    return f"*{name.strip('_').replace('_', ' ')}*"
