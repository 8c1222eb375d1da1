"""Words that continue prompts, by tokenizers of four kinds, and the token before every prompt."""

import copy
import itertools
import re

import pytest
from helpers.tokenizer_kinds import KINDS, WORDS, token, tokenizer

from igap import InputError, PromptPair
from igap.analyses.ablation.accuracy import encode_prompts
from igap.config import PromptsConfig
from igap.counterfactual.spaces.substitution import bind_substitution, substitution_space
from igap.counterfactual.spaces.template import bind_template, generate_clean_prompts, template_space
from igap.inputs import tokenizing
from igap.inputs.ioi import TEMPLATES
from igap.inputs.labelled_prompts import Prompt, generate_prompts
from igap.inputs.prompts import encode_pair, encode_prompt
from igap.inputs.sources import encode_pairs, read_prompt_pairs
from igap.inputs.tokenizing import continuation, single_tokens, token_ids

CLEAN = "After John and Mary went to the store, Mary gave a bottle of milk to"
PAIR = PromptPair(CLEAN, CLEAN.replace(", Mary", ", John"), " John", " Mary")
SEEING = [kind for kind in KINDS if kind != "word_level"]
KNOWN = {"prepend_bos": True, "n_ctx": None, "n_vocab": None}


def encoded(kind, pair=PAIR, **changes):
    return encode_pair(pair, tokenizer(kind), **KNOWN | changes)


def spaced(kind, word):
    """The one token that the vocabulary has for the word after a space."""
    return token(kind, f" {word}")


