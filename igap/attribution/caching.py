"""Attribution maps in the cache that the jobs of a sweep share: those that depend on neither baseline nor steps."""

from collections.abc import Callable, Mapping, Sequence

import torch

from igap.attribution.maps import AttributionMap
from igap.attribution.over_pairs import mean
from igap.components import Site
from igap.config import RunConfig
from igap.inputs.prompts import TokenPair
from igap.storage.cache import Tensors, get_or_compute


def cached_maps(
    kind: str,
    site: Site,
    config: RunConfig,
    pairs: Sequence[TokenPair],
    least_gaps: Sequence[float],
    compute: Callable[[], Mapping[str, AttributionMap]],
) -> dict[str, AttributionMap]:
    """The maps that `compute` gives, from the cache in use where they have been computed before.

    They are bit for bit the same either way: of every pair its effects and its gap are kept, and the mean is taken
    anew. `kind` names what is computed; a map's name ends with its method (`ap`, `q.ap`). `least_gaps` are those of the
    pairs below which there are no scores, in logits. Maps of another metric or of single positions are not kept.
    """
    if not (config.metric.is_default and config.positions.is_default):
        return dict(compute())
    tensors = get_or_compute(
        kind,
        {"site": site, "direction": config.direction, "pairs": [pair.identity for pair in pairs]},
        lambda: {f"{part}/{name}": t for name, new in compute().items() for part, t in _tensors(new).items()},
    )
    names = [key.removeprefix("effect/") for key in tensors if key.startswith("effect/")]
    return {
        name: mean(
            [
                AttributionMap(
                    name.rpartition(".")[2],
                    site,
                    effect,
                    gap,
                    min_gap=least,
                    signed=signed,
                    baseline="corrupted",
                    direction=config.direction,
                )
                for effect, gap, least in zip(
                    tensors[f"effect/{name}"], tensors[f"gap/{name}"].tolist(), least_gaps, strict=True
                )
            ]
        )
        for name in names
        for signed in [bool(tensors[f"signed/{name}"])]
    }


def _tensors(attribution: AttributionMap) -> Tensors:
    maps = attribution.pairs or (attribution,)
    return {
        "effect": torch.stack([of_pair.effect for of_pair in maps]),
        "gap": torch.tensor([of_pair.gap for of_pair in maps], dtype=torch.float64),
        "signed": torch.tensor(attribution.signed),
    }
