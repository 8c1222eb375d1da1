"""Statistics of two maps: against scipy, by hand, by brute force, by symmetry, and on every degenerate input."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import stats

from igap.attribution import AttributionMap
from igap.attribution.over_pairs import mean
from igap.statistics.comparison import Comparison, compare, compare_values
from igap.statistics.jaccard import expected_jaccard

INTERVALS = ("pearson_low", "pearson_high", "spearman_low", "spearman_high", "slope_low", "slope_high")
CORRELATIONS = ("pearson", "pearson_low", "pearson_high", "spearman", "spearman_low", "spearman_high")


def random_maps(seed: int = 0, shape: tuple[int, int] = (12, 12), noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Heavy-tailed, correlated maps, no ties."""
    rng = np.random.default_rng(seed)
    ig = rng.standard_t(2, shape) * 0.02
    return ig, 1.1 * ig + noise * 0.02 * rng.standard_normal(shape)


# hand-worked ----------------------------------------------------------------------------------------------------------

HAND_IG = np.array([[4.0, 1.0], [-2.0, 0.0], [0.0, 3.0]])
HAND_AP = np.array([[5.0, -1.0], [-2.0, 0.5], [0.0, 2.5]])


def test_hand_worked_case():
    """Differences 1, -2, 0, 0.5, 0, -0.5; five components carry a sign and three of them agree."""
    comparison = compare_values(HAND_IG, HAND_AP)

    np.testing.assert_array_equal(comparison.difference, [[1.0, -2.0], [0.0, 0.5], [0.0, -0.5]])
    assert comparison.n == 6
    assert comparison.bias == pytest.approx(-1 / 6)
    sd = np.sqrt(5.5 / 6 - 1 / 36)  # mean square minus squared mean: n in the denominator, not n - 1
    assert comparison.sd == pytest.approx(sd)
    assert (comparison.limits_low, comparison.limits_high) == pytest.approx((-1 / 6 - 1.96 * sd, -1 / 6 + 1.96 * sd))
    assert comparison.sign_agreement == pytest.approx(3 / 5)
    # |IG| order: 0, 5, 2, 1, ...; |AP| order: 0, 5, 2, 1, 3: the top 4 are one set, four components are non-zero in IG
    assert [comparison.jaccard_at(k) for k in (1, 2, 3, 4)] == [1.0, 1.0, 1.0, 1.0]
    assert np.isnan(comparison.jaccard_at(5))


def test_the_notebook_outlier_rule_is_not_centred_and_the_limits_rule_is():
    """|differences| 1 x 9 and 3: SD 0.6, threshold 1.176. Differences 1 x 9 and 3 have limits 1.2 -/+ 1.176."""
    ig = np.zeros((2, 5))
    ap = np.ones((2, 5))
    ap[1, 4] = 3.0
    comparison = compare_values(ig, ap)
    assert np.argwhere(comparison.outlier_abs).tolist() == [[1, 4]]
    assert np.argwhere(comparison.outlier_limits).tolist() == [[1, 4]]

    # all differences near 2, half of them 2.5: SD 0.25 of the |differences| flags every one, the limits flag none
    ap = np.array([[2.0, 2.5, 2.0, 2.5]])
    comparison = compare_values(np.zeros((1, 4)), ap)
    assert comparison.outlier_abs.all()
    assert not comparison.outlier_limits.any()


def test_a_large_negative_difference_is_an_outlier_under_both_rules():
    ig, ap = random_maps()
    ap[3, 4] -= 5.0
    comparison = compare_values(ig, ap)
    assert comparison.outlier_abs[3, 4]
    assert comparison.outlier_limits[3, 4]


def test_zero_against_non_zero_is_a_sign_disagreement_and_zero_against_zero_is_left_out():
    comparison = compare_values([[1.0, 0.0, 0.0, -1.0]], [[1.0, 0.0, 2.0, 1.0]])
    assert comparison.sign_agreement == pytest.approx(1 / 3)


