"""Attribution patching: activation patching to first order, one backward pass.

Kramar et al. 2024 (arXiv 2403.00745).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from igap.arguments import Finite, checks_arguments
from igap.attribution.maps import Advance, AttributionMap, Method, Progress, attribute_pairs, ignore, per_component
from igap.components import Site
from igap.config import RunConfig
from igap.engine.activations import Model
from igap.engine.baselines import Baseline, BaselineKind
from igap.engine.contrast import Contrast, Direction, open_pairs
from igap.engine.forward import Route
from igap.engine.hooks import Gradients
from igap.errors import InputError
from igap.inputs.prompts import PromptPair


@checks_arguments
def attribution_patching(
    model: Model,
    pair: PromptPair | Sequence[PromptPair],
    site: Site = "heads",
    *,
    baseline: BaselineKind | Baseline = "corrupted",
    direction: Direction = "noising",
    at: Finite = 0.0,
    per_position: bool = False,
    route: Route | None = None,
    on_progress: Progress | None = None,
) -> AttributionMap:
    """(a' - a) . dF/da at a, for every component: `[layer, component]`, in logits. Of several pairs, the mean.

    Integrated Gradients with its whole path at alpha = 0: what activation patching would give were F linear. `at` takes
    the gradient at another alpha, that is at a + alpha (a' - a).

    Args:
        model: Given back unchanged.
        pair: One prompt pair, or several.
        site: `heads` or `neurons`.
        baseline: What the activations move to, when noising.
        direction: `noising` or `denoising`.
        at: Share of the path at which the gradient is taken; 0, the run, by default.
        per_position: Whether `effect_by_position` is kept.
        route: `suffix` or `hooks`; None for the faster one that is right for this model.
        on_progress: Called with the components done and those in all.

    Returns:
        The map of the pair, or the mean over several, with each pair's own map in `pairs`.

    Raises:
        InputError: Pairs, a baseline or a route that this model cannot have, or a gradient that is not finite.
    """

    def estimate(contrast: Contrast, advance: Advance) -> list[AttributionMap]:
        return estimate_patches(contrast, site, advance, at=at, per_position=per_position)

    with open_pairs(model, pair, sites=(site,), route=route) as opened:
        attributed = attribute_pairs(estimate, opened, site, on_progress, baseline=baseline, direction=direction)
    if at and not attributed.effect.isfinite().all():
        raise InputError(f"at: got {at:g}, where dF/da is not finite, wanted less. Take 0 to 1, which is on the path.")
    return attributed


def estimate_patches(
    contrast: Contrast, site: Site, advance: Advance = ignore, *, at: float = 0.0, per_position: bool = False
) -> list[AttributionMap]:
    """Attribution patching of each pair of a contrast; see `attribution_patching`."""
    rows = contrast.rows(None, None, gradients=True)

    def by_position(few: Tensor) -> Float[Tensor, "pair layer pos component"]:
        pairs = few.tolist()
        slopes = _slopes(contrast, site, pairs, at) if at else contrast.gradients(site, pairs)
        effects: dict[int, Tensor] = {}
        for layer, _, slope in slopes:
            start, end = contrast.ends(site, layer)
            effects[layer] = per_component((end - start)[few] * slope, site)
        return torch.stack([effects[layer] for layer in range(contrast.n_layers)], 1)

    effects = torch.cat([each for _, each in rows.each(by_position, torch.arange(len(contrast.pairs)))]).cpu()
    advance(contrast.n_layers * contrast.n_components(site))
    whole = functional.pad(effects, (0, 0, contrast.first, 0)) if per_position else None
    return [
        AttributionMap(
            "atp",
            site,
            effects[index].sum(1),
            gap=gap,
            min_gap=least,
            effect_by_position=None if whole is None else whole[index],
        )
        for index, (gap, least) in enumerate(zip(contrast.gap.tolist(), contrast.least_gaps, strict=True))
    ]


def _slopes(contrast: Contrast, site: Site, few: list[int], at: float) -> Gradients:
    """The gradient at that share of each layer's own path."""
    for layer in range(contrast.n_layers):
        function, start, end = contrast.path(site, layer, few)
        leaf = (start + at * (end - start))[:, None].requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(function(leaf).sum(), leaf)
        yield layer, None, slope[:, 0]


def _attribute(contrast: Contrast, site: Site, config: RunConfig, advance: Advance) -> list[AttributionMap]:  # noqa: ARG001 - of every method
    return estimate_patches(contrast, site, advance)


METHOD = Method("atp", _attribute, shared=True)
