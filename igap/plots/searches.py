"""The course of a search, and what single words do to its best prompt."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from igap.plots.canvas import PALETTE, blank, figure, styled

_SHOWN = 12
"""Words of each slot that are named."""


@styled
def search_history(trials: pd.DataFrame, summary: Mapping[str, object], head: str) -> Figure:
    """Each trial's value against its number, coloured by who proposed it; the best so far; what chance and hand find.

    `trials` has the columns trial, source and value (logits).
    """
    fig, (ax,) = figure(8.4, 4.6, 1, 1, f"{head}: value of each corrupted prompt tried")
    known = trials[trials["value"].notna()]
    if known.empty:
        return blank(ax, "not drawn: no trial has a value")
    for colour, (source, rows) in zip([*PALETTE, "0.4"] * 4, known.groupby("source", sort=False), strict=False):
        ax.plot(
            rows["trial"], rows["value"], "o", markersize=3.5, color=colour, alpha=0.8, label=f"{source} ({len(rows)})"
        )
    ax.step(known["trial"], known["value"].cummax(), where="post", color="black", linewidth=1.5, label="best so far")
    for name, style, label in (
        ("random/best", "--", f"best of {summary['random/n']} at random"),
        ("by_hand/value", ":", "made by hand"),
        ("neutral/p95", "-.", "95% of neutral edits"),
    ):
        value = summary.get(name)
        if isinstance(value, float):
            ax.axhline(value, linestyle=style, color="0.35", linewidth=1.2, label=f"{label}: {value:.3f}", zorder=0)
    ax.set(xlabel="trial", ylabel="value, logits")
    fig.legend(loc="outside right upper", ncols=1)
    return fig


@styled
def search_single_edits(edits: pd.DataFrame, summary: Mapping[str, object], head: str) -> Figure:
    """Of each slot, the value of the best prompt with every other word in it: the highest and lowest are named.

    `edits` has the columns slot, option and value (logits).
    """
    slots = list(dict.fromkeys(edits["slot"])) if len(edits) else []
    fig, axes = figure(
        2.4 * max(1, len(slots)) + 0.8, 4.8, 1, max(1, len(slots)), f"{head}: one word of the best prompt changed"
    )
    if not slots:
        return blank(axes[0], "not drawn: no slot has another word")
    best = float(str(summary["best/value"]))
    low, high = min(edits["value"].min(), best), max(edits["value"].max(), best)
    pad = 0.05 * (high - low or 1.0)
    for ax, slot in zip(axes, slots, strict=True):
        rows = edits[edits["slot"] == slot].sort_values("value", ascending=False).reset_index(drop=True)
        ax.plot(np.arange(len(rows)), rows["value"], ".", color=PALETTE[0], markersize=4)
        ax.axhline(best, color="black", linewidth=1)
        named = pd.concat([rows.head(_SHOWN // 2), rows.tail(_SHOWN // 2)]).drop_duplicates()
        text = "\n".join(f"{row.value:+.3f} {str(row.option).lstrip('=')}" for row in named.itertuples())
        ax.text(0.97, 0.5, text, transform=ax.transAxes, ha="right", va="center", fontsize=6.5, family="monospace")
        ax.set(title=slot, ylim=(low - pad, high + pad), xlabel="words, by value", xlim=(-1, 2.2 * max(1, len(rows))))
        ax.set_xticks([])
    axes[0].set_ylabel("value, logits (line: the best prompt)")
    return fig
