"""How far to believe the top k of a run over several pairs: what other pairs of the same kind would change.

Rankings are by |mean effect over pairs|, as everywhere. The split of the variance is of scores (of effects where scores
are missing) over pairs and the methods with a sign. What is known of a pair beside its texts is in
`PromptPair.further`: generated pairs know their template and the order of names that is corrupted, and a file may have
columns of these names.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Int64

from igap.analyses.base import Analysis, RunContext
from igap.attribution.maps import AttributionMap, Progress
from igap.components import Site, component_names
from igap.config import RunConfig
from igap.inputs.answers import words_of
from igap.inputs.prompts import PromptPair
from igap.statistics.across_pairs import flat_by_pair
from igap.statistics.comparison import REPORTED_K
from igap.statistics.jaccard import expected_jaccard
from igap.statistics.stability import (
    LEAST_PAIRS,
    STABLE,
    jaccard_with,
    pairs_wanted,
    rank_intervals,
    split_jaccard,
)
from igap.statistics.variance import Factor, VarianceParts, variance_parts

TOP = 100
"""Components of each method's ranking whose ranks have an interval."""

COLUMNS = {"wording": "template", "corruption": "corruption"}
"""Part of the variance to the column of pairs.csv, or of a file of pairs, that holds its levels."""

_TOLD = 10  # components of AP's ranking whose variance is told one by one


@dataclass(frozen=True, eq=False)
class RankStability:
    """How far one method's ranking of a site would change."""

    site: Site
    method: str
    n_pairs: int
    names: tuple[str, ...]
    """The first TOP components in the ranking's order."""
    low: Int64[np.ndarray, " some"]
    """Their ranks' 95% intervals, 1 the first."""
    high: Int64[np.ndarray, " some"]
    jaccard: Mapping[int, float]
    """k to the expected Jaccard index of the top k with that of another sample of as many pairs; NaN: not defined."""
    chance: Mapping[int, float]
    """The same of two random rankings."""
    wanted: Mapping[int, int | None]
    """For each k, how many pairs bring the index to STABLE; None where it is not defined, or no better than chance."""


