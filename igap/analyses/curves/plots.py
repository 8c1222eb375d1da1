"""F along the path of single components, a panel each, on shared axes."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from igap.analyses.curves.curves import OutputCurves
from igap.plots.canvas import PALETTE, add_legend, figure, use_style

_COLUMNS = 4
_LONGEST = 24
"""Characters of a name, which a set's may exceed."""
_PATH, _LINE, _SLOPE, _PEAK, _TROUGH = PALETTE[0], "0.35", PALETTE[1], PALETTE[3], PALETTE[2]


@use_style()
def output_curves(curves: OutputCurves, *, title: str = "") -> Figure:
    """Draw a panel a component: F against alpha, the straight line from F(0) to F(1), the slope at 0, the extrema."""
    n = len(curves.names)
    columns = min(n, _COLUMNS)
    rows = -(-n // columns)
    heading = (
        f"{title}\nalpha = 0: the run; alpha = 1: {curves.baseline} baseline; the curve is F with that component there"
    )
    fig, axes = figure(max(2.5 * columns, 6.0) + 0.4, 2.2 * rows + 1.0, rows, columns, heading)
    for ax in axes[n:]:
        ax.set_visible(False)
    values = curves.values
    reach = np.concatenate([values.ravel(), curves.ends.ravel()])
    margin = 0.08 * (np.ptp(reach) or 1.0)
    for i, ax in enumerate(axes[:n]):
        _panel(ax, curves, i)
        ax.set(
            xlim=(min(0.0, curves.alphas[0]), max(1.0, curves.alphas[-1])),
            ylim=(reach.min() - margin, reach.max() + margin),
        )
        ax.ticklabel_format(style="plain", useOffset=False)  # an offset would lie on the title
        lowest, first = i + columns >= n, i % columns == 0
        ax.tick_params(labelbottom=lowest, labelleft=first)
        ax.set(xlabel="alpha" if lowest else "", ylabel=f"F, {curves.unit}" if first else "")
        ax.xaxis.set_in_layout(lowest)
        ax.yaxis.set_in_layout(first)
    handles, labels = [], []
    for ax in axes[:n]:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            if label not in labels:
                handles.append(handle)
                labels.append(label)
    add_legend(fig, min(5, columns + 1), handles=handles, labels=labels)
    return fig


def _panel(ax: Axes, curves: OutputCurves, i: int) -> None:
    start, end = curves.ends[i]
    for alpha in (0, 1):
        ax.axvline(alpha, color="0.75", linewidth=0.8, zorder=0)
    ax.axline((0, start), (1, end), color=_LINE, linestyle=":", linewidth=1, label="line F(0) to F(1)")
    ax.plot(curves.alphas, curves.values[i], color=_PATH, linewidth=1.5, label="F")
    near = np.array([-0.6, 0.6])
    ax.plot(
        near, start + curves.slopes[i] * near, color=_SLOPE, linestyle="--", linewidth=1.2, label="slope at 0 (AtP)"
    )
    ax.plot([0, 1], [start, end], "o", color=_PATH, markersize=3.5)
    for extremum in curves.extrema(i):
        marker, colour = ("^", _PEAK) if extremum.kind == "peak" else ("v", _TROUGH)
        face = colour if extremum.inside else "white"
        where = "inside" if extremum.inside else "outside"
        ax.plot(
            extremum.alpha,
            extremum.value,
            marker,
            color=colour,
            markerfacecolor=face,
            label=f"{extremum.kind} {where} [0, 1]",
            linestyle="",
        )
    role = f", {curves.roles[i]}" if curves.roles else ""
    # + 0.0 turns -0.0 into 0.0
    effect, bend = (round(float(value), 2) + 0.0 for value in (curves.effects[i], curves.max_deviation_from_chord[i]))
    numbers = f"F(1) - F(0) {effect:+.2f}, bend {bend:+.2f}"
    name = curves.names[i] if len(curves.names[i]) <= _LONGEST else f"{curves.names[i][: _LONGEST - 3]}..."
    ax.set_title(f"{name}{role}\n{numbers}", fontsize=8, y=1.0)
