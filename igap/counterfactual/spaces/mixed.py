"""A space for clean prompts of several shapes: what stands in a slot takes other numbers of tokens, or an answer does.

Clean prompts whose slots stand at the same positions, in as many tokens, make a group, which is a `BoundSpace` of its
own. A candidate is the same options for all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from igap.counterfactual.spaces.base import BoundSpace, Candidate, Group, Space
from igap.counterfactual.spaces.positions import count_leading_tokens, encode, find_slots, match_slots
from igap.inputs.prompts import PromptPair, encode_pair

PAD = -1
"""Stands behind the tokens of prompts that are shorter than another."""

_Shape = tuple[tuple[tuple[int, ...], ...], int, int, bool]
"""The positions of each slot, the prompt's tokens, an answer's before its last, whether there is a logit difference."""


@dataclass(frozen=True, eq=False)
class MixedSpace(BoundSpace):
    """A space bound to clean prompts of several shapes; all tokens are padded at their end to one length."""

    members: tuple[Group, ...] = ()

    @property
    def groups(self) -> tuple[Group, ...]:
        """The clean prompts by shape."""
        return self.members

    def tokens(self, candidates: Sequence[Candidate]) -> Int[Tensor, "pair candidate pos"]:
        """The corrupted prompts' tokens."""
        return self._gather([group.tokens(candidates) for _, group in self.members])

    def count_edits(self, tokens: Int[Tensor, "pair candidate pos"]) -> Float[Tensor, "candidate pair"]:
        """As of one shape."""
        counts = torch.zeros(tokens.shape[1], len(self.pairs), dtype=torch.float64, device=tokens.device)
        for where, group in self.members:
            counts[:, list(where)] = group.count_edits(tokens[list(where), :, : group.clean.shape[1]])
        return counts

    def unshare(self) -> "MixedSpace":
        """As of one shape."""
        return replace(self, members=tuple((where, group.unshare()) for where, group in self.members))

    def with_slots(self, candidate: Candidate, slots: Sequence[int]) -> Int[Tensor, "pair pos"]:
        """As of one shape."""
        return self._gather([group.with_slots(candidate, slots)[:, None] for _, group in self.members])[:, 0]

    def changed_slots(self, candidate: Candidate) -> tuple[int, ...]:
        """As of one shape."""
        return tuple(sorted({slot for _, group in self.members for slot in group.changed_slots(candidate)}))

    def options_of_clean(self, slot: int) -> Bool[Tensor, " option"]:
        """As of one shape."""
        return torch.stack([group.options_of_clean(slot) for _, group in self.members]).all(0)

    def texts(self, candidate: Candidate) -> list[str]:
        """The corrupted prompt of every clean prompt."""
        texts = dict[int, str]()
        for where, group in self.members:
            texts |= dict(zip(where, group.texts(candidate), strict=True))
        return [texts[pair] for pair in range(len(self.pairs))]

    def _gather(
        self, by_group: Sequence[Int[Tensor, "_corrupted candidate _pos"]]
    ) -> Int[Tensor, "pair candidate pos"]:
        rows = self.clean[:, None].repeat(1, by_group[0].shape[1], 1)
        for (where, _), own in zip(self.members, by_group, strict=True):
            rows[list(where), :, : own.shape[2]] = own
        return rows


def pad_rows(rows: Sequence[Int[Tensor, " _pos"]]) -> Int[Tensor, "row pos"]:
    """Token ids of prompts, side by side."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=PAD)


def bind_by_shape(
    bind: Callable[..., BoundSpace],
    space: Space,
    pairs: Sequence[PromptPair],
    tokenizer: Any,
    *,
    prepend_bos: bool,
    several: bool,
    device: torch.device | str = "cpu",
) -> BoundSpace:
    """Bind the space to clean prompts of any shapes, each group by `bind`.

    With `several` answers may be words of several tokens: those before the last follow the prompts.

    Raises InputError as `bind` does.
    """
    forced: list[tuple[int, ...]] = [()] * len(pairs)
    compared = [True] * len(pairs)
    if several:
        encoded = [
            encode_pair(pair, tokenizer, prepend_bos=prepend_bos, n_ctx=None, n_vocab=None, several=True)
            for pair in pairs
        ]
        forced, compared = [pair.forced for pair in encoded], [pair.has_logit_diff for pair in encoded]
    shapes: dict[_Shape, list[int]] = {}
    for i, pair in enumerate(pairs):
        shape = (*positions_in(space, pair, tokenizer, prepend_bos=prepend_bos), len(forced[i]), compared[i])
        shapes.setdefault(shape, []).append(i)
    members: list[Group] = []
    for (positions, *_), indices in shapes.items():
        slots = tuple(replace(slot, positions=at) for slot, at in zip(space.slots, positions, strict=True))
        own = space if slots == space.slots else replace(space, slots=slots)
        bound = bind(own, [pairs[i] for i in indices], tokenizer, prepend_bos=prepend_bos, device=device)
        members.append((tuple(indices), _with_answers(bound, [forced[i] for i in indices])))
    if len(members) == 1:
        return members[0][1]
    rows: list[Tensor] = [torch.empty(0)] * len(pairs)
    for where, bound in members:
        for i, row in zip(where, bound.clean, strict=True):
            rows[i] = row
    write = {pair.clean: bound.write for _, bound in members for pair in bound.pairs}
    return MixedSpace(
        space,
        tuple(pairs),
        pad_rows(rows),
        (),
        False,
        lambda pair, candidate: write[pair.clean](pair, candidate),
        members=tuple(members),
    )


def positions_in(
    space: Space, pair: PromptPair, tokenizer: Any, *, prepend_bos: bool
) -> tuple[tuple[tuple[int, ...], ...], int]:
    """The positions of each slot in a clean prompt, and the prompt's length in tokens."""
    n_tokens = len(encode(pair, tokenizer, prepend_bos=prepend_bos))
    if space.template is None:
        return tuple(slot.positions for slot in space.slots), n_tokens
    start = count_leading_tokens(pair, tokenizer, prepend_bos=prepend_bos)
    places = find_slots(space.template, match_slots(space.template, pair.clean) or {}, tokenizer, start)
    return tuple(tuple(i for place in places[slot.name] for i in place.positions) for slot in space.slots), n_tokens


def _with_answers(bound: BoundSpace, forced: Sequence[tuple[int, ...]]) -> BoundSpace:
    """The prompts with the tokens of each answer before its last behind them."""
    if not any(forced):
        return bound
    own = bound if len(set(forced)) == 1 else bound.unshare()
    return replace(own, clean=torch.cat([own.clean, own.clean.new_tensor(forced)], 1))
