"""A beam as start, then mutations by gradient whose strength adapts, after ADAPT (Cardoso et al. 2026, 2602.17867)."""

import numpy as np

from igap.counterfactual.history import History, Proposal
from igap.counterfactual.samplers.base import TRIES, FirstOrderScores, draw, unseen, within
from igap.counterfactual.samplers.gradient import hotflip_proposals
from igap.counterfactual.spaces.base import Candidate

_WIDTH = 4
"""Prompts in the beam."""
_STAGES = 4
"""Batches of the beam, each over its own slots."""
_PATIENCE = 24
"""Mutations without a better prompt after which they become stronger."""
_STRENGTHS = ((0.3, 0.1), (0.6, 0.25), (1.2, 0.5), (2.4, 0.75))
"""Temperature, and share of double swaps, from the first strength on."""


def adapt(history: History, scores: FirstOrderScores, n: int, rng: np.random.Generator) -> list[Proposal]:
    """First a beam over the slots, then swaps by gradient, the stronger the longer none of them is better.

    Theirs: a start by beam search, since the landscape is full of local optima, and then mutations that the gradient
    guides and that adapt to how the search goes. Ours is all that makes it a sampler of slots, and every number. The
    beam: from the `_WIDTH` best trials, `_STAGES` batches, the k-th of which draws one word anew in the k-th,
    (k+_STAGES)-th, ... slot. The mutations: as `gradient` makes them. After `_PATIENCE` of them without a better prompt
    they become noisier, change two words more often, and begin at one more of the best prompts; after a better one they
    are as at first.
    """
    order = history.order
    if not order:
        return draw(history, n, rng, "start")
    space, taken = history.space, set(history.seen)
    best = [history.proposals[i].candidate for i in order[:_WIDTH]]
    stage = 1 + max(p.lineage if p.source == "adapt-beam" else 0 for p in history.proposals)
    free = [slot for slot, size in enumerate(space.sizes) if size > 1]
    if stage <= min(_STAGES, len(free)):
        slots = free[stage - 1 :: _STAGES]

        def extend() -> Candidate:
            slot = int(rng.choice(slots))
            words = list(best[int(rng.integers(len(best)))])
            words[slot] = int(rng.integers(space.sizes[slot]))
            return within(space, tuple(words), rng, [slot])

        beam = unseen((extend() for _ in range(TRIES * n)), n, taken, "adapt-beam")
        if beam:
            return [Proposal(proposal.candidate, proposal.source, stage) for proposal in beam]
    stalled = sum(p.source == "adapt" for p in history.proposals[order[0] + 1 :]) // _PATIENCE
    level = min(stalled, len(_STRENGTHS) - 1)
    parents = best[: 1 + level]
    proposals: list[Proposal] = []
    for i, parent in enumerate(parents):
        share = len(range(i, n, len(parents)))
        proposals += hotflip_proposals(
            space, parent, scores, share, rng, Proposal(parent, "adapt"), taken, *_STRENGTHS[level]
        )
    return proposals
