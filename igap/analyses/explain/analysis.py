"""The analysis `explain`: the terms of AP - IG for every component, and with which ones one outlier interacts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from igap.analyses.base import Analysis, RunContext
from igap.analyses.explain.explanation import Explanation
from igap.analyses.explain.interactions import interactions
from igap.attribution.attribution_patching import no_gradient
from igap.attribution.decomposition import NO_SINGLE_PATH, decompose
from igap.attribution.maps import Progress
from igap.components import PLACES, Site, kind_of, locate, parse_component
from igap.config import RunConfig
from igap.engine.positions import span_named, split_place
from igap.errors import InputError
from igap.inputs.prompts import TokenPair
from igap.models.load import Header
from igap.statistics.units import label_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_DRAWN = 20
"""Outliers in the figure."""
_MOST_PARTS_DRAWN = 15
"""Interactions in the figure; it has every one of them where there are few more."""
_MOST_PARTS = 5_000
"""Interactions of one component that a run lists without being asked; each costs two forward passes."""


class ExplanationAnalysis(Analysis[Explanation]):
    """Why IG and AP disagree about heads, or the sites that `explain` names; `explain=false` leaves it out."""

    name = "explain"
    any_metric = True

    def is_requested(self, config: RunConfig) -> bool:
        """Return whether there is a site to explain."""
        return bool(config.explained_sites)

    def automatic(self, config: RunConfig) -> bool:
        """Return whether nothing but `explain=true`, the default, asks for it."""
        return config.interactions is None and config.explain is True

    def misfit(self, config: RunConfig) -> str:
        """Return why not: a single path at positions, or a metric without gradient on the clean prompt."""
        several = [site for site in config.explained_sites if not PLACES[site].is_vector]
        if config.ig.path == "single" and not config.positions.is_default and several:
            return f"not of ig.path=single with {NO_SINGLE_PATH}"
        return no_gradient(config)

    def check(self, config: RunConfig, header: Header) -> Mapping[str, str]:
        """Refuse a component in `interactions` that the model does not have."""
        if config.interactions is not None:
            locate(config.interactions.partition("@")[0], header.n_layers, header.widths, item="interactions")
        return {}

    def check_pairs(self, config: RunConfig, tokens: Sequence[TokenPair]) -> None:
        """Refuse a component in `interactions` that is not one of the run's maps."""
        if config.interactions is not None:
            split_place(config.interactions, config.positions.value, tokens[0], config.direction, item="interactions")

    def run(self, context: RunContext, on_progress: Progress | None) -> Explanation:
        """Return the explanation of the sites, the first one with the further ones in it."""
        sites, total = context.config.explained_sites, len(context.config.explained_sites)

        def part(index: int) -> Progress | None:
            return None if on_progress is None else lambda done, n: on_progress(index * n + done, total * n)

        first, *further = (self._explain(context, site, part(index)) for index, site in enumerate(sites))
        return replace(first, further={other.site: other for other in further})

    def _explain(self, context: RunContext, site: Site, on_progress: Progress | None) -> Explanation:
        config, maps = context.config, context.maps[site]
        budget: Any = {"batch_size": config.batch_size, "memory_gib": config.memory_gib}
        chain = decompose(
            context.opened,
            maps["ig"],
            maps["ap"],
            atp=maps["atp"] if config.baseline.kind == "corrupted" else None,  # the run's is of the corrupted baseline
            baseline=context.baseline,
            direction=config.direction,
            path=config.ig.path,
            positions=config.positions.value,
            on_progress=on_progress,
            **budget,
        )
        explanation = Explanation(chain, context.comparisons[site].unit, tuple(context.outliers(site)), None)
        ap = chain.points["ap"]
        n_parts = ap.effect.shape[-1] * (1 if config.positions.is_default else 1 + len(ap.spans or [""]))
        name = _component_to_split(config, explanation)
        if name is None:
            name = _most_interaction(explanation)
            if name is not None and n_parts > _MOST_PARTS:
                return replace(explanation, n_left_out=n_parts)
        if name is None:
            return explanation
        layer, *span, index = (int(i) for i in np.unravel_index(explanation.names.index(name), ap.effect.shape))
        split = interactions(
            context.opened,
            (site, layer, index),
            span=span[0] if span else 0,
            spans=[f" at {each}" for each in ap.spans] if ap.spans else [""],
            positions=config.positions.value,
            direction=config.direction,
            **budget,
        )
        return replace(explanation, split=split)

    def figures(self, finding: Explanation, title: str) -> "Mapping[str, Figure]":
        """Draw `explanation`, the terms of the outliers, and `interactions`, the parts of one component's interaction.

        Of other sites than heads `SITE_explanation` and `SITE_interactions`.
        """
        drawn: dict[str, Figure] = {}
        for each in (finding, *finding.further.values()):
            drawn |= self._figures(each, title)
        return drawn

    @staticmethod
    def _figures(finding: Explanation, title: str) -> "dict[str, Figure]":
        from igap.analyses.explain.plots import explanation, interaction_parts

        shown, n = finding.of_outliers(_MOST_DRAWN), len(finding.outliers)
        heading = f"{finding.site} of {title}"
        if n > len(shown):
            heading += f"\nthe {len(shown)} farthest of {n} outliers"
        drawn = {
            f"{finding.prefix}explanation": explanation(
                shown, unit=label_of(finding.unit, finding.chain.points["ap"]), title=heading, site=finding.site
            )
        }
        if finding.split is not None:
            drawn[f"{finding.prefix}interactions"] = interaction_parts(
                finding.split.component,
                *finding.parts(_MOST_PARTS_DRAWN),
                higher_order=finding.higher_order,
                unit=finding.metric_unit,
                title=title,
                kind=kind_of(finding.site),
            )
        return drawn


def _component_to_split(config: RunConfig, explanation: Explanation) -> str | None:
    """The component that `interactions` names, as the maps name it; None where it names none of this site."""
    name, _, span = (config.interactions or "").partition("@")
    if not name or parse_component(name)[0] != explanation.site:
        return None
    spans = explanation.chain.points["ap"].spans
    wanted = name if spans is None else f"{name} at {span_named(span, spans, config.positions.value)}"
    if wanted in explanation.names:
        return wanted
    raise InputError(
        f"interactions: got {config.interactions}, wanted one of the {len(explanation.names)} that there are, such as "
        f"{explanation.names[0].replace(' at ', '@')}. Correct it."
    )


def _most_interaction(explanation: Explanation) -> str | None:
    """Return the outlier whose interaction term has the largest magnitude, None where there is none but 0."""
    size = dict(zip(explanation.names, explanation.chain.terms()["interaction"].abs().flatten().tolist(), strict=True))
    of = {name: size[name] for name in explanation.outliers} if len(size) > len(explanation.chain.converged) else {}
    largest = max(of, key=lambda name: of[name], default=None)
    return largest if largest is not None and of[largest] > 0 else None
