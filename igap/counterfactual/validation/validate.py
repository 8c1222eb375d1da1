"""How far to believe a search's best candidate: against chance, against harmless edits, on prompts it never saw.

Everything is evaluated anew here. Effects are in F's unit; values are the objective's first term over clean prompts.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from igap.counterfactual.config import Constraints, Sign
from igap.counterfactual.history import Floats, History
from igap.counterfactual.objective.cache import CachedEvaluator
from igap.counterfactual.objective.downstream import clean_streams
from igap.counterfactual.objective.objective import Objective, signs
from igap.counterfactual.samplers.base import draw
from igap.counterfactual.samplers.pareto import front
from igap.counterfactual.session import SearchSession
from igap.counterfactual.spaces.base import KEEP, BoundSpace, Candidate
from igap.counterfactual.spaces.mixed import bind_by_shape, pad_rows
from igap.counterfactual.spaces.template import bind_template, slot_names, template_space
from igap.counterfactual.target import Target
from igap.counterfactual.terms import MAGNITUDES
from igap.counterfactual.trials.study import EvaluatedTrial
from igap.counterfactual.validation.estimator_error import explain_error, find_worst
from igap.counterfactual.validation.importance import slot_importance
from igap.counterfactual.validation.neighbours import (
    LOOKED_AT,
    evaluate_single_edits,
    find_best_by_edit_count,
    judge_subset,
    prune_prompt,
)
from igap.counterfactual.validation.pair_effects import delete, head_effects, measure_pairs, open_at_target, trace
from igap.counterfactual.validation.results import (
    BestPrompt,
    HeldOut,
    NeutralEdits,
    Plausibility,
    RandomControl,
    RankedPrompt,
    ReferenceValues,
    Validation,
    WhatFollows,
)
from igap.errors import InputError
from igap.errors.missing import Missing
from igap.inputs.prompts import PromptPair
from igap.statistics.bootstrap import mean_intervals

NEUTRAL = 64
"""Neutral edits that are drawn."""
TOP = 20
"""Prompts in `Validation.top`, at most."""
_NEUTRAL_SLOTS = {"place": "places", "verb": "verbs", "object": "objects", "other": "objects"}
"""Slots whose words are no names, and the list of other words for each."""


def validate(session: SearchSession, trials: Sequence[EvaluatedTrial], *, heldout_heads: bool = False) -> Validation:
    """How far to believe the best of these trials.

    Args:
        session: the search, on a frozen model; what is evaluated here counts in its cost.
        trials: the trials to choose from, in order.
        heldout_heads: whether every head is patched in the best prompts of the held-out clean prompts, too.

    Raises:
        InputError: no trial has a value within the constraints; the message counts what each constraint removed.
    """
    ranked = sorted((trial for trial in trials if trial.is_feasible), key=lambda trial: -trial.value)
    if not ranked:
        raise InputError(_explain_no_trial(trials))
    bound = session.bound.unshare()
    winner = next((trial for trial in ranked if bound.changed_slots(trial.proposal.candidate)), None)
    if winner is None:
        raise InputError("search: all corrupted prompts tried are the clean ones. Offer other words, or more trials.")
    best = winner.proposal.candidate
    evaluator = session.cached_evaluator(bound)
    # Constraints choose among trials. Here every prompt gets its value, and their numbers need not be computed. Under
    # sign=abs all are measured in the winner's direction: what turns the effect round does not add to it.
    objective = replace(session.objective, constraints=Constraints())
    effects = objective.effects(evaluator.measure(bound.tokens([best]), objective))
    if objective.sign == "abs" and objective.terms[0] not in MAGNITUDES:
        objective = replace(objective, sign="raise" if effects.mean() > 0 else "drop")

    def evaluate(rows: Sequence[Int[Tensor, "pair pos"]]) -> Floats:
        return evaluator.objective_values(torch.stack(list(rows), 1), objective)

    judge = partial(judge_subset, session, bound, evaluator)
    reference = _made_by_hand(session, bound)
    value, reference_value = map(float, evaluate([bound.with_slots(best, range(len(bound.space.slots))), reference]))
    own = objective.effects(evaluator.measure(reference[:, None], objective))
    pairs = _best_pairs(bound, best)
    turn = {"raise": 1, "drop": -1, "abs": 0}[objective.sign]
    same_direction = [trial for trial in ranked[:LOOKED_AT] if turn * sum(trial.effects) >= 0]
    target, error = session.target, None
    if objective.terms[0] == "error":
        target, numbers = find_worst(session, evaluator, best)
        error = explain_error(session, pairs, target, numbers, value, trials)
    with open_at_target(session, pairs, target) as opened:
        best_effects, best_grid = measure_pairs(opened, target)
        best_curve = trace(opened, target)
        # Where the best prompts differ, as what they write in; other spans are the same positions in all prompts.
        deletion = delete(opened, target, best_effects.ap, session.ordinary) if target.span == "diff" else None
    with open_at_target(session, session.bound.pairs, target) as opened:
        reference_effects, reference_grid = measure_pairs(opened, target)
        reference_curve = trace(opened, target)
        if deletion is None:
            deletion = delete(opened, target, best_effects.ap, session.ordinary)
    heldout_grid = _patch_held_out(session, best, target, torch.zeros_like(best_grid)) if heldout_heads else None
    return Validation(
        candidate=best,
        pairs=pairs,
        leading=session.leading,
        best=BestPrompt(
            value=value,
            sign=objective.sign,
            rule=session.space.rule(best),
            trial=next(i for i, trial in enumerate(trials) if trial is winner),
            source=winner.proposal.source,
            edits=len(bound.changed_slots(best)),
        ),
        reference=ReferenceValues(reference_value, (own * signs(own, objective.sign))[0, 0].item(), session.swapped),
        random=_compare_with_random(trials),
        neutral=_evaluate_neutral_edits(session, objective),
        plausibility=_judge_plausibility(session, bound, evaluator, best, target),
        single_edits=evaluate_single_edits(session, bound, objective, evaluator, best, value),
        by_edit_count=find_best_by_edit_count(session.space, bound, evaluate, judge, best, value, same_direction),
        slots=slot_importance(bound, evaluate, best, value, trials),
        pruned=prune_prompt(session.space, bound, evaluate, judge, best, value),
        reference_effects=reference_effects,
        best_effects=best_effects,
        deletion=deletion,
        error=error,
        heads=head_effects(reference_grid, best_grid, heldout_grid),
        heldout=_evaluate_held_out(session, objective, best, value, target),
        top=_select_diverse(session, ranked),
        front=_pareto_front(session, trials),
        reference_curve=reference_curve,
        best_curve=best_curve,
    )


def _made_by_hand(session: SearchSession, bound: BoundSpace) -> Int[Tensor, "pair pos"]:
    """The corrupted prompts of the clean prompts' own pairs."""
    return pad_rows([session.tokenize(pair).corrupted[0] for pair in bound.pairs])


