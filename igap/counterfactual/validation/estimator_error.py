"""Where an examined estimator is wrong in the best prompts, which step of the chain to AP it is, and how rare that is.

Of AtP and IG the way to AP is the chain of `attribution.decomposition`; of other estimators there is none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from scipy.stats import beta
from torch import Tensor

from igap.attribution.decomposition import CONVERGED, Term
from igap.attribution.integrated_gradients import integrate_path
from igap.counterfactual.objective.cache import CachedEvaluator
from igap.counterfactual.objective.errors import effect_at, find_estimator, settings, signed_errors
from igap.counterfactual.session import SearchSession
from igap.counterfactual.spaces.base import Candidate
from igap.counterfactual.target import Target
from igap.counterfactual.trials.study import EvaluatedTrial
from igap.counterfactual.validation.results import EstimatorError
from igap.engine.baselines import Baseline
from igap.engine.batching import budget_bytes
from igap.engine.open_pairs import OpenPairs, open_pairs
from igap.errors.missing import Missing
from igap.inputs.prompts import PromptPair
from igap.statistics.bootstrap import LEVEL
from igap.vocabulary import BaselineKind


def find_worst(session: SearchSession, evaluator: CachedEvaluator, best: Candidate) -> tuple[Target, Tensor]:
    """The member whose error is largest in the best prompts; its estimate and AP effect in each, `[pair, 2]`."""
    objective, target = session.objective, session.target
    numbers = evaluator.evaluator.estimates(evaluator.evaluator.bound.tokens([best]), objective.estimator)
    place = int(objective.worst(signed_errors(numbers, objective.estimator))[0])
    return replace(target, members=(target.members[place],), every=False), numbers[0, :, :, place]


def explain_error(
    session: SearchSession,
    pairs: Sequence[PromptPair],
    target: Target,
    numbers: Tensor,
    value: float,
    trials: Sequence[EvaluatedTrial],
) -> EstimatorError:
    """All that is reported of the best prompts' error.

    Args:
        session: the search.
        pairs: the best pairs, of the clean prompts that the candidate changes.
        target: the member of the largest error.
        numbers: its estimate and AP effect in each clean prompt, `[pair, 2]`; 0 in those that are not changed.
        value: the objective's, F's unit.
        trials: of the study.
    """
    estimate, ap = numbers.double().mean(0).tolist()
    ordinary = ordinary_values(trials, session.space.size)
    n, k = len(ordinary), sum(each >= value / 2 for each in ordinary)
    in_chunks = any(trial.chunk for trial in trials)
    nothing = Missing(
        "the space was tried in chunks, of which the best alone are kept"
        if in_chunks
        else "no random trial within the constraints"
    )
    exact = n == session.space.size
    return EstimatorError(
        component=target.name,
        estimator=session.objective.estimator,
        signed=find_estimator(session.objective.estimator).method.signed,
        estimate=estimate,
        ap=ap,
        terms=_terms(session, pairs, target, numbers),
        ordinary=ordinary,
        n_at_half=k,
        share_at_half=k / n if n else nothing,
        share_at_half_high=nothing if not n else k / n if exact or k == n else float(beta.ppf(LEVEL, k + 1, n - k)),
        percentile=100 * sum(each < value for each in ordinary) / n if n else nothing,
    )


def ordinary_values(trials: Sequence[EvaluatedTrial], size: int) -> tuple[float, ...]:
    """The errors of ordinary prompts, ascending: those drawn at random, or all where the whole space was tried."""
    whole = len(trials) == size
    ordinary = [each for each in trials if whole or each.proposal.source in ("start", "random")]
    return tuple(sorted(each.value for each in ordinary if each.is_feasible))


def _terms(
    session: SearchSession, pairs: Sequence[PromptPair], target: Target, numbers: Tensor
) -> Mapping[Term, float] | Missing:
    """AP less the estimate, by the terms of the chain; means over the clean prompts, F's unit."""
    name, n = session.objective.estimator, len(numbers)
    if name not in ("atp", "ig", "ig_zero"):
        return Missing(f"the chain to AP begins at atp and ig, not at {name}")
    start, end = numbers.double().mean(0).tolist()
    site, _, _ = target.members[0]
    kept, metric = budget_bytes(session.model.W_E.device, session.memory_gib), session.objective.metric
    with open_pairs(session.model, pairs, sites=(site,), metric=metric, kept_bytes=kept) as opened:
        corrupted = _converge(session, opened, target, "corrupted") / n
        own = _converge(session, opened, target, "zero") / n if name == "ig_zero" else corrupted
    first: Term = "curvature" if name == "atp" else "quadrature"
    terms: dict[Term, float] = {first: own - start}
    if name == "ig_zero":
        terms["baseline"] = corrupted - own
    return {**terms, "interaction": end - corrupted}


def _converge(session: SearchSession, opened: OpenPairs, target: Target, kind: BaselineKind) -> float:
    """The sum over pairs of converged IG to this baseline at a single target."""
    ((site, layer, _),) = target.members
    config = settings(find_estimator("ig"), target, session.objective.f)
    total = 0.0
    for _, contrast in opened.contrasts(Baseline(kind)):
        maps = integrate_path(
            contrast,
            site,
            n_steps="auto",
            tolerance=CONVERGED,
            tolerance_of="gap",
            positions=config.positions.value,
            layers=[layer],
            memory_gib=session.memory_gib,
        )
        total += sum(effect_at(made, target, target.members[0]).item() for made in maps)
    return total
