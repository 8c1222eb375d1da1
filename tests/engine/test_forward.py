import itertools
import re
from dataclasses import replace

import pytest
import torch
from helpers.checkpoints import save_checkpoint

from igap import Baseline, activation_patching, load_model
from igap.attribution.activation_patching import patch_components
from igap.attribution.attribution_patching import estimate_patches
from igap.components import PLACES, SITES
from igap.engine.backend import choose_backend
from igap.engine.forward import Suffix
from igap.engine.hooks import edit_hooks
from igap.engine.metrics import Custom
from igap.engine.open_pairs import contrast


@pytest.mark.parametrize(
    ("architecture", "route", "why"),
    [
        ("gpt2", "suffix", "the weights alone give what the whole model gives"),
        ("llama", "suffix", "the weights alone give what the whole model gives"),
        ("gpt_neox", "suffix", "the weights alone give what the whole model gives"),
        ("opt", "suffix", "the weights alone give what the whole model gives"),
        ("gptj", "hooks", "the engine has no form for GPTJForCausalLM"),
    ],
)
def test_the_route_is_the_faster_one_that_is_right_and_the_reason_is_given(small, pair, architecture, route, why):
    for processing in ("processed", "raw"):
        with contrast(small(architecture, processing), pair) as question:
            assert question.backend.route == route
            assert re.fullmatch(why, question.backend.reason)


PROCESSINGS = ("processed", "raw")
VARIANTS = {
    "gpt2": {},
    "gpt2 scaled by layer": {"architecture": "gpt2", "scale_attn_by_inverse_layer_idx": True},
    "gpt2 relu": {"architecture": "gpt2", "activation_function": "relu"},
    "gpt_neox": {},
    "gpt_neox sequential": {"architecture": "gpt_neox", "use_parallel_residual": False},
    "llama": {},
    "llama grouped": {"architecture": "llama", "num_key_value_heads": 2, "attention_bias": True},
}


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request, tmp_path_factory):
    """Its models by the processing of the weights."""
    settings = {"architecture": request.param, **VARIANTS[request.param]}
    folder = tmp_path_factory.mktemp("variant")
    save_checkpoint(settings.pop("architecture"), 3, folder, **settings)
    return {each: load_model(str(folder), processing=each, dtype="float64") for each in PROCESSINGS}


@pytest.mark.parametrize("processing", PROCESSINGS)
def test_every_architecture_with_a_fast_route_gives_what_plain_hooks_give(variant, processing, pair):
    model = variant[processing]
    # A difference in the middle (the shared keys are copied) or one near the end (they are multiplied once for all).
    asked = pair if processing == "raw" else replace(pair, corrupted=pair.clean.replace("milk", "cat"))
    with contrast(model, asked) as fast, contrast(model, asked, route="hooks") as slow:
        assert fast.backend.route == "suffix", fast.backend.reason
        for site, method in itertools.product(SITES, (patch_components, estimate_patches)):
            (ours,), (plain,) = (method(question, site) for question in (fast, slow))
            assert plain.effect.abs().max() > 1e-3
            torch.testing.assert_close(ours.effect, plain.effect, atol=1e-12, rtol=0)


@pytest.mark.parametrize("processing", PROCESSINGS)
def test_every_site_is_a_function_of_the_embeddings_and_f_of_one_component(variant, pair, processing):
    """The corrupted prompt's embeddings give its activations; its activation in one component gives that one's AP."""
    model = variant[processing]
    sites = [site for site in PLACES if site != "resid_mid" or not model.cfg.parallel_attn_mlp]
    sites = sites[PROCESSINGS.index(processing) :: 2]
    tolerance = {"atol": 1e-12, "rtol": 0}
    with (
        contrast(model, pair, sites=sites) as fast,
        contrast(model, pair, sites=sites, route="hooks") as slow,
        torch.no_grad(),
    ):
        embeddings = model.embed(torch.cat([fast.clean.tokens, fast.corrupted.tokens]))
        moved = (embeddings[1] - embeddings[0])[fast.first :]
        assert moved.abs().max() > 1e-2
        patched_alone = {site: patch_components(fast, site)[0] for site in sites}
        for question, (site, every) in itertools.product((fast, slow), patched_alone.items()):
            places = [(site, layer) for layer in range(3)]
            embedded = question.engine.embedding_function(places)(torch.stack([0 * moved, moved])[None])
            for (_, layer), effects in zip(places, every.effect, strict=True):
                activations, (start, end) = embedded[site, layer], question.ends(site, layer)
                scale = max(1.0, end.abs().max().item())  # activations reach 8
                torch.testing.assert_close(activations / scale, torch.stack([start, end], 1) / scale, **tolerance)
                index = (0, start.shape[2] - 1)[layer % 2]  # the first or the last
                patched = question.engine.single(site, layer, index)(activations[:, :, :, index])
                expected = question.clean.logit_diff[:, None] + torch.stack([0 * effects[index], effects[index]])
                where = f"{question.backend.route} {site} {layer} {index}"
                torch.testing.assert_close(patched, expected, **tolerance, msg=where)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox"])
