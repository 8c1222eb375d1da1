"""IG and AP noising and denoising, side by side: how asymmetric each component is, and what carries F in one only.

Noising shows what alone is needed for F, denoising what alone is enough. Of an OR each input is enough and none is
needed; of an AND each is needed and none is enough (Heimersheim & Nanda 2024, arXiv 2404.15255).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float64

from igap.analyses.both_directions.gates import DIRECTIONS, Gates, find_gates
from igap.attribution.activation_patching import patch_components
from igap.attribution.integrated_gradients import check_quadrature, integrate_path
from igap.attribution.maps import Advance, AttributionMap, Kind, Progress, frame_of, table_of
from igap.attribution.over_pairs import attribute_pairs
from igap.components import Site
from igap.display import markup
from igap.engine.activations import Model
from igap.engine.backend import Route
from igap.engine.contrast import Contrast
from igap.engine.metrics import check_not_least
from igap.engine.open_pairs import OpenPairs, open_pairs
from igap.engine.positions import Positions
from igap.errors.arguments import Count, Positive, Range, checks_arguments
from igap.inputs.prompts import PromptPair
from igap.metrics import AnyMetric
from igap.vocabulary import Direction

Class = Literal["minimal", "latent_or", "latent_and", "opposed", "low"]
CLASSES: tuple[Class, ...] = ("minimal", "latent_or", "latent_and", "opposed")
"""Those of components that are not low."""

Method = Literal["ig", "ap"]
_METHODS: tuple[Method, ...] = ("ig", "ap")
Share = Annotated[float, Range(above=0, most=1)]
Number = Annotated[int, Range(least=0, most=100)]

_WORDS = {
    "minimal": "that do as much in both directions (minimal)",
    "latent_or": "that do more denoising, as in an OR (latent)",
    "latent_and": "that do more noising, as in an AND (latent)",
    "opposed": "that do the opposite in the other direction",
}


@checks_arguments
@dataclass(frozen=True, eq=False)
class BothDirections:
    """IG and AP of every component of one site in both directions, and the gates of those that are latent.

    Example:
        >>> both = both_directions(model, pair)
        >>> len(both.names_of("minimal")), both.names_of("latent_and"), both.gates.to_frame()["gate"].tolist()
        (11, ['0.7'], ['none'])
    """

    noising: Mapping[str, AttributionMap]
    """`ig` and `ap`, towards the corrupted prompt."""
    denoising: Mapping[str, AttributionMap]
    """`ig` and `ap` of clean activations in the corrupted run."""
    high: float
    """|score| that a component has in one direction at least, to have a class."""
    gates: Gates
    """The latent components with the largest asymmetry, two by two."""

    @property
    def names(self) -> list[str]:
        """All components, layer by layer; by positions each at every span of the run's own direction."""
        return self.noising["ap"].names

    @checks_arguments
    def asymmetry(self, method: Method = "ap", kind: Kind = "effect") -> Float64[np.ndarray, " component"]:
        """Return the sum of the effects of both directions, in F's unit, or of the scores.

        0 where noising takes away as much of F as denoising brings back. Of a component that carries F a score above 0
        says that denoising does more, as in an OR, one below 0 that noising does more, as in an AND.
        """
        both = (getattr(maps[method], kind).double().flatten().cpu() for maps in (self.noising, self.denoising))
        return np.asarray(sum(values.numpy() for values in both))

    @property
    def classes(self) -> tuple[str, ...]:
        """The class of each component by AP's scores; empty texts where there are none.

        `low`: |score| below `high` in both directions. Of the others, `minimal`: where it does less it does at least
        half as much. `latent_or`: less than half, and denoising does more. `latent_and`: less than half, and noising
        does more. `opposed`: at least half, but the other way: one carries F to the other prompt, one away from it.
        """
        noising, denoising = (
            sign * maps["ap"].score.double().flatten().cpu().numpy()
            for sign, maps in ((-1, self.noising), (1, self.denoising))
        )
        does_more = np.abs(denoising) >= np.abs(noising)
        weaker, stronger = np.where(does_more, (noising, denoising), (denoising, noising))
        half = np.abs(weaker) >= np.abs(stronger) / 2
        kinds = {
            "": ~np.isfinite([noising, denoising]).all(0),
            "low": np.abs(stronger) < self.high,
            "minimal": half & (weaker * stronger > 0),
            "opposed": half,
            "latent_or": does_more,
        }
        return tuple(np.select(list(kinds.values()), list(kinds), "latent_and").tolist())

    @checks_arguments
    def names_of(self, kind: Class) -> list[str]:
        """Return the names of the components of a class, the largest |asymmetry| first; of `minimal` the strongest."""
        size = np.abs(self.asymmetry(kind="score"))
        if kind == "minimal":
            size = np.abs(self.noising["ap"].score.double().flatten().cpu().numpy())
        own, names = np.flatnonzero([each == kind for each in self.classes]), self.names
        return [names[i] for i in own[np.argsort(-size[own], kind="stable")]]

    def to_frame(self) -> pd.DataFrame:
        """Return one row a component: `name`, `class`, IG and AP in both directions and their asymmetry.

        `ap_noising`, `ap_denoising` and `ap_asymmetry` are scores, `effect_...` in F's unit; those of IG as well.
        """
        frame = frame_of({f"{method}_{where}": self._of(where)[method] for method in _METHODS for where in DIRECTIONS})
        frame.insert(1, "class", self.classes)
        for method in _METHODS:
            frame[f"{method}_asymmetry"] = self.asymmetry(method, "score")
            frame[f"effect_{method}_asymmetry"] = self.asymmetry(method)
        return frame

    def _of(self, direction: Direction) -> Mapping[str, AttributionMap]:
        return self.noising if direction == "noising" else self.denoising

    def summary(self) -> dict[str, float | int | str | None]:
        """Return `both_directions/...`: the components of each class, the gates of each kind, the mean |asymmetry|."""
        flat: dict[str, float | int | str | None] = {}
        between = " " if self.noising["ap"].spans is None else ", "
        for method in _METHODS:
            flat[f"both_directions/{method}/mean_abs_asymmetry"] = float(np.abs(self.asymmetry(method)).mean())
        scored = "" not in self.classes
        for kind in CLASSES:
            flat[f"both_directions/n_{kind}"] = len(self.names_of(kind)) if scored else None
            flat[f"both_directions/{kind}"] = between.join(self.names_of(kind)[:_MOST_NAMED]) if scored else None
        for gate in ("and", "or", "mixed"):
            flat[f"both_directions/gates/{gate}"] = between.join(self.gates.names_of(gate)) if scored else None
        if not scored:
            flat |= {f"{name}/reason": "the gap is too small for scores" for name in list(flat) if flat[name] is None}
        return flat

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return a row a component, by positions one for every span, and a row two latent components."""
        frame = table_of(self.to_frame())
        return {"both_directions": frame} | ({"gates": self.gates.to_frame()} if self.gates.first else {})

    def sentences(self) -> tuple[str, ...]:
        """Return a line a class, and one for the gates."""
        site = self.noising["ap"].site
        if "" in self.classes:
            return (f"both directions of {site}: no classes, the gap is too small for scores",)
        lines = []
        for kind in CLASSES:
            names = self.names_of(kind)
            if names or kind != "opposed":
                lines.append(f"{site} {_WORDS[kind]}: {_join_names(names, _MOST_SAID) or 'none'}")
        if self.gates.first:
            kinds = {kind: self.gates.names_of(kind) for kind in ("and", "or", "mixed")}
            parts = [f"{kind} {_join_names(of, 4)}" for kind, of in kinds.items() if of]
            n_pairs = f"{len(self.gates.first)} pair{'s' * (len(self.gates.first) != 1)}"
            lines.append(f"gates, {n_pairs} of latent {site}: {'; '.join(parts) or 'none'}")
        return tuple(lines)

    def __repr__(self) -> str:
        return f"BothDirections({'; '.join(self.sentences())})"

    def _repr_html_(self) -> str:
        ap = self.noising["ap"]
        asymmetry = self.asymmetry(kind="score" if ap.has_scores else "effect").reshape(ap.effect.shape)
        cells = markup.heatmap(asymmetry, ap.site, unit=f"AP noising + denoising, {ap.label}", spans=ap.spans)
        return markup.block("both directions", self.sentences(), cells)


_MOST_NAMED, _MOST_SAID = 50, 8


def _join_names(names: Sequence[str], most: int) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


@checks_arguments
def both_directions(
    model: Model,
    pair: PromptPair | Sequence[PromptPair],
    site: Site = "heads",
    *,
    positions: Positions = "all",
    high: Share = 0.05,
    most: Number = 8,
    n_steps: Count = 50,
    metric: AnyMetric = "logit_diff",
    batch_size: Count | None = None,
    memory_gib: Positive | None = None,
    route: Route | None = None,
    on_progress: Progress | None = None,
) -> BothDirections:
    """IG and AP of every component noising and denoising, their asymmetry, and the gates of latent components.

    Args:
        model: A TransformerBridge, for example of `load_model`; it comes back unchanged.
        pair: The prompt pair, or several, whose mean is returned.
        site: "heads" (default), or another that `activation_patching` takes.
        positions: Which positions change, as `activation_patching` takes them; "all" (default): at once. With "each" or
            spans a component at a span is a component. They are positions of the clean prompt, and in denoising those
            of the corrupted prompt that are aligned with them.
        high: |score| that a component has in one direction at least, to have a class, default 0.05; of gates |I / gap|.
        most: How many latent components are patched two by two, the largest asymmetry first; default 8.
        n_steps: IG's quadrature nodes, default 50.
        metric: F, default "logit_diff"; see `activation_patching`.
        batch_size: Rows of a pass. None (default): as many as fit.
        memory_gib: GiB of a pass beyond the model. None (default): 2.
        route: "suffix" or "hooks", how F is computed. None (default): the faster one that is right for the model.
        on_progress: Called with (components done, components in all), of each method and direction anew.

    Returns:
        The maps of both directions, a class for every component, and the gates.

    Raises:
        InputError: An argument is invalid, or the pair does not fit the model.

    Example:
        >>> both = both_directions(model, pair, high=0.1)
        >>> both.names_of("minimal")[:2], round(float(both.asymmetry("ap", "score")[7]), 3)
        (['0.6', '3.1'], -0.055)

    Source: Heimersheim & Nanda 2024 (arXiv 2404.15255), on AND and OR.
    """
    check_quadrature("gausslegendre", n_steps, "joint")
    check_not_least(metric, "both directions")
    budget: Any = {"batch_size": batch_size, "memory_gib": memory_gib}

    def patch(contrast: Contrast, advance: Advance) -> list[AttributionMap]:
        return patch_components(contrast, site, advance, positions=positions, **budget)

    def integrate(contrast: Contrast, advance: Advance) -> list[AttributionMap]:
        return integrate_path(contrast, site, advance, positions=positions, n_steps=n_steps, **budget)

    with open_pairs(model, pair, sites=(site,), route=route, metric=metric) as opened:

        def both(method: Callable[[Contrast, Advance], list[AttributionMap]]) -> list[AttributionMap]:
            about: Any = {"positions": positions, "named_in": DIRECTIONS[0]}
            return [attribute_pairs(method, opened, site, on_progress, direction=each, **about) for each in DIRECTIONS]

        maps = {"ig": both(integrate), "ap": both(patch)}
        return compare_directions(
            opened,
            *({name: of[i] for name, of in maps.items()} for i in range(2)),
            high=high,
            most=most,
            positions=positions,
            named_in=DIRECTIONS[0],
            **budget,
        )


def compare_directions(
    opened: OpenPairs,
    noising: Mapping[str, AttributionMap],
    denoising: Mapping[str, AttributionMap],
    *,
    high: float,
    most: int,
    positions: Positions,
    named_in: Direction,
    batch_size: int | None = None,
    memory_gib: float | None = None,
    on_progress: Progress | None = None,
) -> BothDirections:
    """Maps of the open pairs in both directions, side by side, and the gates of up to `most` latent components."""
    none = np.zeros((2, 0))
    without = BothDirections(noising, denoising, high, Gates((), (), none, none, none, none, high))
    latent = [i for i, kind in enumerate(without.classes) if kind.startswith("latent")]
    latent.sort(key=lambda i: -abs(without.asymmetry(kind="score")[i]))
    ap = noising["ap"]
    places = [tuple(map(int, np.unravel_index(i, ap.effect.shape))) for i in latent[:most]]
    if len(places) < 2:
        return without
    budget: Any = {"batch_size": batch_size, "memory_gib": memory_gib, "on_progress": on_progress}
    gates = find_gates(opened, ap.site, places, high, positions=positions, named_in=named_in, **budget)
    return BothDirections(noising, denoising, high, gates)
