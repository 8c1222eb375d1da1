"""Bars and points of the chain from AtP to AP stand where the numbers are."""

import numpy as np
import pytest
from matplotlib.text import Text

from igap.analyses.explain.plots import explanation, interaction_parts
from igap.attribution.decomposition import BETWEEN, POINTS, TERMS


def chain(*points):
    """Points and terms of one outlier."""
    terms = dict(zip(TERMS, np.diff(points).tolist(), strict=True))
    return {**dict(zip(POINTS, points, strict=True)), **terms}


OUTLIERS = {
    "9.6": chain(-0.05, 0.04, 0.045, 0.02, -0.11, -0.12),
    "10.7": chain(0.3, 0.2, 0.2, 0.2, 0.35, 0.1),
    "0.1": chain(0.0, 0.0, 0.0, 0.0, 0.05, 0.05),
}


def texts(figure):
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def test_the_bars_of_an_outlier_are_its_terms_stacked_away_from_0_by_sign():
    figure = explanation(OUTLIERS, unit="score (effect / gap)", title="heads")
    _, right = figure.axes
    bars = {container.get_label().split(" (")[0]: list(container) for container in right.containers}
    assert bars.keys() == set(TERMS)
    for row, values in enumerate(OUTLIERS.values()):
        spans = {term: (bars[term][row].get_x(), bars[term][row].get_width()) for term in TERMS}
        for term, (_, width) in spans.items():
            assert width == pytest.approx(values[term], abs=1e-12)
        for sign in (1, -1):
            side = sorted((sign * x, sign * width) for x, width in spans.values() if sign * width > 0)
            from_0 = np.cumsum([0, *(width for _, width in side)])[: len(side)]
            assert [x for x, _ in side] == pytest.approx(from_0.tolist())
    (marks,) = [line for line in right.lines if line.get_label() == "AP - IG"]
    np.testing.assert_allclose(marks.get_xdata(), [sum(v[term] for term in BETWEEN) for v in OUTLIERS.values()])


def test_points_of_the_chain_are_marked_beside_the_outliers_names():
    figure = explanation(OUTLIERS, unit="score (effect / gap)")
    left, _ = figure.axes
    marked = {line.get_label(): list(line.get_xdata()) for line in left.lines}
    for label, point in (("IG", "ig"), ("AP", "ap"), ("AtP", "atp")):
        assert marked[label] == [values[point] for values in OUTLIERS.values()]
    assert [tick.get_text() for tick in left.get_yticklabels()] == list(OUTLIERS)
    assert left.get_xlabel() == "score (effect / gap)"
    assert left.yaxis_inverted(), "the farthest outlier is on top"


def test_without_outliers_the_figure_says_so():
    assert "no head is an outlier" in texts(explanation({}, unit="score"))


def test_the_parts_of_an_interaction_are_bars_that_sum_to_the_last():
    figure = interaction_parts("0.3", ["0.0", "0.1"], [0.2, -0.05], higher_order=0.1, title="ioi-mini")
    (ax,) = figure.axes
    assert [bar.get_height() for bar in ax.patches] == pytest.approx([0.2, -0.05, 0.1, 0.25])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0.0", "0.1", "higher\norder", "all"]
    assert "interaction of head 0.3" in figure.get_suptitle()
