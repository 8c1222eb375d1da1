"""What one corrupted prompt is worth: its effects in several clean prompts' runs to one number, in logits, to maximise.

In logits and never as a quotient by the gap: a search that may make the gap small does, and reports quotients in the
thousands for effects below one logit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from igap.counterfactual.evaluation import Evaluator, Measure
from igap.counterfactual.proposals import Floats
from igap.counterfactual.space import Candidate

Sign = Literal["drop", "raise", "abs"]
"""Whether the patch should lower F, raise it, or either."""
Aggregate = Literal["mean", "cvar", "min"]
"""Over clean prompts: the mean, the mean of the worst quarter, the worst."""

_TAIL = 0.25


@dataclass(frozen=True)
class Objective:
    """What is searched for; `disagreement` has no sign of its own and takes `abs`."""

    measure: Measure = "ap"
    sign: Sign = "abs"
    aggregate: Aggregate = "mean"

    def effects(self, evaluator: Evaluator, candidates: Sequence[Candidate]) -> Float[Tensor, "candidate pair"]:
        """Of each candidate in each clean prompt's run, in logits."""
        return evaluator.effects(candidates, self.measure)

    def of(self, effects: Float[Tensor, "candidate pair"]) -> Floats:
        """The candidates' worth in logits."""
        return values(effects, self.sign, self.aggregate).double().numpy()

    def gains(self, evaluator: Evaluator, candidate: Candidate) -> list[Floats]:
        """First-order gains of every option of every slot; those of AP, which also rank IG's words about as well."""
        effects = evaluator.effects([candidate])
        by_slot = evaluator.gains(candidate, weights(effects, self.sign, self.aggregate)[0])
        return [np.asarray(gain.double().numpy()) for gain in by_slot]


def values(effects: Float[Tensor, "candidate pair"], sign: Sign, aggregate: Aggregate) -> Float[Tensor, " candidate"]:
    """Each candidate's worth in logits. `abs` takes the sign of the mean effect, one for all clean prompts.

    Differentiable.
    """
    signs = {"drop": -torch.ones_like(effects[:, :1]), "raise": torch.ones_like(effects[:, :1])}
    signed = effects * (signs[sign] if sign in signs else effects.detach().mean(1, keepdim=True).sign())
    if aggregate == "mean":
        return signed.mean(1)
    n = 1 if aggregate == "min" else max(1, round(_TAIL * effects.shape[1]))
    return signed.topk(n, dim=1, largest=False).values.mean(1)


def weights(
    effects: Float[Tensor, "candidate pair"], sign: Sign, aggregate: Aggregate
) -> Float[Tensor, "candidate pair"]:
    """How much the worth grows with each effect: its gradient."""
    leaf = effects.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(values(leaf, sign, aggregate).sum(), leaf)
    return gradient