def _best_pairs(bound: BoundSpace, best: Candidate) -> tuple[PromptPair, ...]:
    """The best pair of every clean prompt that the candidate changes."""
    return tuple(
        PromptPair(pair.clean, text, pair.answer, pair.distractor, pair.min_gap, bos=pair.bos)
        for pair, text in zip(bound.pairs, bound.texts(best), strict=True)
        if text != pair.clean
    )


def _patch_held_out(
    session: SearchSession, best: Candidate, target: Target, nothing: Float[Tensor, "layer head"]
) -> Float[Tensor, "layer head"] | None:
    """The mean effect of every head over the held-out prompts; in those that the candidate does not change it is 0."""
    if session.heldout is None:
        return None
    bound = session.heldout.unshare()
    pairs = _best_pairs(bound, best)
    if not pairs:
        return nothing
    with open_at_target(session, pairs, target) as opened:
        grid: Tensor = measure_pairs(opened, target)[1]
    return grid * (len(pairs) / len(bound.pairs))


def _explain_no_trial(trials: Sequence[EvaluatedTrial]) -> str:
    failed = [trial.reason for trial in trials if trial.is_failed]
    violated = Counter(name for trial in trials for name in trial.violated)
    parts = [f"constraints.{name} removed {n}" for name, n in violated.most_common()]
    parts += [f"{len(failed)} failed ({failed[0]})"] if failed else []
    return (
        f"search.space: none of {len(trials)} trials has a value within the bounds: {'; '.join(parts) or 'no trial'}. "
        "Loosen a bound, offer other words, or set a larger search.until."
    )


