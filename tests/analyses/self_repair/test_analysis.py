"""The analysis: which component it patches, its figure, and what it refuses."""

import pandas as pd
import pytest
from helpers import handmade
from helpers.opened import follow

from igap import load_model, self_repair
from igap.analyses.self_repair.plots import repair_scatter
from igap.cli.compose import compose_one
from igap.pipeline import check


def config(result, **asked):
    return result.config.model_copy(update={"analyses": {"self_repair": asked}})


@pytest.mark.parametrize(
    ("asked", "patched"),
    [
        ({"patched": "1.2"}, "1.2"),
        ({}, None),
        ({"patched": "L0.N3", "site": "heads"}, "L0.N3"),
        ({"site": "neurons"}, None),
    ],
)
def test_a_run_finds_what_the_function_finds(many, checkpoint, asked, patched):
    """On several pairs; by default of the strongest component of the site."""
    model = load_model(str(checkpoint("gpt2")))
    site = asked.get("site", "heads")
    found = follow("self_repair", config(many, **asked), model, many.pairs, many.maps, many.comparisons)
    if patched is None:
        ap = many.maps[site]["ap"]
        patched = found.names[int(ap.effect.abs().argmax())]
    expected = self_repair(model, many.pairs, patched, site)
    assert (found.patched, found.effect) == (patched, pytest.approx(expected.effect, abs=1e-6))
    pd.testing.assert_frame_equal(found.to_frame(), expected.to_frame(), atol=1e-6, check_dtype=False)


def test_the_run_s_direction_is_that_of_the_patch(result, small):
    model = small()
    mirrored = config(result, patched="0.1").model_copy(update={"direction": "denoising"})
    expected = self_repair(model, result.pairs, "0.1", direction="denoising")
    found = follow("self_repair", mirrored, model, result.pairs, {"heads": {"ap": expected.alone}}, {})
    pd.testing.assert_frame_equal(found.to_frame(), expected.to_frame())


def test_the_figure_shows_the_backup_below_the_line_and_its_change_first(tmp_path):
    found = self_repair(handmade.backup(tmp_path), handmade.PAIR, "0.0")
    left, right = repair_scatter(found, title="a model").axes
    grey, marked = left.collections
    assert len(grey.get_offsets()) == len(marked.get_offsets()) == 3
    assert marked.get_offsets()[0].tolist() == pytest.approx([0, -1 / 2.75], abs=1e-9)
    first, *others = [label.get_text() for label in right.get_yticklabels()]
    assert (first, sorted(others)) == ("1.0", ["0.1", "1.1"]), "the others change by rounding alone"
    assert right.patches[0].get_width() == pytest.approx(-1 / 2.75, abs=1e-9)
    assert left.get_ylabel() == "AP with 0.0 patched, score"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["positions=each", "analyses.self_repair.patched='0.6'"],
            r"analyses\.self_repair\.patched: got 0\.6 with positions=each, wanted a component of the run's maps, "
            r"such as 0\.6@16",
        ),
        (
            ["positions=last", "analyses.self_repair.patched='0.6@16'"],
            r"analyses\.self_repair\.patched: got 0\.6@16 with positions=last, wanted a component of the run's maps, "
            r"such as 0\.6 alone",
        ),
        (
            ["positions=roles", "analyses.self_repair.patched='0.6@10'"],
            r"analyses\.self_repair\.patched: got 0\.6@10, but the maps have no span '10', wanted one of IO, S1, ",
        ),
        (
            ["analyses.self_repair.patched='9.6'"],
            r"analyses\.self_repair\.patched: got 9\.6, but the model has 4 layers",
        ),
        (
            ["analyses.self_repair.patched=0.6"],
            r"analyses\.self_repair\.patched: got 0\.6, wanted a head in quotes, \"'9\.6'\": without them",
        ),
        (
            ["analyses.self_repair.patched=six"],
            r"analyses\.self_repair\.patched: got 'six', wanted a head such as 9\.6",
        ),
        (["sites=neurons"], r"analyses\.self_repair\.site: got heads with sites=neurons, wanted a site of the run"),
        (
            ["sites=heads", "analyses.self_repair.patched=L0.N3"],
            r"analyses\.self_repair\.patched: got neurons with sites=heads, wanted a site of the run",
        ),
        (
            ["analyses.self_repair.site=q"],
            r"analyses\.self_repair\.site: got q with sites=both, wanted a site of the run\. Set sites=heads,n",
        ),
        (
            ["analyses.self_repair.patched=L0.attn_out"],
            r"analyses\.self_repair\.patched: got attn_out with sites=both, wanted a site of the run\. Set sites=",
        ),
        (["analyses.self_repair.site=head"], r"analyses\.self_repair\.site: got 'head', wanted one of"),
    ],
)
def test_what_it_cannot_do_is_refused_before_the_model_loads(overrides, message):
    with pytest.raises(ValueError, match=message):
        check(compose_one(["analyses=self_repair", *overrides]).config)


def test_it_is_about_metrics_that_are_not_least_on_the_clean_prompt():
    check(compose_one(["analyses=self_repair", "metric=prob"]).config)
    with pytest.raises(
        ValueError, match=r"^self_repair: got it together with metric=kl .* of metrics that are not least on"
    ):
        check(compose_one(["analyses=self_repair", "metric=kl"]).config)
