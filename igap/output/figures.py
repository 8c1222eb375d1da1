"""Which figures a run has: the plots of `igap.plots`, fed from its result."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from igap import plots
from igap.analyses.registry import ANALYSES
from igap.components import Site, component_names
from igap.inputs.sources import describe
from igap.pipeline import Result
from igap.statistics.units import LABELS, values_in
from igap.statistics.warnings import DELTA_TOLERANCE

Draw = Callable[[], Mapping[str, plots.Figure]]
"""Gives figures by file name (no suffix)."""


def drawn(result: Result) -> dict[str, plots.Figure]:
    """All figures of the run by file name (no suffix)."""
    return {name: figure for draw in figures(result).values() for name, figure in draw().items()}


def figures(result: Result) -> dict[str, Draw]:
    """What draws the run's figures: each by its file name, those of a finding together by the finding's."""
    whole = _title(result)
    found: dict[str, Draw] = {}

    def add(name: str, draw: Callable[..., plots.Figure], *values: Any, **options: Any) -> None:
        found[name] = lambda: {name: draw(*values, **options)}

    for site in result.maps:
        title, unit = f"{site} of {whole}", _unit(result, site)
        ig, ap = _values(result, site, "ig"), _values(result, site, "ap")
        comparison = result.comparisons[site]
        names = component_names(site, *ig.shape)
        heatmaps = plots.head_heatmaps if site == "heads" else plots.neuron_heatmaps
        add(f"{site}_heatmap", heatmaps, ig, ap, unit=unit, title=title)
        outliers = comparison.outlier_abs
        points: dict[str, Any] = {"names": names, "comparison": comparison, "unit": unit, "title": title}
        add(f"{site}_scatter", plots.scatter, ig, ap, outliers=outliers, **points)
        add(f"{site}_mean_difference", plots.mean_difference, ig, ap, **points)
        add(f"{site}_difference", plots.difference_heatmaps, ig, ap, site=site, unit=unit, title=title)
    for name, analysis in ANALYSES.items():
        if name in result.findings:
            found[name] = partial(analysis.figures, result.findings[name], whole)
    add("jaccard", plots.jaccard_curve, {str(site): it for site, it in result.comparisons.items()}, title=whole)
    add(
        "convergence_delta",
        plots.convergence_delta,
        {site: _by_layer(result, site, "delta") for site in result.maps},
        {site: _by_layer(result, site, "layer_effect") for site in result.maps},
        tolerance=DELTA_TOLERANCE,
        title=whole + ("\nof each layer the pair with the largest |delta|" if result.spread else ""),
    )
    return found


def _values(result: Result, site: Site, method: str) -> NDArray[np.float64]:
    """A map in the unit of its comparison."""
    return values_in(result.comparisons[site].unit, result.maps[site][method])


def _unit(result: Result, site: Site) -> str:
    return ("mean " if result.spread else "") + LABELS[result.comparisons[site].unit]


def _by_layer(result: Result, site: Site, name: str) -> NDArray[np.float64]:
    tensor = getattr(result.maps[site]["ig"], name)
    return np.asarray(tensor.double().numpy())


def _title(result: Result) -> str:
    config, mean, pairs = result.config, "", ""
    if result.spread:
        mean, pairs = "mean ", f"means over {describe(config.prompts, len(result.pairs))}\n"
    return (
        f"{config.model.short_name}, {config.direction}, {mean}gap {result.gap:.3f} logits\n{pairs}"
        f"IG: {config.baseline.kind} baseline, {config.ig.path} path, {config.ig.n_steps} steps"
    )
