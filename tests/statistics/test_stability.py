"""How far a ranking would change: by hand, against a slow reference, and on draws whose truth is known."""

import math

import numpy as np
import pytest
from helpers.ranked_draws import draw, truths
from scipy import stats

from igap.statistics import stability
from igap.statistics.bootstrap import resample_counts
from igap.statistics.jaccard import expected_jaccard
from igap.statistics.stability import jaccard_with, pairs_wanted, rank_intervals, split_jaccard


def test_pairs_that_agree_leave_each_component_its_rank():
    low, high = rank_intervals(np.tile([0.5, -3.0, 0.0, 1.0], (6, 1)), np.arange(4), seed=0)
    assert list(low) == list(high) == [3, 1, 4, 2]


def test_components_of_one_size_share_the_better_rank():
    low, high = rank_intervals(np.tile([0.0, 2.0, -2.0, 0.0], (6, 1)), np.array([3, 2]), seed=0)
    assert list(low) == list(high) == [3, 1]


def test_the_ends_are_those_of_ranks_resampled_one_by_one(monkeypatch):
    monkeypatch.setattr(stability, "_NUMBERS_AT_ONCE", 7 * 20)  # chunks of 7 resamples
    rng = np.random.default_rng(1)
    values = draw(*truths("laplace", rng, 20), 9, rng)
    low, high = rank_intervals(values, np.array([4, 0, 19]), seed=3, n_resamples=100)
    mean, ranks = values.mean(0), []
    for counts in resample_counts(9, seed=3, n_resamples=100):
        resampled = np.repeat(values, counts.astype(int), axis=0).mean(0)
        widened = mean + (resampled - mean) * stats.t.ppf(0.975, 8) / stats.norm.ppf(0.975) * math.sqrt(9 / 8)
        ranks.append(stats.rankdata(-np.abs(widened), method="min")[[4, 0, 19]])
    assert list(low) == list(np.floor(np.quantile(ranks, 0.025, axis=0)))
    assert list(high) == list(np.ceil(np.quantile(ranks, 0.975, axis=0)))


def test_one_pair_has_no_interval():
    with pytest.raises(ValueError, match="got 1 pairs"):
        rank_intervals(np.ones((1, 3)), np.arange(3), seed=0)


@pytest.mark.parametrize("kind", ["few", "laplace", "student"])
@pytest.mark.parametrize("n", [8, 20, 100])
def test_95_of_100_intervals_hold_the_true_rank(kind, n):
    rng, held = np.random.default_rng(n), []
    for seed in range(40):
        mean, deviation = truths(kind, rng)
        low, high = rank_intervals(draw(mean, deviation, n, rng), np.arange(64), seed=seed, n_resamples=400)
        rank = stats.rankdata(-np.abs(mean))
        held.append(((low <= rank) & (rank <= high)).mean())
    assert 0.92 <= np.mean(held) <= 0.98


def top(values, k=10):
    return set(np.argsort(-np.abs(values.mean(0)))[:k])


@pytest.mark.parametrize("kind", ["few", "laplace", "student"])
@pytest.mark.parametrize("n", [20, 100])
def test_the_expected_jaccard_index_is_that_of_two_samples(kind, n):
    rng, expected, true = np.random.default_rng(n), [], []
    for seed in range(30):
        mean, deviation = truths(kind, rng)
        (split,) = split_jaccard(draw(mean, deviation, n, rng), np.array([10]), seed=seed)
        expected.append(jaccard_with(n, split, n // 2, 64, 10))
        tops = [top(draw(mean, deviation, n, rng)) for _ in range(12)]
        true += [len(a & b) / len(a | b) for a, b in zip(tops[::2], tops[1::2], strict=True)]
    # A draw's own estimate is off by about 0.08, so the mean of 30 by 0.015; what the odds leave is below 0.05.
    assert np.mean(expected) == pytest.approx(np.mean(true), abs=0.08)


def test_where_all_is_noise_the_index_is_chance():
    rng = np.random.default_rng(0)
    indices = [split_jaccard(rng.standard_normal((20, 64)), np.array([10]), seed=seed)[0] for seed in range(30)]
    chance = expected_jaccard(64, 10)
    assert np.mean(indices) == pytest.approx(chance, abs=0.05)
    assert jaccard_with(1000, chance, 10, 64, 10) == pytest.approx(chance)
    assert pairs_wanted(chance, 10, 64, 10) is None


def test_halves_that_agree_are_stable_at_once():
    (split,) = split_jaccard(np.tile(np.arange(1.0, 21), (5, 1)), np.array([10]), seed=0)
    assert split == jaccard_with(5, split, 2, 20, 10) == 1
    assert pairs_wanted(split, 2, 20, 10) == 2


def test_the_pairs_wanted_are_those_of_which_the_index_is_that():
    wanted = pairs_wanted(0.6, 50, 64, 10, 0.8)
    assert jaccard_with(wanted, 0.6, 50, 64, 10) >= 0.8 > jaccard_with(wanted - 1, 0.6, 50, 64, 10)
    assert jaccard_with(50, 0.6, 50, 64, 10) == pytest.approx(0.6)


def test_the_odds_above_chance_grow_with_the_root_of_the_pairs():
    chance = expected_jaccard(64, 10)
    above = [(jaccard_with(n, 0.6, 50, 64, 10) - chance) / (1 - chance) for n in (50, 200)]
    assert above[1] / (1 - above[1]) == pytest.approx(2 * above[0] / (1 - above[0]))


def test_what_is_not_defined_has_no_number():
    values = np.zeros((6, 20))
    values[:, :4] = 1.0
    (split,) = split_jaccard(values, np.array([10]), seed=0)
    assert math.isnan(split), "which of the zeros are on top would be an accident"
    assert math.isnan(jaccard_with(6, split, 3, 20, 10))
    assert pairs_wanted(split, 3, 20, 10) is None
    assert math.isnan(split_jaccard(np.ones((1, 20)), np.array([10]), seed=0)[0])
