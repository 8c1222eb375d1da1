"""Activation patching: each component replaced by itself, at all positions, exactly.

Heimersheim & Nanda 2024 (arXiv 2404.15255), Zhang & Nanda 2023 (2309.16042).
"""

import torch
from transformer_lens.model_bridge import TransformerBridge

from igap.attribution.maps import AttributionMap, Progress, moved_components, swapped
from igap.baselines import Baseline, BaselineKind
from igap.contrast import Direction, contrast
from igap.forward import Route, rows_a_batch
from igap.prompts import PromptPair
from igap.sites import Site


def activation_patching(
    model: TransformerBridge,
    pair: PromptPair,
    site: Site = "heads",
    *,
    baseline: BaselineKind | Baseline = "corrupted",
    direction: Direction = "noising",
    batch_size: int | None = None,
    route: Route | None = None,
    on_progress: Progress | None = None,
) -> AttributionMap:
    """F with one component replaced, minus F without, for every component: `[layer, component]`, in logits.

    Noising: the baseline's activation into the clean run, relative to F(x). Denoising: the clean activation into the
    corrupted run, relative to F(x'). A component equal at both ends costs no pass and is exactly 0.
    """
    with contrast(model, pair, baseline=baseline, direction=direction, route=route) as question, torch.no_grad():
        size = rows_a_batch(question.around.tokens.shape[1], batch_size)
        width = question.n_components(site)
        effect = question.around.residual[0].new_zeros(question.n_layers, width)
        for layer in range(question.n_layers):
            function = question.function(site, layer)
            start, end = question.ends(site, layer)
            unpatched = function(start)
            for components in moved_components(question, site, layer, size):
                effect[layer, components] = function(swapped(start, end, components)) - unpatched
                if on_progress:
                    on_progress(layer * width + int(components[-1]) + 1, question.n_layers * width)
            if on_progress:
                on_progress((layer + 1) * width, question.n_layers * width)
    return AttributionMap("ap", site, effect.cpu(), gap=question.gap, min_gap=pair.min_gap)
