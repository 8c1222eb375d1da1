"""Slots, words and rules: by hand, and every candidate's tokens against its text."""

import copy
import itertools
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from helpers.searched import ABBA, BABA, PAIRS, TEMPLATE, searched, subwords
from tokenizers import normalizers

from igap import InputError, PromptPair
from igap.counterfactual.spaces import positions
from igap.counterfactual.spaces import template as template_module
from igap.counterfactual.spaces.positions import fits
from igap.counterfactual.spaces.template import (
    LISTS,
    OPERATORS,
    SLOTS,
    bind_template,
    find_template,
    generate_clean_prompts,
    slot_names,
    template_space,
)
from igap.inputs import ioi
from igap.inputs.ioi import TEMPLATES, generate_ioi
from igap.inputs.prompts import encode_prompt
from igap.inputs.words import NAMES, PLACES
from igap.models.load import EMBEDDED

CONF = Path(__file__).parents[3] / "conf" / "search" / "space"
KEPT = {name: ["=keep"] for name in slot_names(TEMPLATE)}


@pytest.fixture(scope="module")
def words(small):
    """A tokenizer of whole words, which knows John, Mary, Tom, Anna, cat and dog of the lists."""
    return small("gpt2").tokenizer


def encode(tokenizer, text, bos):
    return encode_prompt(tokenizer, text, prepend_bos=bos, item="text", n_ctx=None, n_vocab=None)


