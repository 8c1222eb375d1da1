"""Attribution patching: activation patching to first order, one backward pass a layer.

Kramar et al. 2024 (arXiv 2403.00745).
"""

import torch
from transformer_lens.model_bridge import TransformerBridge

from igap.attribution.maps import AttributionMap, Progress, per_component
from igap.baselines import Baseline, BaselineKind
from igap.contrast import Direction, contrast
from igap.forward import Route
from igap.prompts import PromptPair
from igap.sites import Site


def attribution_patching(
    model: TransformerBridge,
    pair: PromptPair,
    site: Site = "heads",
    *,
    baseline: BaselineKind | Baseline = "corrupted",
    direction: Direction = "noising",
    per_position: bool = False,
    route: Route | None = None,
    on_progress: Progress | None = None,
) -> AttributionMap:
    """(a' - a) . dF/da at a, for every component: `[layer, component]`, in logits.

    Integrated Gradients with its whole path at alpha = 0: what activation patching would give were F linear.
    """
    by_position = []
    with contrast(model, pair, baseline=baseline, direction=direction, route=route) as question, torch.enable_grad():
        width = question.n_components(site)
        for layer in range(question.n_layers):
            start, end = question.ends(site, layer)
            leaf = start.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(question.function(site, layer)(leaf).sum(), leaf)
            by_position.append(per_component((end - start) * gradient, site)[0])
            if on_progress:
                on_progress((layer + 1) * width, question.n_layers * width)
    effects = torch.stack(by_position).cpu()
    return AttributionMap(
        "atp",
        site,
        effects.sum(1),
        gap=question.gap,
        min_gap=pair.min_gap,
        effect_by_position=effects if per_position else None,
    )
