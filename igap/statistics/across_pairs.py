"""How the pairs of a run spread: intervals of every component's mean score, and agreement of IG and AP pair by pair."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64

from igap.attribution.maps import AttributionMap
from igap.components import Site
from igap.statistics.bootstrap import Interval, bootstrap_means, row_correlations

Kind = Literal["score", "effect"]


@dataclass(frozen=True, eq=False)
class Spread:
    """Of several pairs; every interval is a 95% percentile bootstrap interval over pairs."""

    intervals: Mapping[Site, Mapping[str, Interval]]
    """By site, then method: of each component's mean score, layer by layer. NaN with fewer than 2 pairs with scores."""
    gap: Interval
    """Of the mean gap, in logits, over all pairs."""
    pearson: Mapping[Site, Float64[np.ndarray, " pair"]]
    """Pearson r, [-1, 1], of each pair's IG and AP; NaN where one of the two is constant. Needs no score."""

    def pearson_mean(self, site: Site, seed: int) -> tuple[float, float, float]:
        """Mean of `pearson` over the pairs that have it, with the ends of its interval; NaN where too few do."""
        known = self.pearson[site][~np.isnan(self.pearson[site])]
        ends = bootstrap_means(known[:, None], seed=seed)
        return float(known.mean()) if known.size else float("nan"), float(ends.low[0]), float(ends.high[0])


def spread(maps: Mapping[Site, Mapping[str, AttributionMap]], *, seed: int) -> Spread:
    """The spread of maps that are means over the same pairs."""
    gaps = np.array([one.gap for one in next(iter(maps.values()))["ap"].pairs])
    return Spread(
        intervals={
            site: {
                name: bootstrap_means(_flat(by_pair(found, "score")), seed=seed) for name, found in by_method.items()
            }
            for site, by_method in maps.items()
        },
        gap=bootstrap_means(gaps[:, None], seed=seed),
        pearson={
            site: row_correlations(*(_flat(by_pair(by_method[name], "effect")) for name in ("ig", "ap")))
            for site, by_method in maps.items()
        },
    )


def by_pair(found: AttributionMap, kind: Kind) -> Float[torch.Tensor, "pair layer component"]:
    """Score or effect of every pair."""
    return torch.stack([getattr(one, kind) for one in found.pairs])


def _flat(values: Float[torch.Tensor, "pair layer component"]) -> Float64[np.ndarray, "pair number"]:
    return np.asarray(values.double().flatten(1).numpy())
