"""Bootstrap intervals of means over prompt pairs. Pure functions of arrays.

Pairs are resampled, components are not: an interval says how far a mean would move with other pairs of the same kind.
Source: Efron & Tibshirani 1993, the percentile interval.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from igap.statistics.agreement import ROUNDING

LEVEL = 0.95
N_RESAMPLES = 2000
"""With so many resamples an interval's end has a standard deviation of 0.06 standard errors of the mean."""

_NUMBERS_AT_ONCE = 2**21  # 16 MiB of resampled means


@dataclass(frozen=True, eq=False)
class Interval:
    """Ends of 95% percentile intervals, in the unit of the values; NaN if fewer than 2 pairs have values."""

    low: Float64[np.ndarray, " component"]
    high: Float64[np.ndarray, " component"]


def mean_intervals(
    values: Float64[np.ndarray, "pair component"],
    *,
    seed: int,
    n_resamples: int = N_RESAMPLES,
    counts: Float64[np.ndarray, "resample pair"] | None = None,
) -> Interval:
    """Interval of each component's mean over pairs. A pair with a NaN is left out for all components.

    The same seed and number of pairs give the same resamples, so that means over one set of pairs vary together.
    `counts` are those that `resample_counts` gives for this seed and these pairs, for many calls that share them.
    """
    values = values[~np.isnan(values).any(axis=1)]
    n, width = values.shape
    low, high = np.full(width, np.nan), np.full(width, np.nan)
    if n < 2:
        return Interval(low, high)
    if counts is None:
        counts = resample_counts(n, seed=seed, n_resamples=n_resamples)
    at_once = max(1, _NUMBERS_AT_ONCE // n_resamples)
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    for start in range(0, width, at_once):
        chunk = values[:, start : start + at_once]
        centred = chunk - chunk[0]  # a component of one value everywhere gets exactly that value
        means = centred.T @ counts.T / n
        quantiles = np.quantile(means, ends, axis=1) + chunk[0]
        low[start : start + at_once], high[start : start + at_once] = quantiles
    return Interval(low, high)


def is_range(n: int) -> bool:
    """True if an interval over n pairs is about their range: of 2 or 3, 1/n^n of resamples are n times the least."""
    return n > 1 and n**-n > (1 - LEVEL) / 2


def interval_label(n: int) -> str:
    """What an interval over n pairs is."""
    return f"about the range of {n} pairs" if is_range(n) else f"{LEVEL:.0%} over pairs"


def resample_counts(n: int, *, seed: int, n_resamples: int = N_RESAMPLES) -> Float64[np.ndarray, "resample pair"]:
    """How often each of n pairs is drawn in each bootstrap sample; a row sums to n."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_resamples).astype(np.float64)


def row_correlations(
    x: Float64[np.ndarray, "pair component"], y: Float64[np.ndarray, "pair component"], rounding: float = ROUNDING
) -> Float64[np.ndarray, " pair"]:
    """Pearson r, [-1, 1], of each row of `x` with the same row of `y`; NaN if one is constant up to rounding."""
    centred = []
    undefined = np.zeros(len(x), dtype=bool)
    for values in (x, y):
        largest = np.abs(values).max(axis=1, keepdims=True)
        undefined |= np.ptp(values, axis=1) <= rounding * largest[:, 0]
        scaled = values / np.where(largest > 0, largest, 1.0)  # squares of tiny effects must not vanish
        scaled = scaled - scaled.mean(axis=1, keepdims=True)
        norm = np.linalg.norm(scaled, axis=1, keepdims=True)
        centred.append(scaled / np.where(norm > 0, norm, 1.0))
    r = np.clip((centred[0] * centred[1]).sum(axis=1), -1, 1)
    return np.where(undefined, np.nan, r)
