"""F along the path of one component, or of a set: where it bends, its peaks and troughs inside and outside of the path.

At alpha the component is at a + alpha (a' - a), all else at the run: 0 is the run, 1 the baseline, and F(1) - F(0) is
what activation patching with that baseline measures. The slope at 0 is attribution patching. The components of a set
move together, all else being what they give.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional

from igap.components import Site, locate_set, sites_of
from igap.display import markup
from igap.display.binding import Axes, draw
from igap.engine.activations import Model
from igap.engine.backend import Route
from igap.engine.baselines import Baseline
from igap.engine.batching import AdaptiveBatch
from igap.engine.component_sets import ComponentSet
from igap.engine.contrast import Contrast
from igap.engine.hooks import SiteFunction
from igap.engine.open_pairs import OpenPairs, open_pairs
from igap.engine.positions import Positions, check_lengths
from igap.errors import InputError, short_repr
from igap.errors.arguments import Count, Finite, Positive, checks_arguments
from igap.inputs.prompts import PromptPair
from igap.metrics import AnyMetric
from igap.statistics.extrema import Extremum, find_extrema
from igap.vocabulary import ALPHAS, BaselineKind, Direction, are_alphas

DEFAULT_ALPHAS: tuple[float, ...] = tuple(np.linspace(-1, 2, 61).round(2).tolist())


@checks_arguments
@dataclass(frozen=True, eq=False)
class OutputCurves:
    """F along the paths of some components, on one prompt pair or on several.

    Example:
        >>> curves = output_curve(model, pair, ["0.3", "2.1"])
        >>> curves.values.shape, len(curves.extrema(0)), curves.max_deviation_from_chord.round(2).tolist()
        ((2, 61), 0, [0.03, 0.0])
    """

    names: tuple[str, ...]
    alphas: Float64[np.ndarray, " alpha"]
    """Ascending; 0 the run, 1 the baseline."""
    by_pair: Float64[np.ndarray, "pair component alpha"]
    """F in logits, of every prompt pair."""
    ends: Float64[np.ndarray, "component end"]
    """F at alpha 0 and 1, in logits, whether or not these are among the alphas; of several pairs the mean."""
    slopes: Float64[np.ndarray, " component"]
    """dF/dalpha at 0, in logits: attribution patching; of several pairs the mean."""
    rounding: float
    """Logits. What F may be off by; extrema that stand out by less are not reported."""
    baseline: str
    """The kind of the end at alpha 1."""
    direction: str
    roles: tuple[str, ...] = ()
    """Why each component was chosen, where a run chose it."""
    left_out: int = 0
    """Outliers that were not chosen because there are too many."""
    metric: str = field(default="logit_diff", metadata={"later": True})
    """F."""
    unit: str = field(default="logits", metadata={"later": True})
    """Its unit, which values, ends, slopes and bends have."""

    @property
    def values(self) -> Float64[np.ndarray, "component alpha"]:
        """F in logits; of several pairs the mean."""
        return np.asarray(self.by_pair.mean(0))

    @property
    def effects(self) -> Float64[np.ndarray, " component"]:
        """F(1) - F(0), in logits: activation patching with this baseline."""
        return np.asarray(self.ends[:, 1] - self.ends[:, 0])

    @property
    def max_deviation_from_chord(self) -> Float64[np.ndarray, " component"]:
        """F minus the chord, the straight line from F(0) to F(1), where the two are farthest apart on [0, 1].

        In logits, signed; `bend` in files. 0 for a straight line, positive where the curve lies above, of a parabola
        -1/8 of its second derivative. Taken at the alphas: NaN when none of them is strictly between 0 and 1.
        """
        within = (self.alphas > 0) & (self.alphas < 1)
        if not within.any():
            return np.full(len(self.names), np.nan)
        line = self.ends[:, :1] + self.alphas[within] * self.effects[:, None]
        off = self.values[:, within] - line
        return np.take_along_axis(off, np.abs(off).argmax(1)[:, None], axis=1)[:, 0]

    @checks_arguments
    def extrema(self, index: int) -> tuple[Extremum, ...]:
        """Return the peaks and troughs of one component's (mean) curve, by ascending alpha; `index` counts from 0."""
        if not 0 <= index < len(self.names):
            raise InputError(
                f"index: got {short_repr(index)}, wanted one of {len(self.names)} components. Try index=0."
            )
        return find_extrema(self.alphas, self.values[index], self.rounding)

    @property
    def _value(self) -> str:
        """The column of F in tables."""
        return "logit_diff" if self.metric == "logit_diff" else "value"

    def summary(self) -> dict[str, float | int | str | None]:
        """Return `curves/...`: the components, how far the farthest of them bends, and how many extrema there are."""
        deviations = self.max_deviation_from_chord
        extrema = [extremum for i in range(len(self.names)) for extremum in self.extrema(i)]
        known = bool(np.isfinite(deviations).all())
        return {
            "curves/components": (", " if any(" " in name for name in self.names) else " ").join(self.names),
            "curves/max_abs_bend": float(np.abs(deviations).max()) if known else None,
            **({} if known else {"curves/max_abs_bend/reason": "no alpha is strictly between 0 and 1"}),
            "curves/n_extrema_inside": sum(extremum.inside for extremum in extrema),
            "curves/n_extrema_outside": sum(not extremum.inside for extremum in extrema),
        }

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return the curves, one row a component and alpha; their numbers, one row a component; their extrema."""
        each = list(zip(self.names, self.roles or [""] * len(self.names), strict=True))
        points = pd.DataFrame(
            {
                "name": np.repeat(self.names, len(self.alphas)),
                "alpha": np.tile(self.alphas, len(self.names)),
                self._value: self.values.ravel(),
            }
        )
        if len(self.by_pair) > 1:
            points[f"{self._value}_sd"] = self.by_pair.std(0, ddof=1).ravel()
        numbers = pd.DataFrame(each, columns=["name", "role"])
        numbers[f"{self._value}_0"], numbers[f"{self._value}_1"] = self.ends.T
        numbers["effect"], numbers["slope_0"] = self.effects, self.slopes
        numbers["bend"] = self.max_deviation_from_chord
        extrema = [
            (name, extremum.kind, extremum.alpha, extremum.inside, extremum.value, extremum.prominence)
            for i, name in enumerate(self.names)
            for extremum in self.extrema(i)
        ]
        columns = ["name", "kind", "alpha", "inside", self._value, "prominence"]
        return {
            "curves": points,
            "curves_components": numbers,
            "curves_extrema": pd.DataFrame(extrema, columns=columns),
        }

    def to_frame(self) -> pd.DataFrame:
        """Return one row a component, by its name, with the columns of a run's `curves_components.csv`, in logits."""
        return self.tables()["curves_components"].set_index("name")

    def plot(self) -> Axes:
        """Return the (first) axes of the figure that a run draws; a notebook shows the whole as a picture."""
        return draw("curves", self)

    def __repr__(self) -> str:
        return f"OutputCurves({self.direction} with the {self.baseline} baseline; {self.sentences()[0]})"

    def _repr_html_(self) -> str:
        heading = f"output curves, {self.direction} with the {self.baseline} baseline"
        return markup.block(heading, self.sentences(), markup.table(self.to_frame()))

    def sentences(self) -> tuple[str, ...]:
        """Return how far the curves bend, and every component with a peak or trough on its path."""
        counts = {role: self.roles.count(role) for role in dict.fromkeys(self.roles)}
        chosen = ", ".join(f"{n} {role}" for role, n in counts.items())
        beyond = f", {self.left_out} outliers left out" if self.left_out else ""
        lines = [f"output curves: {len(self.names)} components" + (f" ({chosen}{beyond})" if chosen else "")]
        if np.isfinite(self.max_deviation_from_chord).all():
            deviations = self.max_deviation_from_chord
            far = int(np.abs(deviations).argmax())
            lines.append(
                f"farthest from a straight line on [0, 1]: {self.names[far]}, {deviations[far]:+.3f} {self.unit}"
            )
        inside = [
            f"{name} {extremum.kind} at alpha {extremum.alpha:.2f} ({extremum.value:+.3f} {self.unit})"
            for i, name in enumerate(self.names)
            for extremum in self.extrema(i)
            if extremum.inside
        ]
        lines.append(f"inside [0, 1]: {', '.join(inside)}" if inside else "no peak or trough inside [0, 1]")
        return ("; ".join(lines),)


