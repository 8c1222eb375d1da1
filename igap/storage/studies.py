"""How far searches are, read from their study's file while others may write it.

Imports nothing heavy, writes nothing.
"""

import json
import math
import os
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from igap.storage.finished import SUMMARIES, FinishedRun, find_folders, read_run
from igap.storage.untrusted import check_file, parse_json

STUDY_FILES = {"sqlite": "study.db", "journal": "study.journal"}
"""Names in a search's folder, by the kind of storage."""

UNTIL = "until"
"""The study's attribute with the number of trials that were last asked for."""

_CONSTRAINT = "constraints:"
"""How Optuna begins the names of a trial's attributes that say by how much a constraint is broken."""

_PATIENCE = 5.0
"""Seconds to wait for a writer of the file."""


@dataclass(frozen=True)
class SearchStatus:
    """How far a search is."""

    folder: Path
    head: str
    objective: str
    n_trials: int
    until: int | None
    """Trials that were asked for; None: not known, of a study from before they were kept."""
    best: float | None
    """The best first term of the trials within the constraints: F's unit; None: no such trial."""
    reported: int | None
    """Trials that the report is of; None: there is no report."""

    @property
    def is_done(self) -> bool:
        """True if nothing is left to do: the report is of all trials, and there are as many as asked for."""
        return self.reported == self.n_trials and self.n_trials >= (self.until or 0)


def find_searches(folder: Path, problems: list[str]) -> list[Path]:
    """The folders of searches at a path or in it, by path; a line is added to `problems` for what cannot be read."""
    files = (SUMMARIES[1], *STUDY_FILES.values())
    return [place for _, place in find_folders(folder, problems, files)]


def read_status(folder: Path) -> SearchStatus:
    """How far the search in a folder is, by its study's file and its report; of a study elsewhere by its report.

    Raises ValueError on a file that cannot be read.
    """
    report: FinishedRun | None = None
    if any(os.path.lexists(folder / name) for name in SUMMARIES[1:]):
        report, problem = read_run(folder)
        if report is None:
            raise ValueError(str(problem).partition(": left out: ")[2].removesuffix("."))
    summary = report.summary if report else {}
    study: Mapping[str, Any] = {}
    trials: tuple[int, float | None] | None = None
    for name, read in ((STUDY_FILES["sqlite"], _read_database), (STUDY_FILES["journal"], _read_journal)):
        if trials is None and os.path.lexists(folder / name):
            try:
                check_file(folder / name)
                study, trials = read(folder / name)
            except (ValueError, KeyError, TypeError, AttributeError, sqlite3.Error) as error:
                raise ValueError(f"{name} cannot be read ({type(error).__name__}: {error})") from None
    made = study.get("igap", {})
    reported, best = summary.get("n_trials", summary.get("atlas/n_tried")), summary.get("best/value")
    n_reported = reported if isinstance(reported, int) else None
    until = study.get(UNTIL, _until_of(report) if report else None)
    return SearchStatus(
        folder,
        str(summary.get("head", made.get("head", ""))),
        str(summary.get("objective", ",".join(map(str, made.get("objective", []))))),
        trials[0] if trials else n_reported or 0,
        until if isinstance(until, int) else None,
        trials[1] if trials else float(best) if isinstance(best, int | float) else None,
        n_reported,
    )


def _until_of(report: FinishedRun) -> int | None:
    """What a report's settings asked for, at most the whole space."""
    until, size = report.settings.get("search.until"), report.summary.get("space/size")
    return int(min(until, size)) if isinstance(until, int) and isinstance(size, int | float) else None


def _read_database(file: Path) -> tuple[dict[str, Any], tuple[int, float | None]]:
    """A study's attributes; the number of its trials and the best first term of those within the constraints."""
    address = f"file:{quote(str(file.resolve()))}?mode=ro"
    with closing(sqlite3.connect(address, uri=True, timeout=_PATIENCE)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'trials'").fetchone():
            return {}, (0, None)
        attributes = connection.execute(
            "SELECT key, value_json FROM study_user_attributes WHERE key IN ('igap', ?)", [UNTIL]
        )
        study = {key: parse_json(text) for key, text in attributes}
        (n,) = connection.execute("SELECT count(*) FROM trials WHERE state IN ('COMPLETE', 'FAIL')").fetchone()
        (best,) = connection.execute(
            """SELECT max(value) FROM trial_values JOIN trials USING (trial_id)
            WHERE objective = 0 AND state = 'COMPLETE' AND trial_id NOT IN (
                SELECT trial_id FROM trial_system_attributes
                WHERE substr(key, 1, ?) = ? AND CAST(value_json AS REAL) > 0)""",
            [len(_CONSTRAINT), _CONSTRAINT],
        ).fetchone()
    return study, (n, best)


def _read_journal(file: Path) -> tuple[dict[str, Any], tuple[int, float | None]]:
    """As `_read_database`. A last line without an end is one that is being written."""
    study: dict[str, Any] = {}
    n, best = 0, -math.inf
    for line in file.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        entry = json.loads(line)
        if "user_attr" in entry and "trial_id" not in entry:
            study |= entry["user_attr"]
        if "distributions" in entry:  # a trial
            n += 1
            value = entry["value"] if entry["values"] is None else entry["values"][0]
            if value is not None and _is_within(entry["system_attrs"].items()):
                best = max(best, value)
    return study, (n, best if best > -math.inf else None)


def _is_within(attributes: Iterable[tuple[str, Any]]) -> bool:
    return not any(name.startswith(_CONSTRAINT) and by > 0 for name, by in attributes)
