"""Which components of its layer one component interacts with: pairs of them replaced together, exactly.

    I(c, d) = F(c and d replaced) - F(c replaced) - F(d replaced) + F(run)

On IG's joint path every component of the layer moves with c, and where F is quadratic in the layer's activations
AP_c - IG_c = -1/2 sum over d of I(c, d): half of each interaction is c's. What is left over is of higher order.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from igap.components import Site, component_name, locate
from igap.engine.batching import AdaptiveBatch
from igap.engine.contrast import Contrast
from igap.engine.hooks import swap_components
from igap.engine.open_pairs import OpenPairs
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
    component: str,
    *,
    direction: Direction = "noising",
    batch_size: int | None = None,
    memory_gib: float | None = None,
) -> Interactions:
    """Return I(c, d) of a head `9.6` or a neuron `L5.N1234` with every other component of its layer, in logits.

    The replaced components take the corrupted activations; `denoising` is the mirror, as in activation patching. A
    component that is equal in both runs interacts with none: exactly 0.

    Raises:
        InputError: The model has no component of this name.
    """
    by_pair: dict[int, Tensor] = {}
    with torch.no_grad():
        for indices, contrast in opened.contrasts(direction=direction):
            site, layer, index = locate(component, contrast.n_layers, contrast.widths, item="interactions")
            rows = contrast.rows(batch_size, memory_gib, gradients=False)
            by_pair.update(zip(indices, _excess(contrast, site, layer, index, rows).cpu(), strict=True))
    width = len(by_pair[0])
    others = [other for other in range(width) if other != index]
    return Interactions(
        component=component,
        others=tuple(component_name(site, layer, other) for other in others),
        by_pair=torch.stack([by_pair[i] for i in range(len(opened.pairs))])[:, others],
    )


def _excess(
    contrast: Contrast, site: Site, layer: int, index: int, rows: AdaptiveBatch
) -> Float[Tensor, "pair component"]:
    """Return I(c, d) of component `index` with every one of its layer; with itself it means nothing."""
    start, end = contrast.ends(site, layer)
    function, moved = contrast.function(site, layer), contrast.moved(site, layer)
    with_c = swap_components(start, end, torch.tensor([index], device=start.device))[:, 0]
    apart, together = contrast.patches(site, layer), contrast.engine.patches(site, layer, with_c, end)
    unpatched, patched = function(start[:, None]), function(with_c[:, None])
    excess = contrast.gap.new_zeros(len(start), start.shape[2])

    def beyond(others: Tensor) -> Tensor:
        return (together(others) - patched) - (apart(others) - unpatched)

    for others, values in rows.each(beyond, moved.any(0).nonzero().flatten(), len(start)):
        excess[:, others] = values
    return excess.masked_fill_(~(moved & moved[:, [index]]), 0)
