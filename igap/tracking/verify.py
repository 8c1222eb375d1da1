"""`igap verify DIR...`: W&B's offline runs, read back with W&B's own reader, against what is on disk."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from igap.errors import InputError
from igap.finished import Finished, find, flat

USAGE = """\
usage: igap verify DIR...

Reads the offline W&B run of every finished run and search in these folders back and compares its summary and config
with (search_)summary.json and config.json, number by number. Exit code 1 where anything differs or is missing.
"""

_SHOWN = 3


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
        table.add_row(escape(str(run.folder)), escape(said))
    console.print(table)
    console.print(f"{len(runs) - bad} of {len(runs)} runs are in W&B's files as they are on disk")
    return 1 if bad or troubles else 0


def _one(run: Finished) -> tuple[bool, str]:
    """Whether there is a difference, and what there is to say of a run."""
    from igap import tracking

    found = tracking.logged(run.folder)
    if found is None:
        return True, "missing: nothing was logged, or not to the end. igap sync logs it from disk"
    if found.mode == "online":
        return False, f"online, not compared: {found.place}"
    command = [sys.executable, "-m", "wandb", "leet", "inspect", str(run.folder / found.place), "--json", "--summary"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    try:
        read = json.loads(done.stdout)
    except ValueError:
        return True, f"unreadable: {(done.stderr.strip().splitlines() or ['no reason given'])[-1][:200]}"
    differing = [*_differing(run.summary, read.get("summary", {}), "")]
    settings = {name: value for name, value in run.settings.items() if not name.startswith("tracking.")}
    differing += _differing(settings, dict(flat(read.get("config", {}))), "config ")
    if not differing:
        return False, f"equal: {len(run.summary)} numbers and texts, {len(settings)} settings"
    more = f", and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
    return True, f"differs: {'; '.join(differing[:_SHOWN])}{more}"


def _differing(disk: Mapping[str, Any], wandb: Mapping[str, Any], what: str) -> Iterator[str]:
    """Each name whose values differ; what is None on disk W&B leaves out."""
    for name, value in disk.items():
        other = wandb.get(name)
        if not _equal(value, other):
            yield f"{what}{name}: disk {value!r}, W&B {other!r}"


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-12)  # W&B's reader prints 15 digits or so
    return bool(one == other)
