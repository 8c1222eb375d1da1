"""`igap verify DIR...`: W&B's offline runs, read back with W&B's own reader, against what is on disk."""

import math
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from igap.console import folding_table, terminal_console, warn
from igap.errors import InputError, printable
from igap.output.tracking import places
from igap.output.tracking.places import LoggedRun
from igap.storage.finished import FinishedRun, find_runs, flatten
from igap.storage.untrusted import check_file, parse_json

_SHOWN = 3
"""Differences of a run that are shown."""
_READER_SECONDS = 120.0
"""Seconds that W&B's reader may take for one run."""


def verify_runs(folders: Sequence[Path]) -> int:
    """Compares the offline W&B run of every finished run and search with its folder, number by number.

    Args:
        folders: folders of finished runs, or folders that hold such folders.

    Returns:
        The exit code: 0 where every offline run says what its folder says, else 1.

    Raises:
        InputError: when there is no folder, or one without runs.
    """
    if not folders:
        raise InputError("folder: got none, wanted a run's folder or one that holds runs. Name one: igap verify runs.")
    runs, problems = find_runs(folders, searches=True)
    warn(problems)
    table = folding_table("W&B against disk", "folder", "W&B")
    n_bad = n_online = 0
    for run in runs:
        logged = places.find_logged_run(run.folder)
        if logged is not None and logged.mode == "online":
            n_online += 1
            differs, message = False, f"online, not compared: {logged.place}"
        else:
            differs, message = _compare(run, logged)
        n_bad += differs
        table.add_row(escape(printable(run.folder)), escape(printable(message, 1000)))
    console = terminal_console()
    console.print(table)
    n_equal, not_compared = len(runs) - n_bad - n_online, f", {n_online} are online, not compared" if n_online else ""
    console.print(f"{n_equal} of {len(runs)} runs are in W&B's files as they are on disk{not_compared}")
    return 1 if n_bad or problems else 0


def _compare(run: FinishedRun, logged: LoggedRun | None) -> tuple[bool, str]:
    """Whether a run's offline W&B run differs from its folder, and a message that says how."""
    if logged is None:
        return True, "missing: nothing was logged, or not to the end. igap sync logs it from disk"
    try:
        read = _read_back(run.folder / logged.place)
    except ValueError as error:
        return True, f"unreadable: {error}"
    differing = [*_find_differing(run.summary, read.get("summary") or {}, "")]
    settings = {name: value for name, value in run.settings.items() if not name.startswith("tracking.")}
    differing += _find_differing(settings, dict(flatten(read.get("config") or {})), "config ")
    if not differing:
        return False, f"equal: {len(run.summary)} numbers and texts, {len(settings)} settings"
    more = f", and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
    return True, f"differs: {'; '.join(differing[:_SHOWN])}{more}"


def _read_back(offline: Path) -> Mapping[str, Any]:
    """What W&B's own reader finds in an offline run. Raises ValueError, whose text says why it cannot be read."""
    for path in offline.glob("*.wandb"):
        check_file(path)  # the reader would wait for a pipe
    command = [sys.executable, "-m", "wandb", "leet", "inspect", str(offline), "--json", "--summary"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, timeout=_READER_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"W&B's reader did not end within {_READER_SECONDS:.0f} s") from None
    try:
        read = parse_json(done.stdout)
    except ValueError:
        raise ValueError((done.stderr.strip().splitlines() or ["no reason given"])[-1][:200]) from None
    if not isinstance(read, dict):
        raise ValueError(f"W&B's reader gave {type(read).__name__}")
    return read


def _find_differing(disk: Mapping[str, Any], wandb: Mapping[str, Any], what: str) -> Iterator[str]:
    """Each name whose values differ; what is None on disk W&B leaves out."""
    for name, value in disk.items():
        other = wandb.get(name)
        if not _equal(value, other):
            yield f"{what}{name}: disk {printable(repr(value), 100)}, W&B {printable(repr(other), 100)}"


def _equal(value: Any, other: Any) -> bool:
    if isinstance(value, float) and isinstance(other, int | float):
        return math.isclose(value, other, rel_tol=1e-12)  # W&B's reader prints 15 digits or so
    return bool(value == other)
