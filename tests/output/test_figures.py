"""A run's figures show that run's numbers under the right names."""

from pathlib import Path

import numpy as np
import pytest
from helpers.small_gaps import without_scores
from matplotlib.text import Annotation

from igap.components import SITES, parse_component
from igap.output import figures


def drawn_of(result):
    """All figures of a run by file name."""
    draws = figures.figures(figures.figure_data(result)).values()
    return {name: figure for draw in draws for name, figure in draw().items()}


@pytest.fixture(scope="module")
def drawn(result):
    return drawn_of(result)


def labelled(ax):
    """Component names written beside points, with the point each belongs to."""
    return {text.get_text(): text.xy for text in ax.texts if isinstance(text, Annotation)}


@pytest.mark.parametrize("site", SITES)
def test_names_in_the_scatter_stand_at_the_scores_of_that_component(result, drawn, site):
    (ax,) = drawn[f"{site}_scatter"].axes
    ig, ap = (result.maps[site][method].score.double() for method in ("ig", "ap"))
    named = labelled(ax)
    assert named
    for name, (x, y) in named.items():
        of, layer, index = parse_component(name)
        assert of == site
        assert (x, y) == pytest.approx((float(ig[layer, index]), float(ap[layer, index])))
    assert ax.get_xlabel() == "IG, score (effect / gap)"
    assert ax.get_ylabel() == "AP, score (effect / gap)"


@pytest.mark.parametrize("site", SITES)
def test_names_in_the_mean_difference_plot_stand_at_mean_and_ap_minus_ig(result, drawn, site):
    (ax,) = drawn[f"{site}_mean_difference"].axes
    ig, ap = (result.maps[site][method].score.double() for method in ("ig", "ap"))
    for name, (x, y) in labelled(ax).items():
        _, layer, index = parse_component(name)
        a, b = float(ig[layer, index]), float(ap[layer, index])
        assert (x, y) == pytest.approx(((a + b) / 2, b - a))


def test_the_heatmaps_are_ig_ap_and_their_difference(result, drawn):
    ig, ap = (result.maps["heads"][method].score.double().numpy() for method in ("ig", "ap"))
    expected = {"IG": ig, "AP": ap, "AP - IG": ap - ig, "|AP| - |IG|": abs(ap) - abs(ig)}
    shown = {
        ax.get_title(): np.asarray(ax.images[0].get_array())
        for name in ("heads_heatmap", "heads_difference")
        for ax in drawn[name].axes
        if ax.images
    }
    assert shown.keys() == expected.keys()
    for title, values in expected.items():
        np.testing.assert_allclose(shown[title], values)


def test_titles_say_site_model_baseline_steps_and_gap(result, drawn):
    for site in SITES:
        title = " ".join(drawn[f"{site}_scatter"].get_suptitle().split())
        assert title.startswith(
            f"{site} of {Path(result.config.model.name).name}, noising, gap {result.gap:.3f} logits"
        )
        assert title.endswith("IG: corrupted baseline, joint path, 50 steps")


def test_below_the_smallest_gap_effects_are_drawn_and_called_logits(result):
    (ax,) = drawn_of(without_scores(result))["heads_scatter"].axes
    assert ax.get_xlabel() == "IG, effect (logits)"
    effect = result.maps["heads"]["ig"].effect
    for name, (x, _) in labelled(ax).items():
        _, layer, index = parse_component(name)
        assert x == pytest.approx(float(effect[layer, index]))


def test_titles_of_several_pairs_say_how_many_and_from_where_and_axes_that_scores_are_means(many):
    drawn = drawn_of(many)
    for name, figure in drawn.items():
        title = figure.get_suptitle()
        assert f"mean gap {many.gap:.3f} logits" in " ".join(title.split()), name
        assert "means over 5 pairs (five.csv)" in title, name
        assert ("the pair with the largest |delta|" in title) == (name == "convergence_delta"), name
    (ax,) = drawn["heads_scatter"].axes
    assert ax.get_xlabel() == "IG, mean score (effect / gap)"
    score = many.maps["heads"]["ap"].score.double()
    named = labelled(ax)
    assert named
    for name, (_, y) in named.items():
        _, layer, index = parse_component(name)
        assert y == pytest.approx(float(score[layer, index]))
