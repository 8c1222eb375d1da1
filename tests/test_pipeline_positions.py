"""Runs of other sites, positions and metrics: the numbers of the Python functions, on disk and opened again."""

import io
import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from igap import (
    PromptPair,
    ablate,
    activation_patching,
    attribution_patching,
    integrated_gradients,
    load_model,
    open_run,
    output_curve,
    pipeline,
)
from igap.analyses.ablation.analysis import read_or_generate
from igap.attribution.methods import METHODS
from igap.cli.compose import compose_one
from igap.cli.texts import quote_override
from igap.components import component_names
from igap.errors import InputError
from igap.inputs.sources import read_prompt_pairs
from igap.models import cached
from igap.output import disk, figures, record, terminal
from igap.output.dashboard import command, site_maps
from igap.storage.finished import find_runs

OWN = [
    {
        "clean": "After John and Mary went to the store, Mary gave a bottle of milk to",
        "corrupted": "After John and Mary went to the store, John gave a bottle of milk to",
        "answer": " John",
        "distractor": " Mary",
        "spans": '{"S2": "Mary:2", "end": "to:2"}',
    },
    {
        "clean": "Then, Mary and John went to the store. John gave a bottle of milk to",
        "corrupted": "Then, Mary and John went to the store. Mary gave a bottle of milk to",
        "answer": " Mary",
        "distractor": " John",
        "spans": '{"S2": "John:2", "end": [17]}',
    },
]
FEW = ("ig.n_steps=5", "plots=none", "tracking=disabled", "device=cpu")
MAPS = ("explain=false", "curves.components=none")
"""For what is of the maps alone."""


@pytest.fixture(scope="module")
def mini():
    return load_model()


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The working folder, with a file of pairs that name their spans."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.json").write_text(json.dumps(OWN))
    return tmp_path


@pytest.fixture
def run(tmp_path, own):
    def make(*overrides):
        given = [quote_override(override, single=True) for override in (*FEW, *overrides)]
        result = pipeline.run(compose_one(given).config, store=tmp_path / "store")
        folder = tmp_path / result.key
        disk.prepare(folder)
        disk.write(result, folder)
        return result, folder

    return make


def checked(*overrides):
    return pipeline.check(compose_one([quote_override(each, single=True) for each in (*FEW, *overrides)]).config)


