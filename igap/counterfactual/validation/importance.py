"""Which slots matter: what each word of the best candidate is worth, and each slot's share of the variance at random.

Optuna's importances are near uniform here, where a slot has many words and few trials share one.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Float64, Int
from scipy.optimize import nnls
from torch import Tensor

from igap.counterfactual.history import Floats
from igap.counterfactual.spaces.base import BoundSpace, Candidate
from igap.counterfactual.trials.study import EvaluatedTrial
from igap.counterfactual.validation.results import SlotImportance
from igap.errors.missing import Missing

SAMPLE = 500
"""Trials whose pairs the shares are estimated from, at most."""


def slot_importance(
    bound: BoundSpace,
    evaluate: Callable[[Sequence[Tensor]], Floats],
    best: Candidate,
    value: float,
    trials: Sequence[EvaluatedTrial],
) -> tuple[SlotImportance, ...]:
    """What each slot of the best prompt contributes, the largest loss first.

    Shares of variance are among the trials that were drawn at random; where all candidates have been tried, among all.
    """
    space, changed = bound.space, bound.changed_slots(best)
    rows = [bound.with_slots(best, [i for i in range(len(space.slots)) if i != slot]) for slot in changed]
    without = dict(zip(changed, map(float, evaluate(rows)), strict=True)) if changed else {}
    exhausted = len(trials) == space.size  # nothing to draw at random
    sample = [
        trial for trial in trials if trial.is_feasible and (exhausted or trial.proposal.source in ("start", "random"))
    ]
    candidates = np.array([trial.proposal.candidate for trial in sample], dtype=np.int64).reshape(-1, len(space.slots))
    shares, errors = variance_shares(candidates, np.array([trial.value for trial in sample]))
    slots = [
        SlotImportance(
            slot=slot.name,
            word=space.words(best)[i],
            value_without=without.get(i, value),
            loss=value - without.get(i, value),
            variance_share=_or_missing(shares[i]),
            variance_share_error=_or_missing(errors[i]),
        )
        for i, slot in enumerate(space.slots)
    ]
    return tuple(sorted(slots, key=lambda slot: -slot.loss))


def _or_missing(share: float) -> float | Missing:
    if np.isfinite(share):
        return float(share)
    return Missing("too few random trials, or their words or values do not vary")


def variance_shares(
    candidates: Int[np.ndarray, "trial slot"], values: Float[np.ndarray, " trial"]
) -> tuple[Float64[np.ndarray, " slot"], Float64[np.ndarray, " slot"]]:
    """Each slot's share of the variance of random trials' values, 0 to 1, and its jackknife standard error.

    Variance components of all slots at once (Haseman-Elston regression): two trials' values vary together by the
    components of those slots in which they have the same word. What no slot alone explains, words that matter only
    together, is in no share, so that these sum to 1 at most. NaN for a slot in which no two trials share a word, and
    for values that do not vary.
    """
    if len(values) > SAMPLE:
        chosen = np.random.default_rng(0).choice(len(values), SAMPLE, replace=False)
        candidates, values = candidates[chosen], values[chosen]
    n, n_slots = candidates.shape
    unknown = np.full(n_slots, np.nan)
    if n < 4 or np.ptp(values) == 0:
        return unknown, unknown
    n_words = np.array([len(np.unique(column)) for column in candidates.T])
    off = (values - values.mean()) / values.std(ddof=1)
    apart = ~np.eye(n, dtype=bool)
    same = np.concatenate([np.ones((n, n, 1)), candidates[:, None] == candidates], 2) * apart[..., None]
    # Sums over the pairs of each trial, so that leaving one out is a subtraction.
    squares, products = same.swapaxes(1, 2) @ same, (same * (off[:, None] * off)[..., None]).sum(1)

    def system(left_out: int | None = None) -> tuple[Floats, Floats]:
        """Least squares' matrix and right side, the constant taken out."""
        gram, moment = squares.sum(0) / 2, products.sum(0) / 2
        if left_out is not None:
            gram, moment = gram - squares[left_out], moment - products[left_out]
        mean = gram[0, 1:] / gram[0, 0]
        return gram[1:, 1:] - np.outer(mean, gram[0, 1:]), moment[1:] - mean * moment[0]

    gram, moment = system()
    scales, directions = np.linalg.eigh(gram)
    kept = scales > 1e-9 * max(1.0, float(scales.max()))
    root = np.sqrt(scales[kept])
    shares = np.zeros(n_slots)
    if kept.any():
        shares = nnls(root[:, None] * directions[:, kept].T, directions[:, kept].T @ moment / root)[0]
    # Trials of different words vary against each other, since the words are all there are.
    shares = shares * (1 - 1 / n_words)
    shares = shares / max(1.0, float(shares.sum()))
    # Of the estimate that may be negative: a share that is cut off at 0 is not for that reason known exactly.
    without = np.stack([np.linalg.pinv(a, hermitian=True) @ b for a, b in map(system, range(n))]) * (1 - 1 / n_words)
    errors = np.sqrt((n - 1) / n * ((without - without.mean(0)) ** 2).sum(0))
    known = (same[..., 1:].sum((0, 1)) > 0) & (same[..., 1:].sum((0, 1)) < n * (n - 1))
    return np.where(known, shares, np.nan), np.where(known, errors, np.nan)
