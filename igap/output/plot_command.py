"""`igap plot RUN...`: draws the pictures of finished runs from their records."""

import sys
from collections.abc import Sequence
from pathlib import Path

from igap.errors import InputError, printable
from igap.storage.finished import find_runs


def draw_runs(folders: Sequence[Path], only: str = "all") -> list[str]:
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
    from igap.output.figures import parse_names

    wanted = parse_names(only, item="--only") if only.strip() else frozenset()
    if not wanted:
        raise InputError(f"--only: got {only!r}, wanted names of pictures or analyses. Try --only heads_heatmap.")
    runs, problems = find_runs(folders)
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