@checks_arguments
def output_curve(
    model: Model,
    pair: PromptPair | Sequence[PromptPair],
    components: str | Sequence[str],
    *,
    alphas: Sequence[Finite] | None = None,
    baseline: BaselineKind | Baseline = "corrupted",
    direction: Direction = "noising",
    positions: Positions = "all",
    metric: AnyMetric = "logit_diff",
    batch_size: Count | None = None,
    memory_gib: Positive | None = None,
    route: Route | None = None,
) -> OutputCurves:
    """F with each of the components, alone, at a + alpha (a' - a): 0 is the run, 1 the baseline.

    Args:
        model: A TransformerBridge, for example of `load_model`; it comes back unchanged.
        pair: The prompt pair, or several.
        components: A name or several: heads such as "9.6", neurons such as "L5.N1234", components of other
            sites such as "9.6.q" and "L5.resid_pre", or sets such as "9.6+9.9+L5.N1234", whose components move
            together; "ioi:name-mover" is a class of heads of the IOI circuit.
        alphas: At least 3 ascending numbers without unit, which may leave [0, 1]. None (default): 61 from -1 to 2.
        baseline: What activations move to, a kind or a Baseline. Default "corrupted", as in activation patching.
        direction: "noising" (default) patches the clean run; "denoising" the corrupted run, towards the clean one.
        positions: Which positions move; "all" (default), "last", "diff": at once. "each", "roles", "own" or a mapping
            of spans by name: a curve a component and span, named "9.6 at S2".
        metric: F, default "logit_diff". "logit", "logprob", "prob": of the answer. "kl", "js": to the clean output.
            Or a function of logits `[row, vocab]` and the pair as token ids to one number a row.
        batch_size: Rows of a pass. None (default): as many as fit.
        memory_gib: GiB of a pass beyond the model. None (default): 2.
        route: "suffix" or "hooks", how F is computed. None (default): the faster one that is right for the model.

    Returns:
        F in its unit, `[pair, component, alpha]`, with ends, slopes and extrema.

    Raises:
        InputError: A name is no component of the model, or the alphas do not ascend or lead to an F that is not finite.

    Example:
        >>> curves = output_curve(model, pair, "0.3", alphas=[0, 0.5, 1])
        >>> curves.values.round(2).tolist(), curves.effects.round(2).tolist()
        ([[5.4, 4.95, 4.44]], [-0.96])
    """
    names = (components,) if isinstance(components, str) else tuple(components)
    alphas = DEFAULT_ALPHAS if alphas is None else alphas
    check_alphas(alphas)
    if not names:
        raise InputError("curves.components: got none, wanted at least one. Name heads such as 9.6, or neurons.")
    budget: Any = {"batch_size": batch_size, "memory_gib": memory_gib}
    with open_pairs(model, pair, sites=sites_of(names), route=route, metric=metric) as opened:
        return trace_curves(
            opened, names, alphas, baseline=baseline, direction=direction, positions=positions, **budget
        )


