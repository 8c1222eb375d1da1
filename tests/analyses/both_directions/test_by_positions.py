"""Both directions of every site at positions and spans, against the model written out by hand."""

import numpy as np
import pytest
import torch
from helpers.by_hand import ByHand
from helpers.checkpoints import save_beside
from helpers.opened import follow

from igap import PromptPair, activation_patching, both_directions
from igap.analyses.both_directions.gates import find_gates
from igap.analyses.both_directions.plots import directions_scatter
from igap.analyses.registry import ANALYSES
from igap.cli.compose import compose_one
from igap.components import PLACES
from igap.engine.open_pairs import open_pairs
from igap.inputs.prompts import tokenize

EXACT = 1e-10
CAPTUM = 1e-7
"""Captum keeps the weights of its nodes in float32."""
PAIR = PromptPair("After John and Mary gave Mary a", "After Tom and Mary gave John a", " milk", " dog", min_gap=0.0)
SHORTER = PromptPair("After John and Mary gave Tom a", "After Anna gave Tom a", " milk", " dog", 0.0, align="diff")
SPANS = {"late": [5, 7], "early": [2, 3]}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A small GPT-2 of igap, and the same weights on plain modules."""
    return save_beside(tmp_path_factory.mktemp("gpt2"), "gpt2", n_inner=12)


def by_hand(case):
    model, plain = case
    tokens = tokenize(model, PAIR)
    hand = ByHand(plain, tokens.answer, tokens.distractor)
    runs = {"noising": tokens.clean, "denoising": tokens.corrupted}
    ends = {"noising": hand.read(tokens.corrupted), "denoising": hand.read(tokens.clean)}
    return hand, runs, ends


@pytest.mark.parametrize("site", PLACES)
def test_effects_by_span_and_gates_are_forward_passes_by_hand(case, site):
    """Gates of one layer and of two, of one component at two spans, and of a later span in an earlier layer."""
    model, _ = case
    hand, runs, ends = by_hand(case)
    both = both_directions(model, PAIR, site, positions=SPANS, high=1e-12, most=0, n_steps=6)
    places = [(0, 0, 0), (0, 1, 0), (1, 1, 0), (2, 0, both.noising["ap"].effect.shape[2] - 1)]
    with open_pairs(model, PAIR, sites=(site,)) as opened:
        gates = find_gates(opened, site, places, 0.05, positions=SPANS, named_in="noising")
    where = list(SPANS.values())
    names = dict(
        zip(places, [both.names[np.ravel_multi_index(p, both.noising["ap"].effect.shape)] for p in places], strict=True)
    )
    assert [gates.first[0], gates.second[-1]] == [names[places[0]], names[places[3]]]
    assert gates.second[0].endswith(" at early")
    for side, (direction, run) in enumerate(runs.items()):
        change = lambda place: (site, place[0], place[2], where[place[1]])  # noqa: E731
        f = lambda *moved: hand.held(run, ends[direction], *map(change, moved))  # noqa: B023, E731
        made = getattr(both, direction)
        for layer in range(3):
            expected = hand.patched(run, site, layer, ends[direction][site, layer], where)
            torch.testing.assert_close(made["ap"].effect[layer], expected, rtol=0, atol=EXACT)
            parts = hand.integrated(run, site, layer, ends[direction][site, layer], 6)
            summed = torch.stack([parts[span].sum(0) for span in where])
            torch.testing.assert_close(made["ig"].effect[layer], summed.detach(), rtol=0, atol=CAPTUM)
        pairs = [(c, d) for i, c in enumerate(places) for d in places[i + 1 :]]
        together = [f(c, d) - f() for c, d in pairs]
        excess = [f(c, d) - f(c) - f(d) + f() for c, d in pairs]
        np.testing.assert_allclose(gates.together[side], together, rtol=0, atol=EXACT)
        np.testing.assert_allclose(gates.interaction[side], excess, rtol=0, atol=EXACT)


@pytest.mark.parametrize("positions", ["each", "last", "diff"])
def test_positions_are_those_of_the_methods(case, positions):
    """The table, the names and the gates are about the components at these positions."""
    model, _ = case
    both = both_directions(model, PAIR, "v", positions=positions, high=1e-9, most=3, n_steps=2)
    alone = activation_patching(model, PAIR, "v", positions=positions)
    table = both.tables()["both_directions"]
    np.testing.assert_array_equal(table["effect_ap_noising"], alone.effect.flatten())
    assert both.names == alone.names
    if positions == "each":
        assert table["span"].tolist()[:9] == ["0 <|endoftext|>"] * 4 + ["1 After"] * 4 + ["2 John"]
        assert set(both.gates.first) <= set(both.names)
        assert "1.0.v at 4 Mary" in both.names
    else:
        assert "span" not in table


def test_in_the_other_prompt_positions_are_the_partners(small):
    """Where lengths differ and only one of the prompts has the words, whichever direction is the run's own."""
    model = small("gpt2")
    first = tokenize(model, SHORTER).clean_words.index("John")
    spans = {"names": "After John", "verb": "gave", "second": "Tom"}
    both = both_directions(model, SHORTER, positions=spans, n_steps=2)
    assert both.noising["ap"].where[0] == (first - 1, first)
    assert both.denoising["ap"].where == ((first - 1,), (first + 1,), (first + 2,))
    there = activation_patching(model, SHORTER, positions={"verb": "gave", "second": "Tom"}, direction="denoising")
    torch.testing.assert_close(both.denoising["ap"].effect[:, 1:], there.effect, rtol=0, atol=1e-12)
    assert not both.denoising["ap"].effect[:, 0].any()


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_a_run_finds_what_the_function_finds(small, direction):
    """At the positions of its own direction's prompt."""
    model, turned = small(), "denoising" if direction == "noising" else "noising"
    asked = ["sites=heads", "positions=each", "ig.n_steps=3", f"direction={direction}", "analyses=both_directions"]
    config = compose_one([*asked, "analyses.both_directions.high=0.001"]).config
    pair = PAIR if direction == "noising" else PromptPair(PAIR.corrupted, PAIR.clean, " dog", " milk", min_gap=0.0)
    expected = both_directions(model, pair, positions="each", high=0.001, n_steps=3)
    # Denoising is noising of the swapped pair with the other sign: F is minus the other's.
    own = {name: activation_patching(model, PAIR, positions="each", direction=direction) for name in ("ap", "ig")}
    own["ig"] = expected.noising["ig"]
    found = follow("both_directions", config, model, (PAIR,), {"heads": own}, {})
    mine, other = (getattr(found, each)["ap"] for each in (direction, turned))
    assert mine.names == other.names == expected.names
    sign = 1 if direction == "noising" else -1
    torch.testing.assert_close(sign * mine.effect, expected.noising["ap"].effect, rtol=0, atol=1e-12)
    torch.testing.assert_close(sign * other.effect, expected.denoising["ap"].effect, rtol=0, atol=1e-12)
    assert found.gates.first == expected.gates.first
    np.testing.assert_allclose(sign * found.gates.interaction[::sign], expected.gates.interaction, atol=1e-12)
    assert found.summary()["both_directions/latent_or"].count(" at ") > 1
    assert ", " in found.summary()["both_directions/latent_or"]


