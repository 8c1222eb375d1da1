"""What a space holds, against brute enumeration, and what a candidate says, by hand."""

import itertools
import re
from dataclasses import replace

import pytest
import torch
from helpers.searched import ABBA, BABA
from hypothesis import given
from hypothesis import strategies as st

from igap import InputError, search
from igap.counterfactual.spaces.base import Slot, Space, bind_space

OPTIONS = st.lists(st.sampled_from(["=keep", "=S", "John", "Mary", "cat"]), min_size=1, max_size=4, unique=True)
SPACE = Space(
    "slots",
    (
        Slot("first", ("=keep", "=N2", "Tom"), (2,)),
        Slot("place", ("zoo", "bar"), (7,)),
        Slot("object", ("ring", "=keep"), (11, 12)),
    ),
    "a template",
)


def made(lists, max_edits):
    return Space("slots", tuple(Slot(f"slot{i}", tuple(words), (i,)) for i, words in enumerate(lists)), None, max_edits)


def n_edits(space, candidate):
    return sum(slot.options[i] != "=keep" for slot, i in zip(space.slots, candidate, strict=True))


@given(st.lists(OPTIONS, min_size=1, max_size=4), st.none() | st.integers(1, 5))
def test_a_space_holds_every_choice_with_no_more_edits_than_there_may_be_once(lists, max_edits):
    space = made(lists, max_edits)
    choices = list(itertools.product(*(range(len(words)) for words in lists)))
    expected = [one for one in choices if max_edits is None or n_edits(space, one) <= max_edits]
    every = list(space.candidates())
    assert sorted(every) == expected
    assert space.size == len(expected)
    assert [one for one in choices if space.is_allowed(one)] == expected
    assert [len(space.edits(one)) for one in choices] == [n_edits(space, one) for one in choices]
    if max_edits is not None:
        numbers = [n_edits(space, one) for one in every]
        assert numbers == sorted(numbers)


def test_a_huge_space_is_counted_and_its_first_candidates_come_at_once():
    space = made([["=keep", *map(str, range(999))]] * 12, 3)
    assert space.size == 1 + 12 * 999 + 66 * 999**2 + 220 * 999**3
    assert list(itertools.islice(space.candidates(), 3)) == [(0,) * 12, (1, *[0] * 11), (2, *[0] * 11)]


def test_a_candidate_reads_as_a_rule_without_the_slots_that_keep_what_they_have():
    assert SPACE.words((1, 0, 0)) == ("=N2", "zoo", "ring")
    assert SPACE.rule((1, 0, 0)) == "first := N2, place := zoo, object := ring"
    assert SPACE.rule((0, 1, 1)) == "place := bar"
    assert replace(SPACE, slots=SPACE.slots[:1]).rule((0,)) == "nothing"
    assert SPACE.edits((1, 0, 0)) == (0, 1, 2)
    assert SPACE.edits((0, 0, 1)) == (1,)
    assert SPACE.keeps == (0, None, 1)
    assert SPACE.sizes == (3, 2, 2)


def test_the_digest_is_of_all_that_a_candidates_indices_mean():
    def with_slot(**change):
        return replace(SPACE, slots=(replace(SPACE.slots[0], **change), *SPACE.slots[1:]))

    others = [
        with_slot(name="other"),
        with_slot(options=("=keep", "Tom", "=N2")),
        with_slot(positions=(3,)),
        replace(SPACE, slots=SPACE.slots[::-1]),
        replace(SPACE, kind="substitute"),
        replace(SPACE, template="another"),
        replace(SPACE, max_edits=2),
    ]
    assert len({SPACE.digest, *(one.digest for one in others)}) == 1 + len(others)
    assert all(re.fullmatch("[0-9a-f]{12}", one.digest) for one in others)
    assert replace(SPACE, left_out={"place: not 1 known token": 3}).digest == SPACE.digest


@pytest.mark.parametrize(
    ("lists", "max_edits", "left_out", "message"),
    [
        ([["zoo"]], None, {}, "got 1 candidate, wanted at least two. Offer more words."),
        ([], None, {}, "got 1 candidate, wanted at least two. Offer more words."),
        (
            [["a", "b"], ["c", "d"]],
            1,
            {"x": 2, "y": 0},
            "got 0 candidates (2 left out (x)), wanted at least two. Offer more words, or raise "
            "search.space.max_edits.",
        ),
    ],
)
def test_a_space_of_no_or_one_candidate_is_refused(lists, max_edits, left_out, message):
    with pytest.raises(InputError) as error:
        replace(made(lists, max_edits), left_out=left_out).check()
    assert str(error.value) == f"search.space: {message}"
    enough = made([["=keep", "b"]], 1)
    assert enough.check() is enough


