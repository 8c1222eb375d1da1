"""The effects of one target for many corrupted prompts at once, and their gradient in the prompts' words.

    corrupted words -> embeddings -> blocks 0 .. l -> a' of the target -> the clean runs with it -> F

The corrupted prompt passes the blocks up to the target's last component once, whatever the number of clean prompts
where it is the same for all, and each clean prompt's run with the patch begins at the first. Nothing is divided by
the gap: the search would drive the gap to zero and not the effect up.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from igap.components import Site
from igap.counterfactual.objective.embeddings import scores_of_options, token_embeddings
from igap.counterfactual.objective.errors import EstimatorErrors
from igap.counterfactual.objective.passes import plan_passes
from igap.counterfactual.objective.patch import Patch, find_positions
from igap.counterfactual.objective.shared_prefixes import ALPHAS, SERVED, SharedPrefixes
from igap.counterfactual.objective.whole_runs import WholeNumber, WholeRuns
from igap.counterfactual.spaces.base import BoundSpace, Candidate
from igap.counterfactual.target import Target
from igap.engine.activations import ForwardPass, record
from igap.engine.backend import HOOKS, Engine, choose_backend
from igap.engine.batching import AdaptiveBatch
from igap.engine.contrast import Contrast
from igap.engine.metrics import Custom, as_metric, read_out
from igap.engine.open_pairs import try_on
from igap.inputs.prompts import tokenize
from igap.metrics import AnyMetric, LogitDiff
from igap.models.families import check_columns

Number = Literal["ap", "ig", "curve", WholeNumber]
"""The numbers of a candidate in each clean prompt's run, besides those of whole runs, in F's unit:

- `ap`: F with the target from the corrupted run, less F without.
- `ig`: a component's share on the joint path, on which the whole layer's site moves at all positions (NODES nodes); of
  a set the sum over its members, which move alone and at the patched positions.
