"""Activation patching: each component replaced by itself, at all positions, exactly.

Heimersheim & Nanda 2024 (arXiv 2404.15255), Zhang & Nanda 2023 (2309.16042).
"""

from collections.abc import Sequence

import torch

from igap.arguments import Count, Positive, checks_arguments
from igap.attribution.maps import Advance, AttributionMap, Method, Progress, attribute_pairs, ignore
from igap.components import Site
from igap.config import RunConfig
from igap.engine.activations import Model
from igap.engine.baselines import Baseline, BaselineKind
from igap.engine.contrast import Contrast, Direction, open_pairs
from igap.engine.forward import Route
from igap.inputs.prompts import PromptPair


@checks_arguments
def activation_patching(
    model: Model,
    pair: PromptPair | Sequence[PromptPair],
    site: Site = "heads",
    *,
    baseline: BaselineKind | Baseline = "corrupted",
    direction: Direction = "noising",
    batch_size: Count | None = None,
    memory_gib: Positive | None = None,
    route: Route | None = None,
    on_progress: Progress | None = None,
) -> AttributionMap:
    """F with one component replaced, minus F without, for every component: `[layer, component]`, in logits.

    Noising: the baseline's activation into the clean run, relative to F(x). Denoising: the clean activation into the
    corrupted run, relative to F(x'). A component equal at both ends is exactly 0. Of several pairs, the mean.

    Args:
        model: Given back unchanged.
        pair: One prompt pair, or several.
        site: `heads` or `neurons`.
        baseline: What the activations are replaced by, when noising.
        direction: `noising` or `denoising`.
        batch_size: Patched prompts a pass; None for what `memory_gib` holds.
        memory_gib: GiB of a pass beyond the model; None for 2, on a card for half of what is free.
        route: `suffix` or `hooks`; None for the faster one that is right for this model.
        on_progress: Called with the components done and those in all.

    Returns:
        The map of the pair, or the mean over several, with each pair's own map in `pairs`.

    Raises:
        InputError: Pairs, a baseline or a route that this model cannot have.
    """

    def patch(contrast: Contrast, advance: Advance) -> list[AttributionMap]:
        return patch_components(contrast, site, advance, batch_size=batch_size, memory_gib=memory_gib)

    with open_pairs(model, pair, sites=(site,), route=route) as opened:
        return attribute_pairs(patch, opened, site, on_progress, baseline=baseline, direction=direction)


def patch_components(
    contrast: Contrast,
    site: Site,
    advance: Advance = ignore,
    *,
    batch_size: int | None = None,
    memory_gib: float | None = None,
) -> list[AttributionMap]:
    """Activation patching of each pair of a contrast; see `activation_patching`."""
    width, n_pairs = contrast.n_components(site), len(contrast.pairs)
    rows = contrast.rows(batch_size, memory_gib, gradients=False)
    effect = contrast.around.residual[0].new_zeros(n_pairs, contrast.n_layers, width)
    with torch.no_grad():
        for layer in range(contrast.n_layers):
            start, _ = contrast.ends(site, layer)
            unpatched = contrast.function(site, layer)(start[:, None])
            moved = contrast.moved(site, layer)
            patches = contrast.patches(site, layer)
            done = layer * width
            for components, patched in rows.each(patches, moved.any(0).nonzero().flatten(), n_pairs):
                effect[:, layer, components] = patched - unpatched
                done += len(components)
                advance(done)
            # Those that moved in another pair of the pass only.
            effect[:, layer].masked_fill_(~moved, 0)
            advance((layer + 1) * width)
    return [
        AttributionMap("ap", site, of_pair.cpu(), gap=gap, min_gap=least)
        for of_pair, gap, least in zip(effect, contrast.gap.tolist(), contrast.least_gaps, strict=True)
    ]


def _attribute(contrast: Contrast, site: Site, config: RunConfig, advance: Advance) -> list[AttributionMap]:
    return patch_components(contrast, site, advance, batch_size=config.batch_size, memory_gib=config.memory_gib)


METHOD = Method("ap", _attribute, shared=True)
