"""The interface of samplers, and what they share: random candidates, and the limit on edits.

A sampler is a function of what has been tried and a random generator, no more. So a search that was killed goes on as
if it had not been: nothing is remembered but the trials.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, runtime_checkable

import numpy as np

from igap.counterfactual.history import Floats, History, Proposal
from igap.counterfactual.spaces.base import Candidate, Space


@runtime_checkable
class FirstOrderScores(Protocol):
    """From a candidate to the change of a term of the objective, to first order, for each option of each slot.

    The first term's (0, the default) is the change of the effect, in F's unit; fluency's in nats a token; 0 for others.
    """

    def __call__(self, candidate: Candidate, term: int = 0, /) -> list[Floats]:
        """An array a slot."""


Proposer = Callable[[History, FirstOrderScores, int, np.random.Generator], list[Proposal]]
"""Up to so many candidates to try next, none of them tried before; fewer where it knows no more."""

START = 16
"""Random candidates before anything else."""
TRIES = 200
"""Candidates looked at for each one that is asked for."""


def draw(history: History, n: int, rng: np.random.Generator, source: str = "random") -> list[Proposal]:
    """Draw `n` candidates at random, none tried before; fewer where no more are left.

    Uniformly over options. Where edits are limited, their number is drawn first, then the edits.
    """
    space, taken = history.space, set(history.seen)
    left = space.size - len(taken)
    if left < 4 * n:  # few are left: find them all
        pool = [candidate for candidate in space.candidates() if candidate not in taken] if left else []
        rng.shuffle(pool)
        return [Proposal(tuple(map(int, candidate)), source) for candidate in pool[:n]]
    return unseen((_draw_candidate(space, rng) for _ in itertools.count()), n, taken, source)


def _draw_candidate(space: Space, rng: np.random.Generator) -> Candidate:
    words = [int(rng.integers(size)) for size in space.sizes]
    if space.max_edits is not None:
        kept = rng.permutation(len(words))[int(rng.integers(1, space.max_edits + 1)) :]
        for slot in kept:
            words[slot] = keep_or(space, int(slot), words[slot])
    return within(space, tuple(words), rng)


def keep_or(space: Space, slot: int, otherwise: int) -> int:
    """The slot's index of KEEP, or `otherwise` where it does not offer that."""
    keep = space.keeps[slot]
    return otherwise if keep is None else keep


def within(space: Space, candidate: Candidate, rng: np.random.Generator, new: Iterable[int] = ()) -> Candidate:
    """Take back random edits until there are few enough; those in the slots `new` only if no others are left."""
    if space.is_allowed(candidate):
        return candidate
    assert space.max_edits is not None
    words = list(candidate)
    back = [slot for slot in space.edits(candidate) if space.keeps[slot] is not None]
    later = set(new)
    order = sorted(map(int, rng.permutation(back)), key=lambda slot: slot in later)
    for slot in order[: len(space.edits(candidate)) - space.max_edits]:
        words[slot] = keep_or(space, slot, words[slot])
    return tuple(words)


def unseen(candidates: Iterator[Candidate], n: int, taken: set[Candidate], source: str) -> list[Proposal]:
    """The first `n` candidates that are not taken, as proposals; they are added to `taken`."""
    proposals: list[Proposal] = []
    for candidate in candidates:
        if len(proposals) == n:
            break
        if candidate not in taken:
            taken.add(candidate)
            proposals.append(Proposal(candidate, source))
    return proposals
