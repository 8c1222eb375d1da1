"""Runs with ap.top: what is on disk, opened again, on the terminal and in the key; and what is left out or refused."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import PathCollection
from rich.console import Console

from igap import activation_patching, compare, load_model, open_run, pipeline
from igap.cli.compose import compose_one
from igap.errors import InputError
from igap.output import disk, terminal

FEW = ("ig.n_steps=5", "plots=all", "tracking=disabled", "device=cpu")


def keyed(*overrides):
    return pipeline.check(compose_one([*FEW, *overrides]).config).key


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Result and opened run by its overrides."""
    made = {}

    def run(*overrides):
        if overrides not in made:
            folder = tmp_path_factory.mktemp("top")
            disk.prepare(folder)
            result = pipeline.run(compose_one([*FEW, *overrides]).config)
            disk.write(result, folder)
            made[overrides] = result, open_run(folder)
        return made[overrides]

    return run


def printed(result):
    console = Console(file=io.StringIO(), width=200)
    terminal.show(console, result)
    return console.file.getvalue()


def test_a_run_has_the_map_of_the_python_function_and_it_comes_back_from_its_folder(finished):
    result, opened = finished("ap.top=10", "ap.tolerance=0.001", "seed=3")
    made = activation_patching(load_model(), result.pairs, "neurons", top=10, tolerance=0.001, seed=3)
    for found in (result.maps["neurons"]["ap"], opened.maps["neurons"]["ap"]):
        assert found.top == made.top
        torch.testing.assert_close(found.effect, made.effect, atol=0, rtol=0, equal_nan=True)
    assert not result.maps["heads"]["ap"].effect.isnan().any()
    assert opened.maps["heads"]["ap"].top.n_left_out == 0
    comparison = compare(result.maps["neurons"]["ig"], made)
    assert result.comparisons["neurons"].pearson == opened.comparisons["neurons"].pearson == comparison.pearson
    assert opened.summary["neurons/n_components"] == (~made.effect.isnan()).sum() < 100
    assert opened.summary["neurons/pearson"] == comparison.pearson
    about = {name: opened.summary[f"neurons/ap_top/{name}"] for name in ("k", "tolerance", "least", "bound")}
    assert about == {"k": 10, "tolerance": 0.001, "least": made.top.least, "bound": made.top.bound}
    counts = [opened.summary[f"neurons/ap_top/{name}"] for name in ("n_left_out", "n_passes", "n_exact", "certain")]
    assert counts == [made.top.n_left_out, made.top.n_passes, 2048, 1]
    assert not opened.failures


def test_its_table_and_its_terminal_show_what_was_patched_first_and_say_what_was_not(finished):
    result, opened = finished("ap.top=10", "ap.tolerance=0.001", "seed=3")
    frame, ap = opened.tables["neurons"], result.maps["neurons"]["ap"].effect
    n_patched = int((~ap.isnan()).sum())
    assert frame["effect_ap"].notna().sum() == n_patched
    assert frame["effect_ap"][:n_patched].abs().is_monotonic_decreasing
    assert frame["effect_ap"][n_patched:].isna().all()
    assert not frame["outlier_abs"][n_patched:].any()
    text = printed(result)
    assert f"neurons: {result.maps['neurons']['ap'].top}; r and the rest are over the {n_patched} patched" in text
    assert "heads: all components were patched, for the 10 largest\n" in text
    assert "nan" not in text.lower()
    assert f"{frame['name'][0]} {frame['ap'][0]:+.3f}" in text


def test_every_picture_is_drawn_of_a_run_and_its_pictures_of_points_show_what_was_patched(finished):
    _, opened = finished("ap.top=10", "ap.tolerance=0.001", "seed=3")
    drawn = {path.stem for path in (opened.folder / "plots").glob("*.png")}
    assert {f"neurons_{name}" for name in ("scatter", "mean_difference", "heatmap", "difference")} <= drawn
    for name in ("neurons_scatter", "neurons_mean_difference"):
        drawn_as = [each for each in opened.plot(name).collections if isinstance(each, PathCollection)]
        points = [each.get_offsets() for each in drawn_as]
        assert sum(map(len, points)) == opened.summary["neurons/n_components"]
        assert np.isfinite(np.concatenate(points)).all()


def test_over_several_pairs_what_was_patched_has_intervals_and_each_pair_its_r(finished):
    result, opened = finished("ap.top=10", "prompts.n=4", "sites=neurons")
    ap = result.maps["neurons"]["ap"]
    known = ~ap.effect.isnan().numpy().ravel()
    ends = result.spread.intervals["neurons"]["ap"]
    assert np.isnan(ends.low[~known]).all()
    assert (ends.low[known] <= ap.score.double().numpy().ravel()[known]).all()
    assert (ends.low[known] < ends.high[known]).all()
    for index, r in enumerate(result.spread.pearson["neurons"]):
        x, y = (result.maps["neurons"][name].pairs[index].effect.numpy().ravel()[known] for name in ("ig", "ap"))
        assert r == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-5)
    assert opened.maps["neurons"]["ap"].pairs[3].top == ap.top
    assert "first in the mean" in printed(result)
    assert pd.notna(opened.tables["neurons"]["ap_low"][0])


def test_top_and_its_seed_are_part_of_the_key_and_without_it_nothing_is():
    plain = keyed()
    assert keyed("ap.tolerance=0.5") == plain  # which changes nothing, as the run says
    assert len({plain, keyed("ap.top=10"), keyed("ap.top=11"), keyed("ap.top=10", "seed=1")}) == 4
    assert keyed("ap.top=10", "ap.tolerance=0.5") != keyed("ap.top=10")
    assert keyed("seed=1") == plain


def test_analyses_of_all_effects_are_left_out_with_one_line(finished):
    result, _ = finished("ap.top=10", "ap.tolerance=0.001", "seed=3")
    assert not result.findings
    left_out = "screening, qk, explain, curves: left out; they are of all effects, not of the largest alone (ap.top)."
    assert left_out in result.warnings


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ap.top=2048"], r"ap\.top: got 2048 with sites=both, of which none has more than 2048 components"),
        (["ap.top=32", "sites=heads"], r"ap\.top: got 32 with sites=heads, of which none has more than 32"),
        (["ap.top=0"], r"ap\.top: got 0, wanted at least 1\. Try ap\.top=100\."),
        (["ap.top=9", "ap.tolerance=-1"], r"ap\.tolerance: got -1, wanted at least 0"),
        (["ap.top=9", "positions=each"], r"ap\.top: got 9 with positions=each, wanted all positions at once\."),
        (["ap.top=9", "metric=kl"], r"ap\.top: got 9 with metric=kl, wanted a metric with a gradient on the clean"),
        (["ap.top=9", "sites=resid_pre"], r"ap\.top: got 9 with sites=resid_pre, wanted a site of several components"),
        (["ap.top=9", "experiment=notebook"], r"ap\.top: got 9 with study=notebook, wanted no study"),
        (["ap.top=9", "faithfulness=heads"], r"faithfulness: got it together with ap\.top=9, but it is of all effects"),
        (["ap.top=9", "ablation=zero"], r"ablation: got it together with ap\.top=9, .* or use ap\.top=null\."),
        (["ap.top=9", "interactions='0.6'"], r"interactions: got it together with ap\.top=9, but it is of all effects"),
    ],
)
def test_what_cannot_be_together_is_refused_in_one_line_before_the_weights_load(overrides, message):
    with pytest.raises((InputError, ValueError), match=message) as refused:
        keyed(*overrides)
    assert "\n" not in str(refused.value)
