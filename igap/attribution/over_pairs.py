"""A method over the pairs of a run: the map of each, and their mean."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from igap.attribution.maps import Advance, AttributionMap, Progress
from igap.components import SITES, Site
from igap.engine.baselines import Baseline
from igap.engine.contrast import Contrast
from igap.engine.open_pairs import OpenPairs
from igap.engine.positions import Positions, check_lengths, check_spans
from igap.errors import InputError
from igap.vocabulary import BaselineKind, Direction

PairMaps = Callable[[Contrast, Advance], list[AttributionMap]]
"""A method and its options: the map of each pair of a contrast."""


def attribute_pairs(
    method: PairMaps,
    opened: OpenPairs,
    site: Site,
    on_progress: Progress | None = None,
    *,
    baseline: BaselineKind | Baseline = "corrupted",
    direction: Direction = "noising",
    positions: Positions = "all",
) -> AttributionMap:
    """The method's map of one pair, or the mean over several pairs, with the map of each in `pairs`."""
    check_lengths(positions, opened.tokens, direction)
    kind = baseline.kind if isinstance(baseline, Baseline) else baseline
    for pair in opened.tokens:
        check_spans(positions, pair, direction, kind)
    n_pairs = len(opened.pairs)
    if kind == "zero_input" and site not in SITES:
        raise InputError(f"baseline: got zero_input of {site}, wanted it of heads or neurons. Use baseline=zero.")
    maps: dict[int, AttributionMap] = {}
    for indices, contrast in opened.contrasts(baseline, direction):
        in_all = contrast.n_layers * contrast.n_components(site)

        def advance(done: int, before: int = len(maps), at_once: int = len(indices), each: int = in_all) -> None:
            if on_progress:
                on_progress(before * each + at_once * done, n_pairs * each)

        readout = contrast.readout
        about: Any = {"baseline": kind, "direction": direction, "metric": readout.name, "unit": readout.metric.unit}
        made = [replace(each, **about) for each in method(contrast, advance)]
        if not readout.is_logit_diff:
            _check_finite(made)
        maps.update(zip(indices, made, strict=True))
        advance(in_all)
    return mean([maps[index] for index in range(n_pairs)])


def _check_finite(maps: Sequence[AttributionMap]) -> None:
    """Raises InputError where a metric is not finite somewhere between the two prompts."""
    for each in maps:
        for values in (each.effect, each.layer_effect):
            if values is not None and not values.isfinite().all():
                layer = int((~values.isfinite()).nonzero()[0, 0])
                raise InputError(
                    f"metric: got NaN or infinity from {each.metric} in layer {layer}, wanted a number all the way "
                    "from one prompt to the other. Use a metric that is finite for all logits."
                )


def mean(maps: Sequence[AttributionMap]) -> AttributionMap:
    """The mean of one method's maps of several pairs; one map as it is."""
    if len(maps) == 1:
        return maps[0]
    first = maps[0]
    delta = layer_effect = rounding = n_steps = converged = None
    if first.delta is not None:
        each = [torch.stack([getattr(m, name) for m in maps]) for name in ("delta", "layer_effect", "rounding")]
        worst = each[0].abs().argmax(0, keepdim=True)
        delta, layer_effect, rounding = (of_pairs.gather(0, worst)[0] for of_pairs in each)
    if first.n_steps is not None:
        n_steps = torch.stack([m.n_steps for m in maps if m.n_steps is not None]).amax(0)
    if first.converged is not None:
        converged = torch.stack([m.converged for m in maps if m.converged is not None]).all(0)
    spans, together = first.spans, None
    if spans is not None and any(m.spans != spans for m in maps):
        spans = tuple(name.split()[0] for name in spans)  # positions, whose tokens differ between the pairs
    if first.together is not None:
        together = torch.stack([m.together for m in maps if m.together is not None]).mean(0)
    return AttributionMap(
        method=first.method,
        site=first.site,
        effect=torch.stack([m.effect for m in maps]).mean(0),
        spans=spans,
        together=together,
        where=first.where if all(m.where == first.where for m in maps) else None,
        covers=all(m.covers for m in maps),
        gap=sum(m.gap for m in maps) / len(maps),
        min_gap=first.min_gap,
        delta=delta,
        layer_effect=layer_effect,
        rounding=rounding,
        n_steps=n_steps,
        signed=first.signed,
        converged=converged,
        pairs=tuple(maps),
        baseline=first.baseline,
        direction=first.direction,
        metric=first.metric,
        unit=first.unit,
    )
