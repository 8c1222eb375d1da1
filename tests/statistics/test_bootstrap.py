"""Intervals of means over pairs: by hand, against scipy, and what is left out."""

import cProfile
import pstats

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from igap.statistics import bootstrap
from igap.statistics.bootstrap import interval_label, mean_intervals, row_correlations


def test_a_component_of_one_value_has_that_value_at_both_ends():
    found = mean_intervals(np.full((7, 2), [0.1, -3.0]), seed=0)
    assert list(found.low) == list(found.high) == [0.1, -3.0]


def test_two_pairs_are_their_own_ends():
    # Of the means of two draws 1/4 are the one value, 1/4 the other, 1/2 halfway: 2.5% and 97.5% are the values.
    found = mean_intervals(np.array([[0.0, 5.0], [1.0, -5.0]]), seed=0)
    assert (list(found.low), list(found.high)) == ([0.0, -5.0], [1.0, 5.0])


def test_the_ends_are_scipys(monkeypatch):
    monkeypatch.setattr(bootstrap, "_NUMBERS_AT_ONCE", 2 * 20_000)  # chunks of 2 of the 5 components
    rng = np.random.default_rng(5)
    columns = [
        rng.standard_normal(40),
        rng.exponential(size=40),
        rng.uniform(-1, 1, 40),
        np.arange(40.0),
        rng.random(40),
    ]
    values, n_resamples = np.stack(columns, axis=1), 20_000
    found = mean_intervals(values, seed=1, n_resamples=n_resamples)
    for column, low, high in zip(columns, found.low, found.high, strict=True):
        expected = stats.bootstrap(
            (column,), np.mean, method="percentile", n_resamples=n_resamples, rng=np.random.default_rng(2)
        ).confidence_interval
        # The p-quantile of R draws has standard deviation sqrt(p (1 - p) / R) / density there; the mean of 40 is
        # nearly normal. Two sides are random, and 10 ends may be off: five of those deviations.
        error = column.std() / np.sqrt(40)
        density = stats.norm.pdf(stats.norm.ppf(0.025)) / error
        tolerance = 5 * np.sqrt(2 * 0.025 * 0.975 / n_resamples) / density
        assert abs(low - expected.low) < tolerance
        assert abs(high - expected.high) < tolerance
        assert tolerance < 0.15 * error, "far narrower than the interval, which is 3.9 errors wide"


def test_the_interval_is_as_wide_as_the_standard_error_says():
    values = np.random.default_rng(0).standard_normal((400, 1))
    found = mean_intervals(values, seed=0)
    error = values.std() / np.sqrt(400)
    # Off by 0.06 standard errors an end, as N_RESAMPLES says: four times that.
    assert found.low[0] == pytest.approx(values.mean() - 1.96 * error, abs=0.24 * error)
    assert found.high[0] == pytest.approx(values.mean() + 1.96 * error, abs=0.24 * error)


def test_a_pair_with_a_missing_value_is_left_out_for_all_components():
    values = np.random.default_rng(0).standard_normal((10, 3))
    holed = values.copy()
    holed[4] = np.nan
    holed[7, 1] = np.nan
    found, expected = mean_intervals(holed, seed=3), mean_intervals(np.delete(values, [4, 7], axis=0), seed=3)
    assert np.array_equal(found.low, expected.low)
    assert np.array_equal(found.high, expected.high)
    assert np.isfinite(found.low).all()


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_pairs_have_no_interval(n):
    found = mean_intervals(np.ones((n, 2)), seed=0)
    assert np.isnan([found.low, found.high]).all()
    assert np.isnan(mean_intervals(np.array([[1.0], [np.nan]]), seed=0).low).all()


def test_the_same_seed_gives_the_same_ends_and_0_is_one():
    values = np.random.default_rng(0).standard_normal((20, 4))
    first, second, other = (mean_intervals(values, seed=seed).low for seed in (0, 0, 1))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_a_component_gets_what_it_gets_among_any_others():
    values = np.random.default_rng(0).standard_normal((20, 3000))  # several chunks
    found, alone = mean_intervals(values, seed=0), mean_intervals(values[:, [2500]], seed=0)
    assert found.low[2500] == pytest.approx(alone.low[0], rel=1e-12)
    assert found.high[2500] == pytest.approx(alone.high[0], rel=1e-12)


@settings(max_examples=30)
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12), st.integers(0, 5))
def test_the_ends_lie_among_the_values_in_order(column, seed):
    found = mean_intervals(np.array(column)[:, None], seed=seed)
    rounding = 1e-9 * max(1.0, *map(abs, column))
    assert min(column) - rounding <= found.low[0] <= found.high[0] <= max(column) + rounding


def test_every_neuron_of_gpt2_over_100_pairs_takes_far_fewer_calls_than_there_are_neurons():
    """No loop over components or samples: 1.5 s where this was written."""
    values = np.random.default_rng(0).standard_normal((100, 36_864))
    profile = cProfile.Profile()
    profile.runcall(mean_intervals, values, seed=0)
    assert pstats.Stats(profile).total_calls < 36_864


def test_row_correlations_are_numpys_and_undefined_where_a_row_is_constant():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((6, 50)) * 1e-200, rng.standard_normal((6, 50))
    y[1], y[2], x[3], x[4] = x[1] * 1e180, -x[2] * 1e180, 0.25, 0.0
    found = row_correlations(x, y)
    for row in (0, 5):
        assert found[row] == pytest.approx(np.corrcoef(x[row] * 1e200, y[row])[0, 1], abs=1e-12)
    assert found[1] == pytest.approx(1, abs=1e-12)
    assert found[2] == pytest.approx(-1, abs=1e-12)
    assert np.isnan(found[[3, 4]]).all()


@pytest.mark.parametrize(("n", "is_range"), [(2, True), (3, True), (4, False), (12, False)])
def test_an_interval_is_called_a_range_where_it_is_one(n, is_range):
    values = np.random.default_rng(1).normal(size=(n, 20))
    found = mean_intervals(values, seed=0)
    assert np.allclose([found.low, found.high], [values.min(0), values.max(0)], atol=1e-9) == is_range
    assert interval_label(n) == (f"about the range of {n} pairs" if is_range else "95% over pairs")


def test_an_interval_that_a_single_pair_does_not_have_is_called_as_any():
    assert interval_label(1) == interval_label(0) == "95% over pairs"