def _compare_with_random(trials: Sequence[EvaluatedTrial]) -> RandomControl:
    """The best of the random trials, and of as many of the search's own first ones."""
    random = [trial for trial in trials if trial.proposal.source in ("start", "random")]
    chosen = [trial for trial in trials if trial.proposal.source != "random"]
    feasible = [trial for trial in random if trial.is_feasible]
    own = [trial for trial in chosen[: len(random)] if trial.is_feasible]
    nothing = Missing("no random trial" if not random else "no random trial within the constraints")
    equal_budget: float | Missing
    if not any(trial.proposal.source == "random" for trial in random):
        own, equal_budget = [], Missing("no random trials beside the search's own start")
    elif not chosen:
        equal_budget = Missing("no trials but random ones")
    else:
        equal_budget = max(trial.value for trial in own) if own else Missing("no trial within the constraints")
    return RandomControl(
        n=len(random),
        n_feasible=len(feasible),
        best=max(trial.value for trial in feasible) if feasible else nothing,
        best_sign=_direction_of_best(feasible),
        mean=float(np.mean([trial.value for trial in feasible])) if feasible else nothing,
        search_at_equal_budget=equal_budget,
        search_sign=_direction_of_best(own),
    )


def _direction_of_best(trials: Sequence[EvaluatedTrial]) -> Sign:
    if not trials:
        return "abs"
    return "raise" if sum(max(trials, key=lambda trial: trial.value).effects) > 0 else "drop"


def _evaluate_neutral_edits(session: SearchSession, objective: Objective) -> NeutralEdits | Missing:
    """Draw edits that change nothing that matters, and take the 95th percentile of their |value|.

    Another place, verb or object; in a template that is none of igap's, slots in which the pairs' two prompts agree.
    """
    template, tokenizer = session.space.template, session.model.tokenizer
    if template is None:
        return Missing("no template with a place, a verb or an object")
    words: dict[str, list[str]] = {
        name: [_NEUTRAL_SLOTS[name]] for name in slot_names(template) if name in _NEUTRAL_SLOTS
    }
    if session.neutral is not None:
        offered = {slot.name: [word for word in slot.options if word[0] != "="] for slot in session.space.slots}
        words = {name: offered[name] for name in session.neutral if offered.get(name)}
    if not words:
        known = (
            "a place, a verb or an object"
            if session.neutral is None
            else "a slot with words that the pairs leave alone"
        )
        return Missing(f"no template with {known}")
    lists = {name: [KEEP, *words.get(name, ())] for name in slot_names(template)}
    pairs, prepend_bos = session.bound.pairs, bool(session.model.cfg.default_prepend_bos)
    try:
        beside = pairs if len(session.bound.groups) > 1 else None
        space = template_space(template, lists, pairs[0], tokenizer, prepend_bos=prepend_bos, beside=beside)
    except InputError as error:  # no word of a list fits
        return Missing(str(error))
    neutral = bind_by_shape(
        bind_template, space, pairs, tokenizer, prepend_bos=prepend_bos, several=session.objective.f.takes_several,
        device=session.bound.clean.device,
    )  # fmt: skip
    drawn = draw(History(space, (), np.zeros((0, 1))), NEUTRAL, np.random.default_rng(session.seed))
    tokens = neutral.tokens([proposal.candidate for proposal in drawn])
    values = session.cached_evaluator(neutral).objective_values(tokens, objective)
    return NeutralEdits(len(drawn), float(np.quantile(np.abs(values), 0.95)))


