"""Effects of many candidates that share beginnings, each beginning computed once; see `igap.engine.prefix_tree`.

    corrupted words -> embeddings -> blocks 0 .. l -> a' of the target -> the clean runs with it -> F
    one row a beginning --------------------------------------------------------------> one a prompt

Both passes are over the tree of the corrupted prompts: where they begin alike, what is patched is the same.
"""

from collections.abc import Collection
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from igap.counterfactual.objective.patch import Patch
from igap.counterfactual.spaces.base import BoundSpace
from igap.engine.batching import AdaptiveBatch
from igap.engine.component_sets import ComponentSet
from igap.engine.prefix_tree import PrefixTree, TreeSuffix, sort_prompts

ALPHAS = tuple(i / 10 for i in range(1, 10))
"""Points of the path at which `curve` looks, 0 is clean and 1 corrupted."""
SERVED = ("ap", "curve")
"""The numbers that are computed so."""


class SharedPrefixes:
    """Numbers of a target for candidates whose corrupted prompts are a tree."""

    def __init__(
        self,
        bound: BoundSpace,
        patch: Patch,
        embed: Float[Tensor, "d_vocab d_model"],
        unpatched: Float[Tensor, " pair"],
    ) -> None:
        """`patch` is the target in the clean runs, whose F is `unpatched`; `embed` what the model begins with."""
        self._bound, self._patch, self._around, self._embed = bound, patch, patch.contrast, embed
        self._first, n_pos = self._around.first, bound.clean.shape[1]
        everywhere = torch.ones(n_pos, dtype=torch.bool)
        patched: list[int] = (everywhere if patch.where is None else patch.where.any(0)).nonzero()[:, 0].tolist()
        self._start, self._stop = max(self._first, patched[0]), patched[-1] + 1
        """The first position that is patched, and the first behind the last one."""
        self._engine = cache(self._make_engine)
        self._unpatched = unpatched

    def numbers(
        self, tokens: Int[Tensor, "corrupted candidate pos"], names: Collection[str], nodes: AdaptiveBatch
    ) -> tuple[Float[Tensor, "candidate pair name"], float]:
        """`ap` and `curve`, those that are named, and what they cost; `nodes` is how many nodes make a pass.

        Prompts that are the same are computed once.
        """
        self._cost = 0.0
        n, n_pairs = tokens.shape[1], len(self._bound.pairs)
        numbers = torch.empty(n, n_pairs, len(names), dtype=self._embed.dtype)
        for given, prompts in enumerate(self._patch.without_unseen(tokens) if names else ()):
            own, where = sort_prompts(prompts, self._first)
            pairs = tuple(range(n_pairs)) if self._bound.shared else (given,)
            n_nodes = PrefixTree.of(own[:, self._first :], self._first).n_nodes * len(pairs)

            def compute(items: Tensor, own: Tensor = own, pairs: tuple[int, ...] = pairs) -> Tensor:
                with torch.no_grad():
                    return self._of_pairs(own[items], pairs, names)

            passes = nodes.each(compute, torch.arange(len(own)), max(1, round(n_nodes / len(own))))
            numbers[:, list(pairs)] = torch.cat([made.cpu() for _, made in passes])[where.cpu()]
        return numbers, self._cost

    def _make_engine(self, pairs: tuple[int, ...], first: int) -> TreeSuffix:
        """The clean runs of these pairs, of which nothing changes before `first`."""
        around = self._around
        assert around.backend.decoder is not None
        return TreeSuffix(around.backend.decoder, around.readout.select(pairs), around.clean.select(pairs), first)

    def _of_pairs(
        self, tokens: Int[Tensor, "candidate pos"], pairs: tuple[int, ...], names: Collection[str]
    ) -> Float[Tensor, "candidate pair name"]:
        patch, target, n_pos = self._patch, self._patch.target, tokens.shape[1]
        tree = PrefixTree.of(tokens[:, self._first :], self._first)
        seen, later = tree.between(self._first, self._stop), tree.between(self._start, n_pos)
        own = self._activations(tokens, seen, pairs[0])[:, seen.offsets[self._start - self._first] :]
        engine = self._engine(pairs, self._start).over(later)
        # Behind the last position that is patched nothing is.
        own = torch.cat([own, own.new_zeros(1, later.n_nodes - own.shape[1], *own.shape[2:])], 1)
        start = patch.start[list(pairs), 0][:, later.positions - self._first]
        where = torch.ones(len(pairs), later.n_nodes, dtype=torch.bool, device=tokens.device)
        if patch.where is not None:
            where = patch.where[list(pairs)][:, later.positions]
        elif target.span == "diff":
            where = later.of_nodes(tokens[:, self._start :]) != self._bound.clean[list(pairs)][:, later.positions]
        end = torch.where(where if start.ndim == 2 else where[..., None], own, start)

        def value(rows: Tensor) -> Tensor:
            moved = self._value(engine, rows, start, where)
            return moved - self._unpatched[list(pairs), None]

        ap = value(end)
        numbers = {"ap": ap}
        if "curve" in names:
            bends = torch.stack([value(start + alpha * (end - start)) - alpha * ap for alpha in ALPHAS])
            numbers["curve"] = bends.gather(0, bends.abs().argmax(0, keepdim=True))[0]
        n_layers, (_, earliest), *_ = self._around.n_layers, *target.places
        *_, (_, deepest) = target.places
        passes = 1 + len(ALPHAS) * ("curve" in names)
        patched = passes * len(pairs) * later.n_nodes * (n_layers - earliest)
        self._cost += (seen.n_nodes * (deepest + 1) + patched) / n_layers / n_pos
        return torch.stack([numbers[name].T for name in names], -1)

    def _activations(self, tokens: Tensor, tree: PrefixTree, pair: int) -> Float[Tensor, "1 node *d"]:
        """The target's activation in the corrupted runs, at every node."""
        words = tree.of_nodes(tokens[:, self._first : self._stop])
        changes = self._embed[words] - self._embed[self._bound.clean[pair, tree.positions]]
        engine = self._engine((pair,), self._first).over(tree)
        return self._patch.activation(engine.embedded_nodes(self._patch.target.places, changes[None]))[:, :, 0]

    def _value(self, engine: TreeSuffix, rows: Tensor, start: Tensor, where: Tensor) -> Float[Tensor, "pair candidate"]:
        """F with the target at these activations `[pair, node, *d]`."""
        single = self._patch.target.single
        if single is not None and single[0] in ("heads", "neurons"):
            return engine.single_moved(*single, rows - start)
        members = ComponentSet(self._around, self._patch.target.members)
        return engine.with_members(members, rows[:, :, None], where[..., None, None])
