"""Alignment of two prompts: which corrupted position belongs to which clean one. Pure functions of token ids.

Each prompt runs alone at its own length; nothing is padded. A position without a partner keeps its activation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import takewhile

from igap.vocabulary import Align

Partners = tuple[int | None, ...]


@dataclass(frozen=True)
class Alignment:
    """The matched positions of two prompts, one to one and in order."""

    clean: Partners
    """For every clean position its corrupted partner, or None."""
    corrupted: Partners
    """For every corrupted position its clean partner, or None."""

    @property
    def is_plain(self) -> bool:
        """Whether both prompts have one length and every position is matched with itself."""
        return self.clean == self.corrupted == tuple(range(len(self.clean)))

    @property
    def n_unmatched(self) -> int:
        """Number of positions, of both prompts together, that have no partner."""
        return self.clean.count(None) + self.corrupted.count(None)

    @property
    def rows(self) -> tuple[tuple[int | None, int | None], ...]:
        """Pairs (clean position, corrupted position) from left to right; None stands for a missing partner."""
        rows: list[tuple[int | None, int | None]] = []
        after = 0
        for i, j in enumerate(self.clean):
            if j is not None:
                rows += [(None, k) for k in range(after, j)]
                after = j + 1
            rows.append((i, j))
        return (*rows, *((None, k) for k in range(after, len(self.corrupted))))


def align(clean: Sequence[int], corrupted: Sequence[int], how: Align) -> Alignment:
    """Align two token lists. Lists of equal length are matched position by position, whatever `how` says.

    `end` matches positions counted from the end. `diff` matches the common suffix, then the common prefix, and between
    them common blocks and, one to one, replacements of equal size. A BOS token in front of both therefore changes
    nothing, and two equal last tokens are always matched.
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
    # SequenceMatcher takes the longest common block first, wherever it is. With repeated tokens it would match a later
    # copy and leave the equal ends without partners.
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


def _n_common(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common prefix."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))


def first_diff_position(partners: Partners, here: Sequence[int], there: Sequence[int]) -> int | None:
    """The first position of `here` whose partner has another activation; None if there is none.

    An activation depends on the tokens up to its position: two are equal where the partner has the same index and no
    token differs up to there.
    """
    for position, partner in enumerate(partners):
        if partner is not None and (partner != position or here[: position + 1] != there[: position + 1]):
            return position
    return None
