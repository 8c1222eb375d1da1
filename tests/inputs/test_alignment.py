"""Prompts of different length: who is matched with whom, and that patching follows it, on plain hooks."""

import dataclasses
import itertools
import json
import random
from contextlib import ExitStack

import pandas as pd
import pytest
import torch
from helpers.checkpoints import save_checkpoint
from helpers.reference import HOOKS, Reference
from hypothesis import given
from hypothesis import strategies as st

from igap import PromptPair, activation_patching, atp_star, attribution_patching, integrated_gradients, load_model
from igap.attribution.activation_patching import patch_components
from igap.attribution.attribution_patching import estimate_patches
from igap.attribution.integrated_gradients import integrate_path
from igap.cli import main
from igap.cli.compose import compose_one
from igap.components import SITES
from igap.engine.open_pairs import contrast, open_pairs
from igap.inputs.alignment import align, first_diff_position
from igap.inputs.prompts import encode_pair, tokenize

METHODS = [activation_patching, attribution_patching, atp_star, integrated_gradients]
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
    assert align([1, 2, 3, 4, 5], [1, 7, 8, 4, 9, 9, 5], "diff").clean == (0, 1, 2, 3, 6)


def test_of_repeated_tokens_those_at_both_ends_are_matched_and_not_a_copy():
    # The first "ABC" of the clean prompt stands in the corrupted one too, later: no reason to leave the end alone.
    assert align([*b"ABCABC"], [*b"ABXYABC"], "diff").clean == (0, 1, None, 4, 5, 6)
    assert align([*b"ABC"], [*b"ABCXABC"], "diff").clean == (4, 5, 6)


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


@given(tokens, st.data(), st.sampled_from(["error", "end", "diff"]))
def test_prompts_of_one_length_are_matched_position_by_position(clean, data, how):
    corrupted = data.draw(st.lists(st.integers(0, 4), min_size=len(clean), max_size=len(clean)))
    assert align(clean, corrupted, how).is_plain


@given(tokens, tokens, tokens, tokens, st.sampled_from([(), (9,)]))
def test_a_diff_matches_the_tokens_at_which_both_end_and_with_which_both_begin(start, one, other, end, bos):
    clean, corrupted = ([*bos, *start, *inner, *end] for inner in (one, other))
    partners = align(clean, corrupted, "diff").clean
    assert partners[-len(end) :] == tuple(range(len(corrupted) - len(end), len(corrupted)))
    if bos:  # no other token is 9, so that the ends cannot take it
        assert partners[0] == 0


@given(tokens, tokens)
def test_a_token_in_front_of_both_changes_nothing(clean, corrupted):
    """The pairs are checked without a BOS and run with one."""
    without, with_bos = align(clean, corrupted, "diff").clean, align([9, *clean], [9, *corrupted], "diff").clean
    assert with_bos == (0, *(None if j is None else j + 1 for j in without))


def test_the_first_moved_position_is_that_whose_past_or_index_differs():
    assert first_diff_position((0, 1, 2), [5, 6, 7], [5, 6, 7]) is None
    assert first_diff_position((0, 1, 2), [5, 6, 7], [5, 8, 7]) == 1
    assert first_diff_position((0, None, 2), [5, 6, 7], [5, 8, 7]) == 2
    assert first_diff_position((0, 2), [5, 6], [5, 4, 6]) == 1
    assert first_diff_position((None, 0), [5, 6], [6]) == 1


def slow(model, pair, partners, direction="noising"):
    """The slow methods: "clean" is the run that is changed, "corrupted" what its positions take from their partners."""
    here, there = pair.clean, pair.corrupted
    if direction == "denoising":
        here, there = there, here
        n_tokens = model.to_tokens(here).shape[1]
        partners = [partners.index(j) if j in partners else None for j in range(n_tokens)]
    reference = Reference(model, here, there, pair.answer, pair.distractor)
    taken = {}
    for hook in (HOOKS[site].format(layer) for site in SITES for layer in range(model.cfg.n_layers)):
        taken[hook] = reference.cache["clean"][hook].clone()
        for position, partner in enumerate(partners):
            if partner is not None:
                taken[hook][0, position] = reference.cache["corrupted"][hook][0, partner]
    reference.cache["corrupted"] = taken
    return reference


