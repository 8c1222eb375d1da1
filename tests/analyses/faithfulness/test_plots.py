"""The figure of the curves: what is drawn where, and that nothing runs out or lies on anything else."""

import dataclasses
import itertools

import numpy as np
import pytest

from igap.analyses.faithfulness.curves import FaithfulnessCurves, curves_of
from igap.analyses.faithfulness.plots import faithfulness_curves
from igap.analyses.faithfulness.rankings import sets, sizes_of

METHODS = ("ap", "ig", "atp", "atp_star")


def sweep(n: int, *, pairs: int = 1, ablation: str = "corrupted") -> FaithfulnessCurves:
    rng = np.random.default_rng(0)
    rankings = {
        (method, ranking): np.stack([rng.permutation(n) for _ in range(10 if method == "random" else 1)])
        for method in (*METHODS, "random")
        for ranking in ("contribution", "magnitude")
    }
    kept, index = sets(rankings, sizes_of(n))
    values = np.stack([kept @ rng.normal(1, 3, n) for _ in range(pairs)])
    return curves_of(values, index, site="heads", ablation=ablation, sizes=sizes_of(n), min_gap=0.0, seed=0)


def panels(fig):
    return [ax for ax in fig.axes if ax.axison]


def test_a_panel_an_area_draws_every_method_with_its_area_and_random_rankings_in_grey():
    found = sweep(32)
    axes = panels(faithfulness_curves([found], title="heads of a model"))
    assert len(axes) == 3
    for ax, area in zip(axes, ("cpr", "cmd", "deletion"), strict=True):
        lines = {line.get_label().split()[0]: line for line in ax.lines if not line.get_label().startswith("_")}
        assert set(lines) == {*METHODS, "random"}
        for method, line in lines.items():
            assert line.get_label() == f"{method} {found.areas(area)[method].value[0]:.3f}"
            assert (line.get_color() == "0.5") == (method == "random")
        np.testing.assert_array_equal(lines["ap"].get_xdata(), np.array(found.sizes) / 32)
        (band,) = ax.collections
        assert band.get_facecolor()[0][:3].tolist() == [0.5, 0.5, 0.5]
        assert ax.get_xlabel().startswith("share of the 32 heads ")
    curves = {(c.method, c.kind, c.ranking): c.faithfulness.value for c in found.curves}
    for ax, (kind, ranking) in zip(
        axes,
        [("insertion", "contribution"), ("insertion", "magnitude"), ("deletion", "contribution")],
        strict=True,
    ):
        drawn = next(line for line in ax.lines if line.get_label().startswith("ig "))
        np.testing.assert_array_equal(drawn.get_ydata(), curves["ig", kind, ranking])


def test_several_pairs_have_a_shade_a_method():
    assert [len(ax.collections) for ax in panels(faithfulness_curves([sweep(32, pairs=5)]))] == [5, 5, 5]


def test_of_many_components_the_share_is_on_a_logarithmic_axis_with_0():
    (ax, *_) = panels(faithfulness_curves([sweep(2048)]))
    assert ax.get_xscale() == "symlog"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "0.1%", "1%", "10%", "100%"]
    assert panels(faithfulness_curves([sweep(144)]))[0].get_xscale() == "linear"


def test_an_ablation_without_curves_says_that_it_is_not_drawn():
    found = sweep(32)
    missing = dataclasses.replace(found, ablation="mean", curves=(), reason="too few prompts")
    fig = faithfulness_curves([found, missing])
    assert len(panels(fig)) == 3
    texts = [text.get_text() for ax in fig.axes for text in ax.texts]
    assert any("not drawn, ablated by the mean activation" in text for text in texts)


@pytest.mark.parametrize("n", [32, 2048])
def test_nothing_runs_out_of_the_figure_and_no_legend_lies_on_a_panel(n):
    fig = faithfulness_curves([sweep(n), sweep(n, ablation="mean")], title="heads of a model, gap 7.014 logits")
    fig.draw_without_rendering()
    whole = fig.bbox
    parts = [part.get_window_extent() for ax in fig.axes for part in (ax.xaxis.label, ax.yaxis.label, ax.title)]
    legends = [ax.get_legend().get_window_extent() for ax in fig.axes]
    for box in [*parts, *legends]:
        assert whole.x0 <= box.x0
        assert box.x1 <= whole.x1
        assert whole.y0 <= box.y0
        assert box.y1 <= whole.y1
    assert not any(box.overlaps(ax.get_window_extent()) for box in legends for ax in fig.axes)
    assert not any(
        one.overlaps(other) for one, other in itertools.combinations([*legends, *parts], 2) if one is not other
    )
