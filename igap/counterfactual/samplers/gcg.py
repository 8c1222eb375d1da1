"""Greedy coordinate gradient, GCG (Zou et al. 2023, arXiv 2307.15043)."""

from dataclasses import replace

import numpy as np

from igap.counterfactual.history import History, Proposal
from igap.counterfactual.samplers.base import FirstOrderScores, draw
from igap.counterfactual.samplers.gradient import even_proposals
from igap.counterfactual.spaces.base import Candidate

_SOURCE = "gcg"


def gcg(history: History, scores: FirstOrderScores, n: int, rng: np.random.Generator) -> list[Proposal]:
    """A step of GCG: random swaps of one word of the current prompt for one that the gradient ranks high.

    As published: a slot is drawn uniformly, then one of its options with the highest first-order scores; of the
    batch the best becomes the current prompt, also where it is worse than the one before. Ours: the batch is the
    search's, 16 in place of 512, and the options are 8 in place of 256, for slots of some 50 words in place of a
    vocabulary of 32,000; the first prompt is the best of the random start; no prompt is tried twice, and where no such
    swap is left a random batch is the next step.
    """
    current, step = _current(history)
    if current is None:
        return draw(history, n, rng, "start")
    like, taken = Proposal(current, _SOURCE, step), set(history.seen)
    swaps = even_proposals(history.space, current, scores, n, rng, like, taken)
    return swaps or [replace(proposal, lineage=step) for proposal in draw(history, n, rng, _SOURCE)]


def _current(history: History) -> tuple[Candidate | None, int]:
    """The best trial of the last step that has one with a value, before any step of all; and the next step's number."""
    steps = np.array([p.lineage if p.source == _SOURCE else 0 for p in history.proposals], dtype=int)
    valued = ~np.isnan(history.values)
    if not valued.any():
        return None, 1
    last = int(steps[valued].max())
    values = np.where(valued & (steps == last), history.values, -np.inf)
    return history.proposals[int(values.argmax())].candidate, int(steps.max()) + 1
