"""What a follow-up of the comparison starts from, and what it leaves: numbers, tables and sentences.

A follow-up is one function from `Compared` to a `Finding`; `pipeline` calls them in order. Their figures are drawn in
`figures`, from the finding alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd
from jaxtyping import Float64
from transformer_lens.model_bridge import TransformerBridge

from igap.attribution.maps import AttributionMap
from igap.components import Site
from igap.config import RunConfig
from igap.engine.baselines import Baseline, configured
from igap.engine.contrast import OpenPairs
from igap.inputs.prompts import PromptPair
from igap.statistics.comparison import Comparison


@runtime_checkable
class Finding(Protocol):
    """What a follow-up found out."""

    def summary(self) -> Mapping[str, float | int | str | None]:
        """Flat names to numbers for summary.json; a number that is not defined is None, its reason at NAME/reason."""
        ...

    def tables(self) -> Mapping[str, pd.DataFrame]:
        """Tables by file name, without suffix."""
        ...

    def sentences(self) -> tuple[str, ...]:
        """What the terminal says of it, a line each."""
        ...


def complete(finding: Finding) -> Finding:
    """The finding, once all that it says has been computed: a mistake in that is its own, and not of who asks later."""
    finding.summary(), finding.tables(), finding.sentences()
    return finding


@dataclass(frozen=True, eq=False)
class Compared:
    """A run after IG and AP were compared."""

    config: RunConfig
    opened: OpenPairs
    """The run's pairs and model, and the contrasts that are open already."""
    maps: Mapping[Site, Mapping[str, AttributionMap]]
    """By site, then method: those of `attribution.methods` that the model has. Of several pairs the mean."""
    comparisons: Mapping[Site, Comparison]

    @property
    def model(self) -> TransformerBridge:
        """The run's model, frozen."""
        return self.opened.model

    @property
    def pairs(self) -> tuple[PromptPair, ...]:
        """The run's pairs."""
        return self.opened.pairs

    @property
    def baseline(self) -> Baseline:
        """The baseline that IG integrates towards."""
        return configured(self.config.baseline)

    def values(self, site: Site, method: str) -> Float64[np.ndarray, "layer component"]:
        """A map in the unit of its comparison: scores, or effects in logits where scores are missing."""
        found = self.maps[site][method]
        values = found.score if self.comparisons[site].unit == "score" else found.effect
        return np.asarray(values.double().numpy())

    def outliers(self, site: Site) -> list[str]:
        """Names of the components whose |AP - IG| is above 1.96 SD of all, farthest first."""
        return self.comparisons[site].outliers(site)
