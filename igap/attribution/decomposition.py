"""Why IG and AP differ: the exact chain from the naive IG to AP, each term the difference of two maps.

    AtP -curvature-> IG -quadrature-> IG converged -baseline-> IG corrupted -interaction-> AP -direction-> -AP mirrored

The first three points are of IG's own baseline and path, the fourth of the corrupted baseline, which AP patches in.
AtP is the naive IG: all of the path at its first point. With the single path the integral is known without nodes: it
is activation patching, and there is no interaction.

By positions every point is the part of these positions: IG and AtP share out what all positions do along the path, AP
moves these positions alone. So the interaction is with the other components of the layer and with other positions. The
mirrored AP is of the partners of these positions in the other prompt. The single path has no such chain: its integral
at some positions is no patch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from igap.attribution.activation_patching import patch_components
from igap.attribution.attribution_patching import estimate_patches
from igap.attribution.integrated_gradients import integrate_path
from igap.attribution.maps import Advance, AttributionMap, Kind, Progress
from igap.attribution.over_pairs import attribute_pairs
from igap.components import PLACES
from igap.engine.baselines import Baseline
from igap.engine.contrast import Contrast
from igap.engine.open_pairs import OpenPairs
from igap.engine.positions import Positions
from igap.errors import InputError
from igap.vocabulary import BaselineKind, Direction, IGPath

Point = Literal["atp", "ig", "ig_converged", "ig_corrupted", "ap", "ap_mirrored"]
POINTS: tuple[Point, ...] = get_args(Point)

Term = Literal["curvature", "quadrature", "baseline", "interaction", "direction"]
TERMS: tuple[Term, ...] = get_args(Term)
"""Term i leads from point i to point i + 1."""

BETWEEN: tuple[Term, ...] = ("quadrature", "baseline", "interaction")
"""The terms that AP - IG is the sum of."""

NO_SINGLE_PATH = "positions, at which the integral of a single path is no patch, so that its terms are not defined"

CONVERGED = 1e-4
"""Share of the gap within which a converged IG is complete, and its components no longer move."""


@dataclass(frozen=True, eq=False)
class Decomposition:
    """The chain of one site, on one prompt pair or in the mean over several."""

    points: Mapping[Point, AttributionMap]
    """The maps that the chain goes through, in its order. `ap_mirrored` is minus AP of the other direction: minus,
    because a patch there moves the component the other way, so that it equals `ap` in a linear model."""

    def terms(self, kind: Kind = "effect") -> dict[Term, Float64[Tensor, "layer *span component"]]:
        """Each term, in logits (effect) or as a share of the gap (score). They sum to `ap_mirrored` minus `atp`."""
        values = [getattr(self.points[name], kind).double() for name in POINTS]
        return {term: values[i + 1] - values[i] for i, term in enumerate(TERMS)}

    def dominant(self) -> Int64[Tensor, "layer *span component"]:
        """Index in BETWEEN of the term of AP - IG with the largest magnitude; -1 where all of them are 0."""
        terms = self.terms()
        size = torch.stack([terms[name].abs() for name in BETWEEN])
        return size.argmax(0).masked_fill_((size == 0).all(0), -1)

    @property
    def converged(self) -> Bool[Tensor, " layer"]:
        """Whether quadrature, baseline and interaction are right to CONVERGED of the gap (or to float32's rounding)."""
        known = [self.points[name].converged for name in ("ig_converged", "ig_corrupted")]
        everywhere = torch.ones(len(self.points["ap"].effect), dtype=torch.bool)
        return torch.stack([everywhere, *(layers for layers in known if layers is not None)]).all(0)


def decompose(
    opened: OpenPairs,
    ig: AttributionMap,
    ap: AttributionMap,
    *,
    atp: AttributionMap | None = None,
    baseline: BaselineKind | Baseline = "corrupted",
    direction: Direction = "noising",
    path: IGPath = "joint",
    positions: Positions = "all",
    batch_size: int | None = None,
    memory_gib: float | None = None,
    on_progress: Progress | None = None,
) -> Decomposition:
    """The chain through these maps of the open pairs.

    `ig` is of this baseline, direction and path, with any number of steps, `ap` of the corrupted baseline and this
    direction, `atp` (computed when not given) of the baseline and direction of `ig`; all of them of these positions.

    Raises InputError on the single path of a site of several components by positions: see above.
    """
    baseline = baseline if isinstance(baseline, Baseline) else Baseline(baseline)
    corrupted, site = Baseline("corrupted"), ig.site
    budget: Any = {"positions": positions, "batch_size": batch_size, "memory_gib": memory_gib}
    if path == "single" and positions != "all":
        if not PLACES[site].is_vector:
            raise InputError(f"path: got single with {NO_SINGLE_PATH}. Use path=joint, or positions=all.")
        path = "joint"  # one component a layer: nothing else moves

    def patch(contrast: Contrast, advance: Advance) -> list[AttributionMap]:
        return patch_components(contrast, site, advance, **budget)

    def integrate(contrast: Contrast, advance: Advance) -> list[AttributionMap]:
        options: Any = {"n_steps": "auto", "tolerance": CONVERGED, "tolerance_of": "gap"}
        return integrate_path(contrast, site, advance, **options, **budget)

    def estimate(contrast: Contrast, advance: Advance) -> list[AttributionMap]:
        return estimate_patches(contrast, site, advance, **budget)

    def converge(towards: Baseline) -> AttributionMap:
        if path == "single":
            return ap if towards == corrupted else attribute_pairs(patch, opened, site, on_progress, baseline=towards)
        return attribute_pairs(integrate, opened, site, on_progress, baseline=towards, direction=direction)

    if atp is None:
        atp = attribute_pairs(estimate, opened, site, baseline=baseline, direction=direction)
    ig_corrupted = converge(corrupted)
    other: Direction = "denoising" if direction == "noising" else "noising"
    return Decomposition(
        {
            "atp": atp,
            "ig": ig,
            "ig_converged": ig_corrupted if baseline == corrupted else converge(baseline),
            "ig_corrupted": ig_corrupted,
            "ap": ap,
            "ap_mirrored": _negative(
                attribute_pairs(patch, opened, site, on_progress, direction=other, named_in=direction)
            ),
        }
    )


def _negative(attribution: AttributionMap) -> AttributionMap:
    return replace(attribution, effect=-attribution.effect, pairs=tuple(map(_negative, attribution.pairs)))
