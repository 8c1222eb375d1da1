"""Swaps of words that the gradient ranks high: HotFlip's under noise, and even ones as in GCG."""

from dataclasses import replace

import numpy as np

from igap.counterfactual.history import History, Proposal
from igap.counterfactual.samplers.base import TRIES, FirstOrderScores, draw, unseen, within
from igap.counterfactual.samplers.repeats import find_repeats
from igap.counterfactual.spaces.base import Candidate, Space

_DOUBLE = 0.25
"""Share of gradient proposals that swap two words."""
_TEMPERATURE = 0.6
"""Scale of the Gumbel noise on scores, in standard deviations of a slot's scores."""
_TOP = 8
"""Options of a slot that even swaps are drawn from, the highest by first-order scores."""
_QUIET = 0.1
"""A slot's spread is taken to be at least this share of the largest: words that do nothing get few swaps."""


def gradient(history: History, scores: FirstOrderScores, n: int, rng: np.random.Generator) -> list[Proposal]:
    """Swaps of the best candidate's words that first-order scores rank high, with noise."""
    best = history.best
    if best is None:
        return draw(history, n, rng, "start")
    return hotflip_proposals(history.space, best, scores, n, rng, Proposal(best, "incumbent"), set(history.seen))


def hotflip_proposals(
    space: Space,
    anchor: Candidate,
    scores: FirstOrderScores,
    n: int,
    rng: np.random.Generator,
    like: Proposal,
    taken: set[Candidate],
    temperature: float = _TEMPERATURE,
    double: float = _DOUBLE,
) -> list[Proposal]:
    """Swaps of one or two of the anchor's words, drawn by score: the noise is Gumbel's, on the scale of each slot.

    Within a slot the ranking is better than across slots, so scores are divided by their slot's standard deviation, of
    at least a tenth of the largest slot's.
    """
    by_slot = scores(anchor)
    least = _QUIET * max(float(gain.std()) for gain in by_slot)
    noisy = []
    for gain in by_slot:
        spread = temperature * max(float(gain.std()), least) or 1.0
        noisy.append(gain / spread + rng.gumbel(size=len(gain)))
    sizes = np.cumsum([len(each) for each in noisy])
    order = np.argsort(-np.concatenate(noisy), kind="stable")[: TRIES * n]
    slots = np.searchsorted(sizes, order, side="right")
    scored = [
        (int(slot), int(place - (sizes[slot - 1] if slot else 0))) for slot, place in zip(slots, order, strict=True)
    ]
    proposals: list[Proposal] = []
    for rank, (slot, option) in enumerate(scored):
        if len(proposals) == n:
            break
        words, new = list(anchor), [slot]
        words[slot] = option
        if rng.random() < double and space.max_edits != 1:
            second = next((swap for swap in scored[rank + 1 :] if swap[0] != slot), None)
            if second is not None:
                words[second[0]] = second[1]
                new.append(second[0])
        candidate = within(space, tuple(words), rng, new)
        if candidate not in taken:
            taken.add(candidate)
            proposals.append(Proposal(candidate, like.source, like.lineage))
    return proposals


def even_proposals(
    space: Space,
    anchor: Candidate,
    scores: FirstOrderScores,
    n: int,
    rng: np.random.Generator,
    like: Proposal,
    taken: set[Candidate],
    *,
    together: bool = False,
) -> list[Proposal]:
    """Swaps of one of the anchor's words: every slot is as likely, and in it each of the best by first-order scores.

    Of options with equal scores, random ones are the best. With `together` a word that several slots say is also
    swapped in all of them at once, as likely as a slot.
    """
    gains, words = scores(anchor), space.words(anchor)
    swaps: list[list[dict[int, int]]] = []
    for slot, (gain, word) in enumerate(zip(gains, anchor, strict=True)):
        others = [int(option) for option in rng.permutation(len(gain)) if option != word]
        best = sorted(others, key=lambda option, gain=gain: -gain[option])[:_TOP]  # type: ignore[misc]
        swaps.append([{slot: option} for option in best])
    for same in find_repeats(space, anchor) if together else []:
        shared = set.intersection(*(set(space.slots[slot].options) for slot in same)) - {words[same[0]]}
        joint = [{slot: space.slots[slot].options.index(word) for slot in same} for word in sorted(shared)]
        joint.sort(key=lambda swap: -sum(float(gains[slot][option]) for slot, option in swap.items()))
        swaps.append(joint[:_TOP])
    swaps = [each for each in swaps if each]

    def swap() -> Candidate:
        choices = swaps[int(rng.integers(len(swaps)))]
        new = choices[int(rng.integers(len(choices)))]
        return within(space, tuple(new.get(slot, word) for slot, word in enumerate(anchor)), rng, new)

    proposals = unseen((swap() for _ in range(TRIES * n)), n, taken, like.source)
    return [replace(proposal, lineage=like.lineage) for proposal in proposals]
