"""The exact best of a fitted model in which words of one slot and of two slots together have effects that add up."""

import heapq
import itertools
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from igap.counterfactual.history import Floats, History, Proposal
from igap.counterfactual.samplers.base import FirstOrderScores
from igap.counterfactual.samplers.hybrid import hybrid
from igap.counterfactual.spaces.base import Candidate, Space

_MODELLED = 1000
"""The latest trials that the model learns from at most: its cost grows with their cube."""
_ENOUGH = 48
"""Trials with a value before the model proposes anything."""
_SHARES = (0.0, 0.1, 0.3, 1.0)
"""Prior variance of all pairs of slots beside that of all slots, of which the one with the best R^2 is taken."""
_NOISES = (0.003, 0.03, 0.3)
"""Variance of the noise beside the prior variance, likewise."""
_NODES = 20_000
"""Partial candidates that the search for the maximum looks at, at most."""


@dataclass(frozen=True, eq=False)
class PairwiseModel:
    """Values as a sum of effects of words and of pairs of words."""

    space: Space
    mean: float
    single: tuple[Floats, ...]
    """`[option]`, for each slot."""
    pairs: dict[tuple[int, int], Floats]
    """`[option, option]` of two slots, the earlier one first."""
    r2: float
    """1 - squared error / variance of the trials, each predicted from all the others."""

    def predict(self, candidate: Candidate) -> float:
        """The value that it expects."""
        total = self.mean + sum(float(weights[o]) for weights, o in zip(self.single, candidate, strict=True))
        return total + sum(float(weights[candidate[s], candidate[t]]) for (s, t), weights in self.pairs.items())


def fit_pairwise(history: History) -> PairwiseModel | None:
    """The model of these trials, by regularised least squares; None of fewer than two with a value, or equal ones.

    What is regularised, by how much, is what predicts each trial from the others best.
    """
    known = np.flatnonzero(~np.isnan(history.values))[-_MODELLED:]
    values = history.values[known]
    if len(known) < 2 or np.ptp(values) == 0:
        return None
    n_slots = len(history.space.slots)
    candidates = np.array([history.proposals[i].candidate for i in known])
    same = (candidates[:, None] == candidates).astype(np.float64)
    of_slots = same.sum(-1)
    of_pairs = (of_slots**2 - of_slots) / 2
    mean, spread = float(values.mean()), float(values.std())
    target = (values - mean) / spread
    n_pairs = max(1, n_slots * (n_slots - 1) // 2)
    best: tuple[float, float, Floats] | None = None
    for share, noise in itertools.product(_SHARES if n_slots > 1 else (0.0,), _NOISES):
        kernel = 1 + of_slots / n_slots + share * of_pairs / n_pairs
        inverse = np.linalg.inv(kernel + noise * np.eye(len(known)))
        dual = inverse @ target
        error = float(((dual / np.diag(inverse)) ** 2).sum())  # each trial left out in turn
        if best is None or error < best[0]:
            best = error, share, dual
    assert best is not None
    error, share, dual = best
    single: list[Floats] = []
    for slot, size in enumerate(history.space.sizes):
        single.append(np.asarray(spread / n_slots * np.bincount(candidates[:, slot], dual, size)))
    pairs = {}
    for s, t in itertools.combinations(range(n_slots), 2):
        weights = np.zeros((history.space.sizes[s], history.space.sizes[t]))
        np.add.at(weights, (candidates[:, s], candidates[:, t]), spread * share / n_pairs * dual)
        pairs[s, t] = weights
    return PairwiseModel(
        history.space, mean + spread * float(dual.sum()), tuple(single), pairs, 1 - error / float(target @ target)
    )


def pairwise(history: History, scores: FirstOrderScores, n: int, rng: np.random.Generator) -> list[Proposal]:
    """A quarter are the best untried candidates of the fitted model, the others hybrid's."""
    model = fit_pairwise(history) if len(history.order) >= _ENOUGH else None
    chosen = best_of_model(model, max(1, n // 4), history.seen) if model else []
    proposals = [Proposal(candidate, "pairwise") for candidate in chosen]
    tried = History(history.space, (*history.proposals, *proposals), history.points)
    return proposals + hybrid(tried, scores, n - len(proposals), rng)


def best_of_model(model: PairwiseModel, n: int, taken: Collection[Candidate] = ()) -> list[Candidate]:
    """The `n` candidates of the highest predicted values that are not taken, best first, by branch and bound.

    Slots are filled in order. What is still to fill is bounded by the sum, over its slots, of the best word beside
    those that are filled and, with each slot after it, its best partner. So they are exactly the best; fewer than `n`
    where so many are nearly equal that _NODES partial candidates do not tell them apart.
    """
    space, n_slots = model.space, len(model.space.slots)
    ahead = [
        np.sum([np.zeros(size), *(model.pairs[slot, later].max(1) for later in range(slot + 1, n_slots))], axis=0)
        for slot, size in enumerate(space.sizes)
    ]
    best: list[Candidate] = []
    # Less the bound, less its length (of equal ones the longest first), a partial candidate, its value.
    queue: list[tuple[float, int, Candidate, float]] = [(0.0, 0, (), 0.0)]
    for _ in range(_NODES):
        if not queue or len(best) == n:
            break
        _, _, words, value = heapq.heappop(queue)
        slot = len(words)
        if slot == n_slots:
            if words not in taken:
                best.append(words)
            continue
        values = value + _beside(model, slot, words)
        bounds = values.copy()
        for later in range(slot + 1, n_slots):
            bounds += (_beside(model, later, words) + model.pairs[slot, later] + ahead[later]).max(1)
        for option in range(space.sizes[slot]):
            if _has_room(space, longer := (*words, option)):
                heapq.heappush(queue, (-float(bounds[option]), -len(longer), longer, float(values[option])))
    return best


def _beside(model: PairwiseModel, slot: int, words: Candidate) -> Floats:
    """What each word of a slot adds to these words of the first slots."""
    own: Floats = model.single[slot].copy()
    for earlier, word in enumerate(words):
        own += model.pairs[earlier, slot][word]
    return own


def _has_room(space: Space, words: Candidate) -> bool:
    """Whether these words of the first slots leave the other slots, which may have to be edited, within the limit."""
    if space.max_edits is None:
        return True
    edits = sum(word != keep for word, keep in zip(words, space.keeps, strict=False))
    return edits + sum(keep is None for keep in space.keeps[len(words) :]) <= space.max_edits
