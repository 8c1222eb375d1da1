"""How much of a box the points of a Pareto study beat."""

from igap.counterfactual.history import Floats
from igap.counterfactual.samplers.pareto import front


def hypervolume(points: Floats, low: Floats, high: Floats) -> float:
    """The share of the box from `low` to `high` that is beaten by one of the points `[trial, 2]`."""
    scaled = ((points - low) / (high - low)).clip(0, 1)
    area, reach = 0.0, 0.0
    for i in reversed(front(scaled)):  # best in the first term first
        x, y = scaled[i]
        area += float(x) * max(0.0, float(y) - reach)
        reach = max(reach, float(y))
    return area
