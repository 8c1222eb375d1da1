"""docs/extending/method.md, as it stands there: a method named in one line has its column wherever the others have."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from igap import cli, open_run
from igap.attribution.activation_patching import patch_components
from igap.attribution.maps import AttributionMap, ignore
from igap.attribution.method import Method
from igap.attribution.methods import METHODS
from igap.attribution.relevance import RULES
from igap.cli.compose import compose_one
from igap.components import Site
from igap.config import RunConfig
from igap.engine import baselines
from igap.engine.contrast import Contrast
from igap.engine.open_pairs import contrast, open_pairs
from igap.models import cached

PAGE = (Path(__file__).parents[2] / "docs" / "extending" / "method.md").read_text()


def methods_own():
    """What the page's module is called there: METHOD."""
    names = {"Contrast": Contrast, "Site": Site, "RunConfig": RunConfig, "AttributionMap": AttributionMap}
    names |= {"Advance": object, "patch_components": patch_components, "replace": replace, "Method": Method}
    exec(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1], names)
    return names["METHOD"]


@pytest.fixture
def run(checkpoint, tmp_path, monkeypatch, capsys):
    """Runs the random GPT-2 on the command line; gives the run's folder and what the terminal says."""
    monkeypatch.chdir(tmp_path)

    def call(*overrides):
        name = f"model.name={checkpoint('gpt2')}"
        settings = ["model=hf", name, "prompts.min_gap=0", "ig.n_steps=2", "sites=heads", "curves.components=none"]
        assert cli.main(["run", *settings, "explain=false", "plots=none", "device=cpu", *overrides]) == 0
        (folder,) = (path.parent for path in tmp_path.glob("runs/*/summary.json"))
        return folder, capsys.readouterr().out

    yield call
    cached._cached_model.cache_clear()


