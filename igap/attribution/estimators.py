"""The estimators of activation patching: every other method, with what its activations move to."""

from collections.abc import Sequence
from dataclasses import dataclass

from igap.attribution.maps import AttributionMap, ignore
from igap.attribution.method import Method
from igap.attribution.methods import METHODS
from igap.components import Site
from igap.config import RunConfig, parse
from igap.engine.contrast import Contrast
from igap.vocabulary import BaselineKind


@dataclass(frozen=True)
class Estimator:
    """An attribution method, and what its activations move to."""

    method: Method
    baseline: BaselineKind

    @property
    def name(self) -> str:
        """As `ig`, or `ig_zero` with the zero baseline."""
        return self.method.name if self.baseline == "corrupted" else f"{self.method.name}_{self.baseline}"

    @property
    def config(self) -> RunConfig:
        """The settings of a run that has nothing but defaults."""
        needed = ("model", "prompts", "ig", "ablation", "curves", "tracking")
        prompts = dict.fromkeys(("clean", "corrupted", "answer", "distractor"), "-")
        about = {"model": {"name": "-"}, "prompts": prompts, "baseline": {"kind": self.baseline}}
        return parse({**{name: {} for name in needed}, **about})

    def attribute(
        self, contrast: Contrast, site: Site, config: RunConfig, layers: Sequence[int]
    ) -> list[AttributionMap]:
        """The map of each question of a contrast with its baseline, by these settings; right in these layers."""
        if self.method.of_layers is not None:
            return self.method.of_layers(contrast, site, config, layers)
        return self.method.attribute(contrast, site, config, ignore)


def estimators() -> dict[str, Estimator]:
    """Every method of a run by name; those that move to the run's baseline a second time, with zero.

    Not those that draw prompts: they say something of a pair and of others beside it.
    """
    each = [
        Estimator(method, kind)
        for method in METHODS.values()
        if not method.draws_prompts
        for kind in (("corrupted", "zero") if method.towards_baseline else ("corrupted",))
    ]
    return {estimator.name: estimator for estimator in each}
