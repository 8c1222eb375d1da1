"""Agreement of two attribution maps of one site, component by component.

Pure functions: two arrays in, one `Comparison` out. Plots are in `plots/`.

Components of one model are not independent samples. Every interval here describes this set of components under the
usual formula, and no more: it says nothing about another model, another prompt pair, or a population of components.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from jaxtyping import Bool, Float64, Int64

from igap.attribution.maps import AttributionMap, frame_of
from igap.components import Site, component_names
from igap.display import markup
from igap.display.binding import Axes, draw
from igap.errors import InputError
from igap.errors.arguments import Range, checks_arguments
from igap.statistics.agreement import (
    ROUNDING,
    WIDTH,
    check_map,
    correlations,
    is_constant,
    limits_of_agreement,
    power_of_two,
    proportional_bias,
)
from igap.statistics.jaccard import curve_ks, expected_jaccard, find_shared_from, jaccard, undefined_reasons
from igap.statistics.units import LABELS, Unit, comparable_values, has_value, rounding_share

FigureName = Literal["scatter", "mean_difference", "heatmap", "difference", "jaccard"]
"""The figures of a comparison, by the names of a run's files."""

REPORTED_K = (10, 30)
"""The k whose Jaccard index `Comparison.summary` reports."""

SIGN_THRESHOLD = 1e-3
"""Share of the largest magnitude in either map from which on a sign counts; smaller values may be rounding."""


