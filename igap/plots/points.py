"""IG against AP point by point: scatter and mean-difference (Bland-Altman) plot, with the largest outliers named."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from scipy import stats

from igap.plots.canvas import METHODS, PALETTE, Flat, Map, add_legend, blank, figure, finite, lay_out, use_style
from igap.statistics.comparison import Comparison

Flags = Bool[np.ndarray, "layer *span component"]
Boxes = Float64[np.ndarray, "box 4"]  # left, bottom, right, top

_POINT, _OUTLIER, _FIT = PALETTE[0], PALETTE[3], PALETTE[2]
_LABEL_SIZE = 7.5
_MAX_LABELS = 12
_MANY = 1000  # more points than this are drawn small and as pixels


@use_style()
def scatter(
    ig: Map,
    ap: Map,
    *,
    names: Sequence[str],
    outliers: Flags,
    comparison: Comparison | None,
    unit: str,
    title: str = "",
    methods: tuple[str, str] = METHODS,
) -> Figure:
    """Draw IG against AP, one point a component, with y = x, the least-squares line and its 95% band.

    `outliers` are highlighted; the 12 with the largest |AP - IG| carry their names. `comparison` is None where the
    scores could not be compared, which gives a blank figure.
    """
    fig, (ax,) = figure(6.2, 6.4, 1, 1, title)
    if comparison is None or not (ig.any() or ap.any()):
        return blank(ax, "not drawn: every score is 0" if comparison else "not drawn: the scores cannot be compared")
    x, y, flagged = finite(ig).ravel(), finite(ap).ravel(), outliers.ravel()
    (x, y, flagged), names = _where_known(x, y, flagged, names=names)
    _points(ax, x, y, flagged, "outliers")
    ax.axline((0, 0), slope=1, color="0.5", linestyle="--", linewidth=1, label="y = x")
    _fit_line(ax, x, y, "least squares, slope {slope:.3g}, 95% band")
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    if min(np.ptp(x), np.ptp(y)) > (high - low) / 4:  # else one method would be squeezed into a line
        margin = 0.06 * (high - low)
        ax.set(xlim=(low - margin, high + margin), ylim=(low - margin, high + margin), aspect="equal")
    _statistics_box(ax, x, y, comparison)
    ax.set(xlabel=f"{methods[0]}, {unit}", ylabel=f"{methods[1]}, {unit}")
    add_legend(fig, 2)
    _label_largest(ax, x, y, y - x, flagged, names)
    return fig


@use_style()
def mean_difference(
    ig: Map,
    ap: Map,
    *,
    names: Sequence[str],
    comparison: Comparison | None,
    unit: str,
    title: str = "",
    methods: tuple[str, str] = METHODS,
) -> Figure:
    """Draw a Bland-Altman plot: AP - IG against the mean of both, with bias, limits of agreement, proportional bias.

    Components outside the limits are highlighted, the 12 with the largest |AP - IG| carry their names.
    """
    fig, (ax,) = figure(7.4, 5.8, 1, 1, title)
    if comparison is None or not (ig.any() or ap.any()):
        return blank(ax, "not drawn: every score is 0" if comparison else "not drawn: the scores cannot be compared")
    x, y, flagged = (
        (finite(ig) + finite(ap)).ravel() / 2,
        comparison.difference.ravel(),
        comparison.outlier_limits.ravel(),
    )
    (x, y, flagged), names = _where_known(x, y, flagged, names=names)
    _points(ax, x, y, flagged, "outside the limits")
    ax.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    ax.axhline(comparison.bias, color="0.2", linewidth=1.2, label=f"bias {comparison.bias:.3g}")
    if np.isfinite(comparison.sd):
        ax.axhline(comparison.limits_high, color="0.2", linestyle="--", linewidth=1)
        label = f"limits of agreement {comparison.limits_low:.3g} to {comparison.limits_high:.3g} (bias ± 1.96 SD)"
        ax.axhline(comparison.limits_low, color="0.2", linestyle="--", linewidth=1, label=label)
    _fit_line(ax, x, y, f"least squares, slope {_with_interval(comparison, 'slope')}, 95% band")
    first, second = methods
    ax.set(xlabel=f"mean of {first} and {second}, {unit}", ylabel=f"{second} - {first}, {unit}")
    add_legend(fig, 2)
    _label_largest(ax, x, y, y, flagged, names)
    return fig


def _where_known(
    x: Flat, y: Flat, flagged: npt.NDArray[np.bool_], names: Sequence[str]
) -> tuple[tuple[Flat, Flat, npt.NDArray[np.bool_]], Sequence[str]]:
    """Leave out components that one method has no number of."""
    known = ~(np.isnan(x) | np.isnan(y))
    if known.all():
        return (x, y, flagged), names
    return (x[known], y[known], flagged[known]), [names[i] for i in np.flatnonzero(known).tolist()]


def _points(ax: Axes, x: Flat, y: Flat, flagged: npt.NDArray[np.bool_], what: str) -> None:
    many = x.size > _MANY
    style: dict[str, Any] = {"s": 5, "alpha": 0.35, "rasterized": True} if many else {"s": 20, "alpha": 0.7}
    ax.scatter(x[~flagged], y[~flagged], color=_POINT, linewidths=0, **style)
    style |= {"s": 9 if many else 28, "alpha": 0.8}
    named = f", largest {_MAX_LABELS} named" if flagged.sum() > _MAX_LABELS else ""
    label = f"{what}: {int(flagged.sum()):,} of {x.size:,}{named}"
    ax.scatter(x[flagged], y[flagged], color=_OUTLIER, linewidths=0, zorder=3, label=label, **style)


def _fit_line(ax: Axes, x: Flat, y: Flat, label: str) -> None:
    """Least-squares line of y on x with the 95% band of its mean, or nothing where x is constant up to rounding."""
    if np.ptp(x) <= 1e-13 * np.abs(x).max():
        return
    u, n = x - x.mean(), x.size
    slope = float(np.dot(u, y) / np.dot(u, u))
    grid = np.linspace(x.min(), x.max(), 100)
    line = y.mean() + slope * (grid - x.mean())
    ax.plot(grid, line, color=_FIT, linewidth=1.4, label=label.format(slope=slope))
    if n > 2:
        error = np.linalg.norm(y - y.mean() - slope * u) / np.sqrt(n - 2)
        half = stats.t.ppf(0.975, n - 2) * error * np.sqrt(1 / n + (grid - x.mean()) ** 2 / np.dot(u, u))
        ax.fill_between(grid, line - half, line + half, color=_FIT, alpha=0.2, linewidth=0)


def _statistics_box(ax: Axes, x: Flat, y: Flat, comparison: Comparison) -> None:
    """Both correlations and n, in the corner that hides the fewest points."""
    lines = [f"{name.title()} {_with_interval(comparison, name)}" for name in ("pearson", "spearman")]
    if np.isnan(comparison.pearson):
        lines = ["correlation undefined:", comparison.reasons["pearson"]]
    across, up = ax.transAxes.inverted().transform(ax.transData.transform(np.column_stack([x, y]))).T
    corners = [(0.03, 0.97), (0.97, 0.03), (0.97, 0.97), (0.03, 0.03)]
    hidden = [int(((abs(across - right) < 0.42) & (abs(up - top) < 0.14)).sum()) for right, top in corners]
    right, top = corners[int(np.argmin(hidden))]
    place: dict[str, Any] = {"ha": "right" if right > 0.5 else "left", "va": "top" if top > 0.5 else "bottom"}
    box = {"boxstyle": "round", "facecolor": "white", "edgecolor": "0.7", "alpha": 0.85}
    text = "\n".join([*lines, f"n = {comparison.n:,}"])
    ax.text(right, top, text, transform=ax.transAxes, fontsize=8, bbox=box, **place)


def _with_interval(comparison: Comparison, name: str) -> str:
    value, low, high = (getattr(comparison, name + end) for end in ("", "_low", "_high"))
    if np.isnan(value):
        return f"undefined ({comparison.reasons[name]})"
    return f"{value:.3f}" if np.isnan(low) else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _label_largest(
    ax: Axes, x: Flat, y: Flat, difference: Flat, flagged: npt.NDArray[np.bool_], names: Sequence[str]
) -> None:
    """Names beside the flagged points with the largest |difference|, each at the free place nearest to its point."""
    if len(names) != x.size:
        raise ValueError(f"names has {len(names)} entries, the maps {x.size} components. Pass one name a component.")
    chosen = np.flatnonzero(flagged)
    chosen = chosen[np.argsort(-np.abs(difference[chosen]), kind="stable")][:_MAX_LABELS]
    fig = ax.get_figure(root=True)
    assert fig is not None
    lay_out(fig)  # from here on data coordinates have their place on the page
    to_points = 72 / fig.dpi
    frame = np.array(ax.get_window_extent().extents) * to_points
    taken = [np.array(text.get_window_extent().extents) * to_points for text in ax.texts]
    places = ax.transData.transform(np.column_stack([x, y])) * to_points
    crowd = places[flagged] if x.size > _MANY else places

    def costs(boxes: Boxes) -> npt.NDArray[np.float64]:
        low, high = boxes[:, None, :2], boxes[:, None, 2:]
        hidden = _all(crowd > low, crowd < high).sum(axis=1)
        hits = _all(low < np.array(taken)[:, 2:], high > np.array(taken)[:, :2]).sum(axis=1) if taken else 0
        outside = ~_all(boxes[:, :2] >= frame[:2], boxes[:, 2:] <= frame[2:])
        cost: npt.NDArray[np.float64] = radii / 10 + 2 * hidden + 100 * hits + 1000 * outside
        return cost

    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    radii = np.repeat([6.0, 11.0, 18.0, 26.0, 36.0, 48.0, 62.0], angles.size)
    ways = np.tile(np.column_stack([np.cos(angles), np.sin(angles)]), (radii.size // angles.size, 1))
    style: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "center", "fontsize": _LABEL_SIZE}
    style["path_effects"] = [withStroke(linewidth=2, foreground="white")]
    leader = {"arrowstyle": "-", "color": "0.5", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2}
    for i in chosen.tolist():
        half = np.array([0.31 * len(names[i]) + 0.1, 0.6]) * _LABEL_SIZE
        shifts = ways * (radii[:, None] + half)
        boxes = np.hstack([places[i] + shifts - half, places[i] + shifts + half])
        best = int(np.argmin(costs(boxes)))
        taken.append(boxes[best])
        arrow = leader if radii[best] > 11 else None
        ax.annotate(names[i], (x[i], y[i]), xytext=tuple(shifts[best]), arrowprops=arrow, **style).set_in_layout(False)


def _all(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return where both hold for x and y, the last axis."""
    both: npt.NDArray[np.bool_] = np.all(first & second, axis=-1)
    return both
