"""Direct over total effects: on the line a component writes straight to the logits."""

import numpy as np
from matplotlib.figure import Figure

from igap.analyses.direct_effect.effects import DirectEffects
from igap.plots.canvas import PALETTE, figure, use_style

_MOST_NAMED = 12


@use_style()
def direct_scatter(effects: DirectEffects, *, title: str = "") -> Figure:
    """Draw a point a component, direct over total effect (left), and the sums over each layer's components (right)."""
    total = effects.total
    prefix, unit = ("", "score") if total.has_scores else ("effect_", total.unit)
    fig, (left, right) = figure(10.0, 4.6, 1, 2, f"{total.site} of {title}")
    frame = effects.to_frame()
    x, y, through = (frame[prefix + name].to_numpy() for name in ("total", "direct", "indirect"))
    ends = [min(x.min(), y.min(), 0), max(x.max(), y.max(), 0)]
    left.plot(ends, ends, color="0.8", linewidth=0.8, zorder=0)
    left.axhline(0, color="0.9", linewidth=0.8, zorder=0)
    n_layers, names = len(total.effect), effects.names
    layers = np.repeat(np.arange(n_layers), total.effect[0].numel())
    marks = left.scatter(x, y, s=16, c=layers, cmap="viridis", vmin=0, vmax=max(n_layers - 1, 1))
    fig.colorbar(marks, ax=left, label="layer", pad=0.02, ticks=range(0, n_layers, -(-n_layers // 10)))
    size = np.maximum(np.abs(x), np.abs(y))
    for i in np.argsort(-size, kind="stable")[: min(_MOST_NAMED, (size > size.max() / 10).sum())]:
        left.annotate(names[i], (x[i], y[i]), xytext=(4, -3), textcoords="offset points", fontsize=7)
    left.locator_params(axis="x", nbins=6)
    left.set(xlabel=f"total effect (AP), {unit}", ylabel=f"direct effect, {unit}")
    rows = np.arange(n_layers)
    for offset, values, colour, label in ((-0.2, y, PALETTE[0], "direct"), (0.2, through, PALETTE[1], "indirect")):
        sums = values.reshape(n_layers, -1).sum(1)
        right.bar(rows + offset, sums, width=0.4, color=colour, label=label)
    right.axhline(0, color="0.3", linewidth=0.8)
    right.locator_params(axis="x", integer=True)
    right.set(xlabel="layer", ylabel=f"sum over the layer's {total.site}, {unit}")
    right.legend(loc="best")
    return fig
