"""Overlap of the components with the largest magnitudes in two maps, as a Jaccard index. Pure functions of arrays."""

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64, Int64

_EVERY_K_UP_TO = 200  # a curve has every k for at most so many components, and about _CURVE_POINTS beyond
_CURVE_POINTS = 60


def find_shared_from(x: Float64[np.ndarray, " n"], y: Float64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Ascending, each component once: the smallest k, 1..n, at which it is among the k largest |values| of both."""
    return np.sort(np.maximum(_ranks_by_magnitude(x), _ranks_by_magnitude(y)))


def jaccard(
    ks: Int64[np.ndarray, " k"], shared_from: Int64[np.ndarray, " n"], n_nonzero: int
) -> Float64[np.ndarray, " k"]:
    """Jaccard index, [0, 1], of the k largest |values| of each map; NaN beyond `n_nonzero`, where they are undefined.

    Equal |values| at the cut go to the lower index. `n_nonzero` is that of the map with fewer components that are not
    0: which of its zeros are on top would be an accident.
    """
    shared = np.searchsorted(shared_from, ks, side="right")
    return np.where(ks <= n_nonzero, shared / (2 * ks - shared), np.nan)


def expected_jaccard(n: int, k: int) -> float:
    """Expected Jaccard index, [0, 1], of two independent uniformly random k-subsets of n; NaN if k > n.

    E[I / (2k - I)], where the overlap I is hypergeometric with mean k^2 / n. Exact up to rounding.
    """
    if not 1 <= k <= n:
        return float("nan")
    overlap = np.arange(max(0, 2 * k - n), k + 1, dtype=np.float64)
    below = overlap[:-1]  # log P(I + 1) - log P(I), summed from the smallest overlap; P is normalised at the end
    steps = 2 * np.log(k - below) - np.log(below + 1) - np.log(n - 2 * k + below + 1)
    log_p = np.concatenate([[0.0], np.cumsum(steps)])
    p = np.exp(log_p - log_p.max())
    return float(np.sum(p * overlap / (2 * k - overlap)) / np.sum(p))


def curve_ks(n: int, reported: tuple[int, ...]) -> Int64[np.ndarray, " k"]:
    """The ascending k of a curve over n components: all up to n = 200, beyond it log-spaced with the reported ones."""
    if n <= _EVERY_K_UP_TO:
        return np.arange(1, n + 1, dtype=np.int64)
    spaced = np.geomspace(1, n, _CURVE_POINTS).round().astype(np.int64)
    return np.unique(np.concatenate([spaced, np.array(reported, dtype=np.int64)]))


def undefined_reasons(ks: set[int], n: int, n_nonzero: int) -> dict[str, str]:
    """`jaccard@K`, and `jaccard_chance@K`, to the reason why they are NaN, for those of `ks` where they are."""
    reasons = {}
    for k in sorted(ks):
        if k > n:
            reasons[f"jaccard@{k}"] = reasons[f"jaccard_chance@{k}"] = f"k = {k} is more than the {n} components"
        elif k > n_nonzero:
            reasons[f"jaccard@{k}"] = f"a map has only {n_nonzero} non-zero components, fewer than k = {k}"
    return reasons


def _ranks_by_magnitude(x: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Rank 1..n of each value by descending magnitude; ties in order of index."""
    ranks = np.empty(x.size, dtype=np.int64)
    ranks[np.argsort(-np.abs(x), kind="stable")] = np.arange(1, x.size + 1)
    return ranks
