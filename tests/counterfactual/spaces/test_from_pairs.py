"""Clean, held-out and ordinary prompts of pairs that are given, and those that a template's lists make."""

import itertools
import re
from dataclasses import replace

import pytest
from helpers.searched import ABBA, BABA, subwords

from igap import InputError, PromptPair
from igap.counterfactual.clean_prompts import choose_prompts
from igap.counterfactual.config import SpaceConfig
from igap.counterfactual.spaces.prepare import prepare
from igap.inputs.words import NAMES

TEMPLATE = "{who} met {whom}. {who}"


def made(who, whom, answer=None, **further):
    """A pair of two names; the corrupted prompt has the other one of the two at both of the first's places."""
    texts = (f"{one} met {whom}. {one}" for one in (who, {"John": "Tom", "Tom": "John"}.get(who, "John")))
    return PromptPair(*texts, answer or " waved", " left", further=further)


@pytest.fixture(scope="module")
def words(small):
    return small("gpt2").tokenizer


def of(pairs, tokenizer, space=None, **asked):
    asked = {"clean_n": 2, "heldout_n": 1, "prepend_bos": True, **asked}
    return prepare(pairs, tokenizer, space=SpaceConfig(**space or {}), **asked)


def ioi(*names):
    """Pairs of igap's first template, a pair of names each."""
    return [
        replace(
            ABBA,
            **{
                field: text.replace("John", "{0}").replace("Mary", "{1}").format(*two)
                for field, text in zip(("clean", "corrupted", "answer", "distractor"), ABBA.texts, strict=True)
            },
            place=f"names.csv, row {row}: ",
        )
        for row, two in enumerate(names, start=1)
    ]


PAIRS = ioi(*itertools.permutations(("John", "Mary", "Tom", "Anna"), 2))
KEPT = dict.fromkeys(("second", "subject", "place", "verb", "object"), ("=keep",))
SPACE = {"slots": {**KEPT, "first": ("=keep", "Tom", "Anna")}}
IO = {"slots": {**KEPT, "first": ("=keep", "=IO")}}


def test_given_pairs_are_taken_in_an_order_of_the_seed_and_each_prompt_once(words):
    prepared = of([*PAIRS, replace(PAIRS[0], place="twice.csv, row 1: ")], words, SPACE)
    assert {pair.clean for pair in prepared.pairs} == {pair.clean for pair in PAIRS}
    assert len(prepared.pairs) == len(PAIRS)
    assert prepared.space.left_out["pairs whose clean prompt another has"] == 1
    orders = {seed: [pair.clean for pair in of(PAIRS, words, SPACE, seed=seed).pairs] for seed in (0, 1)}
    assert orders[0] == [pair.clean for pair in prepared.pairs]
    assert orders[0] != orders[1]
    assert orders[1] != [pair.clean for pair in PAIRS]


def test_pairs_of_the_commonest_template_and_length_are_taken(words):
    longer = [replace(pair, clean=f"Then {pair.clean}", corrupted=f"Then {pair.corrupted}") for pair in PAIRS[:4]]
    space = {"kind": "substitute", "vocabulary": ("cat", "dog")}
    prepared = of([*longer, *PAIRS[4:], *longer[:1]], words, space)
    assert {pair.clean for pair in prepared.pairs} == {pair.clean for pair in PAIRS[4:]}
    assert prepared.space.left_out["pairs of another template or length"] == 5
    assert len(prepared.space.slots) == len(PAIRS[0].clean.split()), "every word is a whole word in all of them"


@pytest.fixture
def subword():
    return subwords()


COLUMN = [
    replace(made(who, whom, template=TEMPLATE, label="x"), place=f"met.csv, row {i}: ")
    for i, (who, whom) in enumerate(itertools.product(("John", "Tom"), ("Mary", "Anna", "Tom")), start=1)
]


def test_a_column_template_gives_slots_with_the_words_that_the_pairs_have_there(subword):
    prepared = of(COLUMN, subword, clean_n=2, heldout_n=2, prepend_bos=False)
    slots = {slot.name: set(slot.options) for slot in prepared.space.slots}
    assert slots == {"who": {"=keep", "=other", "John", "Tom"}, "whom": {"=keep", "=other", "Mary", "Anna", "Tom"}}
    assert prepared.space.template == TEMPLATE
    assert prepared.neutral == ("whom",), "the corrupted prompts have another name at who alone"
    bound = prepared.bind(prepared.pairs)
    by_hand = tuple(slot.options.index("=other") for slot in prepared.space.slots)
    assert bound.texts(by_hand) == [pair.corrupted for pair in prepared.pairs]
    assert [subword.decode(row) for row in bound.tokens([by_hand])[:, 0]] == bound.texts(by_hand)
    strange = [replace(COLUMN[0], corrupted="John met Mary. Tom"), *COLUMN[1:]]
    slots = of(strange, subword, clean_n=2, heldout_n=2, prepend_bos=False).space.slots
    assert not any("=other" in slot.options for slot in slots), "one of them does not follow the template"
    named = of(COLUMN, subword, {"template": "{who} met {rest} {who}"}, clean_n=1, heldout_n=0, prepend_bos=False)
    assert [slot.name for slot in named.space.slots] == ["who", "rest"]
    own = of(COLUMN, subword, {"slots": {"whom": ("Mary", "Anna")}}, clean_n=2, heldout_n=2, prepend_bos=False)
    assert {slot.name: slot.options for slot in own.space.slots}["whom"] == ("Mary", "Anna")


