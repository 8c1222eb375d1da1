"""Attribution maps in the store that jobs of a sweep share: those that depend on neither baseline nor steps."""

from collections.abc import Callable, Sequence

import torch

from igap.attribution.maps import AttributionMap, mean
from igap.contrast import Direction
from igap.prompts import TokenPair
from igap.sites import Site
from igap.store import Tensors, shared


def kept(
    method: str,
    site: Site,
    direction: Direction,
    pairs: Sequence[TokenPair],
    least_gaps: Sequence[float],
    compute: Callable[[], AttributionMap],
) -> AttributionMap:
    """The map that `compute` gives, from the store around this call where it has been computed before.

    Bit for bit the same either way: of every pair its effects and its gap are kept, and the mean is taken anew.
    `least_gaps` are those of the pairs below which there are no scores, in logits.
    """
    found = shared(
        method,
        {"site": site, "direction": direction, "pairs": [pair.identity for pair in pairs]},
        lambda: _tensors(compute()),
    )
    signed = bool(found["signed"])
    maps = [
        AttributionMap(method, site, effect, gap, min_gap=least, signed=signed)
        for effect, gap, least in zip(found["effect"], found["gap"].tolist(), least_gaps, strict=True)
    ]
    return mean(maps)


def _tensors(found: AttributionMap) -> Tensors:
    maps = found.pairs or (found,)
    return {
        "effect": torch.stack([one.effect for one in maps]),
        "gap": torch.tensor([one.gap for one in maps], dtype=torch.float64),
        "signed": torch.tensor(found.signed),
    }
