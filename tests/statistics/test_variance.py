"""Parts of a variance: textbook formulas, matrices written out, and draws whose variances are known."""

import numpy as np
import pytest
from scipy import stats

from igap.statistics import variance
from igap.statistics.variance import INTERPLAY, METHOD, REST, variance_parts


def levels(*codes):
    """A factor: one level a pair, or several."""
    return [tuple(str(level) for level in np.atleast_1d(of_pair)) for of_pair in zip(*codes, strict=True)]


def test_one_balanced_factor_is_the_one_way_analysis_of_variance():
    values = np.random.default_rng(0).standard_normal((1, 12, 3))
    parts = variance_parts(values, {"wording": levels(np.repeat(range(4), 3))}).parts
    groups = values[0].reshape(4, 3, 3)
    within = groups.var(1, ddof=1).mean(0)
    assert parts[REST] == pytest.approx(within)
    between = 3 * groups.mean(1).var(0, ddof=1)
    # What a variance of 1 between 4 groups of 3 adds to the variance of 12 values: (12 - 3) / 11.
    assert parts["wording"] == pytest.approx((between - within) / 3 * 9 / 11)
    assert (between / within) == pytest.approx(stats.f_oneway(*groups).statistic)


def test_methods_and_pairs_are_the_two_way_analysis_of_variance(monkeypatch):
    monkeypatch.setattr(variance, "_NUMBERS_AT_ONCE", 2 * 3 * 7)  # chunks of 2 of the 5 components
    values = np.random.default_rng(0).standard_normal((3, 7, 5)) + 100
    parts = variance_parts(values, {}).parts
    for c in range(5):
        y = values[..., c]
        away = sum((y[m, p] - y[m].mean() - y[:, p].mean() + y.mean()) ** 2 for m in range(3) for p in range(7)) / 12
        between_methods = 7 * sum((y[m].mean() - y.mean()) ** 2 for m in range(3)) / 2
        between_pairs = 3 * sum((y[:, p].mean() - y.mean()) ** 2 for p in range(7)) / 6
        assert parts[INTERPLAY][c] == pytest.approx(away)
        assert parts[METHOD][c] == pytest.approx((between_methods - away) / 7)
        assert parts[REST][c] == pytest.approx((between_pairs - away) / 3)


def test_crossed_factors_are_those_of_matrices_written_out():
    rng = np.random.default_rng(2)
    n, y = 40, rng.standard_normal((1, 40, 1))
    wording, first, second = rng.integers(5, size=n), rng.integers(8, size=n), rng.integers(8, size=n)
    parts = variance_parts(y, {"wording": levels(wording), "names": levels(first, second)}).parts
    centre = np.eye(n) - 1 / n
    same = [
        (wording[:, None] == wording).astype(float),
        sum((a[:, None] == b).astype(float) for a in (first, second) for b in (first, second)),
        np.eye(n),
    ]
    moved = [centre @ each @ centre for each in same]
    gram = [[np.trace(a @ b) for b in moved] for a in moved]
    estimates = np.linalg.solve(gram, [y[0, :, 0] @ each @ y[0, :, 0] for each in moved])
    wanted = [estimate * np.trace(each) / (n - 1) for estimate, each in zip(estimates, moved, strict=True)]
    assert [float(parts[name][0]) for name in ("wording", "names", REST)] == pytest.approx(wanted)


def test_the_parts_are_unbiased_and_add_up():
    rng = np.random.default_rng(3)
    n, n_draws = 60, 4000
    wording, names = rng.integers(8, size=n), rng.integers(12, size=(2, n))
    y = 2.0 * rng.standard_normal((8, n_draws))[wording] + rng.standard_normal((n, n_draws))
    draws = rng.standard_normal((12, n_draws))
    y = y + 1.5 * (draws[names[0]] + draws[names[1]])
    y = y + 0.5 * rng.standard_normal((3, n, n_draws)) + 0.7 * rng.standard_normal((3, 1, n_draws))
    made = variance_parts(y, {"wording": levels(wording), "names": levels(*names)})
    means = {name: values.mean() for name, values in made.parts.items()}
    errors = {name: values.std() / np.sqrt(n_draws) for name, values in made.parts.items()}
    counts = [(np.array(each)[:, None] == np.unique(each)).astype(float) for each in (wording, names[0], names[1])]
    spans = [((each - each.mean(0)) ** 2).sum() / (n - 1) for each in (counts[0], counts[1] + counts[2])]
    wanted = {"wording": 4 * spans[0], "names": 2.25 * spans[1], REST: 1.0, METHOD: 0.49, INTERPLAY: 0.25}
    for name, value in wanted.items():
        assert means[name] == pytest.approx(value, abs=4 * errors[name]), name
    assert sum(made.shares().values()) == pytest.approx(1)
    assert made.shares(5)[METHOD] == pytest.approx(made.parts[METHOD][5] / made.total(5))


def test_a_factor_that_cannot_be_told_is_left_out_with_the_reason():
    wording = levels([0, 0, 1, 1, 2, 2, 3, 3])
    factors = {
        "wording": wording,
        "corruption": levels([0] * 8),
        "names": levels(range(8)),
        "place": levels([3, 3, 2, 2, 1, 1, 0, 0]),
    }
    made = variance_parts(np.random.default_rng(0).standard_normal((1, 8, 2)), factors)
    assert list(made.parts) == ["wording", REST]
    assert made.left_out == {
        "corruption": "all pairs have the same",
        "names": "each is there less than twice on average",
        "place": "it goes with what is told already",
    }


def test_values_that_do_not_vary_have_no_shares():
    made = variance_parts(np.ones((2, 6, 1)), {"wording": levels([0, 0, 0, 1, 1, 1])})
    assert made.total() == 0
    assert all(np.isnan(share) for share in made.shares().values())
