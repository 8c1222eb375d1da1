"""Warnings of a run's numbers, by the numbers alone."""

import pytest

from igap.cli.compose import compose_one
from igap.statistics.warnings import run_warnings

SWAPPED = (
    "prompts: {}the model prefers the distractor on the clean prompt ({}F = -4.41) and the answer on the corrupted one "
    "(F = +3.26): {}"
)


def warned(clean, corrupted, *overrides):
    config = compose_one(list(overrides)).config
    return run_warnings(config, clean, [x - y for x, y in zip(clean, corrupted, strict=True)], {})


def test_answer_and_distractor_that_seem_swapped_are_told_once():
    assert warned([-4.41], [3.26]) == (SWAPPED.format("", "", "are answer and distractor swapped?"),)


def test_of_several_pairs_those_that_seem_swapped_are_counted():
    ending = "{} pairs.csv lists F of every pair."
    pairs = [2.0, -4.41, -3.0], [-2.0, 3.26, 3.0]
    told = SWAPPED.format("in 2 of 3 pairs ", "pair 1: ", ending.format("are answer and distractor swapped?"))
    assert warned(*pairs, "prompts.file=pairs.csv") == (told,)
    told = SWAPPED.format("in 2 of 3 pairs ", "pair 1: ", ending.format("the model does not do the task there."))
    assert warned(*pairs, "prompts.n=3") == (told,)


@pytest.mark.parametrize(("clean", "corrupted"), [(4.0, -3.0), (-4.0, -3.0), (4.0, 3.0), (-3.0, -4.0)])
def test_a_model_that_prefers_the_answer_on_the_clean_prompt_or_one_word_on_both_is_no_swap(clean, corrupted):
    assert warned([clean], [corrupted]) == ()


def test_signs_of_a_gap_too_small_for_scores_are_not_told():
    (small,) = warned([-0.04], [0.04])
    assert "wanted at least prompts.min_gap=0.1" in small


def test_settings_that_change_nothing_are_told_as_they_are_typed_a_line_a_reason():
    assert warned([2.0], [-2.0], "ablation.n=5") == (
        "ablation.n=5 changes nothing: no ablation was asked for (ablation=zero|mean|mean_positional|resample).",
    )
    first, second = warned([2.0], [-2.0], "ablation.also=[mean,zero]", "ablation.generate=true", "ig.tolerance=0.01")
    assert first.startswith("ablation.also=[mean,zero], ablation.generate=true change nothing: no ablation ")
    assert second.startswith("ig.tolerance=0.01 changes nothing: ig.n_steps=50 is fixed")
    assert not warned([2.0], [-2.0], "ablation=mean", "ablation.n=5", "ig.n_steps=auto", "ig.tolerance=0.01")
