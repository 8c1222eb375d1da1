"""The default sampler: swaps by gradient of two prompts, and Thompson sampling beside them."""

import numpy as np

from igap.counterfactual.history import History, Proposal
from igap.counterfactual.samplers.base import FirstOrderScores, draw
from igap.counterfactual.samplers.gradient import even_proposals, hotflip_proposals
from igap.counterfactual.samplers.thompson import thompson_proposals

_STALL = 12
"""Proposals of the second anchor without a better one, after which it starts anew from another random candidate."""


def hybrid(history: History, scores: FirstOrderScores, n: int, rng: np.random.Generator) -> list[Proposal]:
    """Six of 16 even swaps of the best candidate, 4 of a second anchor's, 6 Thompson's."""
    best = history.best
    if best is None:
        return draw(history, n, rng, "start")
    space, taken, quarter = history.space, set(history.seen), n // 4
    proposals: list[Proposal] = []
    if quarter:
        anchor = _anchor(history)
        both = [(a + b) / 2 for a, b in zip(scores(best), scores(anchor.candidate), strict=True)]
        proposals = even_proposals(space, anchor.candidate, scores, quarter, rng, anchor, taken)
        proposals += thompson_proposals(history, both, (n - quarter) // 2, rng, taken)
    like = Proposal(best, "incumbent")
    proposals += even_proposals(space, best, scores, n - len(proposals), rng, like, taken)
    # Where all of these have been tried, also of other words, and of two.
    proposals += hotflip_proposals(space, best, scores, n - len(proposals), rng, like, taken)
    return proposals + draw(
        History(history.space, (*history.proposals, *proposals), history.points), n - len(proposals), rng
    )


def _anchor(history: History) -> Proposal:
    """The candidate of the second anchor: the best of its lineage, or the next start when that has stalled."""
    anchors = [i for i, proposal in enumerate(history.proposals) if proposal.source == "anchor"]
    lineage = max((history.proposals[i].lineage for i in anchors), default=0)
    own = [i for i in anchors if history.proposals[i].lineage == lineage]
    starts = [i for i in history.order if history.proposals[i].source in ("start", "random")] or history.order
    origin = starts[lineage % len(starts)] if lineage else 0
    known = [i for i in [origin, *own] if lineage and not np.isnan(history.values[i])]
    best = max(known, key=lambda i: float(history.values[i]), default=None)
    if lineage == 0 or best is None or sum(i > best for i in own) >= _STALL:
        lineage += 1
        best = starts[lineage % len(starts)]
    return Proposal(history.proposals[best].candidate, "anchor", lineage)
