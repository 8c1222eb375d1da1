"""Fronts and hypervolumes against brute force; EPO on a toy problem."""

from collections import Counter

import numpy as np
import pytest
from helpers.hypervolume import hypervolume
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from igap.counterfactual.history import History, Proposal
from igap.counterfactual.samplers.base import draw
from igap.counterfactual.samplers.pareto import epo, front
from igap.counterfactual.spaces.base import Slot, Space

POINTS = arrays(float, st.tuples(st.integers(0, 12), st.just(2)), elements=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1]))


def test_a_front_worked_by_hand():
    points = np.array([[1, 5], [2, 4], [2, 3], [3, 4], [5, 1], [np.nan, 9], [0, 5], [5, 1]], dtype=float)
    assert front(points) == [0, 3, 4], "of equal ones the first, ascending in the first term, no failed one"


def test_a_hypervolume_worked_by_hand():
    points = np.array([[1.0, 3.0], [2.0, 2.0], [1.0, 1.0]])
    # In a box of 4 x 4: 1 x 3 and 2 x 2, of which 1 x 2 twice.
    assert hypervolume(points, np.zeros(2), np.full(2, 4.0)) == pytest.approx((3 + 4 - 2) / 16)
    assert hypervolume(points, np.zeros(2), np.ones(2)) == 1.0, "beyond the box counts as its corner"
    assert hypervolume(points[:0], np.zeros(2), np.ones(2)) == 0.0
    assert hypervolume(points, np.full(2, 3.0), np.full(2, 4.0)) == 0.0


@given(points=POINTS)
def test_a_front_is_what_brute_force_finds(points):
    def beaten(i):
        others = [j for j in range(len(points)) if (points[j] >= points[i]).all()]
        return any((points[j] > points[i]).any() or j < i for j in others)

    wanted = [i for i in range(len(points)) if not beaten(i)]
    assert front(points) == sorted(wanted, key=lambda i: points[i, 0])


@given(points=POINTS)
def test_a_hypervolume_is_the_share_of_cells_below_a_point(points):
    cells = (np.arange(4) + 0.5) / 4  # the points are on a grid of quarters
    covered = [any((point >= (x, y)).all() for point in points) for x in cells for y in cells]
    assert hypervolume(points, np.zeros(2), np.ones(2)) == pytest.approx(np.mean(covered))


@given(points=arrays(float, (7, 3), elements=st.sampled_from([0.0, 0.5, 1.0])))
def test_a_front_of_three_terms_has_no_beaten_point_and_beats_the_rest(points):
    found = front(points)
    for i in range(len(points)):
        better = [j for j in found if j != i and (points[j] >= points[i]).all()]
        assert bool(better) != (i in found)


def test_epo_covers_more_of_a_toy_front_than_chance():
    # Each option is good for one term and as bad for the other: the front is a line from corner to corner.
    slots = tuple(Slot(f"s{i}", tuple(f"w{o}" for o in range(12)), (i + 1,)) for i in range(5))
    space = Space("slots", slots)
    spread = np.random.default_rng(5).uniform(size=(5, 12))
    cost = np.random.default_rng(6).uniform(size=(5, 12)) + spread

    def objective_value(one):
        return [sum(spread[i, o] for i, o in enumerate(one)), -sum(cost[i, o] for i, o in enumerate(one))]

    def explored(propose, seed):
        rng = np.random.default_rng(seed)
        start = draw(History(space, (), np.zeros((0, 2))), 16, rng)
        history = History(space, tuple(start), np.array([objective_value(one.candidate) for one in start]))
        for _ in range(9):
            batch = propose(history, rng)
            points = np.array([objective_value(one.candidate) for one in batch])
            history = History(space, (*history.proposals, *batch), np.concatenate([history.points, points]))
        return history

    def first_order_scores(one, term=0):
        return [sign * (of_term[i] - of_term[i, o]) for i, o in enumerate(one)
                for sign, of_term in [((1, spread), (-1, cost))[term]]]  # fmt: skip

    def of_the_first_alone(one, term=0):
        return [np.zeros(12) if term else gain for gain in first_order_scores(one)]

    low, high = np.array([0.0, -10.0]), np.array([5.0, 0.0])
    for seed in range(3):
        own = explored(lambda history, rng: epo(history, first_order_scores, 16, rng), seed)
        blind = explored(lambda history, rng: epo(history, of_the_first_alone, 16, rng), seed)
        chance = explored(lambda history, rng: draw(history, 16, rng), seed)
        assert len(own.seen) == len(own.proposals) == 160
        assert {one.source for one in own.proposals[16:]} == {"epo-gradient", "epo-child"}
        assert hypervolume(own.points, low, high) > 1.02 * hypervolume(blind.points, low, high)
        assert hypervolume(blind.points, low, high) > 1.05 * hypervolume(chance.points, low, high)
        for term in (0, 1):  # members with all weight on one term and on the other
            assert own.points[:, term].max() > chance.points[:, term].max()


def test_a_member_follows_its_own_weights_of_the_terms_in_their_spreads():
    """The gradients of two terms that each want another word, and of which one is measured in thousandths."""
    space = Space("slots", (Slot("s", tuple(f"w{o}" for o in range(100)), (1,)),))
    tried = tuple(Proposal((o,), "start") for o in range(4))
    points = np.array([[0.0, 3000.0], [1.0, 2000.0], [2.0, 1000.0], [3.0, 0.0]])
    asked = []

    def first_order_scores(one, term=0):
        asked.append(term)
        scores = np.zeros(100)
        scores[[10, 20][term]] = [8.0, 8000.0][term]
        return [scores]

    counts = Counter(
        proposal.candidate[0]
        for seed in range(200)
        for proposal in epo(History(space, tried, points), first_order_scores, 1, np.random.default_rng(seed))
        if proposal.source == "epo-gradient"
    )
    # The eight members' weights are symmetric but for the last: words 10 and 20 lead for about as many of them.
    assert counts[10] > 25
    assert counts[20] > 25
    assert asked.count(0) > asked.count(1) > 0, "the member with no weight on the second term does not ask for it"
