"""F for many prompts that share beginnings: every distinct beginning passes the blocks once.

In a causal decoder what stands at a position depends on the tokens up to it and on no others. Prompts of one length are
a tree then, whose nodes are their distinct beginnings, and a pass over the nodes gives what a pass over all positions
of all prompts gives: of 1,000 prompts that differ in their last three tokens alone 3,000 nodes and a few, and not
17,000 positions. Patched runs are the same tree: what a beginning's activations change is at it and behind it.

Nodes are the engine's rows, `[pair, node, 1, ...]`, so that all but attention is the engine's own.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from igap.components import Site
from igap.engine.attention import attend
from igap.engine.component_sets import ComponentSet
from igap.engine.decoder import Block, Edit
from igap.engine.forward import _UNCHANGED, Suffix

_IN_A_GROUP = 8
"""Nodes that share a beginning, from which on their keys to it are read from one copy."""
_PADDING = 1.5
"""Groups are padded to the largest: by so much at most."""


@dataclass(frozen=True, eq=False)
class PrefixTree:
    """Prompts as a tree, a node for each of their distinct beginnings that end at one of some positions.

    Prompts that follow each other and begin alike share nodes: those of `sort_prompts` share all that can be shared.
    """

    first: int
    """The position of the first column."""
    local: Int[Tensor, "prompt column"]
    """The node of each prompt at each position, numbered from 0 at every position."""
    begins: Bool[Tensor, "prompt column"]
    """Whether the node is another one than that of the prompt before."""

    @classmethod
    def of(cls, tokens: Int[Tensor, "prompt column"], first: int) -> "PrefixTree":
        """The tree of prompts whose tokens from position `first` on are these; those before are the same."""
        begins = torch.ones_like(tokens, dtype=torch.bool)
        begins[1:] = (tokens[1:] != tokens[:-1]).cumsum(1) > 0
        return cls(first, begins.cumsum(0) - 1, begins)

    def between(self, start: int, stop: int) -> "PrefixTree":
        """The nodes at these positions alone."""
        columns = slice(start - self.first, stop - self.first)
        return PrefixTree(start, self.local[:, columns], self.begins[:, columns])

    @cached_property
    def counts(self) -> list[int]:
        """Nodes at each position."""
        counts: list[int] = (self.local[-1] + 1).tolist()
        return counts

    @property
    def n_nodes(self) -> int:
        """Nodes in all."""
        return sum(self.counts)

    @cached_property
    def offsets(self) -> list[int]:
        """The number of the first node at each position, and at last that of all nodes."""
        return [0, *torch.tensor(self.counts).cumsum(0).tolist()]

    @cached_property
    def nodes(self) -> Int[Tensor, "prompt column"]:
        """The node of each prompt at each position, among all nodes, those of the first position first."""
        return self.local + torch.tensor(self.offsets[:-1], device=self.local.device)

    @cached_property
    def prompts(self) -> list[Int[Tensor, " node"]]:
        """At each position the first prompt of each node."""
        return [column.nonzero()[:, 0] for column in self.begins.unbind(1)]

    @cached_property
    def columns(self) -> Int[Tensor, " node"]:
        """The column of each node."""
        numbers = torch.arange(len(self.counts), device=self.local.device)
        return numbers.repeat_interleave(torch.tensor(self.counts, device=self.local.device))

    @property
    def positions(self) -> Int[Tensor, " node"]:
        """The position of each node."""
        return self.columns + self.first

    @property
    def last(self) -> slice:
        """The nodes at the last position."""
        return slice(self.offsets[-2], None)

    def of_nodes(self, values: Tensor) -> Tensor:
        """Values `[..., prompt, column]` of positions as `[..., node]`."""
        return torch.cat([values[..., prompts, column] for column, prompts in enumerate(self.prompts)], -1)

    @cached_property
    def gathered(self) -> list["_Keys"]:
        """At each position where the keys are that its nodes see."""
        return [self._keys(column) for column in range(len(self.counts))]

    def _keys(self, column: int) -> "_Keys":
        prompts, n = self.prompts[column], self.counts[column]
        for behind in range(column - 1, -1, -1):
            n_groups = self.counts[behind]
            if n < _IN_A_GROUP * n_groups:
                continue
            sizes = torch.bincount(self.local[prompts, behind], minlength=n_groups)
            most = int(sizes.max())
            if most * n_groups > _PADDING * n:
                continue
            # Groups are neighbours: the last ones of a small group are its last node, again and again.
            starts = sizes.cumsum(0) - sizes
            places = torch.arange(most, device=prompts.device)
            members = starts[:, None] + torch.minimum(places, sizes[:, None] - 1)
            own = torch.arange(n, device=prompts.device)
            group = self.local[prompts, behind]
            back = group * most + own - starts[group]
            shared = self.nodes[self.prompts[behind], : behind + 1]
            return _Keys(shared, members, self.nodes[prompts[members], behind + 1 : column + 1], back)
        own = torch.arange(n, device=prompts.device)
        return _Keys(None, own[None], self.nodes[prompts, : column + 1][None], own)


@dataclass(frozen=True, eq=False)
class _Keys:
    """Nodes of one position in groups, and the nodes whose keys they see."""

    shared: Int[Tensor, "group earlier"] | None
    """Those that all of a group see; None: one group, which sees none in common."""
    members: Int[Tensor, "group member"]
    """The nodes of each group, counted at their position."""
    own: Int[Tensor, "group member later"]
    """Those that each sees besides, itself at last."""
    back: Int[Tensor, " node"]
    """The place of each node in groups and members."""


def sort_prompts(
    tokens: Int[Tensor, "prompt pos"], first: int
) -> tuple[Int[Tensor, "_distinct pos"], Int[Tensor, " prompt"]]:
    """Distinct prompts, sorted so that those that begin alike stand together, and the place of each among them.

    They are the same before `first`. As `torch.unique(dim=0)` has it, which takes several times as long.
    """
    order = torch.arange(len(tokens), device=tokens.device)
    for column in reversed(tokens[:, first:].unbind(1)):
        if (column != column[0]).any():
            order = order[column[order].argsort(stable=True)]
    ordered = tokens[order]
    is_new = torch.ones_like(order, dtype=torch.bool)
    is_new[1:] = (ordered[1:] != ordered[:-1]).any(1)
    where = torch.empty_like(order)
    where[order] = is_new.cumsum(0) - 1
    return ordered[is_new], where


class TreeSuffix(Suffix):
    """The engine's route `suffix` over the nodes of a tree, which begin at its position `first`."""

    tree: PrefixTree

    def over(self, tree: PrefixTree) -> "TreeSuffix":
        """The same for the nodes of this tree."""
        assert self._n_read == 1
        assert tree.first == self._first
        made = copy.copy(self)
        made.tree = tree
        return made

    def embedded_nodes(
        self, places: Sequence[tuple[Site, int]], changes: Float[Tensor, "pair node d_model"]
    ) -> dict[tuple[Site, int], Float[Tensor, "pair node 1 *component"]]:
        """As `embedding_function`: activations of these places with the embeddings changed, at every node."""
        return self._record(places, self._at_nodes(self._base.residual[0]) + changes[:, :, None])

    def with_members(
        self, members: ComponentSet, values: Float[Tensor, "pair node 1 d"], where: Bool[Tensor, "pair node 1 1"]
    ) -> Float[Tensor, "pair prompt"]:
        """F with a set's members at these activations."""
        last, n_layers = self.tree.last, len(self._blocks)
        everywhere = members.changes(values, where)
        at_last = members.changes(values[:, last], where[:, last])
        earliest = min(layer for _, layer in everywhere)
        stream = self._at_nodes(self._base.residual[earliest])
        for layer in range(earliest, n_layers):
            here: dict[Site, Edit] = {}
            for place in everywhere:
                site, of = place
                if of == layer:
                    is_short = layer == n_layers - 1 and site not in ("resid_pre", "k", "v")
                    here[site] = (at_last if is_short else everywhere)[place]
            stream = self._through(layer, stream, here)
        return self._read_prompts(stream)

    def single_moved(
        self, site: Site, layer: int, index: int, moved: Float[Tensor, "pair node *d"]
    ) -> Float[Tensor, "pair prompt"]:
        """F with a head or neuron moved by so much from its activation in the run."""
        block, base = self._blocks[layer], self._base
        residual, activation = base.residual[layer], base.activations[site][layer]
        linear, adds = (block.out, block.attention_adds) if site == "heads" else (block.down, block.mlp_adds)
        written = linear(activation.flatten(2) if site == "heads" else activation)
        carrier = residual
        if site == "neurons":
            carrier = residual + block.attention_adds(block.out(base.activations["heads"][layer].flatten(2)))
        elif block.parallel:
            carrier = residual + self._mlp(layer, residual)
        columns = linear.weight.T.unflatten(0, (activation.shape[2], -1))[index]
        rows = self.tree.last if layer == len(self._blocks) - 1 else slice(None)
        change = (moved if site == "heads" else moved[..., None])[:, rows] @ columns
        stream = self._at_nodes(carrier, rows) + adds(self._at_nodes(written, rows) + change[:, :, None])
        if site == "heads" and not block.parallel:
            stream = stream + self._mlp(layer, stream)
        for later in range(layer + 1, len(self._blocks)):
            stream = self._through(later, stream)
        return self._read_prompts(stream)

    def at_nodes(self, run: Float[Tensor, "pair pos *d"]) -> Float[Tensor, "pair node *d"]:
        """Values of the run's positions, at the nodes that stand there."""
        return run[:, self.tree.positions]

    def _at_nodes(self, run: Tensor, rows: slice = slice(None)) -> Tensor:
        return run[:, self.tree.positions[rows]][:, :, None]

    def _read_prompts(self, stream: Tensor) -> Tensor:
        return self._read(stream)[:, self.tree.local[:, -1]]

    def _through(self, layer: int, stream: Tensor, changes: Mapping[Site, Edit] = _UNCHANGED) -> Tensor:
        last = layer == len(self._blocks) - 1
        stream, z = self._to_heads(layer, stream, changes, n_queries=1 if last else None)
        return self._from_heads(layer, stream[:, self.tree.last] if last else stream, z, changes)

    def _attention(
        self,
        layer: int,
        normed: Tensor,
        n_queries: int | None = None,
        at: Callable[[Site, Tensor], Tensor] = lambda _, activation: activation,
    ) -> Float[Tensor, "pair node 1 head d_head"]:
        """z of every head at all nodes, or at those of the last position."""
        block, tree = self._blocks[layer], self.tree
        rows = slice(None) if n_queries is None else tree.last
        k, v = (x.squeeze(2) for x in block.keys_values(normed, partial(at, "k"), partial(at, "v")))
        q = self._rotate_nodes(block, block.queries(normed[:, rows], partial(at, "q")).squeeze(2), rows)
        k = self._rotate_nodes(block, k, slice(None))
        n_columns = len(tree.counts)
        asked = range(n_columns) if n_queries is None else [n_columns - 1]
        by_column = q.split([tree.counts[column] for column in asked], 1)
        made = [self._attend(layer, column, own, k, v) for column, own in zip(asked, by_column, strict=True)]
        return torch.cat(made, 1).unsqueeze(2)

    def _attend(self, layer: int, column: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """z `[pair, node, head, d_head]` of the nodes at one position."""
        block, keys, n_pairs = self._blocks[layer], self.tree.gathered[column], len(k)
        n_groups = len(keys.members)
        common = [x.expand(-1, n_groups, -1, -1, -1) for x in self._shared[layer]]  # [pair, group, head, pos, d_head]
        if keys.shared is not None:
            common = [
                torch.cat([old, x[:, keys.shared].transpose(2, 3)], 3) for old, x in zip(common, (k, v), strict=True)
            ]
        shared = (common[0].flatten(0, 1)[:, None], common[1].flatten(0, 1)[:, None])
        new_k, new_v = (x[:, keys.own].transpose(3, 4).flatten(0, 1) for x in (k, v))
        grouped = q[:, keys.members].flatten(0, 1)[:, :, :, None]  # [pair group, member, head, 1, d_head]
        position = self.tree.first + column
        seen = self._seen[block.window][position - self._first, None, : position + 1]
        z: Tensor = attend(block, grouped, shared, (new_k, new_v), seen)
        by_node: Tensor = z[:, :, :, 0].unflatten(0, (n_pairs, n_groups)).flatten(1, 2)[:, keys.back]
        return by_node

    def _rotate_nodes(self, block: Block, x: Tensor, rows: slice) -> Tensor:
        """Queries or keys `[pair, node, head, d_head]`, rotated."""
        if block.rotary is None:
            return x
        cos, sin = (part[self.tree.positions[rows]] for part in self._turns[block.rotary])
        return block.rotary.rotate(x, cos, sin)
