"""A panel a component: the curve, its chord, its slope and its extrema stand where the numbers are."""

import io

import numpy as np
import pytest

from igap.analyses.curves import OutputCurves
from igap.analyses.curves.plots import output_curves

ALPHAS = np.linspace(-1, 2, 61).round(2)


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


def test_every_component_has_a_panel_with_its_curve_on_shared_axes():
    given = curves(10)
    figure = output_curves(given, title="ioi-mini")
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
    figure = output_curves(curves(n) if n > 2 else curves(2))
    figure.savefig(io.BytesIO(), format="png")
