"""Performance in batches against one prompt at a time, on plain forward passes."""

import numpy as np
import pytest
import torch

from igap.analyses.ablation.accuracy import Batch, batch_by_length, batch_rows, encode_prompts, evaluate_accuracy
from igap.cli import main
from igap.engine.batching import AdaptiveBatch
from igap.inputs.labelled_prompts import Prompt

REST = "gave a bottle of milk to"
PROMPTS = [
    Prompt(f"After John and Mary went to the store, Mary {REST}", " John", " Mary"),
    Prompt("John gave a bottle to", " Mary", " John"),
    Prompt(f"Then Tom and Anna went to the store, Tom {REST}", " Anna", " Tom"),
    Prompt("Anna gave it to", " cat", " dog"),
    Prompt(f"After Mary and Tom went to the store, Tom {REST}", " Mary", " Tom"),
    Prompt("Tom gave milk to", " a", " the"),
]


def alone(model, prompt):
    """Logits after one prompt, by itself."""
    with torch.no_grad():
        return model(model.to_tokens(prompt.text))[0, -1]


def evaluate(model, prompts, batch_size=None, **asked):
    """What the whole model does on them."""
    batches = batch_by_length(model, prompts)
    (outcomes,) = evaluate_accuracy(model, batches, rows=batch_rows(model, batches, batch_size), **asked)
    return outcomes


def token(model, word):
    return int(model.to_tokens(word, prepend_bos=False)[0, 0])


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "opt"])
@pytest.mark.parametrize("batch_size", [1, 2, None])
def test_every_prompt_is_judged_as_if_it_were_alone_and_in_its_place(small, architecture, batch_size):
    model = small(architecture, "raw")
    best = [model.tokenizer.decode([int(alone(model, one).argmax())]) for one in PROMPTS]
    # Half of the answers are what the model says: there is something to be right about.
    prompts = [Prompt(one.text, best[i] if i % 2 else one.answer, one.distractor) for i, one in enumerate(PROMPTS)]
    found = evaluate(model, prompts, batch_size=batch_size)
    for index, prompt in enumerate(prompts):
        logits = alone(model, prompt)
        assert found.correct[index] == (int(logits.argmax()) == token(model, prompt.answer))
        expected = float(logits[token(model, prompt.answer)] - logits[token(model, prompt.distractor)])
        assert found.logit_diff[index] == pytest.approx(expected, abs=1e-5 if architecture == "llama" else 1e-10)
    assert found.correct.any()
    assert not found.correct.all()
    assert found.generated is None


def test_the_notebooks_criterion_is_the_answer_in_the_first_word_of_three_greedy_tokens(small):
    model = small("gpt2")
    words = []
    for prompt in PROMPTS:
        tokens = model.to_tokens(prompt.text)
        for _ in range(3):
            with torch.no_grad():
                tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], 1)
        words.append(model.tokenizer.decode(tokens[0, -3:].tolist()).split()[0])
    answers = [f" {word[:1]}" if word[:1] == "a" else one.answer for word, one in zip(words, PROMPTS, strict=True)]
    prompts = [Prompt(one.text, answer, one.distractor) for one, answer in zip(PROMPTS, answers, strict=True)]
    prompts[0] = Prompt(PROMPTS[0].text, f" {words[0]}", " Mary") if words[0] in " John Tom Anna" else prompts[0]
    found = evaluate(model, prompts, generate=True)
    expected = [one.answer.strip() in word for one, word in zip(prompts, words, strict=True)]
    assert found.generated.tolist() == expected


class NextLetter(torch.nn.Module):
    """After a letter comes the next of "ab cde": the greedy continuation of "a" is "b c"."""

    letters = "ab cde"

    @property
    def tokenizer(self):
        return self

    original_model = tokenizer

    def forward(self, tokens, logits_to_keep):
        return torch.nn.functional.one_hot((tokens[:, -1:] + 1) % 6, 6).double()

    def decode(self, ids):
        return "".join(self.letters[i] for i in ids)


@pytest.mark.parametrize(
    ("start", "answer", "counts"),
    [(0, "b", True), (0, "c", False), (2, "cde", True), (2, "e", True), (2, "cdea", False)],
)
def test_three_tokens_are_generated_and_their_first_word_is_searched(unchecked, start, answer, counts):
    one = torch.tensor([0])
    batch = Batch((0,), torch.tensor([[start]]), one, one, (answer,))
    (found,) = evaluate_accuracy(NextLetter(), [batch], generate=True, rows=AdaptiveBatch(1))
    assert found.generated.tolist() == [counts]


def test_prompts_without_a_distractor_have_no_logit_difference(small):
    prompts = [*PROMPTS[:2], Prompt(PROMPTS[2].text, " Anna")]
    found = evaluate(small("gpt2"), prompts)
    assert found.logit_diff is None
    assert found.correct.shape == (3,)


