"""Faithfulness by positions: sets of components at spans, against the model written out by hand."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from helpers.by_hand import ByHand
from helpers.checkpoints import save_beside
from helpers.opened import follow

from igap import PromptPair, activation_patching
from igap.analyses.faithfulness.plots import faithfulness_curves
from igap.cli.compose import compose_one
from igap.components import PLACES
from igap.engine.baselines import Baseline
from igap.engine.open_pairs import open_pairs
from igap.engine.site_sets import set_metrics
from igap.inputs.prompts import tokenize

EXACT = 1e-10
PAIR = PromptPair("After John and Mary gave Mary a", "After Tom and Mary gave John a", " milk", " dog", min_gap=0.0)
OTHER = PromptPair("After John and Mary gave Mary a", "After Mary and Mary gave Tom a", " milk", " dog", min_gap=0.0)
SPANS = {"late": [5, 7], "early": [2, 3]}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Two pairs of a small GPT-2 of igap, open with every site; and on plain modules their clean tokens, the model
    written out by hand and its corrupted activations.
    """
    model, plain = save_beside(tmp_path_factory.mktemp("gpt2"), "gpt2", n_inner=12)
    each = [tokenize(model, pair) for pair in (PAIR, OTHER)]
    hands = [ByHand(plain, tokens.answer, tokens.distractor) for tokens in each]
    ends = [hand.read(tokens.corrupted) for hand, tokens in zip(hands, each, strict=True)]
    with open_pairs(model, [PAIR, OTHER], sites=tuple(PLACES), kept_bytes=math.inf) as opened:
        yield opened, list(zip([tokens.clean for tokens in each], hands, ends, strict=True))


@pytest.mark.parametrize("positions", ["all", "each", "last", "diff", SPANS])
@pytest.mark.parametrize("site", PLACES)
def test_f_of_a_set_is_one_forward_pass_by_hand(case, site, positions):
    """Of all that a set does not keep, each at its own span; what is at no span is kept."""
    opened, by_hand = case
    width = by_hand[0][2][site, 0].shape[2]
    where = [[list(range(8))]] * 2
    if positions == "each":
        where = [[[i] for i in range(8)]] * 2
    elif positions != "all":
        where = [[[7]]] * 2 if positions == "last" else [list(SPANS.values())] * 2
    if positions == "diff":
        where = [[[2, 6]], [[2, 6]]]
    n_spans = len(where[0])
    shape = (3, n_spans, width) if positions == "each" or positions is SPANS else (3, width)
    kept = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0)) < 0.6
    kept[0], kept[1] = False, True
    values = set_metrics(opened, {site: kept}, baseline=Baseline("corrupted"), positions=positions)
    for row, (clean, hand, ends) in enumerate(by_hand):
        for column, of_set in enumerate(kept.view(4, 3, n_spans, width)):
            changes = [
                (site, layer, component, where[row][span]) for layer, span, component in (~of_set).nonzero().tolist()
            ]
            expected = hand.held(clean, ends, *changes)
            assert values[row, column].item() == pytest.approx(expected, abs=EXACT)


def test_by_spans_of_the_corrupted_prompt_their_partners_are_ablated(small):
    """The ranked maps are of the corrupted run, and faithfulness is of the clean one."""
    model = small()
    pair = PromptPair("After John and Mary gave Tom a", "After Anna gave Tom a", " milk", " dog", 0.0, align="diff")
    kept = torch.zeros(2, model.cfg.n_layers, 2, model.cfg.n_heads, dtype=torch.bool)
    kept[1, :, 0] = True
    with open_pairs(model, pair) as opened:
        here, there = (each.index("gave") for each in (opened.tokens[0].clean_words, opened.tokens[0].corrupted_words))
        assert here != there
        ask = partial(set_metrics, opened, {"heads": kept}, baseline=Baseline("corrupted"))
        mirrored = ask(positions={"verb": [there], "start": [1]}, named_in="denoising")
        plain = ask(positions={"verb": [here], "start": [1]})
    assert len(set(plain.flatten().tolist())) == 2
    torch.testing.assert_close(mirrored, plain, rtol=0, atol=1e-12)


def test_a_run_ranks_components_at_positions_and_says_so(small):
    model = small()
    asked = ["sites=heads", "positions=each", "faithfulness=heads", "prompts.min_gap=0"]
    config = compose_one(asked).config
    maps = {"heads": {"ap": activation_patching(model, PAIR, positions="each")}}
    maps["heads"]["ig"] = maps["heads"]["ap"]
    found = follow("faithfulness", config, model, (PAIR,), maps, {})
    corrupted, _ = found.groups
    n = maps["heads"]["ap"].effect.numel()
    assert (corrupted.n, corrupted.sizes[-1]) == (n, n)
    (deletion,) = [c for c in corrupted.curves if (c.method, c.kind, c.ranking) == ("ap", "deletion", "magnitude")]
    largest = maps["heads"]["ap"].effect.abs().argmax()
    first = corrupted.sizes.index(1) if 1 in corrupted.sizes else None
    assert first is not None
    drop = (deletion.faithfulness.value[first] - 1) * (corrupted.full - corrupted.empty)
    assert drop == pytest.approx(maps["heads"]["ap"].effect.flatten()[largest].item(), abs=1e-12)
    assert found.sentences()[0].startswith(
        "faithfulness, heads ablated by the corrupted activation, positions each, CPR"
    )
    first_panel = faithfulness_curves([corrupted]).axes[0]
    assert first_panel.get_xlabel() == f"share of the {n:,} heads kept, positions each"
    assert np.isfinite(deletion.faithfulness.value).all()
