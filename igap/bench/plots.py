"""A circuit's effects by component: the truth beside what every estimator says."""

import numpy as np
from matplotlib.figure import Figure

from igap.bench.exam import NOTHING, Bench
from igap.plots.canvas import PALETTE, add_legend, figure, use_style

_WIDTH = 0.8
"""Width of the bars of one component, where components are 1 apart."""
_DISTRACTORS = 4
_MOST = 12
"""Components that matter and have room; the largest true effects."""


@use_style()
def effects_bars(bench: Bench, circuit: str) -> Figure:
    """Draw bars of the components that matter, and of the distractors to which an estimator gives most.

    Up and down by sign; the bars of an estimator without signs are hatched, and go up. An effect of 0 is a dot. What
    matters is named in bold.
    """
    truth, estimates = bench.circuits[circuit].truth, bench.estimates[circuit]
    values = {"truth": truth.effects(), **{name: each.effects for name, each in estimates.items()}}
    others = [name for name in truth.names if name not in truth.matters]
    others.sort(key=lambda name: -max(abs(each[name]) for each in values.values()))
    largest = sorted(truth.matters, key=lambda name: -abs(values["truth"][name]))[:_MOST]
    mattering = [name for name in truth.matters if name in largest]
    shown = [*mattering, *others[:_DISTRACTORS]]
    title = f"{circuit}: {bench.circuits[circuit].meaning}\n{bench.circuits[circuit].lesson}"
    fig, (ax,) = figure(9.0, 3.6, 1, 1, title)
    width, places = _WIDTH / len(values), np.arange(len(shown))
    for index, (name, effects) in enumerate(values.items()):
        heights = np.array([effects[each] if abs(effects[each]) >= NOTHING else 0.0 for each in shown])
        unsigned = name != "truth" and not estimates[name].signed
        middles = places + (index + 0.5) * width - _WIDTH / 2
        colour = "0.15" if name == "truth" else PALETTE[(index - 1) % len(PALETTE)]
        ax.plot(middles[heights == 0], heights[heights == 0], ".", color=colour, markersize=5)
        ax.bar(
            middles,
            heights,
            width,
            label=f"{name} (no sign)" if unsigned else name,
            color=colour,
            hatch="////" if unsigned else None,
            edgecolor="white" if unsigned else None,
            linewidth=0,
        )
    ax.axhline(0, color="0.4", linewidth=0.8)
    ax.axvline(len(mattering) - 0.5, color="0.8", linewidth=0.8, linestyle="--")
    ax.set_xticks(places, shown)
    for label in ax.get_xticklabels()[: len(mattering)]:
        label.set_fontweight("bold")
    ax.set(
        ylabel=f"effect, noising ({bench.circuits[circuit].unit})",
        xlabel="components: those that matter (bold), then distractors",
    )
    add_legend(fig, len(values))
    return fig
