"""Prompts of different length: who is matched with whom, and that patching follows it, on plain hooks."""

import dataclasses
import itertools
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import HOOKS, Reference

from igap import PromptPair, activation_patching, attribution_patching, integrated_gradients
from igap.alignment import align, first_moved
from igap.cli import main
from igap.contrast import contrast, contrasts
from igap.prompts import encode_pair, tokenize
from igap.sites import SITES

SECOND = "After the cat and the dog went to the store, Mary gave a bottle of milk to"
REST = 13  # tokens from " went" on
# BOS and " After"; " John" has two replacements, " and" is common, " Mary" has two; then the rest.
BY_DIFF = (0, 1, None, 4, None, *range(7, 7 + REST - 1))
BY_END = tuple(range(2, 19))


@pytest.fixture(scope="module")
def second(pair):
    return dataclasses.replace(pair, corrupted=SECOND, align="diff")


def test_the_second_pair_is_matched_as_by_hand(small, second):
    assert len(BY_DIFF) == len(BY_END) == 17
    tokens = tokenize(small(), second)
    assert tokens.alignment.clean == BY_DIFF
    assert tokens.alignment.corrupted == (0, 1, None, None, 3, None, None, *range(5, 17))
    assert (tokens.alignment.n_unmatched, tokens.alignment.is_plain) == (2 + 4, False)
    # " and" is the first position that both have and whose past differs.
    assert (tokens.first_difference, tokens.first_difference_in_corrupted) == (3, 4)
    tokens = tokenize(small(), dataclasses.replace(second, align="end"))
    assert tokens.alignment.clean == BY_END
    assert tokens.alignment.corrupted == (None, None, *range(17))
    assert (tokens.first_difference, tokens.first_difference_in_corrupted) == (0, 2)


def test_a_longer_clean_prompt_keeps_what_has_no_partner():
    assert align([1, 2, 3, 4], [3, 4], "end").clean == (None, None, 0, 1)
    assert align([1, 2, 3, 4], [1, 4], "diff").clean == (0, None, None, 1)
    assert align([1, 2, 3, 4], [1, 4], "diff").rows == ((0, 0), (1, None), (2, None), (3, 1))
    assert align([1, 4], [1, 2, 4, 5], "diff").rows == ((0, 0), (None, 1), (1, 2), (None, 3))


def test_a_replacement_of_equal_size_is_matched_one_to_one():
    assert align([1, 2, 3, 4], [1, 7, 8, 4], "diff").clean == (0, 1, 2, 3)


tokens = st.lists(st.integers(0, 4), min_size=1, max_size=8)


@given(tokens, tokens, st.sampled_from(["end", "diff"]))
def test_positions_are_matched_one_to_one_in_order_and_both_ways(clean, corrupted, how):
    found = align(clean, corrupted, how)
    matched = [(i, j) for i, j in enumerate(found.clean) if j is not None]
    assert matched == [(i, j) for j, i in enumerate(found.corrupted) if i is not None]
    assert matched == sorted(matched)
    assert [j for _, j in matched] == sorted({j for _, j in matched})
    assert [i for i, _ in found.rows if i is not None] == list(range(len(clean)))
    assert [j for _, j in found.rows if j is not None] == list(range(len(corrupted)))
    assert [row for row in found.rows if None not in row] == matched


@given(tokens, tokens)
def test_prompts_of_one_length_are_matched_with_themselves_from_the_end(clean, corrupted):
    if len(clean) == len(corrupted):
        assert align(clean, corrupted, "end").is_plain


def test_the_first_moved_position_is_that_whose_past_or_index_differs():
    assert first_moved((0, 1, 2), [5, 6, 7], [5, 6, 7]) is None
    assert first_moved((0, 1, 2), [5, 6, 7], [5, 8, 7]) == 1
    assert first_moved((0, None, 2), [5, 6, 7], [5, 8, 7]) == 2
    assert first_moved((0, 2), [5, 6], [5, 4, 6]) == 1
    assert first_moved((None, 0), [5, 6], [6]) == 1


def patched_by_hand(model, pair, partners, site, direction):
    """AP with plain hooks: a position takes its partner's activation, or keeps its own."""
    reference = Reference(model, pair.clean, pair.corrupted, pair.answer, pair.distractor)
    here, there = ("clean", "corrupted") if direction == "noising" else ("corrupted", "clean")
    if direction == "denoising":
        partners = [partners.index(j) if j in partners else None for j in range(reference.tokens["corrupted"].shape[1])]
    effects = torch.zeros(model.cfg.n_layers, reference.width(site), dtype=torch.float64)
    with torch.no_grad():
        for layer, index in itertools.product(range(model.cfg.n_layers), range(reference.width(site))):
            hook = HOOKS[site].format(layer)
            patched = reference.cache[here][hook].clone()
            for position, partner in enumerate(partners):
                if partner is not None:
                    patched[0, position, index] = reference.cache[there][hook][0, partner, index]
            effects[layer, index] = reference.f(here, hook, patched) - reference.f(here)
    return effects


