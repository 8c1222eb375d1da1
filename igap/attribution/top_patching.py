"""Exact activation patching of the components that may be among the k largest, and a bound on all others.

A cheap estimate, attribution patching, says what to patch first. Then random subsets of what is left are patched
together (`subset_bound`): that gives an upper limit of each component's effect. Components whose limit is above the
k-th largest effect are patched as well, until none is left or a tenth of the passes of exact patching is used up.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from igap.attribution.attribution_patching import estimate_patches
from igap.attribution.maps import Advance, AttributionMap, Progress, Top
from igap.attribution.over_pairs import attribute_metrics, check_finite, mean
from igap.attribution.subset_bound import members_of, random_groups, upper_limits
from igap.components import PLACES, Site
from igap.engine.baselines import Baseline
from igap.engine.contrast import Contrast
from igap.engine.open_pairs import OpenPairs
from igap.engine.site_sets import set_metrics
from igap.errors import InputError
from igap.vocabulary import BaselineKind, Direction

CONFIDENCE = 0.95
"""The chance, at least, that nothing that was left out is above the bound."""

FIRST_SUBSETS = 256
"""Subsets of the first round; every further round has twice as many."""

_FIRST_SHARE = 3
"""Components that are patched before the first round, a multiple of k."""

_LARGEST_COST = 0.1
"""Share of the passes of exact patching after which no further round begins."""

Patch = Callable[[Contrast, Advance, Bool[Tensor, "layer component"]], list[AttributionMap]]
"""Activation patching of the chosen components: the map of each pair, NaN where another component moves."""


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked of some pairs: how F changes when components of a site move."""

    opened: OpenPairs
    site: Site
    baseline: BaselineKind | Baseline = "corrupted"
    direction: Direction = "noising"
    batch_size: int | None = None
    memory_gib: float | None = None

    def attribute(self, method: Callable[[Contrast, Advance], list[AttributionMap]]) -> AttributionMap:
        """The method's map of each pair, and their mean."""
        about: Any = {"baseline": self.baseline, "direction": self.direction}
        (made,) = attribute_metrics(method, self.opened, self.site, **about)
        return made

    def estimate(self) -> AttributionMap:
        """Attribution patching."""
        budget: Any = {"batch_size": self.batch_size, "memory_gib": self.memory_gib}
        return self.attribute(lambda contrast, advance: estimate_patches(contrast, self.site, advance, **budget))

    def differs(self) -> Bool[Tensor, "layer component"]:
        """Whether a component's activation differs between the ends, in any pair."""
        moved = [
            torch.stack([contrast.differs(self.site, layer).any(0) for layer in range(contrast.n_layers)])
            for _, contrast in self.opened.contrasts(self.baseline, self.direction)
        ]
        return torch.stack(moved).any(0).cpu()

    def limits(
        self,
        rest: Bool[Tensor, "layer component"],
        estimate: Float[Tensor, "layer component"],
        n_subsets: int,
        doubt: float,
        generator: torch.Generator,
    ) -> tuple[Float[Tensor, "layer component"], int]:
        """What |effect| of each of the rest is at most, from about so many subsets of them; and how many.

        -infinity of all other components.
        """
        groups, n_groups = random_groups(int(rest.sum()), n_subsets, generator)
        n_patched = len(groups) * n_groups
        kept = torch.ones(n_patched + 1, *rest.shape, dtype=torch.bool)
        kept[:-1, rest] = ~members_of(groups, n_groups).flatten(0, 1)  # the last set is F without any change
        baseline = self.baseline if isinstance(self.baseline, Baseline) else Baseline(self.baseline)
        budget: Any = {"batch_size": self.batch_size, "memory_gib": self.memory_gib}
        values = set_metrics(self.opened, {self.site: kept}, baseline=baseline, direction=self.direction, **budget)
        if not values.isfinite().all():
            raise InputError(
                f"metric: got NaN or infinity from {self.opened.metrics[0].name} where several {self.site} are patched "
                "together, wanted a number. Use a metric that is finite for all logits, or leave top out."
            )
        changes = (values[:, :-1] - values[:, -1:]).mean(0).view(-1, n_groups)
        limits = torch.full(rest.shape, -torch.inf, dtype=torch.float64)
        limits[rest] = upper_limits(changes, groups, estimate[rest], doubt)
        return limits, n_patched