@checks_arguments
@dataclass(frozen=True, eq=False)
class Comparison:
    """Agreement of an IG (or other) map and an AP map of one site, as `compare` returns it.

    A statistic that is undefined is NaN, and `reasons` says why. Each field's unit and range stand beside it.

    Example:
        >>> comparison = compare(integrated_gradients(model, pair), activation_patching(model, pair))
        >>> comparison.n, comparison.summary()["n_outliers"], comparison.difference.shape
        (32, 4, (4, 8))
    """

    unit: Unit
    """Unit of the maps: `score` (effect / gap) or `logits` (effects)."""
    n: int
    """Components compared: layers x components a layer, or those that AP with `top` has patched."""
    pearson: float
    """Pearson r of the scores, [-1, 1]; the same if the maps are swapped."""
    pearson_low: float
    """Lower end of the 95% Fisher z interval of `pearson`, [-1, 1]. Needs n >= 4; equals r where |r| = 1."""
    pearson_high: float
    """Upper end of the same interval."""
    spearman: float
    """Spearman rank correlation of the scores (ties take their mean rank), [-1, 1]."""
    spearman_low: float
    """Lower end of its 95% Fisher z interval with standard error sqrt((1 + r^2/2) / (n - 3)), [-1, 1]."""
    spearman_high: float
    """Upper end of the same interval."""
    sign_agreement: float
    """Share of equal signs, [0, 1], among the components that have a sign worth comparing.

    Those are the ones that have in at least one map 1/1000 (`SIGN_THRESHOLD`) of the largest magnitude in either map or
    more: smaller ones may be rounding, and no reader cares for their sign. Zero against non-zero disagrees.
    """
    jaccard_k: Int64[np.ndarray, " k"]
    """Ascending k of the Jaccard curve: every k of 1..n up to n = 200, log-spaced with 10, 30 and n beyond."""
    jaccard: Float64[np.ndarray, " k"]
    """Jaccard index, [0, 1], of the k largest |scores| of each map. Always 1 at k = n: read it with the chance."""
    jaccard_chance: Float64[np.ndarray, " k"]
    """Expected Jaccard index, [0, 1], of two independent uniformly random k-subsets of the n components."""
    bias: float
    """Mean of AP - IG, in the unit of the maps."""
    sd: float
    """Standard deviation of AP - IG in the unit of the maps, >= 0, dividing by n (ddof=0) as the notebook does."""
    limits_low: float
    """Lower limit of agreement, bias - 1.96 sd, in the unit of the maps."""
    limits_high: float
    """Upper limit of agreement, bias + 1.96 sd, in the unit of the maps."""
    slope: float
    """Proportional bias: least-squares slope of AP - IG on their mean, no unit, any sign.

    0 if the difference does not grow with the score; above 0 if AP spreads wider than IG. Swapping the maps flips it.
    """
    slope_low: float
    """Lower end of the 95% Student t interval of `slope`. Needs n >= 4, as the other intervals do."""
    slope_high: float
    """Upper end of the same interval."""
    difference: Float64[np.ndarray, "layer *span component"]
    """AP - IG, in the unit of the maps; NaN of what was not compared."""
    outlier_abs: Bool[np.ndarray, "layer *span component"]
    """The notebook's rule: |difference| > 1.96 SD (ddof=0) of |difference|, not centred on its mean.

    Where all |differences| are equal up to rounding no component stands out, and none is an outlier.
    """
    outlier_limits: Bool[np.ndarray, "layer *span component"]
    """Bland and Altman's rule: difference outside the limits. None where all differences are equal up to rounding."""
    shared_from: Int64[np.ndarray, " n"]
    """Ascending, each component once: the smallest k, 1..n, at which it is in the top k of both maps."""
    n_nonzero: int
    """Non-zero components in the map that has fewer of them, 0..n: the largest k with a defined top k in both maps."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Statistic -> why it is NaN, by the names of `summary`; `jaccard@k` for every k of `jaccard_k` and for 10, 30."""
    maps: tuple[AttributionMap, AttributionMap] | None = field(default=None, metadata={"saved": False})
    """The two maps compared, first and second; None where arrays were."""

    @checks_arguments
    def jaccard_at(self, k: Annotated[int, Range(1)]) -> float:
        """Jaccard index, [0, 1], of the k largest |scores| of each map, for any k >= 1.

        Equal |scores| at the cut go to the lower index, row by row. NaN where the top k is undefined: k above n, or a
        map with fewer than k non-zero components (which of its zeros are on top would be an accident).
        """
        return float(jaccard(np.array([min(k, self.n + 1)]), self.shared_from, self.n_nonzero)[0])

    @checks_arguments
    def outliers(self, site: Site) -> list[str]:
        """Names of the components whose |AP - IG| is above 1.96 SD of all, farthest first; of maps of this site.

        Of maps with spans `9.6 at 10 Mary`. Raises InputError if the maps are of another site.
        """
        if self.maps is not None and site != self.maps[0].site:
            raise InputError(f"site: got {site}, wanted {self.maps[0].site}, of which the compared maps are.")
        n_layers, *_, width = self.difference.shape
        names = component_names(site, n_layers, width, self.spans)
        order = np.argsort(-np.abs(self.difference).ravel(), kind="stable")
        return [names[i] for i in order if self.outlier_abs.ravel()[i]]

    @property
    def methods(self) -> tuple[str, str]:
        """Names of the two maps: their methods, numbered where both have one."""
        first, second = ("ig", "ap") if self.maps is None else (each.method for each in self.maps)
        return (first, second) if first != second else (f"{first}_1", f"{second}_2")

    @property
    def spans(self) -> tuple[str, ...] | None:
        """Names of the positions compared, or spans; None where the maps have no such axis."""
        return None if self.maps is None else self.maps[0].spans

    @property
    def label(self) -> str:
        """What an axis says of the numbers compared: scores or effects, between bars where these are magnitudes."""
        of_pairs, signed, text = False, True, LABELS[self.unit]
        if self.maps is not None:
            of_pairs, signed = bool(self.maps[0].pairs), all(each.signed for each in self.maps)
            text = text.replace("logits", self.maps[0].unit)
        text = ("mean " if of_pairs else "") + text
        return text if signed else f"|{text}|"

    def to_frame(self) -> pd.DataFrame:
        """Return one row a component, by (layer, head) or (layer, neuron), with the columns of a run's `heads.csv`.

        `name`; each map's scores, no unit, and `effect_METHOD`, in logits; `difference`, second minus first, in `unit`;
        `outlier_abs` and `outlier_limits`. Raises InputError where arrays were compared.
        """
        frame = frame_of(dict(zip(self.methods, self.get_maps(), strict=True)))
        frame.insert(3, "difference", self.difference.ravel())
        return frame.assign(outlier_abs=self.outlier_abs.ravel(), outlier_limits=self.outlier_limits.ravel())

    @checks_arguments
    def plot(self, kind: FigureName = "scatter") -> Axes:
        """Return the axes of a figure that a run draws of its heads or neurons; a notebook shows it as a picture.

        `scatter` (default): one map against the other. `mean_difference`: Bland and Altman's plot. `heatmap`: both
        maps. `difference`: second minus first, of values and of magnitudes. `jaccard`: overlap of the k largest.
        Raises InputError on another name, and where arrays were compared.
        """
        self.get_maps()
        return draw("comparison", self, kind)

    def get_maps(self) -> tuple[AttributionMap, AttributionMap]:
        """Return the two maps. Raises InputError where arrays were compared."""
        if self.maps is None:
            raise InputError("comparison: got one of arrays, wanted one of maps. Make it with igap.compare(map, map).")
        return self.maps

    def __repr__(self) -> str:
        return f"Comparison({'; '.join(self._facts())})"

    def _repr_html_(self) -> str:
        site: Site = "heads" if self.maps is None else self.maps[0].site
        first, second = self.methods
        unit = f"{second} - {first}, {self.label}"
        heading, *lines = self._facts()
        cells = markup.heatmap(self.difference, site, unit=unit, spans=self.spans, marked=self.outlier_abs)
        return markup.block(heading, lines, cells)

    def _facts(self) -> list[str]:
        """What was compared, how far the maps agree, and the outliers, a line each."""
        first, second = self.methods
        shape = f"{list(self.difference.shape)}{'' if self.maps is None else self.maps[0].place}"
        site = "components" if self.maps is None else self.maps[0].topic
        numbers = self.summary()
        agreement = [
            f"{title} {numbers[name]:.3f} [{numbers[f'{name}_low']:.3f}, {numbers[f'{name}_high']:.3f}]"
            for title, name in (("Pearson r", "pearson"), ("Spearman", "spearman"))
        ]
        agreement.append(f"Jaccard@10 {numbers['jaccard@10']:.3f} (chance {numbers['jaccard_chance@10']:.3f})")
        n = int(self.outlier_abs.sum())
        named = [] if self.maps is None else self.outliers(self.maps[0].site)
        names = f": {', '.join(named[:8])}{', ...' if n > 8 else ''}" if named else ""
        shape += f", the {self.n:,} patched" if self.n < self.difference.size else ""
        return [
            f"{first} against {second}, {site} {shape}, as {self.label}",
            ", ".join(agreement),
            f"{n} outliers, |{second} - {first}| above 1.96 SD{names}",
        ]

    def summary(self) -> dict[str, float | int]:
        """Flat statistics by the names of `summary.json`, no site prefix; `n_outliers` is the notebook's rule."""
        flat: dict[str, float | int] = {"n_components": self.n}
        for name in ("pearson", "spearman", "slope"):
            for end in ("", "_low", "_high"):
                flat[name + end] = getattr(self, name + end)
        for name in ("sign_agreement", "bias", "limits_low", "limits_high"):
            flat[name] = getattr(self, name)
        for k in REPORTED_K:
            flat[f"jaccard@{k}"] = self.jaccard_at(k)
            flat[f"jaccard_chance@{k}"] = expected_jaccard(self.n, k)
        flat["n_outliers"] = int(self.outlier_abs.sum())
        flat["n_outliers_limits"] = int(self.outlier_limits.sum())
        return flat


