"""Spaces of corrupted prompts: a slot is a part of the prompt, and a candidate chooses an option for each slot.

A candidate is one option a slot, as indices. An option is a text, the same for all clean prompts, or a rule that takes
its words from the clean prompt at hand ("=keep", "=S"): what it says holds for every prompt. All candidates have the
clean prompt's number of tokens and are read at its last one.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from igap.errors import InputError
from igap.inputs.answers import check_single, words_of
from igap.inputs.prompts import PromptPair

KEEP = "=keep"
"""The option that keeps the clean prompt's word."""

Candidate = tuple[int, ...]
"""One option's index a slot."""


def asked_words(pair: PromptPair, asks: str) -> tuple[str, str]:
    """The answer and the distractor without their spaces. Raises InputError, saying what `asks`, where one is a set."""
    answer, distractor = check_single(pair.place, pair.answer, pair.distractor, asks)
    return answer.strip(), distractor.strip()


def all_words(pair: PromptPair) -> list[str]:
    """The words of answer and distractor without their spaces, those of sets too."""
    return [word.strip() for answer in (pair.answer, pair.distractor) for word in words_of(answer)]


@dataclass(frozen=True)
class Slot:
    """A part of the prompt that candidates differ in."""

    name: str
    options: tuple[str, ...]
    """Words or phrases, and rules."""
    positions: tuple[int, ...]
    """Token positions, BOS counted."""


@dataclass(frozen=True, eq=False)
class Space:
    """The candidates of a search: an option for each slot."""

    kind: Literal["slots", "substitute", "prompts"]
    slots: tuple[Slot, ...]
    template: str | None = None
    max_edits: int | None = None
    """Slots that may differ from KEEP; None is no limit."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Offered words or prompts that are invalid: how many for each reason."""

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Options of each slot."""
        return tuple(len(slot.options) for slot in self.slots)

    @cached_property
    def keeps(self) -> tuple[int | None, ...]:
        """Each slot's index of KEEP; None where it does not offer that."""
        return tuple(slot.options.index(KEEP) if KEEP in slot.options else None for slot in self.slots)

    @cached_property
    def size(self) -> int:
        """Candidates in all."""
        by_edits = [1]  # candidates of the slots so far, by the number of slots that differ from KEEP
        for n, keep in zip(self.sizes, self.keeps, strict=True):
            longer = [0] * (len(by_edits) + 1)
            for edits, count in enumerate(by_edits):
                longer[edits] += count * (keep is not None)
                longer[edits + 1] += count * (n - (keep is not None))
            by_edits = longer
        return sum(by_edits[: None if self.max_edits is None else self.max_edits + 1])

    @property
    def positions(self) -> list[int]:
        """The positions at which a candidate may differ from a clean prompt, ascending."""
        return sorted({position for slot in self.slots for position in slot.positions})

    @property
    def digest(self) -> str:
        """12 hex digits of slots and options, in their order: what the indices of a candidate mean."""
        slots = [[slot.name, slot.options, slot.positions] for slot in self.slots]
        text = json.dumps([self.kind, self.template, self.max_edits, slots])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def words(self, candidate: Candidate) -> tuple[str, ...]:
        """The options that the candidate names."""
        return tuple(slot.options[index] for slot, index in zip(self.slots, candidate, strict=True))

    def rule(self, candidate: Candidate) -> str:
        """The candidate in words, "subject := S, place := zoo", without slots that keep what they have."""
        named = zip(self.slots, self.words(candidate), strict=True)
        return ", ".join(f"{slot.name} := {word.lstrip('=')}" for slot, word in named if word != KEEP) or "nothing"

    def edits(self, candidate: Candidate) -> tuple[int, ...]:
        """Indices of the slots that do not say KEEP."""
        return tuple(i for i, (index, keep) in enumerate(zip(candidate, self.keeps, strict=True)) if index != keep)

    def is_allowed(self, candidate: Candidate) -> bool:
        """True if the candidate has at most `max_edits` edits."""
        return self.max_edits is None or len(self.edits(candidate)) <= self.max_edits

    def candidates(self) -> Iterator[Candidate]:
        """All candidates, those with few edits first where there is a limit."""
        if self.max_edits is None:
            yield from itertools.product(*map(range, self.sizes))
            return
        never = [i for i, keep in enumerate(self.keeps) if keep is None]
        for n in range(len(never), self.max_edits + 1):
            for slots in itertools.combinations(range(len(self.slots)), n):
                if set(never) <= set(slots):
                    choices = [
                        [o for o in range(size) if o != keep] if i in slots else [keep or 0]
                        for i, (size, keep) in enumerate(zip(self.sizes, self.keeps, strict=True))
                    ]
                    yield from itertools.product(*choices)

    def candidates_between(self, start: int, stop: int) -> list[Candidate]:
        """The candidates of these numbers, in the order of `candidates`; those that begin alike stand together."""
        if self.max_edits is not None:
            return list(itertools.islice(self.candidates(), start, stop))
        return list(zip(*(each.tolist() for each in np.unravel_index(np.arange(start, stop), self.sizes)), strict=True))

    def check(self) -> "Space":
        """Return the space itself. Raises InputError if it has fewer than two candidates."""
        if self.size < 2:
            out = "; ".join(f"{n} left out ({why})" for why, n in self.left_out.items() if n)
            limited = replace(self, max_edits=None).size > self.size
            raise InputError(
                f"search.space: got {self.size} candidate{'s' * (self.size != 1)}{f' ({out})' if out else ''}, wanted "
                f"at least two. Offer more words{', or raise search.space.max_edits' * limited}."
            )
        return self


