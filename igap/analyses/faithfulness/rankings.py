"""Rankings of a site's components, and the sets that come of them: the first k kept, or the first k ablated. Pure."""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float64, Int64

from igap.attribution.maps import AttributionMap
from igap.vocabulary import Direction

Ranking = Literal["contribution", "magnitude"]
Kind = Literal["insertion", "deletion"]

RANDOM = "random"
N_RANDOM = 10
"""Random rankings, of which there is a mean and a band."""

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The shares of the components that MIB takes (Mueller et al. 2025, arXiv 2504.13151)."""

_EVERY_UP_TO = 200  # components; at most this many are also taken every few, about _STEPS times
_STEPS = 16

Ranks = Int64[np.ndarray, "ranking component"]
"""The rank of every component, 0 the first, in each of some rankings."""


def sizes_of(n: int) -> tuple[int, ...]:
    """Return ascending k for n components: 0, MIB's shares rounded down, n, and for up to 200 components every few."""
    every = range(0, n, -(-n // _STEPS)) if n <= _EVERY_UP_TO else ()
    return tuple(sorted({0, n, *every, *(int(share * n) for share in SHARES)}))


def ranks(maps: Mapping[str, AttributionMap], direction: Direction, *, seed: int) -> dict[tuple[str, Ranking], Ranks]:
    """Return the ranks by every method, one ranking each, and N_RANDOM random ones under both names.

    Contribution is -effect when noising (the patch takes it away), +effect when denoising (the patch brings it), times
    the sign of the gap. A map without sign ranks by magnitude in both. Equal ones go to the lower layer and component.
    """
    by_method: dict[tuple[str, Ranking], Ranks] = {}
    for method in sorted(maps, key=lambda method: method != "ap"):  # what the others are cheaper than comes first
        effect = maps[method].effect.double().numpy().ravel()
        towards = (-1 if direction == "noising" else 1) * np.sign(maps[method].gap)
        by_method[method, "contribution"] = _ranks(towards * effect if maps[method].signed else effect)
        by_method[method, "magnitude"] = _ranks(np.abs(effect))
    rng = np.random.default_rng(seed)
    random = np.stack([rng.permutation(maps["ap"].effect.numel()) for _ in range(N_RANDOM)])
    return by_method | {(RANDOM, ranking): random for ranking in get_args(Ranking)}


def _ranks(values: Float64[np.ndarray, " component"]) -> Ranks:
    order = np.argsort(-values, kind="stable")
    rank = np.empty(values.size, dtype=np.int64)
    rank[order] = np.arange(values.size)
    return rank[None]


Index = Mapping[tuple[str, Ranking, Kind], Int64[np.ndarray, "ranking size"]]
"""The rows of the sets that the points of every curve are measured on."""


def sets(
    rankings: Mapping[tuple[str, Ranking], Ranks], sizes: Sequence[int]
) -> tuple[Bool[np.ndarray, "set component"], Index]:
    """Return every set of kept components that a curve needs, none first and all second, and where each one is."""
    n = next(iter(rankings.values())).shape[1]
    rows: dict[bytes, int] = {}
    kept: list[Bool[np.ndarray, " component"]] = []

    def row(mask: Bool[np.ndarray, " component"]) -> int:
        key = np.packbits(mask).tobytes()
        if key not in rows:
            rows[key] = len(kept)
            kept.append(mask)
        return rows[key]

    row(np.zeros(n, dtype=bool)), row(np.ones(n, dtype=bool))
    index = {
        (method, ranking, kind): np.array(
            [[row(rank < k if kind == "insertion" else rank >= k) for k in sizes] for rank in of_rankings]
        )
        for (method, ranking), of_rankings in rankings.items()
        for kind in get_args(Kind)
    }
    return np.stack(kept), index
