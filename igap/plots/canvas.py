"""What every figure shares: style, colours, an empty figure without pyplot, a blank panel with its reason."""

import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import seaborn as sns
from jaxtyping import Float, Float64
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.transforms import Bbox

Map = Float[np.ndarray, "layer *span component"]
Flat = npt.NDArray[np.floating[Any]]

METHODS = ("IG", "AP")
"""What figures call the two maps of a run; those of a comparison of others have their own names."""

PALETTE = sns.color_palette("colorblind").as_hex()

FONT = "DejaVu Sans"  # comes with matplotlib: the same figure on every machine

_STYLE: Any = {
    **sns.axes_style("ticks"),
    "figure.dpi": 150,
    "font.family": FONT,
    "font.size": 9,
    "axes.titlesize": 10,
    "figure.titlesize": 10,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.hinting": "no_hinting",  # at this resolution it shows nowhere, and takes as long as the rest of a text
    "text.parse_math": False,  # a prompt in a title may hold dollar signs
}


@contextmanager
def use_style() -> Iterator[None]:
    """Draw in the project's style, whatever style the user or another library has set; it is as before afterwards."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def figure(width: float, height: float, rows: int, columns: int, title: str) -> tuple[Figure, list[Axes]]:
    """Return an empty figure, size in inches, and its axes row by row; long titles wrap and make it higher."""
    lines = [part for line in title.splitlines() for part in textwrap.wrap(line, int(width * 13))]
    fig = Figure(figsize=(width, height + 0.19 * len(lines)), layout=_Layout())
    FigureCanvasAgg(fig)  # measures and draws, so that no text is measured twice
    if lines:
        fig.suptitle("\n".join(lines))
    axes: list[Axes] = list(fig.subplots(rows, columns, squeeze=False).ravel())
    for ax in axes:
        for spine in ax.spines.values():  # they lie where the panel ends, and asking how far they reach is slow
            spine.set_in_layout(False)
    return fig, axes


def add_legend(fig: Figure, ncols: int = 1, **content: Any) -> None:
    """Put the figure's legend below its panels, no wider than the figure.

    Args:
        fig: the figure.
        ncols: columns at most; fewer where they would be wider than the figure.
        content: `handles`, and `labels` where they have none; all that has a label if left out.
    """
    for n in range(ncols, 0, -1):
        legend = fig.legend(**content, loc="outside lower center", ncols=n)
        if n == 1 or legend.get_window_extent().width <= fig.bbox.width:
            return
        legend.remove()


def blank(ax: Axes, reason: str) -> Figure:
    """Return the figure of `ax`, whose panel now holds nothing but the reason."""
    ax.set_axis_off()
    ax.text(0.5, 0.5, reason, transform=ax.transAxes, ha="center", va="center", color="0.35")
    fig = ax.get_figure(root=True)
    assert fig is not None
    return fig


def finite(values: Map) -> Float64[np.ndarray, "layer *span component"]:
    """Return the map in float64, NaN where it is not finite."""
    return np.where(np.isfinite(values), values, np.nan).astype(np.float64)


def ticks(n: int) -> list[int]:
    """Return every, every second, every third ... position of 0..n-1: at most 30 of them."""
    return list(range(0, n, -(-n // 30)))


class _Layout(ConstrainedLayoutEngine):
    """Constrained layout, which asks for the size of each panel four times and more: what is known is not measured."""

    def execute(self, fig: Figure) -> None:
        """Give everything its place."""
        for ax in fig.axes:
            ax.get_tightbbox = _remember(ax)  # type: ignore[method-assign]
        try:
            super().execute(fig)
        finally:
            for ax in fig.axes:
                del ax.get_tightbbox


def _remember(ax: Axes) -> Callable[..., Bbox | None]:
    """Return `get_tightbbox` of a panel; what is around it keeps its size where the panel moves and keeps its ticks."""
    measure = ax.get_tightbbox
    known: dict[tuple[float | None, ...], npt.NDArray[np.float64]] = {}

    def get_tightbbox(renderer: RendererAgg, **options: Any) -> Bbox | None:
        locator = ax.get_axes_locator()
        ax.apply_aspect(locator(ax, renderer) if locator is not None else None)
        ticks = (*ax.get_xticks(), None, *ax.get_yticks())
        if ticks not in known or ax.get_legend():  # a legend below a panel moves with its height
            box = measure(renderer, **options)
            if box is None:
                return None
            known[ticks] = np.subtract(box.extents, ax.bbox.extents)
        return Bbox.from_extents(*np.add(ax.bbox.extents, known[ticks]).tolist())

    return get_tightbbox


def lay_out(figure: Figure) -> None:
    """Give all that is in the figure its place on the page, for good: it is not laid out again when it is drawn."""
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.execute(figure)
    figure.set_layout_engine("none")
    for ax in figure.axes:
        ax.apply_aspect()


@use_style()
def write_png(figure: Figure, path: Path) -> None:
    """Write the figure to a PNG file, whatever the path's suffix.

    `Figure.savefig` draws a figure with a layout twice, first without ink; the layout is all that the ink needs. The
    least compression takes half the time of the usual one, for a tenth more bytes.
    """
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.print_png(path, pil_kwargs={"compress_level": 1})  # type: ignore[no-untyped-call]