def two_prompts(options, tables, slots=None):
    """Two clean prompts of 6 tokens which differ at position 2."""
    clean = torch.tensor([[0, 10, 11, 12, 13, 14], [0, 10, 21, 12, 13, 14]])
    slots = slots or (Slot("a", options, (3,)), Slot("b", ("=keep", "long"), (1, 5)))
    return bind_space(Space("slots", slots), [ABBA, BABA], clean, tables, lambda pair, one: f"{pair.answer}{one}")


B = torch.tensor([[[10, 14], [50, 51]]]).expand(2, -1, -1)
"""Slot b: what all prompts have at positions 1 and 5, and two other words."""


def test_a_rules_candidate_is_a_corrupted_prompt_for_each_clean_one():
    own = two_prompts(("=keep", "=S"), [torch.tensor([[[12], [31]], [[12], [32]]]), B])
    assert (own.shared, own.n_corrupted, own.first) == (False, 2, 1)
    expected = [
        [[0, 50, 11, 31, 13, 51], [0, 10, 11, 12, 13, 14]],
        [[0, 50, 21, 32, 13, 51], [0, 10, 21, 12, 13, 14]],
    ]
    tokens = own.tokens([(1, 1), (0, 0)])
    assert tokens.tolist() == expected
    assert own.count_edits(tokens).tolist() == [[2, 2], [0, 0]]
    assert own.changed_slots((1, 1)) == (0, 1)
    assert own.changed_slots((1, 0)) == (0,)
    assert own.changed_slots((0, 0)) == ()
    assert own.with_slots((1, 1), [1]).tolist() == [[0, 50, 11, 12, 13, 51], [0, 50, 21, 12, 13, 51]]
    assert own.with_slots((1, 1), []).tolist() == own.clean.tolist()
    assert own.texts((1, 0)) == [" John(1, 0)", " John(1, 0)"]


def test_words_alone_make_one_corrupted_prompt_for_all_clean_ones():
    options = torch.tensor([[[11], [40]]]).expand(2, -1, -1)
    slots = (Slot("a", ("John", "cat"), (2,)), Slot("b", ("same", "long"), (1, 5)))
    one = two_prompts((), [options, B], slots)
    assert (one.shared, one.n_corrupted, one.first) == (True, 1, 1)
    assert [table.shape[0] for table in one.tables] == [1, 1]
    tokens = one.tokens([(1, 0), (0, 0)])
    assert tokens.tolist() == [[[0, 10, 40, 12, 13, 14], [0, 10, 11, 12, 13, 14]]]
    assert one.count_edits(tokens).tolist() == [[1, 1], [0, 1]], "the second prompt has another word there"
    assert one.changed_slots((0, 0)) == (0,), "it differs from one of the clean prompts"
    listed = replace(one, space=replace(one.space, kind="prompts"))
    assert listed.count_edits(one.tokens([(1, 1), (0, 0)])).tolist() == [[3, 3], [0, 1]], "of listed prompts: tokens"
    several = one.unshare()
    assert (several.shared, several.n_corrupted) == (False, 2)
    assert several.tokens([(1, 0)]).tolist() == [[[0, 10, 40, 12, 13, 14]]] * 2
    assert several.with_slots((1, 1), [1]).tolist() == [[0, 50, 11, 12, 13, 51], [0, 50, 21, 12, 13, 51]]


def test_clean_prompts_that_differ_outside_of_the_slots_share_no_corrupted_prompt():
    same = torch.tensor([[[12], [31]]]).expand(2, -1, -1)
    apart = two_prompts(("=keep", "cat"), [same, B])
    assert (apart.shared, apart.n_corrupted) == (False, 2)
    assert apart.tokens([(1, 0)])[:, 0, 2].tolist() == [11, 21]


def test_work_begins_at_the_first_slot_that_stands_in_the_prompt():
    late = (Slot("a", ("x", "y"), (4,)), Slot("c", ("u", "v"), (2,)))
    tables = [torch.tensor([[[13], [40]]]).expand(2, -1, -1), torch.tensor([[[11], [41]]]).expand(2, -1, -1)]
    assert two_prompts((), tables, late).first == 2
    assert two_prompts((), tables[:1], late[:1]).first == 4, "position 2 is each prompt's own"


def test_sets_of_answers_are_refused_in_one_line_where_one_word_is_needed(ioi_mini):
    pair = replace(ABBA, answer=(ABBA.answer, " Tom"))
    message = r"^prompts\.answer: got \{\w+, Tom\} beside ' \w+', but search\.space\.slots\.\w+ offers =IO, [^\n]*$"
    with pytest.raises(InputError, match=message):
        search(ioi_mini, pair, "0.6", until=2, clean_n=1, heldout_n=0)
    with pytest.raises(InputError, match=r"^clean\.n: got 40 .* the pair asks for \(' \w+', ' Tom'\) beside [^\n]*$"):
        search(ioi_mini, pair, "0.6", until=2)
