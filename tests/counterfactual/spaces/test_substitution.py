"""Other words at token positions, and lists of prompts."""

import itertools
from pathlib import Path

import pytest
import yaml
from helpers.searched import ABBA, BABA, PAIRS, subwords

from igap import InputError, PromptPair
from igap.counterfactual.config import SpaceConfig
from igap.counterfactual.spaces.positions import fits
from igap.counterfactual.spaces.prompt_list import bind_prompt_list, prompt_list_space
from igap.counterfactual.spaces.substitution import WORDS, bind_substitution, substitution_space
from igap.inputs.prompts import encode_prompt
from igap.inputs.words import NAMES


@pytest.fixture(scope="module")
def words(small):
    return small("gpt2").tokenizer


def encode(tokenizer, text):
    return encode_prompt(tokenizer, text, prepend_bos=False, item="text", n_ctx=None, n_vocab=None)


def test_every_whole_word_is_a_slot_that_keeps_or_takes_a_word(words):
    space = substitution_space(ABBA, None, ["names", "cat"], 2, words, prepend_bos=True)
    clean = ["", *ABBA.clean.replace(",", " ,").split()]
    positions = [i for i, word in enumerate(clean) if word.isalpha()]
    assert [slot.positions for slot in space.slots] == [(i,) for i in positions]
    assert {slot.options for slot in space.slots} == {("=keep", "John", "Mary", "Tom", "Anna", "cat")}
    assert [slot.name for slot in space.slots] == [f"token{i}" for i in positions]
    assert space.left_out == {"not one known token": len(NAMES) - 4}
    assert (space.kind, space.max_edits) == ("substitute", 2)
    n = len(positions)
    assert space.size == 1 + 5 * n + 25 * n * (n - 1) // 2
    found = bind_substitution(space, [ABBA], words, prepend_bos=True)
    chosen = [0] * n
    chosen[positions.index(2)], chosen[positions.index(16)] = 5, 4
    assert found.write(ABBA, tuple(chosen)) == "After cat and Mary went to the store, Mary gave a bottle of milk Anna"


def test_chosen_positions_are_slots_in_the_order_asked_for(words):
    with_bos = substitution_space(ABBA, [10, 2], ["cat"], None, words, prepend_bos=True)
    without = substitution_space(ABBA, [9, 1], ["cat"], None, words, prepend_bos=False)
    for space, bos in ((with_bos, True), (without, False)):
        found = bind_substitution(space, [ABBA, BABA], words, prepend_bos=bos)
        assert [found.write(pair, (1, 0)).split()[8] for pair in (ABBA, BABA)] == ["cat", "cat"]
        assert [found.write(pair, (0, 1)).split()[1] for pair in (ABBA, BABA)] == ["cat", "cat"]
        assert found.write(BABA, (0, 0)) == BABA.clean


@pytest.mark.parametrize(
    ("positions", "what"),
    [
        ([2, 9], "position 9, which is no whole word"),  # a comma
        ([0], "position 0, which is no whole word"),  # BOS
        ([17], "position 17, which is no whole word"),
        ([-1], "position -1, which is no whole word"),
        ([2, 4, 2], "a position twice"),
    ],
)
def test_positions_that_are_no_whole_words_are_refused_with_those_that_are(words, positions, what):
    with pytest.raises(InputError) as error:
        substitution_space(ABBA, positions, ["cat"], None, words, prepend_bos=True)
    message = str(error.value)
    assert message.startswith(f"search.space.positions: got {what}, wanted some of 1 'After', 2 'John', 3 'and', ")
    assert message.endswith("15 'milk', 16 'to'.")


def test_parts_of_words_are_no_slots_and_what_is_glued_to_a_word_is_left_alone():
    """In "re-store" the space is a token of its own: a word in place of "re" would take it in."""
    text = 'After milky John\'s "cat" went, to(it) the re-store to'
    pair = PromptPair(text, text.replace("John", "Mary"), " Mary", " John")
    spans = substitution_space(pair, None, ["cat", "dog"], None, subwords(), prepend_bos=False)
    tokens = subwords().convert_ids_to_tokens(encode(subwords(), text))
    known = [tokens[slot.positions[0]] for slot in spans.slots]
    assert known == ["After", "ĠJohn", "Ġwent", "Ġto", "Ġthe", "Ġto"]
    found = bind_substitution(spans, [pair], subwords(), prepend_bos=False)
    for candidate in itertools.islice(spans.candidates(), 0, None, 5):
        assert found.tokens([candidate])[0, 0].tolist() == encode(subwords(), found.texts(candidate)[0])