- `curve`: the largest departure of F along the target's path from the chord between its ends, signed.
"""
_WHOLE = get_args(WholeNumber)

Numbers = Mapping[Number, Float[Tensor, "candidate pair"]]

NODES = 16
"""Quadrature nodes of `ig`, Gauss-Legendre."""


class Evaluator:
    """Numbers of one target in the clean prompts' runs, for corrupted prompts of a space.

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
        metric: AnyMetric = "logit_diff",
        memory_gib: float | None = None,
        batch_size: int | None = None,
        hooks: bool = False,
    ) -> None:
        """Make the clean runs.

        Args:
            model: a frozen model.
            bound: a space, bound to the clean prompts.
            target: the component or set, and its span.
            metric: F.
            memory_gib: GiB of one pass beyond the model; None: as `igap.engine.batching` has it.
            batch_size: prompts in one pass; None: as many as fit.
            hooks: take the slow route, which every architecture has.

        Raises InputError on a model whose embeddings or sites the search cannot use, on a span that a clean prompt does
        not have, and on a metric of the caller's that is none."""
        self.bound, self.target, self.cost = bound, target, 0.0
        self._model, self._memory_gib = model, memory_gib
        self._examined: dict[str, EstimatorErrors] = {}
        f = as_metric(metric)
        self._pairs = [tokenize(model, pair, several=f.takes_several) for pair in bound.pairs]
        self.first = min([bound.first, *(pair.first_difference for pair in self._pairs)])
        """Position from which corrupted prompts, also those made by hand, may differ from the clean ones."""
        sites, whole = target.sites, f != LogitDiff()
        self.clean: ForwardPass = record(model, bound.clean, self._pairs, name="clean", sites=sites, with_logits=whole)
        for site in sites:
            check_columns(model, site, self.clean.activations[site][0].shape[2:])
        if isinstance(f, Custom):
            try_on(f, self._pairs, self.clean)
        first, n_pairs, first_pair = self.first, len(bound.pairs), self.clean.select([0])
        other = record(model, self._pairs[0].corrupted, self._pairs[:1], name="corrupted", sites=sites)
        readout = read_out(self._pairs, bound.clean.device, [f], self.clean.logits)
        backend = HOOKS
        if not hooks:
            backend = choose_backend(model, readout.select([0]), first_pair, other.activations, first)
        self.route, self.why_route = backend.route, backend.reason

        def engine(n: int) -> Engine:
            return backend.engine(model, readout.select(range(n)), self.clean if n == n_pairs else first_pair, first)

        clean = self.clean
        self._around = Contrast(
            model, tuple(self._pairs), clean, clean, clean, "noising", clean.activations, first, backend, readout,
            engine(n_pairs),
        )  # fmt: skip
        given = self._around.engine if bound.n_corrupted == n_pairs else engine(1)
        self._activations = given.embedding_function(target.places)
        self.where = None if target.span == "diff" else find_positions(target, self._pairs)
        """The positions `[pair, pos]` that are patched; None: all, or those of each candidate's own."""
        self._patch = Patch(self._around, target, self.where)
        self._unpatched = self._around.value(clean)
        self._whole_runs = WholeRuns(bound, self._around, self._patch)
        self._embed = token_embeddings(model, first_pair.tokens)
        self.dtype = self._embed.dtype
        self._clean_embedded = self._embed[bound.clean[: bound.n_corrupted, first:]][:, None]
        n_pos, n_layers = bound.clean.shape[1], model.cfg.n_layers
        self.shape = n_pos, readout.n_read  # of the clean prompts, and at how many of their positions F is read
        self._passes = plan_passes(model, n_pos, first, readout, batch_size, memory_gib)
        self._shared_prefixes = SharedPrefixes(bound, self._patch, self._embed, self._unpatched)
        layers, share = [layer for _, layer, _ in target.members], (n_pos - first) / n_pos / n_layers
        prefix, *suffixes = (n * share for n in (max(layers) + 1, *(n_layers - layer for layer in layers)))
        if self.route == "hooks":
            prefix, *suffixes = 1.0, *[1.0] * len(layers)
        self._prefix_cost, self._suffix_cost = prefix * bound.n_corrupted, max(suffixes) * n_pairs
        self._cost_of_members = sum(suffixes) * n_pairs

    def numbers(
        self, tokens: Int[Tensor, "corrupted candidate pos"], names: Sequence[Number], *, merge: bool = False
    ) -> Numbers:
        """These numbers of corrupted prompts, on the CPU; equal to the clean prompts before `first`.

        A prompt that comes twice is computed once. With `merge` prompts that differ where the target's activation does
        not depend on it are one prompt, and what begins alike is computed once; see `SharedPrefixes`.
        """
        columns: dict[Number, Tensor] = {}
        if merge and self.route == "suffix" and self._pairs[0].n_read == 1:
            served = [name for name in names if name in SERVED]
            made, cost = self._shared_prefixes.numbers(tokens, served, self._passes.nodes)
            self.cost += cost
            columns |= dict(zip(served, made.unbind(-1), strict=True))
        if len(columns) < len(names):
            asked = self._patch.without_unseen(tokens) if merge and set(names) <= set(SERVED) else tokens
            own, where = torch.unique(asked, dim=1, return_inverse=True)
        for some, compute, rows in (
            ([name for name in names if name not in (*columns, *_WHOLE)], self._measure_patched, self._passes.patched),
            ([name for name in names if name in _WHOLE], self._whole, self._passes.whole),
        ):
            if some:
                columns |= dict(zip(some, self._each(own, some, compute, rows)[where.cpu()].unbind(-1), strict=True))
        # Passes round differently. The clean prompt itself changes nothing, and that exactly.
        same = (tokens == self.bound.clean[:, None]).all(-1).T.cpu()
        return {name: columns[name] if name == "corrupted" else columns[name].masked_fill(same, 0) for name in names}

    def estimates(
        self, tokens: Int[Tensor, "corrupted candidate pos"], estimator: str
    ) -> Float[Tensor, "candidate pair 2 member"]:
        """What an estimator and activation patching say of each member alone, in F's unit; see `EstimatorErrors`."""
        if estimator not in self._examined:
            self._examined[estimator] = EstimatorErrors(self._pairs, self._patch, estimator, self._memory_gib)
        examined, n_pairs = self._examined[estimator], len(self.bound.pairs)
        own, where = torch.unique(tokens, dim=1, return_inverse=True)

        def compute(items: Tensor) -> Tensor:
            some = own[:, items]
            with torch.no_grad():
                sites = self._activations(self._changes(some))
            return examined.beside_ap(sites, self._patch.mask(some))

        # Of several members activations of every layer are held.
        rows = self._passes.patched if self.target.single else self._passes.gradient
        passes = rows.each(compute, torch.arange(own.shape[1]), n_pairs)
        numbers = torch.cat([made.detach().cpu() for _, made in passes])
        self.cost += len(numbers) * (self._prefix_cost + self._cost_of_members)
        self.cost += examined.complete(numbers, own.expand(n_pairs, -1, -1))
        return numbers[where.cpu()]

    def effects(self, candidates: Sequence[Candidate], name: Number = "ap") -> Float[Tensor, "candidate pair"]:
        """One of the numbers, of candidates."""
        return self.numbers(self.bound.tokens(candidates), [name])[name]

    def gradient(
        self,
        candidates: Sequence[Candidate],
        weights: Float[Tensor, "candidate pair"],
        member: int | None = None,
        *,
        of_error: bool = False,
    ) -> Float[Tensor, "corrupted candidate pos d_model"]:
        """d(sum over clean prompts of weight * AP effect) / d(embedding of the corrupted prompts' tokens).

        With a `member`'s place in the target of that one alone; with `of_error` of AtP's error there in place of AP."""
        every = self.bound.tokens(candidates)
        patch = self._patch if member is None else self._patch.members[member]

        def compute(items: Tensor) -> Tensor:
            tokens = every[:, items]
            changes, mask = self._changes(tokens).requires_grad_(), self._patch.mask(tokens)
            with torch.enable_grad():
                end = patch.end(patch.activation(self._activations(changes)), mask)
                effects = patch.value(end, mask) - self._unpatched[:, None]
                if of_error:
                    effects = patch.estimates([end])[..., 0] - effects
                (gradient,) = torch.autograd.grad((effects.T * weights[items].to(changes)).sum(), changes)
            return gradient

        passes = self._passes.gradient.each(compute, torch.arange(len(candidates)), len(self.bound.pairs))
        gradients = torch.cat([made for _, made in passes], 1)
        self.cost += 3 * len(candidates) * (self._prefix_cost + self._suffix_cost)
        return gradients

    def first_order_scores(
        self,
        candidate: Candidate,
        weights: Float[Tensor, " pair"],
        member: int | None = None,
        *,
        of_error: bool = False,
    ) -> list[Float[Tensor, " _option"]]:
        """For every option of every slot, the change of what `gradient` is of to first order, in F's unit."""
        gradient = self.gradient([candidate], weights[None], member, of_error=of_error)[:, 0]
        return scores_of_options(self.bound, self._embed, candidate, gradient)

    def fluency_scores(self, candidate: Candidate) -> list[Float[Tensor, " _option"]]:
        """For every option of every slot, the change of `fluency`, the mean over clean prompts, to first order."""
        tokens = self.bound.tokens([candidate])[:, 0, : self._pairs[0].n_prompt]
        self.cost += 3 * len(tokens)
        return self._whole_runs.fluency_scores(tokens, candidate, self._embed, self._passes.whole_gradient)

    def activations(
        self, tokens: Int[Tensor, "corrupted candidate pos"]
    ) -> Float[Tensor, "corrupted candidate patched *component"]:
        """The target's activations in the corrupted runs, from `first` on or at its span; tokens as of `numbers`."""

        def compute(items: Tensor) -> Tensor:
            with torch.no_grad():
                made = self._patch.activation(self._activations(self._changes(tokens[:, items])))
            return made[:, :, self._columns]

        self.cost += tokens.shape[1] * self._prefix_cost
        passes = self._passes.patched.each(compute, torch.arange(tokens.shape[1]), self.bound.n_corrupted)
        return torch.cat([made for _, made in passes], 1)

    def activations_of_others(self, prompts: Int[Tensor, "prompt pos"]) -> Float[Tensor, "prompt patched *component"]:
        """The target's activations in runs of any prompts of the clean prompts' length, at the same positions."""

        def take(seen: Mapping[tuple[Site, int], Tensor]) -> Tensor:
            changing = {place: activation[:, :, self.first :] for place, activation in seen.items()}
            return self._patch.activation(changing)[0][:, self._columns]

        return self._of_others(prompts, self.target.places, take)

    def later_streams(
        self, tokens: Int[Tensor, "corrupted candidate pos"], reduce: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "candidate pair *number"]:
        """What `reduce` makes, pass by pass, of these `Patch.streams` `[candidate, pair, layer, d_model]`."""

        def compute(items: Tensor) -> Tensor:
            own, mask = tokens[:, items], self._patch.mask(tokens[:, items])
            with torch.no_grad():
                end = self._end(self._activations(self._changes(own)), mask)
                return reduce(self._patch.streams(end, mask).transpose(0, 1))

        self.cost += tokens.shape[1] * (self._prefix_cost + self._suffix_cost)
        passes = self._passes.patched.each(compute, torch.arange(tokens.shape[1]), len(self.bound.pairs))
        return torch.cat([made for _, made in passes]).cpu()

    def streams_of_others(self, prompts: Int[Tensor, "prompt pos"]) -> Float[Tensor, "prompt layer d_model"]:
        """The same residual streams in runs of any prompts of one length, unpatched."""
        places = self._patch.later
        return self._of_others(prompts, places, lambda seen: torch.stack([seen[at][0, :, -1, 0] for at in places], 1))

    def _of_others(
        self, prompts: Tensor, places: Sequence[tuple[Site, int]], take: Callable[[Mapping[Any, Tensor]], Tensor]
    ) -> Tensor:
        self.cost += len(prompts)
        every, run = torch.arange(len(prompts)), self._whole_runs.activations
        passes = self._passes.whole.each(lambda items: take(run(prompts[items], places)), every)
        return torch.cat([made for _, made in passes])

    @cached_property
    def _columns(self) -> slice | list[int]:
        """The positions that are patched in every clean prompt, counted from `first`; of `diff` all from there on."""
        if self.where is None:
            return slice(None)
        return self.where[:, self.first :].all(0).nonzero().flatten().tolist()

    def _each(
        self,
        tokens: Tensor,
        names: Sequence[Number],
        compute: Callable[[Tensor, Sequence[Number]], Tensor],
        rows: AdaptiveBatch,
    ) -> Float[Tensor, "candidate pair name"]:
        items, n_pairs = torch.arange(tokens.shape[1]), len(self.bound.pairs)
        passes = rows.each(lambda some: compute(tokens[:, some], names), items, n_pairs)
        return torch.cat([made.detach().cpu() for _, made in passes])

    def _changes(self, tokens: Tensor) -> Tensor:
        """The corrupted words' embeddings less the clean prompts'; exactly 0 where they are the same."""
        return self._embed[tokens[:, :, self.first :]] - self._clean_embedded

    def _end(self, sites: Mapping[tuple[Site, int], Tensor], mask: Tensor | None) -> Tensor:
        """What the target is moved to in each clean prompt's run, from the sites' activations in the corrupted runs."""
        return self._patch.end(self._patch.activation(sites), mask)

    def _measure_patched(self, tokens: Tensor, names: Sequence[Number]) -> Float[Tensor, "candidate pair name"]:
        """Numbers that begin at the target's activation in the corrupted run."""
        n = tokens.shape[1]
        mask = self._patch.mask(tokens)
        with torch.no_grad():
            sites = self._activations(self._changes(tokens))
        self.cost += n * self._prefix_cost
        start, end = self._patch.start, self._end(sites, mask)
        numbers: dict[Number, Tensor] = {}
        if "ap" in names or "curve" in names:
            with torch.no_grad():
                numbers["ap"] = self._patch.value(end, mask) - self._unpatched[:, None]
            self.cost += n * self._suffix_cost
        if "curve" in names:
            with torch.no_grad():
                bends = torch.stack(
                    [
                        self._patch.value(start + alpha * (end - start), mask)
                        - self._unpatched[:, None]
                        - alpha * numbers["ap"]
                        for alpha in ALPHAS
                    ]
                )
            self.cost += len(ALPHAS) * n * self._suffix_cost
            numbers["curve"] = bends.gather(0, bends.abs().argmax(0, keepdim=True))[0]
        if "ig" in names:
            numbers["ig"] = self._patch.integrate(sites, end, mask, NODES, self._passes.gradient)
            self.cost += 3 * NODES * n * self._suffix_cost
        return torch.stack([numbers[name].T for name in names], -1)

    def _whole(self, tokens: Tensor, names: Sequence[Number]) -> Float[Tensor, "candidate pair name"]:
        """Numbers of the whole model's run on the corrupted prompts."""
        n_given, n = tokens.shape[:2]
        self.cost += n * n_given
        numbers = self._whole_runs.numbers(tokens, names)
        return torch.stack([numbers[str(name)].T for name in names], -1)