def test_clean_held_out_and_ordinary_prompts_are_different_ones(small):
    model = small("gpt2")
    prepared = of(PAIRS, model.tokenizer, SPACE, clean_n=3, heldout_n=2)
    chosen = choose_prompts(model, prepared, None, 3, 2)
    parts = [[pair.clean for pair in part] for part in (chosen.clean, chosen.heldout, chosen.ordinary)]
    assert list(map(len, parts)) == [3, 2, 7]
    assert list(itertools.chain(*parts)) == [pair.clean for pair in prepared.pairs]
    differences = _differences(model, prepared.pairs)
    least = sum(sorted(differences)[3:5]) / 2
    chosen = choose_prompts(model, prepared, least, 5, 3)
    assert [pair.clean for pair in (*chosen.clean, *chosen.heldout)] == [
        pair.clean for pair, value in zip(prepared.pairs, differences, strict=True) if value >= least
    ]
    assert len(chosen.ordinary) == 4, "those below the bound are ordinary prompts, too"


def _differences(model, pairs):
    """F of each clean prompt, from its logits alone."""
    values = []
    for pair in pairs:
        logits = model(model.to_tokens(pair.clean, prepend_bos=True))[0, -1]
        right, wrong = (model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in pair.texts[2:])
        values.append((logits[right[0]] - logits[wrong[0]]).item())
    return values


def test_held_out_and_ordinary_prompts_of_their_own_have_the_clean_prompts_shape(small):
    model, first, rest = small("gpt2"), PAIRS[:5], PAIRS[5:]
    other = replace(BABA, clean=f"Then {BABA.clean}", corrupted=f"Then {BABA.corrupted}")
    prepared = of(
        first, model.tokenizer, SPACE, clean_n=5, heldout_n=3, heldout=[other, *rest], reference=[*PAIRS, other]
    )
    assert {pair.clean for pair in prepared.heldout} == {pair.clean for pair in rest}
    chosen = choose_prompts(model, prepared, None, 5, 3)
    assert {pair.clean for pair in chosen.clean} == {pair.clean for pair in first}
    assert {pair.clean for pair in chosen.ordinary} == {pair.clean for pair in PAIRS}
    with pytest.raises(
        InputError, match=r"^names\.csv, row 1: clean: got 'After John .*', which names\.csv, row 1 has as"
    ):
        of(first, model.tokenizer, SPACE, clean_n=5, heldout=PAIRS)
    with pytest.raises(InputError, match=r"^heldout\.n: got 3, but of the held-out pairs only 0 have the clean"):
        of(first, model.tokenizer, SPACE, clean_n=5, heldout_n=3, heldout=[other])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"pairs": PAIRS[:1]},
            r"clean\.n: got 3 clean prompts \(heldout\.n counted\), but the given pairs have 1 of one",
        ),
        ({"pairs": []}, r"pair: got no pair, wanted at least one\."),
        (
            {"pairs": [made("John", "Mary", place="")], "tokenizer": subwords},
            r"search\.space\.template: got null, but .*clean \('John met Mary\. John'\) follows none of igap's",
        ),
        (
            {"pairs": [made("John", "Mary", template="{who} saw {whom}")], "tokenizer": subwords},
            r"prompts\.template: got '\{who\} saw \{whom\}', wanted the clean prompt \('John met Mary\. John'\) with",
        ),
        (
            {"pairs": PAIRS, "space": {"kind": "prompts", "prompts": (ABBA.corrupted,), "answer": "{x}"}},
            r"search\.space\.answer: got '\{x\}' in a space without slots",
        ),
        (
            {"pairs": PAIRS, "space": {**SPACE, "answer": "{first}"}},
            r"search\.space\.answer: got .* beside several pairs",
        ),
        (
            {"pairs": [replace(PAIRS[0], answer=(" John", " Tom")), *PAIRS[1:]], "space": IO},
            r"names\.csv, row 1: answer: got \{John, Tom\} beside ' Mary', but search\.space\.slots\.first offers =IO",
        ),
        (
            {"pairs": PAIRS, "space": {"kind": "prompts", "prompts": (ABBA.corrupted,)}, "lengths": "any"},
            r"clean\.lengths: got any with a list of prompts, each of which stands beside all clean prompts",
        ),
    ],
)
def test_pairs_that_make_no_search_are_refused_with_the_reason(words, change, message):
    tokenizer = change["tokenizer"]() if "tokenizer" in change else words
    with pytest.raises(InputError, match=f"^{message}") as error:
        space = change.get("space", {} if "tokenizer" in change else SPACE)
        of(change["pairs"], tokenizer, space, lengths=change.get("lengths", "one"))
    assert "\n" not in str(error.value)


