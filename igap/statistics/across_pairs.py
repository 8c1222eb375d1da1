"""Variation over the prompt pairs of a run: intervals of mean scores, and agreement of IG and AP pair by pair."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64

from igap.attribution.maps import AttributionMap, Kind
from igap.components import Site
from igap.statistics.bootstrap import Interval, mean_intervals, row_correlations
from igap.statistics.units import has_value, rounding_share


@dataclass(frozen=True, eq=False)
class PairStatistics:
    """Statistics over several pairs. Every interval is a 95% percentile bootstrap interval over pairs."""

    intervals: Mapping[Site, Mapping[str, Interval]]
    """By site, then method: each component's mean score, layer by layer. NaN if fewer than 2 pairs have scores."""
    gap: Interval
    """Interval of the mean gap over all pairs, in logits."""
    pearson: Mapping[Site, Float64[np.ndarray, " pair"]]
    """Pearson r, [-1, 1], of each pair's IG and AP; NaN where one of the two is constant. Needs no score."""

    def pearson_mean(self, site: Site, seed: int) -> tuple[float, float, float]:
        """Mean of `pearson` over the pairs that have it, and the ends of its interval; NaN if too few have it."""
        known = self.pearson[site][~np.isnan(self.pearson[site])]
        ends = mean_intervals(known[:, None], seed=seed)
        return float(known.mean()) if known.size else float("nan"), float(ends.low[0]), float(ends.high[0])


def pair_statistics(maps: Mapping[Site, Mapping[str, AttributionMap]], *, seed: int) -> PairStatistics:
    """Statistics of maps that are means over the same pairs."""
    gaps = np.array([of_pair.gap for of_pair in next(iter(maps.values()))["ap"].pairs])
    return PairStatistics(
        intervals={
            site: {name: _intervals(mean_map, seed=seed) for name, mean_map in by_method.items()}
            for site, by_method in maps.items()
        },
        gap=mean_intervals(gaps[:, None], seed=seed),
        pearson={site: _correlations(by_method["ig"], by_method["ap"]) for site, by_method in maps.items()},
    )


def _intervals(mean_map: AttributionMap, *, seed: int) -> Interval:
    """Interval of each component's mean score; NaN of those that AP with `top` leaves out."""
    known = has_value(mean_map).ravel()
    ends = mean_intervals(flat_by_pair(mean_map, "score")[:, known], seed=seed)
    if known.all():
        return ends
    low, high = np.full(known.shape, np.nan), np.full(known.shape, np.nan)
    low[known], high[known] = ends.low, ends.high
    return Interval(low, high)


def _correlations(ig: AttributionMap, ap: AttributionMap) -> Float64[np.ndarray, " pair"]:
    """Pearson r of each pair's maps; NaN where one of the two is constant."""
    known = (has_value(ig) & has_value(ap)).ravel()
    # Contiguous, whatever numpy makes of the selection: rows are summed in the same order with and without it.
    x, y = (np.ascontiguousarray(flat_by_pair(each, "effect")[:, known]) for each in (ig, ap))
    return row_correlations(x, y, rounding_share(ig, ap))


def by_pair(mean_map: AttributionMap, kind: Kind) -> Float[torch.Tensor, "pair layer *span component"]:
    """Scores or effects of every pair of a mean map."""
    return torch.stack([getattr(of_pair, kind) for of_pair in mean_map.pairs])


def flat_by_pair(mean_map: AttributionMap, kind: Kind) -> Float64[np.ndarray, "pair number"]:
    """The same in float64, with what comes after the pair in one axis, layer by layer."""
    return np.asarray(by_pair(mean_map, kind).double().flatten(1).numpy())
