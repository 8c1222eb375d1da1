"""Spans of positions: by index, by word, of pairs that share a pass; and every span that is refused, in one line."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers.families import FAMILIES, save
from hypothesis import given, settings
from hypothesis import strategies as st

from igap import (
    InputError,
    PromptPair,
    activation_patching,
    attribution_patching,
    compare,
    integrated_gradients,
    load_model,
)
from igap.attribution.activation_patching import patch_components
from igap.attribution.attribution_patching import estimate_patches
from igap.attribution.integrated_gradients import integrate_path
from igap.components import PLACES
from igap.engine.open_pairs import contrast, open_pairs
from igap.engine.positions import _Side, find_spans
from igap.inputs.alignment import Alignment
from igap.inputs.prompts import tokenize

FIRST = 10
"""Where the prompts of the notebook's pair differ, "Mary" and "John"."""
N_TOKENS = 17
EXACT = 1e-12


def quick_ig(model, pair, site="heads", **options):
    return integrated_gradients(model, pair, site, n_steps=3, **options)


METHODS = [activation_patching, attribution_patching, quick_ig]
methods = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)


@pytest.fixture(scope="module")
def other(pair):
    """Of the same lengths and first difference, so that both share a pass; "milk" has another partner, too."""
    clean, corrupted = (text.replace("John and Mary", "Mary and John") for text in (pair.clean, pair.corrupted))
    return dataclasses.replace(pair, clean=clean, corrupted=corrupted.replace("milk", "dog"))


@pytest.fixture(scope="module")
def shorter(pair):
    return dataclasses.replace(
        pair, clean="John and Mary went, Mary gave it to", corrupted="John and Mary went, John gave it to"
    )


def positions_of(model, pairs, positions, direction="noising"):
    """By name, the positions of each pair."""
    spans = find_spans(positions, [tokenize(model, pair) for pair in pairs], direction)
    of_pairs = ([row.nonzero().flatten().tolist() for row in mask] for mask in spans.masks)
    return dict(zip(spans.names, of_pairs, strict=True))


def test_spans_are_where_their_words_are(small, pair, other):
    model = small()
    where = {"names": "John and Mary", "S2": "Mary:2", "end": [16], "verb": " gave a ", "two": (9, 8)}
    assert positions_of(model, [pair], where) == {
        "names": [[2, 3, 4]],
        "S2": [[10]],
        "end": [[16]],
        "verb": [[11, 12]],
        "two": [[8, 9]],
    }
    # Each pair has its own; "John" stands once in the clean prompt, twice in the corrupted one, which is denoised.
    both = [pair, other]
    assert positions_of(model, both, {"IO": "John", "S1": "Mary:1"}) == {"IO": [[2], [4]], "S1": [[4], [2]]}
    assert positions_of(model, both, {"S2": "John:2", "S1": "Mary"}, "denoising") == {
        "S2": [[10], [10]],
        "S1": [[4], [2]],
    }
    assert positions_of(model, both, "last") == {"last": [[16], [16]]}
    assert positions_of(model, both, "diff") == {"diff": [[10], [10, 15]]}
    each = positions_of(model, [pair], "each")
    assert list(each.items())[9:12] == [("9 ,", [[9]]), ("10 Mary", [[10]]), ("11 gave", [[11]])]
    assert list(positions_of(model, both, "each")) == [str(i) for i in range(N_TOKENS)]


def test_differing_positions_are_those_of_partners(small, pair):
    """Of prompts of two lengths, in the run that is patched."""
    unequal = dataclasses.replace(pair, corrupted=pair.corrupted.replace("After ", ""), align="end")
    assert positions_of(small(), [unequal], "diff") == {"diff": [[1, 10]]}
    assert positions_of(small(), [unequal], "diff", "denoising") == {"diff": [[0, 9]]}


def test_a_role_without_a_partner_in_the_prompt_that_is_denoised_is_refused(small, pair):
    unequal = dataclasses.replace(pair, corrupted=pair.corrupted.replace("After John and ", ""), align="end")
    assert positions_of(small(), [unequal], "roles")["IO"] == [[2]]
    with pytest.raises(InputError, match=r"^positions: got roles, but IO of a clean prompt has no partner in the corr"):
        positions_of(small(), [unequal], "roles", "denoising")


