"""The effect of one component for many corrupted prompts at once, and its gradient in their words.

    corrupted words -> embeddings -> blocks 0 .. l -> z' of the component -> the clean runs with it -> F

The corrupted prompt passes the blocks up to the component once, whatever the number of clean prompts, and each clean
prompt's run with the patch begins at the component. Nothing is divided by the gap: the search would drive the gap to
zero and not the effect up.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from igap.attribution.integrated_gradients import along_path
from igap.attribution.maps import per_component
from igap.counterfactual.space import Candidate, Filled
from igap.forward import Engine, Hooks, SiteFunction, Suffix, weights_or_reason
from igap.memory import Rows, rows_a_pass
from igap.prompts import tokenize
from igap.runs import Run, frozen, record
from igap.sites import Site

Measure = Literal["ap", "ig", "disagreement"]
MEASURES: tuple[Measure, ...] = ("ap", "ig", "disagreement")

NODES = 16
"""Quadrature nodes of `ig` and `disagreement`, Gauss-Legendre."""


@dataclass(frozen=True)
class Target:
    """The component whose effect is asked for."""

    site: Site
    layer: int
    index: int


class Evaluator:
    """Effects of one component in the clean prompts' runs, for corrupted prompts of a space.

    `cost` counts forward equivalents: one is a whole pass of the model over one prompt, forward or, twice that much,
    backward; what begins in the middle counts as the share of the blocks it passes.
    """

    def __init__(
        self,
        model: TransformerBridge,
        filled: Filled,
        target: Target,
        *,
        memory_gib: float | None = None,
        batch_size: int | None = None,
        hooks: bool = False,
    ) -> None:
        """Makes the clean runs. `hooks` takes the slow route, which every architecture has."""
        self.filled, self.target, self.cost = filled, target, 0.0
        pairs = [tokenize(model, pair) for pair in filled.pairs]
        self.clean: Run = record(model, filled.clean, pairs, name="clean")
        first = filled.first
        one = self.clean.of_pair(0)
        other = record(model, pairs[0].corrupted, pairs[:1], name="corrupted")
        found = "asked for" if hooks else weights_or_reason(model, pairs[0], one, other.activations, first)
        self.route = "hooks" if isinstance(found, str) else "suffix"

        def engine(n: int) -> Engine:
            run = self.clean if n == len(pairs) else one
            if isinstance(found, str):
                return Hooks(model, pairs[:n], run, first)
            return Suffix(found, pairs[:n], run, first)

        around = engine(len(pairs))
        given = around if filled.given == len(pairs) else engine(1)
        self._activations = given.embedded(target.site, target.layer)
        self._metric = around.single(target.site, target.layer, target.index)
        self._layer_metric: SiteFunction = around.function(target.site, target.layer)
        self._start = self.clean.activations[target.site][target.layer][:, None, first:]
        self._embed: Float[Tensor, "d_vocab d_model"] = model.W_E.detach()
        self._clean_embedded = self._embed[filled.clean[: filled.given, first:]][:, None]
        cfg = model.cfg
        changed = filled.clean.shape[1] - first
        n_neurons = self.clean.activations["neurons"][0].shape[2]
        size = changed * (10 * cfg.d_model + 4 * n_neurons) * self._embed.element_size()
        self._rows: Rows = rows_a_pass(size, 1, self._embed.device, batch_size, memory_gib)
        self._gradient_rows = rows_a_pass(size, cfg.n_layers, self._embed.device, batch_size, memory_gib)
        n_layers, share = cfg.n_layers, changed / filled.clean.shape[1]
        self._prefix_cost = (target.layer + 1) / n_layers * share * filled.given
        self._suffix_cost = (n_layers - target.layer) / n_layers * share * len(pairs)

    def effects(self, candidates: Sequence[Candidate], measure: Measure = "ap") -> Float[Tensor, "candidate pair"]:
        """The component's effect in each clean prompt's run, in logits, on the CPU.

        `ap`: F with the component from the corrupted run, minus F without. `ig`: the component's share on the joint
        path, on which the whole layer's site moves. `disagreement`: `ap` minus `ig`.
        """
        return self.effects_of(self.filled.tokens(candidates), measure)

    def effects_of(
        self, tokens: Int[Tensor, "given candidate pos"], measure: Measure = "ap"
    ) -> Float[Tensor, "candidate pair"]:
        """As `effects`, of corrupted prompts that need not be in the space; equal to the clean ones before `first`."""
        n = tokens.shape[1]
        found = torch.empty(n, len(self.filled.pairs), dtype=self._embed.dtype)
        compute = self._ap if measure == "ap" else partial(self._joint, measure=measure)
        rows = self._rows if measure == "ap" else self._gradient_rows
        each = rows.each(lambda items: compute(tokens[:, items]), torch.arange(n), len(self.filled.pairs))
        for items, effects in each:
            found[items] = effects.detach().cpu()
        return found

    def gradient(
        self, candidates: Sequence[Candidate], weights: Float[Tensor, "candidate pair"]
    ) -> Float[Tensor, "given candidate pos d_model"]:
        """d(sum over clean prompts of weight * AP effect) / d(embedding of the corrupted prompts' tokens)."""
        tokens = self.filled.tokens(candidates)
        changes = self._changes(tokens).requires_grad_()
        with torch.enable_grad():
            effects = self._ap_of(changes)
            (gradient,) = torch.autograd.grad((effects * weights.to(effects)).sum(), changes)
        self.cost += 3 * len(candidates) * (self._prefix_cost + self._suffix_cost)
        return gradient

    def gains(self, candidate: Candidate, weights: Float[Tensor, " pair"]) -> list[Float[Tensor, " option"]]:
        """For every option of every slot, the change of the weighted AP effect to first order if it were chosen."""
        gradient = self.gradient([candidate], weights[None])[:, 0]
        tokens = self.filled.tokens([candidate])[:, 0]
        gains = []
        for slot, table in zip(self.filled.space.slots, self.filled.tables, strict=True):
            where = list(slot.positions)
            here = gradient[:, [position - self.filled.first for position in where]]
            own = (self._embed[tokens[:, where]] * here).sum((-1, -2))
            products = torch.einsum("gowd,gwd->go", self._embed[table], here) - own[:, None]
            gains.append(products.sum(0).cpu())
        return gains

    def _changes(self, tokens: Int[Tensor, "given candidate pos"]) -> Tensor:
        """What the corrupted words add to the clean prompts' embeddings; exactly 0 where they are the same."""
        return self._embed[tokens[:, :, self.filled.first :]] - self._clean_embedded

    def _ap(self, tokens: Tensor) -> Tensor:
        with torch.no_grad():
            effects = self._ap_of(self._changes(tokens))
        self.cost += tokens.shape[1] * (self._prefix_cost + self._suffix_cost)
        return effects

    def _ap_of(self, changes: Tensor) -> Tensor:
        z = self._activations(changes)[:, :, :, self.target.index]
        metric = self._metric(z.expand(len(self.filled.pairs), *z.shape[1:]))
        return (metric - self.clean.logit_diff[:, None]).T

    def _joint(self, tokens: Tensor, measure: Measure) -> Tensor:
        index = self.target.index
        with torch.no_grad():
            found = self._activations(self._changes(tokens))
        end = found.expand(len(self.filled.pairs), *found.shape[1:])
        start = self._start.expand_as(end)
        shares = along_path(self._layer_metric, start, end, NODES, "gausslegendre", self._gradient_rows)
        ig = per_component(shares, self.target.site)[..., index].sum(2)
        self.cost += tokens.shape[1] * (self._prefix_cost + 3 * NODES * self._suffix_cost)
        if measure == "ig":
            return ig.T
        with torch.no_grad():
            ap = self._metric(end[:, :, :, index]) - self.clean.logit_diff[:, None]
        self.cost += tokens.shape[1] * self._suffix_cost
        return (ap - ig).T


@contextmanager
def evaluator(
    model: TransformerBridge, filled: Filled, target: Target, *, memory_gib: float | None = None
) -> Iterator[Evaluator]:
    """An Evaluator, with the model frozen meanwhile and given back unchanged."""
    with frozen(model):
        yield Evaluator(model, filled, target, memory_gib=memory_gib)
