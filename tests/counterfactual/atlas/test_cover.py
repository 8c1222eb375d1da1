"""The fewest prompts: against all sets of them, and what is said where not all are tried."""

import itertools

import numpy as np
import pytest

from igap.counterfactual.atlas import cover as module
from igap.counterfactual.atlas.clusters import describe_edits, group_prompts
from igap.counterfactual.atlas.cover import fewest_prompts
from igap.counterfactual.spaces.base import KEEP, Slot, Space


def fewest_by_hand(sizes, share):
    total = sizes.max(1).sum()
    for k in range(1, sizes.shape[1] + 1):
        for prompts in itertools.combinations(range(sizes.shape[1]), k):
            if sizes[:, prompts].max(1).sum() >= share * total * (1 - 1e-12):
                return k
    raise AssertionError


@pytest.mark.parametrize("tried", [500_000, 0])
def test_few_prompts_reach_the_share_and_no_fewer_than_said(tried, monkeypatch):
    monkeypatch.setattr(module, "_MOST_TRIED", tried)
    rng = np.random.default_rng(0)
    n_sure = 0
    for _ in range(60):
        sizes = rng.exponential(size=(rng.integers(2, 9), rng.integers(2, 9))) * (rng.random((1, 1)) < 2)
        share = rng.choice([0.6, 0.95, 1.0])
        cover, fewest = fewest_prompts(sizes, share), fewest_by_hand(sizes, share)
        total = sizes.max(1).sum()
        assert cover.shares == pytest.approx(
            [sizes[:, cover.chosen[:k]].max(1).sum() / total for k in range(1, len(cover.chosen) + 1)]
        )
        assert cover.shares[-1] >= share * (1 - 1e-9)
        assert (np.diff(np.diff([0, *cover.shares])) < 1e-12).all()  # each adds at most what the one before it added
        assert len(set(cover.chosen)) == len(cover.chosen)
        assert cover.least <= fewest <= len(cover.chosen)
        n_sure += cover.is_fewest
        if tried:
            assert cover.least == len(cover.chosen) == fewest
    assert n_sure > 20


def test_a_larger_sum_that_other_prompts_show_takes_more_of_these():
    sizes = np.array([[4.0, 0.0, 1.0], [0.0, 3.0, 0.0], [0.0, 0.0, 1.0]])
    assert fewest_prompts(sizes, 0.8).shares == pytest.approx((0.5, 7 / 8))
    assert fewest_prompts(sizes, 0.8, total=10.0).shares == pytest.approx((0.4, 0.7, 0.8))


def test_greed_is_beaten_where_all_sets_are_tried():
    """The broad prompt comes first by greed, and is no part of the best two."""
    sizes = np.array([[3.0, 4.0, 0.0], [3.0, 4.0, 0.0], [3.0, 0.0, 4.0], [3.0, 0.0, 4.0]])
    cover = fewest_prompts(sizes, 1.0)
    assert set(cover.chosen) == {1, 2}
    assert cover.is_fewest


SPACE = Space("slots", (Slot("who", (KEEP, "=IO", "Tom"), (1,)), Slot("place", (KEEP, "zoo", "bar", "pub"), (3,))))


def test_prompts_that_show_the_same_heads_are_a_group():
    sizes = np.array([[4.0, 0.1, 8.0, 0.0, 0.0], [0.0, 3.0, 0.5, 0.0, 1.0]])
    groups, order = group_prompts(sizes)
    assert sorted(map(sorted, groups)) == [[0, 2], [1, 4], [3]]
    assert sorted(order) == [0, 1, 2, 3, 4]
    assert abs(order.index(0) - order.index(2)) == abs(order.index(1) - order.index(4)) == 1
    assert group_prompts(sizes[:, :1]) == ([[0]], [0])


def test_a_group_is_described_by_the_edits_that_it_shares():
    assert describe_edits(SPACE, [(1, 1), (1, 2), (1, 3), (1, 0), (1, 0)]) == "who := IO"
    assert describe_edits(SPACE, [(1, 1), (1, 2), (0, 3), (2, 1), (0, 1)]) == "place"
    assert describe_edits(SPACE, [(0, 0), (1, 1), (2, 0)]) == "nothing in common"