def compare_values(
    ig: npt.ArrayLike,
    ap: npt.ArrayLike,
    *,
    unit: Unit = "score",
    names: tuple[str, str] = ("IG", "AP"),
    rounding: float = ROUNDING,
) -> Comparison:
    """Compare two `[layer, component]` arrays in one unit; every difference is second minus first, AP - IG.

    Degenerate maps give NaN and a reason, in which `names` are the maps. "Constant" means equal up to rounding: a range
    below `rounding` of the largest magnitude. Raises InputError on different shapes, on no component, and on NaN,
    infinity or a magnitude >= 1e150.
    """
    ig_map, ap_map = check_map("ig", ig), check_map("ap", ap)
    if ig_map.shape != ap_map.shape:
        raise InputError(
            f"ap has shape {ap_map.shape}, ig {ig_map.shape}; a comparison needs two maps of one site of one model. "
            "Pass maps of the same site and model."
        )
    x, y = ig_map.ravel(), ap_map.ravel()
    n = x.size
    scale = power_of_two(max(np.abs(x).max(), np.abs(y).max()))  # squares of tiny scores must not vanish
    difference, mean = y / scale - x / scale, (y / scale + x / scale) / 2

    reasons: dict[str, str] = {}
    pearson = correlations(x, y, names, reasons, rounding)
    limits = limits_of_agreement(difference, scale, reasons)
    slope = proportional_bias(mean, difference, names, reasons, rounding)
    larger = np.maximum(np.abs(x), np.abs(y)) / scale
    signed = (larger >= SIGN_THRESHOLD * larger.max()) & (larger > 0)
    if not signed.any():
        reasons["sign_agreement"] = "both maps are zero everywhere"
    both = find_shared_from(x, y)
    n_nonzero = int(min(np.count_nonzero(x), np.count_nonzero(y)))
    ks = curve_ks(n, REPORTED_K)
    reasons |= undefined_reasons({*ks.tolist(), *REPORTED_K}, n, n_nonzero)
    outside = np.abs(difference - difference.mean()) > WIDTH * difference.std()
    magnitude = np.abs(difference)
    large = magnitude > WIDTH * magnitude.std()
    return Comparison(
        unit=unit,
        n=n,
        **pearson,
        **limits,
        **slope,
        sign_agreement=float(np.mean(np.sign(x[signed]) == np.sign(y[signed]))) if signed.any() else float("nan"),
        jaccard_k=ks,
        jaccard=jaccard(ks, both, n_nonzero),
        jaccard_chance=np.array([expected_jaccard(n, k) for k in ks.tolist()]),
        difference=(difference * scale).reshape(ig_map.shape),
        outlier_abs=(large & (not is_constant(magnitude, 1.0, rounding))).reshape(ig_map.shape),
        outlier_limits=(outside & (not is_constant(difference, 1.0, rounding))).reshape(ig_map.shape),
        shared_from=both,
        n_nonzero=n_nonzero,
        reasons=reasons,
        maps=None,
    )