@dataclass(frozen=True, eq=False)
class BoundSpace:
    """A space bound to clean prompts: a candidate is then tokens."""

    space: Space
    pairs: tuple[PromptPair, ...]
    """Each clean prompt, with the corrupted prompt of its reference pair."""
    clean: Int[Tensor, "pair pos"]
    tables: tuple[Int[Tensor, "corrupted _option _width"], ...]
    """A tensor a slot: the tokens of its options, for every clean prompt, or once where they are equal for all."""
    shared: bool
    """True if a candidate is one corrupted prompt for all clean prompts; the axis `corrupted` then has length 1."""
    write: Callable[[PromptPair, Candidate], str]
    """The corrupted prompt of a clean prompt."""

    @cached_property
    def first(self) -> int:
        """The first position at which a candidate may differ from a clean prompt."""
        return self.space.positions[0]

    @property
    def groups(self) -> tuple["Group", ...]:
        """The clean prompts by shape; of one shape all of them."""
        return ((tuple(range(len(self.pairs))), self),)

    @property
    def n_corrupted(self) -> int:
        """Corrupted prompts a candidate: one a clean prompt, or one for all."""
        return 1 if self.shared else len(self.pairs)

    def tokens(self, candidates: Sequence[Candidate]) -> Int[Tensor, "corrupted candidate pos"]:
        """The corrupted prompts' tokens."""
        rows = self.clean[: self.n_corrupted, None].repeat(1, len(candidates), 1)
        chosen = torch.tensor(candidates, device=rows.device)
        for column, (slot, table) in enumerate(zip(self.space.slots, self.tables, strict=True)):
            rows[:, :, list(slot.positions)] = table[:, chosen[:, column]]
        return rows

    def count_edits(self, tokens: Int[Tensor, "corrupted candidate pos"]) -> Float[Tensor, "candidate pair"]:
        """Count the slots (in a list of prompts, tokens) in which each corrupted prompt differs from each clean one."""
        differ = tokens != self.clean[:, None]
        if self.space.kind == "prompts":
            return differ.sum(-1).T.double()
        counts = [differ[:, :, list(slot.positions)].any(-1) for slot in self.space.slots]
        return torch.stack(counts).sum(0).T.double()

    def unshare(self) -> "BoundSpace":
        """Give every clean prompt a corrupted prompt of its own, so that each may keep some of its own words."""
        n = len(self.pairs)
        tables = tuple(table.expand(n, -1, -1) for table in self.tables)
        return replace(self, tables=tables, shared=False)

    def with_slots(self, candidate: Candidate, slots: Sequence[int]) -> Int[Tensor, "corrupted pos"]:
        """The tokens of the clean prompts with the candidate's words in these slots only."""
        rows = self.clean[: self.n_corrupted].clone()
        whole = self.tokens([candidate])[:, 0]
        for index in slots:
            where = list(self.space.slots[index].positions)
            rows[:, where] = whole[:, where]
        return rows

    def changed_slots(self, candidate: Candidate) -> tuple[int, ...]:
        """Indices of the slots in which the corrupted prompt differs from a clean prompt."""
        differ = (self.tokens([candidate])[:, 0] != self.clean).any(0)
        return tuple(i for i, slot in enumerate(self.space.slots) if bool(differ[list(slot.positions)].any()))

    def offers_clean(self, slot: int) -> bool:
        """True if the slot has an option that leaves every clean prompt as it is."""
        return bool(self.options_of_clean(slot).any())

    def options_of_clean(self, slot: int) -> Bool[Tensor, " option"]:
        """Whether each option of the slot leaves every clean prompt as it is."""
        own = self.clean[:, None, list(self.space.slots[slot].positions)]
        return (self.tables[slot] == own).all(-1).all(0)

    def select(self, few: Sequence[int]) -> "BoundSpace":
        """The space bound to these of the clean prompts alone."""
        index = list(few)
        tables = self.tables if self.shared else tuple(table[index] for table in self.tables)
        pairs = tuple(self.pairs[i] for i in index)
        return replace(self, pairs=pairs, clean=self.clean[index], tables=tables)

    def texts(self, candidate: Candidate) -> list[str]:
        """The corrupted prompt of every clean prompt."""
        return [self.write(pair, candidate) for pair in self.pairs]


Group = tuple[tuple[int, ...], BoundSpace]
"""Indices of clean prompts of one shape, and the space bound to them."""


def bind_space(
    space: Space,
    pairs: Sequence[PromptPair],
    clean: Int[Tensor, "pair pos"],
    tables: Sequence[Int[Tensor, "pair _option _width"]],
    write: Callable[[PromptPair, Candidate], str],
) -> BoundSpace:
    """Bind the space to clean prompts; one corrupted prompt serves them all where no option depends on them."""
    fixed = torch.ones(clean.shape[1], dtype=torch.bool, device=clean.device)
    fixed[[position for slot in space.slots for position in slot.positions]] = False
    shared = all(bool((table == table[:1]).all()) for table in tables) and bool((clean == clean[:1])[:, fixed].all())
    kept = tuple(table[:1] if shared else table for table in tables)
    return BoundSpace(space, tuple(pairs), clean, kept, shared, write)
