"""The effects of one component for many corrupted prompts at once, and their gradient in the prompts' words.

    corrupted words -> embeddings -> blocks 0 .. l -> a' of the component -> the clean runs with it -> F

The corrupted prompt passes the blocks up to the component once, whatever the number of clean prompts where it is the
same for all, and each clean prompt's run with the patch begins at the component. Nothing is divided by the gap: the
search would drive the gap to zero and not the effect up.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from igap.attribution.integrated_gradients import along_path
from igap.attribution.maps import per_component
from igap.components import Site, hook_name
from igap.counterfactual.objective.embeddings import token_embeddings
from igap.counterfactual.spaces.base import BoundSpace, Candidate
from igap.engine.activations import ForwardPass, block_numbers, record
from igap.engine.backend import HOOKS, Engine, Route, choose_backend
from igap.engine.batching import AdaptiveBatch, adaptive_batch
from igap.engine.hooks import SiteFunction, edit_hooks
from igap.engine.metrics import read_out
from igap.inputs.prompts import tokenize
from igap.models.families import check_columns

Number = Literal["ap", "ig", "curve", "mean_other_heads", "fluency", "corrupted"]
"""The numbers of a candidate in each clean prompt's run:

- `ap`: F with the component from the corrupted run, less F without; logits.
- `ig`: the component's share on the joint path, on which the whole layer's site moves (NODES nodes); logits.
- `curve`: the largest departure of F along the component's path from the chord between its ends, signed; logits.
- `mean_other_heads`: mean |AtP| of all other heads, first order around the clean run; logits.
- `fluency`: mean log-probability of the corrupted prompt's tokens less that of the clean prompt's; nats.
- `corrupted`: F of the corrupted run, with the clean prompt's answer and distractor; logits.
"""
_WHOLE: tuple[Number, ...] = ("mean_other_heads", "fluency", "corrupted")
"""Numbers that need the whole model on the corrupted prompt."""

Numbers = Mapping[Number, Float[Tensor, "candidate pair"]]

NODES = 16
"""Quadrature nodes of `ig`, Gauss-Legendre."""
_ALPHAS = tuple(i / 10 for i in range(1, 10))
"""Points of the path at which `curve` looks, 0 is clean and 1 corrupted."""


@dataclass(frozen=True)
class Target:
    """The component that is searched for."""

    site: Site
    layer: int
    index: int


class Evaluator:
    """Numbers of one component in the clean prompts' runs, for corrupted prompts of a space.

    `cost` counts forward equivalents: one is a whole pass of the model over one prompt, forward or, twice that much,
    backward; what begins in the middle counts as the share of the blocks and positions it passes. On the route
    `hooks` every pass is a whole one.
    """

    def __init__(
        self,
        model: TransformerBridge,
        bound: BoundSpace,
        target: Target,
        *,
        memory_gib: float | None = None,
        batch_size: int | None = None,
        hooks: bool = False,
    ) -> None:
        """Make the clean runs.

        Args:
            model: a frozen model.
            bound: a space, bound to the clean prompts.
            target: the component.
            memory_gib: GiB of one pass beyond the model; None: as `igap.engine.batching` has it.
            batch_size: prompts in one pass; None: as many as fit.
            hooks: take the slow route, which every architecture has.

        Raises:
            InputError: a model whose embeddings or neurons the search cannot use.
        """
        self.bound, self.target, self.cost = bound, target, 0.0
        self._model = model
        self._pairs = [tokenize(model, pair) for pair in bound.pairs]
        self.first = min([bound.first, *(pair.first_difference for pair in self._pairs)])
        """Position from which corrupted prompts, also those made by hand, may differ from the clean ones."""
        sites = (target.site,)
        self.clean: ForwardPass = record(model, bound.clean, self._pairs, name="clean", sites=sites)
        check_columns(model, target.site, self.clean.activations[target.site][0].shape[2:])
        first, n_pairs = self.first, len(bound.pairs)
        first_pair = self.clean.select([0])
        other = record(model, self._pairs[0].corrupted, self._pairs[:1], name="corrupted", sites=sites)
        readout = read_out(self._pairs, bound.clean.device)
        backend = HOOKS
        if not hooks:
            backend = choose_backend(model, readout.select([0]), first_pair, other.activations, first)
        self.route: Route = backend.route

        def engine(n: int) -> Engine:
            return backend.engine(model, readout.select(range(n)), self.clean if n == n_pairs else first_pair, first)

        self._around = engine(n_pairs)
        given = self._around if bound.given == n_pairs else engine(1)
        self._activations = given.embedded(target.site, target.layer)
        self._metric = self._around.single(target.site, target.layer, target.index)
        self._start = self.clean.activations[target.site][target.layer][:, None, first:]
        self._embed = token_embeddings(model, first_pair.tokens)
        self._clean_embedded = self._embed[bound.clean[: bound.given, first:]][:, None]
        cfg, n_pos = model.cfg, bound.clean.shape[1]
        numbers, changing = block_numbers(model), n_pos - first
        size = changing * numbers * self._embed.element_size()
        device = self._embed.device
        self._rows = adaptive_batch(size, 1, device, batch_size, memory_gib)
        self._gradient_rows = adaptive_batch(size, cfg.n_layers, device, batch_size, memory_gib)
        whole = n_pos * max(numbers, 3 * cfg.d_vocab) * self._embed.element_size()
        self._whole_rows = adaptive_batch(whole, 1, device, batch_size, memory_gib)
        prefix = suffix = 1.0
        if self.route == "suffix":
            share = changing / n_pos
            prefix, suffix = (n / cfg.n_layers * share for n in (target.layer + 1, cfg.n_layers - target.layer))
        self._prefix_cost, self._suffix_cost = prefix * bound.given, suffix * n_pairs

    def numbers(self, tokens: Int[Tensor, "given candidate pos"], names: Sequence[Number]) -> Numbers:
        """These numbers of corrupted prompts, on the CPU; equal to the clean prompts before `first`.

        A prompt that comes twice is computed once.
        """
        own, where = torch.unique(tokens, dim=1, return_inverse=True)
        columns: dict[Number, Tensor] = {}
        for some, compute, rows in (
            ([name for name in names if name not in _WHOLE], self._patched, self._rows),
            ([name for name in names if name in _WHOLE], self._whole, self._whole_rows),
        ):
            if some:
                columns |= dict(zip(some, self._each(own, some, compute, rows).unbind(-1), strict=True))
        numbers = {name: columns[name][where.cpu()] for name in names}
        # Passes round differently. The clean prompt itself changes nothing, and that exactly.
        same = (tokens == self.bound.clean[:, None]).all(-1).T.cpu()
        return {name: each if name == "corrupted" else each.masked_fill(same, 0) for name, each in numbers.items()}

    def effects(self, candidates: Sequence[Candidate], name: Number = "ap") -> Float[Tensor, "candidate pair"]:
        """One of the numbers, of candidates."""
        return self.numbers(self.bound.tokens(candidates), [name])[name]

    def gradient(
        self, candidates: Sequence[Candidate], weights: Float[Tensor, "candidate pair"]
    ) -> Float[Tensor, "given candidate pos d_model"]:
        """d(sum over clean prompts of weight * AP effect) / d(embedding of the corrupted prompts' tokens)."""
        changes = self._changes(self.bound.tokens(candidates)).requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad((self._ap(changes) * weights.to(changes)).sum(), changes)
        self.cost += 3 * len(candidates) * (self._prefix_cost + self._suffix_cost)
        return gradient

    def first_order_scores(
        self, candidate: Candidate, weights: Float[Tensor, " pair"]
    ) -> list[Float[Tensor, " _option"]]:
        """For every option of every slot, the change of the weighted AP effect to first order; logits."""
        gradient = self.gradient([candidate], weights[None])[:, 0]
        tokens = self.bound.tokens([candidate])[:, 0]
        scores = []
        for slot, table in zip(self.bound.space.slots, self.bound.tables, strict=True):
            where = list(slot.positions)
            here = gradient[:, [position - self.first for position in where]]
            own = (self._embed[tokens[:, where]] * here).sum((-1, -2))
            used, at = torch.unique(table, return_inverse=True)  # a word's products once, however many slots offer it
            products = (self._embed[used] @ here.flatten(0, 1).T).unflatten(1, here.shape[:2])  # [used, given, width]
            given, width = (torch.arange(n, device=here.device) for n in here.shape[:2])
            by_option = products[at, given[:, None, None], width].sum(-1) - own[:, None]  # [given, option]
            scores.append(by_option.sum(0).cpu())
        return scores

    def activations(
        self, tokens: Int[Tensor, "given candidate pos"]
    ) -> Float[Tensor, "given candidate changed *component"]:
        """The component's activations in the corrupted runs, from `first` on; tokens as of `numbers`."""

        def compute(items: Tensor) -> Tensor:
            with torch.no_grad():
                return self._activations(self._changes(tokens[:, items]))[:, :, :, self.target.index]

        self.cost += tokens.shape[1] * self._prefix_cost
        passes = self._rows.each(compute, torch.arange(tokens.shape[1]), self.bound.given)
        return torch.cat([made for _, made in passes], 1)

    def activations_of_others(self, prompts: Int[Tensor, "prompt pos"]) -> Float[Tensor, "prompt changed *component"]:
        """The component's activations in runs of any prompts of the clean prompts' length, from `first` on."""
        name = hook_name(self.target.site, self.target.layer)

        def compute(items: Tensor) -> Tensor:
            seen: list[Tensor] = []

            def keep(activation: Tensor) -> Tensor:
                seen.append(activation[:, self.first :, self.target.index])
                return activation

            with torch.no_grad(), edit_hooks(self._model, {name: keep}):
                self._model(prompts[items], logits_to_keep=1)
            return seen[0]

        self.cost += len(prompts)
        return torch.cat([made for _, made in self._whole_rows.each(compute, torch.arange(len(prompts)))])

    def _each(
        self,
        tokens: Tensor,
        names: Sequence[Number],
        compute: Callable[[Tensor, Sequence[Number]], Tensor],
        rows: AdaptiveBatch,
    ) -> Float[Tensor, "candidate pair name"]:
        n, n_pairs = tokens.shape[1], len(self.bound.pairs)
        numbers = torch.empty(n, n_pairs, len(names), dtype=self._embed.dtype)
        for items, made in rows.each(lambda items: compute(tokens[:, items], names), torch.arange(n), n_pairs):
            numbers[items] = made.detach().cpu()
        return numbers

    def _changes(self, tokens: Tensor) -> Tensor:
        """The corrupted words' embeddings less the clean prompts'; exactly 0 where they are the same."""
        return self._embed[tokens[:, :, self.first :]] - self._clean_embedded

    def _ap(self, changes: Tensor) -> Float[Tensor, "candidate pair"]:
        z = self._activations(changes)[:, :, :, self.target.index]
        metric = self._metric(z.expand(len(self.bound.pairs), *z.shape[1:]))
        return (metric - self.clean.logit_diff[:, None]).T

    def _patched(self, tokens: Tensor, names: Sequence[Number]) -> Float[Tensor, "candidate pair name"]:
        """Numbers that begin at the component's activation in the corrupted run."""
        n_pairs, n = len(self.bound.pairs), tokens.shape[1]
        with torch.no_grad():
            site = self._activations(self._changes(tokens))
        self.cost += n * self._prefix_cost
        site = site.expand(n_pairs, *site.shape[1:])
        end = site[:, :, :, self.target.index]
        start = self._start[:, :, :, self.target.index]
        numbers: dict[Number, Tensor] = {}
        if "ap" in names or "curve" in names:
            with torch.no_grad():
                numbers["ap"] = self._metric(end) - self.clean.logit_diff[:, None]
            self.cost += n * self._suffix_cost
        if "curve" in names:
            with torch.no_grad():
                bends = torch.stack(
                    [
                        self._metric(start + alpha * (end - start))
                        - self.clean.logit_diff[:, None]
                        - alpha * numbers["ap"]
                        for alpha in _ALPHAS
                    ]
                )
            self.cost += len(_ALPHAS) * n * self._suffix_cost
            numbers["curve"] = bends.gather(0, bends.abs().argmax(0, keepdim=True))[0]
        if "ig" in names:
            layer: SiteFunction = self._around.function(self.target.site, self.target.layer)
            shares = along_path(layer, self._start.expand_as(site), site, NODES, "gausslegendre", self._gradient_rows)
            numbers["ig"] = per_component(shares, self.target.site)[..., self.target.index].sum(2)
            self.cost += 3 * NODES * n * self._suffix_cost
        return torch.stack([numbers[name].T for name in names], -1)

    def _whole(self, tokens: Tensor, names: Sequence[Number]) -> Float[Tensor, "candidate pair name"]:
        """Numbers of the whole model's run on the corrupted prompts."""
        n_given, n = tokens.shape[:2]
        n_pairs = len(self.bound.pairs)
        logits, others = self._run(tokens, heads="mean_other_heads" in names)
        self.cost += n * n_given
        numbers: dict[Number, Tensor] = {}
        if "corrupted" in names:
            last = logits[:, :, -1].expand(n_pairs, -1, -1)
            each = torch.arange(n_pairs, device=last.device)
            answer, distractor = ([getattr(pair, word) for pair in self._pairs] for word in ("answer", "distractor"))
            numbers["corrupted"] = last[each, :, answer] - last[each, :, distractor]
        if "fluency" in names:
            numbers["fluency"] = _mean_log_probability(logits, tokens) - self._clean_fluency[:, None]
        if others is not None:
            numbers["mean_other_heads"] = others
        return torch.stack([numbers[name].T for name in names], -1)

    def _run(self, tokens: Tensor, *, heads: bool) -> tuple[Tensor, Tensor | None]:
        """Logits `[given, candidate, pos, vocabulary]`, and the mean |AtP| `[pair, candidate]` of all other heads."""
        names = [hook_name("heads", layer) for layer in range(self._model.cfg.n_layers)] if heads else []
        seen: dict[str, Tensor] = {}

        def keeping(name: str) -> Callable[[Tensor], Tensor]:
            def keep(activation: Tensor) -> Tensor:
                seen[name] = activation
                return activation

            return keep

        with torch.no_grad(), edit_hooks(self._model, {name: keeping(name) for name in names}):
            logits = self._model(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
        if not heads:
            return logits, None
        total, n_heads = torch.zeros(()), 0
        for layer, (name, slope) in enumerate(zip(names, self._slopes, strict=True)):
            z = seen[name].unflatten(0, tokens.shape[:2])[:, :, self.first :]
            clean = self.clean.activations["heads"][layer][:, None, self.first :]
            first_order = ((z - clean) * slope).sum((2, 4)).abs()  # [pair, candidate, head]
            if (self.target.site, self.target.layer) == ("heads", layer):
                first_order[..., self.target.index] = 0
                n_heads -= 1
            n_heads += first_order.shape[-1]
            total = total + first_order.sum(-1)
        return logits, total / max(1, n_heads)

    @cached_property
    def _slopes(self) -> list[Float[Tensor, "pair 1 changed head d_head"]]:
        """dF/dz at the clean runs, a tensor a layer."""
        slopes: list[Tensor] = []
        for layer, z in enumerate(self.clean.activations["heads"]):
            leaf = z[:, None, self.first :].detach().clone().requires_grad_()
            with torch.enable_grad():
                slopes += torch.autograd.grad(self._around.function("heads", layer)(leaf).sum(), leaf)
        return slopes

    @cached_property
    def _clean_fluency(self) -> Float[Tensor, " pair"]:
        with torch.no_grad():
            return _mean_log_probability(self._model(self.bound.clean)[:, None], self.bound.clean[:, None])[:, 0]


def _mean_log_probability(
    logits: Float[Tensor, "given candidate pos d_vocab"], tokens: Int[Tensor, "given candidate pos"]
) -> Float[Tensor, "given candidate"]:
    """Mean log-probability of every token but the first, given those before it; nats a token."""
    chosen = logits[:, :, :-1].gather(-1, tokens[:, :, 1:, None])[..., 0]
    mean: Tensor = (chosen - logits[:, :, :-1].logsumexp(-1)).mean(-1)
    return mean