@dataclass(frozen=True, eq=False)
class Stability:
    """What other pairs would change; nothing but a number of pairs where there are too few."""

    n_pairs: int
    rankings: tuple[RankStability, ...]
    variance: Mapping[Site, VarianceParts]
    first: Mapping[Site, Mapping[str, int]]
    """The first components in AP's ranking, whose variance is told: name to index."""

    def summary(self) -> dict[str, float | int | str | None]:
        """Return `stability/SITE/METHOD/...` and `stability/SITE/variance/PART`."""
        flat: dict[str, float | int | str | None] = {}
        for each in self.rankings:
            for k in REPORTED_K:
                name = f"stability/{each.site}/{each.method}"
                flat |= {f"{name}/jaccard@{k}": each.jaccard[k], f"{name}/pairs_wanted@{k}": each.wanted[k]}
                if math.isnan(each.jaccard[k]):
                    flat[f"{name}/jaccard@{k}"] = None
                    flat[f"{name}/jaccard@{k}/reason"] = (
                        f"the site has no more than {k} components, or half of the pairs no {k} with an effect"
                    )
                if each.wanted[k] is None:
                    flat[f"{name}/pairs_wanted@{k}/reason"] = "the top is chance, or not defined"
        for site, parts in self.variance.items():
            for name, share in parts.shares().items():
                flat[f"stability/{site}/variance/{name}"] = share
            for name, why in parts.left_out.items():
                flat |= {f"stability/{site}/variance/{name}": None, f"stability/{site}/variance/{name}/reason": why}
        return flat

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return `ranks`, one row a method and component, and `variance`, one row a site and one a component."""
        ranks = [
            pd.DataFrame(
                {
                    "site": each.site,
                    "method": each.method,
                    "rank": np.arange(1, len(each.names) + 1),
                    "name": each.names,
                    "rank_low": each.low,
                    "rank_high": each.high,
                }
            )
            for each in self.rankings
        ]
        rows = [
            {"site": site, "name": name, "variance": parts.total(index), **parts.shares(index)}
            for site, parts in self.variance.items()
            for name, index in {"all": None, **self.first[site]}.items()
        ]
        if not ranks:
            return {}
        return {"ranks": pd.concat(ranks), **({"variance": pd.DataFrame(rows)} if rows else {})}

    def sentences(self) -> tuple[str, ...]:
        """Return a line a site about its top 10, and one about the variance."""
        if not self.rankings:
            return (
                (f"how stable the top is over prompts: got {self.n_pairs} pairs, wanted {LEAST_PAIRS} or more",)
                if self.n_pairs > 1
                else ()
            )
        lines = []
        for site, parts in self.variance.items():
            by_method = {each.method: each for each in self.rankings if each.site == site}
            if not math.isnan(by_method["ap"].jaccard[REPORTED_K[0]]):
                lines.append(_top_line(site, by_method))
            shares = ", ".join(
                f"{name.replace('_', ' ')} {max(share, 0.0):.0%}" for name, share in parts.shares().items()
            )
            untold = "".join(f"; {name} has no share of its own: {why}" for name, why in parts.left_out.items())
            lines.append(f"{site}, variance of scores over prompts and methods: {shares}{untold}")
        return tuple(lines)


def _top_line(site: Site, by_method: Mapping[str, RankStability]) -> str:
    k, ap = REPORTED_K[0], by_method["ap"]
    index, wanted = ap.jaccard[k], ap.wanted[k]
    others = ", ".join(f"{name.upper()} {each.jaccard[k]:.2f}" for name, each in by_method.items() if name != "ap")
    numbers = f"expected Jaccard index with {ap.n_pairs} other pairs {index:.2f}, chance {ap.chance[k]:.2f}; {others}"
    if index >= STABLE:
        return f"{site}: the top {k} by AP are stable ({numbers})"
    remedy = "more pairs of this kind will not do" if wanted is None else f"take about {_round(wanted)} pairs"
    return f"{site}: the top {k} by AP are not stable ({numbers}): {remedy} for {STABLE}"


def _round(n: int) -> int:
    """Two digits, rounded up: a number of pairs is no more exact than that."""
    unit = int(10 ** max(len(str(n)) - 2, 0))
    return -(-n // unit) * unit


def stability(
    maps: Mapping[Site, Mapping[str, AttributionMap]],
    pairs: Sequence[PromptPair],
    units: Mapping[Site, str],
    *,
    seed: int,
) -> Stability:
    """Return how far the rankings of maps, which are means over the same pairs, would change with other pairs.

    Args:
        maps: By site, then method; `ap` among them.
        pairs: The prompt pairs, in the order of the maps'.
        units: By site, `score` where the variance is of scores, else of effects.
        seed: That of the resamples and halvings.
    """
    if len(pairs) < LEAST_PAIRS:
        return Stability(len(pairs), (), {}, {})
    rankings, variance, first = [], {}, {}
    for site, by_method in maps.items():
        for each in by_method.values():
            rankings.append(_ranking(each, seed))
            if each.method == "ap":
                names = _names(each)
                first[site] = {name: names.index(name) for name in rankings[-1].names[:_TOLD]}
        signed = [each for each in by_method.values() if each.signed]
        values = np.stack([flat_by_pair(each, "score" if units[site] == "score" else "effect") for each in signed])
        known = ~np.isnan(values).any((0, 2))
        scored = [pair for pair, is_known in zip(pairs, known, strict=True) if is_known]
        if len(scored) > 1:
            variance[site] = variance_parts(values[:, known], factors_of(scored))
    return Stability(len(pairs), tuple(rankings), variance, first)


def factors_of(pairs: Sequence[PromptPair]) -> dict[str, Factor]:
    """Return what is known of every pair: its template and corruption, where all have one, and its two names."""
    columns = {part: [pair.further.get(name, "") for pair in pairs] for part, name in COLUMNS.items()}
    known: dict[str, Factor] = {part: [(level,) for level in levels] for part, levels in columns.items() if all(levels)}
    names = [(*words_of(pair.answer), *words_of(pair.distractor)) for pair in pairs]
    return {**known, "names": names}


def _names(attribution: AttributionMap) -> list[str]:
    shape = attribution.effect.shape
    return component_names(attribution.site, shape[0], shape[-1], attribution.spans)


def _ranking(attribution: AttributionMap, seed: int) -> RankStability:
    values = flat_by_pair(attribution, "effect")
    (n_pairs, n), half = values.shape, len(values) // 2
    order = np.argsort(-np.abs(values.mean(0)), kind="stable")[:TOP]
    low, high = rank_intervals(values, order, seed=seed)
    split = dict(zip(REPORTED_K, split_jaccard(values, np.array(REPORTED_K), seed=seed).tolist(), strict=True))
    names = _names(attribution)
    return RankStability(
        site=attribution.site,
        method=attribution.method,
        n_pairs=n_pairs,
        names=tuple(names[i] for i in order),
        low=low,
        high=high,
        jaccard={k: jaccard_with(n_pairs, each, half, n, k) for k, each in split.items()},
        chance={k: expected_jaccard(n, k) for k in REPORTED_K},
        wanted={k: pairs_wanted(each, half, n, k) for k, each in split.items()},
    )


class StabilityAnalysis(Analysis[Stability]):
    """How far the rankings would change with other pairs; a run over several pairs does it."""

    name = "stability"
    any_metric = True

    def is_requested(self, config: RunConfig) -> bool:
        """Return whether the pairs come from a generator or a file, which may have several."""
        return config.prompts.file is not None or (config.prompts.n or 1) > 1

    def automatic(self, config: RunConfig) -> bool:  # noqa: ARG002 - whatever the config
        """Return True: every run does it that can."""
        return True

    def misfit(self, config: RunConfig) -> str:  # noqa: ARG002 - whatever the config
        """Return nothing: rankings of any metric and any positions are resampled."""
        return ""

    def run(self, context: RunContext, on_progress: Progress | None) -> Stability:  # noqa: ARG002 - no progress
        """Return what other pairs would change in the run's rankings."""
        units = {site: comparison.unit for site, comparison in context.comparisons.items()}
        return stability(context.maps, context.pairs, units, seed=context.config.prompts.seed)
