"""Thompson sampling: maximisers of weights drawn from a Bayesian linear model with one weight per option."""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from igap.counterfactual.history import Floats, History, Proposal
from igap.counterfactual.samplers.base import FirstOrderScores, draw, keep_or, unseen
from igap.counterfactual.spaces.base import Candidate, Space

_NOISE = 0.3
"""Noise of the linear model, in standard deviations of what first-order scores do not predict."""
_LEAST = 1e-3
"""Least variance of what they do not predict; the values' own is 1."""
_MODELLED = 1000
"""The best trials that the linear model learns from: its cost grows with their cube."""
_NEAREST = 50
"""Options of a slot, and single changes, that are combined around the best candidate."""


def thompson(history: History, scores: FirstOrderScores, n: int, rng: np.random.Generator) -> list[Proposal]:
    """Maximisers of weights drawn from the posterior of a linear model with one weight per option."""
    best = history.best
    if best is None:
        return draw(history, n, rng, "start")
    return thompson_proposals(history, scores(best), n, rng, set(history.seen))


def thompson_proposals(
    history: History, by_slot: Sequence[Floats], n: int, rng: np.random.Generator, taken: set[Candidate]
) -> list[Proposal]:
    """For each of `n` draws from the posterior of a linear model, the best candidate that is not taken.

    The model has a weight an option. It expects the first-order scores, `by_slot`, scaled to predict the trials' values
    best, and learns from the trials what each option adds to that.
    """
    space, known = history.space, history.order[:_MODELLED]
    offsets = np.concatenate([[0], np.cumsum(space.sizes)])[:-1]
    columns = np.array([history.proposals[i].candidate for i in known]) + offsets
    target = _standardise(history.values[known])
    expected = np.concatenate(by_slot)
    predicted = expected[columns].sum(1)
    predicted = predicted - predicted.mean()
    expected = expected * max(0.0, float(predicted @ target) / (float(predicted @ predicted) or 1.0))
    rest = target - (expected[columns].sum(1) - expected[columns].sum(1).mean())
    variance = max(float(rest.var()), _LEAST) / len(space.slots)
    noise = _NOISE * math.sqrt(variance * len(space.slots))
    # Draws from the posterior: prior draws plus the correction by residuals of noisy targets. A trial has a 1 in one
    # column a slot, so products with the design are sums over those columns. torch keeps to this process's threads.
    drawn = math.sqrt(variance) * rng.normal(size=(len(expected), n))
    residual = (rest + noise * rng.normal(size=(n, len(known)))).T - drawn[columns].sum(1)
    gram = variance * (columns[:, None] == columns).sum(-1) + noise**2 * np.eye(len(known))
    solved = torch.linalg.solve(torch.from_numpy(gram), torch.from_numpy(residual)).numpy()
    np.add.at(drawn, columns, variance * solved[:, None])
    proposals = []
    for weights in (expected[:, None] + drawn).T:
        proposals += unseen(_rank_by_weights(space, np.split(weights, offsets[1:])), 1, taken, "thompson")
    return proposals


def _standardise(values: Floats) -> Floats:
    """The values with mean 0 and standard deviation 1, or all 0."""
    off: Floats = values - values.mean()
    return off / (float(off.std()) or 1.0)


def _rank_by_weights(space: Space, by_slot: Sequence[Floats]) -> Iterator[Candidate]:
    """The best candidate of a sum over slots, then those that differ from it least: one or two words changed."""
    best = [int(weights.argmax()) for weights in by_slot]
    if space.max_edits is not None:  # the edits that are worth most beside keeping the word
        change = [
            float(weights[choice] - weights[keep]) if keep is not None else math.inf
            for weights, choice, keep in zip(by_slot, best, space.keeps, strict=True)
        ]
        for slot in np.argsort(change)[: max(0, len(best) - space.max_edits)]:
            best[slot] = keep_or(space, int(slot), best[slot])
    yield tuple(best)
    losses = [weights[best[slot]] - weights for slot, weights in enumerate(by_slot)]
    changes = sorted(
        (float(loss[option]), slot, int(option))
        for slot, loss in enumerate(losses)
        for option in np.argsort(loss, kind="stable")[:_NEAREST]
        if option != best[slot]
    )
    for _, slot, option in changes:
        candidate = (*best[:slot], option, *best[slot + 1 :])
        if space.is_allowed(candidate):
            yield candidate
    for (_, slot, option), (_, other, second) in itertools.combinations(changes[:_NEAREST], 2):
        words = list(best)
        words[slot], words[other] = option, second
        if slot != other and space.is_allowed(tuple(words)):
            yield tuple(words)
