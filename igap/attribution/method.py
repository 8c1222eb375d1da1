"""What a run knows of an attribution method."""

from collections.abc import Callable
from dataclasses import dataclass

from igap.attribution.maps import Advance, AttributionMap, Progress
from igap.components import Site
from igap.config import RunConfig
from igap.engine.contrast import Contrast
from igap.engine.open_pairs import OpenPairs


@dataclass(frozen=True)
class Method:
    """One attribution method of a run: a column beside the others."""

    name: str
    """Its name in files: `NAME.SITE` and `effect.NAME.SITE` in attributions.safetensors, a column NAME in tables."""
    attribute: Callable[[Contrast, Site, RunConfig, Advance], list[AttributionMap]]
    """The map of each pair of an open contrast, with the run's settings; calls back with the components done."""
    of_all: Callable[[OpenPairs, Site, RunConfig, Progress | None], AttributionMap | None] = lambda *_: None
    """The map of all pairs, with the run's settings, where it is not made contrast by contrast; None where it is."""
    towards_baseline: bool = False
    """Whether activations move to the run's baseline, as for IG; otherwise to the corrupted ones, as for AP."""
    shared: bool = False
    """Whether the maps depend on pairs, site and direction only, so that jobs of a sweep compute them once."""
    signed: bool = True
    """Whether effects have a sign; if not they are magnitudes and compared with |AP|."""
    asked: Callable[[RunConfig], bool] = lambda config: True  # noqa: ARG005 - a run's settings, which may not matter
    """Whether a run with these settings wants it."""
    missing: Callable[[RunConfig, Site, int], str] = lambda config, site, n_layers: ""  # noqa: ARG005 - may not matter
    """Why a run with these settings has no such map of the site of a model of so many layers; empty where it has."""
