import dataclasses
import re

import pytest
import torch

from igap import PromptPair
from igap.inputs.prompts import tokenize


def test_tokens_are_what_transformer_lens_makes(small, pair):
    for architecture, bos in (("gpt2", True), ("llama", True), ("gpt_neox", False)):
        model = small(architecture)
        tokens = tokenize(model, pair)
        assert torch.equal(tokens.clean, model.to_tokens(pair.clean))
        assert torch.equal(tokens.corrupted, model.to_tokens(pair.corrupted))
        assert tokens.answer == model.to_single_token(pair.answer)
        assert tokens.distractor == model.to_single_token(pair.distractor)
        assert (tokens.clean[0, 0] == model.tokenizer.bos_token_id) == bos
        assert tokens.first_difference == 9 + bos


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"corrupted": "After the cat and the dog went to the store, Mary gave a bottle of milk to"},
            r"prompts\.corrupted: got 18 tokens, prompts\.clean has 16 \(without the "
            r"token before every prompt\); patching needs prompts of one length\. Reword"
            r"(.|\n)*clean: +After\|John(.|\n)*corrupted: +After\|the\|cat",
        ),
        ({"clean": "After Zebulon and Mary went to the store, Mary gave a bottle of milk to"},
         r"prompts\.clean: the tokenizer does not know 'Zebulon'"),
        ({"answer": " Zebulon"}, r"prompts\.answer: the tokenizer does not know 'Zebulon'"),
        ({"distractor": "John Mary"}, r"prompts\.distractor: got 'John Mary', which is 2 tokens \['John', 'Mary'\]"),
        ({"clean": "After " + "John " * 24, "corrupted": "After " + "Mary " * 24},
         r"prompts\.clean: got 25 tokens and the token before every prompt, the model's context holds 24"),
        ({"corrupted": "After John and Mary went to the store , Mary gave a bottle of milk to"},
         r"prompts\.corrupted: got the same tokens as prompts\.clean"),
    ],
)  # fmt: skip
def test_a_pair_the_model_cannot_take_is_refused(small, pair, changes, message):
    with pytest.raises(ValueError, match=message):
        tokenize(small(), dataclasses.replace(pair, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": "Mary"}, r"prompts\.distractor: got ' Mary', the same word as prompts\.answer"),
        ({"clean": "  "}, r"prompts\.clean: got an empty text, wanted words"),
        ({"distractor": ""}, r"prompts\.distractor: got an empty text, wanted words"),
    ],
)
def test_a_pair_that_makes_no_sense_is_refused_without_a_model(pair, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(pair, **changes)


class SpaceSensitive:
    """A tokenizer like GPT-2's in the one way that matters here: "John" and " John" are two tokens."""

    unk_token_id = bos_token_id = 0
    words = ("", " ", "gave", " gave", "John", " John", "Mary", " Mary", "45", " 45")

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [self.words.index(word) for word in re.findall(r" ?(?:gave|John|Mary|45)| ", text)]}

    def decode(self, ids):
        return self.words[ids[0]]


def test_an_answer_that_would_glue_to_the_prompt_is_refused():
    from igap.inputs.prompts import encode_pair

    def encode(answer):
        pair = PromptPair("Mary gave", "John gave", answer, " Mary")
        return encode_pair(pair, SpaceSensitive(), prepend_bos=True, n_ctx=8, n_vocab=None)

    assert encode(" John").answer == 5
    for word in ("John", "45"):
        with pytest.raises(ValueError, match=rf"prompts\.answer: got '{word}' without a leading space.*'gave{word}'"):
            encode(word)


def test_an_answer_of_several_tokens_that_would_glue_to_the_prompt_is_refused():
    """Where it may be several: the last of them is read, the others follow both prompts."""
    pair = PromptPair("Mary gave", "John gave", " John Mary gave", " Mary")
    tokens = encoded(pair, several=True)
    assert (tokens.forced, tokens.answers) == ((5, 7), (3,))
    assert tokens.clean[0].tolist() == [*encoded(dataclasses.replace(pair, answer=" John")).clean[0].tolist(), 5, 7]
    assert tokens.clean_words[-2:] == ("+John", "+Mary")
    with pytest.raises(
        ValueError, match=r"^prompts\.answer: got 'John Mary' without a leading space[^\n]*' John Mary'"
    ):
        encoded(dataclasses.replace(pair, answer="John Mary"), several=True)
    for several, remedy in ((None, False), (False, True)):
        with pytest.raises(ValueError, match=r"^prompts\.answer: got ' John Mary gave', which is 3 tokens") as error:
            encoded(pair, several=several)
        assert ("metric=logprob" in str(error.value)) == remedy


def encoded(pair, **changes):
    from igap.inputs.prompts import encode_pair

    arguments = {"prepend_bos": True, "n_ctx": None, "n_vocab": None} | changes
    return encode_pair(pair, arguments.pop("tokenizer", None) or SpaceSensitive(), **arguments)


def test_a_token_that_the_model_does_not_have_is_refused():
    pair = PromptPair("Mary gave", "John gave", " John", " Mary")
    assert encoded(pair, n_vocab=8).distractor == 7
    with pytest.raises(ValueError, match=r"prompts\.distractor: got token 7, but the model has 7 of them \(0 to 6\)\."):
        encoded(pair, n_vocab=7)
    with pytest.raises(ValueError, match=r"prompts\.clean: got token 6, but the model has 5 of them \(0 to 4\)\. Use"):
        encoded(pair, n_vocab=5)


def test_a_tokenizer_that_knows_nothing_or_no_bos_is_refused():
    class Empty(SpaceSensitive):
        def __call__(self, text, add_special_tokens):
            return {"input_ids": []}

    class NoBos(SpaceSensitive):
        bos_token_id = None

    pair = PromptPair("Mary gave", "John gave", " John", " Mary")
    with pytest.raises(ValueError, match=r"prompts\.clean: got no token for 'Mary gave'.*has its tokenizer files"):
        encoded(pair, tokenizer=Empty())
    with pytest.raises(ValueError, match=r"model\.name: got a tokenizer without a BOS token"):
        encoded(pair, tokenizer=NoBos())
    assert encoded(pair, tokenizer=NoBos(), prepend_bos=False).clean.shape == (1, 2)