@pytest.mark.parametrize("route", ["suffix", "hooks"])
@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize(("how", "partners"), [("diff", BY_DIFF), ("end", BY_END)])
def test_patching_follows_the_alignment(small, second, how, partners, direction, route):
    pair = dataclasses.replace(second, align=how)
    for site in SITES:
        found = activation_patching(small("gpt2"), pair, site, direction=direction, route=route)
        expected = patched_by_hand(small("gpt2"), pair, partners, site, direction)
        assert expected.abs().max() > 0.01
        torch.testing.assert_close(found.effect, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_patching_follows_the_alignment_when_the_clean_prompt_is_the_longer_one(small, second, direction):
    """Each run has its own first position that changes: " and" at 4 of the clean and at 3 of the corrupted prompt."""
    pair = dataclasses.replace(second, clean=second.corrupted, corrupted=second.clean)
    partners = tuple(BY_DIFF.index(i) if i in BY_DIFF else None for i in range(19))
    found = activation_patching(small("gpt2"), pair, "heads", direction=direction)
    expected = patched_by_hand(small("gpt2"), pair, partners, "heads", direction)
    torch.testing.assert_close(found.effect, expected, rtol=0, atol=1e-12)


def test_pairs_share_a_pass_only_where_both_prompts_change_from_one_position_on(small, second):
    other = dataclasses.replace(second, corrupted=SECOND.replace("the cat and the dog", "John cat dog and Mary"))
    firsts = [
        (t.first_difference, t.first_difference_in_corrupted) for t in (tokenize(small(), p) for p in (second, other))
    ]
    assert firsts == [(3, 4), (3, 5)]
    with contrasts(small("gpt2"), [second, other, second], direction="denoising") as groups:
        assert [(indices, question.first) for indices, question in groups] == [((0, 2), 4), ((1,), 5)]


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_the_identities_hold_for_prompts_of_two_lengths(small, second, site, direction):
    model = small("gpt2")
    patched = activation_patching(model, second, site, direction=direction).effect
    single = integrated_gradients(model, second, site, direction=direction, path="single", n_steps=20)
    torch.testing.assert_close(single.effect, patched, rtol=0, atol=1e-6)
    joint = integrated_gradients(model, second, site, direction=direction, n_steps=100)
    assert joint.delta.abs().max() < 1e-6 * joint.layer_effect.abs().max()


def test_positions_without_a_partner_have_no_effect(small, second):
    """Nor has a position whose partner has the same past; the positions are those of the clean prompt."""
    by_position = attribution_patching(small("gpt2"), second, "heads", per_position=True).effect_by_position
    assert by_position.shape[1] == 17
    moved = (by_position != 0).any(2).any(0)
    assert moved.tolist() == [p is not None and i >= 3 for i, p in enumerate(BY_DIFF)]


@pytest.mark.parametrize("how", ["end", "diff"])
def test_an_aligned_pair_of_one_length_gives_what_it_gave(small, pair, how):
    for site in SITES:
        plain = activation_patching(small("gpt2"), pair, site).effect
        aligned = activation_patching(small("gpt2"), dataclasses.replace(pair, align=how), site).effect
        assert torch.equal(plain, aligned)


def test_every_prompt_is_read_at_its_own_last_token_whatever_it_is_batched_with(small, pair, second):
    """F of every pair, in any order and company, is that of the model on that prompt alone."""
    model = small("gpt2")
    shorter = PromptPair("Mary and John went to the store, John gave it to", SECOND, " Mary", " John", 0.0, "diff")
    longer = dataclasses.replace(shorter, clean=SECOND, corrupted=shorter.clean)
    pairs = [pair, second, shorter, longer, dataclasses.replace(second, align="end"), second]
    for order in (range(6), random.Random(0).sample(range(6), 6)):
        shuffled = [pairs[i] for i in order]
        seen = {}
        with contrasts(model, shuffled) as groups:
            for indices, question in groups:
                for row, index in enumerate(indices):
                    seen[index] = (question.clean.logit_diff[row], question.corrupted.logit_diff[row])
        assert len(seen) == 6
        for index, one in enumerate(shuffled):
            answer, distractor = (
                int(model.to_tokens(word, prepend_bos=False)[0, 0]) for word in (one.answer, one.distractor)
            )
            for text, found in zip((one.clean, one.corrupted), seen[index], strict=True):
                with torch.no_grad():
                    logits = model(model.to_tokens(text))[0, -1]
                torch.testing.assert_close(found, logits[answer] - logits[distractor], rtol=0, atol=1e-12)


def test_pairs_of_other_lengths_leave_a_pairs_map_unchanged(small, pair, second):
    pairs = [second, pair, dataclasses.replace(second, align="end")]
    together = activation_patching(small("gpt2"), pairs, "neurons").pairs
    for one, found in zip(pairs, together, strict=True):
        torch.testing.assert_close(
            found.effect, activation_patching(small("gpt2"), one, "neurons").effect, rtol=0, atol=1e-12
        )


def test_other_baselines_have_the_clean_prompts_positions(small, second):
    with contrast(small("gpt2"), second, baseline="zero") as question:
        assert question.ends("heads", 0)[1].shape[1] == 17
        assert question.corrupted.tokens.shape[1] == 19


class Letters:
    """A tokenizer with a token a letter."""

    unk_token_id = bos_token_id = None

    def __call__(self, text, **_):
        return {"input_ids": [ord(letter) for letter in text]}

    def decode(self, ids):
        return "".join(map(chr, ids))


def test_a_diff_that_does_not_match_the_read_positions_is_refused():
    pair = PromptPair("abcx", "abcde", "f", "g", align="diff")
    known = {"prepend_bos": False, "n_ctx": None, "n_vocab": None}
    message = r"^prompts\.align: got diff, which does not match the last tokens of prompts\.clean and "
    with pytest.raises(ValueError, match=message):
        encode_pair(pair, Letters(), **known)
    assert encode_pair(dataclasses.replace(pair, align="end"), Letters(), **known).alignment.clean == (1, 2, 3, 4)


def test_different_lengths_are_refused_unless_asked_for(capsys):
    assert main(["run", "prompts=second-pair", "prompts.align=error", "tracking=disabled"]) == 2
    assert (
        "patching needs prompts of one length. Reword one of them, or set prompts.align=end or prompts.align=diff.\n"
        in (capsys.readouterr().err)
    )
