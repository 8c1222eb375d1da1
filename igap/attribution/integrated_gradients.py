"""Integrated Gradients of F along the path of a site's activation from the run to the baseline.

Sundararajan et al. 2017 (arXiv 1703.01365). Captum integrates; the path is ours. Captum's word "baselines" is the
path's start: here it starts at the run's activation and ends at the baseline's, so IG has activation patching's sign.
"""

from typing import Literal, get_args

import torch
from captum.attr import IntegratedGradients
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from igap.attribution.maps import AttributionMap, Progress, moved_components, per_component, swapped
from igap.baselines import Baseline, BaselineKind
from igap.contrast import Contrast, Direction, contrast
from igap.errors import InputError
from igap.forward import Route, SiteFunction, rows_a_batch
from igap.prompts import PromptPair
from igap.sites import Site

Path = Literal["joint", "single"]
Quadrature = Literal["gausslegendre", "riemann_left", "riemann_middle", "riemann_right"]

_MOST_NODES = 2000


def integrated_gradients(
    model: TransformerBridge,
    pair: PromptPair,
    site: Site = "heads",
    *,
    baseline: BaselineKind | Baseline = "corrupted",
    direction: Direction = "noising",
    n_steps: int = 50,
    method: Quadrature = "gausslegendre",
    path: Path = "joint",
    per_position: bool = False,
    batch_size: int | None = None,
    route: Route | None = None,
    on_progress: Progress | None = None,
) -> AttributionMap:
    """Sum over positions and dims of (a' - a) . mean over the path of dF/da: `[layer, component]`, in logits.

    `path="joint"` moves all components of a layer together; their effects sum to F(all replaced) - F(x). With
    `path="single"` only the component moves: by completeness that is activation patching. Each of the `n_steps`
    quadrature nodes costs a forward and a backward pass a layer (joint) or a component (single).
    """
    check_quadrature(method, n_steps)
    if path not in get_args(Path):
        raise InputError(f"ig.path: got {path!r}, wanted joint or single.")
    with contrast(model, pair, baseline=baseline, direction=direction, route=route) as question:
        size = rows_a_batch(question.around.tokens.shape[1], batch_size)
        effects, deltas, layer_effects = [], [], []
        width = question.n_components(site)
        for layer in range(question.n_layers):
            start, end = question.ends(site, layer)
            function = question.function(site, layer)
            if path == "joint":
                with torch.no_grad():
                    layer_effects.append((function(end) - function(start))[0])
                effect = per_component(_along(function, start, end, n_steps, method, size), site)[0]
                deltas.append(effect.sum() - layer_effects[-1])
            else:
                effect, delta, replaced = _one_by_one(question, site, layer, n_steps, method, size)
                deltas.append(delta)
                layer_effects.append(replaced)
            effects.append(effect)
            if on_progress:
                on_progress((layer + 1) * width, question.n_layers * width)
    by_position = torch.stack(effects).cpu()
    return AttributionMap(
        "ig",
        site,
        by_position.sum(1),
        gap=question.gap,
        min_gap=pair.min_gap,
        delta=torch.stack(deltas).cpu(),
        layer_effect=torch.stack(layer_effects).cpu(),
        effect_by_position=by_position if per_position else None,
    )


def check_quadrature(method: str, n_steps: int) -> None:
    """Raises ValueError on an unknown or biased quadrature method, or a number of steps that it cannot have."""
    if n_steps < 1:
        raise InputError(f"ig.n_steps: got {n_steps}, wanted a whole number of at least 1. Try ig.n_steps=50.")
    if n_steps == 1 and method.startswith("riemann"):
        raise InputError(f"ig.n_steps: got 1, wanted at least 2 with ig.method={method}. Try ig.n_steps=50.")
    if n_steps > _MOST_NODES and method == "gausslegendre":
        raise InputError(
            f"ig.n_steps: got {n_steps}, wanted at most {_MOST_NODES} with ig.method=gausslegendre, whose nodes take "
            "n_steps squared memory to find. Use fewer steps, or ig.method=riemann_middle."
        )
    if method == "riemann_trapezoid":
        raise InputError(
            "ig.method: got 'riemann_trapezoid', whose weights in Captum sum to (n_steps - 1) / n_steps: every "
            "attribution comes out that much too small. Use ig.method=gausslegendre."
        )
    if method not in get_args(Quadrature):
        raise InputError(f"ig.method: got {method!r}, wanted one of {', '.join(get_args(Quadrature))}.")


def _along(
    function: SiteFunction, start: Tensor, end: Tensor, n_steps: int, method: Quadrature, batch_size: int
) -> Tensor:
    """Attributions of each entry along the straight path from `start` to `end`, both `[rows, pos, ...]`, in logits."""
    with torch.enable_grad():
        attributions: Tensor = IntegratedGradients(function).attribute(
            inputs=end,
            baselines=start,
            n_steps=n_steps,
            method=method,
            internal_batch_size=max(batch_size, len(start)),
        )
    return attributions.detach()


def _one_by_one(
    question: Contrast, site: Site, layer: int, n_steps: int, method: Quadrature, batch_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Single-path effects `[pos, component]` of a layer, the delta farthest from 0, that component's exact effect."""
    start, end = question.ends(site, layer)
    function = question.function(site, layer)
    effect = start.new_zeros(start.shape[1], start.shape[2])
    worst = replaced = start.new_zeros(())
    for components in moved_components(question, site, layer, max(1, batch_size // n_steps)):
        rows = swapped(start, end, components)
        attributions = per_component(_along(function, start.expand_as(rows), rows, n_steps, method, batch_size), site)
        own = attributions[torch.arange(len(components)), :, components]
        effect[:, components] = own.T
        with torch.no_grad():
            exact = function(rows) - function(start)
        deltas = own.sum(1) - exact
        farthest = deltas.abs().argmax()
        if deltas[farthest].abs() > worst.abs():
            worst, replaced = deltas[farthest], exact[farthest]
    return effect, worst, replaced