NO_IOI = (
    "prompts.clean=After John went to the store, Mary gave a bottle to",
    "prompts.corrupted=After John went to the store, Tom gave a bottle to",
    "prompts.answer= Anna",
    "prompts.distractor= John",
)
CASES = {
    "each": (["sites=heads,resid_mid,k", "positions=each"], {"positions": "each"}),
    "spans": (
        ["sites=heads", "positions.spans={S2: 'Mary:2', verb: 11-12}"],
        {"positions": {"S2": [10], "verb": [11, 12]}},
    ),
    "last": (["sites=q,resid_pre", "positions=last"], {"positions": "last"}),
    "last of several": (["sites=heads", "positions=last", "prompts.n=2"], {"positions": "last"}),
    "roles": (["sites=heads", "positions=roles", "prompts.n=3"], {"positions": "roles"}),
    "own": (["sites=heads", "positions=own", "prompts.file=own.json"], {"positions": "own"}),
    "kl": (["sites=heads,mlp_out", "metric=kl"], {"metric": "kl"}),
    "denoising": (
        ["sites=heads", "metric=prob", "positions=diff", "direction=denoising"],
        {"metric": "prob", "positions": "diff", "direction": "denoising"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_run_has_the_maps_of_the_python_functions_and_they_come_back_from_its_folder(name, run, mini):
    overrides, options = CASES[name]
    result, folder = run(*overrides, *MAPS)
    opened = open_run(folder)
    pairs = list(read_prompt_pairs(result.config.prompts, mini.tokenizer))
    for site, maps in result.maps.items():
        assert list(maps) == ["ig", "ap"] + ["atp"] * ("metric" not in options or options["metric"] != "kl")
        expected = {
            "ig": integrated_gradients(mini, pairs, site, n_steps=5, **options),
            "ap": activation_patching(mini, pairs, site, **options),
        }
        if "atp" in maps:
            expected["atp"] = attribution_patching(mini, pairs, site, **options)
        for method, wanted in expected.items():
            for found in (maps[method], opened.maps[site][method]):
                torch.testing.assert_close(found.effect, wanted.effect, rtol=0, atol=2e-5)
                torch.testing.assert_close(found.score, wanted.score, rtol=0, atol=2e-5)
                assert (found.metric, found.unit, found.spans) == (wanted.metric, wanted.unit, wanted.spans)
                assert (found.where, found.covers) == (wanted.where, wanted.covers)
                assert (found.together is None) == (wanted.together is None)
                if wanted.together is not None:
                    torch.testing.assert_close(found.together, wanted.together, rtol=0, atol=2e-5)
            assert opened.maps[site][method].place == maps[method].place
            assert [each.where for each in opened.maps[site][method].pairs] == [each.where for each in wanted.pairs]
        assert opened.comparisons[site].summary() == pytest.approx(
            result.comparisons[site].summary(), nan_ok=True, abs=1e-9
        )


def test_its_table_has_a_row_a_component_and_span_and_another_the_effects_together(run):
    result, folder = run("sites=heads,resid_pre", "positions=each", *MAPS)
    frame, ap = pd.read_csv(folder / "heads.csv", dtype={"name": str}), result.maps["heads"]["ap"]
    row = frame[(frame["layer"] == 3) & (frame["head"] == 1) & (frame["span"] == "16 to")].iloc[0]
    assert (row["name"], row["effect_ap"]) == ("3.1", pytest.approx(float(ap.effect[3, 16, 1])))
    assert len(frame) == ap.effect.numel()
    together = pd.read_csv(folder / "heads_together.csv", dtype={"name": str}).set_index("name")
    assert together.loc["3.1", "effect_ap"] == pytest.approx(float(ap.together[3, 1]))
    assert together.loc["3.1", "ap_interaction"] == pytest.approx(
        float(ap.together[3, 1] - ap.effect[3, :, 1].sum()), abs=1e-6
    )
    stream, sums = result.maps["resid_pre"]["ap"], pd.read_csv(folder / "resid_pre_together.csv").set_index("name")
    beyond = float(stream.together[3, 0] - stream.effect[3].sum())
    assert sums.loc["L3.resid_pre", "ap_interaction"] == pytest.approx(beyond) == pytest.approx(0.435, abs=1e-3)
    vectors = pd.read_csv(folder / "resid_pre.csv")
    assert list(vectors.columns[:4]) == ["name", "layer", "span", "ig"]
    assert len(vectors) == 4 * 17
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["heads/n_components"] == 4 * 17 * 8
    assert (summary["positions"], summary["metric"], summary["sites"]) == ("each", "logit_diff", "heads resid_pre")
    assert "heads/outliers" not in summary, "names by position hold spaces"


def test_f_of_another_metric_stands_beside_the_logit_difference_with_its_unit(run):
    result, folder = run("sites=heads", "metric=kl", "prompts.n=2", *MAPS)
    summary, pairs = json.loads((folder / "summary.json").read_text()), pd.read_csv(folder / "pairs.csv")
    assert summary["metric/unit"] == "nats"
    assert summary["clean_value"] == pytest.approx(0, abs=1e-6)
    assert summary["gap"] == pytest.approx(-summary["corrupted_value"])
    assert summary["clean_logit_diff"] > 1 > summary["corrupted_value"] - 30
    assert pairs["gap"].tolist() == pytest.approx([-value for value in result.corrupted_values])
    assert (pairs["clean_value"].abs() < 1e-5).all()
    assert pairs["clean_logit_diff"].tolist() == pytest.approx(list(result.clean_logit_diffs))
    assert any("where its gradient is 0" in warning for warning in result.warnings)
    assert summary["heads/atp/pearson"] is None
    assert "where its gradient is 0" in summary["heads/atp/pearson/reason"]


def test_analyses_of_another_metric_are_of_that_metric(run, mini):
    result, _ = run("sites=heads", "metric=prob", "curves.components='0.6'", "faithfulness=heads")
    pair = read_prompt_pairs(result.config.prompts, mini.tokenizer)[0]
    effect = float(activation_patching(mini, pair, metric="prob").effect[0, 6])
    curves = result.findings["curves"]
    assert (float(curves.effects[0]), curves.unit) == (pytest.approx(effect, abs=1e-6), "probability")
    assert {"value_0", "value_1"} <= set(curves.tables()["curves_components"])
    chain = result.findings["explain"].chain
    assert float(chain.points["ap"].effect[0, 6]) == pytest.approx(effect, abs=1e-6)
    group = result.findings["faithfulness"].groups[0]
    assert (group.full, group.empty) == (
        pytest.approx(result.clean_values[0], abs=1e-6),
        pytest.approx(result.corrupted_values[0], abs=0.2),
    )
    assert result.findings["qk"].maps["q"]["ap"].effect.abs().max() < 1, "probabilities"


def test_a_run_ablates_at_its_spans_and_measures_its_metric(run, mini):
    asked = ["sites=[heads,attn_out]", "metric=prob", "positions=roles", "explain=false", "curves.components=none"]
    result, folder = run(
        *asked, "ablation=zero", "ablation.components='3.1 L2.attn_out 0.3+0.5'", "ablation.n=12", "ablation.controls=2"
    )
    study = result.findings["ablation"]
    prompts = read_or_generate(result.config.ablation, mini.tokenizer, "auto")
    options = {"positions": "roles", "metric": "prob", "controls": 2}
    expected = ablate(mini, prompts, ["3.1", "L2.attn_out", "0.3+0.5"], **options)
    ours = study.kinds["zero"]
    assert (ours.metric, ours.unit, ours.value) == ("prob", "probability", pytest.approx(expected.value, abs=1e-6))
    table, summary = pd.read_csv(folder / "ablation.csv"), json.loads((folder / "summary.json").read_text())
    assert [each.name for each in ours.single[:5]] == [f"3.1 at {role}" for role in ("IO", "S1", "S1+1", "S2", "END")]
    for effect, other in zip(ours.effects, expected.effects, strict=True):
        assert (effect.name, effect.components) == (other.name, other.components)
        assert effect.value_change == pytest.approx(other.value_change, abs=1e-6)
        assert summary[f"ablation/zero/{effect.name}/value_change"] == effect.value_change
    assert summary["ablation/zero/value"] == ours.value == table["value"][0]
    assert table["value_change"].tolist()[1:] == pytest.approx([effect.value_change for effect in ours.effects])
    # The scores beside them are those of the run's maps at the same spans.
    end = table.set_index("name").loc["3.1 at END"]
    assert end["ap"] == pytest.approx(result.maps["heads"]["ap"].score[3, -1, 1].item(), abs=1e-6)
    assert table.set_index("name").loc["L2.attn_out at S2", "ig"] == pytest.approx(
        result.maps["attn_out"]["ig"].score[2, 3, 0].item(), abs=1e-6
    )
    assert np.isnan(table.set_index("name").loc["0.3+0.5 at END", "ap"])
    assert any("without 3.1 at END" in line and "prob" in line for line in study.sentences())


def test_the_roles_are_where_the_names_stand(mini):
    """After(1) John(2) and Mary(4) went to the store, Mary(10) gave a bottle of milk to(16)."""
    pair = PromptPair(**{name: OWN[0][name] for name in ("clean", "corrupted", "answer", "distractor")})
    for direction in ("noising", "denoising"):
        found = activation_patching(mini, pair, positions="roles", direction=direction)
        assert dict(zip(found.spans, found.where, strict=True)) == {
            "IO": (2,), "S1": (4,), "S1+1": (5,), "S2": (10,), "END": (16,),
        }  # fmt: skip


def test_curves_at_spans_end_at_the_effects_of_those_spans(run, mini):
    result, folder = run(
        "sites=heads", "positions=roles", "curves.components='0.6 3.1'", "prompts.n=2", "plots=curves", "explain=false"
    )
    curves, ap = result.findings["curves"], result.maps["heads"]["ap"]
    assert curves.names[:2] == ("0.6 at IO", "0.6 at S1")
    places = [(0, 6), (3, 1)]
    expected = [float(ap.effect[layer, span, head]) for layer, head in places for span in range(5)]
    assert curves.effects.tolist() == pytest.approx(expected, abs=2e-5)
    pairs = list(read_prompt_pairs(result.config.prompts, mini.tokenizer))
    alone = output_curve(mini, pairs, "0.6", positions="roles")
    assert alone.values == pytest.approx(curves.values[:5], abs=2e-5)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["curves/components"].startswith("0.6 at IO, 0.6 at S1, ")
    assert pd.read_csv(folder / "curves_components.csv")["name"].tolist() == list(curves.names)
    assert (folder / "plots" / "output_curves.png").exists()
    last = output_curve(mini, pairs, ["3.1"], positions="last")
    end = activation_patching(mini, pairs, positions="last").effect[3, 1]
    assert (last.names, last.effects[0]) == (("3.1",), pytest.approx(float(end), abs=2e-5))


def test_pictures_say_metric_unit_and_positions_and_are_drawn_from_the_record(run):
    result, folder = run("sites=resid_post", "metric=js", "positions=each", *MAPS)
    data = record.read(folder).data
    assert data.metric_unit == "nats"
    assert "F: js; positions: each" in data.title
    assert "nats" in data.title
    assert data.sites["resid_post"].spans == result.maps["resid_post"]["ap"].spans
    (figure,) = figures.figures(data)["resid_post_heatmap"]().values()
    labels = [text.get_text() for ax in figure.axes for text in ax.get_xticklabels()]
    assert "10 Mary" in labels
    (figure,) = figures.figures(data)["convergence_delta"]().values()
    assert figure.axes[0].get_ylabel() == "|completeness delta|, nats"


def test_a_function_of_the_users_is_the_metric_and_its_text_is_part_of_the_key(run, tmp_path, monkeypatch, mini):
    monkeypatch.syspath_prepend(tmp_path)
    text = "def margin(logits, pair):\n    return logits[:, pair.answer] - 0.5 * logits.mean(-1)\n"
    (tmp_path / "own_metric.py").write_text(text)
    result, folder = run("sites=heads", "metric=custom", "metric.function=own_metric:margin", "analyses=self_repair")
    assert not result.failures
    assert {"explain", "self_repair"} <= record.read(folder).data.findings.keys(), "kept for pictures"
    import own_metric

    pair = read_prompt_pairs(result.config.prompts, mini.tokenizer)[0]
    wanted = activation_patching(mini, pair, metric=own_metric.margin)
    torch.testing.assert_close(result.maps["heads"]["ap"].effect, wanted.effect, rtol=0, atol=2e-5)
    before = checked("metric=custom", "metric.function=own_metric:margin").key
    (tmp_path / "own_metric.py").write_text(text + "# another\n")
    assert checked("metric=custom", "metric.function=own_metric:margin").key != before


def test_a_function_is_the_one_that_stands_on_disk_now_and_what_it_is_made_of_counts(run, own):
    (own / "parts.py").write_text("def scaled(k):\n    return lambda logits, pair: k * logits[:, pair.answer]\n")
    text = "from parts import scaled\n\nmargin = scaled({})\n"
    found = []
    for k in (1, 5):
        (own / "made_metric.py").write_text(text.format(k))
        result, _ = run("sites=heads", "metric=custom", "metric.function=made_metric:margin", *MAPS)
        found.append((result.key, result.gap))
    assert found[0][0] != found[1][0]
    assert found[1][1] == pytest.approx(5 * found[0][1])


REFUSED = {
    "shape": ("return logits.sum()", "gives [] for 2 rows"),
    "gradient": ("return logits.argmax(-1).double()", "has no gradient"),
    "raises": ("return logits[:, 10**9]", "raises IndexError"),
    "chance": ("import random\n    return logits[:, 0] + random.random()", "another number for the same logits"),
    "other rows": ("return logits[:, 0] - logits.mean()", "other rows stand beside it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_function_that_is_no_metric_is_refused_before_the_model_loads(name, run, own, monkeypatch):
    body, said = REFUSED[name]
    (own / f"no_metric_{name.replace(' ', '_')}.py").write_text(f"def odd(logits, pair):\n    {body}\n")
    monkeypatch.setattr(cached, "load_model", lambda *_, **__: pytest.fail("the weights were read"))
    cached._cached_model.cache_clear()
    with pytest.raises(InputError, match=r"^metric: got a function that [^\n]*, wanted [^\n]*$") as error:
        checked("metric=custom", f"metric.function=no_metric_{name.replace(' ', '_')}:odd")
    assert said in str(error.value)


def test_a_function_is_tried_early_on_each_pairs_own_tokens(own):
    (own / "known_words.py").write_text(
        "def of_john(logits, pair):\n    return {first: logits[:, first] for first in [FIRST]}[pair.answer]\n"
    )
    first = checked().tokens[0].answer
    text = (own / "known_words.py").read_text().replace("FIRST", str(first))
    (own / "known_words.py").write_text(text)
    checked("metric=custom", "metric.function=known_words:of_john")
    with pytest.raises(InputError, match=r"^metric: got a function that raises KeyError"):
        checked("metric=custom", "metric.function=known_words:of_john", "prompts.file=own.json")


def test_a_function_that_made_up_logits_put_outside_its_range_is_left_to_the_models(run, own):
    (own / "ranged.py").write_text("def of_sure(logits, pair):\n    return (logits.amax(-1) - 4).log()\n")
    assert checked("metric=custom", "metric.function=ranged:of_sure").key
    result, _ = run("sites=heads", "metric=custom", "metric.function=ranged:of_sure", *MAPS)
    assert result.maps["heads"]["ap"].effect.isfinite().all()


def test_spans_have_one_key_however_they_are_written():
    keys = {checked(f"positions.spans={{a: {where}}}").key for where in ("3", "[3]", "3-3")}
    assert len(keys) == 1
    assert checked("positions.spans={a: 3-4}").key == checked("positions.spans={a: [4, 3]}").key not in keys


def test_bfloat16_takes_other_metrics_by_every_path_and_keeps_its_outliers(run):
    result, _ = run("sites=heads", "model.dtype=bfloat16", "metric=prob", "ig.path=single", "ig.n_steps=2")
    assert result.maps["heads"]["ig"].effect.isfinite().all()
    assert not result.failures
    result, _ = run("sites=heads", "model.dtype=bfloat16", "metric=logit", "ig.n_steps=auto", "explain=false")
    assert int(result.maps["heads"]["ig"].n_steps.max()) <= 48
    assert result.comparisons["heads"].outlier_abs.any()


def test_auto_knows_the_size_of_a_small_metric(own, mini):
    pair = PromptPair(**{name: OWN[0][name] for name in ("clean", "corrupted", "answer", "distractor")})
    maps = [
        integrated_gradients(
            mini,
            pair,
            metric=lambda logits, pair, by=by: by * (logits[:, pair.answer] - logits[:, pair.distractor]),
            n_steps="auto",
        )
        for by in (1.0, 1e-6)
    ]
    assert maps[0].n_steps.tolist() == maps[1].n_steps.tolist()
    assert maps[1].converged.all()


def test_vectors_have_no_correlation_in_single_pairs_either(run):
    _, folder = run("sites=resid_pre", "prompts.n=3", "ig.n_steps=50", *MAPS)
    assert json.loads((folder / "summary.json").read_text())["resid_pre/pearson_pairs_mean"] is None
    assert pd.read_csv(folder / "pairs.csv")["pearson_resid_pre"].isna().all()


def test_faithfulness_asks_of_another_metric_no_share_of_its_size(run, own):
    (own / "shifted.py").write_text(
        "def far(logits, pair):\n    return 1000 + logits[:, pair.answer] - logits[:, pair.distractor]\n"
    )
    settings = ["sites=heads", "metric=custom", "metric.function=shifted:far", "faithfulness=heads"]
    result, _ = run(*settings, *MAPS)
    assert all(group.reason == "" for group in result.findings["faithfulness"].groups if group.ablation == "corrupted")


def test_keys_of_default_runs_stay_and_every_choice_has_another():
    before = checked().key
    others = [
        "metric=kl",
        "positions=each",
        "positions=last",
        "positions.spans={a: 3}",
        "positions.spans={b: 3}",
        "sites=q",
    ]
    keys = {override: checked(override).key for override in others}
    assert len({before, *keys.values()}) == len(others) + 1
    assert checked("metric=logit_diff", "positions=all", "sites=neurons,heads").key == before


@pytest.mark.parametrize(
    ("asked", "idle"),
    [
        (["metric=kl"], "explain=false"),
        (["metric=js", "positions=diff"], "explain=false"),
        (["positions=each"], "curves.components=none"),
        (["positions.spans={a: 3}"], "curves.alphas=[0,0.5,1]"),
    ],
)
def test_what_a_metric_or_positions_leave_out_is_in_no_key(asked, idle):
    without, having = checked(*asked), checked(*asked, idle)
    assert without.key == having.key
    ((given, _),) = [
        *compose_one([quote_override(each, single=True) for each in (*FEW, *asked, idle)]).config.idle[0].values.items()
    ]
    assert given == idle.partition("=")[0]


@pytest.mark.parametrize(
    ("asked", "used"),
    [
        (["metric=prob"], "explain=false"),
        (["metric=kl", "direction=denoising"], "explain=false"),
        (["positions=last"], "curves.components=none"),
        (["positions=each", "curves.components='0.1'"], "curves.alphas=[0,0.5,1]"),
    ],
)
def test_what_they_do_not_leave_out_is(asked, used):
    assert checked(*asked).key != checked(*asked, used).key


def test_a_run_warns_of_a_setting_that_its_positions_leave_idle(run):
    result, folder = run("sites=heads", "positions=last", "metric=kl", "explain=false")
    said = "explain=false changes nothing: metric=kl has no gradient on the clean prompt to explain with."
    assert said in result.warnings
    assert open_run(folder).config.explain is False


@pytest.mark.parametrize(
    ("sites", "overrides"),
    [("heads", ["positions=last"]), ("neurons", ["positions.spans={a: 10-11}"]), ("heads", ["metric=kl"])],
)
def test_patches_by_position_and_of_other_metrics_are_made_once_for_all_baselines(run, monkeypatch, sites, overrides):
    calls, patch = [], METHODS["ap"].attribute
    counted = replace(METHODS["ap"], attribute=lambda *given: calls.append(1) or patch(*given))
    monkeypatch.setitem(METHODS, "ap", counted)
    effects = [
        run(f"sites={sites}", *overrides, f"baseline={kind}", f"ig.n_steps={n_steps}", *MAPS)[0].maps[sites]["ap"]
        for kind, n_steps in (("corrupted", 2), ("zero", 3))
    ]
    assert calls == [1]
    assert torch.equal(effects[0].effect, effects[1].effect)


def test_maps_of_two_metrics_share_no_cache(run):
    effects = [
        run("sites=heads", f"metric={metric}", f"ig.n_steps={n_steps}", *MAPS)[0].maps["heads"]["ap"].effect
        for n_steps, metric in enumerate(("logit_diff", "prob", "logit_diff"), start=3)
    ]
    assert torch.equal(effects[0], effects[2])
    assert not torch.allclose(effects[0], effects[1], atol=0.05)
    by_position = run("sites=heads", "positions=last", *MAPS)[0].maps["heads"]["ap"].effect
    assert not torch.allclose(effects[0], by_position, atol=0.05)


def test_vectors_that_are_one_number_in_every_layer_have_no_correlation(run):
    result, folder = run("sites=resid_pre", "ig.n_steps=50", *MAPS)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["resid_pre/pearson"] is None
    assert summary["resid_pre/pearson/reason"] == "IG and AP scores are constant"
    assert summary["resid_pre/n_outliers"] == 0
    assert result.maps["resid_pre"]["ap"].score.flatten().tolist() == pytest.approx([-1.0] * 4, abs=1e-5)


def test_a_site_of_fewer_components_than_the_terminal_ranks_leaves_places_empty(run):
    result, folder = run("sites=heads,resid_pre", *MAPS)
    console = Console(file=io.StringIO(), width=200)
    terminal.show(console, result, folder)
    (last,) = (line for line in console.file.getvalue().splitlines() if re.match(r"│ +5 │", line))
    assert [bool(cell.strip()) for cell in last.strip("│").split("│")] == [True, True, True, False, False]


@pytest.mark.parametrize(
    "overrides",
    [
        ["sites=resid_mid,k", "positions=each"],
        ["sites=heads,v,mlp_out"],
        ["sites=heads,attn_out", "positions.spans={S2: 'Mary:2', verb: 11-12}"],
    ],
)
def test_compare_has_the_number_of_every_component_and_span_under_its_name(overrides, run):
    result, folder = run(*overrides, *MAPS)
    ((finished, *_), _) = find_runs([folder])
    assert site_maps.mapped_sites(finished) == list(result.maps)
    for site, maps in result.maps.items():
        found, problem = site_maps.read(folder, site)
        assert problem is None
        names = [found.name.format(row=row, column=column) for row in found.rows for column in found.columns]
        n_layers, *_, width = maps["ig"].effect.shape
        wanted = component_names(site, n_layers, width, maps["ig"].spans)
        for method in ("ig", "ap"):
            numbers = dict(zip(names, getattr(found, method), strict=True))
            assert numbers == pytest.approx(dict(zip(wanted, maps[method].score.flatten().tolist(), strict=True)))


def test_compare_draws_them_under_the_unit_of_their_metric_and_says_what_is_the_same_in_all(run, tmp_path, capsys):
    _, each = run("sites=heads,resid_mid", "positions=each", "metric=prob", *MAPS)
    command.compare_runs([each], output=tmp_path)
    said = capsys.readouterr()
    assert "cannot be read" not in said.err
    assert "resid_mid/" in said.out
    (data,) = re.findall(r'id="data">(.*?)</script>', (tmp_path / "compare.html").read_text())
    (shown,) = json.loads(data)["runs"]
    assert (shown["unit"], shown["about"]) == ("probability", ["metric=prob", "positions=each"])
    assert [len(shown["maps"][site]["rows"]) for site in ("heads", "resid_mid")] == [4 * 8, 4]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sites=heads,resid"], r"^sites: got \['heads', 'resid'\], wanted one of 'both', 'heads', .* each once\."),
        (["sites=heads,heads"], r"^sites: got \['heads', 'heads'\], wanted one of"),
        (["metric=klx"], r"^metric: got 'klx', wanted one of .*Did you mean kl\?"),
        (["metric=custom"], r"^metric\.function: got nothing with metric=custom"),
        (["metric=custom", "metric.function=nowhere:f"], r"^metric\.function: got nowhere:f, which cannot be imported"),
        (["metric=custom", "metric.function=math:pi"], r"^metric\.function: got math:pi, which is float, wanted"),
        (["metric=custom", "metric.function=math:sin"], r"^metric\.function: got .* whose source file cannot be read"),
        (["metric=custom", "metric.function=a b"], r"^metric\.function: got 'a b', wanted a function as package"),
        (["positions=each", "positions.spans={a: 3}"], r"^positions\.spans: got \{'a': 3\} with positions=each"),
        (["positions.spans={a: 4-3}"], r"^positions\.spans: got \{'a': '4-3'\}, wanted spans by name"),
        (["positions.spans={a: [x]}"], r"^positions\.spans: got \{'a': \['x'\]\}, wanted spans by name"),
        (["positions.spans={a: -1}"], r"^positions\.spans: got \{'a': -1\}, wanted spans by name"),
        (["positions.spans={a: [3,3]}"], r"^positions\.spans: got \{'a': \[3, 3\]\}, wanted spans by name"),
        (["positions.spans={a: 3, b: 2-4}"], r"^positions\.spans: got .*, wanted spans apart .*: position 3 is in 'b'"),
        (["positions.spans={a: '17'}"], r"^positions\['a'\]: got '17', wanted words of the clean prompt"),
        (["positions.spans=3"], r"^positions\.spans: got 3, wanted spans by name"),
        (["positions.spans={a: 16}", "prompts.bos=none"], r"^positions\['a'\]: got \[16\], wanted one .* 0 to 15"),
        (["positions.spans={a: 17}"], r"^positions\['a'\]: got \[17\], wanted one or more positions .* 0 to 16"),
        (["positions.spans={a: Mary}"], r"^positions\['a'\]: got 'Mary', which the clean prompt has 2 times"),
        (["positions.spans={a: Mary:2, b: Mary gave}"], r"^positions: got spans 'a' and 'b', which share position"),
        (["positions=each", "prompts.n=40"], r"^positions: got each with pairs of \d+ and \d+ tokens"),
        (["positions=own"], r"^positions: got own with a pair that has no spans, wanted spans by name in the column"),
        (
            ["positions=roles", *NO_IOI],
            r"^positions: got roles, but a clean prompt has the answer 0 and the distractor 1",
        ),
        (
            ["positions=each", "ablation=zero"],
            r"^ablation: got it together with .* positions=each, but it is of prompts",
        ),
        (
            ["positions=roles", "ablation=zero"],
            r"^ablation: got it together with .*=roles, but it is of heads chosen at",
        ),
        (
            ["positions.spans={a: Mary:2}", "ablation=zero", "ablation.components='0.3'", "ablation.n=9"],
            r"^ablation\.n, prompt 1: positions\['a'\]: got 'Mary:2', (wanted|but the|which)",
        ),
        (
            ["positions.spans={a: 16}", "ablation=zero", "ablation.components='0.3'", "ablation.n=50"],
            r"^ablation\.n, prompt \d+: positions\['a'\]: got \[16\], wanted one or more positions of the clean prompt",
        ),
        (["positions=each", "curves.components=top2:ap"], r"^curves: got it together with .* positions=each"),
        (
            ["metric=kl", "ablation=zero", "ablation.components=top", "ablation.by=atp"],
            r"^ablation\.by: got atp, but the",
        ),
        (
            ["metric=kl", "analyses=sets", "analyses.sets.components=top2:atp"],
            r"^analyses\.sets\.components: got top2:atp",
        ),
        (
            ["positions=each", "interactions='3.1@17'"],
            r"^interactions: got 3\.1@17, but the maps have no span '17', wan",
        ),
        (["positions=roles", "interactions='3.1@S3'"], r"^interactions: .* no span 'S3', wanted one of IO, S1, S1\+1"),
        (
            ["positions.spans={a b: 10, c: 16}", "interactions='3.1@a'"],
            r"^interactions: got 3\.1@a, but the maps have no span 'a', wanted one of a b, c\.",
        ),
        (
            ["metric=custom", "metric.function=several:first", "ablation=zero", "prompts.answer= John and"],
            r"^ablation: got it with metric=custom and an answer of several tokens, but prompts of an ablation have",
        ),
        (
            ["metric=prob_diff", "ablation=zero", "ablation.components='0.3'", "ablation.file=undistracted.csv"],
            r"^metric: got prob_diff, but 2 prompts \(the first is 1\) have no distractor, wanted one each",
        ),
        (["metric=kl", "interactions='0.3'"], r"^interactions: got it together with metric=kl"),
        (["sites=resid_pre", "baseline=zero_input"], r"^baseline: got zero_input with sites=resid_pre"),
        (["sites=q", "faithfulness=heads"], r"^faithfulness: got heads with sites=q, wanted heads among the sites"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_before_the_model_loads(overrides, message, monkeypatch, own):
    (own / "several.py").write_text("def first(logits, pair):\n    return logits[:, 0, pair.answer]\n")
    (own / "undistracted.csv").write_text("prompt,answer\nJohn went to the, store\nMary went to the, store\n")
    monkeypatch.setattr(cached, "_cached_model", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(InputError, match=message) as refused:
        checked(*overrides)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ('{"S2": 10}', r"^positions: got own with pairs that name the spans S2, end and S2, wanted the same names"),
        ("S2: 10", r"^positions: got own with the spans 'S2: 10', wanted spans by name .* This is pair 1, counted"),
        ("[3]", r"^positions: got own with the spans '\[3\]', wanted spans by name .* This is pair 1, counted"),
        (
            '{"S2": "Tom", "end": 3}',
            r"^positions\['S2'\]: got 'Tom', wanted words .* This is pair 1, counted from 0\.$",
        ),
    ],
)
def test_spans_of_a_file_that_do_not_fit_are_refused_in_one_line(own, spans, message):
    (own / "own.json").write_text(json.dumps([OWN[0], {**OWN[1], "spans": spans}]))
    with pytest.raises(InputError, match=message) as refused:
        checked("positions=own", "prompts.file=own.json")
    assert "\n" not in str(refused.value)


def test_pairs_may_name_their_spans_in_any_order(own, mini):
    """Of two token lengths, so that they are attributed in two passes."""
    texts = ("clean", "corrupted", "answer", "distractor")
    maps = []
    for order in (1, -1):
        pairs = [PromptPair(**{name: OWN[0][name] for name in texts}, further={"spans": OWN[0]["spans"]})]
        spans = dict(list(json.loads(OWN[1]["spans"]).items())[::order])
        pairs.append(PromptPair(**{name: OWN[1][name] for name in texts}, further={"spans": json.dumps(spans)}))
        maps.append(activation_patching(mini, pairs, positions="own"))
    assert maps[0].spans == maps[1].spans
    assert torch.equal(maps[0].effect, maps[1].effect)


def test_spans_of_a_file_make_another_key_only_where_they_are_asked_for(own):
    settings = ["prompts.file=own.json", "sites=heads"]
    before = [checked(*settings, *more).key for more in ([], ["positions=own"])]
    (own / "own.json").write_text(json.dumps([{**each, "spans": '{"end": "Mary:1"}'} for each in OWN]))
    after = [checked(*settings, *more).key for more in ([], ["positions=own"])]
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_the_token_before_every_prompt_may_be_a_span_and_counts_as_position_0(mini):
    first = mini.tokenizer.bos_token
    tokens = checked(f"positions.spans={{first: '{first}', end: 16}}").tokens[0]
    assert tokens.clean[0, 0] == mini.tokenizer.bos_token_id
    assert tokens.clean.shape[1] == 17


def test_interactions_are_of_the_span_that_is_named_and_of_a_component_however_its_number_is_written(run):
    """Not of one whose name begins with it, and not of none: `03.1` is 3.1."""
    spans = "positions.spans={a b: 10, a: 16}"
    result, _ = run("sites=heads", spans, "interactions='03.1@a'", "curves.components=none")
    assert result.findings["explain"].split.component == "3.1 at a"
