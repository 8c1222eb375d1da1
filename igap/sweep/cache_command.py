"""`igap store DIR...`: what the jobs of each sweep share on disk, checked; `--prune` removes what no job can use."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape

from igap.console import folding_table, terminal_console
from igap.errors import InputError, printable
from igap.storage.untrusted import parse_json

Prune = Literal["broken", "all"]
"""Files that are removed: those that no job can use, or every one."""


def show_store(folders: Sequence[Path], *, prune: Prune | None = None) -> int:
    """Lists what the jobs of each sweep share on disk, every file checked against its hash, and removes files.

    Args:
        folders: folders of sweeps, or folders that hold such folders.
        prune: "broken" removes broken files and those that other versions of the code made, "all" every file; None
            removes none.

    Returns:
        The exit code: 0, or 1 where a file is broken and stays.

    Raises:
        InputError: when there is no folder, or one without a store.
    """
    stores = [store for folder in folders for store in _stores(folder)]
    if not stores:
        raise InputError("folder: got none, wanted the folder of a sweep. Name one: igap store runs/NAME.")
    console = terminal_console()
    broken = [_show(console, store, prune) for store in stores]
    return int(any(broken))


def _stores(folder: Path) -> Iterator[Path]:
    from igap.storage.cache import FOLDER

    stores = [folder / FOLDER] if (folder / FOLDER).is_dir() else sorted(folder.glob(f"*/{FOLDER}"))
    if not stores:
        raise InputError(f"folder: got {folder}, without a store in it, wanted the folder of a sweep.")
    yield from stores


def _show(console: Console, store: Path, prune: Prune | None) -> bool:
    """Prints the table of one store; True where a file is broken and stays."""
    from igap.storage.versions import versions

    table = folding_table(str(store), "file", "what", "MiB", "state")
    table.columns[2].justify = "right"
    broken = False
    now = dict(versions())
    for path in sorted(store.glob("*.safetensors")):
        size = f"{path.lstat().st_size / 2**20:.2f}"
        try:
            what, made_by = _about(path)
            state = "sound" if made_by == now else "other versions of the code"
        except ValueError as error:
            what, state = "?", str(error)
        if prune == "all" or (prune is not None and state != "sound"):
            removed = _remove(path, path.with_suffix(".lock"))
            broken |= not removed
            state += ", removed" if removed else ", cannot be removed"
        elif what == "?":
            broken = True
        table.add_row(*(escape(printable(cell)) for cell in (path.name, what, size, state)))
    if prune is not None:
        _remove(*store.glob("*.unfinished"))  # of processes that were killed
    console.print(table)
    return broken


def _about(path: Path) -> tuple[str, object]:
    """What a file of a store holds, in words, and the versions that made it. Raises ValueError on a broken one."""
    from igap.storage.cache import inputs_of

    match parse_json(inputs_of(path)):
        case {"kind": str(kind), "inputs": {**inputs}, "versions": made_by}:
            metric, positions = inputs.get("metric"), inputs.get("positions")
            words = [
                kind,
                inputs.get("site"),
                metric[0] if isinstance(metric, list) and metric else metric,
                "by spans" if isinstance(positions, list) else positions,
            ]
            return " ".join(str(word) for word in words if word), made_by
    raise ValueError("what it was computed from cannot be read")


def _remove(*paths: Path) -> bool:
    """Removes files, or empty folders in their place; False where one stays."""
    for path in paths:
        try:
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
        except OSError:
            return False
    return True
