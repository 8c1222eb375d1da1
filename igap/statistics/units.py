"""The two units of a map's numbers: scores, or effects in logits where the gap is too small to divide by."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from jaxtyping import Float64

from igap.attribution.maps import AttributionMap

Unit = Literal["score", "logits"]

LABELS: Mapping[Unit, str] = {"score": "score (effect / gap)", "logits": "effect (logits)"}
"""What an axis says."""


def unit_of(*maps: AttributionMap) -> Unit:
    """Return `score` if every score of every map is finite, else `logits`."""
    return "score" if all(each.has_scores for each in maps) else "logits"


def values_in(unit: Unit, attribution: AttributionMap) -> Float64[np.ndarray, "layer component"]:
    """Return a map's scores, or its effects in logits."""
    values = attribution.score if unit == "score" else attribution.effect
    return np.asarray(values.detach().double().cpu().numpy())
