"""How the effect of every component changes when a chosen one, s, is patched already.

    change(c) = [F(s and c patched) - F(s patched)] - [F(c patched) - F(run)]

Patching c shows what c does while s works; a backup of s does nothing then (McGrath et al. 2023, arXiv 2307.15771).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64

from igap.attribution.activation_patching import patch_components
from igap.attribution.maps import Advance, AttributionMap, Kind, Progress, frame_of
from igap.attribution.over_pairs import attribute_pairs
from igap.components import Site, component_name, locate, sites_of
from igap.display import markup
from igap.engine.activations import Model
from igap.engine.backend import Route
from igap.engine.contrast import Contrast
from igap.engine.metrics import check_not_least
from igap.engine.open_pairs import OpenPairs, open_pairs
from igap.engine.positions import Positions, split_place
from igap.errors.arguments import Count, Finite, Positive, checks_arguments
from igap.inputs.prompts import PromptPair
from igap.metrics import AnyMetric
from igap.models.families import widths_of_model
from igap.statistics.comparison import SIGN_THRESHOLD
from igap.vocabulary import Direction

_MOST_SAID = 5


@checks_arguments
@dataclass(frozen=True, eq=False)
class SelfRepair:
    """AP of every component of one site with and without another component patched.

    Example:
        >>> repair = self_repair(model, pair, "0.6")
        >>> repair.to_frame()["rank_ap"].head(2).to_dict()
        {'0.3': 10, '0.2': 5}
    """

    patched: str
    """The component that is patched: s; by positions at a span, as in `names`."""
    effect: Finite
    """F with s patched minus F(run), in F's unit; of several pairs the mean."""
    alone: AttributionMap
    """AP of every component in the run as it is."""
    given: AttributionMap
    """AP of every component where s is patched already and stays so; of s itself 0."""

    @property
    def names(self) -> list[str]:
        """All components, layer by layer, by positions each at every span; s may be one of them."""
        return self.alone.names

    @checks_arguments
    def change(self, kind: Kind = "effect") -> Float64[np.ndarray, " component"]:
        """Return the effect given s minus the effect alone, in F's unit, or the same of scores; of s itself NaN.

        Noising, a score below 0: the component carries more of F when s is gone, as a backup of s does. Above 0: less,
        as where one of the two acts through the other. Denoising, the signs are the other way round.
        """
        given, alone = (getattr(each, kind).double().flatten().cpu().numpy() for each in (self.given, self.alone))
        change = given - alone
        if self.patched in self.names:
            change[self.names.index(self.patched)] = np.nan
        return np.asarray(change)

    @property
    def repairs(self) -> Float64[np.ndarray, " component"]:
        """The share of the gap that a component carries more of when s is patched; of s itself NaN.

        Above 0 for a backup of s, in both directions: minus the change of its score, denoising the change itself. Where
        there are no scores in F's unit, with the sign of the gap.
        """
        sign = np.sign(self.alone.gap) or 1.0
        change = self.change("score") if self.alone.has_scores else sign * self.change()
        return -change if self.alone.direction == "noising" else change

    def ranking(self) -> list[str]:
        """Return all components but s, those that repair most first."""
        repairs, names = self.repairs, self.names
        order = np.argsort(-repairs, kind="stable")  # NaN comes last
        return [names[i] for i in order if np.isfinite(repairs[i])]

    def to_frame(self) -> pd.DataFrame:
        """Return one row a component but s, by name, those that repair most first: `rank`, scores, then effects.

        `alone`, `given`, and `change`, their difference; with `effect_` before them in F's unit. `rank_ap` is the rank
        by the magnitude of the effect alone.
        """
        frame = frame_of({"alone": self.alone, "given": self.given}).drop(columns="name")
        frame.index = pd.Index(self.names, name="name")
        frame.insert(2, "change", self.change("score"))
        frame["effect_change"] = self.change()
        frame = frame.loc[self.ranking()]
        frame.insert(0, "rank", range(1, len(frame) + 1))
        frame.insert(1, "rank_ap", frame["effect_alone"].abs().rank(ascending=False, method="first").astype(int))
        return frame

    def summary(self) -> dict[str, float | int | str | None]:
        """Return `self_repair/...`: s, its effect, who repairs most and who loses most, and by how much."""
        ranking, repairs = self.ranking(), self.repairs
        flat: dict[str, float | int | str | None] = {
            "self_repair/patched": self.patched,
            "self_repair/effect": self.effect,
        }
        for name, which in (("first", 0), ("last", -1)):
            flat[f"self_repair/{name}"] = ranking[which]
            flat[f"self_repair/{name}/repairs"] = float(repairs[self.names.index(ranking[which])])
        return flat

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return a row a component, by positions one for every span."""
        frame = self.to_frame().reset_index()
        if self.alone.spans is not None:
            parts = frame["name"].str.partition(" at ")
            frame["name"] = parts[0]
            frame.insert(1, "span", parts[2])
        return {"self_repair": frame}

    def sentences(self) -> tuple[str, ...]:
        """Return what patching s does, who carries more of F then, and who carries less."""
        shown, unit = self._prefix_and_unit()
        frame = self.to_frame()

        def describe(few: pd.DataFrame) -> str:
            parts = [
                f"{name} {row[shown + 'alone']:+.3f} -> {row[shown + 'given']:+.3f}" for name, row in few.iterrows()
            ]
            return ", ".join(parts) or "none"

        repairs = dict(zip(self.names, self.repairs, strict=True))
        # Smaller changes may be rounding, and no reader cares for their sign.
        least = SIGN_THRESHOLD * float(frame[f"{shown}alone"].abs().max())
        more = frame[[repairs[str(name)] > least for name in frame.index]][:_MOST_SAID]
        less = frame[[repairs[str(name)] < -least for name in frame.index]][: -_MOST_SAID - 1 : -1]
        alone = self.alone
        start = f"self-repair, {self.patched} patched: F changes by {self.effect:+.3f} {alone.unit}"
        return (
            f"{start}; AP of {alone.site} before -> after, {unit}",
            f"they carry more then: {describe(more)}",
            f"they carry less then: {describe(less)}",
        )

    def _prefix_and_unit(self) -> tuple[str, str]:
        """The prefix of the columns that are shown, and their unit."""
        return ("", "scores") if self.alone.has_scores else ("effect_", self.alone.unit)

    def __repr__(self) -> str:
        return f"SelfRepair({'; '.join(self.sentences())})"

    def _repr_html_(self) -> str:
        alone = self.alone
        cells = markup.heatmap(
            self.change("score" if alone.has_scores else "effect").reshape(alone.effect.shape),
            alone.site,
            unit=f"change of AP with {self.patched} patched, {alone.label}",
            spans=alone.spans,
        )
        return markup.block("self-repair", self.sentences(), cells)


@checks_arguments
def self_repair(
    model: Model,
    pair: PromptPair | Sequence[PromptPair],
    patched: str,
    site: Site = "heads",
    *,
    direction: Direction = "noising",
    positions: Positions = "all",
    metric: AnyMetric = "logit_diff",
    batch_size: Count | None = None,
    memory_gib: Positive | None = None,
    route: Route | None = None,
    on_progress: Progress | None = None,
) -> SelfRepair:
    """AP of every component before and after one component s is patched, in as many passes as AP twice.

    Args:
        model: A TransformerBridge, for example of `load_model`; it comes back unchanged.
        pair: The prompt pair, or several, whose mean is returned.
        patched: s, a head such as "9.6", a neuron such as "L5.N1234", or one of another site such as "9.6.q" and
            "L5.attn_out"; where `positions` are an axis at one of them, "9.6@10" or "9.6@S2".
        site: What the components are, default "heads"; any that `activation_patching` takes.
        direction: "noising" (default) patches the clean run; "denoising" the corrupted run, towards the clean one.
        positions: Which positions change, as `activation_patching` takes them; "all" (default): at once. With "each" or
            spans s is patched at its own span, and each component at each span is an entry of its own.
        metric: F, default "logit_diff"; see `activation_patching`.
        batch_size: Rows of a pass. None (default): as many as fit.
        memory_gib: GiB of a pass beyond the model. None (default): 2.
        route: "suffix" or "hooks", how F is computed. None (default): the faster one that is right for the model.
        on_progress: Called with (components done, components in all), first without and then with s patched.

    Returns:
        Both maps, the change of each component, and the ranking by it.

    Raises:
        InputError: An argument is invalid, the model has no such component, or the pair does not fit the model.

    Example:
        >>> repair = self_repair(model, pair, "0.6")
        >>> repair.ranking()[:2], round(repair.effect, 3)
        (['0.3', '0.2'], -1.762)

    Source: McGrath et al. 2023 (arXiv 2307.15771); Wang et al. 2022 (2211.00593) on backup heads.
    """
    budget: Any = {"batch_size": batch_size, "memory_gib": memory_gib}

    def patch(contrast: Contrast, advance: Advance) -> list[AttributionMap]:
        return patch_components(contrast, site, advance, positions=positions, **budget)

    if direction == "noising":
        check_not_least(metric, "self-repair")
    component, _, _ = patched.partition("@")
    place = locate(component, model.cfg.n_layers, widths_of_model(model), item="patched")
    sites = tuple(dict.fromkeys((site, *sites_of([component]))))
    with open_pairs(model, pair, sites=sites, route=route, metric=metric) as opened:
        _, span = split_place(patched, positions, opened.tokens[0], direction, item="patched")
        about: Any = {"direction": direction, "positions": positions, "on_progress": on_progress}
        alone = attribute_pairs(patch, opened, site, **about)
        return repair_of(opened, place, span, alone, **about, **budget)


def repair_of(
    opened: OpenPairs,
    patched: tuple[Site, int, int],
    span: int,
    alone: AttributionMap,
    *,
    direction: Direction,
    positions: Positions = "all",
    batch_size: int | None = None,
    memory_gib: float | None = None,
    on_progress: Progress | None = None,
) -> SelfRepair:
    """The open pairs' AP with a component, by site, layer and index, patched at a span, beside their AP `alone`."""
    lost: list[float] = []
    site, layer, index = patched

    def patch_beside(contrast: Contrast, advance: Advance) -> list[AttributionMap]:
        spans = contrast.spans(positions)
        beside = contrast.with_patched({(site, layer): (index,)}, None if spans is None else spans.masks[span])
        lost.extend((beside.value(beside.base) - contrast.value(contrast.base)).tolist())
        budget: Any = {"batch_size": batch_size, "memory_gib": memory_gib}
        return patch_components(beside, alone.site, advance, positions=positions, **budget)

    given = attribute_pairs(patch_beside, opened, alone.site, on_progress, direction=direction, positions=positions)
    at = "" if alone.spans is None else f" at {alone.spans[span]}"
    return SelfRepair(component_name(*patched) + at, sum(lost) / len(lost), alone, given)
