"""The result of every attribution method: one number a component, with its unit and its completeness delta."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from igap.contrast import Contrast
from igap.sites import Site

Progress = Callable[[int, int], None]
"""Called with (components done, components in all)."""


@dataclass(frozen=True, eq=False)
class AttributionMap:
    """What one method says about every component of one site."""

    method: str
    """ig, ap or atp."""
    site: Site
    effect: Float[Tensor, "layer component"]
    """Logits. Negative: moving the component to the baseline lowers F = logit[answer] - logit[distractor]."""
    gap: float
    """D = F(clean) - F(corrupted), in logits."""
    min_gap: float = 0.0
    """Logits. Below this absolute gap scores are missing (NaN)."""
    delta: Float[Tensor, " layer"] | None = None
    """IG only. Completeness delta in logits: (sum of the layer's effects) - (F(all of the site replaced) - F(x)).
    For the single path, where each component has its own completeness, the one farthest from 0: IG_c - AP_c."""
    layer_effect: Float[Tensor, " layer"] | None = None
    """IG only. F(all of the site replaced) - F(x), in logits; for the single path that of delta's component."""
    effect_by_position: Float[Tensor, "layer pos component"] | None = None
    """Logits; sums to `effect` over positions. Only where asked for."""

    @property
    def score(self) -> Float[Tensor, "layer component"]:
        """effect / gap: 0 no effect, -1 (noising) the component alone carries F all the way to the corrupted run.

        NaN everywhere when |gap| < min_gap or the gap is 0: a quotient by almost nothing says nothing.
        """
        if not scores_exist(self.gap, self.min_gap):
            return torch.full_like(self.effect, float("nan"))
        return self.effect / self.gap

    def incomplete_layers(self, tolerance: float = 0.01) -> list[int]:
        """Layers whose |delta| is above `tolerance` times |layer_effect| and above rounding; empty without a delta."""
        if self.delta is None or self.layer_effect is None:
            return []
        # Captum's nodes and weights are float32 whatever the model's dtype.
        rounding = 100 * torch.finfo(torch.float32).eps * max(1.0, abs(self.gap))
        bound = (tolerance * self.layer_effect.abs()).clamp(min=rounding)
        return [int(layer) for layer in (self.delta.abs() > bound).nonzero().flatten()]


def scores_exist(gap: float, min_gap: float) -> bool:
    """Whether a gap, in logits, is large enough to divide by."""
    return gap != 0 and abs(gap) >= min_gap


def per_component(attributions: Tensor, site: Site) -> Float[Tensor, "rows pos component"]:
    """Attributions of a site's activation summed over d_head (heads) or as they are (neurons)."""
    return attributions.sum(-1) if site == "heads" else attributions


def moved_components(contrast: Contrast, site: Site, layer: int, batch_size: int) -> tuple[Tensor, ...]:
    """Indices of the components whose activation is not equal at both ends, in batches; all others have effect 0."""
    start, end = contrast.ends(site, layer)
    moved = per_component((start != end).to(start.dtype), site)[0].sum(0).nonzero().flatten()
    return moved.split(batch_size) if len(moved) else ()


def swapped(start: Tensor, end: Tensor, components: Tensor) -> Tensor:
    """One row a component: `start` `[1, pos, component, ...]` with that component, at all positions, from `end`."""
    rows = start.repeat(len(components), *[1] * (start.ndim - 1))
    rows[torch.arange(len(components)), :, components] = end[0][:, components].movedim(0, 1)
    return rows
