"""The analysis `circuit`: `model.circuit=ioi` asks for it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from igap.analyses.base import Analysis, RunContext
from igap.analyses.circuit.recovery import CircuitRecovery, check_shape, recover
from igap.attribution.maps import Progress
from igap.config import RunConfig
from igap.models.load import Header

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class CircuitRecoveryAnalysis(Analysis[CircuitRecovery]):
    """Which heads of a published circuit each method ranks first."""

    name = "circuit"
    any_metric = True

    def is_requested(self, config: RunConfig) -> bool:
        """Return whether the config names a circuit, and heads are attributed to."""
        return config.model.circuit is not None and "heads" in config.asked_sites

    def automatic(self, config: RunConfig) -> bool:  # noqa: ARG002 - whatever the config
        """Return True: every run does it that can."""
        return True

    def check(self, config: RunConfig, header: Header) -> Mapping[str, str]:
        """Refuse a model of another shape than the circuit's."""
        if config.model.circuit is not None:
            check_shape(header.n_layers, header.n_heads)
        return {}

    def run(self, context: RunContext, on_progress: Progress | None) -> CircuitRecovery:  # noqa: ARG002 - no progress
        """Return how well each method's map of heads finds the circuit."""
        return recover(context.maps["heads"].values())

    def figures(self, finding: CircuitRecovery, title: str) -> "Mapping[str, Figure]":
        """Draw `circuit`: recall and precision, of all 26 heads."""
        from igap.analyses.circuit.plots import recovery_curves

        return {"circuit": recovery_curves(finding.of("all"), title=title)}
