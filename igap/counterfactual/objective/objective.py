"""The value of a corrupted prompt: its numbers in several clean prompts' runs become one number a term.

Effects are in F's unit and never a quotient by the gap: a search that may make the gap small does, and reports
quotients in the thousands for effects below one logit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from igap.arguments import NotNegative, checks_arguments
from igap.counterfactual.config import Aggregate, Constraints, Sign, Term
from igap.counterfactual.history import Floats
from igap.counterfactual.objective.evaluator import Evaluator, Number
from igap.counterfactual.spaces.base import Candidate
from igap.counterfactual.target import Target
from igap.engine.metrics import as_metric
from igap.errors import InputError
from igap.metrics import AnyMetric, Metric

_TAIL = 0.25
"""Share of the clean prompts, the worst of them, that `cvar` is the mean over."""
_NEEDS: Mapping[Term, tuple[Number, ...]] = {
    "ap": ("ap",),
    "ig": ("ig",),
    "disagreement": ("ap", "ig"),
    "selectivity": ("ap", "mean_other_heads"),
    "curve": ("curve",),
    "fluency": ("fluency",),
    "edits": (),
}
Measurements = Mapping[str, Float[Tensor, "candidate pair"]]
"""The evaluator's numbers, and `edits`: slots in which the corrupted prompt differs from the clean one."""


