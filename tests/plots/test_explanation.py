"""Figures of the follow-ups: bars, points and curves stand where the numbers are."""

import io

import numpy as np
import pytest
from matplotlib.text import Text

from igap import plots
from igap.analyses.output_curves import OutputCurves
from igap.attribution.decomposition import BETWEEN, POINTS, TERMS

ALPHAS = np.linspace(-1, 2, 61).round(2)


def chain(*points):
    """Points and terms of one outlier."""
    terms = dict(zip(TERMS, np.diff(points).tolist(), strict=True))
    return {**dict(zip(POINTS, points, strict=True)), **terms}


OUTLIERS = {
    "9.6": chain(-0.05, 0.04, 0.045, 0.02, -0.11, -0.12),
    "10.7": chain(0.3, 0.2, 0.2, 0.2, 0.35, 0.1),
    "0.1": chain(0.0, 0.0, 0.0, 0.0, 0.05, 0.05),
}


def curves(n=10):
    """Waves, lines and a flat one."""
    rows = np.array([5 + np.sin((i % 4) * ALPHAS) - 0.3 * i * ALPHAS / n for i in range(n)])
    ends = rows[:, [20, 40]]
    return OutputCurves(
        names=tuple(f"{i}.{i}" for i in range(n)),
        alphas=ALPHAS,
        by_pair=rows[None],
        ends=ends,
        slopes=np.array([(i % 4) - 0.3 * i / n for i in range(n)]),
        rounding=1e-9,
        baseline="corrupted",
        direction="noising",
        roles=tuple(["outlier"] * (n - 2) + ["null"] * 2),
    )


def texts(figure):
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def test_the_bars_of_an_outlier_are_its_terms_stacked_away_from_0_by_sign():
    figure = plots.explanation(OUTLIERS, unit="score (effect / gap)", title="heads")
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
    figure = plots.explanation(OUTLIERS, unit="score (effect / gap)")
    left, _ = figure.axes
    marked = {line.get_label(): list(line.get_xdata()) for line in left.lines}
    for label, point in (("IG", "ig"), ("AP", "ap"), ("AtP, the naive IG", "atp")):
        assert marked[label] == [values[point] for values in OUTLIERS.values()]
    assert [tick.get_text() for tick in left.get_yticklabels()] == list(OUTLIERS)
    assert left.get_xlabel() == "score (effect / gap)"
    assert left.yaxis_inverted(), "the farthest outlier is on top"


def test_without_outliers_the_figure_says_so():
    assert "no head is an outlier" in texts(plots.explanation({}, unit="score"))


def test_every_component_has_a_panel_with_its_curve_on_shared_axes():
    given = curves(10)
    figure = plots.output_curves(given, title="ioi-mini")
    panels = [ax for ax in figure.axes if ax.get_visible()]
    assert len(panels) == 10
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in panels}) == 1
    for i, ax in enumerate(panels):
        by_label = {line.get_label(): line for line in ax.lines}
        np.testing.assert_array_equal(by_label["F"].get_xydata(), np.column_stack([ALPHAS, given.values[i]]))
        assert {line.get_xdata()[0] for line in ax.lines if list(line.get_ydata()) == [0, 1]} == {0, 1}
        slope = by_label["slope at 0 (AtP)"].get_xydata()
        assert np.diff(slope[:, 1]) / np.diff(slope[:, 0]) == pytest.approx(given.slopes[i])
        drawn = [tuple(line.get_xydata()[0]) for line in ax.lines if "[0, 1]" in str(line.get_label())]
        assert drawn == [(one.alpha, one.value) for one in given.extrema(i)]
        assert ax.get_title().startswith(f"{i}.{i}, {given.roles[i]}\n")
    assert "alpha = 1: corrupted baseline" in " ".join(figure.get_suptitle().split())


@pytest.mark.parametrize("n", [1, 3, 5])
def test_any_number_of_components_is_drawn(n):
    figure = plots.output_curves(curves(n) if n > 2 else curves(2))
    figure.savefig(io.BytesIO(), format="png")


def test_the_parts_of_an_interaction_are_bars_that_sum_to_the_last():
    figure = plots.interaction_parts("0.3", ["0.0", "0.1"], [0.2, -0.05], higher_order=0.1, title="ioi-mini")
    (ax,) = figure.axes
    assert [bar.get_height() for bar in ax.patches] == pytest.approx([0.2, -0.05, 0.1, 0.25])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0.0", "0.1", "higher\norder", "all"]
    assert "interaction of head 0.3" in figure.get_suptitle()