def test_signs_count_from_a_thousandth_of_the_largest_magnitude_on_in_either_map():
    ig = [[1000.0, 0.999, -1.0, 0.5, 2.0]]
    ap = [[900.0, -0.999, 0.5, 1.0, 3.0]]
    # Of five the second is below 1 in both maps, the third is 1 in IG alone and differs, the fourth is 1 in AP alone.
    assert compare_values(ig, ap).sign_agreement == pytest.approx(3 / 4)
    assert compare_values(ap, ig).sign_agreement == pytest.approx(3 / 4)
    tiny = compare_values(np.multiply(ig, 1e-300), np.multiply(ap, 1e-300))
    assert tiny.sign_agreement == pytest.approx(3 / 4)


def test_ties_at_the_cut_go_to_the_lower_index():
    comparison = compare_values([[5.0, 1.0, -1.0, 2.0]], [[1.0, 1.0, -1.0, 3.0]])
    # top 2: IG {0, 3}; AP {3, 0} because |AP| of 0, 1 and 2 are equal
    assert comparison.jaccard_at(2) == 1.0


def test_slope_is_positive_where_ap_spreads_wider_and_negative_where_ig_does():
    ig = np.linspace(-1, 1, 12).reshape(3, 4)
    assert compare_values(ig, 2 * ig).slope == pytest.approx(2 / 3)  # difference ig, mean 1.5 ig
    assert compare_values(2 * ig, ig).slope == pytest.approx(-2 / 3)
    assert compare_values(ig, ig + 0.5).slope == pytest.approx(0, abs=1e-12)


# against scipy --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_statistics_equal_scipys(seed):
    ig, ap = random_maps(seed)
    comparison = compare_values(ig, ap)
    x, y = ig.ravel(), ap.ravel()

    pearson = stats.pearsonr(x, y)
    interval = pearson.confidence_interval(0.95)
    assert comparison.pearson == pytest.approx(pearson.statistic, rel=1e-12)
    assert (comparison.pearson_low, comparison.pearson_high) == pytest.approx((interval.low, interval.high), rel=1e-12)

    rho = stats.spearmanr(x, y).statistic
    half = 1.959963984540054 * np.sqrt((1 + rho**2 / 2) / (144 - 3))
    assert comparison.spearman == pytest.approx(rho, rel=1e-12)
    assert comparison.spearman_low == pytest.approx(np.tanh(np.arctanh(rho) - half), rel=1e-12)
    assert comparison.spearman_high == pytest.approx(np.tanh(np.arctanh(rho) + half), rel=1e-12)

    fit = stats.linregress((x + y) / 2, y - x)
    half = stats.t.ppf(0.975, 142) * fit.stderr
    assert comparison.slope == pytest.approx(fit.slope, rel=1e-9)
    assert (comparison.slope_low, comparison.slope_high) == pytest.approx(
        (fit.slope - half, fit.slope + half), rel=1e-9
    )


def test_spearman_takes_mean_ranks_for_ties():
    ig = np.array([[0.0, 0.0, 1.0, 2.0, 2.0, 5.0]])
    ap = np.array([[0.0, 1.0, 1.0, 0.0, 4.0, 3.0]])
    assert compare_values(ig, ap).spearman == pytest.approx(stats.spearmanr(ig[0], ap[0]).statistic, rel=1e-12)


# Jaccard by brute force -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 8), (4, 512)])
def test_jaccard_equals_the_index_of_python_sets(shape):
    ig, ap = random_maps(1, shape, noise=2.0)
    comparison = compare_values(ig, ap)
    by_ig = sorted(range(ig.size), key=lambda i: -abs(ig.ravel()[i]))
    by_ap = sorted(range(ap.size), key=lambda i: -abs(ap.ravel()[i]))
    expected = []
    for k in comparison.jaccard_k:
        a, b = set(by_ig[:k]), set(by_ap[:k])
        expected.append(len(a & b) / len(a | b))
        assert comparison.jaccard_at(int(k)) == expected[-1]
    np.testing.assert_array_equal(comparison.jaccard, expected)
    assert min(expected) < 0.9  # else the maps would be too alike to tell top-k rules apart


