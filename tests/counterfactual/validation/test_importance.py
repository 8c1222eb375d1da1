"""Shares of variance, against components that are known; what a word is worth is in test_certificate."""

import itertools

import numpy as np
import pytest
from scipy.stats import zscore

from igap.counterfactual.validation import importance
from igap.counterfactual.validation.importance import variance_shares


def drawn(rng, n, sizes, deviations, rest):
    """Random trials of a sum of words' weights, of these deviations exactly, and of something that is no word's."""
    weights = [deviation * zscore(rng.normal(size=size)) for size, deviation in zip(sizes, deviations, strict=True)]
    words = np.stack([rng.integers(size, size=n) for size in sizes], 1)
    return words, sum(weight[words[:, i]] for i, weight in enumerate(weights)) + rest * rng.normal(size=n)


def test_shares_and_errors_of_many_draws_are_those_of_the_components_they_were_drawn_from():
    rng, variances = np.random.default_rng(0), np.array([1.0, 0.25, 0.0])
    found = [variance_shares(*drawn(rng, 200, (40, 40, 12), variances**0.5, 0.5)) for _ in range(100)]
    shares, errors = (np.array(each) for each in zip(*found, strict=True))
    assert shares.mean(0) == pytest.approx(variances / 1.5, abs=0.03)
    assert np.all(shares.sum(1) <= 1 + 1e-9)
    assert np.all(errors > 0.01), "a share that is cut off at 0 is not known exactly"
    spread = shares.std(0)
    assert np.all((errors.mean(0) > 0.8 * spread) & (errors.mean(0) < 2 * spread + 0.01))


def test_shares_of_a_whole_grid_are_first_order_sobol_indices():
    """Of a function with an interaction, which is in no share."""
    rng, sizes = np.random.default_rng(1), (6, 7, 8)
    words = np.array(list(itertools.product(*map(range, sizes))))
    a, b, c = (rng.normal(size=size) for size in sizes)
    values = a[words[:, 0]] + 0.5 * b[words[:, 1]] + a[words[:, 0]] * c[words[:, 2]]
    sobol = [np.mean([values[words[:, i] == k].mean() ** 2 for k in range(n)]) - values.mean() ** 2
             for i, n in enumerate(sizes)]  # fmt: skip
    shares, _ = variance_shares(words, values)
    assert shares == pytest.approx(np.array(sobol) / values.var(), abs=0.02)
    assert shares.sum() < 0.9


def test_four_trials_worked_by_hand():
    """Off the mean by -5/2, -1/2 | 1/2, 5/2: the mean product is 5/4 within the first slot's words, -9/4 across.

    Half their difference 7/2, two words' spread, is the first slot's component, the variance 13/3.
    Slots of which nothing can be told are NaN.
    """
    words = np.array([[0, 0, 0], [0, 1, 0], [1, 2, 0], [1, 3, 0]])
    shares, errors = variance_shares(words, np.array([0.0, 2.0, 3.0, 5.0]))
    assert shares == pytest.approx([21 / 52, np.nan, np.nan], abs=1e-9, nan_ok=True)
    assert np.isfinite(errors).tolist() == [True, False, False]


@pytest.mark.parametrize("n", [0, 3, 8])
def test_nothing_is_told_of_too_few_trials_or_equal_values(n):
    shares, errors = variance_shares(
        np.arange(2 * n).reshape(n, 2) // 2 % 2, np.ones(n) if n == 8 else np.arange(float(n))
    )
    assert np.isnan([*shares, *errors]).all()


def test_of_many_trials_a_random_part_is_taken_without_repetition(monkeypatch):
    monkeypatch.setattr(importance, "SAMPLE", 50)
    words, values = drawn(np.random.default_rng(2), 400, (5, 5), (1.0, 0.0), 0.1)
    chosen = np.random.default_rng(0).choice(400, 50, replace=False)
    assert np.array_equal(variance_shares(words, values), variance_shares(words[chosen], values[chosen]))
    assert variance_shares(words, values)[0][0] > 0.8
