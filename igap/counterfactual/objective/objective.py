"""The value of a corrupted prompt: its numbers in several clean prompts' runs become one number a term.

Effects are in F's unit and never a quotient by the gap: a search that may make the gap small does, and reports
quotients in the thousands for effects below one logit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from igap.counterfactual.config import Aggregate, Constraints, Sign
from igap.counterfactual.history import Floats
from igap.counterfactual.objective.errors import check_estimator, find_estimator, signed_errors
from igap.counterfactual.objective.evaluator import Number
from igap.counterfactual.objective.parts import AnyEvaluator
from igap.counterfactual.spaces.base import Candidate
from igap.counterfactual.target import Target
from igap.counterfactual.terms import MAGNITUDES, SECONDARY, Term, follows_gradient
from igap.engine.metrics import as_metric
from igap.errors import InputError
from igap.errors.arguments import NotNegative, checks_arguments
from igap.metrics import AnyMetric, Metric

_TAIL = 0.25
"""Share of the clean prompts, the worst of them, that `cvar` is the mean over."""
NEEDS: Mapping[Term, tuple[Number, ...]] = {
    "ap": ("ap",),
    "ig": ("ig",),
    "disagreement": ("ap", "ig"),
    "selectivity": ("ap", "mean_other_heads"),
    "curve": ("curve",),
    "fluency": ("fluency",),
    "edits": (),
    "downstream": (),
    "error": (),
}
"""The evaluator's numbers that a term is made of."""
Measurements = Mapping[str, Float[Tensor, "candidate pair *member"]]
"""The evaluator's numbers, and `edits`: slots in which the corrupted prompt differs from the clean one. `percentile`
and `downstream`: how unusual the target's activation is, and what follows it, 0 to 100. `errors`: what
the estimator says of each member of the target less its AP effect."""


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
    estimator: str = "atp"
    """In `error`, what is compared with activation patching: a name of `attribution.estimators.estimators`."""

    def __post_init__(self) -> None:
        """Raises InputError on terms that say nothing with this metric, and on an estimator that is none."""
        if "error" in self.terms:
            find_estimator(self.estimator)
        if "error" in self.terms and self.sign != "abs":
            raise InputError(
                f"sign: got {self.sign} with objective=error, whose value is |estimate - ap|, wanted abs. Leave it out."
            )
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

    def check(self, target: Target, n_layers: int | None = None) -> None:
        """Raises InputError where a term or a constraint is not defined of this target; None: layers are not known."""
        if "error" in self.terms:
            check_estimator(self.estimator, target, self.f, n_layers)
            self._check_members(target)
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

    def _check_members(self, target: Target) -> None:
        """Raises InputError on what is not asked of the members of a target one by one, as `error` is."""
        together = [term for term in self.terms if term not in ("error", *SECONDARY)]
        limit = self.constraints.max_percentile
        if target.single is None and self.asks_downstream:
            bound = self.constraints.max_downstream
            asked = "objective: got downstream" if bound is None else f"constraints.max_downstream: got {bound:g}"
            raise InputError(
                f"{asked} with objective=error of {target.name}, whose members are patched one by one, wanted one "
                "component, after whose patch something follows. Leave it out, or use one head."
            )
        if target.single is None and together:
            raise InputError(
                f"objective: got error and {together[0]} of {target.name}, whose members are examined one by one and "
                f"patched together; wanted one of the two. Use objective=error, or one head."
            )
        if target.single is None and limit is not None:
            raise InputError(
                f"constraints.max_percentile: got {limit:g} with objective=error of {target.name}, wanted one "
                "component, whose activation has a percentile. Use null, or one head."
            )

    @property
    def follows_gradient(self) -> bool:
        """Whether the first term has first-order scores; see `terms.follows_gradient`."""
        return follows_gradient(self.terms, self.estimator)

    @property
    def is_size(self) -> bool:
        """Whether the first term is the size of an effect, of either sign."""
        return self.sign == "abs" and self.terms[0] not in ("selectivity", *MAGNITUDES, *SECONDARY)

    @property
    def asks_downstream(self) -> bool:
        """Whether a term or a constraint is about what follows the patch."""
        return "downstream" in self.terms or self.constraints.max_downstream is not None

    @property
    def needs(self) -> list[Number]:
        """The evaluator's numbers that terms and constraints are made of; `ap` but where only errors are asked for."""
        effects = any(term not in ("error", *SECONDARY) for term in self.terms)
        names: list[Number] = [*(("ap",) if effects else ()), *(name for term in self.terms for name in NEEDS[term])]
        if self.constraints.min_fluency is not None:
            names.append("fluency")
        if (self.constraints.min_corrupted, self.constraints.max_corrupted) != (None, None):
            names.append("corrupted")
        return list(dict.fromkeys(names))

    @property
    def directions(self) -> list[Literal["minimize", "maximize"]]:
        """The direction of each term, as Optuna names it."""
        return ["minimize" if term in ("edits", "downstream") else "maximize" for term in self.terms]

    def effects(self, measurements: Measurements) -> Float[Tensor, "candidate pair"]:
        """The first term's effect in each clean prompt's run, in F's unit, before sign and aggregate."""
        return self._effects(self.terms[0], measurements)

    def values(self, measurements: Measurements) -> Floats:
        """`[candidate, term]`: F's unit, of fluency nats a token, of edits slots, of downstream percent."""
        values = [self.objective_value(term, measurements) for term in self.terms]
        return np.asarray(torch.stack(values, -1).double().numpy())

    def objective_value(self, term: Term, measurements: Measurements) -> Float[Tensor, " candidate"]:
        """One term's value of each candidate."""
        if term in SECONDARY:
            return measurements[term].double().mean(1)
        effects = self._effects(term, measurements)
        if term in MAGNITUDES:
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
        if limits.max_downstream is not None:
            excess["max_downstream"] = measurements["downstream"].mean(1) - limits.max_downstream
        return excess

    def first_order_scores(self, evaluator: AnyEvaluator, candidate: Candidate, term: int = 0) -> list[Floats]:
        """For every option of every slot, the change of a term to first order, in its unit.

        Of the first term it is AP's, in F's unit: other effects rank words about alike. Of the error of AtP it is its
        own, at the member where it is largest; that of another estimator would take second derivatives along all of
        its passes, and is 0. Of fluency it is its own. Of other terms it is 0: they have none.
        """
        if term and self.terms[term] == "fluency":
            return [np.asarray(scores.double().numpy()) for scores in evaluator.fluency_scores(candidate)]
        if term:
            return [np.zeros(size) for size in evaluator.bound.space.sizes]
        if self.terms[0] == "error":
            return self._scores_of_error(evaluator, candidate)
        effects = evaluator.effects([candidate])
        leaf = effects.detach().requires_grad_()
        with torch.enable_grad():
            value = aggregate_over_pairs(leaf * signs(effects, self.sign), self.aggregate)
            (weights,) = torch.autograd.grad(value.sum(), leaf)
        return [np.asarray(scores.double().numpy()) for scores in evaluator.first_order_scores(candidate, weights[0])]

    def _scores_of_error(self, evaluator: AnyEvaluator, candidate: Candidate) -> list[Floats]:
        if not self.follows_gradient:
            return [np.zeros(size) for size in evaluator.bound.space.sizes]
        tokens = evaluator.bound.tokens([candidate])
        errors = signed_errors(evaluator.estimates(tokens, self.estimator), self.estimator)
        place = int(self.worst(errors)[0])
        leaf = errors[:, :, place].requires_grad_()
        with torch.enable_grad():
            (weights,) = torch.autograd.grad(aggregate_over_pairs(leaf.abs(), self.aggregate).sum(), leaf)
        scores = evaluator.first_order_scores(candidate, weights[0], place, of_error=True)
        return [np.asarray(each.double().numpy()) for each in scores]

    def worst(self, errors: Float[Tensor, "candidate pair member"]) -> Int[Tensor, " candidate"]:
        """The place of the member whose error, over the clean prompts, is largest."""
        by_member = aggregate_over_pairs(errors.abs().transpose(1, 2).flatten(0, 1), self.aggregate)
        places: Tensor = by_member.unflatten(0, (len(errors), -1)).argmax(1)
        return places

    def _effects(self, term: Term, measurements: Measurements) -> Float[Tensor, "candidate pair"]:
        if term == "error":
            sizes = measurements["errors"].abs()
            place = self.worst(sizes)[:, None, None].expand(-1, sizes.shape[1], 1)
            effects: Tensor = sizes.gather(2, place)[:, :, 0]
            return effects
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
