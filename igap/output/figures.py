"""Which figures a run has, and how they are drawn: in a run, beside it, or later from its record.

`FigureData` is all that the figures show, without the model; `record` keeps it in the run's folder.
"""

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64

from igap.analyses.base import Analysis
from igap.analyses.registry import ANALYSES
from igap.components import PLACES, Site, component_names
from igap.errors import InputError, did_you_mean
from igap.errors.failures import Failure, collect_failure
from igap.inputs.sources import describe_source
from igap.pipeline import Result
from igap.statistics.comparison import Comparison
from igap.statistics.units import label_of, values_in
from igap.statistics.warnings import DELTA_TOLERANCE
from igap.storage.atomic import write_atomically

if TYPE_CHECKING:
    from igap.plots import Figure

Draw = Callable[[], "Mapping[str, Figure]"]
"""Gives figures by file name, without suffix."""

FOLDER = "plots"
"""Its name in a run's folder; a figure that failed is named `plots/NAME`."""

_OF_SITES = ("heatmap", "scatter", "mean_difference", "difference")
_OF_RUNS = ("jaccard", "convergence_delta")


@dataclass(frozen=True, eq=False)
class SiteData:
    """What the figures of one site show."""

    unit: str
    """What an axis says of the numbers in `ig` and `ap`."""
    ig: Float64[np.ndarray, "layer *span component"]
    """IG, in the comparison's unit."""
    ap: Float64[np.ndarray, "layer *span component"]
    """AP, in the comparison's unit."""
    comparison: Comparison
    delta: Float64[np.ndarray, " layer"]
    """IG's completeness delta, in F's unit; of several pairs, the one farthest from 0."""
    layer_effect: Float64[np.ndarray, " layer"]
    """F(all of the site replaced) - F(x), in F's unit, of delta's pair."""
    spans: tuple[str, ...] | None = field(default=None, metadata={"later": True})
    """Names of the middle axis; None where there is none."""


@dataclass(frozen=True, eq=False)
class FigureData:
    """What the figures of one run show."""

    title: str
    several_pairs: bool
    sites: Mapping[Site, SiteData]
    findings: Mapping[str, Any]
    """The findings whose analyses have figures, by the names of `ANALYSES`."""
    metric_unit: str = "logits"
    """F's unit."""


def names() -> tuple[str, ...]:
    """Return what `plots` may name: a figure by its file, those of an analysis together by the analysis' name."""
    own = (f"{site}_{name}" for site in PLACES for name in _OF_SITES)
    return (*own, *_OF_RUNS, *filter(has_figures, ANALYSES))


def has_figures(analysis: str) -> bool:
    """Return whether an analysis draws something."""
    return analysis in ANALYSES and type(ANALYSES[analysis]).figures is not Analysis.figures


def finding_type(analysis: str) -> Any:
    """Return the class of an analysis' findings."""
    return inspect.get_annotations(type(ANALYSES[analysis]).run, eval_str=True)["return"]


def parse_names(plots: str, *, item: str = "plots") -> frozenset[str]:
    """Return the names that `all`, `none` or names with spaces between them stand for.

    Raises:
        InputError: A name is that of no figure and of no analysis with figures.
    """
    known = names()
    if plots in ("all", "none"):
        return frozenset(known if plots == "all" else ())
    for name in plots.split():
        if name not in known:
            raise InputError(
                f"{item}: got {name!r}, wanted all, none, or names of {', '.join(known)}.{did_you_mean(name, known)}"
            )
    return frozenset(plots.split())


def figure_data(result: Result) -> FigureData:
    """Return what the run's figures show."""
    sites: dict[Site, SiteData] = {}
    for site, maps in result.maps.items():
        ig, comparison = maps["ig"], result.comparisons[site]
        assert ig.delta is not None
        assert ig.layer_effect is not None
        sites[site] = SiteData(
            unit=("mean " if result.spread else "") + label_of(comparison.unit, ig),
            spans=ig.spans,
            ig=values_in(comparison.unit, ig),
            ap=values_in(comparison.unit, maps["ap"]),
            comparison=comparison,
            delta=np.asarray(ig.delta.double().numpy()),
            layer_effect=np.asarray(ig.layer_effect.double().numpy()),
        )
    findings = {name: result.findings[name] for name in ANALYSES if name in result.findings and has_figures(name)}
    return FigureData(_title(result), result.spread is not None, sites, findings, result.unit)