@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 2), (6, 3), (6, 4), (7, 6), (7, 7)])
def test_chance_level_is_the_mean_over_all_subsets(n, k):
    fixed = set(range(k))  # by symmetry one of the two subsets may be held
    values = [len(fixed & set(other)) / len(fixed | set(other)) for other in combinations(range(n), k)]
    assert expected_jaccard(n, k) == pytest.approx(np.mean(values), rel=1e-12)


@pytest.mark.parametrize(("n", "k"), [(144, 10), (144, 100), (36864, 30), (36864, 30000)])
def test_chance_level_equals_scipys_hypergeometric_sum(n, k):
    overlap = np.arange(max(0, 2 * k - n), k + 1)
    expected = np.sum(stats.hypergeom.pmf(overlap, n, k, k) * overlap / (2 * k - overlap))
    assert expected_jaccard(n, k) == pytest.approx(expected, rel=1e-7)  # scipy's own pmf loses digits at this n


def test_the_curve_holds_the_chance_level_of_its_own_k():
    comparison = compare_values(*random_maps())
    chance = dict(zip(comparison.jaccard_k.tolist(), comparison.jaccard_chance.tolist(), strict=True))
    assert chance[30] == expected_jaccard(144, 30)
    assert chance[144] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("shape", "points"), [((4, 8), 32), ((12, 12), 144), ((4, 512), None), ((6, 100), None), ((12, 3072), None)]
)
def test_the_curve_holds_every_k_of_a_small_site_and_10_and_30_of_a_large_one(shape, points):
    ks = compare_values(*random_maps(0, shape)).jaccard_k.tolist()
    n = shape[0] * shape[1]
    assert {10, 30, 1, n} <= set(ks)
    assert ks == sorted(set(ks))
    assert ks[-1] == n
    assert len(ks) == points if points else len(ks) < 100


# properties -----------------------------------------------------------------------------------------------------------


