"""The result of every attribution method: one number a component, with its unit and its completeness delta."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from igap.attribution.spans import Places, in_words
from igap.components import PLACES, Site, component_names
from igap.display import markup
from igap.display.binding import Axes, draw
from igap.errors import InputError, printable, short_repr
from igap.errors.arguments import Finite, NotNegative, checks_arguments
from igap.vocabulary import BaselineKind, Direction

Kind = Literal["effect", "score"]
"""The two numbers that a map has of each component."""

Progress = Callable[[int, int], None]
"""Called with (components done, components in all), over all pairs."""


@checks_arguments
@dataclass(frozen=True)
class Top:
    """What a map says that has the k largest effects exactly, and not all of them, as `activation_patching` gives it.

    Example:
        >>> top = activation_patching(model, pair, "neurons", top=10).top
        >>> top.is_certain, top.n_left_out, top.bound < top.least
        (True, 2018, True)
    """

    k: int
    """How many were asked for."""
    tolerance: float
    """By how much, in F's unit, one that was left out may be above the k-th largest."""
    least: float
    """The k-th largest |effect|, in F's unit."""
    bound: float
    """What |effect| of every component left out is at most, in F's unit, with 95% confidence; 0: none is left out."""
    n_left_out: int
    """Components that were not patched alone, of all positions at once; their effects are NaN."""
    n_passes: int
    """Rows of forward passes a pair: components patched alone, and subsets patched together."""
    n_exact: int
    """Those that patching every component takes: one for each that moves."""

    @property
    def is_certain(self) -> bool:
        """Whether the k largest are these, up to the tolerance, with 95% confidence."""
        return self.bound <= self.least + self.tolerance

    def __str__(self) -> str:
        if not self.n_left_out:
            return f"all components were patched, for the {self.k} largest"
        if self.is_certain:
            sure = "these are the largest (95%)"
        else:
            sure = "NOT certain: one that was left out may be among them"
        return (
            f"exact effects of the {self.k} largest in {self.n_passes:,} of {self.n_exact:,} passes; the {self.k}th is "
            f"{self.least:.4g}, the {self.n_left_out:,} left out are at most {self.bound:.4g} (95%): {sure}"
        )


