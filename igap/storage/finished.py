"""Finished runs on disk: their numbers and settings, read back from what `records` wrote. Imports nothing heavy."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igap.errors import InputError, printable
from igap.storage.untrusted import is_text, read_names

SCHEMA = 1
"""Of summary.json and config.json; another number means that names or units have changed."""

SUMMARIES = ("summary.json", "search_summary.json")
"""A file that is written last: of a run, of a search."""

_MOST_NUMBERS = 10_000
_MOST_SETTINGS = 1_000
"""Names in a summary, and in a config: far more than any has."""

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


def lost_findings(summary: Mapping[str, Any]) -> dict[str, str]:
    """The findings that failed, with their reasons. Another try may find them; figures and pages are left out."""
    return {
        name: reason
        for name, reason in failures_of(summary).items()
        if not (name.startswith("plots/") or "/plots/" in name or name.rpartition("/")[2] == "page")
    }


def failures_of(summary: Mapping[str, Any]) -> dict[str, str]:
    """What of a run failed, with its reason: analyses and figures that it was finished without."""
    return {name: str(summary.get(f"{name}/reason", "")) for name in str(summary.get("failed", "")).split()}


def find(folders: Iterable[Path], *, searches: bool = False) -> tuple[list[Finished], list[str]]:
    """The finished runs in these folders, each a run's or one that holds runs, and a line for each that is unreadable.

    Each run once, in the order of the folders and in them by path; a run inside another, as a study has them, belongs
    to that one. With `searches` also finished searches, each before the runs in its folder. Raises InputError on what
    is no folder, and where there is no run at all.
    """
    runs: dict[tuple[int, int], Finished] = {}
    troubles: list[str] = []
    asked = list(folders)
    for folder in asked:
        if not os.path.isdir(folder):
            raise InputError(
                f"folder: got {printable(folder)}, which is none, wanted a run's folder or one that holds runs."
            )
        for identity, place in _run_folders(folder, troubles, SUMMARIES if searches else SUMMARIES[:1]):
            if identity not in runs:
                run, trouble = read(place)
                troubles += [trouble] if trouble else []
                if run is not None:
                    runs[identity] = run
    if not runs and not troubles:
        raise InputError(
            f"folder: got {', '.join(map(printable, asked))}, without a finished run in it (no summary.json), wanted a "
            "run's folder or one that holds runs. Start some with igap run or igap sweep."
        )
    return list(runs.values()), troubles


def read(folder: Path) -> tuple[Finished | None, str | None]:
    """The run in a folder, None where its summary cannot be read; and what is wrong with it, None where nothing is."""
    file = next((name for name in SUMMARIES if os.path.lexists(folder / name)), SUMMARIES[0])
    place = printable(folder)
    try:
        summary = _summary(folder / file)
    except ValueError as error:
        return None, f"{place}: left out: {file} cannot be read ({error})."
    schema = summary.get("schema")
    if schema != SCHEMA:
        return Finished(folder, summary, {}), (
            f"{place}: its schema is {'none' if schema is None else printable(schema, 60)}, this igap knows {SCHEMA}: "
            "its numbers are shown under their names, its settings are not."
        )
    try:
        settings = dict(flat(read_names(folder / "config.json")))
        if len(settings) > _MOST_SETTINGS:
            raise ValueError(f"it holds {len(settings):,} settings, more than {_MOST_SETTINGS:,}")
    except ValueError as error:
        return Finished(folder, summary, {}), f"{place}: its settings cannot be read (config.json: {error})."
    return Finished(folder, summary, settings), None


def _summary(file: Path) -> dict[str, float | int | str | None]:
    """Names and numbers of a summary. Raises ValueError on one that igap has not written."""
    summary = read_names(file)
    if len(summary) > _MOST_NUMBERS:
        raise ValueError(f"it holds {len(summary):,} names, more than {_MOST_NUMBERS:,}")
    for name, value in summary.items():
        if isinstance(value, bool | list | dict):
            raise ValueError(f"{printable(name, 60)} holds {type(value).__name__}, wanted a number, a text or null")
    key = summary.get("key", "none")
    if not (isinstance(key, str) and is_key(key)):
        raise ValueError(f"key holds {printable(repr(key), 60)}, wanted letters and digits")
    return summary


def is_key(text: str) -> bool:
    """Whether a text can be a run's key: its folder's name in a sweep, its id in W&B."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", text) is not None


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Value]]:
    """Dotted keys of nested settings and their values, lists as tuples."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, tuple(value) if isinstance(value, list) else value


def _run_folders(above: Path, troubles: list[str], files: Sequence[str]) -> Iterator[tuple[tuple[int, int], Path]]:
    """Folders with one of the files, and none inside a run's, each with its number on its disk.

    Hidden ones hold no runs. Links are followed once.
    """
    visited: set[tuple[int, int]] = set()
    waiting = [above]
    while waiting:
        folder = waiting.pop()
        if not is_text(folder):
            troubles.append(f"{printable(folder)}: left out: its name is no UTF-8 text. Rename it.")
            continue
        try:
            status = folder.stat()
            identity = (status.st_dev, status.st_ino)
            if identity in visited:
                continue
            visited.add(identity)
            there = {place.name: place for place in folder.iterdir()}
        except OSError as error:
            troubles.append(f"{printable(folder)}: left out: it cannot be read ({error.strerror}).")
            continue
        if there.keys() & set(files):
            yield identity, folder
        if "summary.json" in there:
            continue
        inside = [there[name] for name in sorted(there) if not name.startswith(".") and name not in ("wandb", "plots")]
        troubles += [
            f"{printable(place)}: left out: a link to nothing."
            for place in inside
            if place.is_symlink() and not os.path.exists(place)
        ]
        waiting += [place for place in reversed(inside) if os.path.isdir(place) and place.name not in files]
