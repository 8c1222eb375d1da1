"""Finished runs and searches, read back from disk: their numbers and settings. Imports nothing heavy."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igap.components import Site, sites_named
from igap.errors import InputError, printable
from igap.storage.untrusted import is_text, read_json_object

SCHEMA = 1
"""Version of summary.json and config.json; another number means that names or units have changed."""

SUMMARIES = ("summary.json", "search_summary.json", "atlas_summary.json")
"""The file that is written last, of a run, of a search and of an atlas of searches."""

_MOST_NUMBERS = 10_000
_MOST_SETTINGS = 1_000
"""Bounds of the names in a summary and in a config, far above those of any run."""

Value = float | int | str | bool | None | tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """One finished run."""

    folder: Path
    summary: Mapping[str, float | int | str | None]
    """The values of summary.json by name."""
    settings: Mapping[str, Value]
    """Dotted key to value, "ig.n_steps" to 50; empty if config.json cannot be read."""

    @property
    def key(self) -> str:
        """Hash of everything that determines the numbers."""
        return str(self.summary.get("key", self.folder.name))

    @property
    def is_search(self) -> bool:
        """True if it is a search, whose numbers have other names than a run's."""
        return "best/value" in self.summary

    @property
    def is_atlas(self) -> bool:
        """True if it is an atlas of searches."""
        return any(name.startswith("atlas/") for name in self.summary)

    @property
    def sites(self) -> tuple[Site, ...]:
        """What the run took apart, heads first; heads where its settings do not say."""
        asked = self.settings.get("sites", "heads")
        return sites_named(asked) if isinstance(asked, str) else ("heads",)


def failed_findings(summary: Mapping[str, Any]) -> dict[str, str]:
    """The analyses that failed, with their reasons, which another try may complete; without figures and pages."""
    return {
        name: reason
        for name, reason in failures_of(summary).items()
        if not (name.startswith("plots/") or "/plots/" in name or name.rpartition("/")[2] == "page")
    }


def failures_of(summary: Mapping[str, Any]) -> dict[str, str]:
    """The analyses and figures that a finished run lacks, with the reasons."""
    return {name: str(summary.get(f"{name}/reason", "")) for name in str(summary.get("failed", "")).split()}


def find_runs(folders: Iterable[Path], *, searches: bool = False) -> tuple[list[FinishedRun], list[str]]:
    """Find the finished runs in these folders; the second value holds one line for each problem.

    A folder is a run's own or one that holds runs. Each run comes once, in the order of the folders and within them by
    path; a run inside another, as a study has them, belongs to that one. With `searches`, finished searches come as
    well, each before the runs in its folder. Raises InputError on a missing folder, and if there is no run at all.
    """
    runs: dict[tuple[int, int], FinishedRun] = {}
    problems: list[str] = []
    empty: list[str] = []
    searched = list(folders)
    for folder in searched:
        if not os.path.isdir(folder):
            raise InputError(
                f"folder: got {printable(folder)}, which is no folder, wanted a run's folder or one that holds runs."
            )
        places = list(find_folders(folder, problems, SUMMARIES if searches else SUMMARIES[:1]))
        empty += [] if places else [f"{printable(folder)}: left out: no finished run in it (no summary.json)."]
        for identity, place in places:
            if identity not in runs:
                run, problem = read_run(place)
                problems += [problem] if problem else []
                if run is not None:
                    runs[identity] = run
    if not runs and not problems:
        raise InputError(
            f"folder: got {', '.join(map(printable, searched))}, without a finished run in it (no summary.json), "
            "wanted a run's folder or one that holds runs. Start some with igap run or igap sweep."
        )
    return list(runs.values()), problems + empty


def read_run(folder: Path) -> tuple[FinishedRun | None, str | None]:
    """Read the run in a folder, None if its summary is unreadable; and the problem with it, None if there is none."""
    file = next((name for name in SUMMARIES if os.path.lexists(folder / name)), SUMMARIES[0])
    place = printable(folder)
    try:
        summary = _read_summary(folder / file)
    except ValueError as error:
        return None, f"{place}: left out: {file} cannot be read ({error})."
    schema = summary.get("schema")
    if schema != SCHEMA:
        return FinishedRun(folder, summary, {}), (
            f"{place}: its schema is {'none' if schema is None else printable(schema, 60)}, this igap knows {SCHEMA}: "
            "its numbers are shown under their names, its settings are not."
        )
    try:
        settings = dict(flatten(read_json_object(folder / "config.json")))
        if len(settings) > _MOST_SETTINGS:
            raise ValueError(f"it holds {len(settings):,} settings, more than {_MOST_SETTINGS:,}")
    except ValueError as error:
        return FinishedRun(folder, summary, {}), f"{place}: its settings cannot be read (config.json: {error})."
    return FinishedRun(folder, summary, settings), None


def _read_summary(file: Path) -> dict[str, float | int | str | None]:
    """Read a summary. Raises ValueError on one that igap did not write."""
    summary = read_json_object(file)
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
    """Whether a text can be a run's key, which is its folder in a sweep and its id in W&B."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", text) is not None


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Value]]:
    """Flatten nested settings to dotted keys and values, lists as tuples."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, tuple(value) if isinstance(value, list) else value


def find_folders(above: Path, problems: list[str], files: Sequence[str]) -> Iterator[tuple[tuple[int, int], Path]]:
    """Find the folders that hold one of the files, each with its device and inode; none from inside a run's folder.

    Hidden folders are skipped. Links are followed once.
    """
    visited: set[tuple[int, int]] = set()
    waiting = [above]
    while waiting:
        folder = waiting.pop()
        if not is_text(folder):
            problems.append(f"{printable(folder)}: left out: its name is no UTF-8 text. Rename it.")
            continue
        try:
            status = folder.stat()
            identity = (status.st_dev, status.st_ino)
            if identity in visited:
                continue
            visited.add(identity)
            entries = {place.name: place for place in folder.iterdir()}
        except OSError as error:
            problems.append(f"{printable(folder)}: left out: it cannot be read ({error.strerror}).")
            continue
        if entries.keys() & set(files):
            yield identity, folder
        if "summary.json" in entries:
            continue
        inside = [
            entries[name] for name in sorted(entries) if not name.startswith(".") and name not in ("wandb", "plots")
        ]
        problems += [
            f"{printable(place)}: left out: a link to nothing."
            for place in inside
            if place.is_symlink() and not os.path.exists(place)
        ]
        waiting += [place for place in reversed(inside) if os.path.isdir(place) and place.name not in files]
