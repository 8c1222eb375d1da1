"""The analysis `self_repair`: AP of every component when a chosen one is patched already."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field, field_validator

from igap.analyses.base import Analysis, RunContext, check_site, least_on_clean, settings_of
from igap.analyses.self_repair.repair import SelfRepair, repair_of
from igap.attribution.maps import Progress
from igap.components import Site, locate, parse_component
from igap.config import Frozen, RunConfig
from igap.engine.positions import split_place
from igap.inputs.prompts import TokenPair
from igap.models.load import Header

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Settings(Frozen):
    """What may be set at `analyses.self_repair`."""

    patched: Annotated[str, Field(min_length=1, max_length=140)] = Field("strongest", examples=["'9.6'"])
    """strongest, or a component, by positions at one of them."""
    site: Site = "heads"

    @field_validator("patched", mode="before")
    @classmethod
    def _no_number(cls, patched: object) -> object:
        if isinstance(patched, float):  # Hydra's grammar knows no text here, and 9.10 would be head 9.1
            raise ValueError("a head in quotes, \"'9.6'\": without them it is a number")
        return patched


class SelfRepairAnalysis(Analysis[SelfRepair]):
    """What the other components do when one is patched; `analyses=self_repair` asks for it."""

    name = "self_repair"
    any_metric = True
    any_positions = True

    def misfit(self, config: RunConfig) -> str:
        """Return why not: a metric of which everything would be a backup."""
        return super().misfit(config) or (least_on_clean(config) if config.direction == "noising" else "")

    settings = Settings

    def check(self, config: RunConfig, header: Header) -> Mapping[str, str]:
        """Refuse a component that the model does not have, and sites that the run does not attribute to."""
        if self.is_requested(config):
            asked = settings_of(config, self.name, Settings)
            check_site(config, self.name, asked.site)
            if asked.patched != "strongest":
                item = f"analyses.{self.name}.patched"
                site, *_ = locate(asked.patched.partition("@")[0], header.n_layers, header.widths, item=item)
                check_site(config, self.name, site, item=item)
        return {}

    def check_pairs(self, config: RunConfig, tokens: Sequence[TokenPair]) -> None:
        """Refuse a component at a position that the run's maps do not have."""
        patched = settings_of(config, self.name, Settings).patched
        if patched != "strongest":
            item = f"analyses.{self.name}.patched"
            split_place(patched, config.positions.value, tokens[0], config.direction, item=item)

    def run(self, context: RunContext, on_progress: Progress | None) -> SelfRepair:
        """Return AP beside the patched component, by default the one with the largest |AP| of the site."""
        config = context.config
        asked = settings_of(config, self.name, Settings)
        ap = context.maps[asked.site]["ap"]
        if asked.patched == "strongest":
            layer, *spans, index = map(int, np.unravel_index(int(ap.effect.abs().argmax()), ap.effect.shape))
            place, span = (asked.site, layer, index), sum(spans)
        else:
            tokens, item = context.opened.tokens[0], f"analyses.{self.name}.patched"
            patched, span = split_place(asked.patched, config.positions.value, tokens, config.direction, item=item)
            place = parse_component(patched)
        return repair_of(
            context.opened,
            place,
            span,
            ap,
            direction=config.direction,
            positions=config.positions.value,
            batch_size=config.batch_size,
            memory_gib=config.memory_gib,
            on_progress=on_progress,
        )

    def figures(self, finding: SelfRepair, title: str) -> "Mapping[str, Figure]":
        """Draw `self_repair`: AP with the component patched over AP without."""
        from igap.analyses.self_repair.plots import repair_scatter

        return {"self_repair": repair_scatter(finding, title=title)}
