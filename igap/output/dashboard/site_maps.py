"""IG and AP of a site of a finished run, from its SITE.csv (or the same table elsewhere). No torch, no pandas."""

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from igap.components import PLACES, Site, component_name, component_names, kind_of
from igap.errors import printable
from igap.storage.finished import FinishedRun
from igap.storage.tables import unescape_formula
from igap.storage.untrusted import read_lines

_NUMBERS = ("ig", "ap", "effect_ig", "effect_ap")


@dataclass(frozen=True, eq=False)
class SiteMap:
    """Both methods' numbers of all components of a site, row by row."""

    site: Site
    unit: Literal["score", "effect"]
    """score: effect over the gap, no unit. effect: F's unit, of a run none of whose scores is defined."""
    rows: Sequence[str]
    columns: Sequence[str]
    row: str
    """What a row is: a layer, or a kind of component."""
    column: str
    """What a column is: a kind of component, or a position; empty where there is one column."""
    name: str
    """The name of a cell, in which {row} and {column} stand for those."""
    ig: tuple[float, ...]
    """A number a cell, NaN where not defined."""
    ap: tuple[float, ...]


Maps = dict[Path, dict[Site, SiteMap]]
"""By the run's folder and the site."""


def mapped_sites(run: FinishedRun) -> list[Site]:
    """The sites of the run whose tables hold every component, heads first."""
    return [site for site in run.sites if site != "neurons"]


def read(folder: Path, site: Site = "heads") -> tuple[SiteMap | None, str | None]:
    """The map of a site of a run's folder, None where it cannot be read; and why not."""
    try:
        return _of_lines(site, read_lines(folder / f"{site}.csv")), None
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        reason = f"no column {error}" if isinstance(error, KeyError) else printable(error)
        return None, f"{printable(folder)}: its {site} cannot be read ({site}.csv: {reason})."


def _of_lines(site: Site, lines: Iterable[str]) -> SiteMap:
    """The map in a CSV file. Raises as `of_table`."""
    rows = csv.reader(lines, strict=True)
    header = next(rows, None)
    if header is None:
        raise ValueError("it is empty")
    return of_table(site, header, rows)


def of_table(site: Site, header: Sequence[str], rows: Iterable[Sequence[object]]) -> SiteMap:
    """The map in a table with columns layer, a kind of component, ig, ap, effect_ig, effect_ap, and by positions span.

    One row a component and span. Raises ValueError, KeyError or TypeError where that is not what it holds.
    """
    if len(set(header)) < len(header):
        raise ValueError("two columns have one name")
    at = {name: i for i, name in enumerate(header)}
    spans: dict[str, int] = {}
    by_place: dict[tuple[int, int, int], list[float]] = {}
    kind = PLACES[site].column
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise ValueError(f"row {number} has {len(row)} cells, wanted {len(header)}")
        layer, component = int(str(row[at["layer"]])), 0 if kind is None else int(str(row[at[kind]]))
        span = unescape_formula(str(row[at["span"]])) if "span" in at else ""
        place = layer, component, spans.setdefault(span, len(spans))
        if place in by_place:
            what = "" if kind is None else f"{kind_of(site)} "
            raise ValueError(f"{what}{component_name(site, layer, component)}{span and f' at {span}'} is there twice")
        by_place[place] = [_number(row[at[name]]) for name in _NUMBERS]
    n_layers, n_components, n_spans = (max((place[i] for place in by_place), default=-1) + 1 for i in (0, 1, 2))
    # Of so many different places, none beyond the largest and none below 0, each of the grid's is one.
    if n_layers * n_components * n_spans != len(by_place) or not by_place or min(map(min, by_place)) < 0:
        axes = ["layers", *(["positions"] if "span" in at else []), *([] if kind is None else [f"{kind_of(site)}s"])]
        raise ValueError(f"{len(by_place)} rows are no grid of {' and '.join(axes)}")
    scores_exist = any(math.isfinite(number) for numbers in by_place.values() for number in numbers[:2])
    first = 0 if scores_exist else 2
    ordered = [by_place[place] for place in sorted(by_place)]
    ig, ap = (tuple(numbers[first + i] for numbers in ordered) for i in (0, 1))
    layout = _layout(site, n_layers, n_components, list(spans) if "span" in at else None)
    return SiteMap(site, "score" if scores_exist else "effect", *layout, ig, ap)


def _layout(
    site: Site, n_layers: int, n_components: int, spans: Sequence[str] | None
) -> tuple[Sequence[str], Sequence[str], str, str, str]:
    """Rows, columns, what either is, and a cell's name: as `igap.display.grids` lays them out."""
    layers, kind = [str(layer) for layer in range(n_layers)], kind_of(site)
    if PLACES[site].is_vector:
        name = f"L{{row}}.{site}"
        if spans is None:
            return layers, [""], "layer", "", name
        return layers, spans, "layer", "position", name + " at {column}"
    if spans is None:
        name = "{row}.{column}" + ("" if site == "heads" else f".{site}")
        return layers, [str(index) for index in range(n_components)], "layer", kind, name
    return component_names(site, n_layers, n_components), spans, kind, "position", "{row} at {column}"


def _number(cell: object) -> float:
    """NaN for an empty cell, as pandas writes it; also for an infinite one."""
    number = float(str(cell)) if cell not in ("", None) else math.nan
    return number if math.isfinite(number) else math.nan
