"""A space tried as a whole: cut into chunks of candidates, each of which is a trial, the best of its chunk.

A trial a candidate would be 100,000 rows in a storage that takes milliseconds for each. Where the space is no larger
than the number of trials, a chunk would be one candidate, and none is made.
"""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

import numpy as np

from igap.errors import InputError

MOST = 10_000_000
"""Candidates of the largest space that is tried as a whole."""
_PACE = 5000
"""Candidates a second of a small model on a CPU, by which an impossible time is estimated."""


@dataclass(frozen=True)
class Chunk:
    """A chunk of the space's candidates, in their order."""

    index: int
    of: int
    """Chunks in all."""
    n_tried: int = 0
    """Candidates that were evaluated."""
    n_failed: int = 0
    """Those whose value is not finite."""
    n_out: int = 0
    """Those that violate a constraint."""

    def ends(self, size: int) -> tuple[int, int]:
        """The number of its first candidate and that of the first behind it, in a space of this size."""
        return self.index * size // self.of, (self.index + 1) * size // self.of

    def as_list(self) -> list[int]:
        """Its numbers, as a storage keeps them."""
        return list(astuple(self))


def next_chunk(
    size: int, chunks: Sequence[Chunk], n_trials_left: int, worker: int, seed: Sequence[int]
) -> Chunk | None:
    """The chunk to try next; None where none is left, or no trial for it.

    The first worker takes the chunks in their order, others one at random, so that two seldom take the same.
    """
    if n_trials_left <= 0:
        return None
    n = chunks[0].of if chunks else min(size, n_trials_left)
    done = {chunk.index for chunk in chunks if chunk.of == n}
    left = [index for index in range(n) if index not in done]
    if not left:
        return None
    return Chunk(left[int(np.random.default_rng(seed).integers(len(left))) if worker else 0], n)


def is_complete(chunks: Iterable[Chunk]) -> bool:
    """Whether these are all chunks of a space."""
    done: dict[int, set[int]] = {}
    for chunk in chunks:
        done.setdefault(chunk.of, set()).add(chunk.index)
    return any(len(indices) == n for n, indices in done.items())


def check_exhaustible(size: int, n_trials: int, n_terms: int) -> None:
    """Raises InputError on a space that the sampler "brute" cannot try as a whole with so many trials."""
    if size <= n_trials:
        return
    if n_terms > 1:
        raise InputError(
            f"search.sampler: got brute for several objectives and {size:.4g} candidates, wanted a trial for each, "
            f"since a front is no single prompt. Set search.until={size} or more, or search.sampler=auto."
        )
    if size > MOST:
        days = size / _PACE / 86400
        raise InputError(
            f"search.sampler: got brute for {size:.4g} candidates, wanted at most {MOST:.4g}: at {_PACE:,} a second, "
            f"the pace of a small model, these take {days:,.0f} days. Offer fewer words (search.space.slots, "
            "search.space.max_edits), or use search.sampler=auto."
        )
