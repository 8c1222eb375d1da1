"""What is known about a search's best prompt, as numbers with their units. Written names are in `output/flatten.py`.

The reference pairs are those a search begins with: the pair of the config, and the pair that igap makes for each other
clean prompt. A "value" is the objective's first term over the clean prompts, in F's unit. Under `sign=abs` it is
measured in the direction of the best prompt, so that an effect that turns round is negative.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from igap.analyses.curves import OutputCurves
from igap.attribution.decomposition import Term
from igap.counterfactual.config import Sign
from igap.counterfactual.spaces.base import Candidate
from igap.errors.missing import Missing
from igap.inputs.prompts import PromptPair

Rejection = Literal["", "outside the space", "out of bounds"]
"""Why a prompt made of words of another is none that the search could give, however many its trials: a slot with the
clean prompt's word does not offer it, or the prompt violates a constraint. Empty: the search could give it."""


@dataclass(frozen=True)
class BestPrompt:
    """The best candidate, evaluated anew."""

    value: float
    """F's unit."""
    sign: Sign
    """The direction that all values here are measured in: raise or drop; abs where the objective has no direction."""
    rule: str
    """The candidate in words, "subject := S, place := zoo"."""
    trial: int
    """Its number among the trials."""
    source: str
    """Who proposed it."""
    edits: int
    """Slots in which it differs from a clean prompt."""


@dataclass(frozen=True)
class ReferenceValues:
    """The reference pairs, by the same objective."""

    value: float
    """Over all clean prompts; F's unit."""
    own: float
    """The pair of the config alone; F's unit."""
    swapped: str = ""
    """How the pairs that igap made differ in their two prompts; empty: all pairs were given."""


@dataclass(frozen=True)
class RandomControl:
    """The trials that were drawn at random: what chance finds."""

    n: int
    """Random trials, the search's own start among them."""
    n_feasible: int
    """Those of them that have a value and satisfy the constraints."""
    best: float | Missing
    """The best value of these; F's unit. Under sign=abs in the direction `best_sign`, maybe not the best prompt's."""
    best_sign: Sign
    """The direction of that trial's effect; abs where there is none."""
    mean: float | Missing
    """Their mean value; F's unit."""
    search_at_equal_budget: float | Missing
    """The best of the search's own first trials, as many as were random; F's unit."""
    search_sign: Sign
    """The direction of that trial's effect; abs where there is none."""


@dataclass(frozen=True)
class NeutralEdits:
    """Edits that change no name: another place, verb or object."""

    n: int
    """Edits drawn."""
    p95: float
    """95th percentile of their |value|; F's unit."""


@dataclass(frozen=True)
class WhatFollows:
    """How unusual the residual stream is at the read position, from the component's block on, with the patch."""

    percentile: float
    """How many of a hundred ordinary runs are nowhere as far from the others as the patched run is at its farthest
    layer; mean over the clean prompts, 0 to 100. An ordinary run is above 95 in 5% of cases, however many layers."""
    layer: int
    """The layer after which the patched run is farthest, in the mean over the clean prompts; of equals the first."""
    at_layer: float
    """The percentile of the distance at that layer alone, 0 to 100; mean over the clean prompts."""
    unpatched: float
    """`percentile` of the clean runs without the patch."""


@dataclass(frozen=True)
class Plausibility:
    """How ordinary the best prompts are."""

    fluency: float
    """Mean log-probability of their tokens less that of the clean prompts'; nats a token."""
    percentile: float | Missing
    """Percentile of the component's activation among those in ordinary prompts, 0 to 100 (the most unusual)."""
    downstream: WhatFollows | Missing


@dataclass(frozen=True)
class SingleEdit:
    """The best prompt with one other word."""

    slot: str
    option: str
    value: float
    """F's unit."""
    allowed: bool
    """False: it has too many edits, or is better and violates a constraint."""


@dataclass(frozen=True)
class SingleEdits:
    """The one-word changes of the best prompt."""

    edits: tuple[SingleEdit, ...]
    """The best first."""
    n_possible: int
    """All there are; where they are too many, `edits` has those with the largest first-order scores."""
    n_better: int
    """Allowed edits with a higher value than the best prompt's."""
    best: float | Missing
    """The highest value of an allowed one; F's unit."""


@dataclass(frozen=True)
class BestByEditCount:
    """The best known prompt with so many words changed."""

    edits: int
    value: float
    """F's unit."""
    share: float | Missing
    """Share of the best prompt's value; 1 is all of it."""
    words: str
    """The changed slots, "first := Tom, subject := IO"."""
    rejection: Rejection


@dataclass(frozen=True)
class PrunedPrompt:
    """The best prompt without words that do next to nothing."""

    edits: int
    value: float
    """F's unit."""
    words: str
    rejection: Rejection


