"""Maps by position: what they say of their positions, and the interaction between these, by hand-worked numbers."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from igap import AttributionMap, InputError, PromptPair, activation_patching, attribution_patching
from igap.attribution.over_pairs import mean

EFFECT = torch.tensor([[[1.0, 0.0], [2.0, -1.0]], [[0.0, 0.5], [0.0, 0.25]]], dtype=torch.float64)
"""`[layer, span, component]`."""
TOGETHER = torch.tensor([[4.0, -1.0], [-2.0, 0.75]], dtype=torch.float64)
MAP = AttributionMap(
    "ap", "heads", EFFECT, gap=2.0, spans=("0 to", "1 Mary"), together=TOGETHER, where=((0,), (1,)), covers=True
)


def test_the_interaction_between_positions_is_all_at_once_minus_the_sum_of_each():
    # 4 - (1 + 2), -1 - (0 - 1); -2 - 0, 0.75 - (0.5 + 0.25)
    assert MAP.position_interaction.tolist() == [[1, 0], [-2, 0]]
    assert "; interaction between positions, in logits: 1.0 -2.000, 0.0 +1.000, 0.1 +0.000" in repr(MAP)
    assert "interaction between positions, in logits: 1.0 -2.000" in MAP._repr_html_()


def test_of_several_pairs_it_is_the_mean_of_theirs():
    other = replace(MAP, together=TOGETHER + torch.tensor([[2.0, 0.0], [0.0, 0.0]]))
    assert mean([MAP, other]).position_interaction.tolist() == [[2, 0], [-2, 0]]


def test_there_is_none_without_spans_and_where_spans_leave_positions_out():
    assert MAP.at("1").position_interaction is None
    part = replace(MAP, covers=False)
    assert part.position_interaction is None
    assert "interaction" not in repr(part)


def test_rounding_is_no_interaction():
    rounded = replace(MAP, together=EFFECT.sum(1) * (1 + 1e-15))
    assert (rounded.position_interaction != 0).any()
    assert "interaction" not in repr(rounded)


def test_spans_cover_what_changes_from_the_first_difference_on(small, pair):
    model = small("gpt2")
    n = model.to_tokens(pair.clean).shape[1]
    every = attribution_patching(model, pair, positions="each")
    moved = every.effect.abs().sum((0, 2)).nonzero().flatten().tolist()
    assert moved[0] > 0
    first = moved[0]
    for kept, covers in ((range(first, n), True), (range(first + 1, n), False), (range(n), True)):
        made = attribution_patching(model, pair, positions={"kept": list(kept)})
        assert made.covers is covers
        assert made.where == (tuple(kept),)
    assert every.position_interaction.abs().max() < 1e-12
    patched = activation_patching(model, pair, "resid_pre", positions="each")
    torch.testing.assert_close(patched.position_interaction, patched.together - patched.effect.sum(1))
    assert patched.position_interaction.abs().max() > 1e-3


def test_a_map_of_some_positions_says_which():
    assert "[2, 2] at position 1, " in repr(replace(MAP.at("1 Mary"), direction="noising"))
    two = replace(MAP.at("1"), where=((1, 4),))
    assert "heads [2, 2] at positions 1, 4, " in repr(two)
    several = mean([two, MAP.at("1")])
    assert "at positions of each pair's own" in repr(several)


def test_a_pair_of_positions_shows_in_the_repr_the_html_and_the_frame():
    assert "largest scores: 0.0 at 1 Mary +1.000, 0.0 at 0 to +0.500, 0.1 at 1 Mary -0.500" in repr(MAP)
    assert 'title="0.0 at 1 Mary: +1"' in MAP._repr_html_()
    frame = MAP.to_frame()
    assert frame.index.names == ["layer", "span", "head"]
    assert frame.loc[(0, "1 Mary", 1)].to_dict() == {"name": "0.1", "ap": -0.5, "effect_ap": -1.0}
    assert isinstance(frame, pd.DataFrame)
    vectors = AttributionMap("ap", "resid_post", EFFECT[:, :, :1], gap=2.0, spans=MAP.spans).to_frame()
    assert vectors.index.names == ["layer", "span", "vector"]
    assert list(vectors["name"]) == ["L0.resid_post"] * 2 + ["L1.resid_post"] * 2


def test_a_map_without_positions_has_none_to_choose():
    with pytest.raises(InputError, match=r"^span: got '1', wanted a map by positions\. Take positions='each'\.$"):
        MAP.at("1").at("1")


def test_pairs_of_one_length_whose_tokens_differ_have_positions_by_number(small, pair):
    words = {"John": "Anna", "Mary": "Tom"}
    other = PromptPair(*(" ".join(words.get(word, word) for word in text.split(" ")) for text in pair.texts))
    both = attribution_patching(small("gpt2"), [pair, other], "resid_mid", positions="each")
    assert both.spans == tuple(map(str, range(both.effect.shape[1])))
    assert both.covers
    assert both.at("4").where == ((4,),)


def test_the_mean_of_maps_whose_tokens_differ_names_positions_by_number():
    assert mean([MAP, replace(MAP, spans=("0 to", "1 John"))]).spans == ("0", "1")
    assert mean([MAP, MAP]).spans == ("0 to", "1 Mary")


@pytest.mark.parametrize("site", ["resid_pre", "mlp_out", "k"])
def test_a_baseline_that_is_known_of_heads_and_neurons_only_is_refused_elsewhere(small, pair, site):
    with pytest.raises(InputError, match=rf"^baseline: got zero_input of {site}, wanted it of heads or neurons\. Use "):
        activation_patching(small("gpt2"), pair, site, baseline="zero_input")