@checks_arguments
@dataclass(frozen=True, eq=False)
class AttributionMap:
    """Effects and scores of one method for every component of one site, of one prompt pair or the mean of several.

    Example:
        >>> ap = activation_patching(model, pair)
        >>> ap.method, ap.site, ap.score.shape
        ('ap', 'heads', torch.Size([4, 8]))
    """

    method: str
    """Its name: ig, ap or another of `methods.METHODS`."""
    site: Site
    effect: Float[Tensor, "layer *span component"]
    """In F's unit. Negative: moving the component to the baseline lowers F, by default the logit difference.
    Without a sign (`signed`), how far it moves F either way, at least 0."""
    gap: Finite
    """D = F(clean) - F(corrupted), in F's unit."""
    min_gap: NotNegative = 0.0
    """Logits. Below this absolute gap scores are missing (NaN): see `Contrast.least_gaps`."""
    delta: Float[Tensor, " layer"] | None = None
    """IG only. Completeness delta in logits: (sum of the layer's effects) - (F(all of the site replaced) - F(x)).
    For the single path, where each component has its own completeness, the one farthest from 0: IG_c - AP_c.
    Of several pairs, the one farthest from 0."""
    layer_effect: Float[Tensor, " layer"] | None = None
    """IG only. F(all of the site replaced) - F(x), in logits; of delta's component and pair where those are chosen."""
    rounding: Float[Tensor, " layer"] | None = None
    """IG only. How far F's rounding alone may put delta from 0, in logits; of delta's pair. See `Contrast.rounding`."""
    n_steps: Int[Tensor, " layer"] | None = None
    """IG only. Quadrature nodes of the numbers given, the most of any pair."""
    converged: Bool[Tensor, " layer"] | None = None
    """IG with n_steps=auto only. Whether the nodes were enough for the tolerance; of several pairs, for every one."""
    metric: str = field(default="logit_diff", metadata={"later": True})
    """F."""
    unit: str = field(default="logits", metadata={"later": True})
    """Its unit, which effects, deltas and the gap have."""
    function: Callable[..., object] | None = field(default=None, repr=False, metadata={"saved": False})
    """F, where it is a function of the caller's: two of them may have one name. None of a map that was on disk."""
    spans: tuple[str, ...] | None = field(default=None, metadata={"later": True})
    """Names of `effect`'s middle axis: positions with their tokens, or spans; None where it has none."""
    together: Float[Tensor, "layer component"] | None = field(default=None, metadata={"later": True})
    """The effect of all positions at once, logits; None where `effect` is that. For IG and attribution patching the sum
    of the effects of each position. AP's sum differs from it by `position_interaction`."""
    where: Places | None = field(default=None, metadata={"later": True})
    """The positions of each span, or those whose part a map without spans is; None: all, or they differ by pair."""
    covers: bool = field(default=False, metadata={"later": True})
    """Whether the spans hold every position whose activations change."""
    signed: bool = True
    """Whether effect and score have a sign; if not they are magnitudes."""
    pairs: tuple["AttributionMap", ...] = ()
    """The maps of the pairs that this one is the mean of; empty for one pair."""
    baseline: BaselineKind | None = field(default=None, metadata={"later": True})
    """What activations move to; None where the map was not made by a method."""
    top: Top | None = field(default=None, metadata={"later": True})
    """What AP with `top` knows of the components left out, whose effects are NaN. None: there are none."""
    direction: Direction | None = field(default=None, metadata={"later": True})
    """Whether corrupted activations go into the clean run (noising) or clean ones into the corrupted run."""

    @property
    def score(self) -> Float[Tensor, "layer *span component"]:
        """effect / gap: 0 no effect, -1 (noising) the component alone carries F all the way to the corrupted run.

        Of a map without sign effect / |gap|, at least 0. NaN everywhere when |gap| < min_gap or the gap is 0: a
        quotient by almost nothing says nothing. Over several pairs the mean of the scores that there are.
        """
        if self.pairs:
            return torch.stack([of_pair.score for of_pair in self.pairs]).nanmean(0)
        if not scores_exist(self.gap, self.min_gap):
            return torch.full_like(self.effect, float("nan"))
        return self.effect / (self.gap if self.signed else abs(self.gap))

    @property
    def has_scores(self) -> bool:
        """Whether all have a score that have an effect; else the gap is too small, and effects are shown instead."""
        return bool((self.score.isfinite() | self.effect.isnan()).all())

    @property
    def position_interaction(self) -> Float[Tensor, "layer component"] | None:
        """The effect of all positions at once minus the sum over spans, in logits: what positions do only together.

        0 up to rounding for IG and attribution patching, which share one effect out. None without spans, or where they
        leave out positions that change."""
        return None if self.together is None or not self.covers else self.together - self.effect.sum(1)

    @property
    def names(self) -> list[str]:
        """The names of all components, by positions each at every span, in the row-major order of `effect`."""
        return component_names(self.site, self.effect.shape[0], self.effect.shape[-1], self.spans)

    @property
    def label(self) -> str:
        """What an axis says of the numbers shown: scores, or effects where a score is missing."""
        return "score (effect / gap)" if self.has_scores else f"effect ({self.unit})"

    @property
    def topic(self) -> str:
        """The site, and F where it is another than the logit difference."""
        return self.site if self.metric == "logit_diff" else f"{self.site} on {self.metric}"

    def to_frame(self) -> pd.DataFrame:
        """Return one row a component, by (layer, head) or (layer, neuron), with the columns of a run's `heads.csv`.

        `name`; under the method's name the score, no unit, NaN where there is none; `effect_METHOD`, in logits.
        """
        return frame_of({self.method: self})

    def plot(self) -> Axes:
        """Return the axes of the heatmap that a run draws, of this map alone; a notebook shows it as a picture."""
        return draw("map", self)

    def __repr__(self) -> str:
        return f"AttributionMap({'; '.join([self._facts(), *self._lines()])})"

    def _repr_html_(self) -> str:
        shown = self.score if self.has_scores else self.effect
        cells = markup.heatmap(shown.detach().double().cpu().numpy(), self.site, unit=self.label, spans=self.spans)
        return markup.block(self._facts(), self._lines(), cells)

    def _facts(self) -> str:
        """What the map is of, in one line."""
        moved = "" if self.direction is None else f", {self.direction}"
        towards = "" if self.baseline is None else f" with the {self.baseline} baseline"
        over = f"mean of {len(self.pairs)} pairs, mean gap" if self.pairs else "gap"
        shape = f"{list(self.effect.shape)}{self.place}"
        return f"{self.method} of {self.topic} {shape}{moved}{towards}, {over} {self.gap:+.3f} {self.unit}"

    def _lines(self) -> list[str]:
        """The components with the largest |effect|, and the largest interaction between positions, if there is one."""
        shown = self.score if self.has_scores else self.effect
        what = "scores" if self.has_scores else f"effects, in {self.unit}"
        lines, between = [f"largest {what}: {self._largest(self.effect, shown, self.spans)}"], self.position_interaction
        if between is not None:
            size = max(abs(self.gap), 1.0 if self.metric == "logit_diff" else 0.0)
            rounding = 10 * torch.finfo(between.dtype).eps * size * self.effect.shape[1]
            if between.abs().max() > rounding:
                lines.append(f"interaction between positions, in {self.unit}: {self._largest(between, between)}")
        return lines if self.top is None else [*lines, str(self.top)]

    @property
    def place(self) -> str:
        """The positions whose part a map without spans is, in words; empty where it is of all."""
        return "" if self.spans else in_words(self.where, [each.where for each in self.pairs])

    @checks_arguments
    def at(self, span: str) -> "AttributionMap":
        """Return the map `[layer, component]` of one position or span.

        Args:
            span: One of `spans`, or a position's number alone.

        Raises:
            InputError: The map has no spans, or no such one.
        """
        known = self.spans or ()
        numbers = [name.split(" ")[0] for name in known]
        index = next((names.index(span) for names in (known, numbers) if names.count(span) == 1), None)
        if index is None:
            remedy = f"one of {printable(', '.join(known))}" if known else "a map by positions. Take positions='each'"
            raise InputError(f"span: got {short_repr(span)}, wanted {remedy}.")
        return replace(
            self,
            effect=self.effect[:, index],
            spans=None,
            together=None,
            where=None if self.where is None else (self.where[index],),
            covers=False,
            pairs=tuple(each.at(each.spans[index]) for each in self.pairs if each.spans),
            delta=None,
            layer_effect=None,
            rounding=None,
            n_steps=None,
            converged=None,
        )

    def _largest(self, weight: Tensor, shown: Tensor, spans: Sequence[str] | None = None) -> str:
        """The three components with the largest |weight|, and the numbers shown of them."""
        names = component_names(self.site, weight.shape[0], weight.shape[-1], spans)
        order = torch.argsort(weight.abs().nan_to_num(0).flatten(), descending=True, stable=True)[:3].tolist()
        return ", ".join(f"{names[i]} {shown.flatten()[i]:+.3f}" for i in order)

    @checks_arguments
    def incomplete_layers(self, tolerance: NotNegative = 0.01) -> list[int]:
        """Layers whose |delta| is above `tolerance` times |layer_effect| and above rounding; empty without a delta.

        Raises InputError for a map that was opened from disk, where no rounding is kept.
        """
        known = self.rounding is not None if not self.pairs else all(each.delta is not None for each in self.pairs)
        if self.delta is not None and not known:
            raise InputError(
                "incomplete_layers: got a map of a finished run, whose files do not hold F's rounding, wanted one just "
                "computed. The run's own check is under warnings in its summary."
            )
        if self.pairs:
            return sorted({layer for of_pair in self.pairs for layer in of_pair.incomplete_layers(tolerance)})
        if self.delta is None or self.layer_effect is None or self.rounding is None:
            return []
        bound = completeness_bound(self.layer_effect, self.rounding, tolerance)
        return [int(layer) for layer in (~(self.delta.abs() <= bound)).nonzero().flatten()]


