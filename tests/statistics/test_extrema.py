"""Peaks and troughs: of curves whose extrema are known, and against scipy's minimiser between the grid's points."""

import numpy as np
import pytest
from scipy import optimize

from igap.statistics.extrema import find_extrema

GRID = np.linspace(-1, 2, 61)


def test_a_parabola_has_its_vertex_between_the_points_exactly():
    """-(x - 0.37)^2 + 2, on a grid of uneven steps: the parabola through three points is itself."""
    alphas = np.array([-1, -0.4, 0, 0.3, 0.5, 1.1, 2])
    (found,) = find_extrema(alphas, 2 - (alphas - 0.37) ** 2, 1e-9)
    assert (found.kind, found.inside) == ("peak", True)
    assert (found.alpha, found.value) == pytest.approx((0.37, 2))
    assert found.prominence == pytest.approx(1.37**2 - 0.07**2), "from the best grid point down to the higher end"
    (found,) = find_extrema(alphas, (alphas - 1.5) ** 2, 1e-9)
    assert (found.kind, found.inside) == ("trough", False)
    assert (found.alpha, found.value) == pytest.approx((1.5, 0))


def test_every_turn_of_a_wave_is_found_in_order_and_as_scipy_minimises_it():
    def wave(x):
        return np.sin(5 * x) + 0.3 * x

    found = find_extrema(GRID, wave(GRID), 1e-9)
    assert [one.kind for one in found] == ["peak", "trough", "peak", "trough", "peak"]
    for one in found:
        sign = 1 if one.kind == "trough" else -1
        exact = optimize.minimize_scalar(
            lambda x, sign=sign: sign * wave(x), bounds=(one.alpha - 0.3, one.alpha + 0.3), options={"xatol": 1e-9}
        )
        # A parabola through points h apart is off by at most 0.385 h^3 / 6 of the third derivative, here 125: 1e-3.
        assert one.alpha == pytest.approx(exact.x, abs=2e-3)
        assert one.value == pytest.approx(wave(exact.x), abs=1e-3)
        assert one.inside == (0 <= exact.x <= 1)


def test_ends_straight_lines_and_noise_are_no_extrema():
    rng = np.random.default_rng(0)
    noise = 1e-7 * rng.standard_normal(GRID.size)
    assert find_extrema(GRID, 3 * GRID, 1e-9) == ()
    assert find_extrema(GRID, np.zeros_like(GRID), 1e-9) == ()
    assert find_extrema(GRID, 5 + noise, 1e-6) == ()
    assert find_extrema(GRID, GRID**2 + noise, 1e-5)[0].alpha == pytest.approx(0, abs=1e-3)
    assert len(find_extrema(GRID, 5 + noise, 1e-12)) > 10


def test_a_flat_top_is_one_peak_in_its_middle():
    values = np.array([0, 1, 1, 1, 0.5])
    (found,) = find_extrema(np.array([0, 0.25, 0.5, 0.75, 1]), values, 1e-9)
    assert (found.alpha, found.value, found.prominence) == (0.5, 1, 0.5)