@methods
def test_each_position_is_a_span_of_it(small, pair, method):
    model = small()
    each = method(model, pair, positions="each")
    assert each.effect.shape == (3, N_TOKENS, 4)
    spans = {"S2": [FIRST], "gave": np.array([11]), "end": [np.int64(16)], "before": [5]}
    named = method(model, pair, positions=spans)
    assert named.spans == tuple(spans)
    assert torch.equal(named.effect, each.effect[:, [10, 11, 16, 5]])
    assert torch.equal(named.together, each.together)
    for positions, position in (("last", 16), ("diff", 10)):
        found = method(model, pair, positions=positions)
        assert (found.spans, found.together) == (None, None)
        assert torch.equal(found.effect, each.effect[:, position])
    assert torch.equal(each.at("10").effect, each.effect[:, 10])
    assert torch.equal(named.at("gave").effect, each.effect[:, 11])
    assert each.effect[:, [10, 16]].abs().amax((0, 2)).min() > 1e-3


@pytest.mark.parametrize("method", [patch_components, estimate_patches, integrate_path], ids=lambda m: m.__name__)
def test_positions_before_the_first_difference_have_no_effect_at_all(small, pair, method):
    with contrast(small(), pair, sites=list(PLACES)) as question:
        for site in PLACES:
            (found,) = method(question, site, positions="each")
            assert torch.equal(found.effect[:, :FIRST], torch.zeros_like(found.effect[:, :FIRST])), site
            assert (found.effect[:, FIRST].abs() > 0).any(), site
            (early,) = method(question, site, positions={"early": list(range(FIRST))})
            assert torch.equal(early.effect, torch.zeros_like(early.effect)), site


@methods
def test_of_pairs_the_map_is_the_mean_of_their_spans(small, pair, other, shorter, method):
    model = small()
    spans, pairs = {"IO": "John", "S2": "Mary:2"}, [pair, other, shorter]
    together = method(model, pairs, positions=spans)
    alone = [method(model, each, positions=spans) for each in pairs]
    assert together.effect.shape == (3, 2, 4)
    assert together.spans == ("IO", "S2")
    for name in ("effect", "together", "score"):
        mean = torch.stack([getattr(each, name) for each in alone]).mean(0)
        torch.testing.assert_close(getattr(together, name), mean, rtol=0, atol=EXACT)
    for found, expected in zip(together.pairs, alone, strict=True):
        torch.testing.assert_close(found.effect, expected.effect, rtol=0, atol=EXACT)
    torch.testing.assert_close(
        together.at("S2").score, torch.stack([each.at("S2").score for each in alone]).mean(0), rtol=0, atol=EXACT
    )
    assert method(model, pairs[:2], positions="each").spans == tuple(str(i) for i in range(N_TOKENS))


def test_progress_by_positions_never_goes_back_and_ends_at_all(small, pair, shorter):
    told = []
    activation_patching(small(), pair, positions="each", on_progress=lambda *done: told.append(done))
    assert told == sorted(told)
    assert told[-1] == (12, 12)
    assert len(set(told)) > 6


masks = st.lists(st.lists(st.booleans(), min_size=N_TOKENS, max_size=N_TOKENS), min_size=2, max_size=2)


@settings(max_examples=10)
@given(masks=masks, site=st.sampled_from(list(PLACES)), direction=st.sampled_from(["noising", "denoising"]))
def test_any_mask_is_the_path_s_end_mixed_with_its_start(small, pair, other, masks, site, direction):
    """Each pair its own; F is that of the whole suffix, from the first difference on."""
    where = torch.tensor(masks)
    with open_pairs(small(), [pair, other], sites=[site]) as opened, torch.no_grad():
        ((_, question),) = opened.contrasts(direction=direction)
        effects = [each.effect for each in patch_components(question.at(where), site)]
        for layer in range(3):
            start, end = question.ends(site, layer)
            function, late = question.function(site, layer), where[:, question.first :]
            unpatched = function(start[:, None])[:, 0]
            for component in {0, start.shape[2] - 1}:
                mixed = start.clone()
                for row, mask in enumerate(late):
                    mixed[row, mask, component] = end[row, mask, component]
                expected = function(mixed[:, None])[:, 0] - unpatched
                found = torch.stack([effect[layer, component] for effect in effects])
                torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)


@settings(max_examples=8)
@given(
    places=st.permutations(range(8, N_TOKENS)), cut=st.integers(1, 8), site=st.sampled_from(list(PLACES)),
    method=st.sampled_from([attribution_patching, quick_ig]),
)  # fmt: skip
def test_gradients_of_a_union_are_the_sum_over_its_parts(small, pair, places, cut, site, method):
    first, second = places[:cut], places[cut:]
    parts = method(small(), pair, site, positions={"first": first, "second": second})
    whole = method(small(), pair, site, positions={"both": [*first, *second]})
    torch.testing.assert_close(parts.effect.sum(1), whole.effect[:, 0], rtol=0, atol=EXACT)
    torch.testing.assert_close(whole.effect[:, 0], whole.together, rtol=0, atol=EXACT)


