"""Samplers that learn nothing from the trials: at random, and all candidates in order."""

import numpy as np

from igap.counterfactual.history import History, Proposal
from igap.counterfactual.samplers.base import FirstOrderScores, draw, unseen


def brute(history: History, scores: FirstOrderScores, n: int, rng: np.random.Generator) -> list[Proposal]:  # noqa: ARG001
    """The next ones of all candidates, in order."""
    return unseen(history.space.candidates(), n, set(history.seen), "brute")


def random(history: History, scores: FirstOrderScores, n: int, rng: np.random.Generator) -> list[Proposal]:  # noqa: ARG001
    """Candidates drawn uniformly, none of them tried before."""
    return draw(history, n, rng)
