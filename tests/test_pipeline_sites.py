"""A run about one site: that site's numbers as in a run about both, and nothing about the other, anywhere."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers.finished_runs import make
from safetensors.torch import load_file
from transformer_lens.model_bridge import TransformerBridge

from igap import activation_patching, direct_effect, load_model, output_curve, pipeline, self_repair, set_effects
from igap.cli.compose import compose_jobs, compose_one
from igap.components import SITES
from igap.errors import InputError
from igap.output import disk, figures
from igap.output.dashboard import command

pytestmark = pytest.mark.usefixtures("one_model")


@pytest.fixture
def run(checkpoint, pair_file, tmp_path):
    def make(*overrides):
        name = f"model.name={checkpoint('gpt2')}"
        settings = ["model=hf", name, f"prompts.file={pair_file}", "prompts.min_gap=0", "ig.n_steps=3", "device=cpu"]
        found = pipeline.run(compose_one([*settings, *overrides]).config, store=tmp_path / "store")
        folder = tmp_path / found.key
        disk.prepare(folder)
        disk.write(found, folder)
        return found, folder

    return make


def test_of_one_site_all_is_as_in_a_run_about_both_and_of_the_other_there_is_nothing(run):
    both, whole = run("baseline=zero_input", "faithfulness=both", "prompts.limit=3", "plots=none")
    names = json.loads((whole / "summary.json").read_text())
    tensors = load_file(whole / "attributions.safetensors")
    for site, other in (SITES, reversed(SITES)):
        asked = ["baseline=zero_input", f"sites={site}", f"faithfulness={site}", "prompts.limit=3"]
        alone, folder = run(*asked, "plots='heads_scatter neurons_scatter faithfulness'")
        assert list(alone.maps) == list(alone.comparisons) == list(alone.spread.intervals) == [site]
        kept = load_file(folder / "attributions.safetensors")
        assert set(kept) == {name for name in tensors if name.endswith(f".{site}")}
        for name, tensor in kept.items():
            torch.testing.assert_close(tensor, tensors[name], atol=0, rtol=0, equal_nan=True)
        summary = json.loads((folder / "summary.json").read_text())
        assert [name for name in summary if name.split("/")[0] == other] == []
        own = [name for name in names if f"{site}/" in name]
        assert own
        assert {name: summary[name] for name in own} == {name: names[name] for name in own}
        files = {path.name for path in folder.rglob("*.*")}
        assert [name for name in files if name.startswith((other, f"faithfulness_{other}"))] == []
        assert {f"{site}.csv", f"{site}_scatter.png", f"faithfulness_{site}.png"} <= files
        assert [name for name in figures.figures(figures.figure_data(alone)) if name.startswith(other)] == []
        assert ({"qk.csv", "explanation.csv", "curves.csv"} <= files) == (site == "heads")
        assert f"pearson_{other}" not in pd.read_csv(folder / "pairs.csv")
        assert alone.key != both.key


def test_all_that_a_run_says_of_any_site_is_what_the_functions_say(run, checkpoint):
    """Curves, sets, faithfulness, self-repair and direct effects of sites that are neither heads nor neurons."""
    found, folder = run(
        *("sites=[q,resid_pre,attn_out,mlp_out]", "faithfulness=[q,attn_out]", "prompts.limit=2", "plots=faithfulness"),
        *(
            "curves.components='1.2.q L1.resid_pre'",
            "curves.alphas=[0,0.5,1]",
            "analyses=[sets,self_repair,direct_effect]",
        ),
        *(
            "analyses.sets.components=1.2.q+L1.attn_out",
            "analyses.sets.n_steps=2",
            "analyses.direct_effect.site=mlp_out",
        ),
        *("analyses.self_repair.patched=L1.attn_out", "analyses.self_repair.site=q"),
    )
    assert not found.failures
    model, pairs, rounding = load_model(str(checkpoint("gpt2"))), found.pairs, {"abs": 1e-5}
    curves = output_curve(model, pairs, ["1.2.q", "L1.resid_pre"], alphas=[0, 0.5, 1])
    assert found.findings["curves"].values == pytest.approx(curves.values, **rounding)
    effects = set_effects(model, pairs, "1.2.q+L1.attn_out", n_steps=2)
    assert found.findings["sets"].by_name["1.2.q+L1.attn_out"].by_pair == pytest.approx(effects.by_pair, **rounding)
    repair = self_repair(model, pairs, "L1.attn_out", "q")
    assert found.findings["self_repair"].change() == pytest.approx(repair.change(), **rounding)
    direct = direct_effect(model, pairs, "mlp_out")
    torch.testing.assert_close(found.findings["direct_effect"].direct.effect, direct.direct.effect, atol=1e-5, rtol=0)
    table = pd.read_csv(folder / "faithfulness.csv")
    assert set(table["site"]) == {"q", "attn_out"}
    assert {"faithfulness_q.png", "faithfulness_attn_out.png"} <= {path.name for path in (folder / "plots").iterdir()}
    first = table[(table["site"] == "attn_out") & (table["method"] == "ap") & (table["k"] == 1)].iloc[-1]
    assert (first["curve"], first["ranking"]) == ("deletion", "magnitude")
    ap, group = found.maps["attn_out"]["ap"], found.findings["faithfulness"].groups[-2]
    largest = ap.effect.flatten()[ap.effect.abs().argmax()].item()
    assert (first["faithfulness"] - 1) * (group.full - group.empty) == pytest.approx(largest, **rounding)


def test_no_neuron_is_looked_at_for_heads(checkpoint, pair, monkeypatch):
    """As in a mixture of experts, whose MLP has no one hidden activation."""
    expected = activation_patching(load_model(str(checkpoint("gpt2"))), pair, "heads").effect
    model, every = load_model(str(checkpoint("gpt2"))), TransformerBridge.hook_dict.fget
    left = property(lambda self: {name: point for name, point in every(self).items() if ".mlp." not in name})
    monkeypatch.setattr(TransformerBridge, "hook_dict", left)
    assert torch.equal(activation_patching(model, pair, "heads").effect, expected)
    with pytest.raises(InputError, match=r"has no blocks\.0\.mlp\.hook_post, .* or sites=heads where its attention is"):
        activation_patching(model, pair, "neurons")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sites=head"], "sites: got 'head', wanted one of 'both', 'heads', 'neurons', 'q', "),
        (
            ["sites=heads", "faithfulness=both"],
            "faithfulness: got both with sites=heads, wanted neurons among the sites.",
        ),
        (["sites=neurons", "faithfulness=heads"], "faithfulness: got heads with sites=neurons, wanted heads among"),
        (
            ["faithfulness=q"],
            "faithfulness: got q with sites=both, wanted q among the sites. Set sites=heads,neurons,q, or",
        ),
        (["faithfulness=head"], "faithfulness: got 'head', wanted one of 'none', 'both', 'heads', 'neurons', 'q', "),
        (
            ["curves.components=L0.attn_out"],
            "curves.components: got L0.attn_out with sites=both, wanted attn_out among",
        ),
        (["sites=neurons", "interactions='1.2'"], "interactions: got 1.2 with sites=neurons, wanted heads among"),
        (["sites=heads", "curves.components=L1.N3"], "curves.components: got L1.N3 with sites=heads, wanted neurons"),
        (
            ["sites=neurons", "ablation=zero"],
            "ablation.components: got outliers with sites=neurons, wanted heads among",
        ),
        (
            ["sites=heads", "ablation=mean", "ablation.components='0.1 L1.N3'"],
            "ablation.components: got 0.1 L1.N3 with sites=heads, wanted neurons among",
        ),
        (
            ["sites=heads", "experiment=notebook"],
            "study: got notebook with sites=heads, wanted neurons among the sites.",
        ),
    ],
)
def test_what_is_about_a_site_that_is_left_out_is_refused(overrides, message):
    with pytest.raises(InputError) as refused:
        compose_one(overrides)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_what_is_about_a_site_that_is_asked_for_is_taken():
    asked = ["sites=neurons", "faithfulness=neurons", "ablation=zero", "ablation.components=L1.N3"]
    assert compose_one([*asked, "curves.components=L1.N3"]).config.asked_sites == ("neurons",)


def test_a_multirun_goes_over_the_sites():
    jobs = compose_jobs(["sites=heads,neurons"])
    assert [job.config.asked_sites for job in jobs] == [("heads",), ("neurons",)]


def test_runs_about_different_sites_are_compared(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "runs" / "a", settings={"sites": "heads"})
    folder = make(tmp_path / "runs" / "b", settings={"sites": "neurons"}, summary={"neurons/pearson": 0.5})
    (folder / "heads.csv").unlink()
    summary = json.loads((folder / "summary.json").read_text())
    text = json.dumps({name: value for name, value in summary.items() if not name.startswith("heads/")})
    (folder / "summary.json").write_text(text)
    command.compare_runs([Path("runs")], metrics=["heads/pearson", "neurons/pearson"])
    captured = capsys.readouterr()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in captured.out.splitlines() if "│" in line]
    assert [[row[1], row[2] == "-", row[3] == "-"] for row in rows] == [
        ["heads", False, True],
        ["neurons", True, False],
    ]
    assert captured.err == "", "heads that were not asked for are not missed"
    assert "it was asked about neurons only (sites=neurons)" in (tmp_path / "compare.html").read_text()
