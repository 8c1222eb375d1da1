"""The two units of a map's numbers: scores, or effects in logits where the gap is too small to divide by."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float64

from igap.attribution.maps import AttributionMap
from igap.components import PLACES
from igap.errors import InputError
from igap.statistics.agreement import ROUNDING

Unit = Literal["score", "logits"]
"""`logits` are effects, in the unit of the maps' metric where that is another than the logit difference."""

LABELS: Mapping[Unit, str] = {"score": "score (effect / gap)", "logits": "effect (logits)"}
"""What an axis says of numbers on the logit difference."""


def has_value(attribution: AttributionMap) -> Bool[np.ndarray, "layer *span component"]:
    """Return where a map has an effect: everywhere, but for the components that AP with `top` leaves out."""
    missing = attribution.effect.isnan() if attribution.top is not None else attribution.effect.new_zeros(()).bool()
    return np.asarray((~missing).expand(attribution.effect.shape).cpu().numpy())


def label_of(unit: Unit, attribution: AttributionMap) -> str:
    """Return what an axis says of a map's numbers in this unit: `LABELS`, with the unit of the map's metric."""
    return LABELS["score"] if unit == "score" else f"effect ({attribution.unit})"


def unit_of(*maps: AttributionMap) -> Unit:
    """Return `score` if every score of every map is finite, else `logits`."""
    return "score" if all(each.has_scores for each in maps) else "logits"


def rounding_share(*maps: AttributionMap) -> float:
    """Return the share of the largest magnitude by which two numbers of a map may differ and be one number.

    A site of one vector a layer has one effect in every layer, up to its dtype's rounding: correlations of what is left
    would be of rounding. Of other maps it is float64's rounding, in which they are compared.
    """
    vectors = [each for each in maps if PLACES[each.site].is_vector and each.spans is None]
    return max([ROUNDING, *(32 * torch.finfo(each.effect.dtype).eps for each in vectors)])


def values_in(unit: Unit, attribution: AttributionMap) -> Float64[np.ndarray, "layer *span component"]:
    """Return a map's scores, or its effects in logits."""
    values = attribution.score if unit == "score" else attribution.effect
    return np.asarray(values.detach().double().cpu().numpy())


def comparable_values(
    ig: AttributionMap, ap: AttributionMap
) -> tuple[Unit, Float64[np.ndarray, "layer *span component"], Float64[np.ndarray, "layer *span component"]]:
    """The unit `score` and the scores of both maps, or if those are missing (small gap) `logits` and the effects.

    If one of the maps has no sign, magnitudes of both. Raises InputError for different sites, positions or metrics.
    """
    if ig.site != ap.site:
        raise InputError(f"ap is a map of {ap.site}, {ig.method} of {ig.site}; compare two maps of one site.")
    if _places(ig) != _places(ap):
        raise InputError(
            f"ap is a map {_positions(ap)}, {ig.method} {_positions(ig)}; compare two maps of the same positions. Give "
            'both the same positions=, or take one position of each: compare(ig.at("10"), ap.at("10")).'
        )
    if ig.where and ig.direction != ap.direction:
        raise InputError(
            f"ap is a map of {ap.direction}, {ig.method} of {ig.direction}; their positions are those of two prompts. "
            "Compare two maps of one direction, or of all positions."
        )
    if ig.metric != ap.metric:
        raise InputError(f"ap is a map of {ap.metric}, {ig.method} of {ig.metric}; compare two maps of one metric.")
    if None not in (ig.function, ap.function) and ig.function != ap.function:
        raise InputError(
            f"ap is a map of {ap.metric}, {ig.method} of another function of that name; compare two maps of one metric."
        )
    unit = unit_of(ig, ap)
    x, y = values_in(unit, ig), values_in(unit, ap)
    if not (ig.signed and ap.signed):
        x, y = np.abs(x), np.abs(y)
    return unit, x, y


def _places(attribution: AttributionMap) -> Sequence[object]:
    """Which positions a map is of, and whether it has an axis of them."""
    by_pair = [each.where for each in attribution.pairs]
    return attribution.spans is not None, attribution.where or (any(by_pair) and by_pair)


def _positions(attribution: AttributionMap) -> str:
    if attribution.spans is None:
        return attribution.place.strip() or "of all positions at once"
    places = attribution.where or [()] * len(attribution.spans)
    named = [f"{name} {list(where)}" for name, where in zip(attribution.spans, places, strict=True)]
    return f"by {len(named)} positions or spans ({', '.join(named[:3])}{', ...' if len(named) > 3 else ''})"
