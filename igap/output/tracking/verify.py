"""`igap verify DIR...`: W&B's offline runs, read back with W&B's own reader, against what is on disk."""

import math
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from igap.errors import InputError, printable
from igap.storage.finished import Finished, find, flat
from igap.storage.untrusted import check_file, parse

USAGE = """\
usage: igap verify DIR...

Reads the offline W&B run of every finished run and search in these folders back and compares its summary and config
with (search_)summary.json and config.json, number by number. Exit code 1 where anything differs or is missing.
"""

_SHOWN = 3

_READER_SECONDS = 120.0
"""That W&B's reader may take for one run."""


def main(arguments: list[str]) -> int:
    """The exit code of `igap verify`: 0 where every offline run says what its folder says, else 1."""
    if not arguments or {"-h", "--help"} & set(arguments):
        sys.stdout.write(USAGE)
        return 0 if arguments else 2
    options = [text for text in arguments if text.startswith("-")]
    if options:
        raise InputError(f"option: got {options[0]}, wanted folders or --help.")
    runs, troubles = find(map(Path, arguments), searches=True)
    for trouble in troubles:
        sys.stderr.write(f"igap: {trouble}\n")
    console = Console()
    if not console.is_terminal:
        console.width = 160
    table = Table(title="W&B against disk", title_justify="left")
    for column in ("folder", "W&B"):
        table.add_column(column, overflow="fold")
    bad = 0
    for run in runs:
        differs, said = _one(run)
        bad += differs
        table.add_row(escape(printable(run.folder)), escape(printable(said, 1000)))
    console.print(table)
    console.print(f"{len(runs) - bad} of {len(runs)} runs are in W&B's files as they are on disk")
    return 1 if bad or troubles else 0


def _one(run: Finished) -> tuple[bool, str]:
    """Whether there is a difference, and what there is to say of a run."""
    from igap.output.tracking import wandb_run

    found = wandb_run.logged(run.folder)
    if found is None:
        return True, "missing: nothing was logged, or not to the end. igap sync logs it from disk"
    if found.mode == "online":
        return False, f"online, not compared: {found.place}"
    try:
        read = _read_back(run.folder / found.place)
    except ValueError as error:
        return True, f"unreadable: {error}"
    differing = [*_differing(run.summary, read.get("summary") or {}, "")]
    settings = {name: value for name, value in run.settings.items() if not name.startswith("tracking.")}
    differing += _differing(settings, dict(flat(read.get("config") or {})), "config ")
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
        read = parse(done.stdout)
    except ValueError:
        raise ValueError((done.stderr.strip().splitlines() or ["no reason given"])[-1][:200]) from None
    if not isinstance(read, dict):
        raise ValueError(f"W&B's reader gave {type(read).__name__}")
    return read


def _differing(disk: Mapping[str, Any], wandb: Mapping[str, Any], what: str) -> Iterator[str]:
    """Each name whose values differ; what is None on disk W&B leaves out."""
    for name, value in disk.items():
        other = wandb.get(name)
        if not _equal(value, other):
            yield f"{what}{name}: disk {printable(repr(value), 100)}, W&B {printable(repr(other), 100)}"


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-12)  # W&B's reader prints 15 digits or so
    return bool(one == other)
