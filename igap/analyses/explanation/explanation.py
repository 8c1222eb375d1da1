"""Why IG and AP disagree about heads: the exact chain of `attribution.decomposition`, term by term, in words."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float64
from torch import Tensor

from igap.analyses.explanation.interactions import Interactions
from igap.attribution.decomposition import BETWEEN, CONVERGED, POINTS, Decomposition, Term
from igap.attribution.maps import Kind
from igap.components import component_names, parse_component
from igap.statistics.units import Unit

_MOST_SENTENCES = 8

_PHRASES: Mapping[Term, str] = {
    "quadrature": "quadrature",
    "baseline": "baseline",
    "interaction": "interaction with the rest of its layer",
}


@dataclass(frozen=True, eq=False)
class Explanation:
    """The chain of every head, who the outliers are, and with which heads one of them interacts."""

    chain: Decomposition
    unit: Unit
    """What sentences and figures are in: `score` (effect / gap), or `logits` where scores are missing."""
    outliers: tuple[str, ...]
    """Names, farthest first."""
    split: Interactions | None
    """None where the run has no outlier, or no interaction."""

    @property
    def metric_unit(self) -> str:
        """F's unit."""
        return self.chain.points["ap"].unit

    @property
    def names(self) -> list[str]:
        """All heads, layer by layer."""
        return component_names(self.chain.points["ap"].site, *self.chain.points["ap"].effect.shape)

    def values(self, kind: Kind) -> dict[str, Float64[np.ndarray, " component"]]:
        """Return every point and every term of every head, by the point's or the term's name."""
        parts: dict[str, Tensor] = {name: getattr(self.chain.points[name], kind).double() for name in POINTS}
        parts.update(self.chain.terms(kind).items())
        return {name: values.flatten().numpy() for name, values in parts.items()}

    def of_outliers(self, n: int) -> dict[str, dict[str, float]]:
        """Return every point and term of the first n outliers, by name, in `unit`."""
        values = self.values("score" if self.unit == "score" else "effect")
        names = self.names
        return {name: {part: float(of[names.index(name)]) for part, of in values.items()} for name in self.outliers[:n]}

    def summary(self) -> dict[str, float | int | str | None]:
        """Return `explain/...`: mean |term| over heads, what dominates each outlier, layers that did not converge."""
        flat: dict[str, float | int | str | None] = {
            f"explain/{name}/mean_abs": float(term.abs().mean()) for name, term in self.chain.terms().items()
        }
        flat["explain/dominant"] = " ".join(f"{name}:{self.dominant(name)}" for name in self.outliers)
        flat["explain/unconverged_layers"] = " ".join(map(str, self._unconverged()))
        return flat

    def dominant(self, name: str) -> str:
        """Return the term of this head's AP - IG that has the largest magnitude; empty where all are 0."""
        index = int(self.chain.dominant().flatten()[self.names.index(name)])
        return BETWEEN[index] if index >= 0 else ""

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return a row a head: points and terms as scores and, as effect_..., in logits; a row a part of the split."""
        frame = pd.DataFrame({"name": self.names})
        frame["layer"] = [parse_component(name)[1] for name in self.names]
        prefixes: tuple[tuple[Kind, str], ...] = (("score", ""), ("effect", "effect_"))
        for kind, prefix in prefixes:
            frame = frame.assign(**{prefix + name: values for name, values in self.values(kind).items()})
        frame["dominant"] = [self.dominant(name) for name in self.names]
        frame["outlier_abs"] = frame["name"].isin(self.outliers)
        frame["converged"] = self.chain.converged.numpy()[frame["layer"]]
        tables = {"explanation": frame}
        if self.split is not None:
            tables["interactions"] = self._split_table(self.split)
        return tables

    def sentences(self) -> tuple[str, ...]:
        """Return a line an outlier, farthest first; then what is not exact."""
        lines = [self._sentence(name, values) for name, values in self.of_outliers(_MOST_SENTENCES).items()]
        if len(self.outliers) > _MOST_SENTENCES:
            lines.append(f"{len(self.outliers) - _MOST_SENTENCES} more outliers: explanation.csv")
        if self.split is not None:
            shares = dict(zip(self.split.others, self.split.shares.tolist(), strict=True))
            largest = sorted(shares, key=lambda other: -abs(shares[other]))[:3]
            parts = [f"{other} {shares.pop(other):+.3f}" for other in largest]
            parts += [f"the other {len(shares)} {sum(shares.values()):+.3f}"] if shares else []
            lines.append(
                f"interaction in AP - IG of {self.split.component}, {self.interaction:+.3f} {self.metric_unit} (-I/2 "
                f"with each of its layer): {', '.join(parts)}; of higher order {self.higher_order:+.3f}"
            )
        layers = self._unconverged()
        if layers:
            lines.append(
                f"explain: in layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))} the most nodes leave IG off "
                f"by more than {CONVERGED:g} of the gap; quadrature, baseline and interaction are that uncertain there"
            )
        return tuple(lines)

    def _sentence(self, name: str, values: Mapping[str, float]) -> str:
        """Return AP, IG, and the terms of their difference by falling magnitude, as shares of it."""
        difference = values["ap"] - values["ig"]
        ordered = sorted(BETWEEN, key=lambda term: -abs(values[term]))
        parts = [
            f"{values[term] / difference:.0%} {_PHRASES[term]} ({values[term]:+.3f})"
            for term in ordered
            if term == ordered[0] or abs(values[term]) >= 0.005 * abs(difference)
        ]
        unit = "" if self.unit == "score" else f" {self.metric_unit}"
        return (
            f"{name}: AP {values['ap']:+.3f}, IG {values['ig']:+.3f}{unit}; the difference of {difference:+.3f} is "
            f"{', '.join(parts)}"
        )

    def _unconverged(self) -> list[int]:
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