def frame_of(maps: Mapping[str, AttributionMap]) -> pd.DataFrame:
    """Return maps of one site side by side: `name`, the scores under the maps' names, their effects in logits.

    The index has the levels `layer` and what a component is: `head`, `neuron`, `kv_head`, or `vector`, whose only
    number is 0. Between them `span`, where the maps have spans.
    """
    first = next(iter(maps.values()))
    n_layers, *n_spans, width = first.effect.shape
    levels = {"layer": range(n_layers), "span": first.spans or (), PLACES[first.site].column or "vector": range(width)}
    if not n_spans:
        del levels["span"]
    index = pd.MultiIndex.from_product(list(levels.values()), names=list(levels))
    columns = {name: each.score for name, each in maps.items()}
    columns |= {f"effect_{name}": each.effect for name, each in maps.items()}
    numbers = {name: values.detach().double().cpu().numpy().ravel() for name, values in columns.items()}
    names = np.reshape(np.array(component_names(first.site, n_layers, width), object), (n_layers, 1, width))
    names = np.broadcast_to(names, (n_layers, len(first.spans or [""]), width)).ravel()
    return pd.DataFrame({"name": names, **numbers}, index=index)


def table_of(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame of `frame_of` as a file has it: `name`, by positions `span`, and its other columns."""
    if "span" in frame.index.names:
        frame.insert(1, "span", frame.index.get_level_values("span"))
    return frame.reset_index(drop=True)


def scores_exist(gap: float, min_gap: float) -> bool:
    """Whether a gap, in logits, is large enough to divide by."""
    return gap != 0 and abs(gap) >= min_gap


def completeness_bound(whole: Tensor, rounding: Tensor, tolerance: float) -> Tensor:
    """How far a completeness delta may be from 0, in logits: a share of the whole, or F's rounding."""
    return torch.maximum(tolerance * whole.abs(), rounding)


def per_component(attributions: Tensor, site: Site) -> Float[Tensor, "*rows pos component"]:
    """Attributions of a site's activation summed over a component's dimensions; a neuron has one."""
    return attributions if site == "neurons" else attributions.sum(-1)


Advance = Callable[[int], None]
"""Called with the components done so far of the pairs at hand."""


def ignore(done: int) -> None:
    """Ignore the progress."""
