"""Heatmaps of IG and AP and of their difference: layers down; heads, ranked neurons or positions across."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import cast

import matplotlib as mpl
import numpy as np
from jaxtyping import Int, Shaped
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D

from igap.components import PLACES, Site
from igap.display.grids import Grid, grid_of
from igap.errors import printable
from igap.plots.canvas import FONT, METHODS, Map, blank, figure, finite, ticks, use_style

Order = Int[np.ndarray, "layer rank"]

COLOURS = mpl.colormaps["RdBu_r"].with_extremes(bad="0.85")  # blue to white to red, safe for the colour-blind
_MAX_ANNOTATED = 12  # a grid of at most this many rows and columns shows its numbers
_CLIP_PERCENTILE = 95
_LONGEST_NAME = 24
"""Characters of a position's name that are shown."""


@use_style()
def map_heatmap(
    values: Map,
    *,
    site: Site,
    method: str,
    unit: str,
    title: str = "",
    per_layer: int = 25,
    spans: Sequence[str] | None = None,
) -> Figure:
    """Draw one map as `head_heatmaps` or `neuron_heatmaps` draw two."""
    panels = {method: finite(values)}
    if site != "neurons" or spans is not None:
        return _whole(panels, site, spans, unit=unit, title=title)
    order, note = _thin(np.abs(panels[method]), per_layer, panels[method], f"|{method}|")
    return heatmaps(panels, unit=unit, title=title, order=order, note=note, by=f"|{method}|")


@use_style()
def head_heatmaps(
    ig: Map,
    ap: Map,
    *,
    unit: str,
    title: str = "",
    methods: tuple[str, str] = METHODS,
    site: Site = "heads",
    spans: Sequence[str] | None = None,
) -> Figure:
    """Draw IG and AP side by side on one colour scale, symmetric about 0 and ending at the largest |score|.

    Of another site its components; of maps with spans those across, as `grids.grid_of` lays them out.
    """
    panels = dict(zip(methods, (finite(ig), finite(ap)), strict=True))
    return _whole(panels, site, spans, unit=unit, title=title)


@use_style()
def neuron_heatmaps(
    ig: Map, ap: Map, *, unit: str, title: str = "", per_layer: int = 25, methods: tuple[str, str] = METHODS
) -> Figure:
    """Draw IG above AP for the `per_layer` neurons of each layer with the largest max(|IG|, |AP|), largest first.

    A cell is the same neuron in both panels; its number is the neuron's index in the layer. One scale, symmetric about
    0; it ends at the 95th percentile of the |scores| shown, which the colour bar says.
    """
    ig, ap = finite(ig), finite(ap)
    first, second = methods
    order, note = _thin(np.fmax(np.abs(ig), np.abs(ap)), per_layer, ap, f"|{second}|")
    by = f"max(|{first}|, |{second}|)"
    return heatmaps({first: ig, second: ap}, unit=unit, title=title, order=order, note=note, by=by)


@use_style()
def difference_heatmaps(
    ig: Map,
    ap: Map,
    *,
    site: str,
    unit: str,
    title: str = "",
    per_layer: int = 25,
    methods: tuple[str, str] = METHODS,
    spans: Sequence[str] | None = None,
) -> Figure:
    """Draw AP - IG and |AP| - |IG| on one scale, symmetric about 0; red where AP is higher, or larger in magnitude.

    Of `neurons` the `per_layer` of each layer with the largest |AP - IG|, of other sites as `head_heatmaps`.
    """
    if site not in PLACES:
        raise ValueError(f"site is {site!r}; the difference of heads or neurons can be drawn. Pass heads or neurons.")
    ig, ap = finite(ig), finite(ap)
    first, second = methods
    panels = {f"{second} - {first}": ap - ig, f"|{second}| - |{first}|": np.abs(ap) - np.abs(ig)}
    if site != "neurons" or spans is not None:
        return _whole(panels, cast(Site, site), spans, unit=unit, title=title)
    by = f"|{second} - {first}|"
    order, note = _thin(np.abs(ap - ig), per_layer, ap - ig, by)
    return heatmaps(panels, unit=unit, title=title, order=order, note=note, by=by)


def _thin(weight: Map, per_layer: int, values: Map, what: str) -> tuple[Order, str]:
    """Return the indices of the `per_layer` largest weights of each layer, and what share of |values| they hold."""
    order = np.argsort(-np.nan_to_num(weight, nan=-1.0), axis=1, kind="stable")[:, :per_layer]
    magnitude = np.abs(np.nan_to_num(values))
    held = np.take_along_axis(magnitude, order, axis=1).sum()
    share = f"{100 * held / magnitude.sum():.0f}% of the sum of {what}" if held > 0 else f"{what} is 0 everywhere"
    return order, f"{order.size:,} of {weight.size:,} neurons, the top {order.shape[1]} of each layer: {share}"


def _whole(panels: Mapping[str, Map], site: Site, spans: Sequence[str] | None, *, unit: str, title: str) -> Figure:
    """Draw maps on one scale, the same cells of each: `grids.grid_of` says which."""
    weight = np.max([np.abs(np.nan_to_num(values)) for values in panels.values()], axis=0)
    grid = grid_of(weight, site, spans, whole=True)
    note = grid.note if "largest" in grid.note else ""
    return heatmaps({k: grid.of(v) for k, v in panels.items()}, unit=unit, title=title, grid=grid, note=note)


