"""The analysis `direct_effect`: the direct effect of every component beside AP."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from igap.analyses.base import Analysis, RunContext, check_site, settings_of
from igap.analyses.direct_effect.effects import DirectEffects, Writer, direct_effects, read_spans
from igap.attribution.maps import Progress
from igap.config import Frozen, RunConfig
from igap.engine.backend import no_weights
from igap.errors import InputError
from igap.inputs.prompts import TokenPair
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
    any_positions = True
    settings = Settings

    def check(self, config: RunConfig, header: Header) -> Mapping[str, str]:
        """Refuse a site that the run does not attribute to, and models whose F is not computed from their weights."""
        if self.is_requested(config):
            check_site(config, self.name, settings_of(config, self.name, Settings).site)
            if reason := no_weights(config, header):
                raise InputError(
                    f"analyses: got direct_effect of model.name={config.model.name}, wanted a model whose blocks the "
                    f"engine computes from their weights: {reason}. Leave direct_effect out, or use another model."
                )
        return {}

    def check_pairs(self, config: RunConfig, tokens: Sequence[TokenPair]) -> None:
        """Refuse positions none of which F is read at."""
        read_spans(config.positions.value, tokens, config.direction, item="analyses.direct_effect")

    def run(self, context: RunContext, on_progress: Progress | None) -> DirectEffects:
        """Return the direct effects of the run's pairs beside the AP that the run has."""
        config = context.config
        site = settings_of(config, self.name, Settings).site
        return direct_effects(
            context.opened,
            context.maps[site]["ap"],
            direction=config.direction,
            positions=config.positions.value,
            batch_size=config.batch_size,
            memory_gib=config.memory_gib,
            on_progress=on_progress,
        )

    def figures(self, finding: DirectEffects, title: str) -> "Mapping[str, Figure]":
        """Draw `direct_effect`: direct over total effects, and both by layer."""
        from igap.analyses.direct_effect.plots import direct_scatter

        return {"direct_effect": direct_scatter(finding, title=title)}
