"""Self-repair of components at positions and spans, against the model written out by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.by_hand import ByHand
from helpers.checkpoints import save_beside
from helpers.opened import follow

from igap import PromptPair, activation_patching, self_repair
from igap.analyses.self_repair.plots import repair_scatter
from igap.cli.compose import compose_one
from igap.components import PLACES, parse_component
from igap.inputs.prompts import tokenize

EXACT = 1e-10
PAIR = PromptPair("After John and Mary gave Mary a", "After Tom and Mary gave John a", " milk", " dog", min_gap=0.0)
SPANS = {"late": [5, 7], "early": [2, 3]}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A small GPT-2 of igap, and the same weights on plain modules."""
    return save_beside(tmp_path_factory.mktemp("gpt2"), "gpt2", n_inner=12)


@pytest.mark.parametrize(
    ("site", "patched", "direction"),
    [
        (site, patched, ("noising", "denoising")[(i + j) % 2])
        for i, site in enumerate(PLACES)
        for j, patched in enumerate(("1.2@early", "0.1.k@late", "L1.resid_post@early"))
    ],
)
def test_effects_beside_a_component_at_a_span_are_forward_passes_by_hand(case, site, patched, direction):
    """Also of components before it, of its own layer, and of itself at the other span."""
    model, plain = case
    tokens = tokenize(model, PAIR)
    hand = ByHand(plain, tokens.answer, tokens.distractor)
    here, there = (tokens.clean, tokens.corrupted) if direction == "noising" else (tokens.corrupted, tokens.clean)
    ends = hand.read(there)
    repair = self_repair(model, PAIR, patched, site, positions=SPANS, direction=direction)
    name, _, span = patched.partition("@")
    s = (*parse_component(name), SPANS[span])
    without, lost = hand.held(here, ends), hand.held(here, ends, s)
    assert repair.effect == pytest.approx(lost - without, abs=EXACT)
    assert repair.patched == f"{name} at {span}"
    shape = repair.alone.effect.shape
    for place in [(0, 0, 0), (0, 1, 0), (1, 0, shape[2] - 1), (1, 1, shape[2] - 1), (2, 0, 0)]:
        c = (site, place[0], place[2], list(SPANS.values())[place[1]])
        alone, given = hand.held(here, ends, c) - without, hand.held(here, ends, s, c) - lost
        assert repair.alone.effect[place].item() == pytest.approx(alone, abs=EXACT)
        assert repair.given.effect[place].item() == pytest.approx(given, abs=EXACT)
        own = repair.names[np.ravel_multi_index(place, shape)]
        change = repair.change()[repair.names.index(own)]
        assert np.isnan(change) if own == repair.patched else change == pytest.approx(given - alone, abs=EXACT)


@pytest.mark.parametrize("positions", ["last", "diff"])
def test_positions_without_an_axis_are_where_s_and_all_components_are_patched(case, positions):
    model, _ = case
    where = {"last": [7], "diff": [2, 6]}[positions]
    repair = self_repair(model, PAIR, "0.1", positions=positions)
    named = self_repair(model, PAIR, "0.1@here", positions={"here": where})
    np.testing.assert_allclose(repair.change(), named.change(), rtol=0, atol=EXACT)
    assert (repair.patched, named.patched) == ("0.1", "0.1 at here")
    assert np.nanmax(np.abs(repair.change())) > 1e-6


def test_the_table_has_a_row_a_component_and_span_but_s(case):
    model, _ = case
    repair = self_repair(model, PAIR, "1.2@2", positions="each")
    assert repair.patched == "1.2 at 2 John"
    table = repair.tables()["self_repair"]
    assert len(table) == 3 * 8 * 4 - 1
    assert (table["name"] + " at " + table["span"]).tolist() == repair.ranking()
    assert set(table["span"]) == {"0 <|endoftext|>", *(f"{i} {word}" for i, word in enumerate(PAIR.clean.split(), 1))}
    assert list(repair.to_frame().index) == repair.ranking()
    assert "1.2 at 4 Mary: " in repair._repr_html_()
    left, right = repair_scatter(repair, title="a model").axes
    assert right.get_yticklabels()[0].get_text() == repair.ranking()[0]
    assert left.get_ylabel() == "AP with 1.2 at 2 John patched, score"


@pytest.mark.parametrize(("asked", "patched"), [({}, None), ({"patched": "0.1@END"}, "0.1 at END")])
def test_a_run_patches_the_strongest_component_at_a_span_or_the_one_it_is_told(small, asked, patched):
    model = small()
    pair = PromptPair(
        "After John and Mary gave Mary a", "After John and Mary gave John a", " John", " Mary", min_gap=0.0
    )
    ap = activation_patching(model, pair, positions="roles")
    config = compose_one(["sites=heads", "positions=roles", "analyses=self_repair"]).config
    config = config.model_copy(update={"analyses": {"self_repair": asked}})
    found = follow("self_repair", config, model, (pair,), {"heads": {"ap": ap}}, {})
    patched = patched or ap.names[int(ap.effect.abs().argmax())]
    expected = self_repair(model, pair, patched.replace(" at ", "@"), positions="roles")
    assert found.patched == expected.patched == patched
    pd.testing.assert_frame_equal(found.to_frame(), expected.to_frame())
    assert found.summary()["self_repair/patched"] == patched


def test_of_pairs_with_other_tokens_positions_are_numbers(small):
    other = PromptPair(
        "After Anna and Mary gave Mary a", "After John and Mary gave Anna a", " milk", " dog", min_gap=0.0
    )
    repair = self_repair(small(), [PAIR, other], "0.1@2", positions="each")
    assert repair.patched == "0.1 at 2"
    assert np.isnan(repair.change()).sum() == 1
    each = [self_repair(small(), pair, "0.1@2", positions="each") for pair in (PAIR, other)]
    torch.testing.assert_close(repair.given.effect, (each[0].given.effect + each[1].given.effect) / 2)
