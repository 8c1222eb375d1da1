"""The verdict's words, from hand-made validations: one for each way that the numbers can fall."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from igap import PromptPair
from igap.analyses.curves import OutputCurves
from igap.counterfactual.objective.objective import Objective
from igap.counterfactual.validation.results import (
    BestPrompt,
    Deletion,
    HeadEffect,
    HeldOut,
    PairEffects,
    Plausibility,
    PrunedPrompt,
    RandomControl,
    ReferenceValues,
    SingleEdits,
    Validation,
    WhatFollows,
)
from igap.counterfactual.validation.verdict import decimals, stands_out, verdict
from igap.errors.missing import Missing

NONE = Missing("not measured here")
EFFECTS = PairEffects(ap=-2.0, gap=3.0, score=-0.5, n_scored=2, rank=1)
HELDOUT = HeldOut(n=16, value=1.5, share=0.75, mean=1.5, low=1.25, high=1.75, reference=0.25)
PAIR = PromptPair("When John and Mary", "When Tom and Mary", " John", " Mary")
CURVES = OutputCurves(
    ("1.1",), np.zeros(1), np.zeros((1, 1, 1)), np.zeros((1, 2)), np.zeros(1), 0.0, "corrupted", "noising"
)


def made(effects=(0.5, -1.0, 0.25, -2.0), **sections):
    """A validation of head 1.1 of a model of 2 x 2 heads; `effects` are all heads' in the best pairs."""
    rank = 1 + sum(abs(effect) > abs(effects[3]) for effect in effects)
    heads = tuple(HeadEffect(f"{i // 2}.{i % 2}", 0.0, effect) for i, effect in enumerate(effects))
    parts = {
        "candidate": (1,),
        "pairs": (PAIR, PAIR),
        "leading": None,
        "best": BestPrompt(2.0, "drop", "first := Tom", 3, "incumbent", 1),
        "reference": ReferenceValues(0.5, 0.5),
        "random": RandomControl(0, 0, NONE, "abs", NONE, NONE, "abs"),
        "neutral": NONE,
        "plausibility": Plausibility(-1.0, 58.0, NONE),
        "single_edits": SingleEdits((), 0, 0, NONE),
        "by_edit_count": (),
        "pruned": PrunedPrompt(1, 2.0, "first := Tom", ""),
        "slots": (),
        "reference_effects": replace(EFFECTS, ap=0.125, rank=3),
        "best_effects": replace(EFFECTS, ap=effects[3], rank=rank),
        "deletion": Deletion(-0.5, -1.5),
        "heads": heads,
        "heldout": HELDOUT,
        "top": (),
        "front": (),
        "reference_curve": CURVES,
        "best_curve": CURVES,
    }
    return Validation(**parts | sections)


def said(validation, component="1.1", **objective):
    return verdict(validation, component, Objective(**{"terms": ("ap",), **objective}))


BY_HAND = "made by hand: 0.125, rank 3"


@pytest.mark.parametrize(
    ("effects", "sentence"),
    [
        (
            (0.5, -1.0, 0.25, -2.0),
            f"1.1 stands out: no head has a larger |AP effect| in the best prompts (-2.000 logits; {BY_HAND}).",
        ),
        (
            (0.5, -1.0, 2.0, -2.0),  # as large is not larger
            f"1.1 stands out: no head has a larger |AP effect| in the best prompts (-2.000 logits; {BY_HAND}).",
        ),
        (
            (0.5, 3.0, 0.25, -2.0),
            "1.1 does not stand out: 1 head has a larger |AP effect| in the best prompts, 0.1 (3.000) (its own: "
            f"-2.000, rank 2; {BY_HAND}).",
        ),
        (
            (0.5, 3.0, -4.0, -2.0),
            "1.1 does not stand out: 2 heads have a larger |AP effect| in the best prompts, 1.0 (-4.000) and "
            f"0.1 (3.000) (its own: -2.000, rank 3; {BY_HAND}).",
        ),
        (
            (0.0, 0.0, 0.0, 0.0),
            f"1.1 does not stand out: it has no effect in the best prompts ({BY_HAND}).",
        ),
    ],
)
def test_a_head_stands_out_where_no_other_has_a_larger_effect_and_those_that_have_are_named(effects, sentence):
    validation = made(effects)
    assert said(validation)[0] == sentence
    assert stands_out(validation) is (" stands out: " in sentence)


