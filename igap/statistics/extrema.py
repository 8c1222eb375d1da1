"""Peaks and troughs of a curve on a grid. Pure functions of arrays."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64
from scipy import signal


@dataclass(frozen=True)
class Extremum:
    """A peak or a trough strictly between the first and the last alpha."""

    kind: Literal["peak", "trough"]
    alpha: float
    """Alpha of the vertex of the parabola through the grid's highest (lowest) point and its two neighbours."""
    value: float
    """F at that vertex, in logits."""
    prominence: float
    """Logits, > 0: how far F falls (rises) on both sides before it goes higher (lower), or before the grid ends."""

    @property
    def inside(self) -> bool:
        """Whether it lies on the path, alpha in [0, 1]."""
        return 0 <= self.alpha <= 1


def find_extrema(
    alphas: Float64[np.ndarray, " alpha"], values: Float64[np.ndarray, " alpha"], rounding: float
) -> tuple[Extremum, ...]:
    """Find the peaks and troughs of a curve, by ascending alpha. A prominence up to `rounding` counts as noise."""
    extrema = []
    kinds: tuple[tuple[Literal["peak", "trough"], int], ...] = (("peak", 1), ("trough", -1))
    for kind, sign in kinds:
        places, shape = signal.find_peaks(sign * values, prominence=rounding)
        for place, prominence in zip(places, shape["prominences"], strict=True):
            alpha, value = _vertex(alphas[place - 1 : place + 2], values[place - 1 : place + 2])
            extrema.append(Extremum(kind, alpha, value, float(prominence)))
    return tuple(sorted(extrema, key=lambda extremum: extremum.alpha))


def _vertex(x: Float64[np.ndarray, "3"], y: Float64[np.ndarray, "3"]) -> tuple[float, float]:
    """Vertex of the parabola through three points; the middle point if they lie on a line."""
    left, right = np.diff(y) / np.diff(x)
    bend = (right - left) / (x[2] - x[0])
    if bend == 0:
        return float(x[1]), float(y[1])
    slope = left + bend * (x[1] - x[0])  # at the middle point
    step = -slope / (2 * bend)
    return float(x[1] + step), float(y[1] + slope * step / 2)
