"""The figures that values draw by themselves (`plot`): those of a run, by the same functions."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from igap import plots
from igap.analyses.ablation.results import Ablations
from igap.analyses.curves.curves import OutputCurves
from igap.analyses.sets.results import SetEffects
from igap.attribution.maps import AttributionMap
from igap.errors import InputError, did_you_mean, printable, short_repr
from igap.output import record
from igap.output.figures import figures, has_figures, site_figures
from igap.statistics.comparison import Comparison
from igap.statistics.units import comparable_values, unit_of, values_in

_DPI = 100
"""Of a picture in a notebook, which is stored in it; a run's own have more."""


def draw(name: str, *values: Any) -> Axes:
    """Return the (first) axes of a figure by its name in `DRAWINGS`; a notebook shows them as the whole figure."""
    figure = DRAWINGS[name](*values)
    FigureCanvasAgg(figure)  # what `figure.savefig` draws on; without pyplot nothing has to be closed
    axes = figure.axes[0]

    def png() -> bytes:
        # Drawn when it is shown, so that it has what was set on the axes since.
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi=_DPI)
        return data.getvalue()

    setattr(axes, "_repr_png_", png)  # noqa: B010 - IPython's protocol, which matplotlib leaves to pyplot
    return axes


def _map(attribution: AttributionMap) -> Figure:
    unit = unit_of(attribution)
    return plots.map_heatmap(
        values_in(unit, attribution),
        site=attribution.site,
        method=attribution.method.upper(),
        unit=("mean " if attribution.pairs else "") + attribution.label,
        title=_title(attribution),
        spans=attribution.spans,
    )


def _comparison(comparison: Comparison, name: str) -> Figure:
    first, second = comparison.get_maps()
    title = _title(first) if first.gap == second.gap else f"{first.topic}{first.place}"
    if name == "jaccard":
        return plots.jaccard_curve({first.site: comparison}, title=title)
    _, *values = comparable_values(first, second)
    methods = tuple(method.upper() for method in comparison.methods)
    shown: dict[str, Any] = {"unit": comparison.label, "title": title, "methods": methods, "spans": first.spans}
    draws = site_figures(first.site, comparison, *values, **shown)
    return draws[name]()


def _title(attribution: AttributionMap) -> str:
    direction = "" if attribution.direction is None else f", {attribution.direction}"
    gap = f"{'mean ' if attribution.pairs else ''}gap {attribution.gap:.3f} {attribution.unit}"
    return f"{attribution.topic}{attribution.place}{direction}, {gap}"


def _curves(curves: OutputCurves) -> Figure:
    from igap.analyses.curves.plots import output_curves

    return output_curves(curves, title=f"output curves, {curves.direction}")


def _ablations(ablations: Ablations) -> Figure:
    from igap.analyses.ablation.plots import accuracy_bars

    return accuracy_bars(ablations, title=f"{ablations.kind} ablation, {ablations.n_prompts} prompts")


def _set(effects: SetEffects) -> Figure:
    from igap.analyses.sets.plots import set_bars

    return set_bars({effects.name: effects}, title=f"effects of a set, {effects.direction}")


def _record(folder: Path, name: str) -> Figure:
    """A figure of a run by its file's name, from the run's record."""
    try:
        draws = figures(record.read(folder).data)
    except ValueError as error:
        raise InputError(
            f"folder: {printable(folder / record.FILE)} cannot be read ({error}); runs of an older igap have none. "
            "Run it again."
        ) from error
    made = dict(draws.pop(name)()) if name in draws and not has_figures(name) else {}
    if not made:  # one of an analysis, whose figures are made together
        made = {each: drawn for group in filter(has_figures, draws) for each, drawn in draws[group]().items()}
    if name not in made:
        known = [*(group for group in draws if not has_figures(group)), *made]
        raise InputError(f"name: got {short_repr(name)}, wanted one of {', '.join(known)}.{did_you_mean(name, known)}")
    return made[name]


DRAWINGS: Mapping[str, Callable[..., Figure]] = {
    "map": _map,
    "comparison": _comparison,
    "curves": _curves,
    "ablations": _ablations,
    "set": _set,
    "record": _record,
}