def trace_curves(
    opened: OpenPairs,
    names: Sequence[str],
    alphas: Sequence[float | int],
    *,
    baseline: BaselineKind | Baseline = "corrupted",
    direction: Direction = "noising",
    positions: Positions = "all",
    batch_size: int | None = None,
    memory_gib: float | None = None,
) -> OutputCurves:
    """The curves of components of open pairs; see `output_curve`."""
    check_alphas(alphas)
    baseline = baseline if isinstance(baseline, Baseline) else Baseline(baseline)
    check_lengths(positions, opened.tokens, direction)
    by_pair: dict[int, tuple[Tensor, Tensor]] = {}
    labels: set[tuple[str, ...]] = set()
    for indices, contrast in opened.contrasts(baseline, direction):
        sets = [locate_set(name, contrast.n_layers, contrast.widths, item="curves.components") for name in names]
        spans = contrast.spans(positions)
        labels.add(spans.names if spans is not None and spans.has_axis else ())
        parts_of = [contrast] if spans is None else [contrast.at(mask) for mask in spans.masks]
        budgets = [each.rows(batch_size, memory_gib, gradients=False) for each in parts_of]
        along = [
            _along(*_path(each, members), alphas, rows)
            for members in sets
            for each, rows in zip(parts_of, budgets, strict=True)
        ]
        parts = (torch.stack(part, 1).double().cpu() for part in zip(*along, strict=True))
        by_pair.update(zip(indices, zip(*parts, strict=True), strict=True))
        eps = torch.finfo(contrast.base.residual[0].dtype).eps
    values, slopes = (torch.stack([by_pair[i][k] for i in range(len(opened.pairs))]).numpy() for k in (0, 1))
    if not np.isfinite(values).all():
        raise InputError(
            f"curves.alphas: got {alphas[0]:g} to {alphas[-1]:g}, where F is not finite, wanted numbers that the model "
            "can compute with. Use a smaller range."
        )
    if len(labels) > 1:  # positions, whose tokens differ between the pairs
        labels = {tuple(label.split()[0] for label in each) for each in labels}
    (places,) = labels
    return OutputCurves(
        names=tuple(f"{name} at {place}" for name in names for place in places) if places else tuple(names),
        alphas=np.array(alphas, dtype=np.float64),
        by_pair=values[..., 2:],
        ends=values[..., :2].mean(0),
        slopes=slopes.mean(0),
        rounding=100 * eps * max(1.0, float(np.abs(values).max())),
        baseline=baseline.kind,
        direction=direction,
        metric=contrast.readout.metric.name,
        unit=contrast.readout.metric.unit,
    )


