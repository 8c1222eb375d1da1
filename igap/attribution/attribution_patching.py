"""Attribution patching: activation patching to first order, one backward pass a layer.

Kramar et al. 2024 (arXiv 2403.00745).
"""

from collections.abc import Sequence

import torch
from torch.nn import functional
from transformer_lens.model_bridge import TransformerBridge

from igap.attribution.maps import Advance, AttributionMap, Progress, over_pairs, per_component
from igap.baselines import Baseline, BaselineKind
from igap.contrast import Contrast, Direction
from igap.forward import Route
from igap.prompts import PromptPair
from igap.sites import Site


def attribution_patching(
    model: TransformerBridge,
    pair: PromptPair | Sequence[PromptPair],
    site: Site = "heads",
    *,
    baseline: BaselineKind | Baseline = "corrupted",
    direction: Direction = "noising",
    at: float = 0.0,
    per_position: bool = False,
    route: Route | None = None,
    on_progress: Progress | None = None,
) -> AttributionMap:
    """(a' - a) . dF/da at a, for every component: `[layer, component]`, in logits. Of several pairs, the mean.

    Integrated Gradients with its whole path at alpha = 0: what activation patching would give were F linear. `at` takes
    the gradient at another alpha, that is at a + alpha (a' - a).
    """

    def method(question: Contrast, advance: Advance) -> list[AttributionMap]:
        by_position = []
        for layer in range(question.n_layers):
            start, end = question.ends(site, layer)
            leaf = (start + at * (end - start))[:, None].requires_grad_()
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(question.function(site, layer)(leaf).sum(), leaf)
            by_position.append(per_component((end - start) * gradient[:, 0], site))
            advance((layer + 1) * question.n_components(site))
        effects = torch.stack(by_position, 1).cpu()
        whole = functional.pad(effects, (0, 0, question.first, 0)) if per_position else None
        return [
            AttributionMap(
                "atp",
                site,
                effects[index].sum(1),
                gap=gap,
                min_gap=least,
                effect_by_position=None if whole is None else whole[index],
            )
            for index, (gap, least) in enumerate(zip(question.gap.tolist(), question.least_gaps, strict=True))
        ]

    return over_pairs(method, model, pair, site, on_progress, baseline=baseline, direction=direction, route=route)
