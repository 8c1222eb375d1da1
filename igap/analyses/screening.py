"""How well cheap methods stand in for activation patching: what one misses who patches only what they rank first.

Rankings are by |score|, AP's too. AtP* has no sign: it is compared with |AP|. Of several pairs the mean maps are
compared, as everywhere. Sources: the question is that of Kramar et al. 2024 (arXiv 2403.00745). Pure.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from igap.analyses.base import Analysis, RunContext
from igap.attribution.maps import AttributionMap, Progress
from igap.attribution.methods import METHODS
from igap.components import Site
from igap.config import RunConfig
from igap.statistics.comparison import REPORTED_K, Comparison, compare
from igap.statistics.units import comparable_values


@dataclass(frozen=True, eq=False)
class ProxyFidelity:
    """One method's map against AP's; where the model has no such map, nothing but a reason."""

    method: str
    of: str
    """What the maps are of: a site, or another kind of node."""
    comparison: Comparison | None
    """It is about scores, or about magnitudes where the method has no sign."""
    budget: Mapping[int, int]
    """k to the components, k to all, that one has to take in the method's order to have AP's top k among them.

    Ties count as worst. Missing where AP has fewer than k non-zero components.
    """
    reason: str = ""
    """Why there is no map."""
    signed: bool = True
    """Whether the method's effects have a sign."""

    def numbers(self) -> dict[str, tuple[float | int | None, str]]:
        """Return name to number, None where it is undefined, and the reason for that.

        `pearson` and `spearman`, [-1, 1]; `overlap@k`, the share of the method's top k that is in AP's, [0, 1];
        `missed@k`, false negatives: components of AP's top k that are not in the method's, 0 to k; `needed@k`, the
        budget: see the field.
        """
        numbers: dict[str, tuple[float | int | None, str]] = {}
        for name in ("pearson", "spearman"):
            value = math.nan if self.comparison is None else getattr(self.comparison, name)
            why = self.reason if self.comparison is None else self.comparison.reasons.get(name, "")
            numbers[name] = (None, why) if math.isnan(value) else (value, "")
        for k in REPORTED_K:
            shared, why = self._count_shared(k)
            numbers[f"overlap@{k}"] = (None if shared is None else shared / k, why)
            numbers[f"missed@{k}"] = (None if shared is None else k - shared, why)
            numbers[f"needed@{k}"] = (self.budget.get(k), "" if k in self.budget else why)
        return numbers

    def _count_shared(self, k: int) -> tuple[int | None, str]:
        """Return the number of components in the top k of both; None with a reason where a top k is undefined."""
        if self.comparison is None:
            return None, self.reason
        if k > self.comparison.n_nonzero:
            return None, self.comparison.reasons[f"jaccard@{k}"]
        return int(np.searchsorted(self.comparison.shared_from, k, side="right")), ""


@dataclass(frozen=True, eq=False)
class ProxyFidelities:
    """How close several cheap methods are to AP."""

    methods: tuple[ProxyFidelity, ...]

    def summary(self) -> dict[str, float | int | str | None]:
        """Return `OF/METHOD/NAME` by the names of `ProxyFidelity.numbers`."""
        flat: dict[str, float | int | str | None] = {}
        for proxy in self.methods:
            for name, (number, why) in proxy.numbers().items():
                flat[f"{proxy.of}/{proxy.method}/{name}"] = number
                if number is None:
                    flat[f"{proxy.of}/{proxy.method}/{name}/reason"] = why
        return flat

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return one row a kind of node and method."""
        rows = [
            {
                "of": proxy.of,
                "method": proxy.method,
                **{name: number for name, (number, _) in proxy.numbers().items()},
            }
            for proxy in self.methods
        ]
        return {"screening": pd.DataFrame(rows)}

    def sentences(self) -> tuple[str, ...]:
        """Return one line a kind of node and method."""
        return tuple(map(_sentence, self.methods))


def _sentence(proxy: ProxyFidelity) -> str:
    numbers = {name: number for name, (number, _) in proxy.numbers().items()}
    start = f"{proxy.of}, {proxy.method.upper()} against {'AP' if proxy.signed else '|AP|'}: "
    if proxy.comparison is None:
        return start + proxy.reason
    text = ", ".join(
        f"{label} {'-' if numbers[name] is None else format(numbers[name], '.3f')}"
        for label, name in (("r", "pearson"), ("Spearman", "spearman"))
    )
    missed = [
        f"{numbers[f'missed@{k}']} of AP's top {k} (needs its own top {numbers[f'needed@{k}']})"
        for k in REPORTED_K
        if numbers[f"missed@{k}"] is not None
    ]
    return start + text + (f"; misses {', '.join(missed)}" if missed else "")


def proxy_fidelities(maps: Mapping[Site, Mapping[str, AttributionMap]], config: RunConfig) -> ProxyFidelities:
    """Return how close every other method is to AP on every site.

    Args:
        maps: By site, then method; `ap` among them.
        config: The run's settings, which say why a method has no map.
    """
    proxies = []
    for site, by_method in maps.items():
        for name, method in METHODS.items():
            if name in by_method and name != "ap":
                proxies.append(proxy_fidelity(by_method[name], by_method["ap"], of=site))
            elif method.is_requested(config) and (reason := method.missing(config, site, len(by_method["ap"].effect))):
                proxies.append(ProxyFidelity(name, site, None, {}, reason, signed=method.signed))
    return ProxyFidelities(tuple(proxies))


def proxy_fidelity(proxy: AttributionMap, ap: AttributionMap, *, of: str) -> ProxyFidelity:
    """Return how close one method's map is to AP's of the same components; `of` says what these are."""
    return ProxyFidelity(proxy.method, of, compare(proxy, ap), _budgets(proxy, ap), signed=proxy.signed)


def _budgets(proxy: AttributionMap, ap: AttributionMap) -> dict[int, int]:
    size, exact = (np.abs(values).ravel() for values in comparable_values(proxy, ap)[1:])
    rank = stats.rankdata(-size, method="max")
    top = np.argsort(-exact, kind="stable")
    return {k: int(rank[top[:k]].max()) for k in REPORTED_K if k <= np.count_nonzero(exact)}


class ProxyFidelityAnalysis(Analysis[ProxyFidelities]):
    """How close IG, AtP and AtP* are to AP; every run does it."""

    name = "screening"

    def is_requested(self, config: RunConfig) -> bool:  # noqa: ARG002 - whatever the config
        """Return True."""
        return True

    def automatic(self, config: RunConfig) -> bool:  # noqa: ARG002 - whatever the config
        """Return True: every run does it that can."""
        return True

    def misfit(self, config: RunConfig) -> str:  # noqa: ARG002 - whatever the config
        """Return nothing: maps of any metric and any positions are compared."""
        return ""

    def run(self, context: RunContext, on_progress: Progress | None) -> ProxyFidelities:  # noqa: ARG002 - no progress
        """Return how close the run's maps are to AP's."""
        return proxy_fidelities(context.maps, context.config)
