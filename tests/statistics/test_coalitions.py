"""Interactions and Shapley values against their definitions, written out as sums over subsets and orders."""

import math
from itertools import chain, combinations, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from igap.statistics.coalitions import (
    interactions_of,
    members_of,
    sample_orders,
    sampled_interval,
    shapley_values,
)

NUMBERS = st.floats(-10, 10, allow_subnormal=False)


@st.composite
def games(draw, most=6):
    """Effects of all subsets of a few members, that of the empty one 0."""
    effects = draw(arrays(np.float64, 2 ** draw(st.integers(1, most)), elements=NUMBERS))
    effects[0] = 0
    return effects


def bits(members):
    return sum(1 << member for member in members)


def subsets(members):
    return chain.from_iterable(combinations(members, size) for size in range(len(members) + 1))


def test_bits_are_members():
    assert members_of(np.array([0, 5]), 3).tolist() == [[False] * 3, [True, False, True]]


@given(games())
def test_the_effect_of_every_subset_is_the_sum_of_the_interactions_inside_it(effects):
    interactions = interactions_of(effects)
    n = len(effects).bit_length() - 1
    for subset in subsets(range(n)):
        inside = sum(interactions[bits(part)] for part in subsets(subset))
        assert effects[bits(subset)] == pytest.approx(inside, abs=1e-9)


def test_an_interaction_of_two_is_what_they_do_beyond_what_they_do_apart():
    assert interactions_of(np.array([0.0, 1.0, 2.0, 10.0])).tolist() == [0, 1, 2, 7]
    by_pair = np.array([[0.0, 1.0, 2.0, 10.0], [0.0, 1.0, 1.0, 1.0]])
    assert interactions_of(by_pair)[:, 3].tolist() == [7, -1]


@given(games(most=5))
def test_a_shapley_value_is_the_mean_contribution_over_all_orders_and_they_sum_to_the_whole(effects):
    n = len(effects).bit_length() - 1
    values = shapley_values(interactions_of(effects))
    expected = np.zeros(n)
    for order in permutations(range(n)):
        for place, member in enumerate(order):
            expected[member] += effects[bits(order[: place + 1])] - effects[bits(order[:place])]
    assert values == pytest.approx(expected / math.factorial(n), abs=1e-9)
    assert values.sum() == pytest.approx(effects[-1], abs=1e-9)


@given(games(), st.randoms())
def test_members_that_can_be_swapped_have_equal_values(effects, random):
    n = len(effects).bit_length() - 1
    one, other = random.choices(range(n), k=2)
    swapped = {one: other, other: one}
    symmetric = np.array(
        [
            effects[bits(subset)] + effects[bits(swapped.get(member, member) for member in subset)]
            for subset in (np.flatnonzero(row).tolist() for row in members_of(np.arange(2**n), n))
        ]
    )
    values = shapley_values(interactions_of(symmetric))
    assert values[one] == pytest.approx(values[other], abs=1e-9)


def test_orders_hold_each_member_once_and_come_from_the_seed():
    orders = sample_orders(5, 20, seed=3)
    assert (np.sort(orders, axis=1) == np.arange(5)).all()
    assert (orders == sample_orders(5, 20, seed=3)).all()
    assert (orders != sample_orders(5, 20, seed=4)).any()


def test_the_sampled_interval_is_the_t_interval_of_the_mean():
    contributions = np.array([[1.0, 2.0], [3.0, 2.0], [8.0, 2.0]])
    low, high = sampled_interval(contributions)
    expected = stats.t.interval(0.95, 2, loc=4, scale=stats.sem(contributions[:, 0]))
    assert (low[0], high[0]) == pytest.approx(expected)
    assert (low[1], high[1]) == (2, 2)
    assert np.isnan(sampled_interval(contributions[:1])).all()
