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
    effects: Float[Tensor, "question layer pos component"], contrast: Contrast, spans: Spans | None
) -> tuple[Float[Tensor, "question layer *span component"], Float[Tensor, "question layer component"] | None]:
    """Effects of the positions that change, summed over spans, and those of all positions where spans are an axis."""
    total = effects.sum(2)
    if spans is None:
        return total, None
    masks = [contrast.by_question(mask)[:, None, contrast.first :, None] for mask in spans.masks]
    sums = [(effects * mask.to(effects)).sum(2) for mask in masks]
    return (torch.stack(sums, 2), total) if spans.has_axis else (sums[0], None)


def span_facts(
    spans: Spans | None, together: Float[Tensor, "question layer component"] | None, contrast: Contrast, question: int
) -> dict[str, Any]:
    """What the map of a question says of its positions."""
    if spans is None:
        return {}
    pair, _ = contrast.questions[question]
    masks = torch.stack([mask[pair] for mask in spans.masks])
    where = tuple(tuple(mask.nonzero().flatten().tolist()) for mask in masks)
    if together is None:
        return {"where": where}
    covers = bool(masks.any(0)[contrast.first :].all())
    return {"where": where, "spans": spans.names, "together": together[question], "covers": covers}


def in_words(where: Places | None, by_pair: Sequence[Places | None]) -> str:
    """The positions whose part a map without spans is, of one pair or of each; empty where it is of all."""
    if where is None:
        return " at positions of each pair's own" if any(by_pair) else ""
    positions = [str(position) for span in where for position in span]
    return f" at position{'s' if len(positions) > 1 else ''} {', '.join(positions) or 'none'}"
