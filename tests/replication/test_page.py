"""The whole study on a random model of GPT-2 small's layers and heads: its files, its table, its page."""

import dataclasses
import functools
import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from captum.attr import IntegratedGradients
from helpers.checkpoints import save_checkpoint
from helpers.fixtures import PIXEL

from igap import load_model, plots
from igap.analyses.circuit.recovery import CLASS_OF
from igap.cli import main
from igap.cli.compose import compose_one
from igap.models import cached
from igap.output import disk
from igap.replication import jobs, published
from igap.replication.page import page
from igap.replication.study import COLUMNS

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The result of the study, and its folder."""
    checkpoint, folder = tmp_path_factory.mktemp("twelve"), tmp_path_factory.mktemp("study")
    # The random model knows few names: prompts of its own, in the notebook's fields.
    names, prompts = ("John", "Mary", "Tom", "Anna"), folder / "ioi_dataset.json"
    texts = [(f"{a} and {b} went to the store and {b} gave it to", a) for a in names for b in names if a != b]
    prompts.write_text(json.dumps([{"prompt": text, "answer": answer} for text, answer in texts]))
    save_checkpoint("gpt2", 12, checkpoint, n_head=12, n_embd=48, n_inner=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cached, "_cached_model", functools.cache(cached._cached_model.__wrapped__))
        patch.setattr(plots, "write_png", lambda figure, path: path.write_bytes(PIXEL))  # once it is made
        overrides = [
            f"model.name={checkpoint}",
            "prompts.min_gap=0",
            "device=cpu",
            "faithfulness=none",
            "explain=false",
        ]
        overrides += [f"ablation.file={prompts}", "ablation.reference_n=12", "ablation.controls=1"]
        overrides += ["plots='heads_heatmap heads_scatter circuit'"]
        config = compose_one(["model=gpt2-small", "experiment=notebook", *overrides]).config
        result = jobs.run(config)
        disk.prepare(folder)
        disk.write(result, folder)
    return result, folder


@pytest.fixture(scope="module")
def table(found):
    return pd.read_csv(found[1] / "published.csv", index_col="figure")


def test_a_row_holds_the_numbers_of_its_run_and_pair(found, table):
    folder = found[1]
    first, zero, second = (
        json.loads((folder / name / "summary.json").read_text()) for name in ("", "zero-baseline", "second-pair")
    )
    ours = table["this run"]
    assert float(ours["logit difference, clean"]) == pytest.approx(first["clean_logit_diff"])
    assert float(ours["Pearson r of IG (corrupted baseline) and AP, heads"]) == pytest.approx(first["heads/pearson"])
    assert float(ours["Pearson r of IG (zero baseline) and AP, neurons"]) == pytest.approx(zero["neurons/pearson"])
    assert float(ours["Jaccard of the top 30 neurons, zero baseline"]) == pytest.approx(zero["neurons/jaccard@30"])
    assert float(ours["second pair: logit difference, corrupted"]) == pytest.approx(second["corrupted_logit_diff"])
    heads = pd.read_csv(folder / "second-pair" / "heads.csv", index_col="name", dtype={"name": str})
    assert float(ours["second pair: AP of head 9.6"]) == pytest.approx(heads.loc["9.6", "ap"])
    patched = second["clean_logit_diff"] + heads.loc["9.6", "effect_ap"]
    assert float(ours["second pair: F along head 9.6, alpha 1"]) == pytest.approx(patched)
    assert (first["baseline"], zero["baseline"], second["prompts/align"]) == ("corrupted", "zero_input", "diff")


def test_the_replayed_columns_differ_from_the_right_one_where_the_notebook_erred(table):
    """Scale alone changes no correlation; the first node and the padding change what they touch."""
    row = table.loc["Pearson r of IG (corrupted baseline) and AP, heads", list(COLUMNS)].astype(float)
    assert row["this run"] == pytest.approx(row["earlier metric"])
    assert abs(row["this run"] - row["printed code"]) > 1e-3
    row = table.loc["second pair: logit difference, clean", list(COLUMNS)].astype(float)
    assert abs(row["this run"] - row["printed code"]) > 1e-3
    row = table.loc["second pair: logit difference, corrupted", list(COLUMNS)].astype(float)
    assert row["this run"] == pytest.approx(row["printed code"])
    deltas = table[table.index.str.startswith("delta, corrupted baseline, heads")]
    assert len(deltas) == 12
    assert deltas["this run"].astype(float).abs().max() < 1e-3 < deltas["printed code"].astype(float).abs().max()


def test_published_figures_are_set_beside_a_model_that_has_the_circuit_and_judged(found, table):
    assert float(table["published"]["logit difference, clean"]) == published.FIGURES["clean_logit_diff"]
    assert table["published"]["outlier heads"] == " ".join(published.OUTLIERS)
    assert float(table["published"]["AP of head 11.10"]) == published.OUTLIER_AP[5]
    assert float(table["published"]["delta, zero baseline, neurons, layer 3"]) == 3.385
    assert table["agrees"]["logit difference, clean"] == "no"
    summary = json.loads((found[1] / "summary.json").read_text())
    assert summary["notebook/n_compared"] == (table["agrees"].notna()).sum() > 60
    assert "logit difference, clean" in summary["notebook/differ"]


def test_the_notebooks_own_outliers_are_ablated_and_counted_in_both_ways(found, table):
    result, folder = found
    study = result.findings["ablation"]
    assert [one.name for one in study.kinds["zero"].single] == list(published.OUTLIERS)
    assert list(study.kinds) == ["zero", "mean", "resample"]
    row = table.loc["performance after zero ablation of head 9.6"]
    one = study.kinds["zero"].single[2]
    assert (float(row["published"]), float(row["this run"])) == (0.8052, pytest.approx(one.accuracy))
    assert float(row["printed code"]) == pytest.approx(one.generated)
    change = [one.generated - study.kinds["mean"].generated for one in study.kinds["mean"].single]
    row = table.loc["r of AP and the change of performance, mean ablation"]
    if len(set(change)) > 1:
        assert float(row["printed code"]) == pytest.approx(np.corrcoef(study.scores["ap"], change)[0, 1])
    else:
        assert row["printed code"] == "undefined"
    assert "resample ablation, 12 prompts" in (folder / "page.html").read_text()


def test_the_runs_heads_are_named_by_their_class(found):
    heads = pd.read_csv(found[1] / "heads.csv", dtype={"name": str}, index_col="name")
    assert heads["class"].dropna().to_dict() == {name: CLASS_OF[name] for name in heads.index if name in CLASS_OF}
    assert (found[1] / "plots" / "circuit.png").exists()


def test_the_page_needs_no_other_file_and_has_the_runs_figures(found):
    text = (found[1] / "page.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,40})', text)
    assert sources
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    for name in ("zero-baseline/plots/heads_scatter.png", "plots/circuit.png", "second-pair/plots/heads_heatmap.png"):
        assert f": {name}</figcaption>" in text
    assert "IOI circuit, AP:" in text


def test_the_page_escapes_every_prompt(found):
    result, folder = found
    pair = dataclasses.replace(result.pairs[0], clean='<script>alert("x")</script> & so on')
    text = page(dataclasses.replace(result, pairs=(pair,)), result.findings["notebook"], folder)
    assert "<script" not in text
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt; &amp; so on" in text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        *((own, ", which starts from the texts of one prompt pair") for own in ("prompts.n=10", "baseline=zero")),
        (
            "direction=denoising",
            ", which starts from the texts of one prompt pair, baseline=corrupted and direction=no",
        ),
        ("metric=prob", " with metric=prob and positions=all, wanted the logit difference and all positions"),
        ("positions=each", " with metric=logit_diff and positions=each, wanted the logit difference"),
    ],
)
def test_the_study_takes_one_pair_and_its_own_question(override, message, capsys, monkeypatch):
    monkeypatch.setattr(cached, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    assert main(["run", "experiment=notebook", override]) == 2
    assert f"study: got notebook{message}" in capsys.readouterr().err


def test_the_second_pair_is_checked_before_anything_runs(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(jobs, "SECOND", (published.FIRST[0], "After the unicorn", *published.FIRST[2:]))
    monkeypatch.setattr(cached, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    assert main(["run", "experiment=notebook", "tracking=disabled"]) == 2
    assert "prompts.corrupted: the tokenizer does not know 'unicorn'" in capsys.readouterr().err


def test_the_second_pairs_ig_is_captums_on_the_padded_batch_with_its_ends_swapped(found, table):
    model = load_model(found[0].config.model.name)
    clean, corrupted, answer, distractor = published.SECOND
    tokens = model.to_tokens(clean + 2 * model.tokenizer.eos_token), model.to_tokens(corrupted)
    hook = "blocks.9.attn.hook_z"
    with torch.no_grad():
        here, there = (model.run_with_cache(ids)[1][hook] for ids in tokens)
    words = [int(model.to_tokens(word, prepend_bos=False)[0, 0]) for word in (answer, distractor)]

    def forward(x):
        logits = model.run_with_hooks(tokens[0].expand(len(x), -1), fwd_hooks=[(hook, lambda z, hook: x)])
        return (logits[0, -1, words[0]] - logits[0, -1, words[1]])[None]

    theirs = IntegratedGradients(forward).attribute(inputs=here, baselines=there, n_steps=50)
    score = float(theirs[0, :, 6].sum()) / (19 * model.cfg.d_model)
    printed = table["printed code"]
    assert float(printed["second pair: IG of head 9.6"]) == pytest.approx(score, rel=1e-4)
    # AP: the head alone, both prompts 19 tokens long, over the first pair's gap.
    moved = here.clone()
    moved[:, :, 6] = there[:, :, 6]
    with torch.no_grad():
        patched, unpatched = float(forward(moved)[0]), float(forward(here)[0])
    assert float(printed["second pair: F along head 9.6, alpha 0"]) == pytest.approx(unpatched, abs=1e-5)
    assert float(printed["second pair: F along head 9.6, alpha 1"]) == pytest.approx(patched, abs=1e-5)
    first = json.loads((found[1] / "summary.json").read_text())
    assert float(printed["second pair: AP of head 9.6"]) == pytest.approx(
        (patched - unpatched) / first["gap"], rel=1e-3
    )
