"""Deletion and insertion curves of every method's ranking, beside those of random rankings."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from igap.analyses.faithfulness.curves import AREAS, Curve, FaithfulnessCurves
from igap.analyses.faithfulness.rankings import RANDOM
from igap.plots.canvas import PALETTE, blank, figure, use_style

_PANELS = {
    "cpr": ("kept: the first by contribution", "CPR, larger is better"),
    "cmd": ("kept: the first by magnitude", "CMD, smaller is better"),
    "deletion": ("ablated: the first by contribution", "area, smaller is better"),
}
_STYLES = ("-", "--", "-.", (0, (1, 1)))  # curves of methods that agree lie on each other
_LINEAR_UP_TO = 500  # components; of more, all that happens is in the first hundredth


@use_style()
def faithfulness_curves(groups: Sequence[FaithfulnessCurves], *, title: str = "") -> Figure:
    """Draw a row an ablation, of one site: insertion by contribution, insertion by magnitude, deletion by contribution.

    Lines are means over pairs, shades 95% intervals over pairs. Grey are random rankings: their mean, and the band
    that holds 95% of them.
    """
    fig, axes = figure(10.5, 4.0 * len(groups), len(groups), len(AREAS), title)
    for row, group in enumerate(groups):
        for ax, area in zip(axes[row * len(AREAS) :], AREAS, strict=False):
            if group.reason:
                blank(
                    ax,
                    f"not drawn, ablated by the {group.ablation} activation:\nsee the summary" if area == "cmd" else "",
                )
            else:
                _panel(ax, group, area)
    return fig


def _panel(ax: Axes, group: FaithfulnessCurves, area: str) -> None:
    (what, meaning), (kind, ranking) = _PANELS[area], AREAS[area]
    curves = {c.method: c for c in group.curves if (c.kind, c.ranking) == (kind, ranking)}
    share = np.array(group.sizes) / group.n
    methods = [method for method in curves if method != RANDOM]
    for method, style, colour in zip(methods, itertools.cycle(_STYLES), itertools.cycle(PALETTE), strict=False):
        _line(ax, share, curves[method], colour, linestyle=style, linewidth=1.6)
    _line(ax, share, curves[RANDOM], "0.5", linewidth=1.2, zorder=1)
    for level in (0, 1):
        ax.axhline(level, color="0.8", linewidth=0.8, zorder=0)
    ax.set_title(f"{what}\nablated by the {group.ablation} activation", fontsize=9)
    ax.set(
        xlabel=f"share of the {group.n:,} {group.site} {what.partition(':')[0]}{group.at}",
        ylabel="faithfulness, clean run = 1",
    )
    if group.n > _LINEAR_UP_TO:
        ax.set_xscale("symlog", linthresh=0.001, linscale=0.4)
        ax.set_xticks([0, 0.001, 0.01, 0.1, 1], ["0", "0.1%", "1%", "10%", "100%"])
        meaning += " (on a linear axis)"
    else:
        ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlim(0, 1)
    ax.yaxis.set_major_locator(
        MaxNLocator(5, steps=[1, 2, 5, 10])
    )  # as many at every height: the layout is made before the height is known
    ax.legend(title=meaning, title_fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)


def _line(ax: Axes, share: Float64[np.ndarray, " size"], curve: Curve, colour: str, **style: Any) -> None:
    estimate = curve.faithfulness
    ax.plot(share, estimate.value, color=colour, label=f"{curve.method} {curve.area.value[0]:.3f}", **style)
    if np.isfinite(estimate.low).all():
        ax.fill_between(
            share,
            estimate.low,
            estimate.high,
            color=colour,
            alpha=0.25 if curve.method == RANDOM else 0.12,
            linewidth=0,
        )
