"""How well each method's ranking finds the heads that a published circuit names.

The circuit is that of indirect object identification in GPT-2 small: Wang et al. 2022 (arXiv 2211.00593). Pure.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64

from igap.attribution.maps import AttributionMap
from igap.components import IOI_CIRCUIT, IOI_SHAPE, parse_component
from igap.errors import InputError
from igap.statistics import detection

REPORTED_K = (10, 26, 30)

CLASS_OF: Mapping[str, str] = {head: name for name, heads in IOI_CIRCUIT.items() for head in heads}
"""Head to class."""

_ALL = "all"


@dataclass(frozen=True)
class ClassRecovery:
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
class CircuitRecovery:
    """How well every method's ranking finds every class of heads."""

    classes: tuple[ClassRecovery, ...]

    def of(self, name: str) -> tuple[ClassRecovery, ...]:
        """Return the numbers of one class, or of `all` heads: one entry a method."""
        return tuple(each for each in self.classes if each.of == name)

    def summary(self) -> dict[str, float | int | str | None]:
        """Return `circuit/METHOD/...` of all 26 heads, `circuit/METHOD/CLASS/...` of a class."""
        flat: dict[str, float | int | str | None] = {}
        for each in self.classes:
            name = f"circuit/{each.method}" + ("" if each.of == _ALL else f"/{each.of}")
            flat |= {f"{name}/average_precision": each.average_precision, f"{name}/roc_area": each.roc_area}
            flat |= {f"{name}/precision@{k}": each.precision[k] for k in REPORTED_K}
            flat |= {f"{name}/recall@{k}": each.recall[k] for k in REPORTED_K}
        return flat

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return one row a method and class."""
        rows = [
            {
                "method": each.method,
                "class": each.of,
                "n_heads": each.n,
                "average_precision": each.average_precision,
                "roc_area": each.roc_area,
                **{f"precision@{k}": each.precision[k] for k in REPORTED_K},
                **{f"recall@{k}": each.recall[k] for k in REPORTED_K},
            }
            for each in self.classes
        ]
        return {"circuit": pd.DataFrame(rows)}

    def sentences(self) -> tuple[str, ...]:
        """Return one line a method, about all 26 heads."""
        return tuple(
            f"IOI circuit, {each.method.upper()}: {round(each.recall[each.n] * each.n)} of its {each.n} heads "
            f"among the first {each.n} by |effect|, average precision {each.average_precision:.3f}, ROC area "
            f"{each.roc_area:.3f} (chance {each.n / max(each.recall):.3f}, 0.5)"
            for each in self.of(_ALL)
        )


def check_shape(n_layers: int | None, n_heads: int | None) -> None:
    """Raise InputError unless a model of this shape has the circuit's heads."""
    if (n_layers, n_heads) != IOI_SHAPE:
        raise InputError(
            f"model.circuit: got ioi, whose 26 heads are those of GPT-2 small ({IOI_SHAPE[0]} layers, {IOI_SHAPE[1]} "
            f"heads), with a model of {n_layers} layers and {n_heads} heads. Set model.circuit=null."
        )


def recover(maps: Iterable[AttributionMap]) -> CircuitRecovery:
    """Score how well |effect| in each map finds every class of IOI_CIRCUIT, and all of them together.

    Args:
        maps: Maps of heads `[12, 12]`. Heads of other classes count as misses of a class; equal |effects| go to the
            lower layer and head.

    Raises:
        InputError: A map has another shape.
    """
    classes = []
    for attribution in maps:
        check_shape(*attribution.effect.shape)
        size = np.abs(attribution.effect.double().numpy()).ravel()
        for name, heads in {_ALL: tuple(CLASS_OF), **IOI_CIRCUIT}.items():
            wanted = np.zeros(IOI_SHAPE, dtype=bool)
            for head in heads:
                wanted[parse_component(head)[1:]] = True
            classes.append(class_recovery(attribution.method, name, size, wanted.ravel()))
    return CircuitRecovery(tuple(classes))


def class_recovery(
    method: str, of: str, size: Float64[np.ndarray, " head"], wanted: Bool[np.ndarray, " head"]
) -> ClassRecovery:
    """Score how well the order by size, larger first, finds the components wanted; `of` names these."""
    ranked = wanted[np.argsort(-size, kind="stable")]
    hits, k = np.cumsum(ranked), np.arange(1, len(ranked) + 1)
    return ClassRecovery(
        method=method,
        of=of,
        n=int(wanted.sum()),
        average_precision=float((hits / k)[ranked].mean()),
        roc_area=detection.roc_area(size, wanted),
        precision={int(i): float(h / i) for i, h in zip(k, hits, strict=True)},
        recall={0: 0.0, **{int(i): float(h / wanted.sum()) for i, h in zip(k, hits, strict=True)}},
    )
