"""Which components a run patches: all of them, or as many as have the largest effects."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, Field

from igap.components import PLACES, Site
from igap.config.groups import MetricConfig, PositionsConfig
from igap.config.schema import Frozen
from igap.vocabulary import LEAST_ON_CLEAN, Direction


class APConfig(Frozen):
    """Which components activation patching patches."""

    top: int | None = Field(None, ge=1, le=1_000_000, examples=[100])
    """How many of the largest effects are wanted; None: every effect."""
    tolerance: Annotated[float, AfterValidator(abs)] = Field(0.0, ge=0, le=1e9, examples=[0.01])  # -0.0 is 0
    """With `top`: by how much, in F's unit, an effect left out may be above the smallest of these."""


def top_problem(
    ap: APConfig,
    metric: MetricConfig,
    direction: Direction,
    positions: PositionsConfig,
    study: str | None,
    sites: Sequence[Site],
) -> str:
    """Why a run cannot have the largest effects alone; empty if it can, or has every effect."""
    if ap.top is None:
        return ""
    if direction == "noising" and metric.name in LEAST_ON_CLEAN:
        got, wanted = f"metric={metric.name}", "a metric with a gradient on the clean prompt, which finds them"
    elif not positions.is_default:
        got, wanted = f"positions={positions.kind}", "all positions at once"
    elif study is not None:
        got, wanted = f"study={study}", "no study, which goes through all effects"
    elif all(PLACES[site].is_vector for site in sites):
        got, wanted = f"sites={' '.join(sites)}", "a site of several components a layer"
    else:
        return ""
    return f"ap.top: got {ap.top} with {got}, wanted {wanted}. Leave one of the two out."