@pytest.fixture(scope="module", params=["gpt2", "gpt_neox"])
def narrow(request, tmp_path_factory):
    """An architecture, and its model of 12 neurons a layer: the slow methods take a pass for each."""
    folder = tmp_path_factory.mktemp(request.param)
    width = {"gpt2": "n_inner", "gpt_neox": "intermediate_size"}[request.param]
    save_checkpoint(request.param, 3, folder, **{width: 12})
    return request.param, load_model(str(folder), dtype="float64")


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize(("how", "partners"), [("diff", BY_DIFF), ("end", BY_END)])
def test_every_method_follows_the_alignment(narrow, second, how, partners, direction):
    (architecture, model), pair = narrow, dataclasses.replace(second, align=how)
    if architecture == "gpt_neox":  # has no BOS
        partners = tuple(None if j is None else j - 1 for j in partners[1:])
    reference = slow(model, pair, partners, direction)
    routes = ("suffix", "hooks")
    with ExitStack() as stack:
        by_route = [contrast(model, pair, direction=direction, route=route) for route in routes]
        questions = [stack.enter_context(each) for each in by_route]
        made = {
            site: [
                (*patch_components(each, site), *estimate_patches(each, site), *integrate_path(each, site, n_steps=7))
                for each in questions
            ]
            for site in SITES
        }
    for site, by_route in made.items():
        expected = reference.activation_patching(site)
        assert expected.abs().max() > 0.01
        effects, deltas = reference.integrated_gradients(site, n_steps=7)
        slopes = first_order(reference, site)
        for found, atp, ig in by_route:
            torch.testing.assert_close(found.effect, expected, rtol=0, atol=1e-12)
            torch.testing.assert_close(ig.effect, effects, rtol=1e-7, atol=1e-7)  # Captum keeps weights in float32
            torch.testing.assert_close(ig.delta, deltas, rtol=0, atol=1e-7)
            torch.testing.assert_close(atp.effect, slopes, rtol=0, atol=1e-12)
        star = atp_star(model, pair, site, direction=direction)
        torch.testing.assert_close(star.effect, reference.grad_drop(site), rtol=0, atol=1e-12)


def first_order(reference, site):
    """(a' - a) . dF/da at a."""
    effects = []
    for layer in range(reference.model.cfg.n_layers):
        hook = HOOKS[site].format(layer)
        start, end = (reference.cache[name][hook] for name in ("clean", "corrupted"))
        leaf = start.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(reference.f("clean", hook, leaf), leaf)
        product = ((end - start) * gradient)[0]
        effects.append(product.sum((0, 2)) if site == "heads" else product.sum(0))
    return torch.stack(effects)


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_every_method_follows_the_alignment_when_the_clean_prompt_is_the_longer_one(small, second, direction):
    """Each run has its own first position that changes: " and" at 4 of the clean and at 3 of the corrupted prompt."""
    pair = dataclasses.replace(second, clean=second.corrupted, corrupted=second.clean)
    partners = tuple(BY_DIFF.index(i) if i in BY_DIFF else None for i in range(19))
    reference = slow(small("gpt2"), pair, partners, direction)
    found = activation_patching(small("gpt2"), pair, "heads", direction=direction)
    torch.testing.assert_close(found.effect, reference.activation_patching("heads"), rtol=0, atol=1e-12)
    joint = integrated_gradients(small("gpt2"), pair, "heads", direction=direction, n_steps=7)
    torch.testing.assert_close(joint.effect, reference.integrated_gradients("heads", 7)[0], rtol=1e-7, atol=1e-7)


