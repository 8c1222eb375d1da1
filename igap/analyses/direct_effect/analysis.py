"""The analysis `direct_effect`: the direct effect of every component beside AP."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from igap.analyses.base import Analysis, RunContext, check_site, settings_of
from igap.analyses.direct_effect.effects import DirectEffects, Writer, direct_effects
from igap.attribution.maps import Advance, AttributionMap, Progress
from igap.attribution.over_pairs import attribute_pairs
from igap.config import Frozen, RunConfig
from igap.engine.backend import no_weights
from igap.engine.contrast import Contrast
from igap.errors import InputError
from igap.models.load import Header

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Settings(Frozen):
    """What may be set at `analyses.direct_effect`."""

    site: Writer = "heads"


class DirectEffectAnalysis(Analysis[DirectEffects]):
    """What each component does by its own path to the logits; `analyses=direct_effect` asks for it."""

    name = "direct_effect"
    any_metric = True
    settings = Settings

    def check(self, config: RunConfig, header: Header) -> Mapping[str, str]:
        """Refuse a site that the run does not attribute to, and models whose F is not computed from their weights."""
        if self.asked_for(config):
            check_site(config, self.name, settings_of(config, self.name, Settings).site)
            if reason := no_weights(config, header):
                raise InputError(
                    f"analyses: got direct_effect of model.name={config.model.name}, wanted a model whose blocks the "
                    f"engine computes from their weights: {reason}. Leave direct_effect out, or use another model."
                )
        return {}

    def run(self, context: RunContext, on_progress: Progress | None) -> DirectEffects:
        """Return the direct effects of the run's pairs beside the AP that the run has."""
        config = context.config
        site = settings_of(config, self.name, Settings).site

        def patch(contrast: Contrast, advance: Advance) -> list[AttributionMap]:
            budget = config.batch_size, config.memory_gib
            return direct_effects(contrast, site, advance, batch_size=budget[0], memory_gib=budget[1])

        direct = attribute_pairs(patch, context.opened, site, on_progress, direction=config.direction)
        return DirectEffects(direct, context.maps[site]["ap"])

    def figures(self, finding: DirectEffects, title: str) -> "Mapping[str, Figure]":
        """Draw `direct_effect`: direct over total effects, and both by layer."""
        from igap.analyses.direct_effect.plots import direct_scatter

        return {"direct_effect": direct_scatter(finding, title=title)}
