"""An evaluator of clean prompts that do not share passes: of several shapes, or too many for the memory allowed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from igap.counterfactual.objective.evaluator import Evaluator, Number, Numbers
from igap.counterfactual.objective.passes import plan_passes
from igap.counterfactual.spaces.base import BoundSpace, Candidate
from igap.counterfactual.spaces.mixed import pad_rows
from igap.counterfactual.target import Target
from igap.engine.metrics import as_metric, read_out
from igap.inputs.prompts import tokenize
from igap.metrics import AnyMetric


@dataclass(frozen=True, eq=False)
class Part:
    """Some of the clean prompts."""

    where: list[int]
    """Their indices."""
    evaluator: Evaluator

    def tokens(self, tokens: Int[Tensor, "corrupted candidate pos"]) -> Int[Tensor, "_corrupted candidate _pos"]:
        """Those of its clean prompts, without what only makes all of one length."""
        own = self.evaluator.bound
        rows = tokens if len(tokens) == 1 else tokens[self.where]
        return rows[: own.n_corrupted, :, : own.clean.shape[1]]


class PartedEvaluator:
    """The numbers of an `Evaluator`, of clean prompts in parts, each with an evaluator of its own."""

    def __init__(self, bound: BoundSpace, parts: Sequence[Part]) -> None:
        """`bound` is the space for all the clean prompts."""
        self.bound, self.parts = bound, tuple(parts)
        first = parts[0].evaluator
        self.target, self.dtype = first.target, first.dtype
        self.route, self.why_route = first.route, first.why_route

    @property
    def cost(self) -> float:
        """Forward equivalents."""
        return sum(part.evaluator.cost for part in self.parts)

    @property
    def where(self) -> Bool[Tensor, "pair pos"] | None:
        """The positions that are patched; None: all, or those of each candidate's own."""
        masks = dict[int, Tensor]()
        for part in self.parts:
            if part.evaluator.where is None:
                return None
            masks |= dict(zip(part.where, part.evaluator.where.int(), strict=True))
        return pad_rows([masks[pair] for pair in range(len(self.bound.pairs))]) > 0

    def numbers(
        self, tokens: Int[Tensor, "corrupted candidate pos"], names: Sequence[Number], *, merge: bool = False
    ) -> Numbers:
        """As `Evaluator` has it."""
        made = [part.evaluator.numbers(part.tokens(tokens), names, merge=merge) for part in self.parts]
        return {name: self._together([numbers[name] for numbers in made]) for name in names}

    def estimates(
        self, tokens: Int[Tensor, "corrupted candidate pos"], estimator: str
    ) -> Float[Tensor, "candidate pair 2 member"]:
        """As `Evaluator` has it."""
        return self.by_part(lambda part: part.evaluator.estimates(part.tokens(tokens), estimator))

    def effects(self, candidates: Sequence[Candidate], name: Number = "ap") -> Float[Tensor, "candidate pair"]:
        """As `Evaluator` has it."""
        return self.by_part(lambda part: part.evaluator.effects(candidates, name))

    def first_order_scores(
        self,
        candidate: Candidate,
        weights: Float[Tensor, " pair"],
        member: int | None = None,
        *,
        of_error: bool = False,
    ) -> list[Float[Tensor, " _option"]]:
        """As `Evaluator` has it."""
        made = [
            part.evaluator.first_order_scores(candidate, weights[part.where], member, of_error=of_error)
            for part in self.parts
        ]
        return [torch.stack(scores).sum(0) for scores in zip(*made, strict=True)]

    def fluency_scores(self, candidate: Candidate) -> list[Float[Tensor, " _option"]]:
        """As `Evaluator` has it."""
        shares = [len(part.where) / len(self.bound.pairs) for part in self.parts]
        made = [part.evaluator.fluency_scores(candidate) for part in self.parts]
        return [
            torch.stack([share * own for share, own in zip(shares, scores, strict=True)]).sum(0)
            for scores in zip(*made, strict=True)
        ]

    def later_streams(
        self, tokens: Int[Tensor, "corrupted candidate pos"], reduce: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "candidate pair *number"]:
        """As `Evaluator` has it."""
        return self.by_part(lambda part: part.evaluator.later_streams(part.tokens(tokens), reduce))

    def streams_of_others(self, prompts: Int[Tensor, "prompt pos"]) -> Float[Tensor, "prompt layer d_model"]:
        """As `Evaluator` has it."""
        return self.parts[0].evaluator.streams_of_others(prompts)

    def by_part(self, compute: Callable[[Part], Tensor]) -> Tensor:
        """What is computed of each part `[candidate, pair, ...]`, of all clean prompts in their order."""
        return self._together([compute(part) for part in self.parts])

    def _together(self, made: Sequence[Tensor]) -> Tensor:
        together = made[0].new_empty(len(made[0]), len(self.bound.pairs), *made[0].shape[2:])
        for part, own in zip(self.parts, made, strict=True):
            together[:, part.where] = own
        return together


AnyEvaluator = Evaluator | PartedEvaluator


def make_evaluator(
    model: TransformerBridge,
    bound: BoundSpace,
    target: Target,
    *,
    metric: AnyMetric = "logit_diff",
    memory_gib: float | None = None,
) -> AnyEvaluator:
    """The evaluator of these clean prompts, in parts where they do not share passes.

    A pass with gradients has a row of every clean prompt of a part at least, and so no more of them than memory holds.

    Raises:
        InputError: as `Evaluator` does.
    """
    several = as_metric(metric).takes_several
    made: list[tuple[list[int], BoundSpace]] = []
    for where, group in bound.groups:
        first = tokenize(model, group.pairs[0], several=several)
        readout = read_out([first], group.clean.device, [as_metric(metric)])
        most = plan_passes(model, group.clean.shape[1], group.first, readout, None, memory_gib).gradient.number
        for start in range(0, len(where), most):
            few = range(start, min(start + most, len(where)))
            made.append(([where[i] for i in few], group if len(few) == len(where) else group.select(few)))
    of = partial(Evaluator, model, target=target, metric=metric, memory_gib=memory_gib)
    if len(made) == 1:
        return of(bound)
    return PartedEvaluator(bound, [Part(where, of(own)) for where, own in made])
