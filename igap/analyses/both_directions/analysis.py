"""The analysis `both_directions`: IG and AP noising and denoising, classes of components, gates of the latent ones."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import Field

from igap.analyses.base import Analysis, RunContext, check_site, least_on_clean, settings_of
from igap.analyses.both_directions.directions import BothDirections, compare_directions
from igap.attribution.caching import cached_maps
from igap.attribution.maps import Advance, AttributionMap, Progress
from igap.attribution.methods import METHODS
from igap.attribution.over_pairs import attribute_pairs
from igap.components import Site
from igap.config import Frozen, RunConfig
from igap.engine.contrast import Contrast
from igap.models.load import Header
from igap.vocabulary import Direction

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Settings(Frozen):
    """What may be set at `analyses.both_directions`."""

    site: Site = "heads"
    high: float = Field(0.05, gt=0, le=1, examples=[0.05])
    most: int = Field(8, ge=0, le=100, examples=[8])


class BothDirectionsAnalysis(Analysis[BothDirections]):
    """IG and AP in both directions; `analyses=both_directions` asks for it."""

    name = "both_directions"
    any_metric = True
    any_positions = True

    def misfit(self, config: RunConfig) -> str:
        """Return why not: a metric of which everything would be an OR."""
        return super().misfit(config) or least_on_clean(config)

    settings = Settings

    def check(self, config: RunConfig, header: Header) -> Mapping[str, str]:  # noqa: ARG002 - the interface
        """Refuse a site that the run does not attribute to."""
        if self.is_requested(config):
            check_site(config, self.name, settings_of(config, self.name, Settings).site)
        return {}

    def run(self, context: RunContext, on_progress: Progress | None) -> BothDirections:
        """Return the maps of the run's pairs in both directions: those that the run has, and their mirrors."""
        config, opened = context.config, context.opened
        asked = settings_of(config, self.name, Settings)
        site, own = asked.site, config.direction
        other: Direction = "denoising" if own == "noising" else "noising"
        least = [each.min_gap for each in context.maps[site]["ap"].pairs or [context.maps[site]["ap"]]]

        about: Any = {"positions": config.positions.value, "named_in": own}

        def compute(name: str, direction: Direction) -> dict[str, AttributionMap]:
            def attribute(contrast: Contrast, advance: Advance) -> list[AttributionMap]:
                return METHODS[name].attribute(contrast, site, config, advance)

            return {name: attribute_pairs(attribute, opened, site, on_progress, direction=direction, **about)}

        here = {"ap": context.maps[site]["ap"]}
        here |= {"ig": context.maps[site]["ig"]} if config.baseline.kind == "corrupted" else compute("ig", own)
        there = compute("ig", other)
        mirrored = config.model_copy(update={"direction": other})
        # A run of the other direction names positions in its own prompt.
        kind = "ap" if config.positions.is_default else "mirrored_ap"
        there |= cached_maps(kind, site, mirrored, opened.tokens, least, partial(compute, "ap", other))
        noising, denoising = (here, there) if own == "noising" else (there, here)
        options: Any = {"batch_size": config.batch_size, "memory_gib": config.memory_gib, "on_progress": on_progress}
        return compare_directions(opened, noising, denoising, high=asked.high, most=asked.most, **about, **options)

    def figures(self, finding: BothDirections, title: str) -> "Mapping[str, Figure]":
        """Draw `both_directions`: denoising over noising, of AP and of IG."""
        from igap.analyses.both_directions.plots import directions_scatter

        return {"both_directions": directions_scatter(finding, title=title)}
