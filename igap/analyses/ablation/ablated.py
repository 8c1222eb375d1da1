"""What is ablated at once: components, and the positions of each prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Bool
from torch import Tensor

from igap.analyses.ablation.accuracy import Batch
from igap.engine.positions import Positions, check_lengths, find_spans
from igap.errors import InputError
from igap.inputs.prompts import TokenPair

Masks = Mapping[int, Bool[Tensor, " pos"]] | None
"""The positions of each prompt, by its number; None: all."""


@dataclass(frozen=True, eq=False)
class AblatedSet:
    """Components that are ablated at once."""

    name: str
    components: tuple[str, ...]
    where: Masks = None

    def at(self, batch: Batch) -> Bool[Tensor, "prompt pos"] | None:
        """The positions of a batch's prompts."""
        return None if self.where is None else torch.stack([self.where[index] for index in batch.indices])


def ablated_spans(
    positions: Positions, groups: Sequence[tuple[Sequence[int], Sequence[TokenPair]]]
) -> dict[str, Masks]:
    """The positions at which components are ablated, by the end of their names: ` at S2`, empty without an axis.

    Groups are prompts of one token length with their numbers. Raises InputError on positions that single prompts do not
    have.
    """
    if positions == "all":
        return {"": None}
    if positions in ("diff", "own"):
        raise InputError(
            f"positions: got {positions}, wanted positions of single prompts, which belong to no pair: all, each, "
            "last, roles, or spans by name. Use another option."
        )
    check_lengths(positions, [pair for _, pairs in groups for pair in pairs], "noising")
    by_name: dict[str, dict[int, Bool[Tensor, " pos"]]] = {}
    for numbers, pairs in groups:
        spans = find_spans(positions, pairs, "noising")
        assert spans is not None
        for name, masks in zip(spans.names, spans.masks, strict=True):
            by_name.setdefault(f" at {name}" if spans.has_axis else "", {}).update(zip(numbers, masks, strict=True))
    return dict(by_name)


def all_of(spans: Sequence[Masks]) -> Masks:
    """All positions of these spans together."""

    def join(masks: Masks, others: Masks) -> Masks:
        assert masks is not None
        assert others is not None
        return {number: mask | others[number] for number, mask in masks.items()}

    return reduce(join, spans)