def test_a_method_of_ones_own_is_in_every_output(run, monkeypatch):
    monkeypatch.setitem(METHODS, "twice_ap", methods_own())
    folder, said = run("tracking=offline", "faithfulness=heads")
    tensors = load_file(folder / "attributions.safetensors")
    for name in ("{}.heads", "effect.{}.heads"):
        torch.testing.assert_close(tensors[name.format("twice_ap")], 2 * tensors[name.format("ap")])
    table = pd.read_csv(folder / "heads.csv")
    pd.testing.assert_series_equal(table["twice_ap"], 2 * table["ap"], check_names=False)
    pd.testing.assert_series_equal(table["effect_twice_ap"], 2 * table["effect_ap"], check_names=False)
    screening = pd.read_csv(folder / "screening.csv").query("of == 'heads'")
    assert list(screening["method"]) == ["ig", "atp", "atp_star", "twice_ap"]
    curves = pd.read_csv(folder / "faithfulness.csv")
    assert list(dict.fromkeys(curves["method"])) == ["ap", "ig", "atp", "atp_star", "twice_ap", "random"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["heads/twice_ap/pearson"] == pytest.approx(1)
    assert summary["faithfulness/heads/corrupted/twice_ap/cpr"] == summary["faithfulness/heads/corrupted/ap/cpr"]
    assert summary["seconds/twice_ap"] > 0
    assert "heads, TWICE_AP against AP: r 1.000, Spearman 1.000; misses 0 of AP's top 10" in " ".join(said.split())
    (place,) = folder.glob("wandb/offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", str(place), "--json", "--summary"]
    read = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert read["summary"]["heads/twice_ap/pearson"] == pytest.approx(1)


def test_a_method_that_is_not_asked_for_or_not_to_be_had_is_left_out(run, monkeypatch):
    monkeypatch.setitem(METHODS, "unasked", Method("unasked", methods_own().attribute, optional=True))
    monkeypatch.setitem(
        METHODS,
        "unable",
        Method("unable", methods_own().attribute, missing=lambda config, site, n: f"{n} layers are too few for {site}"),
    )
    folder, _ = run("tracking=disabled")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["heads/unable/pearson"] is None
    assert summary["heads/unable/pearson/reason"] == "3 layers are too few for heads"
    assert not [name for name in summary if "unasked" in name]
    assert not [name for name in load_file(folder / "attributions.safetensors") if "una" in name]


NAMED = ("ig_inputs", "conductance", "relp", "gim", "shapley")


def test_methods_that_are_asked_for_by_name_are_in_every_output_and_open_again(run):
    folder, said = run("tracking=disabled", "methods=gim,shapley,relp,conductance,ig_inputs")
    names = set(load_file(folder / "attributions.safetensors"))
    assert {f"{kind}{name}.heads" for name in NAMED for kind in ("", "effect.")} <= names
    assert "expected_gradients.heads" not in names
    screening = pd.read_csv(folder / "screening.csv").query("of == 'heads'")
    assert list(screening["method"]) == ["ig", "atp", "atp_star", *NAMED]
    summary = json.loads((folder / "summary.json").read_text())
    maps = open_run(folder).maps["heads"]
    for name in NAMED:
        assert summary[f"heads/{name}/pearson"] == pytest.approx(
            screening.set_index("method").loc[name, "pearson"], abs=1e-9
        )
        assert maps[name].baseline == "corrupted"
        assert f"heads, {name.upper()} against AP" in " ".join(said.split())


def test_default_runs_have_none_of_them_and_another_key_has_those_that_are_asked_for(run):
    folder, _ = run("tracking=disabled")
    names = set(load_file(folder / "attributions.safetensors"))
    assert not {name for name in names if any(each in name for each in METHODS if METHODS[each].optional)}
    assert "methods" not in (folder / "summary.json").read_text()
    keys = {}
    for asked in ("default", "[relp,gim]", "[gim,relp]", "all", "relp"):
        config = compose_one(["sites=heads", f"methods={asked}"]).config
        keys[asked] = config.key_of([["a", "b", "c", "d"]], {})
    assert keys["[relp,gim]"] == keys["[gim,relp]"]
    assert len(set(keys.values())) == 4
    plain = compose_one(["sites=heads"]).config
    assert keys["default"] == plain.key_of([["a", "b", "c", "d"]], {})
    for setting in ("seed=1", "baseline.n=7"):
        for asked, differs in (("default", False), ("relp", True)):
            other = compose_one(["sites=heads", f"methods={asked}", setting]).config
            assert (other.key_of([["a", "b", "c", "d"]], {}) != keys[asked]) == differs


@pytest.fixture(scope="module")
def quick():
    return compose_one(["baseline.n=5", "ig.n_steps=20"]).config


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.optional])
def test_in_float32_it_is_what_it_is_in_float64(ioi_mini, small, pair, name, quick):
    method, config = METHODS[name], quick
    effects = []
    for model in (ioi_mini, small("ioi-mini")):
        with contrast(model, pair, baseline=method.baseline(config)) as opened:
            effects.append(method.attribute(opened, "heads", config, ignore)[0].effect.double())
    torch.testing.assert_close(*effects, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["methods=conductence"],
            "got conductence, wanted default (ig, ap, atp, atp_star), all, or names of ig_inputs",
        ),
        (["methods=relp,ap"], "expected_gradients, relp, gim, shapley. ap is in every run."),
        (["methods=relp,relp"], "wanted default, all, or names of methods, [conductance,relp], each once."),
        (["methods="], "wanted default, all, or names of methods, [conductance,relp], each once."),
        (["methods=all,relp"], "wanted default, all, or names of methods, [conductance,relp], each once."),
        (
            ["methods=conductance", "ig.n_steps=auto"],
            "with ig.n_steps=auto, wanted a number that these have: each is a sum that",
        ),
        (
            ["methods=all", "ig.n_steps=2001", "ig.method=riemann_left"],
            "each is a sum of at most 2000 nodes. Set ig.n_steps=50.",
        ),
        (["methods=gim", "model.dtype=bfloat16"], "bfloat16 rounds too much for the weights alone"),
    ],
)
def test_methods_that_cannot_be_had_are_refused_in_one_line_before_the_model_loads(
    monkeypatch, capsys, overrides, line
):
    monkeypatch.setattr(cached, "_cached_model", lambda *_: pytest.fail("loaded"))
    assert cli.main(["run", *overrides]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("igap: methods: got ")
    assert line in err
    assert err.count("\n") == 1


def test_a_method_that_is_named_and_that_no_site_can_have_is_warned_of(run):
    folder, _ = run("methods=expected_gradients,relp", "direction=denoising", "tracking=disabled")
    warnings = json.loads((folder / "summary.json").read_text())["warnings"].splitlines()
    assert [warning for warning in warnings if "left out" in warning] == [
        "expected_gradients: left out; it is towards reference prompts, of noising alone."
    ]


def test_references_of_a_length_that_is_not_generated_are_refused_before_the_model_loads(monkeypatch, capsys):
    monkeypatch.setattr(cached, "_cached_model", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr(baselines, "_DRAWN", 3)
    texts = ["prompts.clean=Then Mary gave it to", "prompts.corrupted=Then John gave it to"]
    words = ["prompts.answer= John", "prompts.distractor= Mary"]
    assert cli.main(["run", *texts, *words, "methods=expected_gradients"]) == 2
    assert "found 0 generated prompts of 5 tokens" in capsys.readouterr().err


def test_what_a_method_moves_to_is_the_runs_baseline_only_if_it_says_so(run, monkeypatch):
    for name, towards in (("own", True), ("other", False)):
        monkeypatch.setitem(METHODS, name, Method(name, methods_own().attribute, towards_baseline=towards))
    tensors = load_file(run("baseline=zero", "tracking=disabled")[0] / "attributions.safetensors")
    torch.testing.assert_close(tensors["effect.other.heads"], 2 * tensors["effect.ap.heads"])
    assert not torch.allclose(tensors["effect.own.heads"], tensors["effect.other.heads"])


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.shared and name not in RULES])
def test_passes_of_a_method_are_as_small_as_the_run_says(small, pair, name, quick):
    model, passes = small(), []
    pairs = [
        pair,
        replace(pair, clean=pair.clean.replace("store", "dog"), corrupted=pair.corrupted.replace("store", "dog")),
    ]
    handle = model.original_model.register_forward_hook(lambda *_: passes.append(1))
    try:
        with open_pairs(model, pairs, sites=("heads",), route="hooks") as opened:
            ((_, contrast),) = opened.contrasts()
            counts = []
            for rows in (None, 1):
                passes.clear()
                METHODS[name].attribute(contrast, "heads", quick.model_copy(update={"batch_size": rows}), ignore)
                counts.append(len(passes))
    finally:
        handle.remove()
    assert counts[1] > counts[0]
