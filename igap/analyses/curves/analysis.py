"""The analysis `curves`: F along the paths of a few chosen heads, or of the components that the run names."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from igap.analyses.base import Analysis, RunContext
from igap.analyses.curves.curves import DEFAULT_ALPHAS, OutputCurves, trace_curves
from igap.analyses.named_components import check_named, name_of
from igap.attribution.maps import Progress
from igap.components import component_names
from igap.config import RunConfig
from igap.models.load import Header

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_OUTLIERS = 8


class OutputCurvesAnalysis(Analysis[OutputCurves]):
    """How F changes on the way of single components to the baseline; `curves.components=none` leaves it out."""

    name = "curves"
    any_metric = True

    def is_requested(self, config: RunConfig) -> bool:
        """Return whether `curves.components` names components, or heads are there to choose from."""
        components = config.curves.components
        return components != "none" and (components != "default" or "heads" in config.asked_sites)

    def misfit(self, config: RunConfig) -> str:
        """Return of what heads that the run chooses are: of maps without an axis of positions."""
        chosen = config.curves.components == "default" or "top" in config.curves.components
        if not (chosen and config.positions.has_axis):
            return ""
        return f"of heads chosen at positions that move together, not of positions={config.positions.kind}"

    def automatic(self, config: RunConfig) -> bool:
        """Return whether the run chooses the heads itself."""
        return config.curves.components == "default"

    def check(self, config: RunConfig, header: Header) -> Mapping[str, str]:
        """Refuse components in `curves.components` that the model does not have."""
        if config.curves.components not in ("default", "none"):
            check_named(config.curves.components.split(), config, header, item="curves.components")
        return {}

    def run(self, context: RunContext, on_progress: Progress | None) -> OutputCurves:  # noqa: ARG002 - no progress
        """Return the curves that the run asks for, along the path to its baseline."""
        config, asked = context.config, context.config.curves
        chosen, left_out = select_components(context) if asked.components == "default" else ({}, 0)
        curves = trace_curves(
            context.opened,
            list(chosen) or [name_of(text, context.maps) for text in asked.components.split()],
            DEFAULT_ALPHAS if asked.alphas is None else asked.alphas,
            baseline=context.baseline,
            direction=config.direction,
            positions=config.positions.value,
            batch_size=config.batch_size,
            memory_gib=config.memory_gib,
        )
        return replace(curves, roles=tuple(chosen.values()), left_out=left_out)

    def figures(self, finding: OutputCurves, title: str) -> "Mapping[str, Figure]":
        """Draw `output_curves`, a panel a component."""
        from igap.analyses.curves.plots import output_curves

        return {"output_curves": output_curves(finding, title=title)}


def select_components(context: RunContext) -> tuple[dict[str, str], int]:
    """Return the heads that are worth a curve, name to role, and the number of outliers left out.

    Outliers: the 8 with the largest |AP - IG|. Agreeing: of the rest, the 2 with the largest
    min(|AP|, |IG|) - |AP - IG|. Null: of the rest, the 2 with the smallest max(|AP|, |IG|).
    """
    outliers = context.outliers("heads")
    ig, ap = (context.values("heads", method) for method in ("ig", "ap"))
    names = component_names("heads", *ap.shape)
    chosen = dict.fromkeys(outliers[:_MOST_OUTLIERS], "outlier")
    size = np.abs(np.stack([ig, ap])).reshape(2, -1)
    for role, rank in (
        ("agreeing", size.min(0) - np.abs(ap - ig).ravel()),
        ("null", -size.max(0)),
    ):
        rest = [i for i in np.argsort(-rank, kind="stable") if names[i] not in outliers and names[i] not in chosen]
        chosen |= dict.fromkeys((names[i] for i in rest[:2]), role)
    return chosen, max(0, len(outliers) - _MOST_OUTLIERS)
