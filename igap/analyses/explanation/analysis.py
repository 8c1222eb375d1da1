"""The analysis `explain`: the terms of AP - IG for every head, and with which heads one outlier interacts."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from igap.analyses.base import Analysis, RunContext
from igap.analyses.explanation.explanation import Explanation
from igap.analyses.explanation.interactions import interactions
from igap.attribution.attribution_patching import no_gradient
from igap.attribution.decomposition import Decomposition, decompose
from igap.attribution.maps import Progress
from igap.components import locate, parse_component
from igap.config import RunConfig
from igap.models.load import Header
from igap.statistics.units import label_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_DRAWN = 20
"""Outliers in the figure."""


class ExplanationAnalysis(Analysis[Explanation]):
    """Why IG and AP disagree about heads; `explain=false` leaves it out."""

    name = "explain"
    any_metric = True

    def asked_for(self, config: RunConfig) -> bool:
        """Return whether `explain` is true, and heads are attributed to."""
        return config.explain and "heads" in config.asked_sites

    def automatic(self, config: RunConfig) -> bool:
        """Return whether nothing but `explain=true`, the default, asks for it."""
        return config.interactions is None

    def misfit(self, config: RunConfig) -> str:
        """Return why not: other positions than all, or a metric without gradient on the clean prompt."""
        return super().misfit(config) or no_gradient(config)

    def check(self, config: RunConfig, header: Header) -> Mapping[str, str]:
        """Refuse a head in `interactions` that the model does not have."""
        if config.interactions is not None:
            locate(config.interactions, header.n_layers, header.widths, item="interactions")
        return {}

    def run(self, context: RunContext, on_progress: Progress | None) -> Explanation:
        """Return the explanation of the run's heads."""
        config, maps = context.config, context.maps["heads"]
        budget: Any = {"batch_size": config.batch_size, "memory_gib": config.memory_gib}
        chain = decompose(
            context.opened,
            maps["ig"],
            maps["ap"],
            atp=maps["atp"] if config.baseline.kind == "corrupted" else None,  # the run's is of the corrupted baseline
            baseline=context.baseline,
            direction=config.direction,
            path=config.ig.path,
            on_progress=on_progress,
            **budget,
        )
        outliers = tuple(context.outliers("heads"))
        head = config.interactions or _most_interaction(chain, outliers)
        split = None
        if head is not None:
            split = interactions(context.opened, head, direction=config.direction, **budget)
        return Explanation(chain, context.comparisons["heads"].unit, outliers, split)

    def figures(self, finding: Explanation, title: str) -> "Mapping[str, Figure]":
        """Draw `explanation`, the terms of the outliers, and `interactions`, the parts of one head's interaction."""
        from igap.analyses.explanation.plots import explanation, interaction_parts

        shown, n = finding.of_outliers(_MOST_DRAWN), len(finding.outliers)
        heading = f"heads of {title}"
        if n > len(shown):
            heading += f"\nthe {len(shown)} farthest of {n} outliers"
        drawn = {
            "explanation": explanation(shown, unit=label_of(finding.unit, finding.chain.points["ap"]), title=heading)
        }
        if finding.split is not None:
            drawn["interactions"] = interaction_parts(
                finding.split.component,
                finding.split.others,
                finding.split.shares.tolist(),
                higher_order=finding.higher_order,
                unit=finding.metric_unit,
                title=title,
            )
        return drawn


def _most_interaction(chain: Decomposition, outliers: tuple[str, ...]) -> str | None:
    """Return the outlier whose interaction term has the largest magnitude, None where there is none but 0."""
    size = chain.terms()["interaction"].abs()
    of = {name: float(size[parse_component(name)[1:]]) for name in outliers}
    largest = max(of, key=lambda name: of[name], default=None)
    return largest if largest is not None and of[largest] > 0 else None
