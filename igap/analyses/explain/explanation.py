"""Why IG and AP disagree about a site: the exact chain of `attribution.decomposition`, term by term, in words."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jaxtyping import Float64
from torch import Tensor

from igap.analyses.explain.interactions import Interactions
from igap.attribution.decomposition import BETWEEN, CONVERGED, POINTS, Decomposition, Term
from igap.attribution.maps import Kind
from igap.components import Site
from igap.statistics.units import Unit

_MOST_SENTENCES = 8


@dataclass(frozen=True, eq=False)
class Explanation:
    """The chain of every component of a site, who the outliers are, and with which components one of them interacts."""

    chain: Decomposition
    unit: Unit
    """What sentences and figures are in: `score` (effect / gap), or `logits` where scores are missing."""
    outliers: tuple[str, ...]
    """Names, farthest first."""
    split: Interactions | None
    """None where the run has no outlier, or no interaction."""
    further: Mapping[Site, "Explanation"] = field(default_factory=dict, metadata={"later": True})
    """Those of the run's other sites that were asked for."""

    n_left_out: int = field(default=0, metadata={"later": True})
    """Interactions of the outlier with the most, where they are too many to be listed unasked; else 0."""

    @property
    def site(self) -> Site:
        """What it is about."""
        return self.chain.points["ap"].site

    @property
    def prefix(self) -> str:
        """What its files' names begin with: nothing for heads, which are explained unless a run is told others."""
        return "" if self.site == "heads" else f"{self.site}_"

    @property
    def metric_unit(self) -> str:
        """F's unit."""
        return self.chain.points["ap"].unit

    @property
    def names(self) -> list[str]:
        """All components, layer by layer; by positions each at every one."""
        return self.chain.points["ap"].names

    def values(self, kind: Kind) -> dict[str, Float64[np.ndarray, " component"]]:
        """Return every point and every term of every component, by the point's or the term's name."""
        parts: dict[str, Tensor] = {name: getattr(self.chain.points[name], kind).double() for name in POINTS}
        parts.update(self.chain.terms(kind).items())
        return {name: values.flatten().numpy() for name, values in parts.items()}

    def of_outliers(self, n: int) -> dict[str, dict[str, float]]:
        """Return every point and term of the first n outliers, by name, in `unit`."""
        values = self.values("score" if self.unit == "score" else "effect")
        names = self.names
        return {name: {part: float(of[names.index(name)]) for part, of in values.items()} for name in self.outliers[:n]}

    def summary(self) -> dict[str, float | int | str | None]:
        """Return `explain/...`: mean |term| over heads, what dominates each outlier, layers that did not converge.

        Of another site `explain/SITE/...`.
        """
        prefix = "explain" if self.site == "heads" else f"explain/{self.site}"
        flat: dict[str, float | int | str | None] = {
            f"{prefix}/{name}/mean_abs": float(term.abs().mean()) for name, term in self.chain.terms().items()
        }
        dominant = dict(zip(self.names, self._dominant(), strict=True))
        flat[f"{prefix}/dominant"] = " ".join(f"{name}:{dominant[name]}" for name in self.outliers)
        flat[f"{prefix}/unconverged_layers"] = " ".join(map(str, self._list_unconverged()))
        for other in self.further.values():
            flat |= other.summary()
        return flat

    def _dominant(self) -> list[str]:
        """The term of each component's AP - IG that has the largest magnitude; empty where all are 0."""
        return [BETWEEN[index] if index >= 0 else "" for index in self.chain.dominant().flatten().tolist()]

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return a row a component (and span): points and terms as scores and, as effect_..., in logits.

        Also a row a part of the split.
        """
        ap = self.chain.points["ap"]
        layer, *span, _ = np.indices(ap.effect.shape)
        frame = pd.DataFrame({"name": [name.partition(" at ")[0] for name in self.names], "layer": layer.ravel()})
        if span:
            frame["span"] = np.array(ap.spans, object)[span[0]].ravel()
        prefixes: tuple[tuple[Kind, str], ...] = (("score", ""), ("effect", "effect_"))
        for kind, prefix in prefixes:
            frame = frame.assign(**{prefix + name: values for name, values in self.values(kind).items()})
        frame["dominant"] = self._dominant()
        frame["outlier_abs"] = np.isin(self.names, self.outliers)
        frame["converged"] = self.chain.converged.numpy()[frame["layer"]]
        tables = {f"{self.prefix}explanation": frame}
        if self.split is not None:
            tables[f"{self.prefix}interactions"] = self._split_table(self.split)
        for other in self.further.values():
            tables |= other.tables()
        return tables

    def sentences(self) -> tuple[str, ...]:
        """Return a line an outlier, farthest first; then what is not exact."""
        lines = [self._sentence(name, values) for name, values in self.of_outliers(_MOST_SENTENCES).items()]
        if len(self.outliers) > _MOST_SENTENCES:
            lines.append(f"{len(self.outliers) - _MOST_SENTENCES} more outliers: {self.prefix}explanation.csv")
        if self.split is not None:
            shares = dict(zip(self.split.others, self.split.shares.tolist(), strict=True))
            largest = sorted(shares, key=lambda other: -abs(shares[other]))[:3]
            parts = [f"{other} {shares.pop(other):+.3f}" for other in largest]
            parts += [f"the other {len(shares)} {sum(shares.values()):+.3f}"] if shares else []
            lines.append(
                f"interaction in AP - IG of {self.split.component}, {self.interaction:+.3f} {self.metric_unit} (-I/2 "
                f"with each of its layer{' and positions' * self._by_positions}): {', '.join(parts)}; of higher order "
                f"{self.higher_order:+.3f}"
            )
        if self.n_left_out:
            lines.append(
                f"interactions of {self.site}: left out, they are {self.n_left_out:,} of one component; "
                "interactions=NAME lists them"
            )
        layers = self._list_unconverged()
        if layers:
            lines.append(
                f"explain{'' if self.site == 'heads' else f' of {self.site}'}: in layer{'s' * (len(layers) > 1)} "
                f"{', '.join(map(str, layers))} the most nodes leave IG off by more than {CONVERGED:g} of the gap; "
                "quadrature, baseline and interaction are that uncertain there"
            )
        return (*lines, *itertools.chain(*(other.sentences() for other in self.further.values())))

    @property
    def _by_positions(self) -> bool:
        """Whether it is of some positions, each for itself, while others move on IG's path as well."""
        ap = self.chain.points["ap"]
        return bool(ap.spans or ap.place)

    def parts(self, n: int) -> tuple[list[str], list[float]]:
        """Return the split's others and their shares; of many the n largest, and the rest together."""
        assert self.split is not None
        names, shares = list(self.split.others), self.split.shares.tolist()
        if len(names) <= n + n // 2:
            return names, shares
        order = sorted(range(len(names)), key=lambda i: -abs(shares[i]))
        kept, rest = order[:n], order[n:]
        return (
            [*(names[i] for i in kept), f"other {len(rest)}"],
            [*(shares[i] for i in kept), sum(shares[i] for i in rest)],
        )

    def _phrase(self, term: Term) -> str:
        """The term in words: an interaction with what moves beside the component on IG's path."""
        alone = self.chain.points["ap"].effect.shape[-1] == 1
        beside = [] if alone and self._by_positions else ["the rest of its layer"]
        if self._by_positions:
            beside.append("other positions")
        return f"interaction with {' and '.join(beside)}" if term == "interaction" else term

    def _sentence(self, name: str, values: Mapping[str, float]) -> str:
        """Return AP, IG, and the terms of their difference by falling magnitude, as shares of it."""
        difference = values["ap"] - values["ig"]
        ordered = sorted(BETWEEN, key=lambda term: -abs(values[term]))
        parts = [
            f"{values[term] / difference:.0%} {self._phrase(term)} ({values[term]:+.3f})"
            for term in ordered
            if term == ordered[0] or abs(values[term]) >= 0.005 * abs(difference)
        ]
        unit = "" if self.unit == "score" else f" {self.metric_unit}"
        return (
            f"{name}: AP {values['ap']:+.3f}, IG {values['ig']:+.3f}{unit}; the difference of {difference:+.3f} is "
            f"{', '.join(parts)}"
        )

    def _list_unconverged(self) -> list[int]:
        return np.flatnonzero(~self.chain.converged.numpy()).tolist()

    @property
    def interaction(self) -> float:
        """Interaction term of the head that is split, in logits."""
        assert self.split is not None
        return float(self.chain.terms()["interaction"].flatten()[self.names.index(self.split.component)])

    @property
    def higher_order(self) -> float:
        """Part of that term that is in no pair's share, in logits."""
        assert self.split is not None
        return self.interaction - float(self.split.shares.double().sum())

    def _split_table(self, split: Interactions) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "name": split.component,
                "part": [*split.others, "higher order", "all"],
                "interaction": [*split.effect.tolist(), None, None],
                "effect_share": [*split.shares.tolist(), self.higher_order, self.interaction],
            }
        )