def figures(data: FigureData) -> dict[str, Draw]:
    """Return what draws the figures: each by its file name, those of an analysis together by the analysis' name."""
    from igap import plots

    draws: dict[str, Draw] = {}

    def add(name: str, draw: "Callable[..., Figure]", *values: Any, **options: Any) -> None:
        draws[name] = lambda: {name: draw(*values, **options)}

    for site, of_site in data.sites.items():
        shown = (of_site.comparison, of_site.ig, of_site.ap)
        about: Any = {"spans": of_site.spans, "unit": of_site.unit, "title": f"{site} of {data.title}"}
        for name, draw in site_figures(site, *shown, **about).items():
            add(f"{site}_{name}", draw)
    for name, finding in data.findings.items():
        draws[name] = partial(ANALYSES[name].figures, finding, data.title)
    comparisons = {str(site): of_site.comparison for site, of_site in data.sites.items()}
    add("jaccard", plots.jaccard_curve, comparisons, title=data.title)
    add(
        "convergence_delta",
        plots.convergence_delta,
        {site: of_site.delta for site, of_site in data.sites.items()},
        {site: of_site.layer_effect for site, of_site in data.sites.items()},
        tolerance=DELTA_TOLERANCE,
        unit=data.metric_unit,
        title=data.title + ("\nof each layer the pair with the largest |delta|" if data.several_pairs else ""),
    )
    return draws


def site_figures(
    site: Site,
    comparison: Comparison,
    ig: Float64[np.ndarray, "layer *span component"],
    ap: Float64[np.ndarray, "layer *span component"],
    *,
    spans: Sequence[str] | None = None,
    **options: Any,
) -> "dict[str, Callable[[], Figure]]":
    """Return what draws the figures of one site by their names without the site's; options: unit, title, methods."""
    from igap import plots

    whole = partial(plots.head_heatmaps, site=site, spans=spans)
    heatmaps = plots.neuron_heatmaps if site == "neurons" and spans is None else whole
    names = component_names(site, ig.shape[0], ig.shape[-1], spans)
    points = {"comparison": comparison, "names": names, **options}
    return {
        "heatmap": partial(heatmaps, ig, ap, **options),
        "scatter": partial(plots.scatter, ig, ap, outliers=comparison.outlier_abs, **points),
        "mean_difference": partial(plots.mean_difference, ig, ap, **points),
        "difference": partial(plots.difference_heatmaps, ig, ap, site=site, spans=spans, **options),
    }


@dataclass(frozen=True)
class Drawn:
    """What became of a run's figures."""

    failures: Mapping[str, Failure]
    """`plots/NAME` to why a figure, or those of an analysis, could not be drawn or written."""
    seconds: float
    files: tuple[Path, ...] = ()
    """The files written, where this process wrote them."""


def draw(data: FigureData, folder: Path, wanted: frozenset[str]) -> Drawn:
    """Draw the figures with these names into the folder of a run; one that fails costs itself only."""
    from igap.plots import write_png

    started = time.perf_counter()
    failures: dict[str, Failure] = {}
    files: list[Path] = []
    for group, make in figures(data).items() if wanted else ():
        if group not in wanted:
            continue
        made: Mapping[str, Figure] = {}
        with collect_failure(f"{FOLDER}/{group}", failures):
            made = make()
        for name, figure in made.items():
            path = folder / FOLDER / f"{name}.png"
            with collect_failure(f"{FOLDER}/{name}", failures):
                write_atomically(path, partial(write_png, figure))
                files.append(path)
    return Drawn(failures, time.perf_counter() - started, tuple(files))


def _title(result: Result) -> str:
    config, mean, pairs = result.config, "", ""
    if result.spread:
        mean, pairs = "mean ", f"means over {describe_source(config.prompts, len(result.pairs))}\n"
    other = [] if config.metric.is_default else [f"F: {result.metric}"]
    other += [] if config.positions.is_default else [f"positions: {config.positions.kind}"]
    about = f"{'; '.join(other)}\n" if other else ""
    return (
        f"{config.model.short_name}, {config.direction}, {mean}gap {result.gap:.3f} {result.unit}\n{about}{pairs}"
        f"IG: {config.baseline.kind} baseline, {config.ig.path} path, {config.ig.n_steps} steps"
    )
