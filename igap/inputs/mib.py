"""Circuits and scores in the graph files of MIB's circuit track (Mueller et al. 2025, arXiv 2504.13151).

The format is that of EAP-IG's `Graph.to_json` and `from_json` (github.com/hannamw/EAP-IG): `cfg`, the model's shape;
`nodes`, by name whether the circuit has the node, and its score if it has one; `edges`, the same of edges, which are
kept as they are. Nodes are `input` (the token embedding), `a5.h1` (a head), `m5` (an MLP), and `logits`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igap.components import Site
from igap.errors import InputError, printable, short_repr
from igap.storage.untrusted import parse_json, read_text

_LOGITS = "logits"
_EXAMPLES = "input, a5.h1, m5 or logits"
_NODE = re.compile(r"(?P<input>input)|a(?P<layer>[0-9]{1,9})\.h(?P<head>[0-9]{1,9})|m(?P<mlp>[0-9]{1,9})")


@dataclass(frozen=True)
class MibGraph:
    """A circuit of whole nodes, and their scores."""

    n_layers: int
    n_heads: int
    d_model: int
    parallel: bool
    """Whether attention and MLP of a layer have one input."""
    in_graph: Mapping[str, bool]
    """By node, in the order of `node_names`: whether the circuit has it."""
    scores: Mapping[str, float]
    """The larger, the more a node does for the right answer. A node without one is in every circuit."""
    edges: Mapping[str, Mapping[str, Any]]
    """By name such as `a0.h1->m2` or `m0->a3.h2<q>`: `score` and `in_graph`, as the file has them."""

    def to_text(self) -> str:
        """Return the file's text, which EAP-IG's `Graph.from_json` reads."""
        config = {
            "n_layers": self.n_layers,
            "n_heads": self.n_heads,
            "parallel_attn_mlp": self.parallel,
            "d_model": self.d_model,
        }
        nodes: dict[str, dict[str, Any]] = {
            name: {"in_graph": kept} | ({"score": self.scores[name]} if name in self.scores else {})
            for name, kept in self.in_graph.items()
        }
        nodes[_LOGITS] = {"in_graph": True}
        edges = {name: dict(edge) for name, edge in self.edges.items()}
        return json.dumps({"cfg": config, "nodes": nodes, "edges": edges}, allow_nan=False) + "\n"


def node_names(n_layers: int, n_heads: int) -> list[str]:
    """Return the nodes of a model but for `logits`, in the order of the forward pass."""
    of_layers = ([*(f"a{layer}.h{head}" for head in range(n_heads)), f"m{layer}"] for layer in range(n_layers))
    return ["input", *(name for of_layer in of_layers for name in of_layer)]


def place_of(name: str) -> tuple[Site, int, int]:
    """Return site, layer and index of a node: the input is what comes into layer 0. Raises ValueError if it is none."""
    match = _NODE.fullmatch(name)
    if match is None:
        raise ValueError(f"got node {short_repr(name)}, wanted {_EXAMPLES}")
    if match["input"]:
        return "resid_pre", 0, 0
    return ("mlp_out", int(match["mlp"]), 0) if match["mlp"] else ("heads", int(match["layer"]), int(match["head"]))


def read_graph(file: str, *, item: str, n_layers: int | None, n_heads: int | None) -> MibGraph:
    """Read a graph file of a model of this shape.

    Raises InputError naming `item` if the file cannot be read, is no such graph, has another model's shape, or takes
    single dimensions of nodes.
    """
    try:
        graph = _parse(parse_json(read_text(Path(file)), holes=True))
    except ValueError as error:
        raise InputError(
            f"{item}: got {printable(file)}, which is no graph of MIB's ({error}), wanted a file that EAP-IG's "
            "Graph.to_json or igap wrote. Name another."
        ) from None
    if (graph.n_layers, graph.n_heads) != (n_layers, n_heads):
        raise InputError(
            f"{item}: got {printable(file)}, a graph of {graph.n_layers} layers with {graph.n_heads} heads each, with "
            f"a model of {n_layers} layers and {n_heads} heads. Name a graph of this model."
        )
    return graph


def _parse(tree: Any) -> MibGraph:
    """Raises ValueError with the reason if it is no graph."""
    config, nodes, edges = (_mapping(_mapping(tree, "it").get(name), name) for name in ("cfg", "nodes", "edges"))
    shape: list[Any] = [config.get(name) for name in ("n_layers", "n_heads", "d_model")]
    if not all(type(size) is int and size > 0 for size in shape):
        raise ValueError(f"cfg has n_layers, n_heads, d_model {shape}, wanted three numbers")
    names = node_names(shape[0], shape[1]) if shape[0] * shape[1] <= 10**6 else []
    if strange := set(nodes) - {*names, _LOGITS}:
        raise ValueError(f"got node {short_repr(min(strange))}, wanted {_EXAMPLES} of its {shape[0]} layers")
    if missing := [name for name in names if name not in nodes]:
        raise ValueError(f"it has no node {missing[0]}")
    in_graph, scores = {}, {}
    for name in names:
        node = _mapping(nodes[name], name)
        if "neurons" in node or "neurons_scores" in node:
            raise ValueError(f"{name} has neurons, single dimensions of what a node writes; wanted whole nodes")
        if type(node.get("in_graph")) is not bool:
            raise ValueError(f"{name} has in_graph {short_repr(node.get('in_graph'))}, wanted true or false")
        in_graph[name] = node["in_graph"]
        if (score := node.get("score")) is not None:  # NaN, of a node without score, is read as None
            if isinstance(score, bool) or not isinstance(score, int | float):
                raise ValueError(f"{name} has score {short_repr(score)}, wanted a number")
            scores[name] = float(score)
    kept = {name: _mapping(edge, name) for name, edge in edges.items()}
    parallel = bool(config.get("parallel_attn_mlp"))
    return MibGraph(shape[0], shape[1], shape[2], parallel, in_graph, scores, kept)


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{printable(name, 60)} is {short_repr(value)}, wanted names and values")
    return value
