"""What is known of edges: the effect of each, greedy circuits, and MIB's graph files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from igap.components import component_name, parse_component
from igap.display import markup
from igap.engine.edges import READERS
from igap.errors import InputError
from igap.errors.arguments import Count, Finite, checks_arguments
from igap.inputs.mib import MibGraph, node_names, place_of
from igap.vocabulary import Direction

EdgeMethod = Literal["ap", "atp", "ig", "ig_inputs"]
LOGITS = "logits"
_MOST_SAID = 5


@dataclass(frozen=True)
class Shape:
    """What of a model an edge is between."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    parallel: bool
    """Whether attention and MLP of a layer have one input."""


def sender_names(shape: Shape) -> list[str]:
    """The components that write, in the order of the forward pass."""
    return [component_name(*place_of(node)) for node in node_names(shape.n_layers, shape.n_heads)]


def reader_names(shape: Shape) -> list[str]:
    """The components that read, in the order of the forward pass."""
    widths = {"q": shape.n_heads, "k": shape.n_kv_heads, "v": shape.n_kv_heads, "mlp_out": 1}
    names = [
        component_name(site, layer, index)
        for layer in range(shape.n_layers)
        for site in READERS
        for index in range(widths[site])
    ]
    return [*names, LOGITS]


@checks_arguments
@dataclass(frozen=True, eq=False)
class EdgeEffects:
    """The effect of every edge by one method, of one pair or the mean of several.

    Example:
        >>> edges = edge_effects(model, pair)
        >>> edges.to_frame().head(1).round(3).values.tolist()
        [['3.1', 'logits', -1.696]]
    """

    method: EdgeMethod
    effect: Float[Tensor, "reader sender"]
    """In F's unit, with the sign of effects: noising, below 0 where the edge carries what the clean prompt has. NaN
    where there is no edge."""
    readers: tuple[str, ...]
    """`9.6.q`, keys and values of key-value heads, `L10.mlp_out`, and `logits`."""
    senders: tuple[str, ...]
    """`L0.resid_pre` (what comes into layer 0), `9.6`, `L10.mlp_out`."""
    gap: Finite
    """F(clean) - F(corrupted), the mean over pairs."""
    direction: Direction
    """The run that is patched: "noising" the clean one, "denoising" the corrupted one."""
    metric: str
    """F, by its name."""
    unit: str
    """F's unit."""
    shape: Shape
    """The model's layers and heads, which say what is between what."""

    @property
    def n_edges(self) -> int:
        """Edges that there are."""
        return int((~self.effect.isnan()).sum())

    def to_frame(self) -> pd.DataFrame:
        """Return one row an edge, the largest |effect| first: `sender`, `reader`, `effect`."""
        rows, columns = (~self.effect.isnan()).nonzero(as_tuple=True)
        values = self.effect[rows, columns].double().numpy()
        order = np.argsort(-np.abs(values), kind="stable")
        return pd.DataFrame(
            {
                "sender": [self.senders[column] for column in columns[order].tolist()],
                "reader": [self.readers[row] for row in rows[order].tolist()],
                "effect": values[order],
            }
        )

    @checks_arguments
    def largest(self, n: Count) -> list[tuple[str, str, float]]:
        """Return sender, reader and effect of the n edges with the largest |effect|, or of all."""
        columns = (column.tolist() for _, column in self.to_frame().head(n).items())
        return list(zip(*columns, strict=True))

    def of_senders(self) -> dict[str, float]:
        """Return the sum over each sender's edges, in F's unit; of `ig` that is its IG, of `atp` its AtP.

        Only of those with an edge among the `readers`.
        """
        sums, has_edges = self.effect.nansum(0).tolist(), (~self.effect.isnan()).any(0).tolist()
        return {name: value for name, value, known in zip(self.senders, sums, has_edges, strict=True) if known}

    @checks_arguments
    def circuit(self, n_edges: Count) -> Bool[Tensor, "reader sender"]:
        """Return which edges a greedy circuit has, grown from the logits.

        Of the edges to what it reads already the one with the largest |effect| comes next. What has no way back to the
        input is left out at the end: it is as in the other run. So it may have fewer than `n_edges`.

        Args:
            n_edges: Edges that it grows to.

        Returns:
            A mask of `effect`.

        Raises:
            InputError: The map has not all readers.
        """
        if len(self.readers) != len(reader_names(self.shape)):
            raise InputError(
                f"n_edges: got a map of {len(self.readers)} readers, wanted one of all of them for a circuit. Leave "
                "readers out."
            )
        size = self.effect.abs().nan_to_num(-1.0)
        into = _rows_into(self.readers, self.shape)
        kept, known = torch.zeros_like(size, dtype=torch.bool), {LOGITS}
        open_rows = torch.zeros(len(size), dtype=torch.bool)
        open_rows[list(into[LOGITS])] = True
        for _ in range(n_edges):
            free = torch.where(open_rows[:, None] & ~kept, size, -1.0)
            place = int(free.argmax())
            if free.flatten()[place] < 0:
                break
            kept.view(-1)[place] = True
            sender = self.senders[place % len(self.senders)]
            if sender in into and sender not in known:
                known.add(sender)
                open_rows[list(into[sender])] = True
        return _prune(kept, self.senders, into)

    @checks_arguments
    def to_mib(self, n_edges: Count | None = None) -> str:
        """Return the text of a graph file of MIB's, with the edges' scores.

        A score is -effect. Where heads share keys and values, the edges to each of them have the shared one's score.

        Args:
            n_edges: Edges of the greedy circuit that is `in_graph`. None (default): all edges.

        Raises:
            InputError: The map has not all readers.

        Source: Mueller et al. 2025 (arXiv 2504.13151), EAP-IG's `Graph.from_json`.
        """
        kept = ~self.effect.isnan() if n_edges is None else self.circuit(n_edges)
        shape, nodes = self.shape, node_names(self.shape.n_layers, self.shape.n_heads)
        known = {LOGITS, *_find_writers(self, kept)}
        edges: dict[str, dict[str, Any]] = {}
        for row, reader in enumerate(self.readers):
            for node in nodes_of_reader(reader, shape):
                for column, sender in enumerate(nodes):
                    value = float(self.effect[row, column])
                    if not np.isnan(value):
                        name = f"{sender}->{_mib_name(reader, node)}"
                        edges[name] = {"score": -value, "in_graph": bool(kept[row, column]) and node in known}
        return MibGraph(
            n_layers=shape.n_layers,
            n_heads=shape.n_heads,
            d_model=shape.d_model,
            parallel=shape.parallel,
            in_graph={node: name in known for node, name in zip(nodes, self.senders, strict=True)},
            scores={},
            edges=edges,
        ).to_text()

    def sentences(self) -> tuple[str, ...]:
        """Return the edges with the largest |effect|, in one line."""
        few = self.largest(_MOST_SAID)
        named = ", ".join(f"{sender}->{reader} {effect:+.3f}" for sender, reader, effect in few)
        return (f"largest of {self.n_edges:,} edges by {self.method}, {self.unit}: {named}",)

    def __repr__(self) -> str:
        return f"EdgeEffects({'; '.join(self.sentences())})"

    def _repr_html_(self) -> str:
        return markup.block("edges", self.sentences(), "")


