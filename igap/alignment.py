"""Which position of the corrupted prompt belongs to which position of the clean one. Pure, on token ids.

Each prompt is run alone at its own length: nothing is padded. A position without a partner keeps its value.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

Align = Literal["error", "end", "diff"]
"""Prompts of different length: refused; matched from the end backwards; or by a diff of the tokens."""

Partners = tuple[int | None, ...]


@dataclass(frozen=True)
class Alignment:
    """The positions of two prompts that are matched, one to one and in order."""

    clean: Partners
    """For every clean position the corrupted one it is matched with, or None."""
    corrupted: Partners
    """The same seen from the corrupted prompt."""

    @property
    def is_plain(self) -> bool:
        """Whether both prompts have one length and every position is matched with itself."""
        return self.clean == self.corrupted == tuple(range(len(self.clean)))

    @property
    def n_unmatched(self) -> int:
        """Positions of either prompt that keep their value."""
        return self.clean.count(None) + self.corrupted.count(None)

    @property
    def rows(self) -> tuple[tuple[int | None, int | None], ...]:
        """(clean position, corrupted position) from left to right, one of the two None where there is no partner."""
        rows: list[tuple[int | None, int | None]] = []
        after = 0
        for i, j in enumerate(self.clean):
            if j is not None:
                rows += [(None, k) for k in range(after, j)]
                after = j + 1
            rows.append((i, j))
        return (*rows, *((None, k) for k in range(after, len(self.corrupted))))


def align(clean: Sequence[int], corrupted: Sequence[int], how: Align) -> Alignment:
    """The alignment of two token lists.

    `end` matches positions counted from the end; `diff` those of common blocks and, one to one, of replacements of
    equal size. Prompts of one length are matched position by position under `error` and `end`.
    """
    partners: list[int | None] = [None] * len(clean)
    if how == "diff":
        blocks = SequenceMatcher(None, list(clean), list(corrupted), autojunk=False).get_opcodes()
        for _, i, i_end, j, j_end in blocks:
            if i_end - i == j_end - j:
                partners[i:i_end] = range(j, j_end)
    else:
        shift = len(corrupted) - len(clean)
        partners = [i + shift if i + shift >= 0 else None for i in range(len(clean))]
    back: list[int | None] = [None] * len(corrupted)
    for position, partner in enumerate(partners):
        if partner is not None:
            back[partner] = position
    return Alignment(tuple(partners), tuple(back))


def first_moved(partners: Partners, here: Sequence[int], there: Sequence[int]) -> int | None:
    """The first position of `here` that takes an activation which differs from its own; None where there is none.

    Activations depend on the tokens up to their position: they are equal where the partner has the same index and no
    token differs up to there.
    """
    for position, partner in enumerate(partners):
        if partner is not None and (partner != position or here[: position + 1] != there[: position + 1]):
            return position
    return None