def ids(kind, text):
    return tokenizer(kind)(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_is_the_token_that_stands_there_when_the_answer_is_written_after_the_prompt(kind):
    tokens = encoded(kind)
    for answer, word in ((tokens.answer, " John"), (tokens.distractor, " Mary")):
        assert answer == token(kind, word) == ids(kind, CLEAN + word)[-1]
        assert [*tokens.clean[0, 1:].tolist(), answer] == ids(kind, CLEAN + word)


def test_in_llama_2_a_word_with_its_space_alone_is_two_tokens_and_without_it_another_than_in_a_sentence():
    assert len(ids("llama2", " John")) == 2
    assert ids("llama2", "John") == [token("llama2", " John")]
    assert continuation(tokenizer("llama2"), "to", " John") == [token("llama2", " John")]
    assert continuation(tokenizer("llama2"), "to", "John") == [token("llama2", "John")] != [token("llama2", " John")]
    with pytest.raises(InputError, match=r"answer: got 'John' without a leading space, which .* Write ' John', the"):
        encoded("llama2", PromptPair(CLEAN, PAIR.corrupted, "John", " Mary"))


@pytest.mark.parametrize("kind", KINDS)
def test_words_of_one_token_are_the_same_for_every_kind(kind):
    assert single_tokens(tokenizer(kind), [*WORDS, "bottles", "Zoe"]) == WORDS


@pytest.mark.parametrize("kind", SEEING)
@pytest.mark.parametrize(
    ("end", "word", "message"),
    [
        ("to ", "Tom", r"got 'Tom' after a prompt that ends in a space \('to '\), which .* write ' Tom'\.$"),
        ("in ", "59", r"got '59' after a prompt that ends in a space \('in '\), which .* write ' 59'\.$"),
        ("in ", "5", r"got '5' after a prompt that ends in a space"),
        ("in ", "=", r"got '=' after a prompt that ends in a space"),
        ("in ", "(", r"got '\(' after a prompt that ends in a space"),
        ("to ", " Tom", r"got ' Tom' after a prompt that ends in a space .* write ' Tom'\.$"),
        ("to", "Tom", r"got 'Tom' without a leading space, .*\('toTom'\)\. Write ' Tom'"),
        ("in", "59", r"got '59' without a leading space, .*\('in59'\)\. Write ' 59'"),
        (
            "in 18",
            "59",
            r"got '59', which grows together with the prompt's end: the tokens of '1859' do not begin with",
        ),
    ],
)
def test_an_answer_whose_space_is_at_the_wrong_place_or_missing_is_refused(kind, end, word, message):
    clean = f"John met Mary and gave it {end}".replace(" it", "")
    with pytest.raises(InputError, match=rf"^prompts\.answer: {message}"):
        encoded(kind, PromptPair(clean, clean.replace("John", "Tom"), word, " cat"))


@pytest.mark.parametrize(
    ("end", "word"), [("to ", "Tom"), ("in ", "59"), ("to", "Tom"), ("in 18", "59"), ("to ", " Tom")]
)
def test_where_spaces_leave_no_trace_none_is_missing(end, word):
    pair = PromptPair(f"John gave {end}", f"Mary gave {end}", word, ".")
    assert encoded("word_level", pair).answer == token("word_level", word.strip())
    assert encoded("word_level", pair).cautions == ()


@pytest.mark.parametrize("kind", SEEING)
@pytest.mark.parametrize(
    ("end", "word", "warned"),
    [
        ("=", "5", True), ("(", "John", True), ("17", "=", True), ("to", "=", True),
        ("17", "59", False), ("to", ".", False), ("17", ",", False), ("=", " 5", False), ("(", " John", False),
    ],
)  # fmt: skip
def test_a_missing_space_that_may_be_meant_is_warned_of(kind, end, word, warned):
    tokens = encoded(kind, PromptPair(f"John gave {end}", f"Mary gave {end}", word, " dog"))
    assert tokens.answer == token(kind, word)
    glued, apart = re.escape(end + word), re.escape(f" {word}")
    expected = rf"prompts\.answer: '{re.escape(word)}' continues .*\('{glued}'\); if one .* write '{apart}', which"
    assert [bool(re.match(expected, caution)) for caution in tokens.cautions] == [True] * warned


def test_an_answer_that_is_another_token_after_the_corrupted_prompt_is_refused():
    with pytest.raises(InputError, match=r"answer: got '59', which grows together .* '1859' do not begin .*'18'"):
        encoded("llama2", PromptPair("the 17", "the 18", "59", "5"))


@pytest.mark.parametrize("kind", KINDS)
def test_generated_prompts_are_of_names_that_continue_them_by_one_token(kind):
    pairs = read_prompt_pairs(PromptsConfig(n=20), tokenizer(kind))
    assert {word.strip() for pair in pairs for word in (pair.answer, pair.distractor)} <= {
        "John",
        "Mary",
        "Tom",
        "Alex",
    }
    written = PromptPair(CLEAN, PAIR.corrupted, pairs[0].answer, pairs[0].distractor)
    (tokens,) = encode_pairs(PromptsConfig(n=20), (written,), tokenizer(kind), **KNOWN)
    assert tokens.answer == spaced(kind, written.answer.strip())
    assert {one.answer.strip() for one in generate_prompts(20, 0, tokenizer(kind))} <= {"John", "Mary", "Tom", "Alex"}


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_with_answers_have_the_tokens_that_continue_them(kind):
    prompts = [Prompt(CLEAN, " John", " Mary"), Prompt("Mary met", " Tom", " cat")]
    found = encode_prompts(prompts, tokenizer(kind), item="mine.csv", **KNOWN)
    assert [(one.answer, one.distractor) for one in found] == [
        (spaced(kind, "John"), spaced(kind, "Mary")), (spaced(kind, "Tom"), spaced(kind, "cat")),
    ]  # fmt: skip
    assert [one.ids for one in found] == [[tokenizer(kind).bos_token_id, *ids(kind, one.text)] for one in prompts]


def test_refused_answers_are_counted_and_the_first_is_explained():
    prompts = [Prompt("Mary met", " Tom"), Prompt("Mary met ", "Tom"), Prompt("in 18", "59")]
    with pytest.raises(
        InputError,
        match=r"^mine\.csv: got 2 of 3 answers .*\(rows 2, 3; .* row 2: answer: got 'Tom' after a prompt that",
    ):
        encode_prompts(prompts, tokenizer("byte_level"), item="mine.csv", **KNOWN)


@pytest.mark.parametrize("bos", ["auto", "none", "</s>"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "template",
    [
        "After {first} and {second} went to the store, {subject} gave a bottle of milk to",
        "{first} met {second} at the zoo and {first} gave ({subject}, {second}) milk to",
    ],
)
def test_every_candidate_of_a_template_has_the_tokens_of_its_text(kind, template, bos):
    words = ["=keep", "Tom", "Alex", "cat"]
    clean = template.format(first="John", second="Mary", subject="Mary")
    pair = PromptPair(clean, clean.replace("Mary", "Tom"), " John", " Mary", bos=bos)
    lists = dict.fromkeys(("first", "second", "subject"), words)
    space = template_space(template, lists, pair, tokenizer(kind), prepend_bos=True)
    assert space.size == 4**3
    bound = bind_template(space, [pair], tokenizer(kind), prepend_bos=True)
    before = {"auto": ["<s>"], "none": [], "</s>": ["</s>"]}[bos]
    for candidate in itertools.product(range(4), repeat=3):
        (text,) = bound.texts(candidate)
        expected = tokenizer(kind).convert_tokens_to_ids(before) + ids(kind, text)
        assert bound.tokens([candidate])[0, 0].tolist() == expected


@pytest.mark.parametrize("bos", ["auto", "none", "</s>"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_word_put_at_a_token_position_has_the_tokens_of_the_text(kind, bos):
    pair = PromptPair(
        "John met Mary and Tom gave milk to", "John met Mary and Mary gave milk to", " John", " Tom", bos=bos
    )
    first = int(bos != "none")
    space = substitution_space(pair, None, ["cat", "Alex"], None, tokenizer(kind), prepend_bos=True)
    assert [slot.positions[0] for slot in space.slots] == [first + i for i in range(8)]
    bound = bind_substitution(space, [pair], tokenizer(kind), prepend_bos=True)
    for slot, option in itertools.product(range(8), (1, 2)):
        candidate = tuple(option if i == slot else 0 for i in range(8))
        (text,) = bound.texts(candidate)
        assert bound.tokens([candidate])[0, 0, first:].tolist() == ids(kind, text)


@pytest.mark.parametrize("kind", KINDS)
def test_other_clean_prompts_of_a_template_have_its_number_of_tokens_and_its_leading_token(kind):
    pair = PromptPair(CLEAN, PAIR.corrupted, " John", " Mary", bos="</s>")
    found = generate_clean_prompts(pair, TEMPLATES[0], 6, 0, tokenizer(kind))
    assert len({one.clean for one in found}) == 6
    assert {len(ids(kind, one.clean)) for one in found} == {len(ids(kind, CLEAN))}
    assert {encoded(kind, one).leading for one in found} == {"</s>"}


@pytest.mark.parametrize(
    ("bos", "prepend", "before"),
    [
        ("auto", True, ["<s>"]),
        ("auto", False, []),
        ("none", True, []),
        ("</s>", True, ["</s>"]),
        ("</s>", False, ["</s>"]),
    ],
)
def test_the_token_before_a_prompt_is_the_one_asked_for(bos, prepend, before):
    for kind in KINDS:
        text = encode_prompt(tokenizer(kind), CLEAN, bos=bos, item="prompts.clean", **KNOWN | {"prepend_bos": prepend})
        assert text == [*tokenizer(kind).convert_tokens_to_ids(before), *ids(kind, CLEAN)]
        pair = PromptPair(CLEAN, PAIR.corrupted, " John", " Mary", bos=bos)
        assert encoded(kind, pair, prepend_bos=prepend).leading == (before[0] if before else None)


@pytest.mark.parametrize("bos", ["<bos>", "John Mary", "John met", "Zebulon"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_single_token_cannot_be_put_before_prompts(kind, bos):
    pair = PromptPair(CLEAN, PAIR.corrupted, " John", " Mary", bos=bos)
    with pytest.raises(
        InputError, match=rf"^prompts\.bos: got '{bos}', which is no single token .* such as <s>\. Correct"
    ):
        encoded(kind, pair)


def test_the_tokens_of_a_text_are_asked_for_once_and_are_each_tokenizers_own(monkeypatch):
    monkeypatch.setattr(tokenizing, "_MOST_TEXTS", 3)
    asked = []
    for kind in KINDS:
        one = listening(kind, asked)
        for text in ("John", " Mary", "John", " Mary", "to", "met", "John"):
            tokens = token_ids(one, text)
            assert tokens == ids(kind, text)
            tokens.append(0)  # whoever has them may change them
    assert asked == [(kind, text) for kind in KINDS for text in ("John", " Mary", "to", "met", "John")]


def test_a_text_is_read_anew_when_its_tokenizer_has_got_tokens():
    own = copy.deepcopy(tokenizer("byte_level"))
    before = token_ids(own, "Zanzibar")
    own.add_tokens(["Zanzibar"])
    assert token_ids(own, "Zanzibar") == [len(own) - 1] != before


def listening(kind, asked):
    """A tokenizer of this kind that writes down what it is asked."""

    class Asked:
        def __call__(self, text, **options):
            asked.append((kind, text))
            return tokenizer(kind)(text, **options)

    return Asked()
