"""`igap store DIR...`: what the jobs of each sweep share on disk, checked; `--prune` removes what no job can use."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from igap.errors import InputError

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
    from igap.store import FOLDER

    folder = Path(text)
    found = [folder / FOLDER] if (folder / FOLDER).is_dir() else sorted(folder.glob(f"*/{FOLDER}"))
    if not found:
        raise InputError(f"folder: got {text}, without a store in it, wanted the folder of a sweep.")
    yield from found


def _one(console: Console, folder: Path, options: set[str]) -> int:
    from igap.store import inputs_of
    from igap.versions import versions

    table = Table(title=escape(str(folder)), title_justify="left")
    for column in ("file", "what", "MiB", "state"):
        table.add_column(column, overflow="fold", justify="right" if column == "MiB" else "left")
    broken = 0
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size / 2**20
        try:
            asked = json.loads(inputs_of(path))
            what = " ".join(str(part) for part in (asked["kind"], asked["inputs"].get("site", "")) if part)
            state = "sound" if asked["versions"] == dict(versions()) else "other versions of the code"
        except ValueError as error:
            what, state = "?", str(error)
        if "--prune=all" in options or ("--prune" in options and state != "sound"):
            broken |= not _removed(path, path.with_suffix(".lock"))
            state += ", removed" if not path.exists() else ", cannot be removed"
        elif what == "?":
            broken = 1
        table.add_row(path.name, what, f"{size:.2f}", escape(state))
    if options:
        _removed(*folder.glob("*.unfinished"))  # of processes that were killed
    console.print(table)
    return broken


def _removed(*paths: Path) -> bool:
    """Whether these files are gone."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError:
            return False
    return True