@dataclass(frozen=True)
class SlotImportance:
    """What one slot of the best prompt contributes."""

    slot: str
    word: str
    """The option that the best prompt has there."""
    value_without: float
    """The best prompt's value with the clean word there; F's unit."""
    loss: float
    """The best prompt's value less `value_without`; F's unit."""
    variance_share: float | Missing
    """Share of the variance of random trials' values, 0 to 1."""
    variance_share_error: float | Missing
    """Its jackknife standard error."""


@dataclass(frozen=True)
class PairEffects:
    """What `igap run` reports of the component for these pairs, means over them."""

    ap: float
    """AP effect; F's unit."""
    gap: float
    """F(corrupted) - F(clean); F's unit."""
    score: float | Missing
    """Effect / gap, over the pairs whose gap is large enough."""
    n_scored: int
    """Pairs whose gap is large enough."""
    rank: int | Missing
    """Rank of the component's |AP effect| among all heads, from 1."""


@dataclass(frozen=True)
class HeadEffect:
    """One head's AP effects; F's unit."""

    name: str
    """LAYER.HEAD."""
    reference: float
    best: float
    heldout: float | None = None
    """The mean over all clean prompts that the search has not seen; None where that was not asked for."""


@dataclass(frozen=True)
class Deletion:
    """The component's effect when its activation is replaced by its mean over other prompts."""

    ap: float
    """F's unit."""
    injected: float
    """The best pairs' effect less `ap`, F's unit: what the best prompt writes in beside taking out what the component
    gives."""

    @property
    def is_injection(self) -> bool:
        """True if more is written in than taking out does: the effect has the other sign or is over twice as large."""
        return abs(self.injected) > abs(self.ap)


@dataclass(frozen=True)
class EstimatorError:
    """Where an examined estimator is wrong, and how rare that is; effects are means over the clean prompts."""

    component: str
    """The one whose error is largest in the best prompts, at the search's span."""
    estimator: str
    signed: bool
    """Whether its effects have a sign; if not, it is compared with |AP|."""
    estimate: float
    """F's unit."""
    ap: float
    """F's unit."""
    terms: Mapping[Term, float] | Missing
    """AP less the estimate as the sum of the chain's terms, from the estimate to AP; F's unit."""
    ordinary: tuple[float, ...]
    """The objective's value of each ordinary prompt, ascending: trials drawn at random from the space, within the
    constraints; all candidates where all were tried. F's unit."""
    n_at_half: int
    """Ordinary prompts with at least half the best prompts' value."""
    share_at_half: float | Missing
    """Their share, 0 to 1."""
    share_at_half_high: float | Missing
    """What that share is at most in the whole space, with 95% confidence (Clopper and Pearson's upper bound)."""
    percentile: float | Missing
    """Percentage of ordinary prompts with a smaller value than the best prompts', 0 to 100."""

    @property
    def dominant(self) -> Term | Missing:
        """The term with the largest magnitude."""
        if isinstance(self.terms, Missing):
            return self.terms
        return max(self.terms.items(), key=lambda term: abs(term[1]))[0]


@dataclass(frozen=True)
class HeldOut:
    """The best candidate in clean prompts that the search has not seen."""

    n: int
    """Clean prompts."""
    value: float
    """F's unit."""
    share: float | Missing
    """Share of the best value; 1 is all of it."""
    mean: float
    """Mean effect in the direction of the best prompt, whatever the aggregate; F's unit."""
    low: float | Missing
    high: float | Missing
    """Ends of the mean's 95% bootstrap interval; F's unit."""
    reference: float
    """Value of the reference pairs there; F's unit."""


@dataclass(frozen=True)
class RankedPrompt:
    """A trial's prompt."""

    values: tuple[float, ...]
    """A number a term of the objective, in the terms' units."""
    corrupted: str
    """With the first clean prompt."""
    rule: str
    source: str


@dataclass(frozen=True, eq=False)
class Validation:
    """How far to believe a search's best prompt."""

    candidate: Candidate
    pairs: tuple[PromptPair, ...]
    """The best pair of every clean prompt that the candidate changes."""
    leading: str | None
    """The token before every prompt, as text; None: there is none."""
    best: BestPrompt
    reference: ReferenceValues
    random: RandomControl
    neutral: NeutralEdits | Missing
    plausibility: Plausibility
    single_edits: SingleEdits
    by_edit_count: tuple[BestByEditCount, ...]
    """For 1, 2 and 3 words changed."""
    pruned: PrunedPrompt
    slots: tuple[SlotImportance, ...]
    """The slot whose word is worth most first."""
    reference_effects: PairEffects
    best_effects: PairEffects
    deletion: Deletion | Missing
    heads: tuple[HeadEffect, ...]
    """All heads of the model."""
    heldout: HeldOut | Missing
    top: tuple[RankedPrompt, ...]
    """The best prompts of which any two differ in two words at least, best first."""
    front: tuple[RankedPrompt, ...]
    """In a Pareto study, the trials that no other beats in every term."""
    reference_curve: OutputCurves
    """F along the component's path with the reference pairs."""
    best_curve: OutputCurves
    """The same with the best pairs."""
    error: EstimatorError | None = None
    """Of a search for errors alone."""
