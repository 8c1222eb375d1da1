"""A circuit of edges as a graph: the input below, the logits above."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from igap.analyses.edges.results import LOGITS, EdgeEffects, lines_of
from igap.components import parse_component
from igap.plots.canvas import PALETTE, add_legend, blank, figure, use_style

_COLOURS = {"q": PALETTE[0], "k": PALETTE[1], "v": PALETTE[2], "": "0.35"}
_NAMES = {"q": "into a query", "k": "into a key", "v": "into a value", "": "into an MLP or the logits"}
_WIDEST = 4.0


@use_style()
def draw_circuit(effects: EdgeEffects, n_edges: int, *, title: str = "") -> Figure:
    """Draw the greedy circuit of `n_edges`: a node a component, a line an edge, as wide as its |effect|.

    Dashed lines have the other sign than most of F's gap: they work against it.
    """
    kept = effects.circuit(n_edges)
    heading = f"greedy circuit of {int(kept.sum())} edges by {effects.method}, {title}"
    lines = lines_of(effects, kept)
    if not lines:
        fig, (ax,) = figure(9.0, 2.0, 1, 1, heading)
        return blank(ax, "no edge has a way from the input to the logits")
    used = {name for sender, _, node, _ in lines for name in (sender, node)}
    places = _places(used)
    height = 2.5 + 0.45 * len({y for _, y in places.values()})
    fig, (ax,) = figure(9.0, height, 1, 1, heading)
    largest = max(abs(value) for *_, value in lines)
    carries = -np.sign(effects.gap) if effects.direction == "noising" else np.sign(effects.gap)
    for sender, reader, node, value in sorted(lines, key=lambda line: abs(line[3])):
        (x0, y0), (x1, y1) = places[sender], places[node]
        ax.annotate(
            "",
            (x1, y1),
            (x0, y0),
            arrowprops={
                "arrowstyle": "-",
                "color": _COLOURS[_kind(reader)],
                "linewidth": 0.4 + (_WIDEST - 0.4) * abs(value) / largest,
                "linestyle": "-" if value * carries >= 0 else "--",
                "alpha": 0.75,
                "connectionstyle": "arc3,rad=0.06",
                "shrinkA": 7,
                "shrinkB": 7,
            },
        )
    for name, (x, y) in places.items():
        text = {"L0.resid_pre": "input"}.get(name, name.replace(".mlp_out", " MLP"))
        box = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "0.4", "linewidth": 0.6}
        ax.text(x, y, text, ha="center", va="center", fontsize=7, bbox=box, zorder=3)
    ax.set(xlim=(-0.06, 1.06), ylim=(-0.7, max(y for _, y in places.values()) + 0.7))
    ax.set_axis_off()
    kinds = [kind for kind in _COLOURS if any(_kind(reader) == kind for _, reader, *_ in lines)]
    handles = [Line2D([], [], color=_COLOURS[kind], linewidth=2, label=_NAMES[kind]) for kind in kinds]
    handles.append(Line2D([], [], color="0.35", linestyle="--", label="works against the gap"))
    handles.append(Line2D([], [], color="0.35", linewidth=_WIDEST, label=f"|effect| {largest:.3g} {effects.unit}"))
    add_legend(fig, 3, handles=handles)
    return fig


def _kind(reader: str) -> str:
    site = "" if reader == LOGITS else parse_component(reader)[0]
    return site if site in _COLOURS else ""


def _places(names: Sequence[str] | set[str]) -> dict[str, tuple[float, float]]:
    """Where each node stands: a row for the heads of a layer and one for its MLP, without empty rows."""
    by_row: dict[tuple[int, int], list[tuple[int, str]]] = {}
    for name in names:
        site, layer, index = ("", 10**9, 0) if name == LOGITS else parse_component(name)
        row = {"resid_pre": -1, "heads": 0}.get(site, 1)
        by_row.setdefault((layer, row), []).append((index, name))
    places = {}
    for y, (_, unsorted) in enumerate(sorted(by_row.items())):
        nodes = sorted(unsorted)
        for i, (_, name) in enumerate(nodes):
            # Rows take turns in where they stand, so that a line between two rows misses the nodes of a third.
            places[name] = ((i + 0.5 + 0.16 * (y % 3 - 1)) / len(nodes), float(y))
    return places
