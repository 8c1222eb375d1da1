"""Marks of a ranking: against slow definitions, over every pair and every threshold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igap.statistics.detection import average_precision, find_missed, roc_area

RANKED = st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=12)


def arrays(ranked):
    return np.array([float(score) for score, _ in ranked]), np.array([matters for _, matters in ranked])


@given(RANKED)
def test_the_roc_area_is_the_share_of_pairs_in_the_right_order(ranked):
    scores, matters = arrays(ranked)
    pairs = [(a > b) + (a == b) / 2 for a in scores[matters] for b in scores[~matters]]
    expected = np.mean(pairs) if pairs else np.nan
    assert roc_area(scores, matters) == pytest.approx(expected, nan_ok=True)


@given(RANKED)
def test_average_precision_is_the_sum_over_thresholds_of_precision_times_the_recall_gained(ranked):
    scores, matters = arrays(ranked)
    area, recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        chosen = scores >= threshold
        reached = (chosen & matters).sum() / max(1, matters.sum())
        area += (reached - recall) * (chosen & matters).sum() / chosen.sum()
        recall = reached
    assert average_precision(scores, matters) == pytest.approx(area if matters.any() else np.nan, nan_ok=True)


@given(RANKED)
def test_missed_are_those_that_no_order_of_ties_puts_surely_among_the_k_largest(ranked):
    scores, matters = arrays(ranked)
    expected = [
        bool(own and (scores >= score).sum() > matters.sum()) for score, own in zip(scores, matters, strict=True)
    ]
    assert find_missed(scores, matters).tolist() == expected
