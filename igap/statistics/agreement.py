"""The parts of a comparison: correlations, limits of agreement and proportional bias of two flat arrays.

What is undefined is NaN, and its reason goes into `reasons`. Sources: Bland & Altman 1986 (limits of agreement), Fisher
1921 (z transform), Bonett & Wright 2000 (Spearman interval).
"""

import numpy as np
import numpy.typing as npt
from scipy import stats

from igap.errors import InputError

WIDTH = 1.96
"""Half-width of the limits of agreement and the outlier threshold, in standard deviations."""

_LARGEST = 1e150  # the squares of larger scores overflow float64

ROUNDING = 1e-13
"""Values of float64 that differ by less than this share of the largest magnitude are rounding: constant."""


def check_map(name: str, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the values in float64. Raises InputError on what is no map of finite numbers."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.size == 0:
        raise InputError(
            f"{name} has shape {array.shape}; a map is [layer, component] with at least one component. "
            "Reshape it, or pass the map of a whole site."
        )
    bad = ~(np.abs(array) < _LARGEST)
    if bad.any():
        layer, index = (int(i) for i in np.argwhere(bad)[0])
        raise InputError(
            f"{name} has {int(bad.sum())} values that cannot be compared, the first {array[layer, index]} at "
            f"[{layer}, {index}]; every score must be finite and below {_LARGEST:g} in magnitude. "
            "Check the gap the effects were divided by, and the model's precision."
        )
    return array


def power_of_two(largest: float) -> float:
    """The power of two just above `largest`, or 1.0 for 0: dividing by it is exact and brings it to [0.5, 1)."""
    return float(np.ldexp(1.0, int(np.frexp(largest)[1]))) if largest > 0 else 1.0


def is_constant(x: npt.NDArray[np.float64], largest: float, rounding: float = ROUNDING) -> bool:
    """Whether all values are equal up to the rounding, a share, of numbers as large as `largest`."""
    return bool(np.ptp(x) <= rounding * largest)


def correlations(
    x: npt.NDArray[np.float64],
    y: npt.NDArray[np.float64],
    names: tuple[str, str],
    reasons: dict[str, str],
    rounding: float,
) -> dict[str, float]:
    """Pearson and Spearman with their intervals; every reason for a NaN goes into `reasons`."""
    out = dict.fromkeys((a + b for a in ("pearson", "spearman") for b in ("", "_low", "_high")), float("nan"))
    constant = [
        name
        for name, values in zip(names, (x, y), strict=True)
        if is_constant(values, float(np.abs(values).max()), rounding)
    ]
    if constant:
        why = "there is one component only" if x.size == 1 else f"{' and '.join(constant)} scores are constant"
        reasons.update(dict.fromkeys(out, why))
        return out
    for name, u, v in (("pearson", x, y), ("spearman", stats.rankdata(x), stats.rankdata(y))):
        r = out[name] = _pearson(u, v)
        if x.size <= 3:
            reasons[f"{name}_low"] = reasons[f"{name}_high"] = _too_few(x.size)
            continue
        variance = (1 + r**2 / 2 if name == "spearman" else 1.0) / (x.size - 3)
        half = float(stats.norm.ppf(0.975)) * np.sqrt(variance)
        centre = np.arctanh(r) if abs(r) < 1 else r * np.inf
        out[f"{name}_low"], out[f"{name}_high"] = float(np.tanh(centre - half)), float(np.tanh(centre + half))
    return out


def _pearson(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float:
    """Pearson r of two arrays that are not constant, each brought to its own scale first; clipped to [-1, 1]."""
    u, v = (a / power_of_two(np.abs(a).max()) for a in (x, y))
    u, v = u - u.mean(), v - v.mean()
    return float(np.clip(np.dot(u / np.linalg.norm(u), v / np.linalg.norm(v)), -1, 1))


def limits_of_agreement(difference: npt.NDArray[np.float64], scale: float, reasons: dict[str, str]) -> dict[str, float]:
    """Bias, SD and limits of agreement, times `scale`."""
    bias, sd = float(difference.mean()) * scale, float(difference.std()) * scale
    if difference.size == 1:
        sd = float("nan")
        reasons.update(dict.fromkeys(("sd", "limits_low", "limits_high"), "one component has no spread"))
    return {"bias": bias, "sd": sd, "limits_low": bias - WIDTH * sd, "limits_high": bias + WIDTH * sd}


def proportional_bias(
    mean: npt.NDArray[np.float64],
    difference: npt.NDArray[np.float64],
    names: tuple[str, str],
    reasons: dict[str, str],
    rounding: float,
) -> dict[str, float]:
    """Slope of difference on mean, with its interval."""
    out = dict.fromkeys(("slope", "slope_low", "slope_high"), float("nan"))
    if is_constant(mean, 1.0, rounding):
        why = "there is one component only" if mean.size == 1 else f"the means of {' and '.join(names)} are constant"
        reasons.update(dict.fromkeys(out, why))
        return out
    u, v = mean - mean.mean(), difference - difference.mean()
    slope = out["slope"] = float(np.dot(u, v) / np.dot(u, u))
    if mean.size <= 3:
        reasons["slope_low"] = reasons["slope_high"] = _too_few(mean.size)
        return out
    stderr = float(np.linalg.norm(v - slope * u) / np.linalg.norm(u) / np.sqrt(mean.size - 2))
    half = float(stats.t.ppf(0.975, mean.size - 2)) * stderr
    return {"slope": slope, "slope_low": slope - half, "slope_high": slope + half}


def _too_few(n: int) -> str:
    return f"{n} components; an interval needs at least 4"
