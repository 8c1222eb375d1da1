"""How far a ranking by |mean over pairs| would change with other pairs of the same kind. Pure functions of arrays.

Intervals of ranks are those of the bootstrap over pairs, whose deviations from the mean are widened as Student's t
widens a mean's interval: without that 8 pairs have 90% and not 95%. Where the pairs differ so much that the order is
chance, ranks are ties in truth and no interval of the kind holds them in 95%: the expected Jaccard index is near
chance then.

The expected Jaccard index with another sample of n pairs comes from halves of the pairs, which are independent samples
of n / 2; a bootstrap sample is none, and says 0.33 where the truth is chance, 0.13. From n / 2 to n the odds of
agreement above chance grow with the square root of the number of pairs: the noise of a mean falls so, and with it the
share of components that change sides at the cut.

Sources: Hall & Miller 2009 (bootstrap of ranks); Meloux et al. 2025 (arXiv 2510.00845), who want a Jaccard index of
circuits above 0.8.
"""

import math

import numpy as np
from jaxtyping import Float64, Int64
from scipy import stats

from igap.statistics.bootstrap import LEVEL, N_RESAMPLES, resample_counts
from igap.statistics.jaccard import expected_jaccard, find_shared_from, jaccard

LEAST_PAIRS = 4
"""Fewer have no two halves with a mean each."""

STABLE = 0.8
"""The least expected Jaccard index of a stable top k."""

_N_SPLITS = 200  # the mean over them has a standard deviation of about 0.01
_NUMBERS_AT_ONCE = 2**21  # 16 MiB of resampled means


def rank_intervals(
    values: Float64[np.ndarray, "pair component"],
    of: Int64[np.ndarray, " some"],
    *,
    seed: int,
    n_resamples: int = N_RESAMPLES,
) -> tuple[Int64[np.ndarray, " some"], Int64[np.ndarray, " some"]]:
    """Ends of the 95% intervals of the ranks of the components `of` among all: 1 + how many have a larger |mean|.

    Raises ValueError for fewer than 2 pairs.
    """
    n, width = values.shape
    if n < 2:
        raise ValueError(f"values: got {n} pairs, wanted at least 2. An interval over pairs needs several.")
    mean = values.mean(0)
    spread = values - mean
    student = stats.t.ppf((1 + LEVEL) / 2, n - 1) / stats.norm.ppf((1 + LEVEL) / 2) * math.sqrt(n / (n - 1))
    counts = resample_counts(n, seed=seed, n_resamples=n_resamples)
    ranks = np.empty((n_resamples, len(of)), dtype=np.int64)
    at_once = max(1, _NUMBERS_AT_ONCE // width)
    for start in range(0, n_resamples, at_once):
        for row, moved in enumerate(counts[start : start + at_once] @ spread / n, start):
            size = np.abs(mean + student * moved)
            ranks[row] = 1 + width - np.searchsorted(np.sort(size), size[of], side="right")
    low, high = np.quantile(ranks, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return np.floor(low).astype(np.int64), np.ceil(high).astype(np.int64)


def split_jaccard(
    values: Float64[np.ndarray, "pair component"], ks: Int64[np.ndarray, " k"], *, seed: int
) -> Float64[np.ndarray, " k"]:
    """Mean Jaccard index, [0, 1], of the k largest |means| of two halves of the pairs, over random halvings.

    The halves have n // 2 pairs each. NaN where a half has fewer than k components that are not 0, or there is none.
    """
    half = len(values) // 2
    if half < 1:
        return np.full(len(ks), np.nan)
    rng = np.random.default_rng(seed)
    indices = np.empty((_N_SPLITS, len(ks)))
    for row in indices:
        order = rng.permutation(len(values))
        x, y = values[order[:half]].mean(0), values[order[half : 2 * half]].mean(0)
        row[:] = jaccard(ks, find_shared_from(x, y), int(min(np.count_nonzero(x), np.count_nonzero(y))))
    return np.asarray(indices.mean(0))


def jaccard_with(n_pairs: int, split: float, half: int, n: int, k: int) -> float:
    """Expected Jaccard index, [0, 1], of the top k of two samples of `n_pairs` pairs; NaN where `split` is.

    Args:
        n_pairs: Pairs of each sample.
        split: The index of two samples of `half` pairs.
        half: Their pairs.
        n: Components.
        k: How many are on top.
    """
    above = _above_chance(split, n, k)
    if math.isnan(above) or above >= 1:
        return split
    odds = above / (1 - above) * math.sqrt(n_pairs / half)
    chance = expected_jaccard(n, k)
    return chance + (1 - chance) * odds / (1 + odds)


def pairs_wanted(split: float, half: int, n: int, k: int, wanted: float = STABLE) -> int | None:
    """Pairs of which the expected Jaccard index is `wanted`; None where no number will do, or the index is missing."""
    above, target = _above_chance(split, n, k), _above_chance(wanted, n, k)
    if target <= 0 or above >= 1:
        return half
    if not above > 0:
        return None
    return math.ceil(half * (target / (1 - target) / (above / (1 - above))) ** 2)


def _above_chance(index: float, n: int, k: int) -> float:
    """A Jaccard index as a share of what lies between chance, 0, and 1; at least 0."""
    chance = expected_jaccard(n, k)
    return max((index - chance) / (1 - chance), 0.0) if k < n and not math.isnan(index) else math.nan
