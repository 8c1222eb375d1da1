"""`igap store DIR...`: what the jobs of each sweep share on disk, checked; `--prune` removes what no job can use."""

import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from igap.errors import InputError, printable
from igap.storage.untrusted import parse

USAGE = """\
usage: igap store DIR... [--prune | --prune=all]

What the jobs of each sweep in these folders share: AP, AtP and AtP* maps (they do not depend on baseline or steps),
clean and corrupted runs, reference means. Every file is checked against its hash.
--prune      removes broken files and those that other versions of the code made: no job can use them
--prune=all  removes every file; jobs compute what they need again
"""


def main(arguments: list[str]) -> int:
    """The exit code of `igap store`: 0, or 1 where a file is broken and stays. Raises InputError without a store."""
    if not arguments or {"-h", "--help"} & set(arguments):
        sys.stdout.write(USAGE)
        return 0 if arguments else 2
    options = {text for text in arguments if text.startswith("-")}
    if options - {"--prune", "--prune=all"}:
        raise InputError(f"option: got {min(options)}, wanted --prune, --prune=all or --help.")
    folders = [path for text in arguments if text not in options for path in _stores(text)]
    console = Console()
    if not console.is_terminal:
        console.width = 160
    return max([_one(console, folder, options) for folder in folders], default=2)


def _stores(text: str) -> Iterator[Path]:
    from igap.storage.cache import FOLDER

    folder = Path(text)
    found = [folder / FOLDER] if (folder / FOLDER).is_dir() else sorted(folder.glob(f"*/{FOLDER}"))
    if not found:
        raise InputError(f"folder: got {text}, without a store in it, wanted the folder of a sweep.")
    yield from found


def _one(console: Console, folder: Path, options: set[str]) -> int:
    from igap.storage.versions import versions

    table = Table(title=escape(printable(folder)), title_justify="left")
    for column in ("file", "what", "MiB", "state"):
        table.add_column(column, overflow="fold", justify="right" if column == "MiB" else "left")
    broken = 0
    now = dict(versions())
    for path in sorted(folder.glob("*.safetensors")):
        size = f"{path.lstat().st_size / 2**20:.2f}"
        try:
            what, made_by = _about(path)
            state = "sound" if made_by == now else "other versions of the code"
        except ValueError as error:
            what, state = "?", str(error)
        if "--prune=all" in options or ("--prune" in options and state != "sound"):
            gone = _removed(path, path.with_suffix(".lock"))
            broken |= not gone
            state += ", removed" if gone else ", cannot be removed"
        elif what == "?":
            broken = 1
        table.add_row(*(escape(printable(cell)) for cell in (path.name, what, size, state)))
    if options:
        _removed(*folder.glob("*.unfinished"))  # of processes that were killed
    console.print(table)
    return broken


def _about(path: Path) -> tuple[str, object]:
    """What a file of a store holds, in words, and the versions that made it. Raises ValueError on a broken one."""
    from igap.storage.cache import inputs_of

    asked = parse(inputs_of(path))
    match asked:
        case {"kind": str(kind), "inputs": {**inputs}, "versions": made_by}:
            return f"{kind} {inputs.get('site', '')}".strip(), made_by
    raise ValueError("what it was computed from cannot be read")


def _removed(*paths: Path) -> bool:
    """Whether these files, or empty folders in their place, are gone."""
    for path in paths:
        try:
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
        except OSError:
            return False
    return True