def some(space, n=60):
    """Candidates from all over the space."""
    return list(itertools.islice(space.candidates(), 0, None, max(1, space.size // n)))


def test_the_default_slots_are_those_of_the_config():
    asked = yaml.safe_load((CONF / "slots.yaml").read_text())
    assert asked["slots"] == {name: list(words) for name, words in SLOTS.items()}
    assert (asked["kind"], asked["template"], asked["max_edits"]) == ("slots", None, None)


@pytest.mark.parametrize("name", ["slots", "relational", "words"])
def test_every_list_and_rule_of_the_configs_is_known_and_every_slot_is_the_notebooks(name):
    asked = yaml.safe_load((CONF / f"{name}.yaml").read_text())["slots"]
    assert set(asked) == set(slot_names(TEMPLATES[0]))
    rules = {re.sub(r"\[\d+\]", "[K]", entry) for entry in itertools.chain(*asked.values())}
    assert rules <= {*OPERATORS, *LISTS}


HAND = {
    "=keep": ("{own}", "{own}"),
    "=S": ("Mary", "Mary"),
    "=IO": ("John", "John"),
    "=N1": ("John", "Mary"),
    "=N2": ("Mary", "John"),
    "=fresh[0]": ("Tom", "Tom"),
    "=fresh[1]": ("Anna", "Anna"),
    "=fresh[2]": ("Tom", "Tom"),  # the tokenizer knows two more names: they come around
    "=animal[0]": ("cat", "cat"),
    "=animal[1]": ("dog", "dog"),
    "dog": ("dog", "dog"),
}
"""What each option puts into a slot of "John and Mary ... Mary" and of "Mary and John ... Mary"; answer John."""


@pytest.mark.parametrize("slot", ["first", "second", "subject"])
def test_rules_take_their_words_from_the_clean_prompt_at_hand(words, slot):
    space = template_space(TEMPLATE, KEPT | {slot: list(HAND)}, ABBA, words, prepend_bos=True)
    (only,) = space.slots
    assert only.options == tuple(HAND)
    found = bind_template(space, [ABBA, BABA], words, prepend_bos=True)
    own = [dict(zip(("first", "second", "subject"), names, strict=True)) for names in ("JMM", "MJM")]
    names = {"J": "John", "M": "Mary"}
    for index, option in enumerate(HAND):
        for i, pair in enumerate((ABBA, BABA)):
            word = HAND[option][i].format(own=names[own[i][slot]])
            fills = {name: names[letter] for name, letter in own[i].items()} | {slot: word}
            text = TEMPLATE.format(**fills, place="store", verb="gave", object="bottle of milk")
            assert found.write(pair, (index,)) == text
            assert found.tokens([(index,)])[i, 0].tolist() == encode(words, text, True)


def test_a_fresh_name_is_none_of_the_prompts_own_nor_its_answer(words):
    elsewhere = PromptPair(ABBA.clean, ABBA.corrupted, " Tom", " Mary")
    space = template_space(TEMPLATE, KEPT | {"first": ["=fresh[0]", "=fresh[1]"]}, elsewhere, words, prepend_bos=True)
    found = bind_template(space, [elsewhere], words, prepend_bos=True)
    assert [found.texts((i,))[0].split()[1] for i in range(2)] == ["Anna", "Anna"]


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("n_pairs", [1, 3])
@pytest.mark.parametrize("kind", ["rules", "words", "substitute", "prompts"])
@pytest.mark.parametrize("tokenizer", ["words", "subwords"])
def test_a_candidates_tokens_are_those_of_its_text(request, tokenizer, kind, n_pairs, bos):
    tokenizer = subwords() if tokenizer == "subwords" else request.getfixturevalue("words")
    found = searched(kind, PAIRS[:n_pairs], tokenizer, bos=bos)
    assert found.shared == (n_pairs == 1 or kind in ("words", "prompts"))
    candidates = some(found.space)
    tokens = found.tokens(candidates)
    assert tokens.shape[:2] == (found.n_corrupted, len(candidates))
    own = [found.texts(candidate) for candidate in candidates]
    assert len({text for texts in own for text in texts}) > 4
    assert any(texts[0] != texts[-1] for texts in own) == (not found.shared)
    for i, texts in enumerate(own):
        rows = [encode(tokenizer, text, bos) for text in texts]
        assert tokens[:, i].expand(n_pairs, -1).tolist() == rows
        for row, text in zip(rows, texts, strict=True):
            assert tokenizer.decode(row[bos:]).replace(" ,", ",") == text
    assert found.first <= min(p for slot in found.space.slots for p in slot.positions)


@pytest.mark.parametrize("text", ["John met Mary. John waved to", "So John met Mary. Then John waved to"])
def test_a_slot_that_comes_twice_holds_the_same_word_in_both_places(text):
    template = text.replace("John", "{first}").replace("Mary", "{second}")
    pair = PromptPair(text, text.replace("Mary", "Tom"), " Mary", " John")
    lists = {"first": ["=keep", "Tom", "Anna"], "second": ["=keep", "=N1"]}
    space = template_space(template, lists, pair, subwords(), prepend_bos=False)
    (first, _), found = space.slots, bind_template(space, [pair], subwords(), prepend_bos=False)
    assert len(first.positions) == 2
    for candidate in space.candidates():
        (written,) = found.texts(candidate)
        word = space.words(candidate)[0].replace("=keep", "John")
        assert re.findall(r"(\w+) (?:met|waved)", written) == [word, word]
        assert found.tokens([candidate])[0, 0].tolist() == encode(subwords(), written, False)


@pytest.mark.parametrize(
    "template", ["{first} met Mary. Then {first} waved to", 'Then {first} met Mary. "{first}" waved to']
)
def test_a_word_must_fit_in_every_place_of_its_slot(template):
    """Without a space before it "dog" takes several tokens: at the start of a text, and in quotation marks."""
    clean, corrupted = (template.format(first=name) for name in ("John", "Tom"))
    pair, lists = PromptPair(clean, corrupted, " Mary", " John"), {"first": ["=keep", "Tom", "dog"]}
    assert fits(subwords(), "gave", " dog", 1)
    with pytest.raises(InputError, match=r"^search\.space\.slots\.first: got 'dog' \(\d tokens\), wanted words of 1 "):
        template_space(template, lists, pair, subwords(), prepend_bos=False)


def test_slots_that_begin_within_a_token_are_refused():
    pair = PromptPair("After John went to", "After Mary went to", " Mary", " John")
    message = (
        r"^search\.space\.template: got 'After J\{rest\} went to', whose slots begin or end within tokens of 'After "
        r"John went to' \(After\| John\| went\| to\)\. Let slots be whole words\.$"
    )
    with pytest.raises(InputError, match=message):
        template_space("After J{rest} went to", {"rest": ["ohn", "=keep"]}, pair, subwords(), prepend_bos=False)


@pytest.mark.parametrize(
    "template",
    [
        "After {first and Mary went to",
        "After {} and Mary went to",
        "After {first!r} and Mary went to",
        "After {first:>9} and Mary went to",
        "After {first.x} and Mary went to",
    ],
)
def test_a_template_with_braces_that_are_no_slots_is_refused(words, template):
    with pytest.raises(InputError) as error:
        template_space(template, {"first": ["=keep"]}, ABBA, words, prepend_bos=True)
    assert str(error.value) == (
        f"search.space.template: got {template!r}, wanted each slot as a name in braces, such as {{subject}}. Correct "
        "the braces."
    )


def test_words_that_do_not_fit_are_listed(words):
    lists = KEPT | {"subject": ["John", "bottle of", "xyzzy", "cat", "store, Mary"]}
    with pytest.raises(InputError) as error:
        template_space(TEMPLATE, lists, ABBA, words, prepend_bos=True)
    assert str(error.value) == (
        "search.space.slots.subject: got 'bottle of' (2 tokens), 'xyzzy' (unknown), 'store, Mary' (3 tokens), wanted "
        "words of 1 known token, as many as 'Mary'. Take them out."
    )
    with pytest.raises(InputError, match=r"object: got 'milk' \(1 tokens\), wanted words of 3 known tokens, as many "):
        template_space(TEMPLATE, KEPT | {"object": ["milk", "=keep"]}, ABBA, words, prepend_bos=True)


def test_of_named_lists_what_does_not_fit_is_left_out_and_counted(words):
    lists = KEPT | {"subject": ["=S", "names", "John", "animals"], "place": ["=keep", "places"]}
    space = template_space(TEMPLATE, lists, ABBA, words, prepend_bos=True)
    place, subject = space.slots
    assert subject.options == ("=S", "John", "Mary", "Tom", "Anna", "cat", "dog")
    assert place.options == ("=keep", "store")
    assert (subject.positions, place.positions) == ((10,), (8,))
    known = {name: n for name, n in space.left_out.items() if n}
    assert known == {
        "subject: not 1 known token": len(NAMES) - 4 + len(LISTS["animals"]) - 2,
        "place: not 1 known token": len(PLACES) - 1,
    }
    one_token_later = template_space(TEMPLATE, lists, ABBA, words, prepend_bos=False)
    assert [slot.positions for slot in one_token_later.slots] == [(7,), (9,)]


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        (
            {"verb": None},
            "search.space.slots.verb: got a slot without a list, wanted lists for exactly first, second, ",
        ),
        (
            {"day": ["=keep"]},
            "search.space.slots.day: got a list without a slot in the template, wanted lists for exac",
        ),
        (
            {"first": ["=T"]},
            "search.space.slots.first: got '=T', wanted a word, a list (names, places, verbs, objects",
        ),
        (
            {"first": ["=fresh"]},
            "search.space.slots.first: got '=fresh', wanted a word, a list (names, places, verbs,",
        ),
        ({"object": ["places"]}, "search.space.slots.object: got no word that fits, wanted one or more of 3 tokens."),
        ({}, "search.space: got 1 candidate, wanted at least two. Offer more words."),
        ({"first": ["John"]}, "search.space: got 1 candidate, wanted at least two. Offer more words."),
    ],
)
def test_lists_that_make_no_space_are_refused(words, lists, message):
    lists = {name: options for name, options in (KEPT | lists).items() if options is not None}
    with pytest.raises(InputError) as error:
        template_space(TEMPLATE, lists, ABBA, words, prepend_bos=True)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(("template", "slots"), [
    (TEMPLATES[4], ["first", "second", "subject", "verb", "object"]),  # has no place
    (TEMPLATES[12], ["first", "second", "object", "place", "subject", "verb"]),  # keeps its other object
])  # fmt: skip
def test_a_prompt_of_another_of_igaps_templates_takes_the_default_lists(template, slots, small):
    tokenizer = small(EMBEDDED).tokenizer
    fills = {"first": "John", "second": "Mary", "place": "store", "verb": "gave", "object": "drink", "other": "ring"}
    clean, corrupted = (template.format(**fills, subject=name) for name in ("Mary", "John"))
    pair = PromptPair(clean, corrupted, " John", " Mary")
    assert [slot.name for slot in template_space(None, SLOTS, pair, tokenizer, prepend_bos=True).slots] == slots
    for lists, template_given, wrong in (
        ({name: words for name, words in SLOTS.items() if name != "verb"}, None, "verb: got a slot without a list"),
        ({**SLOTS, "day": ["=keep"]}, None, "day: got a list without a slot"),
        (SLOTS, template, "place: got a list without" if template == TEMPLATES[4] else "other: got a slot without"),
    ):
        with pytest.raises(InputError, match=f"search.space.slots.{wrong}"):
            template_space(template_given, lists, pair, tokenizer, prepend_bos=True)


def test_a_prompt_of_no_template_needs_one_and_one_that_it_follows(words):
    strange = replace(ABBA, clean="John gave it to Mary", corrupted="Tom gave it to Mary")
    for template, message in (
        (None, r"got null, and prompts\.clean \('John gave it to Mary'\) follows none of igap's templates\. Write"),
        (TEMPLATE, r"got 'After \{first\}.*', which prompts\.clean \('John gave it to Mary'\) does not follow\. Corr"),
    ):
        with pytest.raises(InputError, match=rf"^search\.space\.template: {message}"):
            template_space(template, KEPT, strange, words, prepend_bos=True)
    own = template_space(
        "{who} gave it to Mary", {"who": ["=keep", "cat", "=fresh[0]"]}, strange, words, prepend_bos=True
    )
    found = bind_template(own, [strange], words, prepend_bos=True)
    assert [found.texts((i,))[0] for i in range(3)] == [f"{who} gave it to Mary" for who in ("John", "cat", "Tom")]


def test_a_rule_whose_word_has_another_length_or_is_none_is_refused(words):
    who = replace(ABBA, clean="cat gave it to", corrupted="dog gave it to", answer=" it", distractor=" gave")
    for entry, slot, message in (
        ("=N1", "who", r"got =N1, but the template has no slot \{first\}\. Take it out\."),
        ("=N2", "who", r"got =N2, but the template has no slot \{second\}\. Take it out\."),
    ):
        space = template_space("{who} gave it to", {"who": [entry, "=keep"]}, who, words, prepend_bos=True)
        with pytest.raises(InputError, match=rf"^search\.space\.slots\.{slot}: {message}"):
            bind_template(space, [who], words, prepend_bos=True)
    space = template_space(TEMPLATE, KEPT | {"object": ["=keep", "=S"]}, ABBA, words, prepend_bos=True)
    with pytest.raises(InputError) as error:
        bind_template(space, [ABBA], words, prepend_bos=True)
    assert str(error.value) == (
        "search.space.slots.object: got =S, which gives 'Mary' (1 tokens) where the prompt has 3. Take it out."
    )


@pytest.mark.parametrize("index", range(len(TEMPLATES)))
def test_every_generated_prompt_is_known_by_its_template(index):
    for example in generate_ioi(20, 3, templates=[index]):
        assert find_template(example.clean) == TEMPLATES[index]
    assert find_template("The capital of France is") is None


def test_further_clean_prompts_ask_the_same_with_other_words(ioi_mini):
    tokenizer = ioi_mini.tokenizer
    for pair in (ABBA, BABA):
        found = generate_clean_prompts(pair, TEMPLATE, 20, 0, tokenizer)
        assert found[0] is pair
        assert len({one.clean for one in found}) == 20
        space = template_space(None, SLOTS, pair, tokenizer, prepend_bos=True)
        bind_template(space, found, tokenizer, prepend_bos=True)  # of one length, each following the template
        where = [(one.clean.split()[1 if pair is ABBA else 3], one.answer, one.distractor) for one in found]
        assert all(name == answer.strip() for name, answer, _ in where), "the answer stands where the pair's does"
        assert all(one.clean.split()[8] == one.distractor.strip() for one in found)
        assert [one.clean for one in found] == [
            one.clean for one in generate_clean_prompts(pair, TEMPLATE, 20, 0, tokenizer)
        ]
        assert {one.clean for one in found[1:]} != {
            one.clean for one in generate_clean_prompts(pair, TEMPLATE, 20, 1, tokenizer)[1:]
        }
        assert all(len(encode(tokenizer, one.clean, False)) == 16 for one in found)
        assert all(one.min_gap == pair.min_gap for one in found)


def test_where_clean_prompts_cannot_be_made_it_says_so(words, ioi_mini):
    assert generate_clean_prompts(ABBA, None, 1, 0, words) == [ABBA]
    with pytest.raises(
        InputError, match=r"^clean\.n: got 2 clean prompts \(heldout\.n counted\) with a prompt of your"
    ):
        generate_clean_prompts(ABBA, "After {first} went {rest}", 2, 0, words)
    with pytest.raises(InputError, match=r"^clean\.n: got 13 \(heldout\.n counted\), .* only 12 prompts were made"):
        generate_clean_prompts(ABBA, TEMPLATE, 13, 0, words)


def test_s_is_who_acts_in_the_prompt_whatever_is_asked_for(words):
    pair = replace(ABBA, distractor=" Tom")
    space = template_space(TEMPLATE, KEPT | {"first": ["=keep", "=S"]}, pair, words, prepend_bos=True)
    (text,) = bind_template(space, [pair], words, prepend_bos=True).texts((1,))
    assert text == ABBA.clean.replace("John", "Mary")
    with pytest.raises(InputError, match=r"the pair asks for ' John' beside ' Tom'\. Use clean\.n=1 heldout\.n=0\."):
        generate_clean_prompts(pair, TEMPLATE, 2, 0, words)
    assert generate_clean_prompts(pair, TEMPLATE, 1, 0, words) == [pair]


def test_few_known_words_make_all_the_prompts_there_are_and_no_time_is_spent_on_others(words, monkeypatch):
    """The random models' tokenizer knows four names, one place, one verb and one object."""
    asked = []
    stream = ioi.ioi_stream
    monkeypatch.setattr(ioi, "ioi_stream", lambda *a, **k: (asked.append(one) or one for one in stream(*a, **k)))
    found = generate_clean_prompts(ABBA, TEMPLATE, 200, 0, words, at_least=1)
    names = ("John", "Mary", "Tom", "Anna")
    wanted = {
        ABBA.clean.replace("John", "{0}").replace("Mary", "{1}").format(*two)
        for two in itertools.permutations(names, 2)
    }
    assert len(found) == len(wanted) == 12
    assert {one.clean for one in found} == wanted
    assert len(asked) < 200
    strange = replace(ABBA, **{name: getattr(ABBA, name).replace("store", "cat") for name in ("clean", "corrupted")})
    assert len(generate_clean_prompts(strange, TEMPLATE, 200, 0, words, at_least=1)) == 13, (
        "and one of a word of its own"
    )
    assert len(asked) < 400


def test_two_different_objects_of_a_template_count_as_such(ioi_mini, monkeypatch):
    objects = {"bottle of milk", "cup of tea", "glass of water"}
    monkeypatch.setattr(positions, "fits", lambda _, before, text, width: text.strip() in {"store", "gave", *objects})
    monkeypatch.setattr(template_module, "single_tokens", lambda *_: ["John", "Mary"])
    fills = {"first": "John", "second": "Mary", "place": "store", "verb": "gave"}
    texts = {
        TEMPLATES[12].format(**fills, subject="Mary", object=one, other=other)
        for one, other in itertools.permutations(objects, 2)
    }
    pair = replace(ABBA, clean=min(texts), corrupted=min(texts).replace("; Mary", "; John"))
    found = {one.clean for one in generate_clean_prompts(pair, TEMPLATES[12], 200, 0, ioi_mini.tokenizer, at_least=1)}
    assert len(found) == 12
    assert texts < found


def test_further_clean_prompts_are_as_long_in_every_slot_and_of_known_words(small):
    tokenizer = subwords()  # every word is known, but most are several tokens
    alike = generate_clean_prompts(ABBA, TEMPLATE, 5, 0, tokenizer, at_least=1)
    for one in alike:
        prompt = re.fullmatch(r"After (\w+) and (\w+) went to the (\w+), (\w+) (\w+) a (.*) to", one.clean)
        assert [len(tokenizer(f" {word}")["input_ids"]) for word in prompt.groups()] == [1, 1, 1, 1, 1, 3]
    word_level = small("gpt2").tokenizer
    for one in generate_clean_prompts(ABBA, TEMPLATE, 9, 0, word_level, at_least=1):
        assert word_level.unk_token_id not in encode(word_level, one.clean, False)


def test_no_further_clean_prompt_has_a_word_that_the_tokenizer_does_not_know(words):
    for one in generate_clean_prompts(ABBA, TEMPLATE, 5, 0, words, at_least=1):
        assert words.unk_token_id not in words(one.clean)["input_ids"]


def test_what_fits_decodes_to_what_it_was(words):
    assert not fits(words, "", "<unk>", 1)
    lossy = copy.deepcopy(subwords())
    lossy.backend_tokenizer.normalizer = normalizers.Replace("Mary", "John")
    assert fits(lossy, "gave", " John", 1)
    assert not fits(lossy, "gave", " Mary", 1), "what the model reads is another word"
    assert fits(subwords(), "gave", " cat", 1)
    assert not fits(subwords(), "gave", " cats", 1)
    assert not fits(subwords(), "gave", " cat", 2)
    assert fits(subwords(), "", "John", 1)
    assert not fits(subwords(), "gave", " Waved", 1)
