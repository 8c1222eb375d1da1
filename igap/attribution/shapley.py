"""Shapley values of the components of a layer: the mean effect of moving each, over orders in which all of them move.

Activation patching moves each component alone, and last-one-out (denoising) after all others; here it moves at every
place of an order. The values of a layer sum to F(all of the site replaced) - F(x).

Of n! orders a few are drawn, each beside its reverse, whose errors are opposite where components act in twos. Source:
Shapley 1953; Castro et al. 2009 (random orders); Mitchell et al. 2022 (antithetic ones, arXiv 2104.12199).
"""

from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from igap.attribution.maps import Advance, AttributionMap, ignore
from igap.attribution.method import Method
from igap.components import Site
from igap.config import RunConfig
from igap.engine.contrast import Contrast

N_ORDERS = 10
"""Half of them are drawn."""


def sample_orders(
    contrast: Contrast,
    site: Site,
    advance: Advance = ignore,
    *,
    n_orders: int = N_ORDERS,
    seed: int = 0,
    batch_size: int | None = None,
    memory_gib: float | None = None,
) -> list[AttributionMap]:
    """Sampled Shapley values of each question of a contrast, of an even number of orders; see the module."""
    rows, width = contrast.rows(batch_size, memory_gib, gradients=False), contrast.n_components(site)
    effect = contrast.gap.new_zeros(len(contrast.questions), contrast.n_layers, width)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in range(contrast.n_layers):
            # Of every component, so that what is drawn does not depend on which ones move.
            drawn = torch.stack([torch.randperm(width, generator=generator) for _ in range(n_orders // 2)])
            moved = contrast.differs(site, layer)
            some = moved.any(0).cpu()
            orders = torch.stack([order[some[order]] for order in torch.cat([drawn, drawn.flip(1)])]).to(moved.device)
            n = orders.shape[1]
            if n:
                values = []
                for sets, by_set in rows.each(
                    partial(_with_sets, contrast, site, layer, orders),
                    torch.arange(n_orders * (n + 1), device=orders.device),
                    len(contrast.pairs),
                ):
                    values.append(by_set)
                    advance(layer * width + width * (int(sets[-1]) + 1) // (n_orders * (n + 1)))
                steps = torch.cat(values, 1).unflatten(1, (n_orders, n + 1)).diff(dim=2)
                for order, of_places in zip(orders, steps.unbind(1), strict=True):
                    effect[:, layer, order] += of_places / n_orders
                effect[:, layer].masked_fill_(~contrast.by_question(moved), 0)
            advance((layer + 1) * width)
    return [
        AttributionMap("shapley", site, each, gap=gap, min_gap=least)
        for each, gap, least in zip(effect.cpu(), contrast.gap.tolist(), contrast.least_gaps, strict=True)
    ]


def _with_sets(
    contrast: Contrast, site: Site, layer: int, orders: Int[Tensor, "order place"], sets: Int[Tensor, " row"]
) -> Float[Tensor, "question row"]:
    """F with the first components of an order moved: none, one, two, ..., of each order."""
    start, end = contrast.ends(site, layer)
    n_sets = orders.shape[1] + 1
    place = orders.new_full((len(orders), start.shape[2]), n_sets).scatter_(
        1, orders, torch.arange(n_sets - 1, device=orders.device).expand_as(orders)
    )
    chosen = place[sets // n_sets] < (sets % n_sets)[:, None]
    chosen = chosen.view(1, len(sets), 1, -1, *[1] * (start.ndim - 3))
    return contrast.function(site, layer)(torch.where(chosen, end[:, None], start[:, None]))


def _attribute(contrast: Contrast, site: Site, config: RunConfig, advance: Advance) -> list[AttributionMap]:
    return sample_orders(
        contrast, site, advance, seed=config.seed, batch_size=config.batch_size, memory_gib=config.memory_gib
    )


METHOD = Method(
    "shapley",
    _attribute,
    optional=True,
    missing=lambda config, site, n_layers: "" if config.positions.is_default else "of all positions at once",  # noqa: ARG005
)
