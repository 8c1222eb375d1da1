"""What the components that a cheap ranking puts last may still do: the diagnostic of AtP*."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from jaxtyping import Float64
from torch import Tensor

from igap.attribution.maps import AttributionMap
from igap.attribution.top_patching import FIRST_SUBSETS, Question, check_top, largest
from igap.components import Site
from igap.engine.activations import Model
from igap.engine.backend import Route
from igap.engine.baselines import Baseline
from igap.engine.open_pairs import open_pairs
from igap.errors import InputError
from igap.errors.arguments import Count, Positive, Range, Seed, checks_arguments
from igap.inputs.prompts import PromptPair
from igap.metrics import AnyMetric
from igap.vocabulary import BaselineKind, Direction


@checks_arguments
@dataclass(frozen=True, eq=False)
class EffectBound:
    """An upper bound on |effect| of every component outside the first k of a ranking, as `bound_effects` gives it.

    Example:
        >>> outside = bound_effects(model, pair, attribution_patching(model, pair, "neurons"), top=20)
        >>> outside.confidence, outside.n_subsets, outside.limits.shape
        (0.95, 253, torch.Size([4, 512]))
    """

    bound: float
    """In F's unit, at least 0."""
    confidence: float
    """The chance, between 0 and 1, that no effect is above the bound, if the assumptions hold."""
    site: Site
    top: int
    """How many components of the ranking the bound leaves out."""
    n_subsets: int
    """Subsets patched, a row of a forward pass each."""
    limits: Float64[Tensor, "layer component"] = field(repr=False)
    """What each component's |effect| is at most, in F's unit, by itself; NaN of those left out, 0 of what moves not."""


@checks_arguments
def bound_effects(
    model: Model,
    pair: PromptPair | Sequence[PromptPair],
    ranking: AttributionMap,
    top: Count,
    *,
    confidence: Annotated[float, Range(above=0, least=0.5, most=0.9999)] = 0.95,
    n_subsets: Count = FIRST_SUBSETS,
    baseline: BaselineKind | Baseline = "corrupted",
    direction: Direction = "noising",
    metric: AnyMetric = "logit_diff",
    seed: Seed = 0,
    batch_size: Count | None = None,
    memory_gib: Positive | None = None,
    route: Route | None = None,
) -> EffectBound:
    """Upper bound, with a stated confidence, on the effect that a component outside a ranking's first k can have.

    Random subsets of these components are patched together. How F changes with a component's subset, more than
    attribution patching of the members says, tells what the component's own effect is at most. Assumed: interactions
    within subsets average out; what attribution patching does not explain is normally distributed, as widely with a
    component as without it. No component is patched alone.

    Args:
        model: A TransformerBridge, for example of `load_model`; it comes back unchanged.
        pair: The prompt pair, or several: then the bound is on the mean effect.
        ranking: A map of any method, of whose |effect| the `top` largest are left out. Its site is bounded: "heads",
            "neurons", "q", "k" or "v".
        top: How many components are left out.
        confidence: The chance that no effect is above the bound. Default 0.95; from 0.5 to 0.9999.
        n_subsets: Subsets, a row of a forward pass each. Default 256; four times as many halve the margin.
        baseline: What activations move to, a kind or a Baseline. Default "corrupted", as in activation patching.
        direction: "noising" (default) patches the clean run; "denoising" the corrupted run, towards the clean one.
        metric: F, default "logit_diff"; see `activation_patching`.
        seed: Of the subsets. Default 0.
        batch_size: Rows of a pass. None (default): as many as fit.
        memory_gib: GiB of a pass beyond the model. None (default): 2.
        route: "suffix" or "hooks", how F is computed. None (default): the faster one that is right for the model.

    Returns:
        The bound, in F's unit, and the limit of each component.

    Raises:
        InputError: An argument is invalid, the pair does not fit the model, or the ranking is not of its components.

    Example:
        >>> ranking = attribution_patching(model, pair, "neurons")
        >>> outside = bound_effects(model, pair, ranking, top=20)
        >>> ap = activation_patching(model, pair, "neurons")
        >>> largest_outside = ap.effect[~outside.limits.isnan()].abs().max()
        >>> bool(largest_outside < outside.bound < 2 * largest_outside)
        True

    Source: Kramár et al. 2024 (AtP*, arXiv 2403.00745), subset sampling.
    """
    site = ranking.site
    with open_pairs(model, pair, sites=(site,), route=route, metric=metric) as opened:
        question = Question(opened, site, baseline, direction, batch_size, memory_gib)
        check_top(opened, site, top)
        moved = question.differs()
        if ranking.effect.shape != moved.shape or top >= moved.numel():
            raise InputError(
                f"ranking: got a map {list(ranking.effect.shape)} with top={top}, wanted one {list(moved.shape)} and a "
                "smaller top. Take a map of this model and all positions at once."
            )
        first = largest(ranking.effect.abs().nan_to_num(0).double().cpu(), top)
        limits, n_patched = torch.zeros(moved.shape, dtype=torch.float64), 0
        if (rest := moved & ~first).any():
            estimate, generator = question.estimate().effect.double(), torch.Generator().manual_seed(seed)
            limits, n_patched = question.limits(rest, estimate, n_subsets, 1 - confidence, generator)
        limits = limits.clamp(min=0).masked_fill(first, torch.nan)
    return EffectBound(float(limits.nan_to_num(0).max()), confidence, site, top, n_patched, limits)
