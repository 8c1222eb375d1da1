"""Pairs from a file and from the generator, checked against a tokenizer alone."""

import re

import pytest

from igap.cli.compose import compose_one
from igap.config import PromptsConfig
from igap.inputs.ioi import generate_ioi
from igap.inputs.sources import describe_source, encode_pairs, read_prompt_pairs
from igap.inputs.words import NAMES
from igap.models.load import read_header

KNOWN = {"prepend_bos": False, "n_ctx": None, "n_vocab": None}


class Splits:
    """Every word is one token, but names that end in a vowel are cut in two; Tom it does not know."""

    unk_token_id, bos_token_id = 0, None

    def __call__(self, text, add_special_tokens):
        words = re.findall(r"[A-Z]\w+(?=[aeiouy]\b)|\w+|[^\w ]", text)
        return {"input_ids": [0 if word == "Tom" else 1 + hash(word) % 10**9 for word in words]}

    def decode(self, ids):
        return str(ids[0])


def test_on_the_embedded_model_the_pairs_are_the_generators():
    tokenizer = read_header("ioi-mini").tokenizer
    pairs = read_prompt_pairs(PromptsConfig(n=50, seed=3, min_gap=0.5), tokenizer)
    expected = generate_ioi(50, 3)
    assert [pair.texts for pair in pairs] == [(e.clean, e.corrupted, e.answer, e.distractor) for e in expected]
    assert {pair.min_gap for pair in pairs} == {0.5}
    assert len(encode_pairs(PromptsConfig(n=50), pairs, tokenizer, **KNOWN)) == 50


def test_generated_names_are_single_tokens_of_the_model():
    pairs = read_prompt_pairs(PromptsConfig(n=300), Splits())
    used = {pair.answer.strip() for pair in pairs} | {pair.distractor.strip() for pair in pairs}
    assert used == {name for name in NAMES if name[-1] not in "aeiouy" and name != "Tom"}
    for tokens in encode_pairs(PromptsConfig(n=300), pairs, Splits(), **KNOWN):
        assert (tokens.clean != tokens.corrupted).sum() == 1


def test_too_few_names_are_refused():
    class Letters(Splits):
        def __call__(self, text, add_special_tokens):
            return {"input_ids": [ord(letter) for letter in text]}

    with pytest.raises(
        ValueError, match=r"prompts\.n: got 9, but only 0 of the generator's 114 names \(John, Mary, Tom"
    ):
        read_prompt_pairs(PromptsConfig(n=9), Letters())


def test_words_that_the_tokenizer_lacks_are_named(checkpoint):
    tokenizer = read_header(str(checkpoint("gpt2"))).tokenizer
    prompts = PromptsConfig(n=5)
    pairs = read_prompt_pairs(prompts, tokenizer)
    assert {pair.answer for pair in pairs} <= {" John", " Mary", " Tom", " Anna"}
    with pytest.raises(
        ValueError,
        match=r"prompts\.n: got 5, whose generated prompts this model cannot take \(generated pair 0: clean: the "
        r"tokenizer does not know '[^()]*'\)\. Use prompts\.file with words that the model knows, or another model\.$",
    ):
        encode_pairs(prompts, pairs, tokenizer, **KNOWN)


def test_a_context_that_is_too_short_is_named():
    prompts = PromptsConfig(n=5)
    with pytest.raises(ValueError, match=r"cannot take \(generated pair 0: clean: got \d+ tokens, the model's context"):
        encode_pairs(prompts, read_prompt_pairs(prompts, Splits()), Splits(), prepend_bos=False, n_ctx=3, n_vocab=None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("John,John,Tom,Anna", r"corrupted: got the same text as clean \('John'\), wanted a"),
        ("John,Mary,Tom,Tom", r"distractor: got 'Tom', the same word as answer; the metric"),
        ("John,Mary and,Tom,Anna",
         r"corrupted: got 2 tokens, clean has 1 \(without the token before every prompt\); patching"),
        ("John,John  ,Tom,Anna", r"corrupted: got the same tokens as clean \(John\), wanted a "),
        ("Zebulon,John,Tom,Anna", r"clean: the tokenizer does not know 'Zebulon'"),
        ("John,Mary,Zebulon,Anna", r"answer: the tokenizer does not know 'Zebulon'"),
        ("John,Mary,Tom,Anna Mary", r"distractor: got 'Anna Mary', which is 2 tokens"),
    ],
)  # fmt: skip
def test_the_first_bad_pair_of_a_file_is_named_by_its_row(checkpoint, tmp_path, monkeypatch, row, message):
    monkeypatch.chdir(tmp_path)
    good = "John,Mary,Tom,Anna"
    (tmp_path / "pairs.csv").write_text("\n".join(["clean,corrupted,answer,distractor", good, row, row]))
    prompts, tokenizer = PromptsConfig(file="pairs.csv"), read_header(str(checkpoint("gpt2"))).tokenizer
    with pytest.raises(ValueError, match=rf"^pairs\.csv, row 2 \(line 3\): {message}"):
        encode_pairs(prompts, read_prompt_pairs(prompts, tokenizer), tokenizer, **KNOWN)


def test_the_description_names_the_number_and_the_source():
    assert describe_source(PromptsConfig(n=100, seed=4), 100) == "100 pairs (generated, seed 4)"
    assert describe_source(PromptsConfig(file="some/where/pairs.csv"), 12) == "12 pairs (pairs.csv)"


def test_a_limit_takes_a_files_first_pairs_and_at_most_all_of_them(pair_file):
    every = read_prompt_pairs(PromptsConfig(file=str(pair_file)), None)
    for limit in (1, 3, 5, 100):
        assert read_prompt_pairs(PromptsConfig(file=str(pair_file), limit=limit), None) == every[:limit]


@pytest.mark.parametrize("overrides", [["prompts.limit=5"], ["prompts.n=9", "prompts.limit=5"]])
def test_a_limit_without_a_file_is_refused_in_one_line(overrides):
    with pytest.raises(
        ValueError, match=r"^prompts\.limit: got 5 without a file, wanted prompts\.file, .*prompts\.n\.$"
    ):
        compose_one(overrides)


def test_the_key_of_a_limited_file_is_that_of_a_file_with_those_pairs(pair_file, tmp_path):
    first = tmp_path / "three.csv"
    first.write_text("".join(pair_file.read_text().splitlines(keepends=True)[:4]))
    keys = []
    for overrides in ([f"prompts.file={pair_file}", "prompts.limit=3"], [f"prompts.file={first}"]):
        config = compose_one(overrides).config
        keys.append(config.key_of([pair.texts for pair in read_prompt_pairs(config.prompts, None)], {}))
    assert keys[0] == keys[1]


def test_a_pair_of_the_config_may_have_sets_of_answers():
    texts = {"clean": "a b", "corrupted": "a c", "distractor": " e"}
    for answer in ([" d", " f"], '[" d", " f"]'):
        (pair,) = read_prompt_pairs(PromptsConfig(answer=answer, **texts), Splits())
        assert (pair.answer, pair.distractor) == ((" d", " f"), " e")
