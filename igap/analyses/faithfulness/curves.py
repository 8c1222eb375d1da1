"""Which method's ranking is right: F of the clean run with the components it ranks first kept, or ablated, together.

Faithfulness of a set kept: f = (F(set kept) - F(all ablated)) / (F(clean) - F(all ablated)), no unit, 0 when all of
the site is ablated and 1 when nothing is; of several pairs a quotient of means over pairs. It may leave [0, 1].

- Insertion: all of a site is ablated but the first k. Deletion: the first k are ablated.
- Rankings: by `contribution`, what the component does for the clean answer, signed; by `magnitude`, either way.
- CPR: area under the insertion curve by contribution over k / n; the larger the better, above 1 where what works
  against the answer is ranked last. CMD: area between the insertion curve by magnitude and 1; the smaller the better.

Source: the circuit track of MIB (Mueller et al. 2025, arXiv 2504.13151), whose code gives f, the shares of k and both
areas by trapezoids, for signed and for absolute rankings. Here the components of one site are ranked and the rest of
the model is whole; k is what there is in components, so that the curves start at 0 and end at 1. Ablated by the
corrupted activation (as there), and by the mean over generated prompts. The analysis `mib` has the published numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float64

from igap.analyses.faithfulness.rankings import RANDOM, Index, Kind, Ranking
from igap.attribution.maps import scores_exist
from igap.components import Site
from igap.inputs.prompts import SCORED_SHARE, min_scored_gap
from igap.statistics.bootstrap import LEVEL, resample_counts

Ablation = Literal["corrupted", "mean"]

_ENDS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)


@dataclass(frozen=True, eq=False)
class Estimate:
    """A number or a curve, and the ends of its 95% interval."""

    value: Float64[np.ndarray, " size"]
    low: Float64[np.ndarray, " size"]
    """Ends over pairs, by bootstrap: NaN for one pair. For random rankings: over the rankings."""
    high: Float64[np.ndarray, " size"]


@dataclass(frozen=True, eq=False)
class Curve:
    """Faithfulness by k of one method's ranking; for `random` the mean over rankings."""

    method: str
    ranking: Ranking
    """Random rankings are the same by both."""
    kind: Kind
    faithfulness: Estimate
    area: Estimate
    """One number. Insertion by contribution: CPR. By magnitude: CMD. Deletion: under the curve, smaller is better."""


@dataclass(frozen=True, eq=False)
class FaithfulnessCurves:
    """All curves of one site under one ablation; none, and a reason, where faithfulness is not defined."""

    site: Site
    ablation: Ablation
    n: int
    """Components of the site, by positions times spans."""
    sizes: tuple[int, ...]
    """k, ascending, 0 and n included."""
    curves: tuple[Curve, ...]
    full: float | None
    """F(clean), in logits, the mean over pairs. None where the ablation is not to be had."""
    empty: float | None
    """F(all of the site ablated), in logits, the mean over pairs."""
    reason: str = ""
    positions: str = "all"
    """Where components are ablated; by each of them or by spans, a component at each is one."""

    @property
    def at(self) -> str:
        """The positions in words, where they are not all at once."""
        return "" if self.positions == "all" else f", positions {self.positions}"

    def areas(self, name: str) -> dict[str, Estimate]:
        """Return method to area, of `cpr`, `cmd` or `deletion`."""
        kind, ranking = AREAS[name]
        return {c.method: c.area for c in self.curves if (c.kind, c.ranking) == (kind, ranking)}


