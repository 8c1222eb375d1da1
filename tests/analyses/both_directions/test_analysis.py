"""The analysis: what it takes from the run and what it computes, its figure, and what it refuses."""

import json

import numpy as np
import pandas as pd
import pytest
from helpers import handmade
from helpers.opened import follow

from igap import PromptPair, both_directions, cli, load_model
from igap.analyses.both_directions.plots import directions_scatter
from igap.analyses.registry import ANALYSES
from igap.cli.compose import compose_one
from igap.pipeline import check


def config(result, **asked):
    return result.config.model_copy(update={"analyses": {"both_directions": asked}})


@pytest.mark.parametrize("site", ["heads", "neurons"])
def test_a_run_finds_what_the_function_finds(result, small, site):
    """Whichever way the run itself goes, and whatever baseline its own IG has."""
    model, (pair,) = small(), result.pairs
    asked = {"site": site, "high": 0.01, "most": 3}
    expected = both_directions(model, pair, site, high=0.01, most=3)
    maps = {site: dict(expected.noising)}
    mirrored = {site: dict(expected.denoising)}
    zero = config(result, **asked).baseline.model_copy(update={"kind": "zero"})
    elsewhere = {site: {"ap": maps[site]["ap"], "ig": None}}
    for changes, given in (
        ({}, maps),
        ({"direction": "denoising"}, mirrored),
        ({"baseline": zero}, elsewhere),
    ):
        settings = config(result, **asked).model_copy(update=changes)
        found = follow("both_directions", settings, model, (pair,), given, {})
        pd.testing.assert_frame_equal(found.to_frame(), expected.to_frame())
        pd.testing.assert_frame_equal(found.gates.to_frame(), expected.gates.to_frame())
        assert found.classes == expected.classes


def test_several_pairs_and_a_gap_without_scores(many, checkpoint):
    model = load_model(str(checkpoint("gpt2")))
    found = follow("both_directions", config(many, most=2), model, many.pairs, many.maps, many.comparisons)
    assert len(found.denoising["ap"].pairs) == len(found.denoising["ig"].pairs) == 5
    assert len(found.gates.first) == 1
    assert np.isfinite(found.gates.interaction_score).all(), "the pair with a small gap is left out"


def test_the_figure_has_a_point_a_component_where_its_two_effects_are(tmp_path):
    model = handmade.gates(tmp_path)
    both = both_directions(model, handmade.PAIR)
    left, right = directions_scatter(both, title="a model").axes
    points = {
        line.get_label(): np.stack([line.get_xdata(), line.get_ydata()], 1).round(6).tolist()
        for line in left.lines
        if not line.get_label().startswith("_")
    }
    third = round(1 / 3, 6)
    assert points == {
        "minimal (2)": [[round(1 / 6, 6)] * 2] * 2,
        "latent or (2)": [[0.0, third]] * 2,
        "latent and (2)": [[third, 0.0]] * 2,
    }
    assert {text.get_text() for text in left.texts} == {f"0.{i}" for i in range(6)}
    assert (left.get_xlabel(), right.get_ylabel()) == (
        "AP noising, takes away: -score",
        "IG denoising, brings back: score",
    )
    unscored = both_directions(model, PromptPair(*handmade.PAIR.texts, min_gap=1e3))
    left, _ = directions_scatter(unscored).axes
    (line,) = (line for line in left.lines if line.get_label() == "no class (6)")
    assert line.get_ydata().tolist() == pytest.approx([0, 0, 1, 1, 0.5, 0.5], abs=1e-9)
    assert left.get_ylabel() == "AP denoising, logits"


def test_the_command_line_writes_its_files_and_numbers(tmp_path, capsys):
    quick = ["ig.n_steps=2", "sites=heads", "explain=false", "curves.components=none", "tracking=disabled"]
    folder = tmp_path / "run"
    asked = ["analyses=both_directions", "analyses.both_directions.most=0", "plots=both_directions", "device=cpu"]
    assert cli.main(["run", *asked, *quick, f"hydra.run.dir={folder}"]) == 0
    said = capsys.readouterr().out
    summary = json.loads((folder / "summary.json").read_text())
    table = pd.read_csv(folder / "both_directions.csv", dtype={"name": str})
    assert (table["class"] == "minimal").sum() == summary["both_directions/n_minimal"]
    assert "heads that do as much in both directions (minimal): " in said
    assert (folder / "plots" / "both_directions.png").read_bytes()[:4] == b"\x89PNG"
    assert not (folder / "gates.csv").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["analyses.both_directions.high=0"], r"analyses\.both_directions\.high: got 0, wanted more than 0"),
        (["analyses.both_directions.most=1000"], r"analyses\.both_directions\.most: got 1000, wanted at most 100"),
        (["analyses.both_directions.site=q"], r"analyses\.both_directions\.site: got q with sites=both, wanted a site"),
        (["sites=neurons"], r"analyses\.both_directions\.site: got heads with sites=neurons, wanted a site of the run"),
    ],
)
def test_what_it_cannot_do_is_refused_before_the_model_loads(overrides, message):
    with pytest.raises(ValueError, match=message):
        check(compose_one(["analyses=both_directions", *overrides]).config)


def test_a_run_that_does_not_ask_for_it_does_not_do_it(result):
    assert not ANALYSES["both_directions"].is_requested(result.config)


def test_it_is_about_metrics_that_are_not_least_on_the_clean_prompt():
    check(compose_one(["analyses=both_directions", "metric=prob"]).config)
    with pytest.raises(
        ValueError, match=r"^both_directions: got it together with metric=kl .* of metrics that are not least on"
    ):
        check(compose_one(["analyses=both_directions", "metric=kl"]).config)