def test_at_the_start_of_a_text_stand_words_that_are_one_token_without_a_space():
    space = substitution_space(ABBA, [0, 2], ["John", "dog", "Tom"], None, subwords(), prepend_bos=False)
    first, third = space.slots
    assert first.options == ("=keep", "John", "Tom")
    assert third.options == ("=keep", "John", "dog", "Tom")
    assert not fits(subwords(), "", "dog", 1)


def test_words_are_all_that_are_one_token_after_a_space():
    space = substitution_space(ABBA, [2], [WORDS], None, subwords(), prepend_bos=False)
    known = [subwords().decode([i]) for i in range(len(subwords()))]
    expected = {word[1:] for word in known if word.startswith(" ") and word[1:].isascii() and word[1:].isalpha()}
    assert {"Mary", "cat", "gave"} <= expected
    assert set(space.slots[0].options) == {"=keep", *expected}


def test_words_that_are_not_one_token_are_listed(words):
    with pytest.raises(InputError) as error:
        substitution_space(ABBA, [2], ["John", "bottle of", "xyzzy"], None, words, prepend_bos=True)
    assert str(error.value) == (
        "search.space.vocabulary: got 'bottle of', 'xyzzy', wanted words that are one known token. Take them out."
    )


def test_a_space_without_a_second_candidate_is_refused(words):
    with pytest.raises(InputError, match=r"^search\.space: got 1 candidate \(\d+ left out \(not one known token\)\), "):
        substitution_space(ABBA, [2], ["objects"], 1, words, prepend_bos=True)
    with pytest.raises(InputError) as error:
        prompt_list_space(ABBA, [ABBA.corrupted, "John", "xyzzy", ABBA.corrupted], words, prepend_bos=True)
    assert str(error.value) == (
        "search.space: got 1 candidate (1 left out (another token length); 1 left out (unknown words); 1 left out "
        "(twice)), wanted at least two. Offer more words."
    )


def test_a_position_that_is_a_whole_word_in_one_clean_prompt_only_is_refused_with_that_prompt():
    clean = ABBA.clean.replace("bottle", "cattle")  # 3 tokens where another has 3 words
    other = PromptPair(clean, clean.replace("Mary", "Tom"), " John", " Mary")
    same = len(encode(subwords(), clean)) - len(encode(subwords(), ABBA.clean))
    longer = ABBA.clean.replace("a bottle", "a" + " it" * same + " bottle")
    pair = PromptPair(longer, longer.replace("Mary", "Tom"), " John", " Mary")
    assert len(encode(subwords(), clean)) == len(encode(subwords(), longer))
    space = substitution_space(pair, [12], ["cat"], None, subwords(), prepend_bos=False)
    with pytest.raises(InputError) as error:
        bind_substitution(space, [pair, other], subwords(), prepend_bos=False)
    assert str(error.value) == (
        f"search.space.positions: got position 12, which is no whole word in the clean prompt {clean!r}. Take it out, "
        "or use clean.n=1 heldout.n=0."
    )


def test_listed_prompts_are_those_of_the_clean_prompts_length_each_once(words):
    texts = [ABBA.corrupted, BABA.clean, "John gave it to", ABBA.corrupted, "xyzzy gave it", BABA.corrupted, "John"]
    space = prompt_list_space(ABBA, texts, words, prepend_bos=True)
    (slot,) = space.slots
    assert slot.options == (ABBA.corrupted, BABA.clean, BABA.corrupted)
    assert slot.positions == tuple(range(1, 17))
    assert space.left_out == {"another token length": 2, "unknown words": 1, "twice": 1}
    found = bind_prompt_list(space, PAIRS, words, prepend_bos=True)
    assert (found.shared, found.n_corrupted, found.first) == (True, 1, 1)
    assert found.texts((2,)) == [BABA.corrupted] * 3
    assert space.rule((1,)) == f"prompt := {BABA.clean}"


def test_the_configs_are_spaces_of_their_kind(tmp_path):
    folder = Path(__file__).parents[3] / "conf" / "search" / "space"
    base, *own = (yaml.safe_load((folder / f"{name}.yaml").read_text()) for name in ("base", "substitute", "prompts"))
    asked = {settings["kind"]: {**base, **settings} for settings in own}
    assert all(settings.pop("defaults") for settings in asked.values())
    found = SpaceConfig(**asked["substitute"])
    assert (found.kind, found.positions, found.vocabulary, found.max_edits) == ("substitute", None, (WORDS,), 3)
    with pytest.raises(ValueError, match="got no prompt, wanted one of the two"):
        SpaceConfig(**asked["prompts"])
    assert SpaceConfig(**asked["prompts"] | {"file": "prompts.txt"}).kind == "prompts"