@checks_arguments
def compare(ig: AttributionMap, ap: AttributionMap) -> Comparison:
    """Compare two attribution maps of one site and the same positions, component by component.

    Args:
        ig: The first map, of any method, `[layer, component]` or `[layer, span, component]`: then each component at
            each position or span counts as one.
        ap: The map it is compared with. Every difference is `ap` minus `ig`.

    Returns:
        The statistics, of scores (effect / gap) if both maps have them, else of effects; `unit` says which. With a map
        of `activation_patching(top=...)` those of the components that were patched.
        If one of the maps has no sign (AtP*), magnitudes are compared.

    Raises:
        InputError: The maps are of different sites, positions, metrics or shapes, or hold values that are not finite.

    Example:
        >>> comparison = compare(integrated_gradients(model, pair), activation_patching(model, pair))
        >>> comparison.unit, round(comparison.pearson, 3), round(comparison.jaccard_at(10), 3)
        ('score', 0.957, 0.818)

    Source: Bland & Altman 1986 (limits of agreement), Fisher 1921 and Bonett & Wright 2000 (intervals).
    """
    unit, *values = comparable_values(ig, ap)
    known = has_value(ig) & has_value(ap)
    flat = [each[known][None] for each in values]
    names = (ig.method.upper(), ap.method.upper())
    made = compare_values(*flat, unit=unit, names=names, rounding=rounding_share(ig, ap))
    difference = np.full(known.shape, np.nan)
    outlier_abs, outlier_limits = np.zeros(known.shape, dtype=bool), np.zeros(known.shape, dtype=bool)
    difference[known], outlier_abs[known], outlier_limits[known] = (
        each[0] for each in (made.difference, made.outlier_abs, made.outlier_limits)
    )
    return replace(made, maps=(ig, ap), difference=difference, outlier_abs=outlier_abs, outlier_limits=outlier_limits)
