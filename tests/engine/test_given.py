"""Contrasts in which a component is patched already: effects of the others, against the model written out by hand."""

import contextlib

import pytest
import torch
from helpers.by_hand import ByHand
from helpers.checkpoints import save_beside
from helpers.plain import Whole

from igap import PromptPair
from igap.attribution.activation_patching import patch_components
from igap.attribution.integrated_gradients import integrate_path
from igap.engine.open_pairs import open_pairs

EXACT = 1e-10
"""float64, sums of a few thousand terms of size 1."""

PAIRS = [
    PromptPair("After John and Mary gave Mary a", "After Tom and Mary gave John a", " John", " Mary", min_gap=0.0),
    PromptPair("Then Anna and Tom gave Tom it", "Then John and Tom gave Anna dog", " Tom", " it", min_gap=0.0),
]
CASES = {
    "gpt2": ("gpt2", {"n_inner": 12}),
    "grouped": ("llama", {"intermediate_size": 12, "num_key_value_heads": 2}),
    "parallel": ("gpt_neox", {"intermediate_size": 12}),
}
HELD = [("heads", 0, 1), ("neurons", 0, 5), ("heads", 1, 2), ("neurons", 1, 3), ("heads", 2, 0), ("neurons", 2, 7)]


@pytest.fixture(autouse=True)
def _whole(request):
    """Llama's norms and softmax are float32 in transformers, whatever the model is."""
    with Whole() if "grouped" in request.node.name else contextlib.nullcontext():
        yield


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A model of igap and the same weights on plain modules."""
    architecture, settings = CASES[request.param]
    return save_beside(tmp_path_factory.mktemp(request.param), architecture, **settings)


def by_hand(plain, tokens, direction, held):
    """F with each component of each site and layer and the held one at the other run's activations, minus F with that
    one alone; no component is recomputed once it is patched."""
    hand = ByHand(plain, tokens.answer, tokens.distractor)
    here, there = (tokens.clean, tokens.corrupted) if direction == "noising" else (tokens.corrupted, tokens.clean)
    ends = hand.read(there)
    places = {(site, layer): end.shape[2] for (site, layer), end in ends.items() if site in ("heads", "neurons")}
    every = [held, *((*place, index) for place, width in places.items() for index in range(width))]

    def edit(site, layer, activation):
        activation = activation.clone()
        for row, patched in enumerate(every):
            for where, at, index in {held, patched}:
                if (where, at) == (site, layer):
                    activation[row, :, index] = ends[site, layer][0, :, index]
        return activation

    with torch.no_grad():
        values = hand.f(here.expand(len(every), -1), edit)
    effects = dict(zip(every, values - values[0], strict=True))
    return {
        site: torch.stack([effects[site, layer, i] for layer in range(3) for i in range(places[site, layer])]).view(
            3, -1
        )
        for site in ("heads", "neurons")
    }


@pytest.mark.parametrize("route", [None, "hooks"])
@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_effects_beside_a_patched_component_are_one_forward_each_in_which_it_stays_patched(case, direction, route):
    model, plain = case
    pairs = PAIRS if direction == "noising" else PAIRS[:1]
    with open_pairs(model, pairs, route=route) as opened:
        ((_, question),) = opened.contrasts(direction=direction)
        assert question.backend.route == (route or "suffix")
        for held in HELD[::5] if route else HELD:
            site, layer, index = held
            beside = question.given({(site, layer): (index,)})
            assert (beside.direction, beside.gap.tolist()) == (direction, question.gap.tolist())
            expected = [by_hand(plain, tokens, direction, held) for tokens in question.pairs]
            for other in ("heads", "neurons"):
                maps = patch_components(beside, other)
                for mine, theirs in zip(maps, expected, strict=True):
                    torch.testing.assert_close(mine.effect, theirs[other], rtol=0, atol=EXACT)
                    assert mine.effect.abs().max() > 1e-4
            assert patch_components(beside, site)[0].effect[layer, index] == 0


def test_gradients_and_the_joint_path_keep_it_patched_too(case):
    """By both routes, which share no more than the run that is patched."""
    model, _ = case
    answers = []
    for route in (None, "hooks"):
        with open_pairs(model, PAIRS, route=route) as opened:
            ((_, question),) = opened.contrasts()
            beside = question.given({("heads", 1): (2,)})
            maps = integrate_path(beside, "heads", n_steps=20)
            answers.append(torch.stack([each.effect for each in maps]))
            assert not question.base.held, "the contrast that it came from is as it was"
            gradients = {layer: slope for layer, dropped, slope in beside.gradients("heads", [0, 1])}
            answers.append(torch.stack([gradients[layer] for layer in range(3)]))
            assert (answers[-1][1, :, :, 2] == 0).all()
    for ours, plain in (answers[::2], answers[1::2]):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-6)


def test_the_model_has_no_hook_left(case):
    model, _ = case
    with open_pairs(model, PAIRS) as opened:
        ((_, question),) = opened.contrasts()
        question.given({("heads", 1): (2,)})
    assert not any(point.fwd_hooks for point in model.hook_dict.values())
