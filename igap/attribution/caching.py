"""Attribution maps in the store that jobs of a sweep share: those that depend on neither baseline nor steps."""

from collections.abc import Callable, Mapping, Sequence

import torch

from igap.attribution.maps import AttributionMap, mean
from igap.components import Site
from igap.inputs.prompts import TokenPair
from igap.storage.cache import Tensors, get_or_compute
from igap.vocabulary import Direction


def cached_maps(
    kind: str,
    site: Site,
    direction: Direction,
    pairs: Sequence[TokenPair],
    least_gaps: Sequence[float],
    compute: Callable[[], Mapping[str, AttributionMap]],
) -> dict[str, AttributionMap]:
    """The maps that `compute` gives, from the store around this call where they have been computed before.

    They are bit for bit the same either way: of every pair its effects and its gap are kept, and the mean is taken
    anew. `kind` names what is computed; a map's name ends with its method (`ap`, `q.ap`). `least_gaps` are those of the
    pairs below which there are no scores, in logits.
    """
    found = get_or_compute(
        kind,
        {"site": site, "direction": direction, "pairs": [pair.identity for pair in pairs]},
        lambda: {f"{part}/{name}": t for name, one in compute().items() for part, t in _tensors(one).items()},
    )
    names = [key.removeprefix("effect/") for key in found if key.startswith("effect/")]
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
                    direction=direction,
                )
                for effect, gap, least in zip(
                    found[f"effect/{name}"], found[f"gap/{name}"].tolist(), least_gaps, strict=True
                )
            ]
        )
        for name in names
        for signed in [bool(found[f"signed/{name}"])]
    }


def _tensors(found: AttributionMap) -> Tensors:
    maps = found.pairs or (found,)
    return {
        "effect": torch.stack([one.effect for one in maps]),
        "gap": torch.tensor([one.gap for one in maps], dtype=torch.float64),
        "signed": torch.tensor(found.signed),
    }
