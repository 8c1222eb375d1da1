"""Where the variance of scores over pairs and methods comes from: a random-effects model. Pure functions of arrays.

y[method, pair] = mean + method + sum over factors of the pair's effects + rest of the prompt + method on this pair.
Every term but the mean is random with a variance of its own. Methods are crossed with pairs, so that their two
variances are those of a two-way analysis of variance. The means over methods are taken apart by the quadratic forms of
their products over pairs of observations that share a level (MINQUE with weights 0), which needs no balance: where all
levels are equally frequent it is the one-way analysis of variance. Estimates have no bias, and may be below 0.

Source: Rao 1971 (MINQUE); Searle, Casella & McCulloch 1992, Variance Components, chapter 11.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float64
from scipy import sparse

REST = "rest_of_prompt"
METHOD = "method"
INTERPLAY = "method_by_prompt"

_NUMBERS_AT_ONCE = 2**21
_APART = 1e-6
"""The least eigenvalue of the normalised products of the factors' covariances; below it two of them are one."""

Factor = Sequence[Sequence[str]]
"""Levels of each pair: one, or several of one kind, as the two names of a prompt."""


@dataclass(frozen=True, eq=False)
class VarianceParts:
    """Variances of the terms; their sum is the expected variance of a score of a random pair and method."""

    parts: Mapping[str, Float64[np.ndarray, " component"]]
    """By factor, then REST, and of several methods METHOD and INTERPLAY; unbiased, in the values' unit squared."""
    left_out: Mapping[str, str]
    """Factor to why it has no share of its own."""

    def total(self, component: int | None = None) -> float:
        """Return the variance of one component, or the sum over all, in the unit of the values squared."""
        return sum(float(each.sum() if component is None else each[component]) for each in self.parts.values())

    def shares(self, component: int | None = None) -> dict[str, float]:
        """Return part to its share of that variance; NaN where that is 0."""
        total = self.total(component)
        sums = {name: each.sum() if component is None else each[component] for name, each in self.parts.items()}
        return {name: float(each) / total if total > 0 else float("nan") for name, each in sums.items()}


def variance_parts(
    values: Float64[np.ndarray, "method pair component"], factors: Mapping[str, Factor]
) -> VarianceParts:
    """Split the variance of values over pairs and methods.

    Args:
        values: At least 2 pairs; no NaN.
        factors: What is known of every pair, by name, most important first. One that cannot be told from those before
            it, or from the pair itself, is left out, and is part of the rest.
    """
    n_methods, n, width = values.shape
    designs, left_out = _designs(factors, n)
    gram = _gram(list(designs.values()), n)
    spans = gram[:, -1] / (n - 1)  # what a variance of 1 adds to that of the values: of a pair with two names 2
    names = [*designs, REST]
    parts = {name: np.empty(width) for name in [*names, *((METHOD, INTERPLAY) if n_methods > 1 else ())]}
    at_once = max(1, _NUMBERS_AT_ONCE // (n_methods * n))
    for start in range(0, width, at_once):
        few = slice(start, start + at_once)
        chunk = values[..., few] - values[0, 0, few]
        by_pair = chunk.mean(0)
        centred = by_pair - by_pair.mean(0)
        squares = np.stack(
            [*((np.asarray(each.T @ centred) ** 2).sum(0) for each in designs.values()), (centred**2).sum(0)]
        )
        estimates = np.linalg.solve(gram, squares)
        if n_methods > 1:
            by_method = chunk.mean(1)
            away = chunk - by_pair - by_method[:, None] + by_pair.mean(0)
            interplay = (away**2).sum((0, 1)) / ((n - 1) * (n_methods - 1))
            parts[METHOD][few] = by_method.var(0, ddof=1) - interplay / n
            parts[INTERPLAY][few] = interplay
            estimates[-1] -= interplay / n_methods
        for name, estimate, span in zip(names, estimates, spans, strict=True):
            parts[name][few] = estimate * span
    return VarianceParts(parts, left_out)


def _designs(factors: Mapping[str, Factor], n: int) -> tuple[dict[str, sparse.csr_array], dict[str, str]]:
    """The incidence of levels, `[pair, level]`, of every factor that can be told apart, and why others cannot."""
    designs: dict[str, sparse.csr_array] = {}
    left_out: dict[str, str] = {}
    for name, levels in factors.items():
        codes, _ = pd.factorize(np.array([level for of_pair in levels for level in of_pair], object))
        n_levels = int(codes.max()) + 1
        rows = np.repeat(np.arange(n), [len(of_pair) for of_pair in levels])
        design = sparse.csr_array((np.ones(len(codes)), (rows, codes)), shape=(n, n_levels))
        if 2 * n_levels > len(codes):
            left_out[name] = "each is there less than twice on average"
            continue
        gram = _gram([*designs.values(), design], n)
        scale = np.sqrt(np.diag(gram))
        if scale[-2] < _APART:
            left_out[name] = "all pairs have the same"
        elif np.linalg.eigvalsh(gram / np.outer(scale, scale))[0] < _APART:
            left_out[name] = "it goes with what is told already"
        else:
            designs[name] = design
    return designs, left_out


def _gram(designs: Sequence[sparse.csr_array], n: int) -> Float64[np.ndarray, "part part"]:
    """Traces of the products of the centred covariances, of the designs and of the rest, whose design is the unit."""

    def cross(x: sparse.csr_array, y: sparse.csr_array) -> Float64[np.ndarray, "level other"]:
        return np.asarray((x.T @ y).toarray() - np.outer(x.sum(0), y.sum(0)) / n)

    gram = np.full((len(designs) + 1, len(designs) + 1), n - 1.0)
    for i, x in enumerate(designs):
        gram[i, -1] = gram[-1, i] = np.trace(cross(x, x))
        for j, y in enumerate(designs[: i + 1]):
            gram[i, j] = gram[j, i] = (cross(x, y) ** 2).sum()
    return gram
