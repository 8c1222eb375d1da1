"""`igap plot RUN...`: draws the pictures of finished runs from their records."""

import sys
from collections.abc import Sequence
from pathlib import Path

from igap.errors import InputError, printable
from igap.storage.finished import find

USAGE = """\
usage: igap plot RUN... [--only NAMES]

Draws the pictures of finished runs again, or for the first time (plots=none), from their records, and prints the files.
RUN is a run's folder or one that holds runs. --only 'heads_heatmap curves': these alone; a name is that of a picture,
or of an analysis (explain, curves, ablation, ...), all of whose pictures it stands for.
"""


def main(arguments: list[str]) -> int:
    """Return the exit code of `igap plot`: 0, or 1 where a picture could not be drawn. Raises InputError."""
    if not arguments or {"-h", "--help"} & set(arguments):
        sys.stdout.write(USAGE)
        return 0 if arguments else 2
    folders, only = [], "all"
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name == "--only":
            only = value if equals else next(rest, "")
        elif argument.startswith("-"):
            raise InputError(f"option: got {argument}, wanted --only or --help.")
        else:
            folders.append(Path(argument))
    if not folders:
        raise InputError("folder: got none, wanted a run's folder or one that holds runs. Name one: igap plot runs.")
    problems = plot(folders, only)
    for problem in problems:
        sys.stderr.write(f"igap: {problem}\n")
    return 1 if problems else 0


def plot(folders: Sequence[Path], only: str = "all") -> list[str]:
    """Draw the pictures of the finished runs in these folders, and print the path of each.

    Args:
        folders: Each a run's, or one that holds runs. A study's run has others inside, which are drawn with it.
        only: Names of pictures or analyses with spaces between them, or all.

    Returns:
        A line for each run or picture that could not be drawn.

    Raises:
        InputError: A folder or a name is invalid, or no run has a picture of these names.
    """
    from igap.output import record
    from igap.output.figures import chosen

    wanted = chosen(only, item="--only") if only.strip() else frozenset()
    if not wanted:
        raise InputError(f"--only: got {only!r}, wanted names of pictures or analyses. Try --only heads_heatmap.")
    runs, problems = find(folders)
    n_drawn = 0
    for run in runs:
        inside = sorted(path.parent for path in run.folder.glob(f"*/{record.FILE}"))
        for place in (run.folder, *inside):
            try:
                drawn = record.draw(place, wanted)
            except ValueError as error:
                problems.append(f"{printable(place)}: left out: {printable(error)}. Runs of an older igap have none.")
                continue
            for path in drawn.files:
                sys.stdout.write(f"{printable(path)}\n")
            n_drawn += len(drawn.files)
            problems += [
                f"{printable(place)}: {name}: {printable(failure.reason)}" for name, failure in drawn.failures.items()
            ]
    if not n_drawn and not problems:
        raise InputError(f"--only: got {only!r}, of which none of the {len(runs)} runs has a picture. Name another.")
    return problems
