"""A map as rows and columns of named cells, as pages and figures show it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int, Shaped

from igap.components import PLACES, Site, component_names, kind_of

_MOST_COLUMNS = 64
_MOST_CELLS = 2048
_MOST_COMPONENTS = 20
"""Rows of a map by positions: the components with the largest numbers, whatever their layer."""
_LARGEST_SHOWN = 25
"""Components of each layer, largest first, of a site too wide to show whole: as in the run's figures."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Which numbers of a map `[layer, component]` or `[layer, span, component]` stand where."""

    cells: Int[np.ndarray, "row column"]
    """Places in the flat map."""
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    """Empty where they differ between the rows."""
    row: str
    """What a row is: a layer, or a kind of component."""
    column: str
    note: str
    """What is shown of the map, and where."""

    def of(self, values: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "row column"]:
        """The numbers of a map in their cells."""
        cells: Shaped[np.ndarray, "row column"] = values.ravel()[self.cells]
        return cells


def grid_of(
    weight: Float64[np.ndarray, "layer *span component"],
    site: Site,
    spans: Sequence[str] | None = None,
    *,
    whole: bool = False,
) -> Grid:
    """The cells of a map: layers down and components across, or positions across where it has spans.

    Args:
        weight: How large its numbers are, at least 0: the largest are shown where there are too many.
        site: What its components are.
        spans: The names of its positions, where it has such an axis.
        whole: Whether all components of a map without spans are shown, however many.
    """
    n_layers, width = weight.shape[0], weight.shape[-1]
    flat = np.arange(weight.size).reshape(n_layers, -1, width)
    layers = tuple(map(str, range(n_layers)))
    kind = kind_of(site)
    if spans is None and PLACES[site].is_vector:
        return Grid(flat.reshape(1, -1), (site,), layers, "", "layer", "layers across")
    if spans is None:
        if whole or (width <= _MOST_COLUMNS and weight.size <= _MOST_CELLS):
            across = tuple(map(str, range(width)))
            return Grid(flat[:, 0], layers, across, "layer", kind, f"layers down, {_many(site)} across")
        shown = min(width, _LARGEST_SHOWN, max(1, _MOST_CELLS // n_layers))
        order = np.argsort(-weight, axis=1, kind="stable")[:, :shown]
        what = f"the {shown} {_many(site)} of each layer with the largest |value|, largest first"
        return Grid(np.take_along_axis(flat[:, 0], order, 1), layers, (), "layer", kind, f"layers down, {what}")
    if PLACES[site].is_vector:
        rows, names, row, down = flat[:, :, 0], layers, "layer", "layers down"
    else:
        components = np.swapaxes(flat, 1, 2).reshape(n_layers * width, -1)
        largest = np.argsort(-weight.max(1).ravel(), kind="stable")[:_MOST_COMPONENTS]
        every = component_names(site, n_layers, width)
        rows, names, row = components[largest], tuple(every[i] for i in largest.tolist()), kind
        down = f"{_some(len(names), len(every), _many(site))} down, largest first"
    most = min(_MOST_COLUMNS, max(1, _MOST_CELLS // len(names)))
    kept = np.sort(np.argsort(-weight.ravel()[rows].max(0), kind="stable")[:most])
    note = f"{down}, {_some(len(kept), len(spans), 'positions')} across"
    return Grid(rows[:, kept], names, tuple(spans[i] for i in kept.tolist()), row, "position", note)


def _many(site: Site) -> str:
    """A site's components, in words."""
    return site if site in ("heads", "neurons") else f"{kind_of(site)}s of {site}"


def _some(shown: int, n: int, what: str) -> str:
    return what if shown == n else f"the {shown} of {n:,} {what} with the largest |value|"
