"""The course of a search, what single words do to its best prompt, and heads before and after it."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from igap.analyses.curves import OutputCurves
from igap.counterfactual.validation.results import NeutralEdits, RandomControl
from igap.counterfactual.validation.verdict import decimals, format_signed
from igap.errors.missing import Missing
from igap.plots.canvas import PALETTE, add_legend, blank, figure, ticks, use_style
from igap.plots.heatmaps import COLOURS, heatmaps

_SHOWN = 12
"""Words of each slot that are named."""
_UNITS = {
    "fluency": "nats a token beside the clean prompt",
    "edits": "slots changed",
    "downstream": "percentile of what follows",
}


@use_style()
def search_history(
    trials: pd.DataFrame,
    head: str,
    term: str,
    *,
    random: RandomControl,
    reference: float,
    neutral: NeutralEdits | Missing,
    unit: str = "logits",
) -> Figure:
    """Each trial's value against its number, coloured by who proposed it; the best so far; what chance and hand find.

    `trials` has the columns trial, source, counts and the term; trials out of bounds are crosses.
    """
    fig, (ax,) = figure(8.4, 4.6, 1, 1, f"{head}: value of each corrupted prompt tried")
    known = trials[trials[term].notna()]
    if known.empty:
        return blank(ax, "not drawn: no trial has a value")
    for colour, (source, rows) in zip([*PALETTE, "0.4"] * 4, known.groupby("source", sort=False), strict=False):
        inside = rows[rows["counts"]]
        ax.plot(
            inside["trial"], inside[term], "o", markersize=3.5, color=colour, alpha=0.8, label=f"{source} ({len(rows)})"
        )
    out = known[~known["counts"]]
    if len(out):
        ax.plot(out["trial"], out[term], "x", markersize=3, color="0.6", label=f"out of bounds ({len(out)})", zorder=0)
    best = known[term].where(known["counts"]).cummax()
    ax.step(known["trial"], best, where="post", color="black", linewidth=1.5, label="best so far")
    for value, style, label in (
        (random.best, "--", f"best of {random.n} at random"),
        (reference, ":", "made by hand"),
        (neutral if isinstance(neutral, Missing) else neutral.p95, "-.", "neutral edits, 95th percentile"),
    ):
        if not isinstance(value, Missing):
            text = f"{label}: {decimals(value)}"
            ax.axhline(value, linestyle=style, color="0.35", linewidth=1.2, label=text, zorder=0)
    ax.set(xlabel="trial", ylabel=f"{term}, {unit}")
    fig.legend(loc="outside right upper", ncols=1)
    return fig


@use_style()
def search_single_edits(edits: pd.DataFrame, best: float, head: str, unit: str = "logits") -> Figure:
    """The value of the best prompt with every other word in each slot: the highest and lowest words are named.

    `edits` has the columns slot, option and value (F's unit); `best` is the best prompt's value. At most
    12 slots are drawn, those whose words reach farthest.
    """
    reach = (edits["value"] - best).abs().groupby(edits["slot"], sort=False).max()
    slots = [slot for slot in reach.index if slot in set(reach.nlargest(12).index)]
    columns = min(6, len(slots))
    rows_of_panels = -(-len(slots) // columns)
    fig, axes = figure(
        2.5 * columns + 0.8, 4.4 * rows_of_panels + 0.4, rows_of_panels, columns,
        f"{head}: one word of the best prompt changed",
    )  # fmt: skip
    low, high = min(edits["value"].min(), best), max(edits["value"].max(), best)
    pad = 0.05 * (high - low or 1.0)
    for ax in axes[len(slots) :]:
        ax.set_visible(False)
    for ax, slot in zip(axes, slots, strict=False):
        rows = edits[edits["slot"] == slot].sort_values("value", ascending=False).reset_index(drop=True)
        ax.plot(np.arange(len(rows)), rows["value"], ".", color=PALETTE[0], markersize=4)
        ax.axhline(best, color="black", linewidth=1)
        named = pd.concat([rows.head(_SHOWN // 2), rows.tail(_SHOWN // 2)]).drop_duplicates()
        text = "\n".join(f"{format_signed(row.value)} {str(row.option).lstrip('=')[:18]}" for row in named.itertuples())
        ax.text(0.98, 0.5, text, transform=ax.transAxes, ha="right", va="center", fontsize=6.5, family="monospace")
        ax.set(
            title=slot, ylim=(low - pad, high + pad), xlabel=f"{len(rows)} words, by value",
            xlim=(-1, 3.0 * max(1, len(rows))),
        )  # fmt: skip
        ax.set_xticks([])
    for ax in axes[::columns]:
        ax.set_ylabel(f"value, {unit} (line: the best prompt)")
    return fig


@use_style()
def search_heads(heads: pd.DataFrame, head: str, unit: str = "logits") -> Figure:
    """AP effects of all heads with the pairs made by hand and with the best ones, side by side on one scale.

    `heads` has the columns name ("9.6"), by_hand/effect and best/effect (F's unit), at the span of `head`, the target
    of the search. The searched one is framed.
    """
    component, at, span = head.partition("@")
    places = heads["name"].str.split(".", expand=True).astype(int)
    maps = {}
    for name, column in (("made by hand", "by_hand/effect"), ("best found", "best/effect")):
        values = np.full((places[0].max() + 1, places[1].max() + 1), np.nan)
        values[places[0], places[1]] = heads[column]
        maps[name] = values
    own = np.flatnonzero(heads["name"].isin(component.split("+")))  # none where a neuron was searched
    framed = " (framed)" if len(own) else ""
    where = f" at {span}" if at else ""
    fig = heatmaps(maps, unit=f"AP effect, {unit}", title=f"AP of every head{where}; searched: {head}{framed}")
    for row in own:
        layer, column = places.iloc[row]
        for ax in fig.axes[: len(maps)]:
            ax.add_patch(Rectangle((column - 0.5, layer - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1.5))
    return fig


@use_style()
def search_curves(reference: OutputCurves, best: OutputCurves, head: str) -> Figure:
    """F along the target's path with the pairs made by hand and with the best ones, each with its chord."""
    fig, (ax,) = figure(6.4, 4.2, 1, 1, f"{head}: F with the component at a + alpha (a' - a), mean over clean prompts")
    for alpha in (0, 1):
        ax.axvline(alpha, color="0.8", linewidth=0.8, zorder=0)
    for colour, (curve, label) in zip(PALETTE, ((reference, "made by hand"), (best, "best found")), strict=False):
        start, end = curve.ends[0]
        ax.plot(
            curve.alphas,
            curve.values[0],
            color=colour,
            label=f"{label}: F(1) - F(0) {format_signed(end - start)} {curve.unit}",
        )
        ax.plot([0, 1], [start, end], ":", color=colour, marker="o", markersize=3.5, linewidth=1)
    ax.set(xlabel="alpha (0: clean, 1: corrupted activation; dotted: the chord)", ylabel=f"F, {best.unit}")
    add_legend(fig, 2)
    return fig


@use_style()
def search_front(
    trials: pd.DataFrame, front: pd.DataFrame, terms: Sequence[str], head: str, unit: str = "logits"
) -> Figure:
    """Every trial by its first two terms (out of bounds: crosses), and those that no other beats in all terms."""
    fig, (ax,) = figure(6.4, 4.6, 1, 1, f"{head}: {terms[0]} against {terms[1]}; {len(front)} trials that none beats")
    known = trials[trials[terms[0]].notna()]
    for colour, (source, rows) in zip(PALETTE * 2, known.groupby("source", sort=False), strict=False):
        inside = rows[rows["counts"]]
        label = f"{source} ({len(rows)})"
        ax.plot(inside[terms[1]], inside[terms[0]], "o", markersize=3, color=colour, alpha=0.6, label=label)
    out = known[~known["counts"]]
    if len(out):
        ax.plot(out[terms[1]], out[terms[0]], "x", markersize=3, color="0.6", label=f"out of bounds ({len(out)})")
    edge = front.sort_values(terms[1])
    ax.plot(edge[terms[1]], edge[terms[0]], "-o", color="black", markersize=4, markerfacecolor="none", label="front")
    ax.set(xlabel=f"{terms[1]}, {_UNITS.get(terms[1], unit)}", ylabel=f"{terms[0]}, {_UNITS.get(terms[0], unit)}")
    fig.legend(loc="outside right upper")
    return fig


@use_style()
def search_ordinary(
    ordinary: Sequence[float], best: float, component: str, estimator: str, *, reference: float, unit: str = "logits"
) -> Figure:
    """The share of ordinary prompts whose error is at least so large, and the best prompts' error.

    `ordinary` are the errors of prompts drawn at random, ascending, `best` and `reference` those of the prompts found
    and of those made by hand; F's unit, at least 0.
    """
    fig, (ax,) = figure(
        6.4, 4.2, 1, 1, f"{estimator}: how often ordinary prompts are as bad as the best at {component}"
    )
    n = len(ordinary)
    if not n:
        return blank(ax, "not drawn: no prompt was drawn at random")
    shares = 1 - np.arange(n) / n
    ax.step([0, *ordinary], [1, *shares], where="pre", color=PALETTE[0], label=f"{n} ordinary prompts")
    ax.axvline(best, color="black", linewidth=1.5, label=f"best found: {decimals(best)}")
    ax.axvline(best / 2, linestyle="--", color="0.35", linewidth=1.2, label="half of it")
    ax.axvline(reference, linestyle=":", color="0.35", linewidth=1.2, label=f"made by hand: {decimals(reference)}")
    ax.set(
        yscale="log",
        ylim=(0.5 / n, 1.3),
        xlim=(0, None),
        xlabel=f"error |{estimator} - AP| of the component where it is largest, {unit}",
        ylabel="share of prompts with at least that error",
    )
    add_legend(fig, 2)
    return fig


@use_style()
def search_matrix(matrix: pd.DataFrame, unit: str = "logits") -> Figure:
    """The AP effect of each searched head (row) in the best prompts found for each component (column)."""
    rows, columns = matrix.shape
    fig, (ax,) = figure(
        max(3.6, 0.3 * columns) + 2.2,
        max(1.6, 0.3 * rows) + 1.2,
        1,
        1,
        "What each head does in the prompts found for another",
    )
    if not rows:
        return blank(ax, "not drawn: no head was searched")
    values = matrix.to_numpy(dtype=np.float64)
    limit = float(np.abs(values).max()) or 1.0
    image = ax.imshow(values, cmap=COLOURS, vmin=-limit, vmax=limit, aspect="auto")
    ax.set(xlabel="best prompts found for", ylabel="head")
    ax.set_xticks(ticks(columns), [str(matrix.columns[t]) for t in ticks(columns)], rotation=90)
    ax.set_yticks(ticks(rows), [str(matrix.index[t]) for t in ticks(rows)])
    fig.colorbar(image, ax=ax, label=f"AP effect, {unit}; red > 0, blue < 0", pad=0.02)
    return fig


@use_style()
def search_scan(scan: pd.DataFrame, heads: Sequence[str], unit: str = "logits") -> Figure:
    """Each head's AP effect with the pair made by hand and with the best that its search reached; grey: not searched.

    `scan` has the columns name, by_hand/ap and best/ap (F's unit); `heads` are all heads of the model.
    """
    places = np.array([[int(part) for part in name.split(".")] for name in heads])
    maps = {}
    for title, column in (("made by hand", "by_hand/ap"), ("best found", "best/ap")):
        values = np.full(tuple(places.max(0) + 1), np.nan)
        for name, value in zip(scan["name"], scan[column], strict=True):
            if name in heads:
                layer, head = name.split(".")
                values[int(layer), int(head)] = value
        maps[title] = values
    return heatmaps(maps, unit=f"AP effect, {unit}", title="Which heads can be made to stand out")
