"""Denoising over noising: components on the line do as much in both directions."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from igap.analyses.both_directions.directions import BothDirections, Method
from igap.plots.canvas import PALETTE, add_legend, figure, use_style

_COLOURS = {
    "low": "0.7",
    "": "0.45",
    "minimal": PALETTE[0],
    "latent_or": PALETTE[1],
    "latent_and": PALETTE[2],
    "opposed": PALETTE[3],
}
_MOST_NAMED = 12


@use_style()
def directions_scatter(both: BothDirections, *, title: str = "") -> Figure:
    """Draw a point a component, AP left and IG right: what denoising brings back over what noising takes away.

    Both axes point to where F is carried: minus the score of noising, and the score of denoising. Above the line
    denoising does more (OR), below it noising does (AND). Colours are the classes by AP, in both panels.
    """
    fig, axes = figure(10.0, 5.0, 1, 2, f"{both.noising['ap'].site} of {title}")
    methods: tuple[Method, ...] = ("ap", "ig")
    for ax, method in zip(axes, methods, strict=True):
        _panel(ax, both, method)
    handles, labels = axes[0].get_legend_handles_labels()
    add_legend(fig, 5, handles=handles, labels=labels)
    return fig


def _panel(ax: Axes, both: BothDirections, method: Method) -> None:
    scored = both.noising[method].has_scores
    unit = "score" if scored else both.noising[method].unit
    x, y = (
        sign * (each.score if scored else each.effect).double().flatten().cpu().numpy()
        for sign, each in ((-1, both.noising[method]), (1, both.denoising[method]))
    )
    classes, names = np.array(both.classes), both.names
    ends = [min(x.min(), y.min(), 0), max(x.max(), y.max(), 0)]
    ax.plot(ends, ends, color="0.8", linewidth=0.8, zorder=0)
    for kind, colour in _COLOURS.items():
        own = classes == kind
        if own.any():
            label = f"{kind.replace('_', ' ') or 'no class'} ({own.sum()})"
            ax.plot(x[own], y[own], "o", color=colour, markersize=4.5, label=label, linestyle="")
    far = np.argsort(-np.abs(both.asymmetry(method)), kind="stable")[:_MOST_NAMED]
    size = np.argsort(-np.maximum(np.abs(x), np.abs(y)), kind="stable")[: _MOST_NAMED // 2]
    for i in dict.fromkeys([*far[classes[far] != "low"], *size]):
        ax.annotate(names[i], (x[i], y[i]), xytext=(4, -3), textcoords="offset points", fontsize=7)
    for line in (ax.axhline, ax.axvline):
        line(0, color="0.9", linewidth=0.8, zorder=0)
    ax.set(
        xlabel=f"{method.upper()} noising, takes away: -{unit}"
        if scored
        else f"minus {method.upper()} noising, {unit}",
        ylabel=f"{method.upper()} denoising, brings back: {unit}" if scored else f"{method.upper()} denoising, {unit}",
    )