def test_the_figure_names_components_at_their_positions(case):
    both = both_directions(case[0], PAIR, "attn_out", positions="each", high=1e-6, n_steps=2, metric="prob")
    left, right = directions_scatter(both, title="a model").axes
    assert {text.get_text() for text in left.texts} <= set(both.names)
    assert (left.get_xlabel(), right.get_ylabel()) == (
        "AP noising, takes away: -score",
        "IG denoising, brings back: score",
    )


def test_classes_are_those_of_each_component(case):
    """One by one, as the docstring has them."""
    both = both_directions(case[0], PAIR, "neurons", positions="each", high=0.002, n_steps=2)
    noising, denoising = (-both.noising["ap"].score.flatten(), both.denoising["ap"].score.flatten())
    expected = []
    for x, y in zip(noising.tolist(), denoising.tolist(), strict=True):
        small, large = sorted((abs(x), abs(y)))
        kind = "minimal" if x * y > 0 else "opposed"
        latent = "latent_or" if abs(y) > abs(x) else "latent_and"
        expected.append("low" if large < 0.002 else kind if small >= large / 2 else latent)
    assert list(both.classes) == expected
    assert len(set(expected)) == 5


def test_it_is_asked_for_with_any_site_and_positions():
    config = compose_one(["analyses=both_directions", "positions=each", "sites=q", "analyses.both_directions.site=q"])
    assert ANALYSES["both_directions"].misfit(config.config) == ""
