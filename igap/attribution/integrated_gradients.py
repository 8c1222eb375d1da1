"""Integrated Gradients of F along the path of a site's activation from the run to the baseline.

Sundararajan et al. 2017 (arXiv 1703.01365). Captum integrates; the path is ours. Captum's word "baselines" is the
path's start: here it starts at the run's activation and ends at the baseline's, so IG has activation patching's sign.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from captum.attr import IntegratedGradients
from jaxtyping import Float
from torch import Tensor

from igap.attribution.maps import Advance, AttributionMap, Progress, completeness_bound, ignore, per_component
from igap.attribution.method import Method
from igap.attribution.over_pairs import attribute, public_method
from igap.attribution.spans import over_spans, span_facts
from igap.components import Site
from igap.config import RunConfig
from igap.engine.activations import Model
from igap.engine.backend import Route
from igap.engine.baselines import Baseline
from igap.engine.batching import AdaptiveBatch
from igap.engine.contrast import Contrast
from igap.engine.hooks import SiteFunction, slopes_of, swap_components
from igap.engine.open_pairs import open_pairs
from igap.engine.positions import Positions
from igap.engine.rounding import rounding_of
from igap.errors import InputError
from igap.errors.arguments import Count, Positive
from igap.inputs.prompts import PromptPair
from igap.metrics import AnyMetric
from igap.vocabulary import BaselineKind, Direction, IGPath, Quadrature

Steps = Count | Literal["auto"]
Whole = Literal["layer", "gap"]

MOST_NODES = 2000
_FIRST_NODES, _LAST_NODES = 3, 768
_LAST_NODES_BFLOAT16 = 48  # beyond, bfloat16 rounds more than nodes err, and no delta gets smaller
_UNCHANGED = 2
"""Doublings in a row that change nothing after which more nodes are not tried."""


@public_method
def integrated_gradients(
    model: Model,
    pair: PromptPair | Sequence[PromptPair],
    site: Site = "heads",
    *,
    baseline: BaselineKind | Baseline = "corrupted",
    direction: Direction = "noising",
    n_steps: Steps = 50,
    tolerance: Positive = 1e-3,
    tolerance_of: Whole = "layer",
    method: Quadrature = "gausslegendre",
    path: IGPath = "joint",
    positions: Positions = "all",
    metric: AnyMetric | Sequence[AnyMetric] = "logit_diff",
    batch_size: Count | None = None,
    memory_gib: Positive | None = None,
    route: Route | None = None,
    on_progress: Progress | None = None,
) -> AttributionMap | dict[str, AttributionMap]:
    """Integrated Gradients of F along the path of each component's activation a to the baseline's a'.

    The effect is the sum over positions and dimensions of (a' - a) times the mean of dF/da over the path.

    Args:
        model: A TransformerBridge, for example of `load_model`; it comes back unchanged.
        pair: The prompt pair, or several, whose mean is returned.
        site: "heads" (default), "neurons", "q", "k", "v", or one vector a layer: "resid_pre", "resid_mid",
            "resid_post", "attn_out", "mlp_out". See `igap.components.PLACES`.
        baseline: What activations move to, a kind or a Baseline. Default "corrupted", as in activation patching.
        direction: "noising" (default) patches the clean run; "denoising" the corrupted run, towards the clean one.
        n_steps: Quadrature nodes, default 50; each costs a forward and a backward pass a layer (joint) or a component
            (single). "auto" (joint) doubles a layer's nodes from 3 to at most 768 (48 in bfloat16), until its delta is
            below the tolerance or F's rounding and no component moved by more than that at the last doubling, or until
            two doublings changed nothing beyond rounding. `converged` says where the nodes were not enough.
        tolerance: Default 1e-3. What "auto" allows delta to be, as a share of `tolerance_of`.
        tolerance_of: "layer" (default): of the layer's effect; "gap": of the gap.
        method: Captum's quadrature, default "gausslegendre".
        path: "joint" (default) moves all components of a layer together; their effects sum to F(all replaced) - F(x).
            "single" moves one component alone: by completeness that is activation patching.
        positions: Whose part is given; "all" (default): the sum over positions. "each": `[layer, pos, component]`.
            "last", "diff": of the last one, or of those whose token differs. A mapping of spans by name to positions or
            words: `[layer, span, component]`. All positions move along the path in any case, so that parts add up.
        metric: F, default "logit_diff". "logit", "logprob", "prob": of the answer. "prob_diff": of answer and
            distractor. "kl", "js": to the clean output. Or an object of `igap.metrics`, or a function of logits
            `[row, vocab]` and the pair as token ids to one number a row. With "logprob" and a function the answer
            may be several tokens. Several metrics in a list share the forward passes.
        batch_size: Rows of a pass. None (default): as many as fit.
        memory_gib: GiB of a pass beyond the model. None (default): 2.
        route: "suffix" or "hooks", how F is computed. None (default): the faster one that is right for the model.
        on_progress: Called with (components done, components in all).

    Returns:
        Effects `[layer, component]` in F's unit, scores, and the completeness delta of each layer. Of a list of metrics
        a dictionary of maps by their names; they share forward passes, and each takes a backward pass of its own.

    Raises:
        InputError: An argument is invalid, or the pair does not fit the model.

    Example:
        >>> ig = integrated_gradients(model, pair, n_steps=20)
        >>> ig.effect.shape, round(float(ig.effect[0, 3]), 3), bool(ig.delta.abs().max() < 1e-3)
        (torch.Size([4, 8]), -1.699, True)

    Source: Sundararajan et al. 2017 (arXiv 1703.01365). Captum integrates.
    """
    check_quadrature(method, n_steps, path)

    def integrate(contrast: Contrast, advance: Advance) -> list[AttributionMap]:
        quadrature: Any = {"n_steps": n_steps, "tolerance": tolerance, "tolerance_of": tolerance_of, "method": method}
        budget: Any = {"batch_size": batch_size, "memory_gib": memory_gib}
        return integrate_path(contrast, site, advance, path=path, positions=positions, **quadrature, **budget)

    with open_pairs(model, pair, sites=(site,), route=route, metric=metric) as opened:
        about: Any = {"baseline": baseline, "direction": direction, "positions": positions}
        return attribute(integrate, opened, site, on_progress, asked=metric, **about)


def integrate_path(
    contrast: Contrast,
    site: Site,
    advance: Advance = ignore,
    *,
    n_steps: Steps = 50,
    tolerance: float = 1e-3,
    tolerance_of: Whole = "layer",
    method: Quadrature = "gausslegendre",
    path: IGPath = "joint",
    positions: Positions = "all",
    layers: Sequence[int] | None = None,
    batch_size: int | None = None,
    memory_gib: float | None = None,
) -> list[AttributionMap]:
    """Integrated Gradients of each question of a contrast; see `integrated_gradients`.

    Of these `layers` alone, if told so: effects in others are NaN, and so is what is known of them.
    """
    rows = contrast.rows(batch_size, memory_gib, gradients=True)
    rounding = rounding_of(contrast, site, rows)
    wanted = range(contrast.n_layers) if layers is None else layers
    by_layer: dict[int, tuple[Tensor, ...]] = {}
    for layer in wanted:
        if path == "joint":
            asked = n_steps, tolerance, tolerance_of
            by_layer[layer] = _integrate_jointly(contrast, site, layer, asked, rounding[:, layer], method, rows)
        else:
            assert isinstance(n_steps, int)
            by_layer[layer] = _integrate_singly(contrast, site, layer, n_steps, method, rows)
        advance((layer + 1) * contrast.n_components(site))
    unasked = tuple(torch.full_like(each, math.nan if each.is_floating_point() else 0) for each in by_layer[wanted[0]])
    in_order = [by_layer.get(layer, unasked) for layer in range(contrast.n_layers)]
    effects, deltas, layer_effects, *auto = (torch.stack(parts, 1).cpu() for parts in zip(*in_order, strict=True))
    nodes = auto[0] if auto else torch.full(deltas.shape, int(n_steps))
    converged = auto[1] if auto else None
    spans = contrast.spans(positions)
    effect, together = over_spans(effects, contrast, spans)
    return [
        AttributionMap(
            "ig",
            site,
            effect[index],
            gap=gap,
            min_gap=least,
            delta=deltas[index],
            layer_effect=layer_effects[index],
            rounding=rounding[index].cpu(),
            n_steps=nodes[index],
            converged=None if converged is None else converged[index],
            **span_facts(spans, together, contrast, index),
        )
        for index, (gap, least) in enumerate(zip(contrast.gap.tolist(), contrast.least_gaps, strict=True))
    ]


def _attribute(
    contrast: Contrast, site: Site, config: RunConfig, advance: Advance = ignore, layers: Sequence[int] | None = None
) -> list[AttributionMap]:
    options: Any = config.ig.model_dump(include={"n_steps", "tolerance", "method", "path"})
    budget: Any = {"batch_size": config.batch_size, "memory_gib": config.memory_gib}
    return integrate_path(contrast, site, advance, layers=layers, positions=config.positions.value, **options, **budget)


METHOD = Method(
    "ig",
    _attribute,
    of_layers=lambda contrast, site, config, layers: _attribute(contrast, site, config, layers=layers),
    towards_baseline=True,
)


def check_quadrature(method: Quadrature, n_steps: Steps, path: IGPath) -> None:
    """Raises InputError on a number of steps that the method or the path cannot have."""
    if n_steps == "auto":
        if path != "joint":
            raise InputError("ig.n_steps: got auto with ig.path=single, wanted a number there. Try ig.n_steps=50.")
        return
    if n_steps == 1 and method.startswith("riemann"):
        raise InputError(f"ig.n_steps: got 1, wanted at least 2 with ig.method={method}. Try ig.n_steps=50.")
    if n_steps > MOST_NODES and method == "gausslegendre":
        raise InputError(
            f"ig.n_steps: got {n_steps}, wanted at most {MOST_NODES} with ig.method=gausslegendre, whose nodes take "
            "n_steps squared memory to find. Use fewer steps, or ig.method=riemann_middle."
        )


def along_path(
    function: SiteFunction,
    start: Tensor,
    end: Tensor,
    n_steps: int,
    method: Quadrature,
    rows: AdaptiveBatch,
    n_metrics: int = 1,
) -> Float[Tensor, "question row pos *component"]:
    """Attributions of each entry along the straight path from `start` to `end`, in F's unit."""
    shape = start.shape[:2]
    n_paths = shape[0] * shape[1]

    def stack(points: Tensor) -> Tensor:
        # Captum puts the nodes one below the other: [node * pair * row, pos, ..., 1] to [node * pair * row, metric].
        by_pair = points.squeeze(-1).unflatten(0, (-1, *shape)).transpose(0, 1).flatten(1, 2)
        values: Tensor = function(by_pair).unflatten(0, (-1, n_metrics)).unflatten(2, (-1, shape[1]))
        return values.permute(2, 0, 3, 1).flatten(0, 2)

    def slopes(forward_fn: Callable[[Tensor], Tensor], inputs: tuple[Tensor], **_: object) -> tuple[Tensor]:
        # Metrics share the forward pass and stand side by side on the last axis, along which Captum's sums go on.
        by_metric = slopes_of(forward_fn(*inputs).flatten(), n_metrics, inputs)
        return (torch.cat([slope for (slope,) in by_metric], -1),)

    def attribute() -> Tensor:
        captum = IntegratedGradients(stack)
        captum.gradient_func = slopes
        flat: Tensor = captum.attribute(
            inputs=end.flatten(0, 1)[..., None],
            baselines=start.flatten(0, 1)[..., None],
            n_steps=n_steps,
            method=method,
            internal_batch_size=max(rows.number, n_paths),
        )
        return flat

    while True:
        with torch.enable_grad():
            flat = rows.attempt(attribute, max(min(rows.number, n_steps * n_paths), n_paths), smallest=n_paths)
        if flat is not None:
            attributions: Tensor = flat.detach().unflatten(0, shape).movedim(-1, 1).flatten(0, 1)
            return attributions


def _integrate_jointly(
    contrast: Contrast,
    site: Site,
    layer: int,
    asked: tuple[Steps, float, Whole],
    rounding: Tensor,
    method: Quadrature,
    rows: AdaptiveBatch,
) -> tuple[Tensor, ...]:
    """Joint-path effects `[question, pos, component]` of a layer, each question's delta and layer effect.

    Of n_steps=auto also each question's nodes, and whether they were enough for it.
    """
    n_steps, tolerance, of = asked
    n_metrics = len(contrast.readout.metrics)
    function, start, end = contrast.function(site, layer), *contrast.ends(site, layer)
    with torch.no_grad():
        layer_effect = (function(end[:, None]) - function(start[:, None]))[:, 0]

    def along(nodes: int, few: list[int]) -> Tensor:
        pairs = sorted({question // n_metrics for question in few})
        function, start, end = contrast.path(site, layer, pairs)
        parts = along_path(function, start[:, None], end[:, None], nodes, method, rows, n_metrics)[:, 0]
        place = [pairs.index(question // n_metrics) * n_metrics + question % n_metrics for question in few]
        return per_component(parts if len(place) == len(parts) else parts[place], site)

    auto: list[Tensor] = []
    if n_steps == "auto":
        bound = completeness_bound(layer_effect if of == "layer" else contrast.gap, rounding, tolerance)
        effect, *auto = _double_nodes(along, layer_effect, bound, rounding)
    else:
        effect = along(n_steps, list(range(len(layer_effect))))
    return effect, effect.sum((1, 2)) - layer_effect, layer_effect, *auto


def _double_nodes(
    along: Callable[[int, list[int]], Tensor], layer_effect: Tensor, bound: Tensor, rounding: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`along` (nodes and questions to `[question, pos, component]`) with enough nodes, their number, whether enough.

    Enough is when the effects sum to `layer_effect` within `bound`, and no component moved by more at the last
    doubling: errors of two components may cancel in the sum. A question is given up when doublings move neither its sum
    nor a component beyond `rounding`.
    """
    most = _LAST_NODES_BFLOAT16 if rounding.dtype == torch.bfloat16 else _LAST_NODES
    todo = list(range(len(bound)))
    nodes = _FIRST_NODES
    effect = along(nodes, todo)
    used, unchanged = (torch.zeros_like(bound, dtype=torch.int64) for _ in range(2))
    enough = torch.zeros_like(bound, dtype=torch.bool)
    while nodes < most and todo:
        nodes *= 2
        now = along(nodes, todo)
        change = (now - effect[todo]).sum(1)
        moved, in_sum = change.abs().amax(1), change.sum(1).abs()
        effect[todo], used[todo] = now, nodes
        delta = now.sum((1, 2)) - layer_effect[todo]
        enough[todo] = torch.maximum(delta.abs(), moved) <= bound[todo]
        unchanged[todo] = torch.where(torch.maximum(moved, in_sum) <= rounding[todo], unchanged[todo] + 1, 0)
        todo = [question for question in todo if not enough[question] and unchanged[question] < _UNCHANGED]
    return effect, used, enough


def _integrate_singly(
    contrast: Contrast, site: Site, layer: int, n_steps: int, method: Quadrature, rows: AdaptiveBatch
) -> tuple[Tensor, Tensor, Tensor]:
    """Single-path effects `[question, pos, component]` of a layer, each one's farthest delta and its exact effect."""
    n_questions, n_metrics = len(contrast.questions), len(contrast.readout.metrics)
    start, end = contrast.ends(site, layer)
    function, patches, moved = (
        contrast.function(site, layer),
        contrast.patches(site, layer),
        contrast.differs(site, layer),
    )
    effect = contrast.gap.new_zeros(n_questions, *start.shape[1:3])
    exact = contrast.gap.new_zeros(n_questions, start.shape[2])
    with torch.no_grad():
        unpatched = function(start[:, None])

    def along(components: Tensor) -> Tensor:
        ends = swap_components(start, end, components)
        attributions = per_component(
            along_path(function, start[:, None].expand_as(ends), ends, n_steps, method, rows, n_metrics), site
        )
        # Of each row its own component: [pair, pos, row].
        return attributions[:, torch.arange(len(components)), :, components].permute(1, 2, 0)

    for components, own in rows.each(along, moved.any(0).nonzero().flatten(), len(start) * n_steps):
        effect[:, :, components] = own.to(effect)
        with torch.no_grad():
            exact[:, components] = patches(components) - unpatched
    exact.masked_fill_(~contrast.by_question(moved), 0)
    deltas = effect.sum(1) - exact
    farthest = deltas.abs().argmax(1, keepdim=True)
    return effect, deltas.gather(1, farthest)[:, 0], exact.gather(1, farthest)[:, 0]