def heatmaps(
    panels: Mapping[str, Map],
    *,
    unit: str,
    title: str,
    grid: Grid | None = None,
    order: Order | None = None,
    note: str = "",
    by: str = "",
) -> Figure:
    """Draw panels on one scale: those of a grid side by side, or the components of `order` one above the other."""
    heads, n = order is None, len(panels)
    shown = {k: v if order is None else np.take_along_axis(v, order, axis=1) for k, v in panels.items()}
    rows, columns = next(iter(shown.values())).shape
    annotated = heads and max(rows, columns) <= _MAX_ANNOTATED
    cell = (0.44, 0.38) if annotated else (0.24, 0.24) if heads else (0.37, 0.25)
    low = grid is not None and (grid.column == "position" or len(grid.rows) == 1)
    width, height = columns * cell[0] + 0.8, (max(rows * cell[1], 1.4) if low else rows * cell[1]) + 0.9
    if grid is not None and grid.column == "position":
        height += 0.1 * min(_LONGEST_NAME, max(map(len, grid.columns)))
    size = (max(n * width, 6.0) + 1.2, max(height, 1.8) + 0.4) if heads else (max(width, 6.0) + 1.2, n * height + 0.4)
    fig, axes = figure(*size, *((1, n) if heads else (n, 1)), "\n".join(part for part in (title, note) if part))

    magnitudes = np.abs(np.concatenate([v[~np.isnan(v)] for v in shown.values()]))
    largest = float(magnitudes.max(initial=0.0))
    limit = largest if heads or largest == 0 else float(np.percentile(magnitudes, _CLIP_PERCENTILE)) or largest
    image = None
    for ax, (name, values) in zip(axes, shown.items(), strict=True):
        ax.set_title(name, y=1.0)
        if not np.nan_to_num(values).any():
            blank(ax, f"{name}: not drawn, {'no score is finite' if np.isnan(values).any() else 'every score is 0'}")
            continue
        image = ax.imshow(values, cmap=COLOURS, vmin=-limit, vmax=limit, aspect="auto")
        across = "head" if heads else f"rank in the layer by {by}; the number in a cell is the neuron's index"
        ax.set(xlabel=across if heads or ax is axes[-1] else "", ylabel="layer")
        ax.set_xticks(ticks(columns), [str(t + (not heads)) for t in ticks(columns)])
        ax.set_yticks(ticks(rows))
        numbered = (ax.xaxis, ax.yaxis) if grid is None else _name_axes(ax, grid)
        for axis in numbered:  # the layout asks for the size of each label many times
            for tick in axis.get_major_ticks()[1:-1]:
                tick.label1.set_in_layout(False)
        if annotated or order is not None:
            cells = np.char.mod("%.2f", values) if order is None else order.astype(str)
            CellTexts(
                ax,
                values / limit,
                np.where(cells == "-0.00", "0.00", np.where(cells == "nan", "", cells)),
                7.0 if heads else 6.5,
            )
    if image is not None:
        label = f"{unit}\nred > 0, blue < 0" if low else f"{unit}; red > 0, blue < 0"
        if limit < largest:
            label += f"\ncolours end at {limit:.2g}, the {_CLIP_PERCENTILE}th percentile; largest {largest:.2g}"
        fig.colorbar(image, ax=axes, label=label, extend="both" if limit < largest else "neither", pad=0.02)
    return fig


def _name_axes(ax: Axes, grid: Grid) -> list[Axis]:
    """The axes whose ticks have numbers, after rows and columns have their names; positions stand upright."""
    ax.set(xlabel=grid.column, ylabel=grid.row)
    numbered: list[Axis] = []
    if grid.row == "layer":
        numbered.append(ax.yaxis)
    else:
        ax.set_yticks(range(len(grid.rows)), grid.rows)
    if grid.column == "position":
        names = [printable(name, _LONGEST_NAME) for name in grid.columns]
        ax.set_xticks(range(len(names)), names, rotation="vertical")
    else:
        numbered.append(ax.xaxis)
    return numbered


class CellTexts(PathCollection):
    """A text in the middle of each cell, white on dark colours; one artist: a `Text` each takes far longer."""

    def __init__(self, ax: Axes, values: Map, texts: Shaped[np.ndarray, "layer component"], size: float) -> None:
        """`values` are shares of the scale's end, [-1, 1] or beyond; `size` is the font's, in points."""
        dark = COLOURS((values + 1) / 2)[..., :3] @ (0.299, 0.587, 0.114) < 0.5
        rows, columns = np.indices(texts.shape)
        super().__init__(
            [_text_path(text, size) for text in texts.ravel().tolist()],
            facecolors=np.where(dark, "white", "0.2").ravel().tolist(),
            linewidths=0,
            offsets=np.column_stack([columns.ravel(), rows.ravel()]),
            offset_transform=ax.transData,
            transform=Affine2D().scale(1 / 72) + ax.figure.dpi_scale_trans,
        )
        self.texts = texts
        self.set_in_layout(False)  # it lies inside the panel, which the layout knows
        ax.add_collection(self, autolim=False)


@lru_cache(maxsize=8192)
def _text_path(text: str, size: float) -> Path:
    """Return the outline of a text of digits in points, its middle at 0."""
    if not text:
        return Path(np.empty((0, 2)))
    path = TextPath((0, 0), text, size=size, prop=FontProperties(family=FONT))
    low, high = path.get_extents().get_points()
    return Path(path.vertices - (low + high) / 2, path.codes)
