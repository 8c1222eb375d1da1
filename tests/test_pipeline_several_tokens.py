"""Runs whose answers are several tokens: all of the chain, on disk and opened again."""

import io
import json

import pandas as pd
import pytest
import torch
from rich.console import Console

from igap import activation_patching, integrated_gradients, load_model, open_run, pipeline
from igap.cli.compose import compose_one
from igap.cli.texts import quote_override
from igap.errors import InputError
from igap.models import cached
from igap.output import disk, terminal

FEW = ("metric=logprob", "ig.n_steps=64", "plots=none", "tracking=disabled", "device=cpu", "prompts.min_gap=0")
KEYS = {"default": "19aa443f4cf2", "logprob": "c61197a670c1"}
ANSWER = quote_override("prompts.answer= bottle of milk")


@pytest.fixture(scope="module")
def model(checkpoint):
    return load_model(str(checkpoint("gpt2")))


@pytest.fixture
def run(checkpoint, tmp_path, monkeypatch):
    """A run of the random GPT-2, written and opened."""
    monkeypatch.setattr(cached, "_cached_model", cached._cached_model.__wrapped__)

    def compute(*overrides):
        config = compose_one(["model=hf", f"model.name={checkpoint('gpt2')}", *FEW, *overrides]).config
        result = pipeline.run(config)
        disk.prepare(tmp_path / "run")
        disk.finish(tmp_path / "run", disk.write(result, tmp_path / "run"), {}, 0.0)
        return result, open_run(tmp_path / "run")

    return compute


def test_the_whole_chain_is_of_the_answers_tokens(run, model):
    more = ("faithfulness=heads", "curves.components='0.1'")
    result, opened = run(ANSWER, *more, "analyses=[self_repair,both_directions,direct_effect]")
    assert not result.failures
    assert not result.warnings
    (pair,) = result.pairs
    ap, ig = (make(model, pair, metric="logprob") for make in (activation_patching, integrated_gradients))
    maps = result.maps["heads"]
    torch.testing.assert_close(maps["ap"].effect, ap.effect)
    assert (maps["ig"].delta.abs() <= 1e-3 * maps["ig"].layer_effect.abs() + 1e-6).all()
    torch.testing.assert_close(opened.maps["heads"]["ap"].effect, ap.effect)
    chain = result.findings["explain"].chain.terms()
    between = sum(chain[term] for term in ("quadrature", "baseline", "interaction"))
    torch.testing.assert_close(between, (ap.effect - ig.effect).double(), atol=1e-5, rtol=0)
    summary = json.loads((opened.folder / "summary.json").read_text())
    assert (summary["clean_logit_diff"], summary["n_answer_tokens"], summary["metric"]) == (None, 3, "logprob")
    assert "several tokens" in summary["clean_logit_diff/reason"]
    assert summary["gap"] == pytest.approx(ap.gap)
    console = Console(file=io.StringIO(), width=200)
    terminal.show(console, result, opened.folder)
    said = console.file.getvalue()
    assert "answer of 3 tokens: both prompts go on with +bottle +of, and F is read at the last 3 positions" in said
    assert "logit difference bottle" not in said


def test_positions_show_the_tokens_that_were_appended(run):
    _, opened = run(ANSWER, "sites=resid_pre", "positions=each")
    frame = pd.read_csv(opened.folder / "resid_pre.csv")
    assert [span.split()[1] for span in frame["span"].unique()[-3:]] == ["to", "+bottle", "+of"]


def test_pairs_of_a_file_have_answers_of_any_length(run, tmp_path):
    text = "After John and Mary went to the store, {} gave a bottle of milk to"
    rows = [
        {"clean": text.format("Mary"), "corrupted": text.format("John"), "answer": answer, "distractor": distractor}
        for answer, distractor in ((" John", " Mary"), (" John and Mary", " Mary"), (" Tom", " cat dog"))
    ]
    (tmp_path / "several.json").write_text(json.dumps(rows))
    result, opened = run(f"prompts.file={tmp_path / 'several.json'}", "sites=heads")
    frame = pd.read_csv(opened.folder / "pairs.csv")
    assert frame["n_answer_tokens"].tolist() == [1, 3, 1]
    assert frame["n_tokens"].nunique() == 1
    assert frame["clean_logit_diff"].isna().tolist() == [False, True, True]
    assert frame["gap"].tolist() == pytest.approx(list(result.gaps))
    assert opened.maps["heads"]["ap"].pairs[1].gap == pytest.approx(result.gaps[1])


def test_other_metrics_are_refused_before_the_model_loads(checkpoint, monkeypatch):
    monkeypatch.setattr(pipeline.steps, "run_model", lambda *_: pytest.fail("the model loaded"))
    for metric in ("logit_diff", "logit", "prob", "prob_diff", "kl", "js"):
        overrides = ["model=hf", f"model.name={checkpoint('gpt2')}", f"metric={metric}", ANSWER, "tracking=disabled"]
        with pytest.raises(InputError, match=r"^prompts\.answer: got ' bottle of milk', which is 3 .*metric=logprob"):
            pipeline.run(compose_one(overrides).config)


def test_the_key_of_single_tokens_stays(checkpoint):
    """As it was before answers could be several tokens, by a run of that igap."""

    def key(*overrides):
        return pipeline.check(compose_one(["tracking=disabled", "device=cpu", *overrides]).config).key

    assert key() == KEYS["default"]
    assert key("metric=logprob") == KEYS["logprob"]
    assert len({key("metric=logprob"), key("metric=logprob", quote_override("prompts.answer= John and Mary"))}) == 2
