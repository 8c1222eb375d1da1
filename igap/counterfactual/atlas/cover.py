"""The fewest prompts that together show every head: a facility location problem, greedily, with its bound.

What a set of prompts shows is the sum over heads of the largest |effect| in any of them, as a share of what all prompts
show. It is monotone and submodular, so that a greedy set of k shows at least 1 - 1/e of what the best of k show
(Nemhauser, Wolsey and Fisher 1978), and no set of k shows more than any set S and the k largest gains beside it.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

Sizes = Float64[np.ndarray, "head prompt"]
"""|effect| of each head in each prompt."""

_MOST_TRIED = 500_000
"""Sets that are tried one by one."""


@dataclass(frozen=True)
class Cover:
    """A few prompts that show most of what all show."""

    chosen: tuple[int, ...]
    """Prompts, by number; greedy ones in the order in which they were taken."""
    shares: tuple[float, ...]
    """What the first, the first two, ... show, of what all prompts show."""
    least: int
    """No fewer prompts than that reach the share wanted."""

    @property
    def is_fewest(self) -> bool:
        """Whether no fewer prompts do."""
        return len(self.chosen) == self.least


def fewest_prompts(sizes: Sizes, share: float, total: float | None = None) -> Cover:
    """Return few prompts that show at least this share, the fewest wherever that can be known.

    Args:
        sizes: |effect| of each head in each prompt, at least 0; some must be above 0.
        share: Wanted of the sum over heads of the largest in any prompt, above 0, at most 1.
        total: That sum where heads are larger in other prompts than these, which must reach the share; None: of these.
    """
    total = sizes.max(1).sum() if total is None else total
    wanted = share * total * (1 - 1e-12)
    chosen, least = _greedy(sizes, wanted)
    n = sizes.shape[1]
    while least < len(chosen) and math.comb(n, least) <= _MOST_TRIED:
        better = _best_set(sizes, least)
        if sizes[:, better].max(1).sum() >= wanted:
            chosen = better
        else:
            least += 1
    shares = [float(sizes[:, chosen[:k]].max(1).sum() / total) for k in range(1, len(chosen) + 1)]
    return Cover(tuple(chosen), tuple(shares), least)


def _greedy(sizes: Sizes, wanted: float) -> tuple[list[int], int]:
    """Prompts taken one after the other by what each adds, and how many any set needs at least."""
    chosen: list[int] = []
    shown = np.zeros(len(sizes))
    least = 1
    while True:
        gains = np.maximum(sizes - shown[:, None], 0).sum(0)
        # Any set of k shows at most what is shown already and its k gains beside it.
        at_most = shown.sum() + np.cumsum(np.sort(gains)[::-1])
        least = max(least, int(np.searchsorted(at_most, wanted)) + 1)
        if shown.sum() >= wanted:
            return chosen, min(least, len(chosen))
        chosen.append(int(gains.argmax()))
        shown = np.maximum(shown, sizes[:, chosen[-1]])


def _best_set(sizes: Sizes, k: int) -> list[int]:
    """The k prompts that show most, by trying all sets; ordered by what each adds."""
    sets = np.array(list(itertools.combinations(range(sizes.shape[1]), k)))
    shown = np.zeros(len(sets))
    for head in sizes:  # one head at a time, which takes little memory
        shown += head[sets].max(1)
    return _order(sizes, sets[shown.argmax()].tolist())


def _order(sizes: Sizes, chosen: Sequence[int]) -> list[int]:
    left, ordered, shown = list(chosen), list[int](), np.zeros(len(sizes))
    while left:
        gains = [np.maximum(sizes[:, prompt] - shown, 0).sum() for prompt in left]
        ordered.append(left.pop(int(np.argmax(gains))))
        shown = np.maximum(shown, sizes[:, ordered[-1]])
    return ordered