def test_float32_differs_from_plain_hooks_by_rounding(checkpoint, pair, architecture):
    model = load_model(str(checkpoint(architecture)))
    for site in SITES:
        fast, slow = (activation_patching(model, pair, site, route=route) for route in (None, "hooks"))
        torch.testing.assert_close(fast.effect, slow.effect, atol=1e-5, rtol=0)


def test_a_route_that_the_model_does_not_have_is_refused_with_the_reason(small, pair):
    message = (
        r"route: got suffix, which this model does not have: the engine has no form for GPTJ.*\. Use route=hooks\."
    )
    with pytest.raises(ValueError, match=message):
        activation_patching(small("gptj"), pair, route="suffix")
    with contrast(small("gpt2"), pair, route="hooks") as question:
        assert (question.backend.route, question.backend.reason) == ("hooks", "asked for")


def test_bfloat16_whose_rounding_hides_a_wrong_route_goes_the_plain_way(checkpoint, pair):
    with contrast(load_model(str(checkpoint("gpt2")), dtype="bfloat16"), pair) as question:
        assert question.backend.route == "hooks"


def test_weights_that_do_not_give_what_the_model_gives_are_not_used(small, pair):
    model = small("gpt2")
    with contrast(model, pair) as question:
        # As in models that cap their logits: something follows the blocks that is in no weight.
        handle = model.unembed.hook_out.add_hook(lambda logits, hook: 3 * torch.tanh(logits / 3))
        try:
            others = question.corrupted.activations
            blind = Custom(lambda logits, pair: 0 * logits[:, 0])
            for readout in (question.readout, replace(question.readout, metrics=(blind,))):
                why = choose_backend(model, readout, question.clean, others, question.first).reason
                assert re.fullmatch(r"its weights alone give F off by [\d.]+ logits", why)
        finally:
            handle.hook.remove()
            model.unembed.hook_out.fwd_hooks.remove(handle)


def test_weights_that_are_wrong_at_any_one_site_are_not_used(small, pair, monkeypatch):
    function = Suffix.function
    with contrast(small("gpt2"), pair, sites=("heads", "mlp_out", "neurons")) as question:
        asked = question.readout, question.clean, question.corrupted.activations, question.first
        for wrong in question.clean.activations:
            off = {wrong: 1.0}

            def shifted(engine, site, layer, off=off):
                return lambda rows: function(engine, site, layer)(rows) + off.get(site, 0.0)

            monkeypatch.setattr(Suffix, "function", shifted)
            why = choose_backend(question.model, *asked).reason
            assert why == "its weights alone give F off by 1 logits", wrong


def test_work_starts_at_the_first_position_that_changes(small, pair):
    other = Baseline("prompt", prompt=pair.clean.replace("of milk", "of cat"))
    for options, positions in (
        ({}, 7),  # "Mary" / "John" stands 7 tokens before the end
        ({"direction": "denoising"}, 7),
        ({"baseline": "zero"}, 17),
        ({"baseline": other}, 2),  # "cat to"
    ):
        with contrast(small(), pair, **options) as question:
            assert question.clean.tokens.shape == (1, 17)
            for site in SITES:
                start, end = question.ends(site, 0)
                assert start.shape == end.shape
                assert start.shape[:2] == (1, positions)
                assert torch.equal(start, question.base.activations[site][0][:, -positions:])


@pytest.mark.parametrize("route", ["suffix", "hooks"])
@pytest.mark.parametrize("site", SITES)
def test_rows_are_independent_and_ordered(small, pair, site, route):
    with contrast(small("gpt2"), pair, route=route) as question, torch.no_grad():
        start, end = question.ends(site, 1)
        rows = torch.stack([start, end, (start + end) / 2], 1)
        together = question.function(site, 1)(rows)
        alone = torch.cat([question.function(site, 1)(rows[:, [row]]) for row in range(3)], 1)
    assert together.shape == (1, 3)
    torch.testing.assert_close(together, alone, atol=1e-13, rtol=0)
    torch.testing.assert_close(together[:, 0], question.clean.logit_diff, atol=1e-12, rtol=0)
    assert len(set(together[0].tolist())) == 3


@pytest.mark.parametrize("site", SITES)
def test_gradients_are_those_of_finite_differences(small, pair, site):
    with contrast(small("gpt2"), pair) as question:
        start, end = (ends[:, None] for ends in question.ends(site, 0))
        function = question.function(site, 0)
        leaf = start.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(leaf).sum(), leaf)
        step = 1e-5 * (end - start)
        with torch.no_grad():
            slope = (function(start + step) - function(start - step)) / 2e-5
    assert ((end - start) * gradient).sum().item() == pytest.approx(slope.item(), rel=1e-6)


def test_a_replaced_hook_is_gone_after_an_error_and_others_stay(small):
    model, name = small("gpt2"), "blocks.0.attn.hook_z"
    point = model.hook_dict[name]
    mine = point.add_hook(lambda activation, hook: None)
    try:
        with pytest.raises(KeyError), edit_hooks(model, {name: lambda _: torch.zeros(1)}):
            assert len(point.fwd_hooks) == 2
            raise KeyError
        assert point.fwd_hooks == [mine]
        assert len(point._forward_hooks) == 1
    finally:
        mine.hook.remove()
        point.fwd_hooks.remove(mine)