def test_batches_hold_all_prompts_of_one_length(small):
    batches = batch_by_length(small("gpt2"), PROMPTS)
    assert sorted(i for batch in batches for i in batch.indices) == list(range(len(PROMPTS)))
    lengths = [batch.tokens.shape[1] for batch in batches]
    assert lengths == sorted(set(lengths))
    some = batches[-1].select([1])
    assert some.indices == batches[-1].indices[1:2]
    assert torch.equal(some.tokens, batches[-1].tokens[1:2])
    assert some.answers == batches[-1].answers[1:2]


def test_a_pass_holds_as_many_prompts_as_asked_for_or_as_memory_holds(small, monkeypatch):
    """Also of what is kept to restart it: in half of the memory half as many, and of a deep model far fewer."""
    model = small("gpt2")
    batches = batch_by_length(model, PROMPTS)
    assert batch_rows(model, batches, batch_size=2, memory_gib=1e-9).number == 2
    many, half = (batch_rows(model, batches, memory_gib=gib).number for gib in (2**-8, 2**-9))
    assert many == pytest.approx(2 * half, abs=1)
    assert batch_rows(model, batches, memory_gib=1e-9).number == 1
    monkeypatch.setattr(model.cfg, "n_layers", 100 * model.cfg.n_layers)
    assert batch_rows(model, batches, memory_gib=2**-8).number < many / 10


def test_progress_counts_prompts(small):
    told = []
    evaluate(small("gpt2"), PROMPTS, on_progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (6, 6)
    assert told == sorted(told)


def test_a_model_that_gives_nan_is_refused(small):
    model = small("gpt2")
    handle = model.unembed.hook_out.add_hook(lambda logits, hook: logits * float("nan"))
    try:
        with pytest.raises(ValueError, match=r"performance: got NaN or infinite logits"):
            evaluate(model, PROMPTS)
    finally:
        handle.hook.remove()
        model.unembed.hook_out.fwd_hooks.remove(handle)


def test_answers_that_are_not_one_token_are_counted_and_named_by_their_rows(small):
    prompts = [*PROMPTS, Prompt("John gave it to", " Mary Tom", " John"), Prompt("Tom gave it to", " zebra", " John")]
    known = {"prepend_bos": True, "n_ctx": 24, "n_vocab": None}
    message = (
        r"^mine\.csv: got 2 of 8 answers that are not one token of this model \(rows 7, 8; the first is ' Mary Tom'\)"
    )
    with pytest.raises(ValueError, match=message):
        encode_prompts(prompts, small("gpt2").tokenizer, item="mine.csv", **known)
    prompts = [*PROMPTS, Prompt("John gave it to", " Mary", " Zoe")]
    with pytest.raises(
        ValueError, match=r"got 1 of 7 distractors that are not one token .*\(rows 7; the first is ' Zoe'\)"
    ):
        encode_prompts(prompts, small("gpt2").tokenizer, item="mine.csv", **known)


def test_the_embedded_model_does_its_task(ioi_mini):
    from igap.inputs.labelled_prompts import generate_prompts

    found = evaluate(ioi_mini, generate_prompts(200, 0, ioi_mini.tokenizer))
    assert found.correct.mean() > 0.95
    assert np.sign(found.logit_diff).mean() > 0.95


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ablation.components=9.6"], "ablation.components: got 9.6, but the model has 4 layers (0 to 3)"),
        (["ablation.components=1.10"], "ablation.components: got 1.10, but the model has 8 heads in a layer (0 to 7)"),
        (["ablation.components=0.1 L9.N2"], "ablation.components: got L9.N2, but the model has 4 layers"),
        (["ablation.components=head3"], "ablation.components: got 'head3', wanted"),
        (["ablation.n=50", "ablation=mean"], "ablation.reference_n: got 100, but there are only 50 prompts"),
        (["ablation.file=nowhere.json"], "ablation.file: got nowhere.json, which cannot be read"),
        (["ablation.by=random"], "ablation.by: got 'random', wanted one of 'ig', 'ap' or 'atp'"),
    ],
)  # fmt: skip
def test_what_cannot_be_ablated_is_refused_before_the_model_loads(overrides, message, capsys, monkeypatch):
    monkeypatch.setattr("igap.models.cached.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    assert main(["run", "ablation=zero", *overrides, "tracking=disabled"]) == 2
    assert message in capsys.readouterr().err


def test_a_file_with_fewer_prompts_than_asked_is_refused(tmp_path, capsys):
    file = tmp_path / "two.csv"
    file.write_text("prompt,answer\nJohn gave it to, Mary\nMary gave it to, John\n")
    assert main(["run", "ablation=zero", f"ablation.file={file}", "ablation.n=3", "tracking=disabled"]) == 2
    assert f"ablation.n: got 3, but {file} holds 2 prompts." in capsys.readouterr().err
