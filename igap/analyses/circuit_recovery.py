"""How well each method's ranking finds the heads that a published circuit names.

The circuit is that of indirect object identification in GPT-2 small: Wang et al. 2022 (arXiv 2211.00593). Pure.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy import stats

from igap.analyses.base import Compared
from igap.attribution.maps import AttributionMap, Progress
from igap.errors import InputError

IOI_CIRCUIT: Mapping[str, tuple[str, ...]] = {
    "name mover": ("9.9", "9.6", "10.0"),
    "negative name mover": ("10.7", "11.10"),
    "S-inhibition": ("7.3", "7.9", "8.6", "8.10"),
    "induction": ("5.5", "5.8", "5.9", "6.9"),
    "duplicate token": ("0.1", "0.10", "3.0"),
    "previous token": ("2.2", "4.11"),
    "backup name mover": ("9.0", "9.7", "10.1", "10.2", "10.6", "10.10", "11.2", "11.9"),
}
"""The 26 heads by class."""

IOI_SHAPE = (12, 12)
"""Layers and heads a layer of the model that these heads are of."""

REPORTED_K = (10, 26, 30)

CLASS_OF: Mapping[str, str] = {head: name for name, heads in IOI_CIRCUIT.items() for head in heads}
"""Head to class."""

_ALL = "all"


@dataclass(frozen=True)
class Retrieval:
    """How well one ranking of all heads by |effect| finds the heads of one class."""

    method: str
    of: str
    """A class of IOI_CIRCUIT, or all: of any class."""
    n: int
    """Heads of the class."""
    average_precision: float
    """Mean, over the heads of the class, of the precision at their rank, (0, 1]; by chance about n / heads."""
    roc_area: float
    """Probability that a head of the class has a larger |effect| than another head, [0, 1]; by chance 0.5."""
    precision: Mapping[int, float]
    """k to the share of the k heads ranked first that are of the class."""
    recall: Mapping[int, float]
    """k to the share of the class among the k heads ranked first; every k from 0 to all heads."""


@dataclass(frozen=True, eq=False)
class Circuit:
    """The retrieval of every class by every method."""

    retrievals: tuple[Retrieval, ...]

    def of(self, name: str) -> tuple[Retrieval, ...]:
        """Those of one class, or of all; one a method."""
        return tuple(found for found in self.retrievals if found.of == name)

    def summary(self) -> dict[str, float | int | str | None]:
        """`circuit/METHOD/...` of all 26 heads, `circuit/METHOD/CLASS/...` of a class."""
        flat: dict[str, float | int | str | None] = {}
        for found in self.retrievals:
            name = f"circuit/{found.method}" + ("" if found.of == _ALL else f"/{found.of}")
            flat |= {f"{name}/average_precision": found.average_precision, f"{name}/roc_area": found.roc_area}
            flat |= {f"{name}/precision@{k}": found.precision[k] for k in REPORTED_K}
            flat |= {f"{name}/recall@{k}": found.recall[k] for k in REPORTED_K}
        return flat

    def tables(self) -> dict[str, pd.DataFrame]:
        """One row a method and class."""
        rows = [
            {
                "method": found.method,
                "class": found.of,
                "n_heads": found.n,
                "average_precision": found.average_precision,
                "roc_area": found.roc_area,
                **{f"precision@{k}": found.precision[k] for k in REPORTED_K},
                **{f"recall@{k}": found.recall[k] for k in REPORTED_K},
            }
            for found in self.retrievals
        ]
        return {"circuit": pd.DataFrame(rows)}

    def sentences(self) -> tuple[str, ...]:
        """One line a method, of all 26 heads."""
        return tuple(
            f"IOI circuit, {found.method.upper()}: {round(found.recall[found.n] * found.n)} of its {found.n} heads "
            f"among the first {found.n} by |effect|, average precision {found.average_precision:.3f}, ROC area "
            f"{found.roc_area:.3f} (chance {found.n / max(found.recall):.3f}, 0.5)"
            for found in self.of(_ALL)
        )


def check_shape(n_layers: int | None, n_heads: int | None) -> None:
    """Raises InputError when a model of this shape cannot have the circuit's heads."""
    if (n_layers, n_heads) != IOI_SHAPE:
        raise InputError(
            f"model.circuit: got ioi, whose 26 heads are those of GPT-2 small ({IOI_SHAPE[0]} layers, {IOI_SHAPE[1]} "
            f"heads), with a model of {n_layers} layers and {n_heads} heads. Set model.circuit=null."
        )


def follow_up(compared: Compared, on_progress: Progress | None) -> Circuit:  # noqa: ARG001 - of every follow-up
    """The circuit's retrieval by the run's maps."""
    return retrieve(compared.maps["heads"].values())


def retrieve(maps: Iterable[AttributionMap]) -> Circuit:
    """Every class of IOI_CIRCUIT, and all of them together, found by |effect| in maps of heads `[12, 12]`.

    Heads of other classes count as misses of a class. Equal |effects| go to the lower layer and head.
    """
    found = []
    for one in maps:
        check_shape(*one.effect.shape)
        size = np.abs(one.effect.double().numpy()).ravel()
        for name, heads in {_ALL: tuple(CLASS_OF), **IOI_CIRCUIT}.items():
            wanted = np.zeros(IOI_SHAPE, dtype=bool)
            for head in heads:
                layer, _, index = head.partition(".")
                wanted[int(layer), int(index)] = True
            found.append(_retrieval(one.method, name, size, wanted.ravel()))
    return Circuit(tuple(found))


def _retrieval(method: str, of: str, size: Float[np.ndarray, " head"], wanted: Bool[np.ndarray, " head"]) -> Retrieval:
    ranked = wanted[np.argsort(-size, kind="stable")]
    hits, k = np.cumsum(ranked), np.arange(1, len(ranked) + 1)
    above = stats.mannwhitneyu(size[wanted], size[~wanted]).statistic
    return Retrieval(
        method=method,
        of=of,
        n=int(wanted.sum()),
        average_precision=float((hits / k)[ranked].mean()),
        roc_area=float(above) / (wanted.sum() * (~wanted).sum()),
        precision={int(i): float(h / i) for i, h in zip(k, hits, strict=True)},
        recall={0: 0.0, **{int(i): float(h / wanted.sum()) for i, h in zip(k, hits, strict=True)}},
    )
