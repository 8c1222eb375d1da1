"""AtP*: attribution patching by magnitude, with gradients dropped layer by layer so that paths cannot cancel.

Source: Kramar et al. 2024 (arXiv 2403.00745). Of its two changes to attribution patching

- GradDrop is all of what is here. For each layer one backward pass gives every component's first-order effect with
  no gradient through what that layer's attention and MLP write to the residual stream: of a direct and an indirect
  effect that cancel, one is left. The mean magnitude over these passes is the effect.
- The QK fix recomputes attention patterns exactly. A head's z and a neuron's activation come after the softmax: their
  difference a' - a is exact already and the fix has nothing to do. It matters to queries and keys: see `qk_patching`.
"""

import itertools
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from igap.attribution.attribution_patching import no_gradient
from igap.attribution.maps import Advance, AttributionMap, Progress, ignore, per_component
from igap.attribution.method import Method
from igap.attribution.over_pairs import attribute, public_method
from igap.components import Site
from igap.config import RunConfig
from igap.engine.activations import Model
from igap.engine.baselines import Baseline
from igap.engine.contrast import Contrast
from igap.engine.metrics import check_gradient
from igap.engine.open_pairs import open_pairs
from igap.errors import InputError
from igap.errors.arguments import Count, Positive
from igap.inputs.prompts import PromptPair
from igap.metrics import AnyMetric
from igap.vocabulary import BaselineKind, Direction

_HAVE_IT: tuple[Site, ...] = ("heads", "neurons", "v")


@public_method
def atp_star(
    model: Model,
    pair: PromptPair | Sequence[PromptPair],
    site: Site = "heads",
    *,
    baseline: BaselineKind | Baseline = "corrupted",
    direction: Direction = "noising",
    metric: AnyMetric | Sequence[AnyMetric] = "logit_diff",
    batch_size: Count | None = None,
    memory_gib: Positive | None = None,
    on_progress: Progress | None = None,
) -> AttributionMap | dict[str, AttributionMap]:
    """AtP* (attribution patching with GradDrop): the mean |AtP| over backward passes that each leave one layer out.

    Sum over layers l of |(a' - a) . dF/da without the gradient through l's output| / (layers - 1). A component's own
    layer leaves it no gradient, hence layers - 1. In the last layer it is |attribution patching|. Each layer costs a
    backward pass through those before it.

    Args:
        model: A TransformerBridge, for example of `load_model`; it comes back unchanged.
        pair: The prompt pair, or several, whose mean is returned.
        site: "heads" (default), "neurons" or "v".
        baseline: What activations move to, a kind or a Baseline. Default "corrupted", as in activation patching.
        direction: "noising" (default) patches the clean run; "denoising" the corrupted run, towards the clean one.
        metric: F, default "logit_diff"; see `activation_patching`. Several in a list share the forward pass.
        batch_size: Rows of a pass. None (default): as many as fit.
        memory_gib: GiB of a pass beyond the model. None (default): 2.
        on_progress: Called with (components done, components in all).

    Returns:
        Effects `[layer, component]` in F's unit, and scores: magnitudes without sign, at least 0. Of a list of metrics
        a dictionary of maps by their names.

    Raises:
        InputError: An argument is invalid, the pair does not fit the model, the model has one layer only, or the site
            is another. Queries and keys need the QK fix: a run has them in `qk.csv`. GradDrop is about what a layer
            writes; the residual stream goes past it.

    Example:
        >>> star = atp_star(model, pair)
        >>> star.signed, round(float(star.score[0, 6]), 3)
        (False, 0.095)

    Source: Kramár et al. 2024 (arXiv 2403.00745).
    """

    def drop(contrast: Contrast, advance: Advance) -> list[AttributionMap]:
        return drop_gradients(contrast, site, advance, batch_size=batch_size, memory_gib=memory_gib)

    check_layers(model.cfg.n_layers)
    if site not in _HAVE_IT:
        raise InputError(
            f"site: got {site} with atp_star, wanted heads, neurons or v, which lie within what GradDrop leaves out of "
            "a layer. Use attribution_patching."
        )
    with open_pairs(model, pair, sites=(site,), metric=metric) as opened:
        return attribute(drop, opened, site, on_progress, asked=metric, baseline=baseline, direction=direction)


