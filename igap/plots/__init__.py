"""Figures of two attribution maps and of their comparison; seaborn and matplotlib are imported in this folder only.

Arrays in, `matplotlib.figure.Figure` out. Nothing is written, nothing is computed that `comparison.py` defines, and
pyplot's global state is left alone, so figures need no closing. Maps are `[layer, component]`, names are flat, row by
row. What cannot be drawn (no finite score, zero everywhere) gives a blank panel that says why.
"""

from matplotlib.figure import Figure

from igap.plots.ablation import change_scatter, performance_bars
from igap.plots.circuit import circuit_retrieval
from igap.plots.curves import convergence_delta, jaccard_curve
from igap.plots.explanation import explanation, interaction_parts
from igap.plots.faithfulness import faithfulness_curves
from igap.plots.heatmaps import difference_heatmaps, head_heatmaps, neuron_heatmaps
from igap.plots.output_curves import output_curves
from igap.plots.points import mean_difference, scatter

__all__ = [
    "Figure",
    "change_scatter",
    "circuit_retrieval",
    "convergence_delta",
    "difference_heatmaps",
    "explanation",
    "faithfulness_curves",
    "head_heatmaps",
    "interaction_parts",
    "jaccard_curve",
    "mean_difference",
    "neuron_heatmaps",
    "output_curves",
    "performance_bars",
    "scatter",
]