def test_pairs_share_a_pass_only_where_both_prompts_change_from_one_position_on(small, second):
    other = dataclasses.replace(second, corrupted=SECOND.replace("the cat and the dog", "John cat dog and Mary"))
    firsts = [
        (t.first_difference, t.first_difference_in_corrupted) for t in (tokenize(small(), p) for p in (second, other))
    ]
    assert firsts == [(3, 4), (3, 5)]
    with open_pairs(small("gpt2"), [second, other, second]) as opened:
        groups = opened.contrasts(direction="denoising")
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
    by_position = attribution_patching(small("gpt2"), second, "heads", positions="each").effect
    assert by_position.shape[1] == 17
    moved = (by_position != 0).any(2).any(0)
    assert moved.tolist() == [p is not None and i >= 3 for i, p in enumerate(BY_DIFF)]


@pytest.mark.parametrize("how", ["end", "diff"])
@pytest.mark.parametrize("corrupted", ["John gave", "names exchanged"])
def test_an_aligned_pair_of_one_length_gives_what_it_gave(small, pair, how, corrupted):
    """Also one of whose words another copy stands elsewhere, which a diff would match."""
    exchanged = pair.clean.replace("John and Mary", "Mary and John")
    plain = pair if corrupted == "John gave" else dataclasses.replace(pair, corrupted=exchanged)
    aligned = dataclasses.replace(plain, align=how)
    for site, method in zip(itertools.cycle(SITES), METHODS, strict=False):
        assert torch.equal(method(small("gpt2"), plain, site).effect, method(small("gpt2"), aligned, site).effect)


def test_every_prompt_is_read_at_its_own_last_token_whatever_it_is_batched_with(small, pair, second):
    """F of every pair, in any order and company, is that of the model on that prompt alone."""
    model = small("gpt2")
    shorter = PromptPair("Mary and John went to the store, John gave it to", SECOND, " Mary", " John", 0.0, "diff")
    longer = dataclasses.replace(shorter, clean=SECOND, corrupted=shorter.clean)
    pairs = [pair, second, shorter, longer, dataclasses.replace(second, align="end"), second]
    for order in (range(6), random.Random(0).sample(range(6), 6)):
        shuffled = [pairs[i] for i in order]
        seen = {}
        with open_pairs(model, shuffled) as opened:
            groups = opened.contrasts()
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


def test_an_alignment_that_there_is_not_is_refused(pair, unchecked):
    with pytest.raises(ValueError, match=r"^align: got 'dif', wanted one of error, end, diff\. Did you mean diff\?$"):
        dataclasses.replace(pair, align="dif")


def test_the_alignment_is_part_of_a_runs_key():
    config = compose_one(["prompts=second-pair"]).config
    prompts = [config.prompts.model_copy(update={"align": how}) for how in ("error", "end", "diff")]
    for texts in ([["a"] * 4], [["a"] * 4, ["b"] * 4]):
        assert len({config.model_copy(update={"prompts": one}).key_of(texts, {}) for one in prompts}) == 3


def test_a_run_on_prompts_of_two_lengths_keeps_and_counts_the_alignment(checkpoint, tmp_path, capsys):
    overrides = ["model=hf", f"model.name={checkpoint('gpt2')}", "prompts=second-pair", "prompts.min_gap=0"]
    quick = ["ig.n_steps=2", "explain=false", "curves.components=none", "plots=none", "tracking=disabled"]
    quick += [f"output={tmp_path}"]
    assert main(["run", *overrides, *quick]) == 0
    assert "alignment: 17 and 19 tokens, the one before every prompt included, 6 of them without a partner" in " ".join(
        capsys.readouterr().out.split()
    )
    (folder,) = tmp_path.iterdir()
    saved = pd.read_csv(folder / "alignment.csv")
    matched = saved.dropna(subset=["clean_position", "corrupted_position"])
    assert list(zip(matched["clean_position"], matched["corrupted_position"], strict=True)) == [
        (i, j) for i, j in enumerate(BY_DIFF) if j is not None
    ]
    assert list(matched["clean_token"]) == list(matched["corrupted_token"])
    assert len(saved) == 17 + 19 - len(matched)
    summary = json.loads((folder / "summary.json").read_text())
    expected = {"prompts/align": "diff", "prompts/n_unmatched": 6, "n_tokens": 17, "n_tokens_corrupted": 19}
    assert {name: summary[name] for name in expected} == expected
