"""Attribution maps in the cache that the jobs of a sweep share: those that depend on neither baseline nor steps."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from igap.attribution.maps import AttributionMap
from igap.attribution.over_pairs import mean
from igap.components import Site
from igap.config import RunConfig
from igap.engine.positions import own_spans
from igap.engine.user_metrics import source_digest
from igap.inputs.prompts import TokenPair
from igap.storage.cache import Tensors, get_or_compute_first

Maps = Mapping[str, AttributionMap]
"""By a name that ends with the map's method: `ap`, `q.ap`."""

_PLAIN: list[list[object]] = [["logit_diff", "logits", None, None, False]]
"""Metric, unit, spans, where and covers of a pair's map of the logit difference at all positions."""


def cached_maps(
    kind: str,
    site: Site,
    config: RunConfig,
    pairs: Sequence[TokenPair],
    least_gaps: Sequence[float],
    compute: Callable[[], Maps],
) -> dict[str, AttributionMap]:
    """The maps that `compute` gives, from the cache in use where they have been computed before.

    They are bit for bit the same either way: of every pair its effects and its gap are kept, and the mean is taken
    anew. `kind` names what is computed. `least_gaps` are those of the pairs below which there are no scores, in F's
    unit. A function of the user's is not kept with them (`AttributionMap.function`).
    """
    return cached_maps_beside(kind, site, [config], pairs, least_gaps, lambda _: [compute()])


def cached_maps_beside(
    kind: str,
    site: Site,
    configs: Sequence[RunConfig],
    pairs: Sequence[TokenPair],
    least_gaps: Sequence[float],
    compute: Callable[[Sequence[RunConfig]], Sequence[Maps | None]],
) -> dict[str, AttributionMap]:
    """As `cached_maps` those of the first config; where they are missing, what others lack is computed beside them.

    The configs differ in their metrics. `compute` takes those whose maps are missing, the first among them, and gives
    the maps of each, or None.
    """

    def compute_tensors(missing: Sequence[int]) -> list[Tensors | None]:
        made = compute([configs[place] for place in missing])
        return [None if maps is None else _to_tensors(maps) for maps in made]

    tensors = get_or_compute_first(kind, [_inputs(site, config, pairs) for config in configs], compute_tensors)
    return _to_maps(tensors, site, configs[0], least_gaps)


def _inputs(site: Site, config: RunConfig, pairs: Sequence[TokenPair]) -> dict[str, object]:
    """What the maps depend on beside the model; of the logit difference at all positions no more than ever."""
    metric, positions = config.metric, config.positions
    inputs: dict[str, object] = {
        "site": site,
        "direction": config.direction,
        "pairs": [pair.identity for pair in pairs],
    }
    if metric.name == "custom":
        inputs["metric"] = [str(metric.function).strip(), source_digest(metric)]
    elif not metric.is_default:
        inputs["metric"] = metric.name
    if positions.kind == "own":
        inputs["positions"] = [list(own_spans(pair).items()) for pair in pairs]
    elif not positions.is_default:
        # Spans in their order, which is that of the maps' axis.
        value = positions.value
        inputs["positions"] = value if isinstance(value, str) else list(value.items())
    return inputs


def _to_tensors(maps: Maps) -> Tensors:
    return {f"{part}/{name}": tensor for name, made in maps.items() for part, tensor in _parts(made).items()}


def _parts(attribution: AttributionMap) -> Tensors:
    maps = attribution.pairs or (attribution,)
    parts: dict[str, Tensor] = {
        "effect": torch.stack([of_pair.effect for of_pair in maps]),
        "gap": torch.tensor([of_pair.gap for of_pair in maps], dtype=torch.float64),
        "signed": torch.tensor(attribution.signed),
    }
    together = [of_pair.together for of_pair in maps if of_pair.together is not None]
    if together:
        parts["together"] = torch.stack(together)
    facts = [[each.metric, each.unit, each.spans, each.where, each.covers] for each in maps]
    if facts != _PLAIN * len(maps):
        parts["facts"] = torch.tensor(list(json.dumps(facts).encode()), dtype=torch.uint8)
    return parts


def _to_maps(tensors: Tensors, site: Site, config: RunConfig, least_gaps: Sequence[float]) -> dict[str, AttributionMap]:
    made = {}
    for name in [key.removeprefix("effect/") for key in tensors if key.startswith("effect/")]:
        effects, gaps, together = tensors[f"effect/{name}"], tensors[f"gap/{name}"], tensors.get(f"together/{name}")
        told = tensors.get(f"facts/{name}")
        facts: Any = _PLAIN * len(effects) if told is None else json.loads(bytes(told.tolist()))
        made[name] = mean(
            [
                AttributionMap(
                    name.rpartition(".")[2],
                    site,
                    effects[pair],
                    gap,
                    min_gap=least,
                    metric=metric,
                    unit=unit,
                    spans=None if spans is None else tuple(spans),
                    together=None if together is None else together[pair],
                    where=None if where is None else tuple(map(tuple, where)),
                    covers=covers,
                    signed=bool(tensors[f"signed/{name}"]),
                    baseline="corrupted",
                    direction=config.direction,
                )
                for pair, (gap, least, (metric, unit, spans, where, covers)) in enumerate(
                    zip(gaps.tolist(), least_gaps, facts, strict=True)
                )
            ]
        )
    return made