def _judge_plausibility(
    session: SearchSession, bound: BoundSpace, evaluator: CachedEvaluator, best: Candidate, target: Target
) -> Plausibility:
    """How fluent the best prompts are, and how unusual the target's activation; `evaluator` is of the search's own."""
    tokens = bound.tokens([best])
    if target != session.target:
        evaluator = session.cached_evaluator(bound, target)
    fluency = evaluator.numbers(tokens, ["fluency"])["fluency"].mean().item()
    distribution = session.distribution
    if target != session.target:
        distribution = session.distribution_of(evaluator.evaluator)
    downstream = session.downstream_of(evaluator.evaluator)
    if distribution is None or downstream is None:
        nothing = Missing("too few ordinary prompts of this kind")
        return Plausibility(fluency, nothing, nothing)
    percentile = distribution.percentile(evaluator.evaluator, tokens).mean().item()
    patched = evaluator.evaluator.later_streams(tokens, lambda streams: streams)[0]
    unpatched = clean_streams(evaluator.evaluator)
    place = int(downstream.standardize(patched).mean(0).argmax())
    return Plausibility(
        fluency,
        percentile,
        WhatFollows(
            percentile=downstream.of_runs(patched).mean().item(),
            layer=downstream.first + place,
            at_layer=downstream.by_layer(patched).mean(0)[place].item(),
            unpatched=downstream.of_runs(unpatched).mean().item(),
        ),
    )


def _evaluate_held_out(
    session: SearchSession, objective: Objective, best: Candidate, value: float, target: Target
) -> HeldOut | Missing:
    """The best candidate in clean prompts that the search has not seen. An effect that turns round is negative.

    `target`: the search's; of several examined components the one found.
    """
    if session.heldout is None:
        return Missing("heldout.n=0")
    bound = session.heldout.unshare()
    candidate = bound.with_slots(best, range(len(bound.space.slots)))
    tokens = torch.stack([candidate, _made_by_hand(session, bound)], 1)
    measurements = session.cached_evaluator(bound, target).measure(tokens, objective)
    values = objective.values(measurements)[:, 0]
    effects = objective.effects(measurements)
    signed = effects if objective.terms[0] in MAGNITUDES else effects * signs(effects, objective.sign)
    interval = mean_intervals(signed[:1].double().numpy().T, seed=session.seed)
    low, high = (
        float(end[0]) if np.isfinite(end[0]) else Missing("an interval needs two held-out prompts")
        for end in (interval.low, interval.high)
    )
    if objective.aggregate != "mean":
        share: float | Missing = Missing(f"with aggregate={objective.aggregate} it depends on the number of prompts")
    else:
        share = float(values[0]) / value if value > 0 else Missing("the best value is not above 0")
    return HeldOut(len(bound.pairs), float(values[0]), share, signed[0].mean().item(), low, high, float(values[1]))


def _select_diverse(session: SearchSession, ranked: Sequence[EvaluatedTrial]) -> tuple[RankedPrompt, ...]:
    """The best candidates of which any two differ in two words at least; in spaces of one slot, in one."""
    chosen: list[EvaluatedTrial] = []
    apart = min(2, len(session.space.slots))
    for trial in ranked:
        if len(chosen) == TOP:
            break
        if all(_n_different(trial.proposal.candidate, other.proposal.candidate) >= apart for other in chosen):
            chosen.append(trial)
    return tuple(_ranked_prompt(session, trial) for trial in chosen)


def _n_different(candidate: Candidate, other: Candidate) -> int:
    return sum(a != b for a, b in zip(candidate, other, strict=True))


def _pareto_front(session: SearchSession, trials: Sequence[EvaluatedTrial]) -> tuple[RankedPrompt, ...]:
    """Trials that no other beats in every term; none where there is one term."""
    if len(session.objective.terms) == 1:
        return ()
    return tuple(_ranked_prompt(session, trials[i]) for i in front(session.trials.history(trials).points))


def _ranked_prompt(session: SearchSession, trial: EvaluatedTrial) -> RankedPrompt:
    candidate = trial.proposal.candidate
    return RankedPrompt(
        values=trial.values,
        corrupted=session.bound.texts(candidate)[0],
        rule=session.space.rule(candidate),
        source=trial.proposal.source,
    )