def check_top(opened: OpenPairs, site: Site, top: int) -> None:
    """Raises InputError where a site has no k largest components to look for."""
    if PLACES[site].is_vector:
        raise InputError(
            f"top: got {top} with site={site}, wanted a site of several components a layer: patching this one in a "
            "layer undoes what is patched before. Leave top out."
        )
    if len(opened.metrics) > 1:
        raise InputError(
            f"top: got {top} with {len(opened.metrics)} metrics, wanted one: each has its own largest components. "
            "Ask for one after the other."
        )


def patch_top(
    question: Question,
    patch: Patch,
    top: int,
    tolerance: float = 0.0,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> AttributionMap:
    """The exact effects of the components that may be among the `top` largest by |effect|; NaN of others that move.

    Raises InputError where there are fewer components than `top`.
    """
    check_top(question.opened, question.site, top)
    moved, generator = question.differs(), torch.Generator().manual_seed(seed)
    if top > moved.numel():
        raise InputError(
            f"top: got {top}, but {question.site} has {moved.numel()} components, wanted fewer. Leave top out to patch "
            "them all."
        )
    n_moved, first = int(moved.sum()), _FIRST_SHARE * top
    chosen = moved.clone()
    if n_moved > first + FIRST_SUBSETS:
        estimate = question.estimate().effect.double()
        chosen = largest(estimate.abs().masked_fill(~moved, -torch.inf), first)
    rest = moved & ~chosen
    n_done, n_expected = 0, int(chosen.sum()) + FIRST_SUBSETS * bool(rest.any())

    def advance(more: int) -> None:
        nonlocal n_done
        n_done += more
        if on_progress:
            on_progress(n_done, max(n_done, n_expected))

    def patch_chosen(chosen: Bool[Tensor, "layer component"]) -> AttributionMap:
        made = question.attribute(lambda contrast, told: patch(contrast, told, chosen))
        for each in made.pairs or (made,):
            check_finite(replace(each, effect=each.effect.masked_fill(~chosen, 0)))
        advance(int(chosen.sum()))
        return made

    made, bound = patch_chosen(chosen), 0.0
    least = _kth(made, top)
    for round_number in itertools.count() if rest.any() else ():
        n_subsets, doubt = FIRST_SUBSETS * 2**round_number, (1 - CONFIDENCE) / 2 ** (round_number + 1)
        limits, n_patched = question.limits(rest, estimate, n_subsets, doubt, generator)
        advance(n_patched)
        bound = float(limits.max())
        n_next = min(int((limits > least + tolerance).sum()), n_subsets)
        n_expected = n_done + n_next + 2 * n_subsets
        if not n_next or n_expected > _LARGEST_COST * n_moved:
            break
        new = largest(limits, n_next)
        made, rest = _fill(made, patch_chosen(new)), rest & ~new
        least = _kth(made, top)
    facts = Top(top, tolerance, least, bound, int(made.effect.isnan().sum()), n_done, n_moved)
    return replace(made, top=facts, pairs=tuple(replace(each, top=facts) for each in made.pairs))


def largest(values: Float[Tensor, "layer component"], n: int) -> Bool[Tensor, "layer component"]:
    """Where the n largest values are; of equal ones the first."""
    chosen = torch.zeros(values.numel(), dtype=torch.bool)
    chosen[values.flatten().argsort(descending=True, stable=True)[:n]] = True
    return chosen.view_as(values)


def _kth(made: AttributionMap, k: int) -> float:
    """The k-th largest |effect| of those that there are."""
    return float(made.effect.abs().nan_to_num(0).flatten().topk(k).values[-1])


def _fill(made: AttributionMap, more: AttributionMap) -> AttributionMap:
    """A map with the effects that another one has beside its own."""
    if made.pairs:
        return mean([_fill(*both) for both in zip(made.pairs, more.pairs, strict=True)])
    return replace(made, effect=torch.where(made.effect.isnan(), more.effect, made.effect))