def drop_gradients(
    contrast: Contrast,
    site: Site,
    advance: Advance = ignore,
    *,
    batch_size: int | None = None,
    memory_gib: float | None = None,
) -> list[AttributionMap]:
    """AtP* of each question of a contrast, of a model of two layers or more; see `atp_star`."""
    check_gradient(contrast.readout, contrast.direction, "AtP*")
    rows = contrast.rows(batch_size, memory_gib, gradients=True)
    parts: list[Tensor] = []

    def magnitudes(few: Tensor) -> Float[Tensor, "question layer component"]:
        def effect(layer: int, gradient: Tensor) -> Tensor:
            start, end = contrast.ends(site, layer)
            return per_component(contrast.by_question((end - start)[few]) * gradient, site).sum(1)

        def on_share(share: float) -> None:
            in_all = contrast.n_layers * contrast.n_components(site)
            done = sum(map(len, parts)) / len(contrast.questions) + len(few) * share / len(contrast.pairs)
            advance(int(in_all * done))

        return first_order(contrast, site, few.tolist(), effect, on_share)[1]

    for _, effects in rows.each(magnitudes, torch.arange(len(contrast.pairs))):
        parts.append(effects.cpu())
    return [
        AttributionMap("atp_star", site, effect, gap, least, signed=False)
        for effect, gap, least in zip(torch.cat(parts), contrast.gap.tolist(), contrast.least_gaps, strict=True)
    ]


def _attribute(contrast: Contrast, site: Site, config: RunConfig, advance: Advance) -> list[AttributionMap]:
    return drop_gradients(contrast, site, advance, batch_size=config.batch_size, memory_gib=config.memory_gib)


def _reason_missing(config: RunConfig, site: Site, n_layers: int) -> str:
    if n_layers < 2:
        return "a mean over the other layers, of which this model has none"
    if site not in _HAVE_IT:
        return f"of {', '.join(_HAVE_IT)} alone"
    return no_gradient(config) or ("" if config.positions.is_default else "of all positions at once")


METHOD = Method("atp_star", _attribute, shared=True, signed=False, missing=_reason_missing)


def check_layers(n_layers: int) -> None:
    """Raises InputError on a model of one layer, which leaves no other layer to drop."""
    if n_layers < 2:
        raise InputError(
            f"method: got atp_star with a model of {n_layers} layer, wanted at least 2: GradDrop is a mean over the "
            "other layers. Use attribution_patching."
        )


def first_order(
    contrast: Contrast,
    site: Site,
    few: list[int],
    effect: Callable[[int, Tensor], Tensor],
    on_share: Callable[[float], None] | None = None,
) -> Float[Tensor, "2 question layer node"]:
    """Effects to first order, and their mean magnitude by GradDrop.

    `effect` gives the effects of a layer's nodes, `[question, node]`, from the layer and dF/da of the site in it.
    `on_share` is called with the share of the passes that are done. In models of one layer the mean is 0.
    """
    n_layers = contrast.n_layers
    whole: dict[int, Tensor] = {}
    magnitudes = [contrast.gap.new_zeros(()) for _ in range(n_layers)]
    passes = itertools.count(1)
    for layer, dropped, gradient in contrast.gradients(site, few, dropping=n_layers > 1):
        effects = effect(layer, gradient)
        if dropped is None:
            whole[layer] = effects
        # What is dropped before a layer makes no difference to it.
        magnitudes[layer] = magnitudes[layer] + (layer if dropped is None else 1) * effects.abs()
        if on_share:
            on_share(2 * next(passes) / (n_layers * (n_layers + 1)))
    mean = torch.stack(magnitudes, 1) / max(1, n_layers - 1)
    return torch.stack([torch.stack([whole[layer] for layer in range(n_layers)], 1), mean])
