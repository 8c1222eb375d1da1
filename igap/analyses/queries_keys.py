"""The follow-up on queries, keys and values: a table of all of them, and how far cheap methods are from AP there.

What is computed, and what the QK fix is, is told in `attribution.qk_patching`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from igap.analyses.base import Compared
from igap.analyses.screening import Screening, distance
from igap.attribution.caching import kept
from igap.attribution.maps import AttributionMap, Progress
from igap.attribution.qk_patching import METHODS, Node, NoNodesError, qk_patching
from igap.components import component_names

KINDS: Mapping[Node, str] = {"q": "queries", "k": "keys", "v": "values"}


@dataclass(frozen=True, eq=False)
class QueriesAndKeys:
    """The maps of queries, keys and values, and their distances from AP; no map but a reason where there are none."""

    maps: Mapping[Node, Mapping[str, AttributionMap]]
    """By node, then method of `attribution.qk_patching.METHODS`. Of several pairs the mean."""
    distances: Screening
    """`of` queries, keys and values."""
    reason: str = ""

    def summary(self) -> dict[str, float | int | str | None]:
        """`queries/METHOD/NAME`, then keys and values, with the names of `screening`; `qk/reason` where none."""
        if self.reason:
            return {"qk": None, "qk/reason": self.reason}
        return self.distances.summary()

    def tables(self) -> dict[str, pd.DataFrame]:
        """One row a head (of keys and values: a key-value head): scores by each method, then effects in logits.

        Those of atp_star are magnitudes.
        """
        if self.reason:
            return {}
        frames = []
        for node, maps in self.maps.items():
            shape = maps["ap"].effect.shape
            names = component_names("heads", *shape)
            columns: dict[str, object] = {"name": names, "node": node}
            columns |= {method: found.score.double().numpy().ravel() for method, found in maps.items()}
            columns |= {f"effect_{method}": found.effect.double().numpy().ravel() for method, found in maps.items()}
            frames.append(pd.DataFrame(columns))
        return {"qk": pd.concat(frames, ignore_index=True)}

    def sentences(self) -> tuple[str, ...]:
        """One line a node and cheap method, or the reason why there is none."""
        return (f"queries, keys and values: not patched, {self.reason}",) if self.reason else self.distances.sentences()


def follow_up(compared: Compared, on_progress: Progress | None) -> QueriesAndKeys:
    """The maps of the run's pairs, and their distances."""
    config = compared.config

    def compute() -> dict[str, AttributionMap]:
        found = qk_patching(
            compared.opened,
            direction=config.direction,
            batch_size=config.batch_size,
            memory_gib=config.memory_gib,
            on_progress=on_progress,
        )
        return {f"{node}.{method}": one for node, by_method in found.items() for method, one in by_method.items()}

    ap = compared.maps["heads"]["ap"]
    least_gaps = [one.min_gap for one in ap.pairs or [ap]]
    try:
        named = kept("qk", "heads", config.direction, compared.opened.tokens, least_gaps, compute)
    except NoNodesError as error:
        return QueriesAndKeys({}, Screening(()), str(error))
    maps: dict[Node, dict[str, AttributionMap]] = {
        node: {method: named[f"{node}.{method}"] for method in METHODS if f"{node}.{method}" in named} for node in KINDS
    }
    distances = [
        distance(by_method[method], by_method["ap"], of=KINDS[node])
        for node, by_method in maps.items()
        for method in METHODS
        if method != "ap" and method in by_method
    ]
    return QueriesAndKeys(maps, Screening(tuple(distances)))
