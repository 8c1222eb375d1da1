"""Why IG and AP disagree: the terms of the chain from AtP to AP, and the parts of one head's interaction."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from igap.attribution.decomposition import BETWEEN, TERMS
from igap.components import Site, kind_of
from igap.plots.canvas import PALETTE, add_legend, blank, figure, use_style

_COLOURS = dict(zip(TERMS, (PALETTE[5], PALETTE[8], PALETTE[2], PALETTE[0], PALETTE[7]), strict=True))
_POINTS = {
    "atp": ("D", "none", "AtP"),
    "ig": ("o", "none", "IG"),
    "ap": ("o", "black", "AP"),
    "ap_mirrored": ("s", "none", "minus AP of the other direction"),
}


@use_style()
def explanation(
    outliers: Mapping[str, Mapping[str, float]], *, unit: str, title: str = "", site: Site = "heads"
) -> Figure:
    """Draw where AtP, IG, AP and the mirrored AP are (left), and the terms between them, stacked (right).

    Args:
        outliers: Points and terms by name, in `unit`, farthest first.
        unit: What the axes say.
        title: What stands above.
        site: What they are of.
    """
    fig, (left, right) = figure(10.0, 0.34 * max(len(outliers), 3) + 1.3, 1, 2, title)
    if not outliers:
        blank(left, f"not drawn: no {kind_of(site)} is an outlier")
        return blank(right, "")
    rows = np.arange(len(outliers))
    for point, (marker, face, label) in _POINTS.items():
        at = [values[point] for values in outliers.values()]
        left.plot(at, rows, marker, color="black", markerfacecolor=face, markersize=5.5, label=label, linestyle="")
    right_of, left_of = np.zeros(len(rows)), np.zeros(len(rows))
    for term in (*BETWEEN, *(term for term in TERMS if term not in BETWEEN)):
        width = np.array([values[term] for values in outliers.values()])
        within = term in BETWEEN
        right.barh(
            rows,
            width,
            left=np.where(width > 0, right_of, left_of),
            height=0.62,
            color=_COLOURS[term],
            hatch=None if within else "////",
            edgecolor="white",
            linewidth=0.4,
            label=term if within else f"{term} (not in AP - IG)",
        )
        right_of, left_of = right_of + np.maximum(width, 0), left_of + np.minimum(width, 0)
    difference = [values["ap"] - values["ig"] for values in outliers.values()]
    right.plot(difference, rows, "|", color="black", markersize=13, markeredgewidth=2, label="AP - IG", linestyle="")
    for ax, label in ((left, unit), (right, f"terms, {unit}")):
        ax.axvline(0, color="0.6", linewidth=0.8, zorder=0)
        ax.set(xlabel=label, ylim=(len(rows) - 0.5, -0.5))
        ax.set_yticks(rows, list(outliers))
        ax.grid(axis="y", color="0.92", linewidth=0.8, zorder=0)
        ax.set_axisbelow(True)
        ax.locator_params(axis="x", nbins=6)
    left.set_ylabel(f"outlier {site}")
    add_legend(fig, 5)
    return fig


@use_style()
def interaction_parts(
    head: str,
    others: Sequence[str],
    shares: Sequence[float],
    *,
    higher_order: float,
    title: str = "",
    unit: str = "logits",
    kind: str = "head",
) -> Figure:
    """Draw which components of its layer `head`'s interaction comes from, and what is of higher order; in F's unit."""
    labels, values = [*others, "higher\norder", "all"], [*shares, higher_order, sum(shares) + higher_order]
    heading = (
        f"{title}\ninteraction of {kind} {head}, part of AP - IG: minus half of I(c, d), pairs of {kind}s replaced "
        "together"
    )
    fig, (ax,) = figure(max(0.5 * len(labels) + 1.5, 6.5), 3.4, 1, 1, heading)
    places = np.arange(len(labels))
    colours = [_COLOURS["interaction"]] * len(others) + ["0.6", "0.25"]
    ax.bar(places, values, color=colours, width=0.7)
    ax.axhline(0, color="0.3", linewidth=0.8)
    for place, value in zip(places, values, strict=True):
        ax.annotate(
            f"{value:+.2f}", (float(place), value), xytext=(0, 3 if value >= 0 else -3), textcoords="offset points",
            ha="center", va="bottom" if value >= 0 else "top", fontsize=7.5,
        )  # fmt: skip
    ax.margins(y=0.15)
    ax.set_xticks(places, labels, rotation=90 if max(map(len, labels)) > len("higher order") else 0)
    ax.set(xlabel=f"other {kind} of the layer of {head}", ylabel=f"part of AP - IG, {unit}")
    return fig