AREAS: Mapping[str, tuple[Kind, Ranking]] = {
    "cpr": ("insertion", "contribution"),
    "cmd": ("insertion", "magnitude"),
    "deletion": ("deletion", "contribution"),
}
"""The areas that are reported: the kind of curve, and the ranking."""


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """What the rankings of a run are worth."""

    groups: tuple[FaithfulnessCurves, ...]

    def summary(self) -> dict[str, float | int | str | None]:
        """Return `faithfulness/SITE/ABLATION/METHOD/AREA`, with `_low` and `_high` where there is an interval."""
        flat: dict[str, float | int | str | None] = {}
        for group in self.groups:
            start = f"faithfulness/{group.site}/{group.ablation}"
            flat |= {f"{start}/full": group.full, f"{start}/empty": group.empty}
            for area in AREAS:
                for method, estimate in group.areas(area).items():
                    ends = (("", estimate.value), ("_low", estimate.low), ("_high", estimate.high))
                    flat |= {f"{start}/{method}/{area}{e}": float(v[0]) for e, v in ends if np.isfinite(v[0])}
                if group.reason:
                    flat |= {f"{start}/{area}": None, f"{start}/{area}/reason": group.reason}
        return flat

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return one row a point of a curve."""
        frames = [
            pd.DataFrame(
                {
                    "site": group.site,
                    "ablation": group.ablation,
                    "method": curve.method,
                    "ranking": curve.ranking,
                    "curve": curve.kind,
                    "k": group.sizes,
                    "share": np.array(group.sizes) / group.n,
                    "faithfulness": curve.faithfulness.value,
                    "low": curve.faithfulness.low,
                    "high": curve.faithfulness.high,
                }
            )
            for group in self.groups
            for curve in group.curves
        ]
        return {"faithfulness": pd.concat(frames)} if frames else {}

    def sentences(self) -> tuple[str, ...]:
        """Return a line a site, ablation and area (CPR, CMD): the methods, best first, beside random rankings."""
        lines = []
        for group in self.groups:
            start = f"faithfulness, {group.site} ablated by the {group.ablation} activation{group.at}"
            if group.reason:
                lines.append(f"{start}: {group.reason}")
            else:
                lines += [f"{start}, {_race(group, area)}" for area in ("cpr", "cmd")]
        return tuple(lines)


def _race(group: FaithfulnessCurves, area: str) -> str:
    """Return the methods, best first, and whether the best is ahead by more than random rankings differ."""
    areas = group.areas(area)
    chance = areas.pop(RANDOM)
    better = -1 if area == "cpr" else 1
    ranked = sorted(areas, key=lambda method: better * areas[method].value[0])
    best, second = ranked[:2]
    ahead, width = abs(float(areas[best].value[0] - areas[second].value[0])), float(chance.high[0] - chance.low[0])
    numbers = ", ".join(f"{method} {areas[method].value[0]:.3f}" for method in ranked)
    return (
        f"{area.upper()} ({'larger' if area == 'cpr' else 'smaller'} is better): {numbers}; random "
        f"{chance.value[0]:.3f} [95%: {chance.low[0]:.3f}, {chance.high[0]:.3f}]; {best} is ahead of {second} by "
        f"{ahead:.3f}, {'more' if ahead > width else 'not more'} than random rankings differ ({width:.3f})"
    )


def curves_of(
    values: Float64[np.ndarray, "pair set"],
    index: Index,
    *,
    site: Site,
    ablation: Ablation,
    sizes: tuple[int, ...],
    min_gap: float,
    seed: int,
    is_logit_diff: bool = True,
    positions: str = "all",
) -> FaithfulnessCurves:
    """Return the curves and areas from F of every set, in its unit; set 0 keeps nothing, set 1 everything.

    They are undefined, with a reason, where F(clean) and F(all ablated) differ by less than `min_gap` or, of the logit
    difference, by less than a share of F(clean): `min_scored_gap`.
    """
    n_pairs, n = len(values), sizes[-1]
    means = values.mean(0)
    empty, full = float(means[0]), float(means[1])
    if not scores_exist(full - empty, min_scored_gap(min_gap, full if is_logit_diff else 0.0)):
        share_too = f" and {SCORED_SHARE:.0%} of |F(clean)|" if is_logit_diff else ""
        reason = (
            f"not defined, F(clean) is {full:.4g} and F(all ablated) {empty:.4g}; what lies between them is "
            f"divided by, and has to be at least prompts.min_gap={min_gap}{share_too}"
        )
        return FaithfulnessCurves(site, ablation, n, sizes, (), full, empty, reason, positions)
    # Row 0 is the mean over the pairs there are, the others are bootstrap samples of the pairs.
    drawn = np.concatenate(
        [means[None], resample_counts(n_pairs, seed=seed) @ values / n_pairs if n_pairs > 1 else values[:0]]
    )
    faithfulness = (drawn - drawn[:, :1]) / (drawn[:, 1:2] - drawn[:, :1])
    share = np.array(sizes) / n
    curves = []
    for (method, ranking, kind), rows in index.items():
        points = faithfulness[:, rows]  # [sample, ranking, size]
        height = np.abs(1 - points) if (kind, ranking) == AREAS["cmd"] else points
        areas = np.trapezoid(height, share, axis=-1)[..., None]
        curves.append(Curve(method, ranking, kind, _estimate(points, method), _estimate(areas, method)))
    return FaithfulnessCurves(site, ablation, n, sizes, tuple(curves), full, empty, positions=positions)


def _estimate(samples: Float64[np.ndarray, "sample ranking size"], method: str) -> Estimate:
    """Return row 0 and the interval over the other samples; of random rankings their mean and band in row 0."""
    over = samples[0] if method == RANDOM else samples[1:, 0]
    value = samples[0].mean(0)
    if not len(over):
        return Estimate(value, np.full_like(value, np.nan), np.full_like(value, np.nan))
    low, high = np.quantile(over, _ENDS, axis=0)
    return Estimate(value, low, high)
