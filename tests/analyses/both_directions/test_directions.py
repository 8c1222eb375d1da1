"""Both directions: classes, asymmetry and gates on models that were made of gates, and where there is none."""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import handmade
from helpers.handmade import PAIR

from igap import PromptPair, activation_patching, both_directions, integrated_gradients
from igap.analyses.both_directions.gates import find_gates
from igap.attribution.activation_patching import patch_components
from igap.engine.open_pairs import open_pairs

ROUND = 1e-9
"""Norms with a huge epsilon are linear up to a few parts in 10^12; F is of size 3."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return handmade.gates(tmp_path_factory.mktemp("gates"))


@pytest.fixture(scope="module")
def both(model):
    return both_directions(model, PAIR)


def test_inputs_of_an_and_do_more_noising_of_an_or_denoising_and_of_a_sum_as_much(both):
    assert both.classes == ("latent_and", "latent_and", "latent_or", "latent_or", "minimal", "minimal")
    noising, denoising = (maps["ap"].effect[0].tolist() for maps in (both.noising, both.denoising))
    assert noising == pytest.approx([-1, -1, 0, 0, -0.5, -0.5], abs=ROUND)
    assert denoising == pytest.approx([0, 0, 1, 1, 0.5, 0.5], abs=ROUND)
    assert both.asymmetry().tolist() == pytest.approx([-1, -1, 1, 1, 0, 0], abs=ROUND)
    assert both.asymmetry(kind="score").tolist() == pytest.approx([-1 / 3, -1 / 3, 1 / 3, 1 / 3, 0, 0], abs=ROUND)


def test_latent_components_two_by_two_show_their_gate(both):
    """I is the same in both directions here, because F is a function of these heads alone."""
    gates = both.gates.to_frame().set_index(["first", "second"])
    kinds = {("0.0", "0.1"): ("and", 1), ("0.2", "0.3"): ("or", -1)}
    assert len(gates) == 6
    for pair, row in gates.iterrows():
        kind, excess = kinds.get(pair, ("none", 0))
        assert row["gate"] == kind
        for direction in ("noising", "denoising"):
            assert row[f"effect_interaction_{direction}"] == pytest.approx(excess, abs=ROUND)
            assert row[f"interaction_{direction}"] == pytest.approx(excess / 3, abs=ROUND)
    together = gates[["effect_together_noising", "effect_together_denoising"]]
    assert together.loc[("0.0", "0.1")].tolist() == pytest.approx([-1, 1], abs=ROUND)
    assert together.loc[("0.2", "0.3")].tolist() == pytest.approx([-1, 1], abs=ROUND)
    assert together.loc[("0.1", "0.2")].tolist() == pytest.approx([-1, 1], abs=ROUND)
    assert (both.gates.names_of("and"), both.gates.names_of("or")) == (["0.0+0.1"], ["0.2+0.3"])


def test_classes_and_gates_do_not_hang_on_the_sign_of_the_gap(model):
    """The distractor's logit is 0, so that F is its own answer's; clean is 0, corrupted 1: NOT of an AND is an OR."""
    swapped = PromptPair(PAIR.corrupted, PAIR.clean, PAIR.answer, PAIR.distractor, min_gap=0.0)
    found = both_directions(model, swapped, metric="logit", high=0.02)
    assert found.noising["ap"].gap == pytest.approx(-3, abs=ROUND)
    assert found.classes == ("latent_or", "latent_or", "latent_and", "latent_and", "minimal", "minimal")
    assert (found.gates.names_of("or"), found.gates.names_of("and")) == (["0.0+0.1"], ["0.2+0.3"])


@pytest.mark.parametrize("metric", ["kl", "js"])
def test_a_metric_that_is_least_on_the_clean_prompt_is_refused_as_everything_would_be_an_or(model, metric):
    with pytest.raises(ValueError, match=rf"^metric: got {metric} with both directions, but it is least on the clean"):
        both_directions(model, PAIR, metric=metric)


def test_components_that_work_against_f_have_the_gate_of_their_own_output(tmp_path):
    model = handmade.gates(tmp_path)
    with torch.no_grad():
        block = model.original_model.transformer.h[0]
        block.mlp.c_proj.weight.mul_(-1)
        block.attn.c_proj.weight[4 * model.cfg.d_head :].mul_(6)  # sums of 3 each, so that F is 6 - 1 - 1
    found = both_directions(model, PAIR)
    assert found.noising["ap"].gap == pytest.approx(4, abs=ROUND)
    assert found.classes == ("latent_and", "latent_and", "latent_or", "latent_or", "minimal", "minimal")
    assert (found.gates.names_of("and"), found.gates.names_of("or")) == (["0.0+0.1"], ["0.2+0.3"])


def test_the_maps_are_those_of_the_methods_and_the_table_has_them_all(small, pair):
    model = small()
    found = both_directions(model, pair, high=0.01, n_steps=5)
    table = found.to_frame()
    for direction in ("noising", "denoising"):
        for method, made in (
            ("ig", integrated_gradients(model, pair, n_steps=5, direction=direction)),
            ("ap", activation_patching(model, pair, direction=direction)),
        ):
            np.testing.assert_array_equal(table[f"{method}_{direction}"], made.score.flatten())
            np.testing.assert_array_equal(table[f"effect_{method}_{direction}"], made.effect.flatten())
    for method in ("ig", "ap"):
        for prefix in ("", "effect_"):
            total = table[f"{prefix}{method}_noising"] + table[f"{prefix}{method}_denoising"]
            np.testing.assert_allclose(table[f"{prefix}{method}_asymmetry"], total, atol=1e-15)
    assert list(table["class"]) == list(found.classes)
    assert table.index.names == ["layer", "head"]


def test_which_of_two_is_patched_first_makes_no_difference(small, pair):
    """Across layers, where the other one would be computed anew if it did not stay patched."""
    model = small()
    with open_pairs(model, pair) as opened:
        found = find_gates(opened, "heads", [(0, 1), (2, 3), (1, 0)], 0.05)
        assert (found.first, found.second) == (("0.1", "0.1", "1.0"), ("1.0", "2.3", "2.3"))
        for side, direction in enumerate(("noising", "denoising")):
            ((_, question),) = opened.contrasts(direction=direction)
            for gate, ((layer, index), (other, second)) in enumerate([((1, 0), (0, 1)), ((2, 3), (0, 1))]):
                alone = patch_components(question, "heads")[0].effect[other, second]
                beside = patch_components(question.with_patched({("heads", layer): (index,)}), "heads")[0].effect
                assert beside[other, second] - alone == pytest.approx(found.interaction[side, gate], abs=1e-12)


def test_several_pairs_are_a_mean_and_without_scores_there_are_no_classes(small):
    rest = "went to the store, {} gave a bottle of milk to"
    pairs = [
        PromptPair(f"After John and Mary {rest.format('Mary')}", f"After John and Mary {rest.format('John')}",
                   " John", " Mary", min_gap=0.0),
        PromptPair("John and Mary went to the store, Mary gave it to",
                   "John and Mary went to the store, John gave it to", " John", " Mary", min_gap=0.0),
    ]  # fmt: skip
    model = small()
    asked = {"high": 0.001, "most": 4, "n_steps": 2}
    each = [both_directions(model, pair, **asked) for pair in pairs]
    mean = both_directions(model, pairs, **asked)
    np.testing.assert_allclose(mean.asymmetry(), sum(one.asymmetry() for one in each) / 2, atol=1e-12)
    places = [tuple(map(int, name.split("."))) for name in sorted({*mean.gates.first, *mean.gates.second})]
    with open_pairs(model, pairs) as opened:
        whole = find_gates(opened, "heads", places, 0.05)
    parts = []
    for pair in pairs:
        with open_pairs(model, pair) as opened:
            parts.append(find_gates(opened, "heads", places, 0.05))
    np.testing.assert_allclose(whole.interaction, sum(one.interaction for one in parts) / 2, atol=1e-12)
    for score in ("interaction_score", "together_score"):
        mean_score = sum(getattr(one, score) for one in parts) / 2
        np.testing.assert_allclose(getattr(whole, score), mean_score, atol=1e-12)
    unscored = both_directions(model, PromptPair(*pairs[0].texts, min_gap=1e6), **asked)
    assert set(unscored.classes) == {""}
    assert unscored.summary()["both_directions/n_minimal"] is None
    assert unscored.summary()["both_directions/n_minimal/reason"] == "the gap is too small for scores"
    assert unscored.sentences() == ("both directions of heads: no classes, the gap is too small for scores",)
    assert unscored.summary()["both_directions/ap/mean_abs_asymmetry"] > 0


def test_summary_sentences_tables_and_repr_say_the_same(both):
    assert both.summary() == {
        "both_directions/ig/mean_abs_asymmetry": pytest.approx(0, abs=1e-6),  # both ways the same path, backwards
        "both_directions/ap/mean_abs_asymmetry": pytest.approx(4 / 6, abs=ROUND),
        "both_directions/n_minimal": 2, "both_directions/minimal": "0.4 0.5",
        "both_directions/n_latent_or": 2, "both_directions/latent_or": "0.2 0.3",
        "both_directions/n_latent_and": 2, "both_directions/latent_and": "0.0 0.1",
        "both_directions/n_opposed": 0, "both_directions/opposed": "",
        "both_directions/gates/and": "0.0+0.1", "both_directions/gates/or": "0.2+0.3",
        "both_directions/gates/mixed": "",
    }  # fmt: skip
    assert both.sentences() == (
        "heads that do as much in both directions (minimal): 0.4, 0.5",
        "heads that do more denoising, as in an OR (latent): 0.2, 0.3",
        "heads that do more noising, as in an AND (latent): 0.0, 0.1",
        "gates, 6 pairs of latent heads: and 0.0+0.1; or 0.2+0.3",
    )
    assert repr(both) == f"BothDirections({'; '.join(both.sentences())})"
    assert "0.0: -0.3333" in both._repr_html_()
    tables = both.tables()
    assert list(tables) == ["both_directions", "gates"]
    pd.testing.assert_frame_equal(tables["gates"], both.gates.to_frame())


def test_fewer_components_than_two_form_no_gate(model):
    for most in (0, 1):
        found = both_directions(model, PAIR, most=most)
        assert found.gates.first == ()
        assert list(found.tables()) == ["both_directions"]
