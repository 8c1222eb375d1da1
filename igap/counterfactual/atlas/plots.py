"""Heads by prompts, in the order of the prompts' tree."""

import numpy as np
from matplotlib.figure import Figure

from igap.counterfactual.atlas.atlas import Atlas
from igap.plots.canvas import figure, styled, ticks
from igap.plots.heatmaps import COLOURS

_MOST_ROWS = 60


@styled
def draw_atlas(atlas: Atlas, *, title: str = "") -> Figure:
    """Draw the AP effect of each head (row) in each prompt (column); the few that show the heads have a star.

    Of more than 60 heads those that some prompt shows most.
    """
    order = atlas.order
    rows = np.arange(len(atlas.heads))
    if len(rows) > _MOST_ROWS:
        rows = np.sort(np.argsort(-atlas.sizes.max(1), kind="stable")[:_MOST_ROWS])
    values = atlas.effects[rows][:, order]
    width, height = max(4.0, 0.2 * len(order)) + 2.4, max(2.0, 0.16 * len(rows)) + 1.6
    fig, (ax,) = figure(width, height, 1, 1, f"What each head does in each prompt, {title}")
    limit = float(np.abs(values).max()) or 1.0
    image = ax.imshow(values, cmap=COLOURS, vmin=-limit, vmax=limit, aspect="auto")
    few = set(atlas.cover.chosen)
    labels = [f"* {atlas.prompts[prompt]}" if prompt in few else atlas.prompts[prompt] for prompt in order]
    shown = sorted({*ticks(len(order)), *(place for place, prompt in enumerate(order) if prompt in few)})
    ax.set_xticks(shown, [labels[place] for place in shown], rotation=90, fontsize=7)
    ax.set_yticks(range(len(rows)), [atlas.heads[row] for row in rows], fontsize=7)
    ax.set(xlabel="made by hand, and best prompts found for", ylabel="head")
    in_order = sorted(atlas.clusters, key=lambda cluster: order.index(cluster.prompts[0]))
    ends = np.cumsum([len(cluster.prompts) for cluster in in_order])
    for end in [0, *ends[:-1]]:
        ax.axvline(0.5 + end, color="0.3", linewidth=0.8)
    fig.colorbar(image, ax=ax, label=f"AP effect, {atlas.unit}; red > 0, blue < 0", pad=0.02)
    return fig
