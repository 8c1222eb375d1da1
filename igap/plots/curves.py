"""Jaccard index against k, and completeness deltas by layer."""

import textwrap
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from igap.plots.canvas import PALETTE, add_legend, blank, figure, ticks, use_style
from igap.statistics.comparison import REPORTED_K, Comparison

Layers = Float[np.ndarray, " layer"]


@use_style()
def jaccard_curve(comparisons: Mapping[str, Comparison], *, title: str = "") -> Figure:
    """Draw the Jaccard index of the top k of IG and AP against k, a line a site; dashed, that of two random sets."""
    fig, (ax,) = figure(7.2, 4.6, 1, 1, title)
    if not comparisons:
        return blank(ax, "not drawn: no site was compared")
    for colour, (site, comparison) in zip(PALETTE, comparisons.items(), strict=False):
        known = [k for k in REPORTED_K if k <= comparison.n_nonzero]
        label = ", ".join([site, *(f"{comparison.jaccard_at(k):.2f} at k = {k}" for k in known)])
        if comparison.n_nonzero < comparison.n:
            label += f", undefined above k = {comparison.n_nonzero}"
        ax.plot(comparison.jaccard_k, comparison.jaccard, color=colour, label=label)
        ax.plot(comparison.jaccard_k, comparison.jaccard_chance, "--", color=colour, label=f"{site}, chance level")
        ax.plot(known, [comparison.jaccard_at(k) for k in known], "o", color=colour, markersize=5)
    for k in (k for k in REPORTED_K if k <= max(c.n for c in comparisons.values())):
        ax.axvline(k, color="0.7", linestyle=":", linewidth=1, zorder=0)
        ax.annotate(f"{k}", (k, 1.04), ha="center", va="bottom", fontsize=8, annotation_clip=False)
    ax.set(xscale="log", ylim=(-0.02, 1.04), xlabel="k, components with the largest |score|", ylabel="Jaccard index")
    ax.set_xlim(left=0.9)
    ax.xaxis.set_major_formatter("{x:,.0f}")
    add_legend(fig)
    return fig


@use_style()
def convergence_delta(
    deltas: Mapping[str, Layers],
    layer_effects: Mapping[str, Layers],
    *,
    tolerance: float,
    title: str = "",
    unit: str = "logits",
) -> Figure:
    """Draw IG's |completeness delta| by layer and site, in F's unit and in % of the layer's effect; log scales.

    Filled markers are positive deltas, open ones negative. `layer_effects` are F(all of the site replaced) - F(x), in
    F's unit; `tolerance` is a share (0.01 is 1%). Where delta or effect is 0 the value is left out, the layer listed.
    """
    fig, (left, right) = figure(10.5, 4.2, 1, 2, title)
    for i, (site, delta) in enumerate(deltas.items()):
        effect = np.abs(layer_effects[site])
        share = np.divide(100 * np.abs(delta), effect, out=np.full(delta.shape, np.nan), where=effect > 0)
        layers = np.arange(delta.size) + (i - (len(deltas) - 1) / 2) * 0.24
        for ax, values in ((left, np.abs(delta)), (right, share)):
            drawn = values > 0
            for keep, face in ((drawn & (delta > 0), PALETTE[i]), (drawn & (delta < 0), "white")):
                ax.plot(layers[keep], values[keep], "o", markersize=6, color=PALETTE[i], markerfacecolor=face)
        left.plot([], [], "o", color=PALETTE[i], label=f"{site}, delta > 0")
        left.plot([], [], "o", color=PALETTE[i], markerfacecolor="white", label=f"{site}, delta < 0")
    _delta_axis(left, f"|completeness delta|, {unit}", {s: d == 0 for s, d in deltas.items()}, "delta exactly 0")
    zero_effect = {s: layer_effects[s] == 0 for s in deltas}
    share_label = "|completeness delta|, % of the layer's effect"
    _delta_axis(right, share_label, zero_effect, "effect 0, no percentage", tolerance=100 * tolerance)
    if deltas:
        add_legend(fig, 2 * len(deltas) + 1)
    return fig


def _delta_axis(
    ax: Axes, label: str, left_out: Mapping[str, npt.NDArray[np.bool_]], why: str, tolerance: float | None = None
) -> None:
    """Log scale, ticks, labels, the tolerance in the axis' unit if any, and the layers that were left out and why."""
    values = np.concatenate([np.empty(0), *(np.asarray(line.get_ydata(), dtype=np.float64) for line in ax.lines)])
    if not values.size:
        blank(ax, "not drawn: no value above 0")
    else:
        if tolerance:
            values = np.append(values, tolerance)
            ax.axhline(tolerance, color="0.3", linestyle="--", linewidth=1.2, label=f"tolerance {tolerance:g}%")
        ax.set_yscale("log")
        # Whole decades, so that there is a labelled tick at both ends.
        ax.set_ylim(10 ** np.floor(np.log10(values.min() / 1.5)), 10 ** np.ceil(np.log10(values.max() * 1.5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("")
    n_layers = max((v.size for v in left_out.values()), default=1)
    ax.set(xlabel="layer", ylabel=label, xlim=(-0.6, n_layers - 0.4))
    ax.set_xticks(ticks(n_layers))
    listed = [f"{site} {', '.join(f'L{i}' for i in np.flatnonzero(v))}" for site, v in left_out.items() if v.any()]
    if listed:
        ax.set_title(textwrap.fill(f"{why}: {'; '.join(listed)}", 60), fontsize=8, loc="left", y=1.0)