REFUSED = [
    ({"a": [17]}, r"positions\['a'\]: got \[17\], wanted one or more positions of the clean prompt, 0 to 16, none"),
    ({"a": [-1]}, r"positions\['a'\]: got \[-1\], wanted one or more positions of the clean prompt"),
    ({"a": [10**400]}, r"positions\['a'\]: got .*, wanted one or more positions of the clean prompt"),
    ({"a": [True]}, r"positions\['a'\]\[0\]: got True, wanted a whole number"),
    ({"a": [3.0]}, r"positions\['a'\]\[0\]: got 3\.0, wanted a whole number"),
    ({"a": np.array([True, False])}, r"positions\['a'\]\[0\]: got True, wanted a whole number"),
    ({"a": 3}, r"positions\['a'\]: got 3, wanted a text or a list"),
    ({"a": []}, r"positions\['a'\]: got \[\], wanted one or more positions"),
    ({"a": [3, 3]}, r"positions\['a'\]: got \[3, 3\], wanted .* none twice"),
    ({"a": [3], "b": [4, 3]}, r"positions: got spans 'a' and 'b', which share position 3, wanted spans apart"),
    ({"a": "John", "b": [2]}, r"positions: got spans 'a' and 'b', which share position 2"),
    ({"a": "dog"}, r"positions\['a'\]: got 'dog', wanted words of the clean prompt, whose tokens are .*After \| John"),
    ({"a": "Joh"}, r"positions\['a'\]: got 'Joh', wanted words of the clean prompt"),
    ({"a": " "}, r"positions\['a'\]: got ' ', wanted words"),
    ({"a": ":2"}, r"positions\['a'\]: got ':2', wanted words"),
    ({"a": "Mary"}, r"got 'Mary', which the clean prompt has 2 times, wanted which one\. Write 'Mary:1' for the first"),
    ({"a": "Mary:3"}, r"got 'Mary:3', but the clean prompt has 'Mary' 2 times\. Take a number from 1 on"),
    ({"a": "John:0"}, r"got 'John:0', but the clean prompt has 'John' 1 time\. Take"),
    ({}, r"positions: got no span, wanted at least one\. Use positions=all"),
    ("eech", r"positions: got 'eech', wanted one of all, each, last, diff, roles, own or a mapping .*"),
    ([3], r"positions: got \[3\], wanted one of all, each"),
    (None, r"positions: got None, wanted one of all, each"),
]  # fmt: skip


@pytest.mark.parametrize(("positions", "message"), REFUSED, ids=lambda case: str(case)[:30])
def test_spans_that_a_prompt_does_not_have_are_refused_in_one_line(small, pair, positions, message, unchecked):
    for method in METHODS:
        with pytest.raises(InputError, match=message) as refused:
            method(small(), pair, positions=positions)
        assert "\n" not in str(refused.value)


def test_the_message_about_a_long_prompt_is_short_and_in_one_line(small, pair):
    long = torch.zeros(1, 5000, dtype=torch.long)
    alike = Alignment(tuple(range(5000)), tuple(range(5000)))
    tokens = dataclasses.replace(
        tokenize(small(), pair), clean=long, corrupted=long, alignment=alike, clean_words=("a\nb",) * 5000
    )
    with pytest.raises(InputError, match=r"^positions\['a'\]: got 'Tom'") as refused:
        find_spans({"a": "Tom"}, [tokens], "noising")
    assert len(str(refused.value)) < 500
    assert "\n" not in str(refused.value)


def test_a_map_is_asked_for_a_span_by_its_whole_name_and_a_position_by_its_number(small, pair):
    spans = {"S2 and": [10], "S2": [11], "10": [12], "of it": [13], "of all": [14]}
    found = attribution_patching(small(), pair, positions=spans)
    for i, name in enumerate(spans):
        assert torch.equal(found.at(name).effect, found.effect[:, i])
    each = attribution_patching(small(), pair, positions="each")
    assert torch.equal(each.at("10 Mary").effect, each.effect[:, 10])
    for of, wrong, wanted in (
        (found, "of", "one of S2 and, "),
        (found, "S3", "one of S2 and, "),
        (each, "17", "one of 0 "),
        (each, "Mary", "one of 0 "),
        (attribution_patching(small(), pair), "10", "a map by positions"),
    ):
        with pytest.raises(InputError, match=rf"^span: got '{wrong}', wanted {wanted}.*\.$"):
            of.at(wrong)


