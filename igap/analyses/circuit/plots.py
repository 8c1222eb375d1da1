"""Which share of a published circuit's heads each method's ranking has found, and how many others with them."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from igap.analyses.circuit.recovery import ClassRecovery
from igap.plots.canvas import PALETTE, add_legend, figure, use_style


@use_style()
def recovery_curves(methods: Sequence[ClassRecovery], *, title: str = "") -> Figure:
    """Draw recall of the circuit's heads against k (left) and precision against recall (right), a line a method.

    Dotted is a random ranking.
    """
    fig, (left, right) = figure(10.0, 4.2, 1, 2, title)
    for colour, method in zip(PALETTE, methods, strict=False):
        recall = list(method.recall.values())
        label = f"{method.method}, average precision {method.average_precision:.3f}, ROC area {method.roc_area:.3f}"
        left.step(list(method.recall), recall, where="post", color=colour, label=label)
        right.step(recall[1:], list(method.precision.values()), where="pre", color=colour)
    heads, n = max(methods[0].recall), methods[0].n
    left.plot([0, heads], [0, 1], ":", color="0.4", label="random ranking")
    right.axhline(n / heads, linestyle=":", color="0.4")
    left.axvline(n, color="0.7", linestyle="--", linewidth=1, zorder=0)
    left.annotate(f"k = {n}", (n, 1.03), ha="center", va="bottom", fontsize=8, annotation_clip=False)
    left.set(xlabel="k, heads with the largest |effect|", ylabel=f"recall of the {n} heads", ylim=(-0.02, 1.02))
    right.set(xlabel=f"recall of the {n} heads", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.04))
    add_legend(fig, 2)
    return fig
