"""Which position of the corrupted prompt belongs to which position of the clean one. Pure, on token ids.

Each prompt is run alone at its own length: nothing is padded. A position without a partner keeps its value.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import takewhile

from igap.vocabulary import Align

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
    """The alignment of two token lists. Lists of one length are matched position by position, whatever is asked.

    `end` matches positions counted from the end. `diff` matches the tokens at which both end, then those with which
    both begin, and in between common blocks and, one to one, replacements of equal size. So a token in front of both
    (a BOS) changes nothing, and where both end with one token these two are matched.
    """
    shift = len(corrupted) - len(clean)
    if shift == 0 or how == "end":
        partners: list[int | None] = [i + shift if i + shift >= 0 else None for i in range(len(clean))]
    else:
        assert how == "diff", "encode_pair refuses two lengths with error"
        partners = _by_diff(clean, corrupted)
    back: list[int | None] = [None] * len(corrupted)
    for position, partner in enumerate(partners):
        if partner is not None:
            back[partner] = position
    return Alignment(tuple(partners), tuple(back))


def _by_diff(clean: Sequence[int], corrupted: Sequence[int]) -> list[int | None]:
    # SequenceMatcher takes the longest common block first, wherever it is: of repeated tokens it would match a later
    # copy and leave the ends, which are the same, without partners.
    at_end = _n_common(clean[::-1], corrupted[::-1])
    inner, other = clean[: len(clean) - at_end], corrupted[: len(corrupted) - at_end]
    at_start = _n_common(inner, other)
    partners: list[int | None] = [None] * len(clean)
    partners[:at_start] = range(at_start)
    partners[len(inner) :] = range(len(other), len(corrupted))
    blocks = SequenceMatcher(None, inner[at_start:], other[at_start:], autojunk=False).get_opcodes()
    for _, i, i_end, j, j_end in blocks:
        if i_end - i == j_end - j:
            partners[at_start + i : at_start + i_end] = range(at_start + j, at_start + j_end)
    return partners


def _n_common(one: Sequence[int], other: Sequence[int]) -> int:
    """With how many equal tokens both begin."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def first_moved(partners: Partners, here: Sequence[int], there: Sequence[int]) -> int | None:
    """The first position of `here` that takes an activation which differs from its own; None where there is none.

    Activations depend on the tokens up to their position: they are equal where the partner has the same index and no
    token differs up to there.
    """
    for position, partner in enumerate(partners):
        if partner is not None and (partner != position or here[: position + 1] != there[: position + 1]):
            return position
    return None
