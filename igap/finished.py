"""Finished runs on disk: their numbers and settings, read back from what `records` wrote. Imports nothing heavy."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igap.errors import InputError

SCHEMA = 1
"""Of summary.json and config.json; another number means that names or units have changed."""

SUMMARIES = ("summary.json", "search_summary.json")
"""A file that is written last: of a run, of a search."""

Value = float | int | str | bool | None | tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Finished:
    """One finished run."""

    folder: Path
    summary: Mapping[str, float | int | str | None]
    """summary.json."""
    settings: Mapping[str, Value]
    """Dotted key to value, "ig.n_steps" to 50; empty where config.json cannot be read."""

    @property
    def key(self) -> str:
        """Of the settings that determine the numbers."""
        return str(self.summary.get("key", self.folder.name))

    @property
    def has_heads(self) -> bool:
        """Whether heads were asked for."""
        return self.settings.get("sites") != "neurons"


def failures_of(summary: Mapping[str, Any]) -> dict[str, str]:
    """What of a run failed, with its reason: follow-ups and figures that it was finished without."""
    return {name: str(summary.get(f"{name}/reason", "")) for name in str(summary.get("failed", "")).split()}


def find(folders: Iterable[Path], *, searches: bool = False) -> tuple[list[Finished], list[str]]:
    """The finished runs in these folders, each a run's or one that holds runs, and a line for each that is unreadable.

    Each run once, in the order of the folders and in them by path; a run inside another, as a study has them, belongs
    to that one. With `searches` also finished searches, each before the runs in its folder. Raises InputError on what
    is no folder, and where there is no run at all.
    """
    runs: dict[Path, Finished] = {}
    troubles: list[str] = []
    asked = list(folders)
    for folder in asked:
        if not folder.is_dir():
            raise InputError(f"folder: got {folder}, which is none, wanted a run's folder or one that holds runs.")
        for place in _run_folders(folder, set(), troubles, SUMMARIES if searches else SUMMARIES[:1]):
            if place.resolve() not in runs:
                run, trouble = read(place)
                troubles += [trouble] if trouble else []
                if run is not None:
                    runs[place.resolve()] = run
    if not runs and not troubles:
        raise InputError(
            f"folder: got {', '.join(map(str, asked))}, without a finished run in it (no summary.json), wanted a run's "
            "folder or one that holds runs. Start some with igap run or igap sweep."
        )
    return list(runs.values()), troubles


def read(folder: Path) -> tuple[Finished | None, str | None]:
    """The run in a folder, None where its summary cannot be read; and what is wrong with it, None where nothing is."""
    file = next((name for name in SUMMARIES if (folder / name).exists()), SUMMARIES[0])
    try:
        summary = json.loads((folder / file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return None, f"{folder}: left out: {file} cannot be read ({error})."
    if not isinstance(summary, dict):
        return None, f"{folder}: left out: {file} holds {type(summary).__name__}, wanted names and numbers."
    schema = summary.get("schema")
    if schema != SCHEMA:
        return Finished(folder, summary, {}), (
            f"{folder}: its schema is {'none' if schema is None else schema}, this igap knows {SCHEMA}: its numbers "
            "are shown under their names, its settings are not."
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return Finished(folder, summary, {}), f"{folder}: its settings cannot be read ({error})."
    if not isinstance(config, dict):
        return Finished(folder, summary, {}), f"{folder}: its settings cannot be read (config.json holds no names)."
    return Finished(folder, summary, dict(flat(config))), None


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Value]]:
    """Dotted keys of nested settings and their values, lists as tuples."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, tuple(value) if isinstance(value, list) else value


def _run_folders(folder: Path, visited: set[Path], troubles: list[str], files: Sequence[str]) -> Iterator[Path]:
    """Folders with one of the files, and none inside a run's; hidden ones hold no runs. Links are followed once."""
    if folder.resolve() in visited:
        return
    visited.add(folder.resolve())
    try:
        found = [name for name in files if (folder / name).is_file()]
        if found:
            yield folder
        if "summary.json" in found:
            return
        inside = sorted(inner for inner in folder.iterdir() if inner.is_dir())
    except OSError as error:
        troubles.append(f"{folder}: left out: it cannot be read ({error.strerror}).")
        return
    for inner in inside:
        if not inner.name.startswith(".") and inner.name not in ("wandb", "plots"):
            yield from _run_folders(inner, visited, troubles, files)
