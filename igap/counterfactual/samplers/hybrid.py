"""The default sampler: the best of a fitted model, repeated words, and swaps by gradient of the best prompt."""

import numpy as np

from igap.counterfactual.history import Floats, History, Proposal
from igap.counterfactual.samplers.base import FirstOrderScores, draw, unseen
from igap.counterfactual.samplers.gradient import even_proposals, hotflip_proposals
from igap.counterfactual.samplers.repeats import make_repeats
from igap.counterfactual.samplers.value_model import ValueModel, best_of_model, fit
from igap.counterfactual.spaces.base import Candidate

_WORTH = 0.5
"""What is expected of a candidate on the other side, over the best value, for which it is tried."""


def hybrid(history: History, scores: FirstOrderScores, n: int, rng: np.random.Generator) -> list[Proposal]:
    """Of 16, the model's 4 best, and 2 best of the other sign; 2 in which a slot of the best candidate says another's
    word; and even swaps of that candidate."""
    if history.best is None:
        return draw(history, n, rng, "start")
    best, space, taken = history.best, history.space, set(history.seen)
    model = _model_of(history, scores(best))
    proposals = _of_model(model, max(1, n // 4), taken) if model else []
    if model and history.sides is not None:
        worth = _WORTH * float(history.values[history.order[0]])
        proposals += _of_model(model.negative(), min(n // 8, n - len(proposals)), taken, "other-sign", worth)
    repeats = list(make_repeats(space, best))
    shuffled = (repeats[i] for i in rng.permutation(len(repeats)))
    proposals += unseen(shuffled, min(n // 8, n - len(proposals)), taken, "repeat")
    like = Proposal(best, "incumbent")
    proposals += even_proposals(space, best, scores, n - len(proposals), rng, like, taken, together=True)
    # Where all of these have been tried, also of other words, and of two; then more of the model's.
    proposals += hotflip_proposals(space, best, scores, n - len(proposals), rng, like, taken)
    proposals += _of_model(model, n - len(proposals), taken) if model else []
    tried = History(space, (*history.proposals, *proposals), history.points)
    return proposals + draw(tried, n - len(proposals), rng)


def _model_of(history: History, scores: list[Floats]) -> ValueModel | None:
    """The fitted model, of the sign that the best candidate has.

    An effect of either sign has two maxima, and swaps of the better candidate do not lead to the other.
    """
    model = fit(history, scores)
    negative = history.sides is not None and history.sides[history.order[0]] < 0
    return model.negative() if model and negative else model


def _of_model(
    model: ValueModel, n: int, taken: set[Candidate], source: str = "model", worth: float = -np.inf
) -> list[Proposal]:
    """The candidates that it expects most of, as far as that is more than they must be worth."""
    chosen = best_of_model(model, n, taken)
    return unseen((each for each in chosen if model.predict(each) > worth), n, taken, source)
