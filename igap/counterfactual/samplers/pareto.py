"""Several objectives at once: which trials no other beats in all, and where to look for more of them."""

from functools import partial

import numpy as np

from igap.counterfactual.history import Floats, History, Proposal
from igap.counterfactual.samplers.base import FirstOrderScores, draw, within
from igap.counterfactual.samplers.gradient import hotflip_proposals
from igap.counterfactual.spaces.base import Candidate

_POPULATION = 8
"""Members, each with weights of its own over the terms."""
_GRADIENT = 0.5
"""Share of children by gradient; the others are crossed, mutated, or have an edit taken back."""
_TRIES = 50
"""Children made for each one that is asked for, at most."""


def front(points: Floats) -> list[int]:
    """Indices of the points `[trial, term]`, higher is better, that no other beats in one term and equals in the rest.

    Of equal points the first; ascending in the first term.
    """
    known = np.flatnonzero(~np.isnan(points).any(1))
    order = known[np.lexsort([known, *(-points[known, term] for term in reversed(range(points.shape[1])))])]
    indices: list[int] = []
    for i in order:
        if not any(bool((points[j] >= points[i]).all()) for j in indices):
            indices.append(int(i))
    return indices[::-1]


def epo(history: History, scores: FirstOrderScores, n: int, rng: np.random.Generator) -> list[Proposal]:
    """Children of the members of a population, in which each weighs the terms in its own way (EPO, 2402.01702).

    A member is the trial that is best by its weights, and its gradient is the weighted one of the terms that have one:
    the effect and fluency. Terms are measured in the standard deviations of the trials.
    """
    known = history.order
    if not known:
        return draw(history, n, rng, "start")
    points = history.points[known]
    spread = points.std(0)
    scale = np.where(spread > 0, spread, 1.0)
    scaled = (points - points.mean(0)) / scale
    space, taken = history.space, set(history.seen)
    weights = _weights(points.shape[1])
    turn = int(rng.integers(len(weights)))
    proposals: list[Proposal] = []
    for k in range(_TRIES * n):
        if len(proposals) == n:
            break
        own = weights[(turn + k) % len(weights)]
        ranked = np.argsort(-(scaled @ own), kind="stable")[:4]
        member = history.proposals[known[int(ranked[0])]].candidate
        if rng.random() < _GRADIENT:
            weighted = partial(_weighted_scores, scores, own / scale)
            proposals += hotflip_proposals(space, member, weighted, 1, rng, Proposal(member, "epo-gradient"), taken)
            continue
        other = history.proposals[known[int(rng.choice(ranked))]].candidate
        child = _make_child(history, member, other, rng)
        if child not in taken:
            taken.add(child)
            proposals.append(Proposal(child, "epo-child"))
    return proposals


def _weighted_scores(scores: FirstOrderScores, weights: Floats, candidate: Candidate, term: int = 0) -> list[Floats]:  # noqa: ARG001
    """The change of the terms' weighted sum, to first order."""
    by_term = [[weight * gain for gain in scores(candidate, i)] for i, weight in enumerate(weights) if weight]
    return [np.sum(gains, axis=0) for gains in zip(*by_term, strict=True)]


def _weights(n_terms: int) -> Floats:
    """`[member, term]`, from all weight on the first term to nearly all on the others."""
    first = np.linspace(1.0, 0.05, _POPULATION)
    return np.column_stack([first, *([(1 - first) / (n_terms - 1)] * (n_terms - 1))])


def _make_child(history: History, member: Candidate, other: Candidate, rng: np.random.Generator) -> Candidate:
    """Two parents crossed, then an edit taken back or a word drawn anew."""
    space = history.space
    words = [a if rng.random() < 0.7 else b for a, b in zip(member, other, strict=True)]
    back = [slot for slot in space.edits(tuple(words)) if space.keeps[slot] is not None]
    if back and rng.random() < 0.5:
        slot = int(rng.choice(back))
        words[slot] = int(space.keeps[slot] or 0)
    else:
        slot = int(rng.integers(len(words)))
        words[slot] = int(rng.integers(space.sizes[slot]))
    return within(space, tuple(words), rng, [slot])
