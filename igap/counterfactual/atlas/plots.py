"""Heads by prompts, in the order of the prompts' tree."""

import itertools

import numpy as np
from matplotlib.figure import Figure

from igap.counterfactual.atlas.atlas import Atlas
from igap.plots.canvas import figure, use_style
from igap.plots.heatmaps import COLOURS

_MOST = 60
"""Rows, and columns, that can be read."""
_SHADED = 0.99
"""Share of the effects that are told apart by their colour: one large head would leave the others white."""


@use_style()
def draw_atlas(atlas: Atlas, *, title: str = "") -> Figure:
    """Draw the AP effect of each head (row) in each prompt (column); the few that show the heads have a star.

    Of more than 60 heads those that some prompt shows most; of more than 60 prompts those made by hand, the few, and
    those that show most.
    """
    rows, order = np.arange(len(atlas.heads)), atlas.order
    if len(rows) > _MOST:
        rows = np.sort(np.argsort(-atlas.sizes.max(1), kind="stable")[:_MOST])
    if len(order) > _MOST:
        by_size = np.argsort(-atlas.sizes.sum(0), kind="stable").tolist()
        shown = set(list(dict.fromkeys([0, *atlas.cover.chosen, *by_size]))[:_MOST])
        order = [prompt for prompt in order if prompt in shown]
    left_out = [
        f"{len(some)} of {n} {what}"
        for some, n, what in ((rows, len(atlas.heads), "heads"), (order, len(atlas.prompts), "prompts"))
        if len(some) < n
    ]
    values = atlas.effects[rows][:, order]
    width, height = max(4.0, 0.2 * len(order)) + 2.4, max(2.0, 0.16 * len(rows)) + 1.6
    about = ", ".join([title, *left_out])
    fig, (ax,) = figure(width, height, 1, 1, f"What each head does in each prompt, {about}")
    largest = float(np.abs(values).max()) or 1.0
    limit = float(np.quantile(np.abs(values), _SHADED)) or largest
    image = ax.imshow(values, cmap=COLOURS, vmin=-limit, vmax=limit, aspect="auto")
    few = set(atlas.cover.chosen)
    labels = [f"* {atlas.prompts[prompt]}" if prompt in few else atlas.prompts[prompt] for prompt in order]
    ax.set_xticks(range(len(order)), labels, rotation=90, fontsize=7)
    ax.set_yticks(range(len(rows)), [atlas.heads[row] for row in rows], fontsize=7)
    ax.set(xlabel="made by hand, and best prompts found for", ylabel="head")
    cluster = {prompt: number for number, each in enumerate(atlas.clusters) for prompt in each.prompts}
    for place, (prompt, following) in enumerate(itertools.pairwise(order)):
        if cluster.get(prompt) != cluster.get(following):
            ax.axvline(0.5 + place, color="0.3", linewidth=0.8)
    beyond = f" (up to {largest:.3g})" if limit < largest else ""
    label = f"AP effect, {atlas.unit}; red > 0, blue < 0{beyond}"
    fig.colorbar(image, ax=ax, label=label, pad=0.02, extend="both" if beyond else "neither")
    return fig
