"""What an analysis is, what it starts from (`RunContext`) and what it leaves (`Finding`).

An analysis is something a run does after it has compared IG and AP. It lives in a module or a folder of its own and
stands in one line of `registry`; the pipeline checks, runs and draws whatever is listed there. How to add one:
`docs/extending/analysis.md`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np
import pandas as pd
from jaxtyping import Float64
from pydantic import create_model
from transformer_lens.model_bridge import TransformerBridge

from igap.attribution.maps import AttributionMap, Progress
from igap.components import Site, setting_with
from igap.config import Frozen, RunConfig, validate_settings
from igap.engine.baselines import Baseline, baseline_of
from igap.engine.open_pairs import OpenPairs
from igap.errors import InputError
from igap.inputs.prompts import PromptPair, TokenPair
from igap.models.load import Header
from igap.statistics.comparison import Comparison
from igap.statistics.units import values_in
from igap.vocabulary import LEAST_ON_CLEAN

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@runtime_checkable
class Finding(Protocol):
    """What an analysis found out."""

    def summary(self) -> Mapping[str, float | int | str | None]:
        """Return flat names to numbers for summary.json; an undefined one is None, with its reason at NAME/reason."""
        ...

    def tables(self) -> Mapping[str, pd.DataFrame]:
        """Return tables by file name, without suffix."""
        ...

    def sentences(self) -> tuple[str, ...]:
        """Return what the terminal says, a line each."""
        ...


@runtime_checkable
class WithTexts(Protocol):
    """A finding that leaves files of its own beside its tables."""

    def texts(self) -> Mapping[str, str]:
        """Return texts by file name."""
        ...


FindingT = TypeVar("FindingT", bound=Finding)


def complete(finding: FindingT) -> FindingT:
    """Return the finding after computing all that it says, so that a mistake in that fails the analysis itself."""
    finding.summary(), finding.tables(), finding.sentences()
    return finding


@dataclass(frozen=True, eq=False)
class RunContext:
    """A run after IG and AP were compared: what every analysis starts from."""

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
        return baseline_of(self.config.baseline)

    def values(self, site: Site, method: str) -> Float64[np.ndarray, "layer *span component"]:
        """Return a map in the unit of its comparison: scores, or effects in logits where scores are missing."""
        return values_in(self.comparisons[site].unit, self.maps[site][method])

    def outliers(self, site: Site) -> list[str]:
        """Return the names of the components whose |AP - IG| is above 1.96 SD of all, farthest first."""
        return self.comparisons[site].outliers(site)


class Analysis(Protocol[FindingT]):
    """Something that a run does after the comparison; subclass it and write `name` and `run`, with `settings`.

    An analysis that has keys of its own in `RunConfig` has no `settings`, cannot be chosen by `analyses=`, and says
    itself when it `is_requested`.
    """

    name: ClassVar[str]
    """What its progress, seconds, failure and finding are listed under; letters, digits, underscores."""

    settings: ClassVar[type[Frozen] | None] = None
    """What may be set at `analyses.NAME`; a run that has such settings does the analysis."""

    any_metric: ClassVar[bool] = False
    """Whether it is about F, whatever metric that is, and says so; otherwise it is about the logit difference."""

    any_positions: ClassVar[bool] = False
    """Whether it is about components at the run's positions, whatever these are; otherwise at all of them at once."""

    def is_requested(self, config: RunConfig) -> bool:
        """Return whether a run of this config does the analysis: by default, whether its name is in `analyses`."""
        return self.name in config.analyses

    def misfit(self, config: RunConfig) -> str:
        """Return what the analysis is about if that is not this config's metric and positions; empty if it fits.

        One that a run does by itself (`automatic`) is left out then, with a warning; one that was asked for is refused.
        """
        if not self.any_metric and not config.metric.is_default:
            return f"of the logit difference, not of metric={config.metric.name}"
        if not (self.any_positions or config.positions.is_default):
            return f"of all positions at once, not of positions={config.positions.kind}"
        return ""

    def automatic(self, config: RunConfig) -> bool:  # noqa: ARG002 - the interface
        """Return whether a run does the analysis without having been told to."""
        return False

    def check(self, config: RunConfig, header: Header) -> Mapping[str, str]:  # noqa: ARG002 - the interface
        """Refuse before the weights load what the model cannot do; every run calls it, whether it asks or not.

        Returns:
            Hashes, by a name of the analysis' own, of what the config only names (a file's content): part of the key.

        Raises:
            InputError: One line with the key, what it got, what was wanted and a remedy.
        """
        return {}

    def check_pairs(self, config: RunConfig, tokens: Sequence[TokenPair]) -> None:  # noqa: ARG002 - the interface
        """Refuse before the weights load what these pairs cannot have; called where the run does the analysis.

        Raises:
            InputError: One line with the key, what it got, what was wanted and a remedy.
        """
        return

    def run(self, context: RunContext, on_progress: Progress | None) -> FindingT:
        """Return what there is to find out; `on_progress(done, total)` moves the bar on the terminal."""
        ...

    def figures(self, finding: FindingT, title: str) -> "Mapping[str, Figure]":  # noqa: ARG002 - the interface
        """Return figures by file name, without suffix; `title` says what run it is. Import matplotlib in here only."""
        return {}


SettingsT = TypeVar("SettingsT", bound=Frozen)


def settings_of(config: RunConfig, name: str, schema: type[SettingsT]) -> SettingsT:
    """Return what `analyses.NAME` says, checked.

    Raises:
        InputError: One line a mistake, under the dotted key as it is typed.
    """
    fields: dict[str, Any] = {name: (schema, ...)}
    within: Any = create_model("Analyses", __base__=Frozen, **fields)
    whole: Any = create_model("RunConfig", __base__=Frozen, analyses=(within, ...))
    settings: SettingsT = getattr(validate_settings(whole, {"analyses": {name: config.analyses[name]}}).analyses, name)
    return settings


def least_on_clean(config: RunConfig) -> str:
    """Return what an analysis of two moves is of, where F is least on the clean prompt; empty where it is not."""
    if config.metric.name not in LEAST_ON_CLEAN:
        return ""
    return "of metrics that are not least on the clean prompt, where the second of any two moves counts more"


def check_site(config: RunConfig, name: str, site: Site, *, item: str = "") -> None:
    """Raise InputError where the site that an analysis is asked about, by `site` or `item`, is none of the run's."""
    if site not in config.asked_sites:
        item = item or f"analyses.{name}.site"
        raise InputError(
            f"{item}: got {site} with sites={config.sites}, wanted a site of the run. Set "
            f"sites={setting_with(config.asked_sites, site)}, or another one."
        )
