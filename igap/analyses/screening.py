"""How far each cheap method is from activation patching: what one misses who patches only what the method ranks first.

Rankings are by |score|, AP's too. AtP* has no sign: it is compared with |AP|. Of several pairs the mean maps are
compared, as everywhere. Sources: the question is that of Kramar et al. 2024 (arXiv 2403.00745). Pure.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from igap.analyses.base import Compared
from igap.attribution.maps import AttributionMap, Progress
from igap.attribution.methods import METHODS
from igap.components import Site
from igap.statistics.comparison import REPORTED_K, Comparison, compare, paired


@dataclass(frozen=True, eq=False)
class Distance:
    """One method's map against AP's; where the model has no such map, nothing but a reason."""

    method: str
    of: str
    """What the maps are of: a site, or another kind of node."""
    comparison: Comparison | None
    """Of scores, or of magnitudes where the method has no sign."""
    needed: Mapping[int, int]
    """k to the components, k to all, that one has to take in the method's order to have AP's top k among them.

    Ties count as worst. Missing where AP has fewer than k non-zero components.
    """
    reason: str = ""
    """Why there is no map."""
    signed: bool = True
    """Whether the method's effects have a sign."""

    def numbers(self) -> dict[str, tuple[float | int | None, str]]:
        """Name to number, None where it is undefined, and the reason for that.

        `pearson` and `spearman`, [-1, 1]; `overlap@k`, the share of the method's top k that is in AP's, [0, 1];
        `missed@k`, false negatives: components of AP's top k that are not in the method's, 0 to k; `needed@k`.
        """
        found: dict[str, tuple[float | int | None, str]] = {}
        for name in ("pearson", "spearman"):
            value = math.nan if self.comparison is None else getattr(self.comparison, name)
            why = self.reason if self.comparison is None else self.comparison.reasons.get(name, "")
            found[name] = (None, why) if math.isnan(value) else (value, "")
        for k in REPORTED_K:
            shared, why = self._shared(k)
            found[f"overlap@{k}"] = (None if shared is None else shared / k, why)
            found[f"missed@{k}"] = (None if shared is None else k - shared, why)
            found[f"needed@{k}"] = (self.needed.get(k), "" if k in self.needed else why)
        return found

    def _shared(self, k: int) -> tuple[int | None, str]:
        """Components in the top k of both; None with a reason where a top k is undefined."""
        if self.comparison is None:
            return None, self.reason
        if k > self.comparison.n_nonzero:
            return None, self.comparison.reasons[f"jaccard@{k}"]
        return int(np.searchsorted(self.comparison.shared_from, k, side="right")), ""


@dataclass(frozen=True, eq=False)
class Screening:
    """Distances of cheap methods from AP."""

    distances: tuple[Distance, ...]

    def summary(self) -> dict[str, float | int | str | None]:
        """`OF/METHOD/NAME` by the names of `Distance.numbers`."""
        flat: dict[str, float | int | str | None] = {}
        for one in self.distances:
            for name, (number, why) in one.numbers().items():
                flat[f"{one.of}/{one.method}/{name}"] = number
                if number is None:
                    flat[f"{one.of}/{one.method}/{name}/reason"] = why
        return flat

    def tables(self) -> dict[str, pd.DataFrame]:
        """One row a kind of node and method."""
        rows = [
            {"of": one.of, "method": one.method, **{name: number for name, (number, _) in one.numbers().items()}}
            for one in self.distances
        ]
        return {"screening": pd.DataFrame(rows)}

    def sentences(self) -> tuple[str, ...]:
        """One line a kind of node and method."""
        return tuple(map(_sentence, self.distances))


def _sentence(one: Distance) -> str:
    numbers = {name: number for name, (number, _) in one.numbers().items()}
    start = f"{one.of}, {one.method.upper()} against {'AP' if one.signed else '|AP|'}: "
    if one.comparison is None:
        return start + one.reason
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


def follow_up(compared: Compared, on_progress: Progress | None) -> Screening:  # noqa: ARG001 - no work to tell of
    """The distances of the run's maps."""
    return screen(compared.maps)


def screen(maps: Mapping[Site, Mapping[str, AttributionMap]]) -> Screening:
    """The distance of every other method from AP, by site. Maps by site, then method."""
    found = []
    for site, by_method in maps.items():
        for name, method in METHODS.items():
            if name in by_method and name != "ap":
                found.append(distance(by_method[name], by_method["ap"], of=site))
            elif reason := method.missing(len(by_method["ap"].effect)):
                found.append(Distance(name, site, None, {}, reason, signed=method.signed))
    return Screening(tuple(found))


def distance(one: AttributionMap, ap: AttributionMap, *, of: str) -> Distance:
    """How far one method's map is from AP's of the same components."""
    return Distance(one.method, of, compare(one, ap), _needed(one, ap), signed=one.signed)


def _needed(one: AttributionMap, ap: AttributionMap) -> dict[int, int]:
    size, exact = (np.abs(values).ravel() for values in paired(one, ap)[1:])
    place = stats.rankdata(-size, method="max")
    top = np.argsort(-exact, kind="stable")
    return {k: int(place[top[:k]].max()) for k in REPORTED_K if k <= np.count_nonzero(exact)}
