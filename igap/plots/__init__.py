"""Figures of two attribution maps and of their comparison, and the canvas of all others.

seaborn and matplotlib are imported here and in the `plots` modules of `igap.analyses` only. Arrays in,
`matplotlib.figure.Figure` out. Nothing is written, nothing is computed that `comparison.py` defines, and pyplot's
global state is left alone, so figures need no closing. Maps are `[layer, component]`, names are flat, row by row. What
cannot be drawn (no finite score, zero everywhere) gives a blank panel that says why.
"""

from matplotlib.figure import Figure

from igap.plots.canvas import write_png
from igap.plots.curves import convergence_delta, jaccard_curve
from igap.plots.heatmaps import difference_heatmaps, head_heatmaps, map_heatmap, neuron_heatmaps
from igap.plots.points import mean_difference, scatter

__all__ = [
    "Figure",
    "convergence_delta",
    "difference_heatmaps",
    "head_heatmaps",
    "jaccard_curve",
    "map_heatmap",
    "mean_difference",
    "neuron_heatmaps",
    "scatter",
    "write_png",
]