CAPITALS = (
    "=keep",
    "John; land=waved; of=a",
    "Tom; land=left; of=a",
    "Mary; land=waved; of=b",
    "Anna; land=left; of=b",
)
LISTED = {"template": "After {who} met {whom}", "slots": {"who": CAPITALS, "whom": ("=keep", "=fresh[0]", "names")}}
WAVED = PromptPair("After John met Mary", "After Tom met Mary", " waved", " left", min_gap=0.0)


def test_other_clean_prompts_fill_the_slots_and_the_answer_follows(subword):
    """All of them, written out: the clean and corrupted word share `of`, and differ in `land`, as the pair's do."""
    prepared = of(WAVED, subword, {**LISTED, "answer": "{land}"}, clean_n=4, heldout_n=4, prepend_bos=False)
    lands = {"John": "waved", "Tom": "left", "Mary": "waved", "Anna": "left"}
    partner = {"John": "Tom", "Tom": "John", "Mary": "Anna", "Anna": "Mary"}
    every = {
        (f"After {who} met {whom}", f"After {partner[who]} met {whom}", f" {lands[who]}", f" {lands[partner[who]]}")
        for who in lands
        for whom in lands
        if whom not in (who, partner[who])
    }
    assert {pair.texts for pair in prepared.pairs} == every
    assert prepared.pairs[0] is WAVED
    assert prepared.neutral == ("whom",)
    assert {pair.texts for pair in prepared.ordinary} == every
    told = of(
        replace(WAVED, answer=" Mary"), subword, {**LISTED, "answer": "{whom}", "distractor": "left"}, clean_n=2,
        prepend_bos=False,
    )  # fmt: skip
    assert told.neutral == (), "the answer is told from whom; the two prompts differ in who"
    assert [slot.options[:3] for slot in prepared.space.slots] == [
        ("=keep", "John", "Tom"),
        ("=keep", "=fresh[0]", "John"),
    ]


def test_a_word_in_two_slots_is_replaced_as_one(words):
    """The subject has no list, but is the clean prompt's second name and the corrupted prompt's first."""
    template = "After {first} and {second} went to the store, {subject} gave a bottle of milk to"
    slots = {"first": ("names",), "second": ("names",), "subject": ("=keep",)}
    space = {"template": template, "slots": slots, "answer": "{first}", "distractor": "{second}"}
    prepared = of(ABBA, words, space, clean_n=6, heldout_n=6)
    assert {pair.texts for pair in prepared.pairs} == {pair.texts for pair in PAIRS}, "all twelve pairs of four names"
    both = {**space, "slots": {**slots, "subject": ("John", "Mary")}}
    assert [pair.clean for pair in of(ABBA, words, both, clean_n=1, heldout_n=1).pairs] == [
        ABBA.clean,
        ABBA.clean.replace("John", "_").replace("Mary", "John").replace("_", "Mary"),
    ], "a word of two lists is of both"
    known = [name for name in NAMES if words.unk_token_id not in words(name)["input_ids"]]
    assert len(known) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"answer": "{town}"},
            r"search\.space\.answer: got \{town\}, which is no slot .* one of who, whom, land, of\.",
        ),
        (
            {"answer": "{who}"},
            r"search\.space\.answer: got '\{who\}', which is 'John' in the pair, whose answer is ' waved'",
        ),
        ({"answer": "{land"}, r"search\.space\.answer: got '\{land', wanted names in braces"),
        (
            {"distractor": "{land}", "answer": None},
            r"search\.space\.distractor: got '\{land\}' without search\.space\.ans",
        ),
        (
            {"slots": {**LISTED["slots"], "who": ("=keep",)}, "answer": "{who}"},
            r"search\.space\.answer: got \{who\}, but search\.space\.slots\.who has no list of words",
        ),
        (
            {"slots": {**LISTED["slots"], "who": (*CAPITALS, "John")}},
            r"search\.space\.slots\.who: got 'John' twice, with nothing beside it, wanted land, of with every word",
        ),
        (
            {"slots": {**LISTED["slots"], "who": CAPITALS[2:]}},
            r"search\.space\.slots\.who: got no 'John', .* Add 'John; land=\.\.\.; of=\.\.\.'",
        ),
        ({"clean_n": 9}, r"clean\.n: got 10 \(heldout\.n counted\), but .* only 8 prompts were made"),
        (
            {"pair": replace(WAVED, corrupted="After Tom left Mary")},
            r"prompts\.corrupted: got 'After Tom left Mary', which does not follow search\.space\.template",
        ),
        ({"template": "After {who} saw {whom}"}, r"search\.space\.template: got .* does not follow"),
    ],
)
def test_what_the_lists_cannot_tell_is_refused_with_the_reason(subword, change, message):
    settings = dict(change)
    pair, n = settings.pop("pair", WAVED), settings.pop("clean_n", 4)
    with pytest.raises(InputError, match=f"^{message}") as error:
        of(pair, subword, {**LISTED, "answer": "{land}", **settings}, clean_n=n, prepend_bos=False)
    assert re.fullmatch(r"[^\n]+\.", str(error.value))
