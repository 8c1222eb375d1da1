"""Evolution: children of the best candidates."""

import numpy as np

from igap.counterfactual.history import History, Proposal
from igap.counterfactual.samplers.base import TRIES, FirstOrderScores, draw, unseen, within
from igap.counterfactual.spaces.base import Candidate


def evolution(history: History, scores: FirstOrderScores, n: int, rng: np.random.Generator) -> list[Proposal]:  # noqa: ARG001
    """Children of two of the ten best, a word of each slot from either, with one word at random."""
    parents = [history.proposals[i].candidate for i in history.order[:10]]
    if not parents:
        return draw(history, n, rng, "start")

    def child() -> Candidate:
        mother, father = (parents[int(rng.integers(len(parents)))] for _ in range(2))
        words = [a if rng.random() < 0.5 else b for a, b in zip(mother, father, strict=True)]
        slot = int(rng.integers(len(words)))
        words[slot] = int(rng.integers(history.space.sizes[slot]))
        return within(history.space, tuple(words), rng, [slot])

    return unseen((child() for _ in range(TRIES * n)), n, set(history.seen), "evolution") or draw(history, n, rng)