def test_of_many_larger_heads_the_three_largest_are_named_and_of_one_prompt_it_is_one():
    heads = tuple(HeadEffect(f"0.{i}", 0.0, effect) for i, effect in enumerate((1.0, 2.0, -5.0, 3.0, 4.0)))
    validation = made(heads=heads, best_effects=replace(EFFECTS, ap=1.0, rank=5), pairs=(PAIR,))
    assert said(validation, "0.0")[0] == (
        "0.0 does not stand out: 4 heads have a larger |AP effect| in the best prompt, 0.2 (-5.000), 0.4 (4.000) and "
        f"0.3 (3.000) most (its own: 1.000, rank 5; {BY_HAND})."
    )


def test_of_a_neuron_it_is_not_known_whether_it_stands_out():
    no_rank = Missing("a neuron has no rank among heads")
    validation = made(best_effects=replace(EFFECTS, rank=no_rank))
    assert stands_out(validation) == no_rank
    assert said(validation, "L1.N7")[0] == (
        "Whether L1.N7 stands out is not known: a neuron has no rank among heads; its AP effect is -2.000 logits in "
        "the best prompts, 0.125 in those made by hand."
    )


DROP = "a mean drop of 1.500 logits [1.250, 1.750]"
NOT_KNOWN = "Whether the effect holds on other prompts is not known:"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, f"The effect holds on 16 held-out prompts: {DROP}, 75% of the 2.000 found."),
        ({"value": 1.0, "share": 0.5}, f"The effect holds on 16 held-out prompts: {DROP}, 50% of the 2.000 found."),
        ({"share": 0.49}, f"The effect holds in part on 16 held-out prompts: {DROP}, 49% of the 2.000 found."),
        (
            {"low": 0.0},
            "The effect does not hold on 16 held-out prompts: a mean drop of 1.500 logits [0.000, 1.750], 75% of the "
            "2.000 found.",
        ),
        (
            {"value": -1.0, "share": -0.5, "mean": -1.0, "low": -1.5, "high": -0.5},
            "The effect does not hold on 16 held-out prompts: a mean drop of -1.000 logits [-1.500, -0.500], -50% of "
            "the 2.000 found.",
        ),
        (
            {"reference": 1.5},
            f"The effect holds on 16 held-out prompts: {DROP}, 75% of the 2.000 found, which is no more than the pairs "
            "made by hand have there (1.500).",
        ),
        ({"n": 4}, f"The effect holds on 4 held-out prompts: {DROP}, 75% of the 2.000 found."),
        ({"n": 3}, f"{NOT_KNOWN} 3 held-out prompts are too few to tell ({DROP}, 75% of the 2.000 found)."),
        (
            {"n": 1, "low": NONE, "high": NONE},
            f"{NOT_KNOWN} 1 held-out prompt is too few to tell (a mean drop of 1.500 logits, 75% of the 2.000 found).",
        ),
    ],
)
def test_it_holds_where_the_interval_is_above_0_and_in_part_where_less_than_half_is_left(changes, sentence):
    assert said(made(heldout=replace(HELDOUT, **changes)))[1] == sentence


def test_without_held_out_prompts_the_reason_is_told():
    told = said(made(heldout=Missing("heldout.n=0")))[1]
    assert told == f"{NOT_KNOWN} heldout.n=0."


@pytest.mark.parametrize("value", [0.0, -0.5])
def test_a_value_found_that_is_not_above_0_leaves_nothing_to_hold(value):
    told = said(made(best=replace(made().best, value=value)), terms=("selectivity",))[1]
    assert told == f"There is nothing that could hold on other prompts: the value found, {value:.3f}, is not above 0."


def test_the_held_out_numbers_are_named_by_the_objectives_term_direction_and_aggregate():
    def middle(sign, heldout=HELDOUT, **objective):
        best = replace(made().best, sign=sign)
        return said(made(best=best, heldout=heldout), **objective)[1].removeprefix(
            "The effect holds on 16 held-out prompts: "
        )

    assert middle("raise").startswith("a mean rise of 1.500 logits [")
    assert middle("raise", terms=("ig",)).startswith("a mean ig of 1.500 logits [1.250, 1.750], 75%")
    assert middle("drop", terms=("ig",)).startswith(
        "a mean ig of 1.500 logits [1.250, 1.750], drop being positive, 75%"
    )
    assert middle("abs", terms=("disagreement",)).startswith("a mean disagreement of 1.500 logits [1.250, 1.750], 75%")
    assert middle("raise", terms=("selectivity",)) == (
        "a mean rise of 1.500 logits [1.250, 1.750], mean selectivity 1.500, 75% of the 2.000 found."
    )
    unshared = replace(HELDOUT, value=0.5, share=Missing("it depends on the number of prompts"))
    assert middle("raise", unshared, aggregate="min") == (
        "a mean rise of 1.500 logits [1.250, 1.750], min ap 0.500 (2.000 were found; no share of that, since it "
        "depends on the number of prompts)."
    )
    turned = replace(unshared, value=-0.5)
    assert middle("raise", turned, aggregate="min").startswith("The effect does not hold on 16 held-out prompts"), (
        "the worst of them turns round"
    )