def nodes_of_reader(reader: str, shape: Shape) -> list[str]:
    """The components that a reader is part of: `logits`, an MLP, a head, or all heads that share a key or value."""
    if reader == LOGITS:
        return [reader]
    site, layer, index = parse_component(reader)
    if site == "mlp_out":
        return [reader]
    shared = 1 if site == "q" else shape.n_heads // shape.n_kv_heads
    return [component_name("heads", layer, head) for head in range(index * shared, (index + 1) * shared)]


def lines_of(edges: EdgeEffects, kept: Bool[Tensor, "reader sender"]) -> list[tuple[str, str, str, float]]:
    """Sender, reader, the node that reads, and effect of these edges; of nodes that write something, too.

    A key or value that heads share has a line to each of them.
    """
    known = {LOGITS, *_find_writers(edges, kept)}
    return [
        (edges.senders[column], edges.readers[row], node, float(edges.effect[row, column]))
        for row, column in kept.nonzero().tolist()
        for node in nodes_of_reader(edges.readers[row], edges.shape)
        if node in known
    ]


def _find_writers(edges: EdgeEffects, kept: Tensor) -> list[str]:
    """The senders of these edges."""
    return [edges.senders[column] for column in kept.any(0).nonzero().flatten().tolist()]


def _mib_name(reader: str, node: str) -> str:
    """MIB's name of a reader, as a part of this node."""
    if reader == LOGITS:
        return LOGITS
    site, layer, _ = parse_component(reader)
    return f"m{layer}" if site == "mlp_out" else f"a{layer}.h{parse_component(node)[2]}<{site}>"


def _rows_into(readers: Sequence[str], shape: Shape) -> dict[str, list[int]]:
    """By sender, and `logits`, the rows of what it reads."""
    into: dict[str, list[int]] = {}
    for row, reader in enumerate(readers):
        for name in nodes_of_reader(reader, shape):
            into.setdefault(name, []).append(row)
    return into


def _prune(kept: Tensor, senders: Sequence[str], into: Mapping[str, Sequence[int]]) -> Tensor:
    """The edges whose sender reads something itself, over and over; the input needs to read nothing."""
    while True:
        idle = torch.tensor([name in into and not bool(kept[list(into[name])].any()) for name in senders])
        if not kept[:, idle].any():
            return kept
        kept = kept & ~idle