def check_alphas(alphas: Sequence[float | int]) -> None:
    """Raise InputError when the alphas are too few, too many or too far from the run, or do not ascend."""
    if not are_alphas(alphas):
        raise InputError(f"curves.alphas: got {list(alphas)}, wanted {ALPHAS}. Try curves.alphas=[-1,0,0.5,1,2].")


def _path(
    contrast: Contrast, members: tuple[tuple[Site, int, int], ...]
) -> tuple[SiteFunction, Tensor, Tensor, Float[Tensor, " component"]]:
    """Return F of what moves, its two ends, and which of its components move."""
    if len(members) > 1:
        together = ComponentSet(contrast, members)
        start, end = together.ends()
        return together.function, start, end, start.new_ones(1)
    ((site, layer, index),) = members
    start, end = contrast.ends(site, layer)
    only = functional.one_hot(torch.tensor(index, device=start.device), start.shape[2]).to(start)
    return contrast.function(site, layer), start, end, only


def _along(
    function: SiteFunction, start: Tensor, end: Tensor, only: Tensor, alphas: Sequence[float | int], rows: AdaptiveBatch
) -> tuple[Float[Tensor, "pair alpha"], Float[Tensor, " pair"]]:
    """Return F at 0, at 1 and at the alphas, and its slope at 0, in logits."""

    def metric(at: Tensor) -> Tensor:  # [pair or 1, row] to [pair, row]
        # lerp gives exactly the start where its weight is 0, and exactly the end where it is 1.
        weight = (at[..., None] * only)[:, :, None, :].reshape(*at.shape, 1, -1, *[1] * (start.ndim - 3))
        return function(torch.lerp(start[:, None], end[:, None], weight))

    everywhere = torch.tensor([0.0, 1.0, *alphas], dtype=start.dtype, device=start.device)
    with torch.no_grad():
        curve = torch.cat([f for _, f in rows.each(lambda at: metric(at[None]), everywhere, len(start))], 1)
    still = start.new_zeros(len(start), 1, requires_grad=True)
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(metric(still).sum(), still)
    return curve, slope[:, 0]
