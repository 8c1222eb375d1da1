"""Activation patching: each component replaced by itself, at all positions, exactly.

Heimersheim & Nanda 2024 (arXiv 2404.15255), Zhang & Nanda 2023 (2309.16042).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from igap.attribution.maps import Advance, AttributionMap, Progress, ignore
from igap.attribution.method import Method
from igap.attribution.over_pairs import attribute, check_finite, public_method
from igap.attribution.spans import span_facts
from igap.attribution.top_patching import Question, patch_top
from igap.components import PLACES, Site
from igap.config import RunConfig
from igap.engine.activations import Model
from igap.engine.backend import Route
from igap.engine.baselines import Baseline
from igap.engine.batching import AdaptiveBatch
from igap.engine.contrast import Contrast
from igap.engine.hooks import SiteFunction
from igap.engine.open_pairs import OpenPairs, open_pairs
from igap.engine.positions import Positions
from igap.errors import InputError
from igap.errors.arguments import Count, NotNegative, Positive, Seed
from igap.inputs.prompts import PromptPair
from igap.metrics import AnyMetric
from igap.storage.cache import part
from igap.vocabulary import BaselineKind, Direction

_SPANS_A_PASS = 8
"""Spans that share the passes of a one-vector site: each alone is a row, for which every weight is read, but from the
first position of the few on all is recomputed."""


@public_method
def activation_patching(
    model: Model,
    pair: PromptPair | Sequence[PromptPair],
    site: Site = "heads",
    *,
    baseline: BaselineKind | Baseline = "corrupted",
    direction: Direction = "noising",
    positions: Positions = "all",
    metric: AnyMetric | Sequence[AnyMetric] = "logit_diff",
    top: Count | None = None,
    tolerance: NotNegative = 0.0,
    seed: Seed = 0,
    batch_size: Count | None = None,
    memory_gib: Positive | None = None,
    route: Route | None = None,
    on_progress: Progress | None = None,
) -> AttributionMap | dict[str, AttributionMap]:
    """F with one component replaced minus F without, for every component.

    Noising: the baseline's activation into the clean run, relative to F(x). Denoising: the clean activation into the
    corrupted run, relative to F(x'). A component equal at both ends is exactly 0.

    Args:
        model: A TransformerBridge, for example of `load_model`; it comes back unchanged.
        pair: The prompt pair, or several, whose mean is returned.
        site: "heads" (default), "neurons", "q", "k", "v", or one vector a layer: "resid_pre", "resid_mid",
            "resid_post", "attn_out", "mlp_out". See `igap.components.PLACES`.
        baseline: What activations move to, a kind or a Baseline. Default "corrupted", as in activation patching.
        direction: "noising" (default) patches the clean run; "denoising" the corrupted run, towards the clean one.
        positions: Which positions change; "all" (default): at once. "each": one at a time, `[layer, pos, component]`.
            "last", "diff": the last one, or those whose token differs. A mapping of spans by name to positions or
            words: `[layer, span, component]`.
        metric: F, default "logit_diff". "logit", "logprob", "prob": of the answer. "prob_diff": of answer and
            distractor. "kl", "js": to the clean output. Or an object of `igap.metrics`, or a function of logits
            `[row, vocab]` and the pair as token ids to one number a row. With "logprob" and a function the answer
            may be several tokens. Several metrics in a list share the forward passes.
        top: How many of the largest |effects| are wanted. None (default): all effects. Otherwise attribution patching
            says where they may be, and only those components are patched; effects of others are NaN, and `top` of the
            map says what they are at most. For sites of thousands of components, of one metric and all positions.
        tolerance: With `top`: by how much, in F's unit, an effect left out may be above the smallest of these. Default
            0.0.
        seed: With `top`: of the random subsets that bound the effects left out. Default 0.
        batch_size: Rows of a pass. None (default): as many as fit.
        memory_gib: GiB of a pass beyond the model. None (default): 2.
        route: "suffix" or "hooks", how F is computed. None (default): the faster one that is right for the model.
        on_progress: Called with (components done, components in all).

    Returns:
        Effects `[layer, component]` in F's unit, and scores. Of a list of metrics a dictionary of maps by their names.

    Raises:
        InputError: An argument is invalid, or the pair does not fit the model.

    Example:
        >>> ap = activation_patching(model, pair)
        >>> round(ap.gap, 3), round(float(ap.effect[3, 0]), 3), round(float(ap.score[3, 0]), 3)
        (10.442, -1.479, -0.142)
        >>> largest = activation_patching(model, pair, "neurons", top=10)
        >>> largest.top.is_certain, largest.top.n_passes, largest.top.n_exact
        (True, 282, 2048)

    Source: Heimersheim & Nanda 2024 (arXiv 2404.15255); of `top` Kramár et al. 2024 (2403.00745).
    """

    def patch(contrast: Contrast, advance: Advance) -> list[AttributionMap]:
        return patch_components(
            contrast, site, advance, positions=positions, batch_size=batch_size, memory_gib=memory_gib
        )

    if top is None and tolerance:
        raise InputError(f"tolerance: got {tolerance:g} without top, wanted both. Say how many: top=100.")
    if top is not None and positions != "all":
        raise InputError(f"top: got {top} with positions, wanted all positions at once. Leave one of the two out.")
    with open_pairs(model, pair, sites=(site,), route=route, metric=metric) as opened:
        about: Any = {"baseline": baseline, "direction": direction}
        if top is not None:
            budget: Any = {"batch_size": batch_size, "memory_gib": memory_gib}
            made = _patch_top(Question(opened, site, **about, **budget), top, tolerance, seed, on_progress)
            return {made.metric: made} if isinstance(metric, list | tuple) else made
        about["positions"] = positions
        return attribute(patch, opened, site, on_progress, asked=metric, **about)


def patch_components(
    contrast: Contrast,
    site: Site,
    advance: Advance = ignore,
    *,
    positions: Positions = "all",
    chosen: Bool[Tensor, "layer component"] | None = None,
    batch_size: int | None = None,
    memory_gib: float | None = None,
) -> list[AttributionMap]:
    """Activation patching of each question of a contrast; see `activation_patching`.

    Of the `chosen` components alone, if told so: effects of others that move are NaN.
    """
    spans = contrast.spans(positions)
    everywhere = torch.ones_like(contrast.base.tokens, dtype=torch.bool)
    masks = (everywhere,) if spans is None else (everywhere, *spans.masks) if spans.has_axis else spans.masks
    at_once = _SPANS_A_PASS if PLACES[site].is_vector else 1
    in_all = contrast.n_layers * contrast.n_components(site)
    effects: list[Tensor] = []
    for before in range(0, len(masks), at_once):
        where = torch.stack(masks[before : before + at_once], 1)

        def part(done: int, before: int = before, now: int = where.shape[1]) -> None:
            advance((before * in_all + now * done) // len(masks))

        each = contrast.at(where.any(1))
        effects.append(_patch(each, site, where, part, each.rows(batch_size, memory_gib, gradients=False), chosen))
    effect, together = torch.cat(effects, 2), None
    if spans is not None and spans.has_axis:
        together, effect = effect[:, :, 0], effect[:, :, 1:]
    else:
        effect = effect[:, :, 0]
    return [
        AttributionMap(
            "ap",
            site,
            effect[index],
            gap=gap,
            min_gap=least,
            **span_facts(spans, together, contrast, index),
        )
        for index, (gap, least) in enumerate(zip(contrast.gap.tolist(), contrast.least_gaps, strict=True))
    ]


def _patch(
    contrast: Contrast,
    site: Site,
    where: Bool[Tensor, "pair span pos"],
    advance: Advance,
    rows: AdaptiveBatch,
    chosen: Bool[Tensor, "layer component"] | None,
) -> Float[Tensor, "question layer span component"]:
    """F with each component replaced at each span minus F without, in logits; several spans of one-vector sites only.

    The positions of all the spans are those at which the contrast changes.
    """
    width, n_pairs, late = contrast.n_components(site), len(contrast.pairs), where[:, :, contrast.first :, None, None]
    effect = contrast.gap.new_zeros(len(contrast.questions), contrast.n_layers, where.shape[1] * width)

    def patch(layer: int) -> Mapping[str, Tensor]:
        start, end = contrast.ends(site, layer)
        alone = where.shape[1] == 1
        moved = contrast.differs(site, layer) if alone else (late & (start != end)[:, None]).flatten(2).any(2)
        wanted = torch.ones_like(moved[0]) if chosen is None else chosen[layer].to(moved.device).repeat(where.shape[1])
        done, here = layer * width, effect[:, layer]
        if (moved & wanted).any():
            function = contrast.function(site, layer)
            unpatched = function(start[:, None])
            patches = contrast.patches(site, layer) if alone else partial(_mix, function, start, end, late)
            for items, patched in rows.each(patches, (moved.any(0) & wanted).nonzero().flatten(), n_pairs):
                here[:, items] = patched - unpatched
                done += len(items) // where.shape[1]
                advance(done)
        # Those that moved in another pair of the pass only.
        made = here.masked_fill(~contrast.by_question(moved), 0)
        return {"effect": made.masked_fill(contrast.by_question(moved) & ~wanted, float("nan"))}

    about = {
        "site": site,
        "direction": contrast.direction,
        "metrics": [metric.name for metric in contrast.readout.metrics],
        "pairs": [pair.identity for pair in contrast.pairs],
        "where": where.int().tolist(),
    }
    if chosen is not None:
        about["chosen"] = chosen.nonzero().tolist()
    with torch.no_grad():
        for layer in range(contrast.n_layers):
            effect[:, layer] = part(about | {"layer": layer}, partial(patch, layer))["effect"].to(effect)
            advance((layer + 1) * width)
    return effect.view(*effect.shape[:2], -1, width).cpu()


def _mix(function: SiteFunction, start: Tensor, end: Tensor, where: Tensor, spans: Tensor) -> Tensor:
    """F of each of the spans, one row each: `end` there and `start` elsewhere."""
    return function(torch.where(where[:, spans], end[:, None], start[:, None]))


def _patch_top(
    question: Question, top: int, tolerance: float, seed: int, on_progress: Progress | None
) -> AttributionMap:
    def patch(contrast: Contrast, advance: Advance, chosen: Bool[Tensor, "layer component"]) -> list[AttributionMap]:
        budget: Any = {"batch_size": question.batch_size, "memory_gib": question.memory_gib}
        return patch_components(contrast, question.site, advance, chosen=chosen, **budget)

    made = patch_top(question, patch, top, tolerance, seed, on_progress)
    check_finite(made)
    return made


def _attribute(contrast: Contrast, site: Site, config: RunConfig, advance: Advance) -> list[AttributionMap]:
    return patch_components(
        contrast,
        site,
        advance,
        positions=config.positions.value,
        batch_size=config.batch_size,
        memory_gib=config.memory_gib,
    )


def _attribute_top(
    opened: OpenPairs, site: Site, config: RunConfig, on_progress: Progress | None
) -> AttributionMap | None:
    """The largest effects of a site that has as many; None where every effect is wanted."""
    _, contrast = next(opened.contrasts(direction=config.direction))
    n_components = contrast.n_layers * contrast.n_components(site)
    if config.ap.top is None or PLACES[site].is_vector or n_components <= config.ap.top:
        return None
    budget: Any = {"batch_size": config.batch_size, "memory_gib": config.memory_gib}
    question = Question(opened, site, direction=config.direction, **budget)
    return _patch_top(question, config.ap.top, config.ap.tolerance, config.seed, on_progress)


METHOD = Method("ap", _attribute, shared=True, of_all=_attribute_top)
