"""Sets of components: what each member does alone, last, on average and along IG's path, and the interactions."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from igap.analyses.sets.results import SetEffects
from igap.plots.canvas import PALETTE, add_legend, blank, figure, use_style

_MOST_MEMBERS, _MOST_INTERACTIONS = 12, 12
_COLUMNS = {"alone": "alone", "shapley": "Shapley value", "ig": "IG of the set", "last": "after all others"}
_UP, _DOWN = "#b2182b", "#2166ac"


@use_style()
def set_bars(sets: Mapping[str, SetEffects], *, title: str = "") -> Figure:
    """Draw a row a set: left its members, right its largest interactions, red above 0 and blue below.

    `sets` are by what they are called. At most 12 members, by |Shapley value|, and 12 interactions are drawn.
    """
    heights = [max(2.6, 1.0 + 0.22 * min(_MOST_INTERACTIONS, len(each.subsets))) for each in sets.values()]
    fig, axes = figure(11.0, sum(heights), len(sets), 2, title)
    for row, (name, of_set) in enumerate(sets.items()):
        _members(axes[2 * row], name, of_set)
        _interactions(axes[2 * row + 1], of_set)
    colours = zip(_COLUMNS.values(), PALETTE, strict=False)
    add_legend(fig, 4, handles=[Patch(color=colour, label=label) for label, colour in colours])
    return fig


def _members(ax: Axes, name: str, of_set: SetEffects) -> None:
    frame = of_set.to_frame()
    shown = frame.iloc[np.argsort(-np.abs(frame["shapley"].to_numpy()), kind="stable")[:_MOST_MEMBERS]]
    at = np.arange(len(shown))
    for place, (column, colour) in enumerate(zip(_COLUMNS, PALETTE, strict=False)):
        ax.bar(at + 0.2 * (place - 1.5), shown[column], width=0.2, color=colour)
    if "shapley_low" in shown:
        ends = np.abs(shown[["shapley_low", "shapley_high"]].to_numpy().T - shown["shapley"].to_numpy())
        ax.errorbar(at - 0.1, shown["shapley"], yerr=ends, fmt="none", ecolor="0.15", capsize=2)
    ax.axhline(0, color="0.15", linewidth=0.8)
    ax.set_xticks(at, shown.index.tolist(), rotation=45 if len(shown) > 8 else 0)
    few = f", {len(shown)} of {len(frame)} members" if len(shown) < len(frame) else ""
    called = name if len(name) <= 40 else f"{name[:37]}..."
    ax.set_title(f"{called}{few}: together {of_set.effect:+.3f}, alone in sum {of_set.alone.sum():+.3f}")
    ax.set_ylabel(f"effect ({of_set.unit})")


def _interactions(ax: Axes, of_set: SetEffects) -> None:
    frame = of_set.subset_frame()
    several = frame[frame["size"] > 1].dropna()
    if not len(several):
        blank(ax, "one component: no interaction")
        return
    largest = several.iloc[np.argsort(-np.abs(several["interaction"].to_numpy()), kind="stable")[:_MOST_INTERACTIONS]]
    values = largest["interaction"].to_numpy()
    ax.barh(np.arange(len(values)), values, color=[_UP if value > 0 else _DOWN for value in values])
    ax.axvline(0, color="0.15", linewidth=0.8)
    ax.set_yticks(np.arange(len(values)), largest.index.tolist())
    ax.invert_yaxis()
    ax.set_title("interactions" if len(several) == len(values) else f"the {len(values)} largest interactions")
    ax.set_xlabel(f"interaction ({of_set.unit})")
