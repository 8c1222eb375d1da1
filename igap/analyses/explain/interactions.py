"""Which components of its layer one component interacts with: pairs of them replaced together, exactly.

    I(c, d) = F(c and d replaced) - F(c replaced) - F(d replaced) + F(run)

On IG's joint path every component of the layer moves with c, and where F is quadratic in the layer's activations
AP_c - IG_c = -1/2 sum over d of I(c, d): half of each interaction is c's. What is left over is of higher order.

By positions c and d are components at a position or span, and everything else of the layer moves with c: components at
the other spans, c itself among them, and at the positions of no span ("elsewhere").
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from igap.components import Site, component_name, locate
from igap.engine.batching import AdaptiveBatch
from igap.engine.contrast import Contrast
from igap.engine.hooks import swap_components
from igap.engine.open_pairs import OpenPairs
from igap.engine.positions import Positions
from igap.vocabulary import Direction


@dataclass(frozen=True, eq=False)
class Interactions:
    """What a component and each other one of its layer do together, beyond what they do apart."""

    component: str
    others: tuple[str, ...]
    by_pair: Float[Tensor, "pair other"]
    """I(c, d) in logits, of each prompt pair. Negative: together they lower F by more than separately."""

    @property
    def effect(self) -> Float[Tensor, " other"]:
        """I(c, d) in logits; of several prompt pairs the mean."""
        return self.by_pair.mean(0)

    @property
    def shares(self) -> Float[Tensor, " other"]:
        """-1/2 I(c, d): what each of them contributes to AP - IG of c, in logits, in the sign of AP - IG."""
        return -self.effect / 2


def interactions(
    opened: OpenPairs,
    component: str | tuple[Site, int, int],
    *,
    span: int = 0,
    spans: Sequence[str] = ("",),
    positions: Positions = "all",
    direction: Direction = "noising",
    batch_size: int | None = None,
    memory_gib: float | None = None,
) -> Interactions:
    """Return I(c, d) of a head `9.6`, a neuron `L5.N1234`, or (site, layer, index), with every other of its layer.

    In logits.
    The replaced components take the corrupted activations; `denoising` is the mirror, as in activation patching. A
    component that is equal in both runs interacts with none: exactly 0.

    Raises:
        InputError: The model has no component of this name.
    """
    by_pair: dict[int, Tensor] = {}
    at = ("",) if positions == "all" else (*spans, " elsewhere")
    with torch.no_grad():
        for indices, contrast in opened.contrasts(direction=direction):
            if isinstance(component, str):
                component = locate(component, contrast.n_layers, contrast.widths, item="interactions")
            site, layer, index = component
            rows = contrast.rows(batch_size, memory_gib, gradients=False)
            if positions == "all":
                excess = _excess(contrast, site, layer, index, rows)[:, None]
            else:
                moving = contrast.spans(positions)
                assert moving is not None
                excess = _excess_at(contrast, (site, layer, index), span, moving.masks, rows)
            by_pair.update(zip(indices, excess.cpu(), strict=True))
    whole = torch.stack([by_pair[i] for i in range(len(opened.pairs))])
    n_spans = len(at) - (len(at) > 1 and not bool(whole[:, -1].any()))  # nothing moves elsewhere, or interacts there
    places = [(s, other) for s in range(n_spans) for other in range(whole.shape[2]) if (s, other) != (span, index)]
    return Interactions(
        component=component_name(site, layer, index) + at[span],
        others=tuple(component_name(site, layer, other) + at[s] for s, other in places),
        by_pair=torch.stack([whole[:, s, other] for s, other in places], 1) if places else whole[:, 0, :0],
    )


def _excess_at(
    contrast: Contrast, place: tuple[Site, int, int], span: int, masks: Sequence[Tensor], rows: AdaptiveBatch
) -> Float[Tensor, "pair span component"]:
    """Return I of a component at a span with every one at every span; the last span is of the other positions."""
    site, layer, index = place
    start, end = contrast.ends(site, layer)
    each = torch.stack([*masks, ~torch.stack([*masks]).any(0)], 1)[:, :, contrast.first :]
    width, function = start.shape[2], contrast.function(site, layer)
    differs = (start != end).flatten(3).any(-1) if start.ndim > 3 else start != end
    moved = (each[..., None] & differs[:, None]).any(2)

    def swap(source: Tensor, items: Tensor) -> Tensor:
        own = torch.arange(width, device=items.device) == (items % width)[:, None]
        where = each[:, items // width][..., None] & own[:, None]
        return torch.where(where.view(*where.shape, *[1] * (start.ndim - 3)), end[:, None], source[:, None])

    with_c = swap(start, torch.tensor([span * width + index], device=start.device))[:, 0]
    unpatched, patched = function(start[:, None]), function(with_c[:, None])

    def beyond(items: Tensor) -> Tensor:
        return (function(swap(with_c, items)) - patched) - (function(swap(start, items)) - unpatched)

    excess = contrast.gap.new_zeros(len(start), moved.shape[1] * width)
    for items, values in rows.each(beyond, moved.flatten(1).any(0).nonzero().flatten(), len(start)):
        excess[:, items] = values
    return excess.view_as(moved).masked_fill(~(moved & moved[:, span, index][:, None, None]), 0)


def _excess(
    contrast: Contrast, site: Site, layer: int, index: int, rows: AdaptiveBatch
) -> Float[Tensor, "pair component"]:
    """Return I(c, d) of component `index` with every one of its layer; with itself it means nothing."""
    start, end = contrast.ends(site, layer)
    function, moved = contrast.function(site, layer), contrast.differs(site, layer)
    with_c = swap_components(start, end, torch.tensor([index], device=start.device))[:, 0]
    apart, together = contrast.patches(site, layer), contrast.engine.patches(site, layer, with_c, end)
    unpatched, patched = function(start[:, None]), function(with_c[:, None])
    excess = contrast.gap.new_zeros(len(start), start.shape[2])

    def beyond(others: Tensor) -> Tensor:
        return (together(others) - patched) - (apart(others) - unpatched)

    for others, values in rows.each(beyond, moved.any(0).nonzero().flatten(), len(start)):
        excess[:, others] = values
    return excess.masked_fill_(~(moved & moved[:, [index]]), 0)
