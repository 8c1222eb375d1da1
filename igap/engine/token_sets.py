"""Sets of tokens, one a pair: the answers, or the distractors. Nearly always each has one member."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from igap.inputs.prompts import TokenPair


@dataclass(frozen=True, eq=False)
class TokenSets:
    """A set of tokens of each pair. Of sets with one member all that is computed is the member's, to the last bit."""

    ids: Int[Tensor, "pair member"]
    counted: Bool[Tensor, "pair member"]
    """False where a set has fewer members than another."""

    @classmethod
    def of(cls, sets: Sequence[Sequence[int]], device: torch.device) -> "TokenSets":
        """The sets in their order."""
        width = max(map(len, sets))
        ids = [[*each, *[each[0]] * (width - len(each))] for each in sets]
        counted = [[place < len(each) for place in range(width)] for each in sets]
        return cls(torch.tensor(ids, device=device), torch.tensor(counted, device=device))

    @property
    def are_single(self) -> bool:
        """Whether every set has one member."""
        return self.ids.shape[1] == 1

    def select(self, few: list[int]) -> "TokenSets":
        """Those of these pairs alone."""
        return TokenSets(self.ids[few], self.counted[few])

    def total(self, values: Float[Tensor, "pair *row vocab"]) -> Float[Tensor, "pair *row"]:
        """The sum of the members' values."""
        return self._members(values, 0.0).sum(1) if not self.are_single else self._members(values, 0.0)[:, 0]

    def mean(self, values: Float[Tensor, "pair *row vocab"]) -> Float[Tensor, "pair *row"]:
        """The mean of the members' values."""
        total = self.total(values)
        return total if self.are_single else total / self.counted.sum(1).view(-1, *[1] * (total.ndim - 1))

    def logsumexp(self, values: Float[Tensor, "pair *row vocab"]) -> Float[Tensor, "pair *row"]:
        """The logarithm of the sum of the exponentials of the members' values."""
        members = self._members(values, -torch.inf)
        return members[:, 0] if self.are_single else members.logsumexp(1)

    def _members(self, values: Tensor, missing: float) -> Float[Tensor, "pair member *row"]:
        """The members' values, and this one where a set has fewer."""
        each = torch.arange(len(self.ids), device=values.device)
        members = values[each[:, None], ..., self.ids]
        if self.are_single:
            return members
        return torch.where(self.counted.view(*self.counted.shape, *[1] * (members.ndim - 2)), members, missing)


def answers(pairs: Sequence[TokenPair], device: torch.device) -> tuple[TokenSets, TokenSets | None]:
    """The answers and the distractors of each pair; None where those are words of several tokens."""
    right = TokenSets.of([pair.answers for pair in pairs], device)
    compared = all(pair.distractors for pair in pairs)
    return right, TokenSets.of([pair.distractors for pair in pairs], device) if compared else None


def logit_diff(
    logits: Float[Tensor, "pair *row vocab"], answer: TokenSets, distractor: TokenSets
) -> Float[Tensor, "pair *row"]:
    """Mean logit of the answers minus mean logit of the distractors of each pair, in logits. Differentiable.

    Args:
        logits: Those of the position that the answer follows, in any number of rows a pair.
        answer: The answers of each pair.
        distractor: The distractors of each pair.
    """
    return answer.mean(logits) - distractor.mean(logits)
