"""Draws docs/pictures/architecture.png: the rooms of igap and what flows between them.

python docs/pictures/architecture.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INK, SOFT, MAIN, SIDE = "#1f2d3a", "#5b6b79", "#d7efec", "#f3e9dc"

ROOMS = {  # name: (x, y, what it does, colour)
    "cli": (0, 8, "the commands; settings come\nfrom conf/, by Hydra", SIDE),
    "config": (4.9, 8, "the schema: checked before\nanything heavy loads", MAIN),
    "sweep": (0, 5.9, "many runs: planned, resumed,\nlaunched", SIDE),
    "counterfactual": (0, 4.2, "the search: spaces, objective,\nsamplers, validation", SIDE),
    "inputs": (4.9, 5.9, "texts to prompt pairs\nof token ids", MAIN),
    "models": (9.7, 4.2, "checkpoint to a bridge,\nchecked against its original", MAIN),
    "engine": (4.9, 4.2, "an open contrast: both runs,\nF of one site's activation", MAIN),
    "attribution": (4.9, 2.5, "IG, AP, AtP, AtP*:\na map a method and site", MAIN),
    "storage": (4.9, 0, "whole files or none;\nmaps that jobs share", SIDE),
    "statistics": (9.7, 2.5, "two maps to one comparison;\nintervals over pairs", MAIN),
    "analyses": (14.5, 2.5, "explanation, curves, ablation,\nfaithfulness, ...", MAIN),
    "output": (9.7, 0, "disk first, then W&B,\nthen the terminal", SIDE),
    "plots": (14.5, 0, "figures, drawn from\nthe run's record", SIDE),
}
WIDTH = 3.7
HEIGHT = 1.05
_NAME = {"fontsize": 12, "weight": "bold", "family": "monospace", "va": "top"}

PIPELINE = (4.6, 2.05, 13.9, 5.45)
"""The frame around the rooms whose steps the pipeline puts in order: x, y, width, height."""

ARROWS = [  # from, its side, to, its side, what flows
    ("cli", "right", "config", "left", "settings"),
    ("cli", "bottom", "sweep", "top", "jobs"),
    ("config", "bottom", "inputs", "top", ""),
    ("inputs", "bottom", "engine", "top", "tokens"),
    ("models", "left", "engine", "right", "model"),
    ("engine", "bottom", "attribution", "top", "F and its gradient"),
    ("attribution", "right", "statistics", "left", "effects"),
    ("attribution", "bottom", "storage", "top", "maps"),
    ("sweep", "right", "inputs", "left", "each run"),
    ("statistics", "right", "analyses", "left", "outliers"),
    ("statistics", "bottom", "output", "top", "Result"),
    ("output", "right", "plots", "left", "record"),
    ("counterfactual", "right", "engine", "left", "prompts"),
]


def main() -> None:
    """Draws the picture."""
    figure, axes = plt.subplots(figsize=(14.4, 7.4), dpi=120)
    x, y, width, height = PIPELINE
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.2", fc="none", ec=SOFT, ls="--")
    )
    axes.text(x + width - 0.15, y + height - 0.15, "pipeline", **_NAME, ha="right", color=SOFT)
    axes.text(
        x + width - 0.15,
        y + height - 0.55,
        "the order of these steps;\ngives one Result",
        ha="right",
        va="top",
        fontsize=9.5,
        color=SOFT,
    )
    for name, (x, y, text, colour) in ROOMS.items():
        axes.add_patch(
            FancyBboxPatch((x, y), WIDTH, HEIGHT, boxstyle="round,pad=0.04,rounding_size=0.12", fc=colour, ec=INK, lw=1)
        )
        axes.text(x + 0.12, y + HEIGHT - 0.1, name, **_NAME, color=INK)
        axes.text(x + 0.12, y + 0.1, text, fontsize=9.5, color=INK, va="bottom")
    for start, side, end, other, text in ARROWS:
        tail, head = _port(start, side), _port(end, other)
        axes.add_patch(
            FancyArrowPatch(tail, head, arrowstyle="-|>", mutation_scale=14, color=SOFT, lw=1.5, shrinkA=0, shrinkB=0)
        )
        vertical = tail[0] == head[0]
        x, y = (tail[0] + head[0]) / 2 + 0.12 * vertical, (tail[1] + head[1]) / 2 + 0.1 * (not vertical)
        place = {"ha": "left", "va": "center"} if vertical else {"ha": "center", "va": "bottom"}
        axes.text(x, y, text, fontsize=9, color=SOFT, style="italic", **place)
    axes.set(xlim=(-0.2, 18.7), ylim=(-0.2, 9.3))
    axes.axis("off")
    figure.savefig(Path(__file__).with_suffix(".png"), bbox_inches="tight", facecolor="white")


def _port(name: str, side: str) -> tuple[float, float]:
    """The middle of a side of a room, a little outside."""
    x, y, _, _ = ROOMS[name]
    return {
        "top": (x + WIDTH / 2, y + HEIGHT + 0.06),
        "bottom": (x + WIDTH / 2, y - 0.06),
        "left": (x - 0.06, y + HEIGHT / 2),
        "right": (x + WIDTH + 0.06, y + HEIGHT / 2),
    }[side]


if __name__ == "__main__":
    main()