@st.composite
def maps(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Two maps of one shape, up to 6 x 6, thousandths in [-4, 4]: ties, zeros and constant maps all occur."""
    shape = draw(array_shapes(min_dims=2, max_dims=2, max_side=6))
    elements = st.integers(-4000, 4000).map(lambda i: i / 1000)
    return draw(arrays(np.float64, shape, elements=elements)), draw(arrays(np.float64, shape, elements=elements))


def summaries_agree(a: dict[str, float], b: dict[str, float], names: tuple[str, ...]) -> None:
    for name in names:
        assert b[name] == pytest.approx(a[name], rel=1e-6, abs=1e-7, nan_ok=True), name


SHARED = (*CORRELATIONS, "sign_agreement", "jaccard@10", "jaccard@30", "n_outliers", "n_outliers_limits")


@given(maps())
def test_swapping_the_maps_flips_the_difference_and_keeps_the_agreement(pair):
    one, other = compare_values(*pair), compare_values(*pair[::-1])
    np.testing.assert_array_equal(other.difference, -one.difference)
    assert other.bias == pytest.approx(-one.bias, abs=1e-12)
    assert (other.limits_low, other.limits_high) == pytest.approx(
        (-one.limits_high, -one.limits_low), abs=1e-9, nan_ok=True
    )
    assert other.slope == pytest.approx(-one.slope, rel=1e-6, abs=1e-7, nan_ok=True)
    np.testing.assert_array_equal(other.jaccard, one.jaccard)
    summaries_agree(one.summary(), other.summary(), SHARED)
    assert other.reasons.keys() == one.reasons.keys()


@given(maps(), st.integers(-40, 40))
def test_a_positive_factor_on_both_maps_changes_only_what_has_the_unit_of_the_maps(pair, exponent):
    factor = 2.0**exponent  # exact, so that no tie is made or broken
    one, scaled = compare_values(*pair), compare_values(pair[0] * factor, pair[1] * factor)
    for name in ("bias", "sd", "limits_low", "limits_high"):
        assert getattr(scaled, name) == pytest.approx(factor * getattr(one, name), rel=1e-9, abs=0, nan_ok=True), name
    np.testing.assert_array_equal(scaled.difference, factor * one.difference)
    np.testing.assert_array_equal(scaled.jaccard, one.jaccard)
    np.testing.assert_array_equal(scaled.outlier_abs, one.outlier_abs)
    np.testing.assert_array_equal(scaled.outlier_limits, one.outlier_limits)
    summaries_agree(one.summary(), scaled.summary(), (*SHARED, "slope", "slope_low", "slope_high"))


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(2, 8))
def test_the_order_of_components_changes_nothing(seed, layers, width):
    """Without ties in magnitude, which index breaks."""
    ig, ap = random_maps(seed, (layers, width), noise=1.0)
    order = np.random.default_rng(seed).permutation(ig.size)
    mixed_ig, mixed_ap = (m.ravel()[order].reshape(width, layers) for m in (ig, ap))
    one, mixed = compare_values(ig, ap), compare_values(mixed_ig, mixed_ap)
    np.testing.assert_array_equal(mixed.jaccard, one.jaccard)
    np.testing.assert_array_equal(mixed.outlier_abs.ravel(), one.outlier_abs.ravel()[order])
    summaries_agree(one.summary(), mixed.summary(), tuple(one.summary()))


@given(maps())
def test_every_statistic_is_in_its_range_and_every_nan_has_a_reason(pair):
    comparison = compare_values(*pair)
    for name, value in comparison.summary().items():
        assert np.isnan(value) == (name in comparison.reasons), name
    for k, value in zip(comparison.jaccard_k, comparison.jaccard, strict=True):
        assert np.isnan(value) == (f"jaccard@{k}" in comparison.reasons)
    for name in CORRELATIONS:
        assert not abs(getattr(comparison, name)) > 1
    for name in ("pearson", "spearman", "slope", "bias"):
        low, high = (
            (comparison.limits_low, comparison.limits_high)
            if name == "bias"
            else (getattr(comparison, f"{name}_low"), getattr(comparison, f"{name}_high"))
        )
        assert np.isnan(low) or low - 1e-9 <= getattr(comparison, name) <= high + 1e-9
    assert ((comparison.jaccard_chance > 0) & (comparison.jaccard_chance <= 1 + 1e-12)).all()
    assert not ((comparison.jaccard < 0) | (comparison.jaccard > 1)).any()


def test_tiny_scores_keep_their_statistics():
    ig, ap = random_maps()
    tiny = compare_values(ig * 2.0**-700, ap * 2.0**-700)  # squares of these underflow to 0
    assert tiny.pearson == compare_values(ig, ap).pearson
    assert tiny.sd == pytest.approx(compare_values(ig, ap).sd * 2.0**-700, abs=0)


# degenerate -----------------------------------------------------------------------------------------------------------


def undefined(comparison: Comparison, reason: str, *names: str) -> None:
    for name in names:
        value = comparison.summary()[name]
        assert np.isnan(value), f"{name} is {value}"
        assert reason in comparison.reasons[name], name


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7])
def test_a_constant_map_has_no_correlation(value):
    ig, ap = random_maps()
    undefined(compare_values(np.full_like(ig, value), ap), "IG scores are constant", *CORRELATIONS)
    undefined(compare_values(ig, np.full_like(ap, value)), "AP scores are constant", *CORRELATIONS)
    both = compare_values(np.full_like(ig, value), np.full_like(ap, value + 1))
    undefined(both, "IG and AP scores are constant", *CORRELATIONS)
    undefined(both, "means of IG and AP are constant", "slope", "slope_low", "slope_high")
    assert both.bias == pytest.approx(1.0)
    assert not both.outlier_abs.any()
    assert not both.outlier_limits.any()


def test_a_map_that_is_constant_up_to_rounding_counts_as_constant():
    ig, ap = random_maps()
    nearly = 0.1 + np.spacing(0.1) * (np.arange(144).reshape(12, 12) % 2)
    undefined(compare_values(nearly, ap), "IG scores are constant", *CORRELATIONS)
    # scipy warns here (its threshold is on the norm); the spread is above rounding, so this is an answer, and silent
    above = 1 + 1e-12 * np.arange(144).reshape(12, 12) / 144
    assert np.isfinite(compare_values(above, ap).pearson)
    assert np.isfinite(compare_values(ig, above).spearman)


def test_opposite_maps_have_no_slope_because_their_means_are_zero():
    ig, _ = random_maps()
    comparison = compare_values(ig, -ig)
    undefined(comparison, "means of IG and AP are constant", "slope", "slope_low", "slope_high")
    assert comparison.pearson == pytest.approx(-1.0)
    assert comparison.sign_agreement == 0.0


def test_equal_maps_agree_wholly_and_have_no_outliers():
    ig, _ = random_maps()
    summary = compare_values(ig, ig.copy()).summary()
    assert summary["pearson"] == pytest.approx(1.0)
    assert summary["spearman"] == pytest.approx(1.0)
    assert summary["pearson_low"] == pytest.approx(1.0)
    assert (summary["sign_agreement"], summary["jaccard@10"], summary["slope"]) == (1.0, 1.0, 0.0)
    assert (summary["bias"], summary["limits_low"], summary["limits_high"]) == (0.0, 0.0, 0.0)
    assert (summary["n_outliers"], summary["n_outliers_limits"]) == (0, 0)


def test_differences_equal_up_to_rounding_have_no_outliers():
    ig, _ = random_maps()
    comparison = compare_values(ig, ig + 0.1)
    assert comparison.bias == pytest.approx(0.1)
    assert not comparison.outlier_abs.any()
    assert not comparison.outlier_limits.any()


def test_zero_maps():
    comparison = compare_values(np.zeros((12, 12)), np.zeros((12, 12)))
    undefined(comparison, "IG and AP scores are constant", *CORRELATIONS)
    undefined(comparison, "both maps are zero everywhere", "sign_agreement")
    undefined(comparison, "only 0 non-zero components, fewer than k = 10", "jaccard@10")
    undefined(comparison, "only 0 non-zero components, fewer than k = 30", "jaccard@30")
    assert np.isnan(comparison.jaccard).all()
    assert comparison.bias == 0.0


def test_fewer_than_k_non_zero_components_have_no_top_k():
    ig, ap = random_maps()
    ap.ravel()[12:] = 0.0
    comparison = compare_values(ig, ap)
    assert np.isfinite(comparison.summary()["jaccard@10"])
    undefined(comparison, "only 12 non-zero components, fewer than k = 30", "jaccard@30")
    assert np.isfinite(comparison.jaccard[:12]).all()
    assert np.isnan(comparison.jaccard[12:]).all()
    assert np.isfinite(comparison.jaccard_chance).all()


def test_k_above_the_number_of_components_is_undefined():
    comparison = compare_values(*random_maps(0, (2, 6)))
    assert comparison.jaccard_k.tolist() == list(range(1, 13))
    assert np.isfinite(comparison.summary()["jaccard@10"])
    undefined(comparison, "k = 30 is more than the 12 components", "jaccard@30", "jaccard_chance@30")
    assert np.isnan(expected_jaccard(12, 13))


def test_one_component():
    comparison = compare_values([[0.5]], [[0.7]])
    undefined(comparison, "there is one component only", *CORRELATIONS, "slope", "slope_low", "slope_high")
    undefined(comparison, "one component has no spread", "limits_low", "limits_high")
    assert np.isnan(comparison.sd)
    assert "sd" in comparison.reasons
    assert comparison.bias == pytest.approx(0.2)
    assert comparison.sign_agreement == 1.0
    assert comparison.jaccard_at(1) == 1.0
    assert not comparison.outlier_abs.any()
    assert not comparison.outlier_limits.any()


@pytest.mark.parametrize("n", [2, 3])
def test_fewer_than_four_components_have_no_interval(n):
    ig = np.array([[0.1, 0.5, 0.2]])[:, :n]
    comparison = compare_values(ig, np.array([[0.2, 0.4, 0.3]])[:, :n])
    undefined(comparison, f"{n} components; an interval needs at least 4", *INTERVALS)
    assert np.isfinite([comparison.pearson, comparison.spearman, comparison.slope]).all()
    assert np.isfinite(compare_values([[0.1, 0.5, 0.2, 0.3]], [[0.2, 0.4, 0.3, 0.1]]).pearson_low)


# failures -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e200])
def test_a_value_that_cannot_be_compared_is_refused_by_its_place(value):
    ig, ap = random_maps()
    ap[3, 7] = value
    with pytest.raises(ValueError, match=r"ap has 1 values .* the first \S+ at \[3, 7\]; .*finite.* Check the gap"):
        compare_values(ig, ap)
    with pytest.raises(ValueError, match=r"ig has 1 values"):
        compare_values(ap, ig)


def test_maps_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"ap has shape \(12, 12\), ig \(4, 8\); .* same site and model"):
        compare_values(np.zeros((4, 8)), np.zeros((12, 12)))


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (0, 4), (4, 0)])
def test_what_is_no_map_is_refused(shape):
    with pytest.raises(ValueError, match=r"ig has shape .* \[layer, component\]"):
        compare_values(np.zeros(shape), np.zeros(shape))


@pytest.mark.parametrize("k", [0, -1])
def test_a_top_k_below_one_is_refused(k):
    with pytest.raises(ValueError, match=f"^k: got {k}, wanted a whole number, at least 1"):
        compare_values(*random_maps()).jaccard_at(k)


def test_the_maps_are_left_as_they_were():
    ig, ap = random_maps()
    before = ig.copy(), ap.copy()
    compare_values(ig, ap)
    np.testing.assert_array_equal(ig, before[0])
    np.testing.assert_array_equal(ap, before[1])


def test_the_summary_has_the_names_of_summary_json_and_plain_numbers():
    summary = compare_values(*random_maps()).summary()
    assert set(summary) == {
        *CORRELATIONS,
        *("slope", "slope_low", "slope_high", "bias", "limits_low", "limits_high", "sign_agreement"),
        *("jaccard@10", "jaccard@30", "jaccard_chance@10", "jaccard_chance@30"),
        *("n_outliers", "n_outliers_limits", "n_components"),
    }
    assert {type(value) for value in summary.values()} == {float, int}  # numpy numbers would not go into JSON
    comparison = compare_values(*random_maps())
    assert summary["n_outliers"] == comparison.outlier_abs.sum()
    assert summary["n_outliers_limits"] == comparison.outlier_limits.sum()
    assert summary["n_outliers"] != summary["n_outliers_limits"]
    assert summary["jaccard@10"] == comparison.jaccard[9]


# two attribution maps -------------------------------------------------------------------------------------------------


def attribution_map(method: str, effect: np.ndarray, *, site: str = "heads", gap: float = 4.0) -> AttributionMap:
    return AttributionMap(method, site, torch.from_numpy(effect), gap=gap, min_gap=0.1)


def test_maps_are_compared_in_scores():
    ig, ap = random_maps()
    found = compare(attribution_map("ig", ig), attribution_map("ap", ap))
    assert found.unit == "score"
    np.testing.assert_allclose(found.difference, (ap - ig) / 4, rtol=1e-12)
    assert found.bias == pytest.approx((ap - ig).mean() / 4)


def test_maps_without_scores_are_compared_in_logits():
    ig, ap = random_maps()
    found = compare(attribution_map("ig", ig, gap=0.05), attribution_map("ap", ap, gap=0.05))
    assert found.unit == "logits"
    np.testing.assert_allclose(found.difference, ap - ig, rtol=1e-12)
    assert found.pearson == pytest.approx(compare_values(ig, ap).pearson)


def test_maps_of_two_sites_are_refused():
    ig, ap = random_maps()
    with pytest.raises(ValueError, match=r"ap is a map of neurons, ig of heads; compare two maps of one site\."):
        compare(attribution_map("ig", ig), attribution_map("ap", ap, site="neurons"))


# maps by position -----------------------------------------------------------------------------------------------------

SPANS = tuple(f"{i} word" for i in range(4))


def spans_map(method: str, effect: np.ndarray, **changes: object) -> AttributionMap:
    """A map `[layer, span, component]` of heads by position."""
    places = tuple((i,) for i in range(effect.shape[1]))
    given = {"gap": 4.0, "spans": SPANS, "where": places, **changes}
    return AttributionMap(method, "heads", torch.from_numpy(effect), **given)


def test_maps_by_position_are_compared_position_by_position_and_outliers_say_where():
    rng = np.random.default_rng(0)
    ig = rng.standard_normal((3, 4, 5))
    ap = ig + 0.01 * rng.standard_normal(ig.shape)
    ap[2, 1, 3] += 9
    found, flat = (
        compare(spans_map("ig", ig), spans_map("ap", ap)),
        compare_values(ig.reshape(3, -1), ap.reshape(3, -1)),
    )
    np.testing.assert_allclose(found.difference, (ap - ig) / 4, rtol=1e-12)
    assert found.pearson == pytest.approx(flat.pearson)
    assert found.outliers("heads") == ["2.3 at 1 word"]
    assert "|ap - ig| above 1.96 SD: 2.3 at 1 word" in repr(found)
    assert list(found.to_frame().query("outlier_abs").index) == [(2, "1 word", 3)]
    assert found._repr_html_().count("2px solid") == 1


def test_maps_of_other_positions_are_refused_by_what_they_are_of():
    effect = np.random.default_rng(0).standard_normal((3, 4, 5))
    by_position, alone = spans_map("ig", effect), attribution_map("ap", effect[:, 0])
    with pytest.raises(
        ValueError,
        match=r"ap is a map of all positions at once, ig by 4 positions or spans \(0 word \[0\], .*, \.\.\.\); .* "
        r'compare\(ig\.at\("10"\), ap\.at\("10"\)\)\.$',
    ):
        compare(by_position, alone)
    with pytest.raises(ValueError, match=r"ap is a map at position 0, ig of all positions at once"):
        compare(attribution_map("ig", effect[:, 0]), by_position.at("0"))
    named = spans_map("ap", effect, where=((0,), (1,), (2,), (2, 3)))
    with pytest.raises(ValueError, match="compare two maps of the same positions"):
        compare(by_position, named)
    shifted = spans_map("ap", effect, spans=("a", "b", "c", "d"))
    assert compare(by_position, shifted).pearson == pytest.approx(1)  # the same positions by other names
    assert compare(by_position.at("2"), shifted.at("c")).n == 15


def test_means_over_pairs_with_positions_of_their_own_are_compared_pair_by_pair():
    effect = np.random.default_rng(0).standard_normal((3, 4, 5))
    other = spans_map("ap", effect, where=((0,), (1,), (2,), (5,)))
    both, swapped = mean([spans_map("ap", effect), other]), mean([other, spans_map("ap", effect)])
    assert both.where is None
    assert compare(both, both).n == 60
    with pytest.raises(ValueError, match="compare two maps of the same positions"):
        compare(both, swapped)


def test_outliers_of_another_site_than_the_maps_are_refused():
    ig, ap = random_maps()
    with pytest.raises(ValueError, match=r"^site: got neurons, wanted heads, of which the compared maps are\.$"):
        compare(attribution_map("ig", ig), attribution_map("ap", ap)).outliers("neurons")