@checks_arguments
@dataclass(frozen=True)
class Objective:
    """What a search maximises: one term, or several for a Pareto study."""

    terms: tuple[Term, ...] = ("ap",)
    sign: Sign = "abs"
    aggregate: Aggregate = "mean"
    penalty: NotNegative = 1.0
    """In `selectivity`, how much one unit of the other heads' mean |AtP| takes away."""
    constraints: Constraints = field(default_factory=Constraints)
    metric: AnyMetric = "logit_diff"
    """F, which effects are changes of. Constraints are of the logit difference, whatever it is."""

    def __post_init__(self) -> None:
        """Raises InputError on terms that say nothing with this metric."""
        if not self.f.at_minimum:
            return
        if "selectivity" in self.terms:
            raise InputError(
                f"metric: got {self.f.name} with selectivity, but it is least on the clean prompt, where the other "
                "heads' AtP is 0. Use metric=logprob, or objective=ap."
            )
        if self.sign == "drop" and "ap" in self.terms:
            raise InputError(
                f"sign: got drop with metric={self.f.name}, which is least on the clean prompt, so that no patch "
                "lowers it. Use sign=raise, or abs."
            )

    @property
    def f(self) -> Metric:
        """`metric` as an object."""
        return as_metric(self.metric)

    @property
    def unit(self) -> str:
        """Effects' unit."""
        return self.f.unit

    def check(self, target: Target) -> None:
        """Raises InputError where a term or a constraint is not defined of this target."""
        if "selectivity" in self.terms and target.sites not in (("heads",), ("neurons",)):
            raise InputError(
                f"objective: got selectivity of {target.name}, wanted it of a head or a neuron, whose effect can stand "
                "beside the mean over the other heads. Use objective=ap."
            )
        if "selectivity" in self.terms and target.single is None:
            raise InputError(
                f"objective: got selectivity of {target.name}, wanted it of one component: the mean over the other "
                "heads is of one at a time, the effect of a set is not. Use objective=ap."
            )
        if "disagreement" in self.terms and target.ig_is_ap:
            raise InputError(
                f"objective: got disagreement of {target.name}, whose IG is its AP, since nothing else moves along the "
                "path. Use objective=ap, or one head of it."
            )
        if self.constraints.max_percentile is not None and target.span == "diff":
            raise InputError(
                f"constraints.max_percentile: got {self.constraints.max_percentile:g} with {target.name}, whose "
                "positions differ from prompt to prompt, so that no distribution is theirs. Use null, or another span."
            )

    @property
    def needs(self) -> list[Number]:
        """The numbers that terms and constraints are made of; `ap` is always among them."""
        names: list[Number] = ["ap", *(name for term in self.terms for name in _NEEDS[term])]
        if self.constraints.min_fluency is not None:
            names.append("fluency")
        if (self.constraints.min_corrupted, self.constraints.max_corrupted) != (None, None):
            names.append("corrupted")
        return list(dict.fromkeys(names))

    @property
    def directions(self) -> list[Literal["minimize", "maximize"]]:
        """The direction of each term, as Optuna names it."""
        return ["minimize" if term == "edits" else "maximize" for term in self.terms]

    def effects(self, measurements: Measurements) -> Float[Tensor, "candidate pair"]:
        """The first term's effect in each clean prompt's run, in F's unit, before sign and aggregate."""
        return self._effects(self.terms[0], measurements)

    def values(self, measurements: Measurements) -> Floats:
        """`[candidate, term]`: F's unit, of fluency nats a token, of edits slots."""
        values = [self.objective_value(term, measurements) for term in self.terms]
        return np.asarray(torch.stack(values, -1).double().numpy())

    def objective_value(self, term: Term, measurements: Measurements) -> Float[Tensor, " candidate"]:
        """One term's value of each candidate."""
        if term in ("fluency", "edits"):
            return measurements[term].double().mean(1)
        effects = self._effects(term, measurements)
        if term == "disagreement":
            return aggregate_over_pairs(effects, self.aggregate)
        signed = effects * signs(effects, self.sign)
        if term == "selectivity":
            signed = signed - self.penalty * measurements["mean_other_heads"]
        return aggregate_over_pairs(signed, self.aggregate)

    def violations(self, measurements: Measurements) -> dict[str, Float[Tensor, " candidate"]]:
        """By how much each constraint is violated, in its own unit; 0 or less: it is satisfied."""
        limits, excess = self.constraints, {}
        if limits.min_corrupted is not None:
            excess["min_corrupted"] = limits.min_corrupted - measurements["corrupted"].mean(1)
        if limits.max_corrupted is not None:
            excess["max_corrupted"] = measurements["corrupted"].mean(1) - limits.max_corrupted
        if limits.min_fluency is not None:
            excess["min_fluency"] = limits.min_fluency - measurements["fluency"].mean(1)
        if limits.max_percentile is not None:
            excess["max_percentile"] = measurements["percentile"].mean(1) - limits.max_percentile
        return excess

    def first_order_scores(self, evaluator: Evaluator, candidate: Candidate, term: int = 0) -> list[Floats]:
        """For every option of every slot, the change of a term to first order, in its unit.

        Of the first term it is AP's, in F's unit: other effects rank words about alike. Of fluency it is its own. Of
        other terms it is 0: they have none.
        """
        if term and self.terms[term] == "fluency":
            return [np.asarray(scores.double().numpy()) for scores in evaluator.fluency_scores(candidate)]
        if term:
            return [np.zeros(size) for size in evaluator.bound.space.sizes]
        effects = evaluator.effects([candidate])
        leaf = effects.detach().requires_grad_()
        with torch.enable_grad():
            value = aggregate_over_pairs(leaf * signs(effects, self.sign), self.aggregate)
            (weights,) = torch.autograd.grad(value.sum(), leaf)
        return [np.asarray(scores.double().numpy()) for scores in evaluator.first_order_scores(candidate, weights[0])]

    @staticmethod
    def _effects(term: Term, measurements: Measurements) -> Float[Tensor, "candidate pair"]:
        if term == "disagreement":
            return (measurements["ig"] - measurements["ap"]).abs()
        return measurements[term if term in ("ig", "curve") else "ap"]


def signs(effects: Float[Tensor, "candidate pair"], sign: Sign) -> Float[Tensor, "candidate #pair"]:
    """The factor of the effects: under `abs` the sign of each candidate's mean, one for all clean prompts."""
    if sign == "abs":
        return effects.mean(1, keepdim=True).sign()
    return torch.full_like(effects[:, :1], 1.0 if sign == "raise" else -1.0)


def aggregate_over_pairs(values: Float[Tensor, "candidate pair"], aggregate: Aggregate) -> Float[Tensor, " candidate"]:
    """Over clean prompts; NaN where one of the values is not finite. Differentiable."""
    if aggregate == "mean":
        return values.mean(1)
    n = 1 if aggregate == "min" else max(1, round(_TAIL * values.shape[1]))
    worst = values.topk(n, dim=1, largest=False).values.mean(1)
    return worst.masked_fill(~values.isfinite().all(1), float("nan"))  # topk takes NaN for the largest
