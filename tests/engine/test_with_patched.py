"""Contrasts in which a component is patched already: effects of the others, against the model written out by hand."""

import pytest
import torch
from helpers.by_hand import ByHand
from helpers.checkpoints import save_beside

from igap import PromptPair
from igap.attribution.activation_patching import patch_components
from igap.attribution.integrated_gradients import integrate_path
from igap.components import PLACES
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
MODELS = ("gpt2", "llama", "gpt_neox")
HELD = [
    *(("heads", 0, 1), ("neurons", 0, 5), ("heads", 1, 2), ("neurons", 1, 3), ("heads", 2, 0), ("neurons", 2, 7)),
    *(("q", 1, 3), ("k", 0, 1), ("v", 2, 0), ("attn_out", 1, 0), ("mlp_out", 0, 0), ("attn_out", 2, 0)),
]
STREAMS = [("resid_pre", 1, 0), ("resid_mid", 0, 0), ("resid_mid", 1, 0), ("resid_post", 0, 0), ("mlp_out", 1, 0)]
"""Held everywhere, the stream would leave nothing to patch."""


pytestmark = pytest.mark.usefixtures("whole_in_float64")


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A model of igap and the same weights on plain modules."""
    architecture, settings = CASES[request.param]
    return save_beside(tmp_path_factory.mktemp(request.param), architecture, **settings)


def sites_of_model(plain):
    """Attention and MLP of parallel blocks read one input, with no stream between them."""
    return tuple(site for site in PLACES if site != "resid_mid" or plain.config.model_type != "gpt_neox")


def by_hand(plain, tokens, direction, held, sites, where=slice(None)):
    """F with each component of these sites, in each layer, and the held one at the other run's activations, at
    positions, minus F with that one alone; no component is recomputed once it is patched."""
    hand = ByHand(plain, tokens.answer, tokens.distractor)
    here, there = (tokens.clean, tokens.corrupted) if direction == "noising" else (tokens.corrupted, tokens.clean)
    ends = hand.read(there)
    places = {(site, layer): end.shape[2] for (site, layer), end in ends.items() if site in sites}
    every = [held, *((*place, index) for place, width in places.items() for index in range(width))]

    def edit(site, layer, activation):
        activation = activation.clone()
        for row, patched in enumerate(every):
            for *place, index in {held, patched}:
                if place == [site, layer]:
                    activation[row, where, index] = ends[site, layer][0, where, index]
        return activation

    with torch.no_grad():
        values = hand.f(here.expand(len(every), -1), edit)
    effects = dict(zip(every, values - values[0], strict=True))
    return {
        site: torch.stack([effects[site, layer, i] for layer in range(3) for i in range(places[site, layer])]).view(
            3, -1
        )
        for site in sites
    }


@pytest.mark.parametrize("route", [None, "hooks"])
@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_effects_beside_a_patched_component_are_one_forward_each_in_which_it_stays_patched(case, direction, route):
    model, plain = case
    pairs = PAIRS if direction == "noising" else PAIRS[:1]
    sites = sites_of_model(plain)
    with open_pairs(model, pairs, sites=sites, route=route) as opened:
        ((_, question),) = opened.contrasts(direction=direction)
        assert question.backend.route == (route or "suffix")
        architecture = MODELS.index(plain.config.model_type)
        odd = (architecture + (direction == "denoising")) % 2
        # Every other component in a direction, every one in both; the slower route has a third of those.
        for i, held in list(enumerate(HELD))[3 * odd :: 6] if route else list(enumerate(HELD))[odd::2]:
            site, layer, index = held
            beside = question.with_patched({(site, layer): (index,)})
            assert (beside.direction, beside.gap.tolist()) == (direction, question.gap.tolist())
            # Each model has a third of the other sites beside a component, all three have all.
            others = sites[(i + architecture) % 3 :: 3]
            expected = [by_hand(plain, tokens, direction, held, others) for tokens in question.pairs]
            for other in others:
                maps = patch_components(beside, other)
                for mine, theirs in zip(maps, expected, strict=True):
                    torch.testing.assert_close(mine.effect, theirs[other], rtol=0, atol=EXACT)
                    assert mine.effect.abs().max() > 1e-4
            assert patch_components(beside, site)[0].effect[layer, index] == 0


@pytest.mark.parametrize("route", [None, "hooks"])
def test_a_stream_that_is_patched_at_some_positions_stays_patched_there(case, route):
    model, plain = case
    sites, where = sites_of_model(plain), [3, 5]
    with open_pairs(model, PAIRS, sites=sites, route=route) as opened:
        ((_, question),) = opened.contrasts()
        mask = torch.zeros_like(question.base.tokens, dtype=torch.bool)
        mask[:, where] = True
        question = question.at(mask)
        for held in [held for held in STREAMS if held[0] in sites][:: 2 if route else 1]:
            site, layer, index = held
            beside = question.with_patched({(site, layer): (index,)})
            expected = [by_hand(plain, tokens, "noising", held, sites, where) for tokens in question.pairs]
            moved = set()
            for other in sites:
                maps = patch_components(beside, other)
                for mine, theirs in zip(maps, expected, strict=True):
                    torch.testing.assert_close(mine.effect, theirs[other], rtol=0, atol=EXACT)
                    moved |= {other} if mine.effect.abs().max() > 1e-4 else set()
            assert moved >= {"v", "attn_out", "resid_post"}


def test_gradients_and_the_joint_path_keep_it_patched_too(case):
    """By both routes, which share no more than the run that is patched."""
    model, plain = case
    every = ((("heads", 1), 2), (("v", 1), 1), (("attn_out", 1), 0), (("mlp_out", 0), 0))
    for held, place in every[MODELS.index(plain.config.model_type) % 2 :: 2]:
        by_route = []
        for route in (None, "hooks"):
            answers = []
            with open_pairs(model, PAIRS, sites=sites_of_model(plain), route=route) as opened:
                ((_, question),) = opened.contrasts()
                beside = question.with_patched({held: (place,)})
                assert not question.base.held, "the contrast that it came from is as it was"
                for site in dict.fromkeys(("heads", "neurons", "attn_out", held[0])):
                    answers += [each.effect for each in integrate_path(beside, site, n_steps=4)]
                    gradients = {layer: slope for layer, dropped, slope in beside.gradients(site, [0, 1])}
                    answers += [gradients[layer] for layer in range(3)]
                    if site == held[0]:
                        assert (gradients[held[1]][:, :, place] == 0).all()
            by_route.append(answers)
        for ours, hooked in zip(*by_route, strict=True):
            torch.testing.assert_close(ours, hooked, rtol=0, atol=1e-6)


def test_the_model_has_no_hook_left(case):
    model, _ = case
    with open_pairs(model, PAIRS) as opened:
        ((_, question),) = opened.contrasts()
        question.with_patched({("heads", 1): (2,)})
    assert not any(point.fwd_hooks for point in model.hook_dict.values())
