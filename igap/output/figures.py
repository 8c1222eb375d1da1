"""Which figures a run has: the plots of `igap.plots`, fed from its result."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from igap import plots
from igap.analyses.ablation.analysis import AblationStudy
from igap.analyses.explanation import Explanation
from igap.components import SITES, Site, component_names
from igap.inputs.sources import describe
from igap.pipeline import Result
from igap.statistics.warnings import DELTA_TOLERANCE

_MOST_OUTLIERS = 20


Draw = Callable[[], Mapping[str, plots.Figure]]
"""Gives figures by file name (no suffix)."""


def drawn(result: Result) -> dict[str, plots.Figure]:
    """All figures of the run by file name (no suffix)."""
    return {name: figure for draw in figures(result).values() for name, figure in draw().items()}


def figures(result: Result) -> dict[str, Draw]:
    """What draws the run's figures: each by its file name, those of a finding together by the finding's."""
    whole, unit = _title(result), _unit(result)
    found: dict[str, Draw] = {}

    def add(name: str, draw: Callable[..., plots.Figure], *values: Any, **options: Any) -> None:
        found[name] = lambda: {name: draw(*values, **options)}

    for site in result.maps:
        title = f"{site} of {whole}"
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
    for name, draw in _FINDINGS.items():
        if name in result.findings:
            found[name] = partial(draw, result.findings[name], whole)
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


_FINDINGS: Mapping[str, Callable[[Any, str], Mapping[str, plots.Figure]]] = {
    "circuit": lambda found, title: {"circuit": plots.circuit_retrieval(found.of("all"), title=title)},
    "explain": lambda found, title: _explained(found, title),
    "ablation": lambda found, title: _ablated(found, title),
    "curves": lambda found, title: {"output_curves": plots.output_curves(found, title=title)},
    "faithfulness": lambda found, title: {
        f"faithfulness_{site}": plots.faithfulness_curves(sweeps, title=f"{site} of {title}")
        for site in SITES
        if (sweeps := [sweep for sweep in found.sweeps if sweep.site == site])
    },
}
"""Of each finding that has figures, by the names of `pipeline.FOLLOW_UPS`: its figures by file name, from the finding
and the run's title."""


def _ablated(found: AblationStudy, title: str) -> dict[str, plots.Figure]:
    """Of each kind the performance, and its change against the scores."""
    drawn = {}
    for kind, one in found.kinds.items():
        heading = f"{kind} ablation, {found.processing} weights, of {title}"
        drawn[f"ablation_{kind}"] = plots.performance_bars(one, title=heading)
        drawn[f"ablation_{kind}_scatter"] = plots.change_scatter(found, kind, title=heading)
    return drawn


def _explained(found: Explanation, title: str) -> dict[str, plots.Figure]:
    """The terms of the outliers, and the parts of one head's interaction where there is one."""
    unit = "score (effect / gap)" if found.unit == "score" else "effect (logits)"
    shown = found.of_outliers(_MOST_OUTLIERS)
    more = len(found.outliers) - len(shown)
    heading = f"heads of {title}" + (f"\nthe {len(shown)} farthest of {len(found.outliers)} outliers" if more else "")
    drawn = {"explanation": plots.explanation(shown, unit=unit, title=heading)}
    if found.split is not None:
        drawn["interactions"] = plots.interaction_parts(
            found.split.component,
            found.split.others,
            found.split.shares.tolist(),
            higher_order=found.higher_order,
            title=title,
        )
    return drawn


def _values(result: Result, site: Site, method: str) -> NDArray[np.float64]:
    """A map as scores, or as effects in logits where the gap is too small for scores."""
    found = result.maps[site][method]
    return (found.score if result.has_scores else found.effect).double().numpy()


def _unit(result: Result) -> str:
    mean = "mean " if result.spread else ""
    return mean + ("score (effect / gap)" if result.has_scores else "effect (logits)")


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