@methods
def test_positions_one_by_one_need_pairs_of_one_length(small, pair, shorter, method):
    with pytest.raises(InputError, match=r"^positions: got each with pairs of 10 and 17 tokens, wanted pairs of one"):
        method(small(), [pair, shorter], positions="each")


def test_a_span_that_one_pair_lacks_is_refused_by_that_pairs_prompt(small, pair, shorter):
    with pytest.raises(InputError, match=r"positions\['milk'\]: got 'milk', wanted words .*went \| , \| Mary"):
        activation_patching(small(), [pair, shorter], positions={"milk": "milk"})


@methods
@pytest.mark.parametrize("family", ["GPT-J", "GPT-NeoX"])
def test_resid_mid_of_parallel_blocks_is_refused_in_one_line(family, method, tmp_path, pair):
    save(FAMILIES[family], tmp_path)
    model = load_model(str(tmp_path), processing="raw")
    message = r"^model: .* has no blocks\.0\.hook_resid_mid, wanted .* attn_out: attention and MLP .* read one input"
    with pytest.raises(InputError, match=message) as refused:
        method(model, pair, "resid_mid")
    assert "\n" not in str(refused.value)


@methods
def test_a_block_whose_output_is_no_tensor_is_refused_at_resid_post_in_one_line(method, tmp_path, pair):
    """GPT-1's blocks give a list."""
    save(FAMILIES["GPT-1"], tmp_path)
    model = load_model(str(tmp_path), processing="raw")
    with pytest.raises(
        InputError, match=r"^model: .* has blocks\.0\.hook_out, but its block gives no tensor there, wanted"
    ):
        method(model, pair, "resid_post")


def test_prompts_that_differ_in_length_alone_have_no_position_that_differs(small, pair):
    longer = PromptPair(
        pair.clean, pair.corrupted.replace("John gave", "the Mary gave"), " John", " Mary", align="diff"
    )
    with pytest.raises(InputError, match=r"^positions: got diff, but no token of the clean prompt has another one for"):
        activation_patching(small(), longer, positions="diff")


@methods
def test_positions_are_refused_before_the_work(small, pair, method):
    other = PromptPair(pair.corrupted, pair.clean, pair.distractor, pair.answer)
    asked = []
    with pytest.raises(InputError, match=r"^positions\['subject'\]"):
        method(small(), [pair, other], positions={"subject": " Mary:2"}, on_progress=lambda *done: asked.append(done))
    assert not asked


def test_words_with_a_colon_and_a_number_are_words_first():
    side = _Side("clean", [0, 1, 2, 3, 4], ("at", "12", ":", "2", "12"), [], None)
    assert side.span("time", "12:2") == [1, 2, 3]
    assert side.span("time", "12:1") == [1]


def test_maps_of_other_prompts_positions_are_not_compared(small, pair):
    here, there = (
        activation_patching(small(), pair, positions={"x": [11]}, direction=d) for d in ("noising", "denoising")
    )
    with pytest.raises(InputError, match=r"^ap is a map of denoising, ap of noising; their positions [^\n]*$"):
        compare(here, there)


def test_positions_of_some_positions_are_those_of_both(small, pair):
    some, others = torch.zeros(2, 1, N_TOKENS, dtype=torch.bool)
    some[0, [10, 12]], others[0, [12, 14]] = True, True
    with open_pairs(small(), pair, sites=["heads"]) as opened:
        ((_, question),) = opened.contrasts()
        (twice,), (both,), (one,) = (
            patch_components(each, "heads")
            for each in (question.at(some).at(others), question.at(some & others), question.at(others))
        )
    assert torch.equal(twice.effect, both.effect)
    assert not torch.allclose(twice.effect, one.effect)


@methods
@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_a_span_without_any_partner_is_refused_unless_the_baseline_moves_it(small, pair, method, direction):
    model, long = small("gpt2"), pair.clean.replace("After", "After After After")
    texts = {"clean": long, "corrupted": pair.corrupted}
    if direction == "denoising":  # the longer prompt is the one that is patched
        texts = {"clean": pair.corrupted, "corrupted": long}
    apart = dataclasses.replace(pair, **texts, align="end")
    wanted = r"^positions: got the span 'start', none of whose positions has a partner in the other prompt"
    with pytest.raises(InputError, match=wanted) as refused:
        method(model, apart, positions={"start": [0, 1]}, direction=direction)
    assert "\n" not in str(refused.value)
    assert method(model, apart, positions={"start": [1, 2]}, direction=direction).effect.abs().max() > 0
    if direction == "noising":
        method(model, apart, positions={"start": [0, 1]}, baseline="zero")
