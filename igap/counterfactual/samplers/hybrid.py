"""The default sampler: the best of a fitted model, repeated words, and swaps by gradient of the best prompt."""

import numpy as np

from igap.counterfactual.history import History, Proposal
from igap.counterfactual.samplers.base import FirstOrderScores, draw, unseen
from igap.counterfactual.samplers.gradient import even_proposals, hotflip_proposals
from igap.counterfactual.samplers.repeats import repeating
from igap.counterfactual.samplers.value_model import best_of_model, fit
from igap.counterfactual.spaces.base import Candidate

_WORTH = 0.5
"""What is expected of a candidate on the other side, over the best value, for which it is tried."""


def hybrid(history: History, scores: FirstOrderScores, n: int, rng: np.random.Generator) -> list[Proposal]:
    """Of 16, the model's 4 best, and 2 best of the other sign; 2 in which a slot of the best candidate says another's
    word; and even swaps of that candidate."""
    best = history.best
    if best is None:
        return draw(history, n, rng, "start")
    space, taken = history.space, set(history.seen)
    proposals = _of_model(history, scores, n, taken)
    repeats = list(repeating(space, best))
    shuffled = (repeats[i] for i in rng.permutation(len(repeats)))
    proposals += unseen(shuffled, min(n // 8, n - len(proposals)), taken, "repeat")
    like = Proposal(best, "incumbent")
    proposals += even_proposals(space, best, scores, n - len(proposals), rng, like, taken, together=True)
    # Where all of these have been tried, also of other words, and of two.
    proposals += hotflip_proposals(space, best, scores, n - len(proposals), rng, like, taken)
    tried = History(space, (*history.proposals, *proposals), history.points)
    return proposals + draw(tried, n - len(proposals), rng)


def _of_model(history: History, scores: FirstOrderScores, n: int, taken: set[Candidate]) -> list[Proposal]:
    """What the fitted model expects most of: on the side of the best candidate, and, where there is one, on the other.

    An effect of either sign has two maxima, and swaps of the better candidate do not lead to the other.
    """
    place = history.order[0]
    sign = 1.0 if history.sides is None else float(history.sides[place])
    model = fit(history, scores(history.proposals[place].candidate))
    if model is None:
        return []
    model = model if sign > 0 else model.negative()
    proposals = unseen(iter(best_of_model(model, max(1, n // 4), taken)), n, taken, "model")
    if history.sides is not None:
        opposite = model.negative()
        others = best_of_model(opposite, n // 8, taken)
        worth = [other for other in others if opposite.predict(other) > _WORTH * history.values[place]]
        proposals += unseen(iter(worth), n - len(proposals), taken, "other-sign")
    return proposals
