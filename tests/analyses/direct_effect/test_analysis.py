"""The analysis: what it finds on a run, its figure, and what it refuses before the model loads."""

import numpy as np
import pandas as pd
import pytest
from helpers import handmade
from helpers.checkpoints import save_checkpoint
from helpers.families import FAMILIES, Sizes, save
from helpers.opened import follow

from igap import direct_effect, load_model
from igap.analyses.direct_effect.plots import direct_scatter
from igap.cli.compose import compose_one
from igap.pipeline import check


def config(result, **asked):
    return result.config.model_copy(update={"analyses": {"direct_effect": asked}})


@pytest.mark.parametrize("site", ["heads", "neurons"])
def test_a_run_finds_what_the_function_finds(many, checkpoint, site):
    model = load_model(str(checkpoint("gpt2")))
    found = follow("direct_effect", config(many, site=site), model, many.pairs, many.maps, many.comparisons)
    expected = direct_effect(model, many.pairs, site)
    pd.testing.assert_frame_equal(found.to_frame(), expected.to_frame(), atol=1e-6, check_dtype=False)
    assert len(found.direct.pairs) == 5


def test_the_run_s_direction_is_that_of_the_patch(result, small):
    model = small()
    expected = direct_effect(model, result.pairs, direction="denoising")
    mirrored = config(result).model_copy(update={"direction": "denoising"})
    found = follow("direct_effect", mirrored, model, result.pairs, {"heads": {"ap": expected.total}}, {})
    pd.testing.assert_frame_equal(found.to_frame(), expected.to_frame())


def test_the_figure_sets_direct_over_total_and_sums_by_layer(tmp_path):
    found = direct_effect(handmade.backup(tmp_path), handmade.PAIR)
    left, right, bar = direct_scatter(found, title="a model").axes
    points = np.array([[-1, -2], [-0.5, -0.5], [0, 0], [-0.25, -0.25]]) / 2.75
    np.testing.assert_allclose(left.collections[0].get_offsets(), points, atol=1e-9)
    direct, indirect = ([patch.get_height() for patch in bars] for bars in right.containers)
    assert direct == pytest.approx([-2.5 / 2.75, -0.25 / 2.75], abs=1e-9)
    assert indirect == pytest.approx([1 / 2.75, 0], abs=1e-9)
    assert (left.get_xlabel(), bar.get_ylabel()) == ("total effect (AP), score", "layer")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["positions=diff"],
            r"analyses\.direct_effect: got diff, none of which holds a position that F is read at, wanted one",
        ),
        (["model.dtype=bfloat16"], r"analyses: got direct_effect of model\.name=ioi-mini, .*bfloat16 rounds too much"),
        (["sites=neurons"], r"analyses\.direct_effect\.site: got heads with sites=neurons, wanted a site of the run"),
        (
            ["analyses.direct_effect.site=mlp_out"],
            r"analyses\.direct_effect\.site: got mlp_out with sites=both, wanted",
        ),
        (["analyses.direct_effect.site=q"], r"analyses\.direct_effect\.site: got 'q', wanted"),
    ],
)
def test_what_it_cannot_do_is_refused_before_the_model_loads(overrides, message):
    with pytest.raises(ValueError, match=message):
        check(compose_one(["analyses=direct_effect", *overrides]).config)


def test_a_model_that_the_engine_has_no_form_for_is_refused_before_it_loads(tmp_path):
    save_checkpoint("gptj", 1, tmp_path / "gptj")
    (tmp_path / "opt").mkdir()
    save(FAMILIES["OPT, norms after (350m)"], tmp_path / "opt", Sizes())
    for name, reason in (("gptj", "the engine has no form for GPTJForCausalLM"), ("opt", "norm the residual stream")):
        asked = ["analyses=direct_effect", "model=hf", f"model.name={tmp_path / name}", "sites=heads"]
        with pytest.raises(ValueError, match=reason):
            check(compose_one(asked).config)


def test_it_is_about_any_metric():
    check(compose_one(["analyses=direct_effect", "metric=kl"]).config)
