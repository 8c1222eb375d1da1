"""Attribution patching: activation patching to first order, one backward pass.

Kramar et al. 2024 (arXiv 2403.00745).
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from igap.attribution.maps import Advance, AttributionMap, Progress, ignore, per_component
from igap.attribution.method import Method
from igap.attribution.over_pairs import attribute, maps_of, public_method
from igap.components import Site
from igap.config import RunConfig
from igap.engine.activations import Model
from igap.engine.backend import Route
from igap.engine.baselines import Baseline
from igap.engine.contrast import Contrast
from igap.engine.hooks import Gradients, slopes_of
from igap.engine.metrics import by_question, check_gradient
from igap.engine.open_pairs import open_pairs
from igap.engine.positions import Positions
from igap.errors import InputError
from igap.errors.arguments import Finite
from igap.inputs.prompts import PromptPair
from igap.metrics import AnyMetric
from igap.vocabulary import LEAST_ON_CLEAN, BaselineKind, Direction


@public_method
def attribution_patching(
    model: Model,
    pair: PromptPair | Sequence[PromptPair],
    site: Site = "heads",
    *,
    baseline: BaselineKind | Baseline = "corrupted",
    direction: Direction = "noising",
    at: Finite = 0.0,
    positions: Positions = "all",
    metric: AnyMetric | Sequence[AnyMetric] = "logit_diff",
    route: Route | None = None,
    on_progress: Progress | None = None,
) -> AttributionMap | dict[str, AttributionMap]:
    """First-order estimate of activation patching: (a' - a) . dF/da at a, for every component.

    It is Integrated Gradients with one node at the start of the path.

    Args:
        model: A TransformerBridge, for example of `load_model`; it comes back unchanged.
        pair: The prompt pair, or several, whose mean is returned.
        site: "heads" (default), "neurons", "q", "k", "v", or one vector a layer: "resid_pre", "resid_mid",
            "resid_post", "attn_out", "mlp_out". See `igap.components.PLACES`.
        baseline: What activations move to, a kind or a Baseline. Default "corrupted", as in activation patching.
        direction: "noising" (default) patches the clean run; "denoising" the corrupted run, towards the clean one.
        at: The alpha, without unit, at which the gradient is taken: at a + alpha (a' - a). Default 0.0.
        positions: Whose part is given; "all" (default): the sum over positions. "each": `[layer, pos, component]`.
            "last", "diff": of the last one, or of those whose token differs. A mapping of spans by name to positions or
            words: `[layer, span, component]`.
        metric: F, default "logit_diff". "logit", "logprob", "prob": of the answer. "prob_diff": of answer and
            distractor. "kl", "js": to the clean output. Or an object of `igap.metrics`, or a function of logits
            `[row, vocab]` and the pair as token ids to one number a row. With "logprob" and a function the answer
            may be several tokens. Several metrics in a list share the forward passes.
        route: "suffix" or "hooks", how F is computed. None (default): the faster one that is right for the model.
        on_progress: Called with (components done, components in all).

    Returns:
        Effects `[layer, component]` in F's unit, and scores. Of a list of metrics a dictionary of maps by their names.

    Raises:
        InputError: An argument is invalid, or the pair does not fit the model.

    Example:
        >>> atp = attribution_patching(model, pair)
        >>> round(float(atp.score[0, 6]), 3), round(float(activation_patching(model, pair).score[0, 6]), 3)
        (-0.143, -0.169)

    Source: Kramár et al. 2024 (AtP, arXiv 2403.00745).
    """

    def estimate(contrast: Contrast, advance: Advance) -> list[AttributionMap]:
        return estimate_patches(contrast, site, advance, at=at, positions=positions)

    with open_pairs(model, pair, sites=(site,), route=route, metric=metric) as opened:
        about: Any = {"baseline": baseline, "direction": direction, "positions": positions}
        attributed = attribute(estimate, opened, site, on_progress, asked=metric, **about)
    maps = list(attributed.values()) if isinstance(attributed, dict) else [attributed]
    if at and not all(each.effect.isfinite().all() for each in maps):
        raise InputError(f"at: got {at:g}, where dF/da is not finite, wanted less. Take 0 to 1, which is on the path.")
    return attributed


def estimate_patches(
    contrast: Contrast,
    site: Site,
    advance: Advance = ignore,
    *,
    at: float = 0.0,
    positions: Positions = "all",
    batch_size: int | None = None,
    memory_gib: float | None = None,
) -> list[AttributionMap]:
    """Attribution patching of each question of a contrast; see `attribution_patching`."""
    if not at:
        check_gradient(contrast.readout, contrast.direction, "attribution patching")
    rows = contrast.rows(batch_size, memory_gib, gradients=True)

    def by_position(few: Tensor) -> Float[Tensor, "question layer pos component"]:
        pairs = few.tolist()
        slopes = _slopes(contrast, site, pairs, at) if at else contrast.gradients(site, pairs)
        effects: dict[int, Tensor] = {}
        for layer, _, slope in slopes:
            start, end = contrast.ends(site, layer)
            effects[layer] = per_component(contrast.by_question((end - start)[few]) * slope, site)
        return torch.stack([effects[layer] for layer in range(contrast.n_layers)], 1)

    effects = torch.cat([each for _, each in rows.each(by_position, torch.arange(len(contrast.pairs)))])
    advance(contrast.n_layers * contrast.n_components(site))
    return maps_of("atp", contrast, site, effects, positions)


def _slopes(contrast: Contrast, site: Site, few: list[int], at: float) -> Gradients:
    """The gradient at that share of each layer's own path."""
    for layer in range(contrast.n_layers):
        function, start, end = contrast.path(site, layer, few)
        leaf = (start + at * (end - start))[:, None].requires_grad_()
        with torch.enable_grad():
            by_metric = slopes_of(function(leaf), len(contrast.readout.metrics), [leaf])
        yield layer, None, by_question([slope[:, 0] for (slope,) in by_metric])


def _attribute(contrast: Contrast, site: Site, config: RunConfig, advance: Advance) -> list[AttributionMap]:
    return estimate_patches(
        contrast,
        site,
        advance,
        positions=config.positions.value,
        batch_size=config.batch_size,
        memory_gib=config.memory_gib,
    )


def no_gradient(config: RunConfig) -> str:
    """Why first-order estimates of a run with these settings say nothing; empty where they say something."""
    if config.direction == "noising" and config.metric.name in LEAST_ON_CLEAN:
        return f"to first order, and {config.metric.name} is least on the clean prompt, where its gradient is 0"
    return ""


METHOD = Method("atp", _attribute, shared=True, missing=lambda config, site, n_layers: no_gradient(config))  # noqa: ARG005
