"""Effects by position: sums over spans, and what a map says of its positions."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from igap.engine.contrast import Contrast
from igap.engine.positions import Spans

Places = tuple[tuple[int, ...], ...]
"""The positions of each span."""


def over_spans(
    effects: Float[Tensor, "pair layer pos component"], first: int, spans: Spans | None
) -> tuple[Float[Tensor, "pair layer *span component"], Float[Tensor, "pair layer component"] | None]:
    """Effects of positions from `first` on, summed over spans, and those of all positions where spans are an axis."""
    total = effects.sum(2)
    if spans is None:
        return total, None
    sums = [(effects * mask[:, None, first:, None].to(effects)).sum(2) for mask in spans.masks]
    return (torch.stack(sums, 2), total) if spans.has_axis else (sums[0], None)


def span_facts(
    spans: Spans | None, together: Float[Tensor, "pair layer component"] | None, contrast: Contrast, pair: int
) -> dict[str, Any]:
    """What the map of a pair says of its positions."""
    if spans is None:
        return {}
    masks = torch.stack([mask[pair] for mask in spans.masks])
    where = tuple(tuple(mask.nonzero().flatten().tolist()) for mask in masks)
    if together is None:
        return {"where": where}
    covers = bool(masks.any(0)[contrast.first :].all())
    return {"where": where, "spans": spans.names, "together": together[pair], "covers": covers}


def in_words(where: Places | None, by_pair: Sequence[Places | None]) -> str:
    """The positions whose part a map without spans is, of one pair or of each; empty where it is of all."""
    if where is None:
        return " at positions of each pair's own" if any(by_pair) else ""
    positions = [str(position) for span in where for position in span]
    return f" at position{'s' if len(positions) > 1 else ''} {', '.join(positions) or 'none'}"
