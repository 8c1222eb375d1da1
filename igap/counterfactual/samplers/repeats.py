"""Words that stand in several slots of a prompt: what a language model copies, and no gradient foretells."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from igap.counterfactual.spaces.base import Candidate, Space


def make_repeats(space: Space, candidate: Candidate) -> Iterator[Candidate]:
    """The candidates in which one slot says what another slot of this one says, of those that are allowed."""
    words = space.words(candidate)
    for slot, other in itertools.permutations(range(len(words)), 2):
        word = words[other]
        if _is_literal(word) and word != words[slot] and word in space.slots[slot].options:
            changed = (*candidate[:slot], space.slots[slot].options.index(word), *candidate[slot + 1 :])
            if space.is_allowed(changed):
                yield changed


def find_repeats(space: Space, candidate: Candidate) -> list[list[int]]:
    """The slots that say the same word, a list for each such word."""
    slots: dict[str, list[int]] = {}
    for slot, word in enumerate(space.words(candidate)):
        if _is_literal(word):
            slots.setdefault(word, []).append(slot)
    return [same for same in slots.values() if len(same) > 1]


def equal_words(space: Space, options: Sequence[NDArray[np.int64]]) -> dict[tuple[int, int], NDArray[np.bool_]]:
    """Whether two of these options are the same word, `[option, option]`, for each two slots that share one."""
    words = [np.array([space.slots[s].options[o] for o in each], dtype=object) for s, each in enumerate(options)]
    literal = [np.array([_is_literal(word) for word in each], dtype=bool) for each in words]
    pairs = {}
    for s, t in itertools.combinations(range(len(words)), 2):
        same = (words[s][:, None] == words[t]) & literal[s][:, None]
        if same.any():
            pairs[s, t] = same
    return pairs


def _is_literal(word: str) -> bool:
    """Whether it says the same in every clean prompt; a rule does not."""
    return not word.startswith("=")
