"""AP with a component patched over AP without: who repairs, and who loses."""

import numpy as np
from matplotlib.figure import Figure

from igap.analyses.self_repair.repair import SelfRepair
from igap.plots.canvas import PALETTE, figure, use_style

_MOST_DRAWN = 10


@use_style()
def repair_scatter(repair: SelfRepair, *, title: str = "") -> Figure:
    """Draw a point a component, AP given s over AP alone (left), and the largest changes by component (right).

    Orange: the components carry more of F when s is patched. Blue: they carry less.
    """
    alone = repair.alone
    prefix, unit = ("", "score") if alone.has_scores else ("effect_", alone.unit)
    heading = f"{alone.site} of {title}\n{repair.patched} patched: F changes by {repair.effect:+.3f} {alone.unit}"
    fig, (left, right) = figure(10.0, 4.6, 1, 2, heading)
    frame = repair.to_frame()
    x, y = (frame[prefix + name].to_numpy() for name in ("alone", "given"))
    repairs = dict(zip(repair.names, repair.repairs, strict=True))
    ranked = np.array([repairs[str(name)] for name in frame.index])
    largest = np.argsort(-np.abs(ranked), kind="stable")[:_MOST_DRAWN]
    largest = largest[np.argsort(-ranked[largest], kind="stable")]
    colours = np.where(ranked > 0, PALETTE[1], PALETTE[0])
    ends = [min(x.min(), y.min(), 0), max(x.max(), y.max(), 0)]
    left.plot(ends, ends, color="0.8", linewidth=0.8, zorder=0)
    left.scatter(x, y, s=16, color="0.7")
    left.scatter(x[largest], y[largest], s=18, color=list(colours[largest]))
    for i in largest[np.argsort(-np.abs(ranked[largest]), kind="stable")]:
        left.annotate(str(frame.index[i]), (x[i], y[i]), xytext=(4, -3), textcoords="offset points", fontsize=7)
    left.locator_params(axis="x", nbins=6)
    left.set(xlabel=f"AP alone, {unit}", ylabel=f"AP with {repair.patched} patched, {unit}")
    change = frame[prefix + "change"].to_numpy()[largest]
    rows = np.arange(len(largest))
    right.barh(rows, change, color=list(colours[largest]), height=0.65)
    right.axvline(0, color="0.3", linewidth=0.8)
    right.set_yticks(rows, [str(frame.index[i]) for i in largest])
    right.set(ylim=(len(rows) - 0.5, -0.5), xlabel=f"change of AP, {unit}; orange: carries more, blue: less")
    return fig
