"""What values draw of themselves: the figures of a run, with the methods' own names, and nothing kept by pyplot."""

import sys

import numpy as np
import pytest
import torch

from igap import AttributionMap, InputError, plots
from igap.components import component_name
from igap.output.figures import figure_data, figures
from igap.statistics.comparison import FigureName, compare, compare_values


def drawn(figure):
    """Points, lines, images and texts of every panel; not where a name stands, which gives way to the title."""
    parts = []
    for axes in figure.axes:
        parts += [np.asarray(each.get_offsets()) for each in axes.collections if hasattr(each, "get_offsets")]
        parts += [np.asarray(each.get_xydata()) for each in axes.lines]
        parts += [np.asarray(each.get_array()) for each in axes.images]
        parts += [each.get_text() for each in axes.texts]
        parts += [axes.get_xlabel(), axes.get_ylabel(), axes.get_title(), axes.get_xlim(), axes.get_ylim()]
    return parts


@pytest.mark.parametrize("site", ["heads", "neurons"])
@pytest.mark.parametrize("kind", ["scatter", "mean_difference", "heatmap", "difference"])
def test_a_comparison_draws_the_very_figure_of_the_run_but_for_its_title(result, site, kind):
    (runs,) = figures(figure_data(result))[f"{site}_{kind}"]().values()
    axes = result.comparisons[site].plot(kind)
    assert axes is axes.figure.axes[0]
    expected, found = drawn(runs), drawn(axes.figure)
    assert len(found) > 5
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_map_draws_its_panel_of_the_runs_heatmap(result):
    for site, name in (("heads", "AP"), ("neurons", "AP")):
        found = result.maps[site]["ap"]
        axes = found.plot()
        assert axes.get_title() == name
        shown = np.abs(axes.images[0].get_array())
        assert shown.max() == pytest.approx(float(found.score.abs().max()))
        assert shown.shape == (3, 4 if site == "heads" else 25)
        if site == "heads":
            np.testing.assert_allclose(axes.images[0].get_array(), found.score)


def test_axes_carry_the_names_of_the_methods_that_were_compared(result):
    maps = result.maps["heads"]
    axes = compare(maps["atp"], maps["ap"]).plot()
    assert axes.get_xlabel().startswith("ATP, ")
    assert axes.get_ylabel().startswith("AP, ")
    assert compare(maps["atp_star"], maps["ap"]).plot().get_ylabel() == "AP, |score (effect / gap)|"
    assert compare(maps["ap"], maps["ap"]).plot("mean_difference").get_ylabel().startswith("AP_2 - AP_1, ")


def test_what_is_set_on_the_axes_is_in_the_picture_and_pyplot_knows_of_no_figure(result):
    axes = result.comparisons["heads"].plot("jaccard")
    before = axes._repr_png_()
    axes.set_xlabel("another")
    assert axes._repr_png_() != before
    if "matplotlib.pyplot" in sys.modules:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []


def test_other_figures_and_comparisons_of_arrays_are_refused(result, unchecked):
    with pytest.raises(InputError, match=r"^kind: got 'scater', wanted one of scatter, mean_difference, "):
        result.comparisons["heads"].plot("scater")
    arrays = compare_values(np.eye(2), np.eye(2))
    for ask in (arrays.plot, arrays.to_frame):
        with pytest.raises(InputError, match=r"^comparison: got one of arrays"):
            ask()
    assert "<table" in arrays._repr_html_()


def test_every_name_of_a_figure_is_drawn(result):
    for kind in FigureName.__args__:
        assert result.comparisons["heads"].plot(kind).figure.axes


def test_a_blank_panel_says_so_where_there_is_nothing_to_draw():
    figure = plots.map_heatmap(np.zeros((2, 3)), site="heads", method="AP", unit="score")
    assert "every score is 0" in figure.axes[0].texts[0].get_text()


@pytest.mark.parametrize("site", ["heads", "resid_pre", "neurons"])
def test_maps_by_position_and_their_comparison_draw_every_figure_with_the_names_of_positions(site):
    effects = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 2, 3, 1 if site == "resid_pre" else 30)))
    effects[1, 1, 2, 0] += 20
    ig, ap = (
        AttributionMap(name, site, effect, gap=4.0, spans=("0 to", "1 Mary", "2 gave"), where=((0,), (1,), (2,)))
        for name, effect in zip(("ig", "ap"), effects, strict=True)
    )
    assert [text.get_text() for text in ap.plot().get_xticklabels()] == list(ap.spans)
    for kind in FigureName.__args__:
        axes = compare(ig, ap).plot(kind)
        if kind in ("heatmap", "difference"):
            assert axes.get_xlabel() == "position"
        elif kind != "jaccard":
            assert f"{component_name(site, 1, 0)} at 2 gave" in {text.get_text() for text in axes.texts}
    assert f"{site} at position 1, gap" in ap.at("1").plot().figure.get_suptitle()
