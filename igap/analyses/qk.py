"""Queries, keys and values: a table of all of them, and how close cheap methods are to AP there.

`attribution.qk_patching` computes them, and says what the QK fix is.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from igap.analyses.base import Analysis, RunContext
from igap.analyses.screening import ProxyFidelities, proxy_fidelity
from igap.attribution.attribution_patching import no_gradient
from igap.attribution.caching import cached_maps
from igap.attribution.maps import AttributionMap, Progress
from igap.attribution.qk_patching import METHODS, Node, NoNodesError, qk_patching
from igap.components import component_names
from igap.config import RunConfig

KINDS: Mapping[Node, str] = {"q": "queries", "k": "keys", "v": "values"}


@dataclass(frozen=True, eq=False)
class QueriesAndKeys:
    """Maps of queries, keys and values beside AP's; no map but a reason where the model has no such nodes."""

    maps: Mapping[Node, Mapping[str, AttributionMap]]
    """By node, then method of `attribution.qk_patching.METHODS`. Of several pairs the mean."""
    proxies: ProxyFidelities
    """`of` queries, keys and values."""
    reason: str = ""

    def summary(self) -> dict[str, float | int | str | None]:
        """Return `queries/METHOD/NAME`, then keys and values, by the names of `proxy_fidelity`; else `qk/reason`."""
        if self.reason:
            return {"qk": None, "qk/reason": self.reason}
        return self.proxies.summary()

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return one row a head (of keys and values: a key-value head): scores by each method, then effects in logits.

        Those of atp_star are magnitudes.
        """
        if self.reason:
            return {}
        frames = []
        for node, maps in self.maps.items():
            shape = maps["ap"].effect.shape
            names = component_names("heads", *shape)
            columns: dict[str, object] = {"name": names, "node": node}
            columns |= {method: each.score.double().numpy().ravel() for method, each in maps.items()}
            columns |= {f"effect_{method}": each.effect.double().numpy().ravel() for method, each in maps.items()}
            frames.append(pd.DataFrame(columns))
        return {"qk": pd.concat(frames, ignore_index=True)}

    def sentences(self) -> tuple[str, ...]:
        """Return one line a node and cheap method, or the reason why there is none."""
        return (f"queries, keys and values: not patched, {self.reason}",) if self.reason else self.proxies.sentences()


class QueriesKeysAnalysis(Analysis[QueriesAndKeys]):
    """AP of every head's query, key and value, beside cheap methods; every run with heads does it."""

    name = "qk"
    any_metric = True

    def is_requested(self, config: RunConfig) -> bool:
        """Return whether heads are attributed to."""
        return "heads" in config.asked_sites

    def automatic(self, config: RunConfig) -> bool:  # noqa: ARG002 - whatever the config
        """Return True: every run does it that can."""
        return True

    def misfit(self, config: RunConfig) -> str:
        """Return why not: other positions than all, or a metric without gradient on the clean prompt."""
        return super().misfit(config) or no_gradient(config)

    def run(self, context: RunContext, on_progress: Progress | None) -> QueriesAndKeys:
        """Return the maps of the run's pairs, and how close the cheap ones are to AP's."""
        config = context.config

        def compute() -> dict[str, AttributionMap]:
            by_node = qk_patching(
                context.opened,
                direction=config.direction,
                batch_size=config.batch_size,
                memory_gib=config.memory_gib,
                on_progress=on_progress,
            )
            return {f"{node}.{method}": each for node, maps in by_node.items() for method, each in maps.items()}

        ap = context.maps["heads"]["ap"]
        least_gaps = [each.min_gap for each in ap.pairs or [ap]]
        try:
            named = cached_maps("qk", "heads", config, context.opened.tokens, least_gaps, compute)
        except NoNodesError as error:
            return QueriesAndKeys({}, ProxyFidelities(()), str(error))
        maps: dict[Node, dict[str, AttributionMap]] = {
            node: {method: named[f"{node}.{method}"] for method in METHODS if f"{node}.{method}" in named}
            for node in KINDS
        }
        proxies = [
            proxy_fidelity(by_method[method], by_method["ap"], of=KINDS[node])
            for node, by_method in maps.items()
            for method in METHODS
            if method != "ap" and method in by_method
        ]
        return QueriesAndKeys(maps, ProxyFidelities(tuple(proxies)))
