"""Figures: what is drawn, where, on which scale, and that nothing leaks into matplotlib's global state."""

import itertools
import re
import tempfile
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.textpath import TextPath

from igap import plots
from igap.plots.canvas import FONT, add_legend, figure
from igap.plots.heatmaps import CellTexts
from igap.statistics.comparison import Comparison, compare_values

UNIT = "score (effect / gap)"
HEADS = [(4, 8), (12, 12)]
NEURONS = [(4, 512), (12, 3072)]


def random_maps(shape: tuple[int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Heavy-tailed, correlated maps with two outliers, in float32 as a model gives them."""
    rng = np.random.default_rng(seed)
    ig = np.clip(rng.standard_t(1.6, shape) * 0.01, -0.3, 0.3)
    ap = 1.1 * ig + 0.003 * rng.standard_normal(shape)
    ap[1, 5] += 0.2
    ap[3, 2] -= 0.15
    return ig.astype(np.float32), ap.astype(np.float32)


def names_of(shape: tuple[int, int]) -> list[str]:
    return [
        f"L{layer}.N{i}" if shape[1] > 100 else f"{layer}.{i}" for layer in range(shape[0]) for i in range(shape[1])
    ]


def render(fig: Figure) -> bytes:
    """The picture as a run draws it, once; `Figure.savefig` would draw it twice, first without ink."""
    with tempfile.NamedTemporaryFile() as file:
        plots.write_png(fig, Path(file.name))
        return Path(file.name).read_bytes()


def panels(fig: Figure) -> list[Axes]:
    return [ax for ax in fig.axes if ax.get_label() != "<colorbar>"]


def texts(fig: Figure) -> str:
    return "\n".join(text.get_text() for text in fig.findobj(Text))


def labels(ax: Axes) -> list[str]:
    """Names written beside points, in the order they were placed."""
    return [text.get_text() for text in ax.texts if isinstance(text, Annotation)]


def written(ax: Axes) -> dict[tuple[float, float], tuple[str, str]]:
    """By the place of a cell (x, y), the text that stands there and its colour; the outline is that of the text."""
    found = {}
    for cells in (artist for artist in ax.collections if isinstance(artist, CellTexts)):
        for (x, y), text, outline, colour in zip(
            cells.get_offsets().tolist(), cells.texts.ravel(), cells.get_paths(), cells.get_facecolor(), strict=True
        ):
            assert len(outline.vertices) == (len(TextPath((0, 0), text, prop=FONT).vertices) if text else 0)
            found[x, y] = (str(text), "white" if colour[0] == 1 else "dark")
    return found


def line(ax: Axes, label: str):
    return next(artist for artist in ax.lines if re.match(label, str(artist.get_label())))


def point_plots(ig: np.ndarray, ap: np.ndarray, **changes: object) -> tuple[Figure, Figure, Comparison]:
    comparison = compare_values(ig, ap)
    given = {"names": names_of(ig.shape), "comparison": comparison, "unit": UNIT, "title": "gpt2-small", **changes}
    return (
        plots.scatter(ig, ap, outliers=comparison.outlier_abs, **given),
        plots.mean_difference(ig, ap, **given),
        comparison,
    )


def every_figure(ig: np.ndarray, ap: np.ndarray, site: str, title: str = "gpt2-small") -> list[Figure]:
    heatmaps = plots.head_heatmaps if site == "heads" else plots.neuron_heatmaps
    layers = {site: ap.sum(axis=1)}
    return [
        heatmaps(ig, ap, unit=UNIT, title=title),
        plots.difference_heatmaps(ig, ap, site=site, unit=UNIT, title=title),
        *point_plots(ig, ap, title=title)[:2],
        plots.jaccard_curve({site: compare_values(ig, ap)}, title=title),
        plots.convergence_delta({site: 1e-6 * ig.sum(axis=1)}, layers, tolerance=0.01, title=title),
    ]


# every figure ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12, 3072), (30, 40)])
def test_figures_render_without_warnings_and_leave_matplotlib_as_it_was(shape):
    with mpl.rc_context({"font.size": 17, "figure.dpi": 60}):
        before = dict(mpl.rcParams)
        for fig in every_figure(*random_maps(shape), "neurons" if shape in NEURONS else "heads"):
            assert render(fig).startswith(b"\x89PNG")
            assert fig.dpi == 150
        assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == []


SETTINGS = {"font.size": 17, "text.hinting": "force_autohint", "savefig.dpi": 40}


def test_the_same_data_gives_the_same_picture_whatever_matplotlib_is_set_to():
    pictures = []
    for settings in ({}, ["ggplot", "dark_background", SETTINGS]):  # both styles' settings: the later do not undo them
        with plt.style.context(settings):
            pictures.append([render(fig) for fig in every_figure(*random_maps((4, 8)), "heads")])
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize(("shape", "site"), [((4, 8), "heads"), ((4, 512), "neurons")])
def test_panels_are_where_matplotlibs_own_layout_puts_them(shape, site):
    for fig in every_figure(*random_maps(shape), site):
        fig.draw_without_rendering()
        places = [ax.get_position().extents for ax in fig.axes]
        fig.set_layout_engine("constrained")
        fig.draw_without_rendering()
        # The name of a tick near an edge reaches out of a panel by more or less, as the panel's width changes.
        np.testing.assert_allclose(places, [ax.get_position().extents for ax in fig.axes], atol=0.01)


@pytest.mark.parametrize(("shape", "site"), [((4, 8), "heads"), ((4, 512), "neurons")])
def test_nothing_runs_out_of_the_figure(shape, site):
    ig, ap = random_maps(shape)
    long = "a long title about a pair of prompts " * 6
    blank = every_figure(np.zeros_like(ig), ap, site, title="short") if site == "heads" else ()
    for fig in (*every_figure(ig, ap, site, title=long), *blank):
        fig.draw_without_rendering()
        width, height = fig.get_size_inches() * fig.dpi
        for artist in (*(ax for ax in fig.axes if ax.axison), *fig.legends, *fig.texts):
            box = artist.get_tightbbox()
            assert -1 < box.x0 < box.x1 < width + 1, artist
            assert -1 < box.y0 < box.y1 < height + 1, artist


def test_dollar_signs_and_length_of_a_title_do_no_harm():
    render(plots.head_heatmaps(*random_maps((4, 8)), unit=UNIT, title="Of $5 {or $6"))  # no mathematics
    title = "Of $5 {or $6 " * 20
    fig = plots.head_heatmaps(*random_maps((4, 8)), unit=UNIT, title=title)
    render(fig)
    assert " ".join(fig.get_suptitle().split()) == title.strip()
    assert fig.get_suptitle().count("\n") >= 2
    assert fig.get_figheight() > plots.head_heatmaps(*random_maps((4, 8)), unit=UNIT, title="short").get_figheight()


@pytest.mark.parametrize("site", ["heads", "neurons"])
def test_the_maps_are_left_as_they_were(site):
    ig, ap = random_maps((4, 512) if site == "neurons" else (4, 8))
    ig[0, 0] = np.nan
    before = ig.copy(), ap.copy()
    plots.difference_heatmaps(ig, ap, site=site, unit=UNIT)
    (plots.neuron_heatmaps if site == "neurons" else plots.head_heatmaps)(ig, ap, unit=UNIT)
    np.testing.assert_array_equal(ig, before[0])
    np.testing.assert_array_equal(ap, before[1])


# heatmaps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", HEADS)
def test_head_heatmaps_show_both_maps_on_one_scale_about_zero(shape):
    ig, ap = random_maps(shape)
    fig = plots.head_heatmaps(ig, ap, unit=UNIT, title="gpt2-small")
    left, right = panels(fig)
    assert (left.get_title(), right.get_title()) == ("IG", "AP")
    np.testing.assert_array_equal(left.images[0].get_array(), ig)
    np.testing.assert_array_equal(right.images[0].get_array(), ap)
    largest = max(np.abs(ig).max(), np.abs(ap).max())
    for ax in (left, right):
        assert ax.images[0].get_clim() == pytest.approx((-largest, largest))
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("head", "layer")
    assert UNIT in texts(fig)
    assert fig.get_suptitle() == "gpt2-small"


def test_red_is_positive_and_blue_negative_as_the_colour_bar_says():
    fig = plots.head_heatmaps(*random_maps((4, 8)), unit=UNIT)
    image = panels(fig)[0].images[0]
    high, middle, low = image.cmap([1.0, 0.5, 0.0])
    assert high[0] > high[2]
    assert low[2] > low[0]
    assert middle[:3].min() > 0.95
    assert "red > 0, blue < 0" in texts(fig)


def test_a_small_grid_shows_its_scores_to_two_decimals_and_a_large_one_does_not():
    ig, ap = random_maps((12, 12))
    ig[4, 7] = -0.001
    left, _ = panels(plots.head_heatmaps(ig, ap, unit=UNIT))
    cells = written(left)
    assert len(cells) == 144
    assert cells[5, 1][0] == f"{ig[1, 5]:.2f}"  # x is the head, y the layer
    assert cells[7, 4][0] == "0.00"
    assert not written(panels(plots.head_heatmaps(*random_maps((13, 12)), unit=UNIT))[0])


def test_numbers_are_white_on_dark_cells_only():
    ig = np.array([[0.3, 0.001], [-0.3, 0.02]])
    left, _ = panels(plots.head_heatmaps(ig, ig, unit=UNIT))
    assert [colour for _, colour in written(left).values()] == ["white", "dark", "white", "dark"]


@pytest.mark.parametrize("shape", NEURONS)
def test_a_cell_of_the_neuron_heatmaps_is_one_neuron_in_both_panels(shape):
    ig, ap = random_maps(shape)
    upper, lower = panels(plots.neuron_heatmaps(ig, ap, unit=UNIT))
    cells = [{place: int(text) for place, (text, _) in written(ax).items()} for ax in (upper, lower)]
    assert cells[0] == cells[1]
    assert len(cells[0]) == shape[0] * 25
    for (rank, layer), neuron in cells[0].items():
        assert upper.images[0].get_array()[int(layer), int(rank)] == ig[int(layer), neuron]
        assert lower.images[0].get_array()[int(layer), int(rank)] == ap[int(layer), neuron]
    weight = np.maximum(np.abs(ig), np.abs(ap))
    by_rank = [weight[2, cells[0][rank, 2]] for rank in range(25)]
    np.testing.assert_array_equal(by_rank, np.sort(weight[2])[::-1][:25])


def test_neuron_heatmaps_say_how_many_neurons_they_show_and_what_they_hold():
    ig, ap = random_maps((4, 512))
    magnitude = np.sort(np.abs(ap), axis=1)
    fig = plots.neuron_heatmaps(ig, ap, unit=UNIT, title="gpt2-small", per_layer=512)
    assert "2,048 of 2,048 neurons, the top 512 of each layer: 100% of the sum of |AP|" in fig.get_suptitle()
    fig = plots.neuron_heatmaps(ap, ap, unit=UNIT, title="gpt2-small", per_layer=10)
    share = 100 * magnitude[:, -10:].sum() / magnitude.sum()
    assert f"40 of 2,048 neurons, the top 10 of each layer: {share:.0f}% of" in fig.get_suptitle()
    assert fig.get_suptitle().startswith("gpt2-small\n")
    assert "3 of each layer" in plots.neuron_heatmaps(*random_maps((4, 6)), unit=UNIT, per_layer=3).get_suptitle()


def test_a_few_extreme_neurons_do_not_bleach_the_rest_and_the_clipping_is_said():
    ig, ap = random_maps((4, 512))
    ig[0, 0] = 50.0
    fig = plots.neuron_heatmaps(ig, ap, unit=UNIT)
    limits = {ax.images[0].get_clim() for ax in panels(fig)}
    assert len(limits) == 1
    low, high = limits.pop()
    assert low == -high
    assert 0 < high < 1
    assert f"colours end at {high:.2g}, the 95th percentile; largest 50" in texts(fig)
    assert "colours end" not in texts(plots.head_heatmaps(ig[:, :12], ap[:, :12], unit=UNIT))


def test_difference_heatmaps_show_the_signed_and_the_absolute_difference_of_every_head():
    ig, ap = (m.astype(np.float64) for m in random_maps((4, 8)))
    signed, absolute = panels(plots.difference_heatmaps(ig, ap, site="heads", unit=UNIT))
    assert (signed.get_title(), absolute.get_title()) == ("AP - IG", "|AP| - |IG|")
    np.testing.assert_array_equal(signed.images[0].get_array(), ap - ig)
    np.testing.assert_array_equal(absolute.images[0].get_array(), np.abs(ap) - np.abs(ig))
    low, high = signed.images[0].get_clim()
    assert (low, high) == pytest.approx((-np.abs(ap - ig).max(), np.abs(ap - ig).max()))
    assert absolute.images[0].get_clim() == (low, high)


def test_difference_heatmaps_show_the_neurons_of_each_layer_that_differ_most():
    ig, ap = (m.astype(np.float64) for m in random_maps((4, 512)))
    fig = plots.difference_heatmaps(ig, ap, site="neurons", unit=UNIT, per_layer=5)
    signed, absolute = panels(fig)
    cells = {place: int(text) for place, (text, _) in written(signed).items()}
    assert written(absolute).keys() == cells.keys()
    assert cells == {place: int(text) for place, (text, _) in written(absolute).items()}
    assert [cells[rank, 1] for rank in range(5)] == np.argsort(-np.abs(ap - ig)[1])[:5].tolist()
    assert "of the sum of |AP - IG|" in fig.get_suptitle()


TOKENS = ("0 <|endoftext|>", *(f"{i} token" for i in range(1, 16)), "16 to")


@pytest.mark.parametrize(("site", "shape"), [("resid_pre", (12, 17, 1)), ("q", (12, 17, 12)), ("neurons", (4, 17, 30))])
def test_by_position_every_token_is_below_its_column_upright_and_within_the_picture(site, shape):
    values = np.random.default_rng(0).standard_normal(shape)
    for fig in (
        plots.map_heatmap(values, site=site, method="AP", unit=UNIT, spans=TOKENS),
        plots.head_heatmaps(values, values, site=site, unit=UNIT, spans=TOKENS),
        plots.difference_heatmaps(values, 2 * values, site=site, unit=UNIT, spans=TOKENS),
    ):
        fig.draw_without_rendering()
        for ax in panels(fig):
            assert ax.get_xlabel() == "position"
            names = ax.get_xticklabels()
            assert tuple(name.get_text() for name in names) == TOKENS
            boxes = [name.get_window_extent() for name in names]
            assert all(box.height > 2 * box.width and box.y0 >= 0 for box in boxes)
            assert all(left.x1 <= right.x0 for left, right in itertools.pairwise(boxes))
            low, high = ax.get_position().y0, ax.get_position().y1
            assert (high - low) * fig.get_figheight() > 1


def test_a_long_name_of_a_span_is_cut_and_no_mathematics():
    spans = ("w" * 60, "$x_{")
    fig = plots.map_heatmap(np.ones((2, 2, 1)), site="resid_pre", method="AP", unit=UNIT, spans=spans)
    render(fig)
    assert [name.get_text() for name in panels(fig)[0].get_xticklabels()] == ["w" * 23 + "…", "$x_{"]


def test_a_figure_by_position_has_the_numbers_of_the_components_that_its_rows_name():
    values = np.zeros((2, 3, 30))
    values[1, 2, 7], values[0, 0, 3] = -2.0, 1.0
    (ax,) = panels(plots.map_heatmap(values, site="heads", method="AP", unit=UNIT, spans=("a", "b", "c")))
    assert [name.get_text() for name in ax.get_yticklabels()][:2] == ["1.7", "0.3"]
    assert ax.images[0].get_array()[:2].tolist() == [[0, 0, -2], [1, 0, 0]]
    assert ax.get_ylabel() == "head"


def test_a_vector_a_layer_is_drawn_as_a_row_of_layers_with_its_numbers():
    (ax,) = panels(plots.map_heatmap(np.array([[0.5], [-1.0]]), site="mlp_out", method="AP", unit=UNIT))
    assert written(ax) == {(0.0, 0.0): ("0.50", "dark"), (1.0, 0.0): ("-1.00", "white")}
    assert ax.get_xlabel() == "layer"
    assert [name.get_text() for name in ax.get_yticklabels()] == ["mlp_out"]


def test_a_site_that_is_neither_heads_nor_neurons_is_refused():
    with pytest.raises(ValueError, match=r"site is 'mlp'; .* Pass heads or neurons"):
        plots.difference_heatmaps(*random_maps((4, 8)), site="mlp", unit=UNIT)


# scatter and mean difference ------------------------------------------------------------------------------------------


def test_scatter_has_ig_on_x_ap_on_y_and_the_line_y_equals_x():
    ig, ap = random_maps((12, 12))
    fig, _, comparison = point_plots(ig, ap)
    (ax,) = fig.axes
    assert (ax.get_xlabel(), ax.get_ylabel()) == (f"IG, {UNIT}", f"AP, {UNIT}")
    drawn = np.concatenate([c.get_offsets() for c in ax.collections if len(c.get_offsets()) > 1])
    expected = np.column_stack([ig.ravel(), ap.ravel()])
    assert set(map(tuple, drawn.tolist())) == set(map(tuple, expected.tolist()))
    diagonal = line(ax, "y = x")
    assert diagonal.get_slope() == 1
    assert diagonal.get_xy1() == (0, 0)
    assert ax.get_xlim() == ax.get_ylim()
    box = "\n".join(text.get_text() for text in ax.texts)
    low, high = comparison.pearson_low, comparison.pearson_high
    assert f"Pearson {comparison.pearson:.3f} [{low:.3f}, {high:.3f}]" in box
    assert f"Spearman {comparison.spearman:.3f} [" in box
    assert "n = 144" in box


@pytest.mark.parametrize("sign", [1, -1])
def test_the_statistics_stand_where_no_points_are(sign):
    ig = np.linspace(-1, 1, 144).reshape(12, 12)
    (ax,) = point_plots(ig, sign * ig + 0.01 * np.sin(50 * ig))[0].axes
    ax.get_figure().draw_without_rendering()
    box = ax.texts[0].get_window_extent()
    drawn = np.concatenate([c.get_offsets() for c in ax.collections if len(c.get_offsets()) > 1])
    assert len(drawn) == 144
    assert not any(box.contains(*place) for place in ax.transData.transform(drawn))


def test_scatter_fits_the_least_squares_line_and_its_band_holds_it():
    ig, ap = (m.astype(np.float64) for m in random_maps((12, 12)))
    (ax,) = point_plots(ig, ap)[0].axes
    fit = line(ax, "least squares")
    slope, intercept = np.polyfit(ig.ravel(), ap.ravel(), 1)
    x, y = np.asarray(fit.get_xdata()), np.asarray(fit.get_ydata())
    np.testing.assert_allclose(y, intercept + slope * x, atol=1e-12)
    assert f"slope {slope:.3g}" in fit.get_label()
    band = ax.collections[-1].get_paths()[0].vertices
    middle = np.argmin(np.abs(x - ig.mean()))
    here = band[np.isclose(band[:, 0], x[middle]), 1]
    residual = ap.ravel() - intercept - slope * ig.ravel()
    half = 1.9767 * np.sqrt(np.sum(residual**2) / 142 / 144)  # t(0.975, 142), at the mean of IG
    assert here.max() - here.min() == pytest.approx(2 * half, rel=1e-2)  # the grid misses the mean by a little


@pytest.mark.parametrize("shape", [(12, 12), (4, 512)])
def test_outliers_are_highlighted_and_the_largest_twelve_named(shape):
    ig, ap = random_maps(shape)
    figures = point_plots(ig, ap)
    comparison = figures[2]
    rules = (("outliers", comparison.outlier_abs), ("outside the limits", comparison.outlier_limits))
    for fig, (what, flagged) in zip(figures, rules, strict=False):
        (ax,) = fig.axes
        size = np.where(flagged, np.abs(comparison.difference), -1).ravel()
        expected = [names_of(shape)[i] for i in np.argsort(-size)[: min(12, flagged.sum())]]
        assert labels(ax) == expected
        assert names_of(shape)[shape[1] + 5] in expected
        highlighted = next(c for c in ax.collections if str(c.get_label()).startswith(what))
        assert len(highlighted.get_offsets()) == flagged.sum()
        assert f"{what}: {flagged.sum():,} of {ig.size:,}" in texts(fig)
        by_label = {text.get_text(): text.xy for text in ax.texts if isinstance(text, Annotation)}
        assert by_label[names_of(shape)[shape[1] + 5]] in set(map(tuple, highlighted.get_offsets().tolist()))


def test_labels_overlap_neither_each_other_nor_the_box_and_stay_inside():
    """Twelve outliers in one narrow cluster, in the corner of the plot."""
    ig = np.linspace(-0.01, 0.01, 144).reshape(12, 12)
    ap = ig.copy()
    ap[11] += 0.2 + 0.001 * np.arange(12)
    for fig in point_plots(ig, ap)[:2]:
        (ax,) = fig.axes
        assert len(labels(ax)) >= 11
        fig.draw_without_rendering()
        boxes = [Text.get_window_extent(text) for text in ax.texts]
        for i, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:i]), ax.texts[i]
            assert ax.get_window_extent().x0 < box.x0 < box.x1 < ax.get_window_extent().x1


def test_many_points_are_drawn_as_pixels_and_few_as_vectors():
    few, many = (point_plots(*random_maps(shape))[0].axes[0].collections[0] for shape in ((12, 12), (4, 512)))
    assert many.get_rasterized()
    assert not few.get_rasterized()
    assert many.get_sizes()[0] < few.get_sizes()[0]


def test_mean_difference_draws_bias_and_limits_at_the_comparisons_values():
    ig, ap = random_maps((12, 12))
    _, fig, comparison = point_plots(ig, ap)
    (ax,) = fig.axes
    levels = [artist.get_ydata()[0] for artist in ax.lines if len(set(artist.get_ydata())) == 1]
    assert levels == [0, comparison.bias, comparison.limits_high, comparison.limits_low]
    label = line(ax, "limits of agreement").get_label()
    assert f"{comparison.limits_low:.3g} to {comparison.limits_high:.3g}" in label
    assert line(ax, "bias").get_label() == f"bias {comparison.bias:.3g}"
    fit = line(ax, "least squares")
    rise = np.diff(fit.get_ydata()[[0, -1]]) / np.diff(fit.get_xdata()[[0, -1]])
    assert rise[0] == pytest.approx(comparison.slope)
    assert f"slope {comparison.slope:.3f} [{comparison.slope_low:.3f}, {comparison.slope_high:.3f}]" in fit.get_label()
    drawn = np.concatenate([c.get_offsets() for c in ax.collections if len(c.get_offsets()) > 1])
    x, y = (ig.astype(float) + ap).ravel() / 2, comparison.difference.ravel()
    assert set(map(tuple, drawn.tolist())) == set(zip(x.tolist(), y.tolist(), strict=True))
    assert ax.get_ylabel() == f"AP - IG, {UNIT}"


def test_a_wrong_number_of_names_is_refused():
    with pytest.raises(ValueError, match="names has 3 entries, the maps 32 components"):
        point_plots(*random_maps((4, 8)), names=["0.0", "0.1", "0.2"])


def test_axes_of_scatter_are_their_own_where_one_method_spreads_far_wider():
    ig, ap = random_maps((12, 12))
    (ax,) = point_plots(ig / 50, ap)[0].axes
    assert np.ptp(ax.get_xlim()) < np.ptp(ax.get_ylim()) / 10
    assert line(ax, "y = x").get_slope() == 1


# curves ---------------------------------------------------------------------------------------------------------------


def test_jaccard_curve_shows_each_site_its_chance_level_and_k_10_and_30():
    heads, neurons = compare_values(*random_maps((12, 12))), compare_values(*random_maps((4, 512)))
    fig = plots.jaccard_curve({"heads": heads, "neurons": neurons}, title="gpt2-small")
    (ax,) = fig.axes
    assert ax.get_xscale() == "log"
    for site, comparison in (("heads", heads), ("neurons", neurons)):
        curve, chance = line(ax, rf"{site}, \d"), line(ax, f"{site}, chance level")
        np.testing.assert_array_equal(curve.get_xdata(), comparison.jaccard_k)
        np.testing.assert_array_equal(curve.get_ydata(), comparison.jaccard)
        np.testing.assert_array_equal(chance.get_ydata(), comparison.jaccard_chance)
        assert chance.get_linestyle() == "--"
        assert chance.get_color() == curve.get_color()
        at = comparison.jaccard_at
        assert curve.get_label() == f"{site}, {at(10):.2f} at k = 10, {at(30):.2f} at k = 30"
        assert any(list(p.get_xdata()) == [10, 30] and list(p.get_ydata()) == [at(10), at(30)] for p in ax.lines)
    assert line(ax, "heads, c").get_color() != line(ax, "neurons, c").get_color()
    assert labels(ax) == ["10", "30"]


def test_jaccard_curve_says_where_the_top_k_ends_and_marks_no_k_beyond_the_site():
    ig, ap = random_maps((4, 8))
    ap.ravel()[20:] = 0
    assert "undefined above k = 20" in texts(plots.jaccard_curve({"heads": compare_values(ig, ap)}))
    fig = plots.jaccard_curve({"heads": compare_values(*random_maps((4, 6))), "more": compare_values(ig[:2], ap[:2])})
    assert labels(fig.axes[0]) == ["10"]
    render(fig)
    render(plots.jaccard_curve({"heads": compare_values([[0.1]], [[0.2]])}))


def test_jaccard_curves_long_legend_stays_inside_the_figure():
    ends = []
    for shape in ((4, 8), (4, 512)):
        ig, ap = random_maps(shape)
        ap.ravel()[-1] = 0
        ends.append(compare_values(ig, ap))
    fig = plots.jaccard_curve({"heads": ends[0], "neurons": ends[1]})
    fig.draw_without_rendering()
    box = fig.legends[0].get_tightbbox()
    assert 0 <= box.x0 < box.x1 <= fig.get_figwidth() * fig.dpi


@pytest.mark.parametrize("delta", [3e-7, 2e-3])
def test_convergence_delta_has_plain_numbers_at_both_ends_of_its_axes(delta):
    layers = {"heads": np.array([delta, 2 * delta])}
    fig = plots.convergence_delta(layers, {"heads": np.array([1.0, 1.0])}, tolerance=0.01)
    render(fig)
    for ax in fig.axes:
        named = [label.get_text() for label in ax.get_yticklabels(which="both") if label.get_text()]
        assert len([float(name.replace("\N{MINUS SIGN}", "-")) for name in named]) >= 2


def test_convergence_delta_is_drawn_in_logits_and_as_a_percentage_with_the_tolerance():
    deltas = {"heads": np.array([1e-6, -2e-3, 4e-5]), "neurons": np.array([-3e-7, 5e-6, 6e-2])}
    effects = {"heads": np.array([-0.5, 2.0, 1.0]), "neurons": np.array([1.0, 1.0, -2.0])}
    left, right = plots.convergence_delta(deltas, effects, tolerance=0.01).axes
    for ax, expected in (
        (left, [1e-6, 2e-3, 4e-5, 3e-7, 5e-6, 6e-2]),
        (right, [2e-4, 0.1, 4e-3, 3e-5, 5e-4, 3.0]),  # percent
    ):
        assert ax.get_yscale() == "log"
        points = [artist for artist in ax.lines if artist.get_marker() == "o" and len(artist.get_xdata())]
        drawn = {
            (round(float(x)), float(y)): p.get_markerfacecolor()
            for p in points
            for x, y in zip(p.get_xdata(), p.get_ydata(), strict=True)
        }
        assert sorted(y for _, y in drawn) == pytest.approx(sorted(expected))
        negative = next(face for (layer, y), face in drawn.items() if y == pytest.approx(expected[1]) and layer == 1)
        positive = next(face for (layer, y), face in drawn.items() if y == pytest.approx(expected[0]) and layer == 0)
        assert negative == "white"
        assert positive != "white"
    tolerance = line(right, "tolerance 1%")
    assert set(tolerance.get_ydata()) == {1.0}
    assert "logits" in left.get_ylabel()
    assert "%" in right.get_ylabel()


def test_zero_deltas_and_zero_effects_are_left_out_and_listed():
    deltas = {"heads": np.array([0.0, 1e-6, 0.0, 1e-6]), "neurons": np.array([1e-6, 1e-6, 1e-6, np.nan])}
    effects = {"heads": np.array([1.0, 0.0, 1.0, 1.0]), "neurons": np.array([1.0, 1.0, 0.0, 1.0])}
    fig = plots.convergence_delta(deltas, effects, tolerance=0.01)
    left, right = fig.axes
    assert left.get_title(loc="left") == "delta exactly 0: heads L0, L2"
    assert right.get_title(loc="left") == "effect 0, no percentage: heads L1; neurons L2"
    render(fig)


# what cannot be drawn -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 8), (4, 512)])
def test_maps_without_a_finite_score_give_blank_panels_with_the_reason(shape):
    ig, ap = np.full(shape, np.nan), np.full(shape, np.inf)
    for fig in (
        plots.head_heatmaps(ig, ap, unit=UNIT),
        plots.neuron_heatmaps(ig, ap, unit=UNIT),
        plots.difference_heatmaps(ig, ap, site="heads", unit=UNIT),
        plots.difference_heatmaps(ig, ap, site="neurons", unit=UNIT),
    ):
        assert "no score is finite" in texts(fig)
        assert not any(ax.images for ax in fig.axes)
        fig.draw_without_rendering()
    flags = np.zeros(shape, dtype=bool)
    given = {"names": names_of(shape), "comparison": None, "unit": UNIT}
    for fig in (plots.scatter(ig, ap, outliers=flags, **given), plots.mean_difference(ig, ap, **given)):
        assert "not drawn: the scores cannot be compared" in texts(fig)
        fig.draw_without_rendering()


@pytest.mark.parametrize("site", ["heads", "neurons"])
def test_one_map_of_zeros_gives_one_blank_panel_and_the_points_are_still_drawn(site):
    ig, ap = random_maps((4, 8) if site == "heads" else (4, 512))
    heatmaps = plots.head_heatmaps if site == "heads" else plots.neuron_heatmaps
    fig = heatmaps(np.zeros_like(ig), ap, unit=UNIT)
    first, second = panels(fig)
    assert "IG: not drawn, every score is 0" in texts(fig)
    assert not first.images
    assert second.images
    # Of the two maps each is the one of zeros, with one of the sites.
    for other in every_figure(*((np.zeros_like(ig), ap) if site == "heads" else (ig, np.zeros_like(ig))), site):
        other.draw_without_rendering()
    (ax,) = point_plots(np.zeros_like(ig), ap)[0].axes
    assert "correlation undefined:\nIG scores are constant" in ax.texts[0].get_text()


@pytest.mark.parametrize(("shape", "site"), [((4, 8), "heads"), ((4, 512), "neurons"), ((1, 1), "heads")])
def test_maps_of_zeros_give_blank_figures_with_the_reason(shape, site):
    figures = every_figure(np.zeros(shape), np.zeros(shape), site)
    for fig in figures[:4]:
        assert "every score is 0" in texts(fig)
    assert "not drawn: no value above 0" in texts(figures[-1])
    for fig in figures:
        fig.draw_without_rendering()


def test_one_component_and_one_layer_are_drawn():
    for fig in every_figure(np.array([[0.5]]), np.array([[0.7]]), "heads"):
        fig.draw_without_rendering()
    _, fig, _ = point_plots(np.array([[0.5]]), np.array([[0.7]]))
    assert "limits of agreement" not in texts(fig)


def test_a_single_nan_leaves_the_other_cells_and_the_scale():
    ig, ap = random_maps((4, 8))
    ig[2, 2] = np.nan
    fig = plots.head_heatmaps(ig, ap, unit=UNIT)
    render(fig)
    left, _ = panels(fig)
    assert np.isfinite(left.images[0].get_clim()).all()
    neurons, ap = random_maps((4, 512))
    neurons[2, 2] = ap[2, 2] = np.nan
    upper, _ = panels(plots.neuron_heatmaps(neurons, ap, unit=UNIT))
    assert not np.ma.is_masked(upper.images[0].get_array())  # NaN ranks last


def test_no_comparison_gives_a_blank_curve():
    fig = plots.jaccard_curve({})
    assert "no site was compared" in texts(fig)
    render(fig)
    render(plots.convergence_delta({}, {}, tolerance=0.01))


@pytest.mark.parametrize("length", [1, 12, 30])
def test_a_legend_is_below_the_panels_and_no_wider_than_its_figure(length):
    fig, (ax,) = figure(8.0, 4.0, 1, 1, "")
    for i in range(9):
        ax.plot([0, 1], [0, i], label=f"{i}" * length)
    add_legend(fig, 9)
    fig.draw_without_rendering()
    (legend,) = fig.legends
    box = legend.get_window_extent()
    assert (box.x0, box.x1) == pytest.approx(np.clip((box.x0, box.x1), 0, fig.bbox.width))
    assert 0 <= box.y0 < box.y1 <= ax.get_tightbbox().y0
    heights = {round(text.get_window_extent().y0) for text in legend.texts}
    assert (len(legend.texts), len(heights)) == (9, {1: 1, 12: 3, 30: 5}[length])


def test_no_other_way_puts_a_legend_below_a_figure():
    files = [file for file in Path(plots.__file__).parents[1].rglob("*.py") if "outside lower" in file.read_text()]
    assert [file.name for file in files] == ["canvas.py"]
