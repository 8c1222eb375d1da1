"""A method over the pairs of a run: the map of each, and their mean."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ParamSpec, Protocol, overload, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from igap.attribution.maps import Advance, AttributionMap, Progress
from igap.attribution.spans import over_spans, span_facts
from igap.components import SITES, Site
from igap.engine.baselines import Baseline
from igap.engine.contrast import Contrast
from igap.engine.open_pairs import OpenPairs
from igap.engine.positions import Positions, check_lengths, check_spans
from igap.errors import InputError
from igap.errors.arguments import checks_arguments
from igap.metrics import AnyMetric, LogitDiff, Metric
from igap.vocabulary import BaselineKind, Direction

PairMaps = Callable[[Contrast, Advance], list[AttributionMap]]
"""A method and its options: the map of each question of a contrast."""

P = ParamSpec("P")


@runtime_checkable
class MapByMetric(Protocol[P]):
    """A method as users call it: the map of one metric, or those of several by the metrics' names."""

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, *given: Any, metric: list[AnyMetric] | tuple[AnyMetric, ...], **options: Any
    ) -> dict[str, AttributionMap]: ...
    @overload
    def __call__(self, *given: P.args, **options: P.kwargs) -> AttributionMap: ...


def public_method(method: Callable[P, AttributionMap | dict[str, AttributionMap]]) -> MapByMetric[P]:
    """The method with its arguments checked, and with a result whose type is known from them."""
    checked: Any = checks_arguments(method)
    return checked  # type: ignore[no-any-return]


def attribute(
    method: PairMaps,
    opened: OpenPairs,
    site: Site,
    on_progress: Progress | None = None,
    *,
    asked: AnyMetric | Sequence[AnyMetric],
    **about: Any,
) -> AttributionMap | dict[str, AttributionMap]:
    """As `attribute_pairs`; of several metrics, `asked` as a list, the map of each by its name."""
    maps = attribute_metrics(method, opened, site, on_progress, **about)
    for each in maps:
        check_finite(each)
    return {each.metric: each for each in maps} if isinstance(asked, list | tuple) else maps[0]


def attribute_pairs(
    method: PairMaps,
    opened: OpenPairs,
    site: Site,
    on_progress: Progress | None = None,
    *,
    baseline: BaselineKind | Baseline = "corrupted",
    direction: Direction = "noising",
    positions: Positions = "all",
    named_in: Direction | None = None,
) -> AttributionMap:
    """The method's map of one pair, or the mean over several pairs, with the map of each in `pairs`; of one metric."""
    about: Any = {"baseline": baseline, "direction": direction, "positions": positions, "named_in": named_in}
    (made,) = attribute_metrics(method, opened, site, on_progress, **about)
    check_finite(made)
    return made


def attribute_metrics(
    method: PairMaps,
    opened: OpenPairs,
    site: Site,
    on_progress: Progress | None = None,
    *,
    baseline: BaselineKind | Baseline = "corrupted",
    direction: Direction = "noising",
    positions: Positions = "all",
    named_in: Direction | None = None,
    metrics: Sequence[Metric] | None = None,
) -> list[AttributionMap]:
    """The method's map of each metric, those that the pairs were opened with or others; not checked to be finite.

    `positions` are of the prompt that the direction `named_in` patches; None: this direction.
    """
    check_lengths(positions, opened.tokens, named_in or direction)
    kind = baseline.kind if isinstance(baseline, Baseline) else baseline
    for pair in opened.tokens:
        check_spans(positions, pair, named_in or direction, kind)
    n_pairs = len(opened.pairs)
    if kind == "zero_input" and site not in SITES:
        raise InputError(f"baseline: got zero_input of {site}, wanted it of heads or neurons. Use baseline=zero.")
    maps: dict[Metric, dict[int, AttributionMap]] = {}
    n_done = 0
    for indices, contrast in opened.contrasts(baseline, direction, metrics):
        in_all = contrast.n_layers * contrast.n_components(site)

        def advance(done: int, before: int = n_done, at_once: int = len(indices), each: int = in_all) -> None:
            if on_progress:
                on_progress(before * each + at_once * done, n_pairs * each)

        for (place, metric), made in zip(
            contrast.questions, method(replace(contrast, named_in=named_in), advance), strict=True
        ):
            about: Any = {"metric": metric.name, "unit": metric.unit, "function": getattr(metric, "function", None)}
            of_pair = replace(made, baseline=kind, direction=direction, **about)
            maps.setdefault(metric, {})[indices[place]] = of_pair
        advance(in_all)
        n_done += len(indices)
    return [mean([of_pairs[index] for index in range(n_pairs)]) for of_pairs in maps.values()]


def maps_of(
    method: str,
    contrast: Contrast,
    site: Site,
    effects: Float[Tensor, "question layer pos component"],
    positions: Positions,
) -> list[AttributionMap]:
    """The map of each question, from the effect of each position, which add up."""
    spans = contrast.spans(positions)
    effect, together = over_spans(effects.cpu(), contrast, spans)
    return [
        AttributionMap(
            method, site, effect[index], gap=gap, min_gap=least, **span_facts(spans, together, contrast, index)
        )
        for index, (gap, least) in enumerate(zip(contrast.gap.tolist(), contrast.least_gaps, strict=True))
    ]


def check_finite(made: AttributionMap) -> None:
    """Raises InputError where a metric, but for the logit difference, is not finite between the two prompts."""
    for each in () if made.metric == LogitDiff.name else made.pairs or (made,):
        for values in (each.effect, each.layer_effect):
            bad = None if values is None else ~values.isfinite()
            if bad is not None and values is each.effect and each.top is not None:
                bad &= ~each.effect.isnan()  # effects left out
            if bad is not None and bad.any():
                layer = int(bad.nonzero()[0, 0])
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
        function=first.function,
    )