@pytest.mark.parametrize(
    ("effect", "deletion", "kind", "written_in"),
    [
        (-2.001, -1.0, "an injection", "-1.001 (50%)"),
        (-2.0, -1.0, "a deletion", "-1.000 (50%)"),  # equal parts
        (-1.0, -1.0, "a deletion", "0.000 (0%)"),
        (-0.5, -1.0, "a deletion", "0.500 (-100%)"),
        (0.5, -1.0, "an injection", "1.500 (300%)"),
        (-1.0, 0.0, "an injection", "-1.000 (100%)"),
    ],
)
def test_an_injection_is_where_more_is_written_in_than_the_deletion_does(effect, deletion, kind, written_in):
    told = said(made((0.0, 0.0, 0.0, effect), deletion=Deletion(deletion, effect - deletion)))[2]
    assert told == (
        f"It is {kind}: of the AP effect of {effect:.3f} logits, taking out what 1.1 gives (its mean instead) does "
        f"{deletion:.3f} and what is written in {written_in}; its activation is ordinary (percentile 58)."
    )


def test_without_an_effect_or_a_mean_the_kind_is_not_told():
    nothing = made((0.0, 0.0, 0.0, 0.0), deletion=Deletion(0.0, 0.0))
    assert said(nothing)[2].startswith("It is neither an injection nor a deletion, since there is no effect; ")
    unknown = made(deletion=Missing("prompts: the tokenizer does not know Tom."))
    assert said(unknown)[2] == (
        "Whether it is an injection or a deletion is not known: prompts: the tokenizer does not know Tom; its "
        "activation is ordinary (percentile 58)."
    )


@pytest.mark.parametrize(
    ("percentile", "words"),
    [
        (95.0, "its activation is ordinary (percentile 95)."),
        (95.5, "its activation is unusual (percentile 96)."),
        (Missing("too few"), "whether its activation is unusual is not known: too few."),
    ],
)
def test_an_activation_is_unusual_above_percentile_95(percentile, words):
    assert said(made(plausibility=Plausibility(-1.0, percentile, NONE)))[2].endswith(f"; {words}")


@pytest.mark.parametrize(
    ("percentile", "after", "words"),
    [
        (95.0, 95.0, "ordinary (percentile 95), and so is the residual stream after it (percentile 95; 40 without the "
         "patch)."),
        (95.0, 96.0, "ordinary (percentile 95), but the residual stream after it is unusual (percentile 96, farthest "
         "after layer 7; 40 without the patch)."),
        (96.0, 99.0, "unusual (percentile 96), and so is the residual stream after it (percentile 99, farthest after "
         "layer 7; 40 without the patch)."),
        (96.0, 95.0, "unusual (percentile 96), but not the residual stream after it (percentile 95; 40 without the "
         "patch)."),
    ],
)  # fmt: skip
def test_what_follows_is_unusual_above_percentile_95(percentile, after, words):
    plausibility = Plausibility(-1.0, percentile, WhatFollows(after, 7, 99.0, 40.0))
    assert said(made(plausibility=plausibility))[2].endswith(f"; its activation is {words}")


EXACT = st.integers(-(2**20), 2**20).map(lambda n: n / 2**10)
"""Logits whose differences do not round."""


@given(EXACT, EXACT)
@example(2.0, 1.0)
@example(-2.0, -1.0)
@example(0.0, 0.0)
@example(0.0, 1.0)
@example(1.0, 0.0)
@example(1e-300, -1e-300)
def test_more_is_written_in_than_deleted_where_the_effect_turns_round_or_is_over_twice_the_deletion(best, deletion):
    opposite = min(best, deletion) < 0 < max(best, deletion)
    assert Deletion(deletion, best - deletion).is_injection == (opposite or abs(best) > 2 * abs(deletion))


def test_zero_has_no_sign():
    assert [decimals(each) for each in (-0.0004, 0.0, -0.0006)] == ["0.000", "0.000", "-0.001"]
