"""Prompts near the best one: one word changed, a few of its words alone, and its words that suffice."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor

from igap.counterfactual.config import Constraints
from igap.counterfactual.history import Floats
from igap.counterfactual.objective.cache import CachedEvaluator
from igap.counterfactual.objective.objective import Objective
from igap.counterfactual.session import SearchSession
from igap.counterfactual.spaces.base import BoundSpace, Candidate, Space
from igap.counterfactual.trials.study import EvaluatedTrial
from igap.counterfactual.validation.results import (
    BestByEditCount,
    PrunedPrompt,
    Rejection,
    SingleEdit,
    SingleEdits,
)
from igap.errors.missing import Missing

SINGLE_EDITS = 2000
"""One-word changes of the best that are evaluated at most: those with the largest first-order scores,
or drawn where there are none."""
ENOUGH = 0.95
"""Share of the best value that its pruned form must keep."""
LOOKED_AT = 2000
"""Trials, the best ones, among which those with few edits are looked for."""
ROUNDING = 1e-6
"""Share of the best value by which another must be larger to be better."""

Evaluate = Callable[[Sequence[Tensor]], Floats]
"""Values, in F's unit, of corrupted prompts: each `[pair, pos]`, a row a clean prompt."""
Judge = Callable[[Candidate, Sequence[int]], Rejection]
"""Why the search could not give a candidate's words in these slots, the clean prompt's in all others."""


def evaluate_single_edits(
    session: SearchSession,
    bound: BoundSpace,
    objective: Objective,
    evaluator: CachedEvaluator,
    best: Candidate,
    value: float,
) -> SingleEdits:
    """The one-word changes of the best candidate, whose own value is `value`.

    Changes with too many edits are evaluated and not allowed. Constraints are checked where a change is better than the
    best only.
    """
    space = session.space
    edits = [(slot, option) for slot, size in enumerate(space.sizes) for option in range(size) if option != best[slot]]
    if len(edits) > SINGLE_EDITS:
        scores = objective.first_order_scores(evaluator.evaluator, best)
        if not objective.follows_gradient:  # scores are all 0
            np.random.default_rng(session.seed).shuffle(edits)
        edits = sorted(edits, key=lambda edit: -scores[edit[0]][edit[1]])[:SINGLE_EDITS]
    n_possible = sum(space.sizes) - len(space.sizes)
    if not edits:
        return SingleEdits((), n_possible, 0, Missing("no slot has another option"))
    candidates = [(*best[:slot], option, *best[slot + 1 :]) for slot, option in edits]
    values = evaluator.objective_values(bound.tokens(candidates), objective)
    allowed = np.array([space.is_allowed(candidate) for candidate in candidates])
    promising = np.flatnonzero(allowed & (values > value + ROUNDING * abs(value)))
    if len(promising):
        tokens = bound.tokens([candidates[i] for i in promising])
        allowed[promising[_out_of_bounds(session, evaluator, tokens)]] = False
    rows = [
        SingleEdit(space.slots[slot].name, space.slots[slot].options[option], float(v), bool(may))
        for (slot, option), v, may in zip(edits, values, allowed, strict=True)
    ]
    allowed_values = [row.value for row in rows if row.allowed]
    return SingleEdits(
        edits=tuple(sorted(rows, key=lambda row: -row.value)),
        n_possible=n_possible,
        n_better=sum(v > value + ROUNDING * abs(value) for v in allowed_values),
        best=max(allowed_values) if allowed_values else Missing("no one-word change is allowed"),
    )


def _out_of_bounds(
    session: SearchSession, evaluator: CachedEvaluator, tokens: Int[Tensor, "pair candidate pos"]
) -> Bool[np.ndarray, " candidate"]:
    """Whether each corrupted prompt violates a constraint of the search."""
    out = np.zeros(tokens.shape[1], dtype=bool)
    if session.objective.constraints != Constraints():
        evaluator.distribution = session.distribution
        for excess in session.objective.violations(evaluator.measure(tokens, session.objective)).values():
            out |= (excess > 0).numpy()
    return out


def judge_subset(
    session: SearchSession, bound: BoundSpace, evaluator: CachedEvaluator, candidate: Candidate, slots: Sequence[int]
) -> Rejection:
    """Why the search could not give the words that this trial's candidate has in some of the slots it changes."""
    kept = set(bound.changed_slots(candidate)) - set(slots)
    if not kept:
        return ""
    if not all(bound.offers_clean(slot) for slot in kept):
        return "outside the space"
    tokens = bound.with_slots(candidate, slots)[:, None]
    return "out of bounds" if _out_of_bounds(session, evaluator, tokens).any() else ""


def find_best_by_edit_count(
    space: Space,
    bound: BoundSpace,
    evaluate: Evaluate,
    judge: Judge,
    best: Candidate,
    value: float,
    ranked: Sequence[EvaluatedTrial],
) -> tuple[BestByEditCount, ...]:
    """The best known prompts with 1, 2 and 3 words changed.

    Each is the better of two: some of the best candidate's words, or the first of the `ranked` trials that changes so
    many. Some of its words, with the clean prompt's elsewhere, may be no candidate of the space: `rejection` says so.
    """
    changed = bound.changed_slots(best)
    trials_by_edits: dict[int, Candidate] = {}
    for trial in ranked:
        candidate = trial.proposal.candidate
        trials_by_edits.setdefault(len(bound.changed_slots(candidate)), candidate)
    steps: list[BestByEditCount] = []
    for n in range(1, min(3, len(changed)) + 1):
        choices = [(best, slots) for slots in itertools.combinations(changed, n)]
        if n in trials_by_edits:
            choices.append((trials_by_edits[n], bound.changed_slots(trials_by_edits[n])))
        values = evaluate([bound.with_slots(candidate, slots) for candidate, slots in choices])
        candidate, slots = choices[int(np.argmax(values))]
        share = float(values.max()) / value if value > 0 else Missing("the best value is not above 0")
        words = ", ".join(_describe_word(space, candidate, slot) for slot in slots)
        steps.append(BestByEditCount(n, float(values.max()), share, words, judge(candidate, slots)))
    return tuple(steps)


def prune_prompt(
    space: Space, bound: BoundSpace, evaluate: Evaluate, judge: Judge, best: Candidate, value: float
) -> PrunedPrompt:
    """The best prompt without words that do next to nothing: taken out one by one, that with the least loss first."""
    left, left_value = list(bound.changed_slots(best)), value
    while len(left) > 1:
        values = evaluate([bound.with_slots(best, [slot for slot in left if slot != out]) for out in left])
        if values.max() < ENOUGH * value:
            break
        left_value = float(values.max())
        del left[int(values.argmax())]
    words = ", ".join(_describe_word(space, best, slot) for slot in left)
    return PrunedPrompt(len(left), left_value, words, judge(best, left))


def _describe_word(space: Space, candidate: Candidate, slot: int) -> str:
    return f"{space.slots[slot].name} := {space.words(candidate)[slot].lstrip('=')}"
