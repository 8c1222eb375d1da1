"""Rankings and the sets that come of them, by hand."""

import itertools

import numpy as np
import pytest
import torch

from igap.analyses.faithfulness.rankings import N_RANDOM, ranks, sets, sizes_of
from igap.attribution import AttributionMap
from igap.attribution.methods import METHODS


def one(method, effect, gap=1.0):
    return AttributionMap(
        method, "heads", torch.tensor([effect], dtype=torch.float64), gap=gap, signed=method != "atp_star"
    )


def order(ranks):
    """Components from the first to the last."""
    return np.argsort(ranks[0]).tolist()


EFFECT = [-2.0, 1.0, 0.0, -3.0]  # noising: 3 and 0 carry the clean answer, 1 works against it


@pytest.mark.parametrize(
    ("direction", "gap", "expected"),
    [
        ("noising", 1.0, [3, 0, 2, 1]),
        ("noising", -1.0, [1, 2, 0, 3]),
        ("denoising", 1.0, [1, 2, 0, 3]),
        ("denoising", -1.0, [3, 0, 2, 1]),
    ],
)
def test_first_comes_what_carries_the_clean_answer(direction, gap, expected):
    found = ranks({"ap": one("ap", EFFECT, gap)}, direction, seed=0)
    assert order(found["ap", "contribution"]) == expected
    assert order(found["ap", "magnitude"]) == [3, 0, 1, 2]


def test_a_map_without_sign_ranks_by_magnitude_in_both():
    maps = {"ap": one("ap", EFFECT), "atp_star": one("atp_star", [0.5, 3.0, 0.0, 1.0])}
    found = ranks(maps, "noising", seed=0)
    assert order(found["atp_star", "contribution"]) == order(found["atp_star", "magnitude"]) == [1, 3, 0, 2]


def test_equal_ones_go_to_the_lower_component():
    assert order(ranks({"ap": one("ap", [0.0, 1.0, -1.0, 0.0])}, "noising", seed=0)["ap", "magnitude"]) == [1, 2, 0, 3]


def test_random_rankings_are_permutations_that_the_seed_determines():
    maps = {method: one(method, EFFECT * 5) for method in METHODS}
    first, again, other = (ranks(maps, "noising", seed=seed)["random", "contribution"] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.shape == (N_RANDOM, 20)
    assert (np.sort(first) == np.arange(20)).all()
    assert len({tuple(row) for row in first}) == N_RANDOM


def test_sizes_are_mibs_shares_rounded_down_and_for_few_components_every_few():
    assert sizes_of(5) == (0, 1, 2, 3, 4, 5)
    assert sizes_of(32) == (0, 1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32)
    assert set(sizes_of(144)) == {*range(0, 144, 9), 1, 2, 7, 14, 28, 72, 144}
    assert sizes_of(36864) == (0, 36, 73, 184, 368, 737, 1843, 3686, 7372, 18432, 36864)


def test_insertion_keeps_the_first_k_and_deletion_ablates_them():
    kept, index = sets({("ap", "contribution"): np.array([[2, 0, 1]])}, (0, 1, 2, 3))
    insertion, deletion = (kept[index["ap", "contribution", kind][0]].astype(int).tolist() for kind in KINDS)
    assert insertion == [[0, 0, 0], [0, 1, 0], [0, 1, 1], [1, 1, 1]]
    assert deletion == [[1, 1, 1], [1, 0, 1], [1, 0, 0], [0, 0, 0]]


def test_every_set_comes_once_the_empty_one_first_and_the_full_one_second():
    all_orders = np.array(list(itertools.permutations(range(3))))
    kept, _ = sets({("ap", "contribution"): all_orders, ("random", "magnitude"): all_orders}, (0, 1, 2, 3))
    assert len(kept) == len({tuple(row) for row in kept}) == 2**3
    assert not kept[0].any()
    assert kept[1].all()


KINDS = ("insertion", "deletion")
