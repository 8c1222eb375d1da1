"""`prompts.bos` reaches every prompt that a run or a search encodes."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from helpers.small_searches import opened

from igap import InputError
from igap.analyses.ablation.accuracy import batch_by_length
from igap.analyses.ablation.analysis import read_or_generate
from igap.cli import main
from igap.cli.compose import compose_one
from igap.config import AblationConfig
from igap.counterfactual.trials.storages import open_storage
from igap.engine.baselines import Baseline, Request, activations, reference_tokens
from igap.engine.open_pairs import contrast
from igap.inputs.labelled_prompts import Prompt
from igap.inputs.prompts import encode_pair
from igap.models.load import EMBEDDED
from igap.pipeline import check

BEFORE = {"auto": ["<|endoftext|>"], "none": [], "it": ["it"]}


@pytest.mark.parametrize("bos", BEFORE)
def test_f_baselines_and_ablation_prompts_are_of_prompts_that_begin_with_it(small, pair, bos):
    model = small("gpt2")
    before = model.tokenizer.convert_tokens_to_ids(BEFORE[bos])
    text = torch.tensor([[*before, *model.to_tokens(pair.clean, prepend_bos=False)[0].tolist()]])
    with torch.no_grad():
        logits = model(text)[0, -1]
    words = [int(model.to_tokens(word, prepend_bos=False)) for word in (pair.answer, pair.distractor)]
    asked = dataclasses.replace(pair, bos=bos)
    with contrast(model, asked) as question:
        tokens = question.pairs[0]
        # 1e-9: the same sums in float64 in another order, of logits below 100
        assert float(question.clean.logit_diff) == pytest.approx(float(logits[words[0]] - logits[words[1]]), abs=1e-9)
        # The baseline's prompt is the corrupted one: its activations are known.
        request = Request(model, (tokens,), question.clean, {}, Baseline("prompt", pair.corrupted))
        for one, other in zip(activations(request)["heads"], question.corrupted.activations["heads"], strict=True):
            torch.testing.assert_close(one, other)
    (batch,) = batch_by_length(model, [Prompt(pair.clean, " John", bos=bos)])
    for other in (tokens.clean, tokens.corrupted, batch.tokens):
        assert other[0, : len(before)].tolist() == before
        assert other.shape == text.shape


@pytest.mark.parametrize("bos", BEFORE)
def test_the_mean_baseline_is_over_prompts_that_begin_with_it(ioi_mini, pair, bos):
    bos = "to" if bos == "it" else bos
    with contrast(ioi_mini, dataclasses.replace(pair, bos=bos)) as question:
        request = Request(ioi_mini, question.pairs, question.clean, {}, Baseline("mean", n=3))
    first = {"auto": ioi_mini.tokenizer.bos_token_id, "to": ioi_mini.to_single_token("to")}.get(bos)
    for tokens in reference_tokens(request):
        assert tokens.shape == request.clean.tokens.shape
        assert (tokens == ioi_mini.tokenizer.bos_token_id).sum() == (bos == "auto")
        assert first is None or int(tokens[0, 0]) == first


@pytest.mark.parametrize("bos", BEFORE)
def test_a_search_is_over_prompts_that_begin_with_it_and_is_another_study(small, pair, bos):
    model = small("gpt2")
    storage = open_storage("memory", Path())
    search = opened(model, dataclasses.replace(pair, bos=bos), storage=storage)
    before = model.tokenizer.convert_tokens_to_ids(BEFORE[bos])
    n = len(before)
    text = model.to_tokens(pair.clean, prepend_bos=False)[0].tolist()
    assert search.bound.clean[0].tolist() == [*before, *text]
    assert [slot.positions for slot in search.space.slots] == [(n + 1,), (n + 3,), (n + 9,)]
    assert search.leading == (BEFORE[bos][0] if before else None)
    if bos != "auto":
        with pytest.raises(InputError, match="bos"):
            opened(model, pair, storage=storage)


def test_it_is_named_on_the_terminal_and_in_the_summary_and_determines_the_key(checkpoint, tmp_path, capsys):
    model = ["model=hf", f"model.name={checkpoint('gpt2')}", "prompts.min_gap=0", "tracking=disabled", "explain=false"]
    keys = {check(compose_one([*model, f"prompts.bos={bos}"]).config).key for bos in BEFORE}
    assert len(keys) == len(BEFORE)
    quick = ["sites=heads", "ig.n_steps=2", "curves.components=none", "plots=none"]
    for bos, said in (("none", "none"), ("<|endoftext|>", "<|endoftext|>")):
        folder = tmp_path / str(len(bos))
        assert main(["run", *model, *quick, f"prompts.bos={bos}", f"hydra.run.dir={folder}"]) == 0
        assert f"token before every prompt: {said} (prompts.bos={bos})" in capsys.readouterr().out
        assert json.loads((folder / "summary.json").read_text())["prompts/bos"] == said


def test_it_is_that_of_the_prompts_which_an_ablation_generates(small):
    settings = AblationConfig(kind="zero", n=20)
    for bos in ("none", "auto"):
        assert {prompt.bos for prompt in read_or_generate(settings, small(EMBEDDED).tokenizer, bos)} == {bos}


def test_a_token_that_the_model_does_not_have_is_refused_before_it_loads(checkpoint, capsys):
    asked = ["model=hf", f"model.name={checkpoint('gpt2')}", "tracking=disabled", "prompts.bos=<bos>"]
    capsys.readouterr()  # what making the checkpoint says
    assert main(["run", *asked]) == 2
    error = capsys.readouterr().err
    assert error.startswith("igap: prompts.bos: got '<bos>', which is no single token of this model, wanted auto, none")
    assert error.count("\n") == 1


def test_a_tokenizer_without_bos_takes_none(small, pair):
    tokenizer = copy.deepcopy(small("gpt2").tokenizer)
    tokenizer.bos_token = None
    known = {"prepend_bos": True, "n_ctx": None, "n_vocab": None}
    with pytest.raises(InputError, match=r"without a BOS token, .* Set prompts\.bos=none to put none there"):
        encode_pair(pair, tokenizer, **known)
    assert encode_pair(dataclasses.replace(pair, bos="none"), tokenizer, **known).leading is None
