"""What a run knows of an attribution method."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from igap.attribution.maps import Advance, AttributionMap, Progress
from igap.components import Site
from igap.config import RunConfig
from igap.engine.baselines import Baseline, baseline_of
from igap.engine.contrast import Contrast
from igap.engine.open_pairs import OpenPairs
from igap.models.load import Header


@dataclass(frozen=True)
class Method:
    """One attribution method of a run: a column beside the others."""

    name: str
    """Its name in files: `NAME.SITE` and `effect.NAME.SITE` in attributions.safetensors, a column NAME in tables."""
    attribute: Callable[[Contrast, Site, RunConfig, Advance], list[AttributionMap]]
    """The map of each pair of an open contrast, with the run's settings; calls back with the components done."""
    of_layers: Callable[[Contrast, Site, RunConfig, Sequence[int]], list[AttributionMap]] | None = None
    """The same maps of some layers alone, NaN in others; None: that costs no less than all of them."""
    of_all: Callable[[OpenPairs, Site, RunConfig, Progress | None], AttributionMap | None] = lambda *_: None
    """The map of all pairs, with the run's settings, where it is not made contrast by contrast; None where it is."""
    towards_baseline: bool = False
    """Whether activations move to the run's baseline, as for IG; otherwise to the corrupted ones, as for AP."""
    shared: bool = False
    """Whether the maps depend on pairs, site and direction only, so that jobs of a sweep compute them once."""
    needs_weights: bool = False
    """Whether it is of models alone whose F is computed from their weights; see `Contrast.with_rules`."""
    signed: bool = True
    """Whether effects have a sign; if not they are magnitudes and compared with |AP|."""
    optional: bool = False
    """Whether only runs have it that name it in `methods`, or say `methods=all`."""
    check: Callable[[RunConfig, Header], None] = lambda config, header: None  # noqa: ARG005 - which may not matter
    """Raises InputError where a run with these settings, of this model, cannot have it."""
    draws_prompts: bool = False
    """Whether activations move to those of generated prompts of the pairs' length (`baseline.n`, `baseline.seed`): the
    contrast is that of their mean."""
    missing: Callable[[RunConfig, Site, int], str] = lambda config, site, n_layers: ""  # noqa: ARG005 - may not matter
    """Why a run with these settings has no such map of the site of a model of so many layers; empty where it has."""

    def baseline(self, config: RunConfig) -> Baseline:
        """What the contrast of a run with these settings moves activations to."""
        if self.draws_prompts:
            return Baseline("mean", n=config.baseline.n, seed=config.baseline.seed)
        return baseline_of(config.baseline) if self.towards_baseline else Baseline("corrupted")

    def is_requested(self, config: RunConfig) -> bool:
        """Whether a run with these settings has it."""
        return not self.optional or config.methods == "all" or self.name in config.methods.split()
