"""Answer sets: what is refused, and how they are written."""

from dataclasses import replace

import pytest
from helpers.tokenizer_kinds import byte_level, tokenizer
from tokenizers import normalizers

from igap import InputError, PromptPair
from igap.inputs.answers import format_answer, from_cell, to_cell
from igap.inputs.prompts import encode_pair

KNOWN = {"prepend_bos": False, "n_ctx": None, "n_vocab": None}


@pytest.mark.parametrize(
    ("answer", "distractor", "message"),
    [
        ((), " Mary", r"prompts\.answer: got an empty set, wanted words\. Fill it in\."),
        (" John", [], r"prompts\.distractor: got an empty set"),
        ((" John", " "), " Mary", r"prompts\.answer: got an empty text, wanted words"),
        ((" John", " Tom"), " Tom", r"prompts\.distractor: got ' Tom', the same word as prompts\.answer; a word is "),
        ((" John", " Tom"), (" Mary", "Tom"), r"prompts\.distractor: got 'Tom', the same word as prompts\.answer; a "),
        ((" John", "John"), " Mary", r"prompts\.answer: got 'John', the same word as ' John' in its set, wanted "),
        (" John", (" Mary", " Tom", " Mary"), r"prompts\.distractor: got ' Mary', the same word as ' Mary' in its set"),
        (3, " Mary", r"answer: got 3, wanted a text or a list, each entry a text"),
        ((" John", 3), " Mary", r"answer\[1\]: got 3, wanted a text"),
    ],
)  # fmt: skip
def test_sets_that_make_no_sense_are_refused(unchecked, answer, distractor, message):
    with pytest.raises(InputError, match=rf"^{message}[^\n]*$"):
        PromptPair("After John and Mary went", "After John and Tom went", answer, distractor)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((" John", " John Mary"), r"answer: got ' John Mary', which is 2 tokens"),
        ((" John", " Zebulon"), r"answer: .*Zebulon"),
        ((" John", "zoo"), r"answer: got 'zoo' without a leading space, which would glue"),
    ],
)
@pytest.mark.parametrize("kind", ["byte_level", "llama2", "metaspace"])
def test_every_word_of_a_set_has_to_continue_both_prompts_by_one_token(kind, words, message):
    pair = PromptPair("Mary gave the milk to", "Tom gave the milk to", words, " Mary")
    with pytest.raises(InputError, match=rf"^prompts\.{message}[^\n]*$"):
        encode_pair(pair, tokenizer(kind), **KNOWN)


@pytest.mark.parametrize("kind", ["byte_level", "llama2", "metaspace", "word_level"])
def test_the_tokens_of_a_set_are_those_of_its_words_one_by_one(kind):
    pair = PromptPair("Mary gave the milk to", "Tom gave the milk to", (" John", " zoo", " 17"), (" Mary", " cat"))
    tokens = encode_pair(pair, tokenizer(kind), **KNOWN)
    for words, found in ((pair.answer, tokens.answers), (pair.distractor, tokens.distractors)):
        for word, token in zip(words, found, strict=True):
            other = " dog" if kind != "word_level" else " store"
            assert encode_pair(replace(pair, answer=word, distractor=other), tokenizer(kind), **KNOWN).answer == token


def test_a_word_of_several_tokens_or_none_of_the_model_is_refused_on_either_side():
    pair = PromptPair("Mary gave the milk to", "Tom gave the milk to", (" John", " zoo"), " zoo.")
    with pytest.raises(InputError, match=r"^prompts\.distractor: got ' zoo\.', which is 2 tokens"):
        encode_pair(pair, tokenizer("word_level"), **KNOWN)
    with pytest.raises(InputError, match=r"^prompts\.distractor: the tokenizer does not know 'Zebulon'"):
        encode_pair(replace(pair, distractor=(" cat", " Zebulon")), tokenizer("word_level"), **KNOWN)
    short = PromptPair("Mary gave", "Tom gave", (" John", " zoo"), " milk")
    with pytest.raises(InputError, match=r"^prompts\.answer: got token 16, but the model has 14 of them"):
        encode_pair(short, tokenizer("word_level"), **KNOWN | {"n_vocab": 14})


YEARS = [f"{number:02d}" for number in (17, *range(100))]


def test_a_number_that_is_one_token_with_the_one_before_it_counts_by_its_digits_in_sets_alone():
    one_token = byte_level(["the", "year", *"0123456789", *YEARS], [("17", "00"), ("17", "43")])
    assert one_token(" 1743")["input_ids"] == [one_token.get_vocab()["Ġ1743"]]
    clean, corrupted = "the year 1742 the year 17", "the year 1701 the year 17"
    both = PromptPair(clean, corrupted, ("43", "44"), ("00", "42"))
    tokens = encode_pair(both, one_token, **KNOWN)
    assert [one_token.convert_ids_to_tokens(ids) for ids in (list(tokens.answers), list(tokens.distractors))] == [
        ["43", "44"], ["00", "42"],
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"^prompts\.answer: got '43', which grows together with the prompt's end"):
        encode_pair(PromptPair(clean, corrupted, "43", "42"), one_token, **KNOWN)
    by_three = byte_level(["the", "year", *"0123456789", "174", *YEARS], [])
    with pytest.raises(InputError, match=r"^prompts\.answer: got '43', which grows together"):
        encode_pair(PromptPair(clean, corrupted, ("43", "44"), ("45", "46")), by_three, **KNOWN)


@pytest.mark.parametrize("answer", [" John", (" John", " Tom"), ('"', "é, b"), "[", "[]", "[1]", '[" a"', "[ "])
def test_an_answer_is_read_as_it_was_written(answer):
    assert from_cell(to_cell(answer)) == answer
    assert from_cell('[" a"]') == " a"


def test_a_cell_of_brackets_is_a_word():
    assert from_cell("[" * 100_000) == "[" * 100_000


def test_of_a_long_set_the_first_words_are_shown():
    assert format_answer(" John") == " John"
    assert format_answer((" is", " has")) == "{is, has}"
    assert format_answer(tuple("abcde")) == "{a, b, c, ... (5 words)}"


def test_words_that_are_one_token_are_refused_in_a_set_and_on_both_sides():
    lower = byte_level(["john", "mary", "gave", "it", "to"])
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    pair = PromptPair("mary gave it to", "john gave it to", (" John", " john"), " mary")
    with pytest.raises(
        InputError, match=r"^prompts\.answer: got ' john', the same token as ' John' in its set, wanted"
    ):
        encode_pair(pair, lower, **KNOWN)
    with pytest.raises(
        InputError, match=r"^prompts\.distractor: got ' JOHN', the same token as prompts\.answer ' John'"
    ):
        encode_pair(replace(pair, answer=" John", distractor=" JOHN"), lower, **KNOWN)


def test_what_is_kept_of_a_pair_tells_its_sets_apart():
    pair = PromptPair("Mary gave the milk to", "Tom gave the milk to", " John", " Mary")
    others = [replace(pair, answer=(" John", " zoo")), replace(pair, distractor=(" Mary", " cat"))]
    found = [str(encode_pair(each, tokenizer("byte_level"), **KNOWN).identity) for each in (pair, *others)]
    assert len(set(found)) == 3
