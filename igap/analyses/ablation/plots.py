"""Accuracy without some components, and how its change goes with what the methods say about them."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from igap.analyses.ablation.by_kind import AGAINST, FEW, AblationsByKind
from igap.analyses.ablation.results import AblationEffect, Ablations
from igap.plots.canvas import PALETTE, add_legend, blank, figure, use_style
from igap.statistics.units import LABELS

_MOST_BESIDE = 9  # characters of a line under a bar


@use_style()
def accuracy_bars(ablations: Ablations, *, title: str = "") -> Figure:
    """Draw the share correct without each component, all of them, and random others; the line is the whole model.

    Bars are paired 95% intervals of change. Controls are dots in one column.
    """
    sets = [*ablations.single, *([ablations.together] if ablations.together else [])]
    fig, (ax,) = figure(max(6.0, 1.8 + 0.6 * (len(sets) + 1)), 4.0, 1, 1, title)
    share = np.array([each.accuracy for each in sets])
    colours = [PALETTE[0]] * len(ablations.single) + [PALETTE[3]] * (len(sets) - len(ablations.single))
    ax.bar(range(len(sets)), share, color=colours, width=0.7)
    ax.errorbar(range(len(sets)), share, yerr=_bars(sets), fmt="none", ecolor="0.15", capsize=3)
    names = [each.name.partition(" at ") for each in sets]
    labels = [component.replace("+", "+\n") + (at and f"\nat {span}") for component, at, span in names]
    is_long = any(len(line) > _MOST_BESIDE for label in labels for line in label.split("\n"))
    if ablations.controls:
        spread = np.linspace(-0.25, 0.25, len(ablations.controls)) if len(ablations.controls) > 1 else np.zeros(1)
        shares = [each.accuracy for each in ablations.controls]
        ax.plot(len(sets) + spread, shares, "o", color="0.45", markersize=4)
        labels.append(f"random {len(ablations.controls[0].components)}\n({len(ablations.controls)} times)")
    ax.axhline(
        ablations.accuracy,
        color="0.15",
        linestyle="--",
        linewidth=1,
        label=f"nothing ablated: {ablations.accuracy:.1%}",
    )
    ax.set_xticks(range(len(labels)), labels, rotation=45 if is_long or len(labels) > 12 else 0)
    ax.set(xlabel="ablated", ylabel=f"share correct, {ablations.n_prompts} prompts", ylim=(0, 1.04))
    add_legend(fig)
    return fig


@use_style()
def change_scatter(by_kind: AblationsByKind, kind: str, *, title: str = "") -> Figure:
    """Draw the change in the share correct against IG, AP and AP - IG of each component, with r and its interval."""
    fig, axes = figure(11.0, 3.8, 1, len(AGAINST), title)
    places = by_kind.components(kind)
    single = [by_kind.kinds[kind].single[place] for place in places]
    change = np.array([100 * each.change for each in single])
    for ax, against in zip(axes, AGAINST, strict=True):
        x, relation = (
            np.array([by_kind.scores[against][place] for place in places]),
            by_kind.relation(kind, against),
        )
        if relation is None or not np.isfinite(x).all():
            blank(ax, "not drawn: a score is missing" if relation else "not drawn: only sets were ablated")
            continue
        ax.errorbar(x, change, yerr=100 * _bars(single), fmt="o", color=PALETTE[0], ecolor="0.7", capsize=2)
        for name, at, height in zip((each.name for each in single), x, change, strict=True):
            ax.annotate(name, (at, height), xytext=(4, 4), textcoords="offset points", fontsize=8)
        ax.axhline(0, color="0.7", linewidth=1, zorder=0)
        interval = f" [{relation.pearson_low:+.2f}, {relation.pearson_high:+.2f}]" if len(x) > 3 else ""
        r = f"r = {relation.pearson:+.2f}{interval}" if np.isfinite(relation.pearson) else "r undefined"
        ax.set_title(f"{r}\nn = {len(x)}{', proves nothing' if len(x) < FEW else ''}")
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.set(xlabel=f"{against.upper()}, {LABELS[by_kind.unit]}", ylabel="change in share correct, percentage points")
        ax.margins(x=0.15)
    return fig


def _bars(effects: Sequence[AblationEffect]) -> Float64[np.ndarray, "end effect"]:
    """Return how far each interval of `change` reaches below and above it."""
    return np.abs(
        [[each.change - each.change_low for each in effects], [each.change_high - each.change for each in effects]]
    )
