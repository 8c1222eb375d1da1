"""IG and AP of every head of a finished run, from its heads.csv (or the same table elsewhere). No torch, no pandas."""

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from igap.errors import printable
from igap.storage.untrusted import read_text


@dataclass(frozen=True, eq=False)
class Heads:
    """Both methods' numbers of all heads of a run, layer by layer."""

    unit: Literal["score", "effect"]
    """score: effect over the gap, no unit. effect: logits, of a run none of whose scores is defined."""
    n_layers: int
    n_heads: int
    ig: tuple[float, ...]
    """n_layers * n_heads numbers, NaN where not defined."""
    ap: tuple[float, ...]


def read(folder: Path) -> tuple[Heads | None, str | None]:
    """The heads of a run's folder, None where they cannot be read; and why not."""
    try:
        return _of_text(read_text(folder / "heads.csv")), None
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        reason = f"no column {error}" if isinstance(error, KeyError) else printable(error)
        return None, f"{printable(folder)}: its heads cannot be read (heads.csv: {reason})."


def _of_text(text: str) -> Heads:
    """The heads of a CSV file. Raises as `from_rows`, and on a file that has been cut or holds a column twice."""
    if not text.endswith("\n"):
        raise ValueError("its last line has no end: it has been cut")
    header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    if len(set(header)) < len(header):
        raise ValueError("two columns have one name")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise ValueError(f"row {number} has {len(row)} cells, wanted {len(header)}")
    return from_rows(dict(zip(header, row, strict=True)) for row in rows)


def from_rows(rows: Iterable[Mapping[str, object]]) -> Heads:
    """The heads of a table with columns layer, head, ig, ap, effect_ig, effect_ap, one row a head.

    Raises ValueError, KeyError or TypeError where that is not what it holds.
    """
    by_place: dict[tuple[int, int], list[float]] = {}
    for row in rows:
        if "span" in row:
            raise ValueError("it is by positions, of which no page draws a map; igap plot draws the run's own pictures")
        place = int(str(row["layer"])), int(str(row["head"]))
        if place in by_place:
            raise ValueError(f"head {place[0]}.{place[1]} is there twice")
        by_place[place] = [_number(row[name]) for name in ("ig", "ap", "effect_ig", "effect_ap")]
    n_layers, n_heads = (max((place[i] for place in by_place), default=-1) + 1 for i in (0, 1))
    # Of so many different places, none beyond the largest and none below 0, each of the grid's is one.
    if n_layers * n_heads != len(by_place) or not by_place or min(map(min, by_place)) < 0:
        raise ValueError(f"{len(by_place)} rows are no grid of layers and heads")
    scores_exist = any(math.isfinite(number) for numbers in by_place.values() for number in numbers[:2])
    grid = [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    first = 0 if scores_exist else 2
    ig, ap = (tuple(by_place[place][first + i] for place in grid) for i in (0, 1))
    return Heads("score" if scores_exist else "effect", n_layers, n_heads, ig, ap)


def _number(cell: object) -> float:
    """NaN for an empty cell, as pandas writes it; also for an infinite one."""
    number = float(str(cell)) if cell not in ("", None) else math.nan
    return number if math.isfinite(number) else math.nan
