"""What every figure shares: style, colours, an empty figure without pyplot, a blank panel with its reason."""

import textwrap
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import seaborn as sns
from jaxtyping import Float, Float64
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Map = Float[np.ndarray, "layer component"]
Flat = npt.NDArray[np.floating[Any]]

METHODS = ("IG", "AP")
"""What figures call the two maps of a run; those of a comparison of others have their own names."""

PALETTE = sns.color_palette("colorblind").as_hex()

_STYLE: Any = {
    **sns.axes_style("ticks"),
    "figure.dpi": 150,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same figure on every machine
    "font.size": 9,
    "axes.titlesize": 10,
    "figure.titlesize": 10,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # a prompt in a title may hold dollar signs
}
styled = mpl.rc_context(_STYLE)
"""Decorator: the function draws in the project's style, and matplotlib's own settings are as before when it returns."""


def figure(width: float, height: float, rows: int, columns: int, title: str) -> tuple[Figure, list[Axes]]:
    """Return an empty figure, size in inches, and its axes row by row; long titles wrap and make it higher."""
    lines = [part for line in title.splitlines() for part in textwrap.wrap(line, int(width * 13))]
    fig = Figure(figsize=(width, height + 0.19 * len(lines)), layout="constrained")
    if lines:
        fig.suptitle("\n".join(lines))
    return fig, list(fig.subplots(rows, columns, squeeze=False).ravel())


def blank(ax: Axes, reason: str) -> Figure:
    """Return the figure of `ax`, whose panel now holds nothing but the reason."""
    ax.set_axis_off()
    ax.text(0.5, 0.5, reason, transform=ax.transAxes, ha="center", va="center", color="0.35")
    fig = ax.get_figure(root=True)
    assert fig is not None
    return fig


def finite(values: Map) -> Float64[np.ndarray, "layer component"]:
    """Return the map in float64, NaN where it is not finite."""
    return np.where(np.isfinite(values), values, np.nan).astype(np.float64)


def ticks(n: int) -> list[int]:
    """Return every, every second, every third ... position of 0..n-1: at most 30 of them."""
    return list(range(0, n, -(-n // 30)))


def write_png(figure: Figure, path: Path) -> None:
    """Write the figure to a PNG file, whatever the path's suffix.

    `Figure.savefig` draws a figure with a layout twice, first without ink; the layout is all that the ink needs.
    """
    FigureCanvasAgg(figure).print_png(path)  # type: ignore[no-untyped-call]
