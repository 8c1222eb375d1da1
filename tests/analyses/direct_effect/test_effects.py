"""Direct effects: against the model written out by hand with later layers frozen, identities, and what is refused."""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import handmade
from helpers.by_hand import ByHand
from helpers.checkpoints import save_beside, save_checkpoint
from helpers.families import FAMILIES, Sizes, save

from igap import InputError, PromptPair, direct_effect, load_model
from igap.attribution.activation_patching import patch_components
from igap.engine.activations import written_hook
from igap.engine.open_pairs import contrast
from igap.inputs.prompts import tokenize

EXACT = 1e-10
"""float64, sums of a few thousand terms of size 1."""

PAIR = PromptPair("After John and Mary gave Mary a", "After Tom and Mary gave John a", " John", " Mary", min_gap=0.0)
WRITERS = ("heads", "neurons", "attn_out", "mlp_out")
CASES = {
    "gpt2": ("gpt2", {"n_inner": 12}),
    "grouped": ("llama", {"intermediate_size": 12, "num_key_value_heads": 2}),
    "parallel": ("gpt_neox", {"intermediate_size": 12}),
    "sequential": ("gpt_neox", {"intermediate_size": 12, "use_parallel_residual": False}),
}


pytestmark = pytest.mark.usefixtures("whole_in_float64")


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A model of igap, the same weights on plain modules, and which case it is."""
    architecture, settings = CASES[request.param]
    return *save_beside(tmp_path_factory.mktemp(request.param), architecture, **settings), request.param


def frozen(hand, run, here, ends, site, layer):
    """How F changes with each component patched, a row each, and all that reads it but the final norm as in the run."""
    width = run[site, layer].shape[2]

    def edit(where, at, activation):
        if (where, at) == (site, layer):
            activation = activation.clone()
            for index in range(width):
                activation[index, :, index] = ends[site, layer][0, :, index]
            return activation
        later = at > layer or (at == layer and where == "mlp_out" and site in ("heads", "attn_out"))
        return run[where, at].expand_as(activation) if later and where in ("attn_out", "mlp_out") else activation

    with torch.no_grad():
        return (hand.f(here.expand(width, -1), edit) - hand.f(here)).tolist()


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_a_direct_effect_is_a_forward_with_all_later_layers_frozen(case, direction):
    model, plain, _ = case
    tokens = tokenize(model, PAIR)
    hand = ByHand(plain, tokens.answer, tokens.distractor)
    here, there = (tokens.clean, tokens.corrupted) if direction == "noising" else (tokens.corrupted, tokens.clean)
    run, ends = hand.read(here), hand.read(there)
    with contrast(model, PAIR, sites=WRITERS, direction=direction) as question:
        totals = {site: patch_components(question, site)[0].effect for site in WRITERS}
    for site, total in totals.items():
        found = direct_effect(model, PAIR, site, direction=direction)
        expected = [frozen(hand, run, here, ends, site, layer) for layer in range(3)]
        np.testing.assert_allclose(found.direct.effect, expected, rtol=0, atol=EXACT)
        assert np.abs(expected).min(axis=1).max() > 1e-5
        assert torch.equal(found.total.effect, total)
        np.testing.assert_allclose(found.indirect(), (total - found.direct.effect).flatten(), atol=1e-15)
        assert found.direct.score.flatten()[0] == found.direct.effect.flatten()[0] / found.direct.gap


@pytest.mark.parametrize("metric", ["logit_diff", "prob", "kl"])
def test_in_the_last_layer_what_nothing_reads_is_direct(case, metric):
    """Neurons and MLPs of the last layer always, heads and attention where the MLP beside them reads the same input."""
    model, _, name = case
    for site in {"logit_diff": WRITERS, "prob": ("heads", "mlp_out"), "kl": ("neurons", "attn_out")}[metric]:
        found = direct_effect(model, PAIR, site, metric=metric)
        last = found.indirect().reshape(found.total.effect.shape)[-1]
        if site in ("neurons", "mlp_out") or name == "parallel":
            np.testing.assert_allclose(last, 0, atol=1e-12)
        else:
            assert np.abs(last).max() > 1e-5
        assert found.direct.effect[-1].abs().max() > 1e-7
        assert np.abs(found.indirect()).max() > 1e-6
        assert (found.direct.metric, found.direct.direction) == (metric, "noising")


def test_in_the_last_layer_a_head_s_rest_goes_through_its_own_mlp(tmp_path):
    """Where the final norm is linear: total - direct = F(the MLP writes what it makes of the patched head) - F."""
    model = handmade.gates(tmp_path)
    found = direct_effect(model, handmade.PAIR)
    with contrast(model, handmade.PAIR, sites=("heads", "mlp_out")) as question, torch.no_grad():
        for head in range(6):
            patched = question.with_patched({("heads", 0): (head,)}).base.activations["mlp_out"][0]
            through = question.function("mlp_out", 0)(patched[:, None, question.first :]) - question.clean.logit_diff
            assert found.indirect()[head] == pytest.approx(through.item(), abs=1e-9)
    assert found.indirect() == pytest.approx([-1, -1, 0, 0, 0, 0], abs=1e-9)
    assert found.direct.effect[0].tolist() == pytest.approx([0, 0, 0, 0, -0.5, -0.5], abs=1e-9)


def test_in_one_layer_of_attention_alone_all_is_direct(tmp_path):
    save_checkpoint("gpt2", 1, tmp_path)
    model = load_model(str(tmp_path), processing="raw", dtype="float64")
    with torch.no_grad():
        model.original_model.transformer.h[0].mlp.c_proj.weight.zero_()
    found = direct_effect(model, PAIR)
    assert found.direct.effect.abs().max() > 1e-3
    torch.testing.assert_close(found.direct.effect, found.total.effect, rtol=0, atol=1e-12)


def test_on_a_model_made_by_hand_only_what_the_logits_read_is_direct(tmp_path):
    """0.0 writes 2 straight to the logits, and its backup takes 1 back."""
    found = direct_effect(handmade.backup(tmp_path), handmade.PAIR)
    assert found.direct.effect.flatten().tolist() == pytest.approx([-2, -0.5, 0, -0.25], abs=1e-9)
    assert found.indirect() == pytest.approx([1, 0, 0, 0], abs=1e-9)


@pytest.mark.parametrize("name", ["Gemma 2", "OLMo 2", "Granite", "Cohere"])
def test_norms_and_factors_of_what_a_layer_writes_are_on_the_path(name, tmp_path):
    """In families that have them: against TransformerLens' hooks, with what later layers write frozen, in float32."""
    save(FAMILIES[name], tmp_path, Sizes())
    model = load_model(str(tmp_path), processing="raw", dtype="float32")
    tokens = tokenize(model, PAIR)
    for site in ("heads", "neurons"):
        found = direct_effect(model, PAIR, site)
        _, clean = model.run_with_cache(tokens.clean)
        _, corrupted = model.run_with_cache(tokens.corrupted)

        def f(hooks, tokens=tokens):
            logits = model.run_with_hooks(tokens.clean, fwd_hooks=hooks)[0, -1]
            return (logits[tokens.answer] - logits[tokens.distractor]).item()

        for layer in range(3):
            kept = [written_hook("attn_out", after) for after in range(layer + 1, 3)]
            kept += [written_hook("mlp_out", after) for after in range(layer + (site == "neurons"), 3)]
            freeze = [(hook, lambda _, hook, clean=clean: clean[hook.name]) for hook in kept]
            for index in (0, 2):

                def patch(activation, hook, index=index, corrupted=corrupted):
                    activation = activation.clone()
                    activation[:, :, index] = corrupted[hook.name][:, :, index]
                    return activation

                expected = f([(written_hook(site, layer), patch), *freeze]) - f([])
                assert found.direct.effect[layer, index].item() == pytest.approx(expected, abs=2e-5)
        assert found.direct.effect.abs().max() > 1e-3


def test_several_pairs_are_a_mean_and_a_last_position_that_stays_has_no_direct_effect(small):
    pairs = [PAIR, PromptPair("Then Anna and Tom gave Tom it", "Then John and Tom gave Anna dog", " Tom", " it",
                              min_gap=0.0)]  # fmt: skip
    model = small()
    each = [direct_effect(model, pair).direct.effect for pair in pairs]
    torch.testing.assert_close(direct_effect(model, pairs).direct.effect, (each[0] + each[1]) / 2, rtol=0, atol=1e-12)
    still = direct_effect(small("gpt2"), PAIR, "neurons")
    with contrast(model, PAIR) as question:
        ends = [torch.stack([question.ends("neurons", layer)[i][0, -1] for layer in range(3)]) for i in (0, 1)]
    assert ((still.direct.effect == 0) >= (ends[0] == ends[1])).all()


def test_summary_sentences_table_and_repr(tmp_path):
    found = direct_effect(handmade.backup(tmp_path), handmade.PAIR)
    assert found.summary() == {
        "direct_effect/direct/mean_abs": pytest.approx(2.75 / 4, abs=1e-9),
        "direct_effect/direct/first": "0.0",
        "direct_effect/direct/first/effect": pytest.approx(-2, abs=1e-9),
        "direct_effect/indirect/mean_abs": pytest.approx(0.25, abs=1e-9),
        "direct_effect/indirect/first": "0.0",
        "direct_effect/indirect/first/effect": pytest.approx(1, abs=1e-9),
    }
    assert found.sentences()[0].startswith(
        "heads, largest direct effects of the total, scores: 0.0 -0.727 of -0.364, 0.1"
    )
    assert repr(found) == f"DirectEffects({'; '.join(found.sentences())})"
    assert "0.0: -0.7273" in found._repr_html_()
    table = found.tables()["direct_effect"]
    assert list(table) == ["name", "direct", "total", "indirect", "effect_direct", "effect_total", "effect_indirect"]
    pd.testing.assert_series_equal(table["indirect"], table["total"] - table["direct"], check_names=False)


def test_models_that_the_engine_has_no_form_for_are_refused_in_a_line(small, tmp_path):
    with pytest.raises(
        InputError, match=r"whose direct effects cannot be computed: the engine has no form for GPTJForCaus"
    ):
        direct_effect(small("gptj", "raw"), PAIR)
    save(FAMILIES["OPT, norms after (350m)"], tmp_path, Sizes())
    model = load_model(str(tmp_path), processing="raw")
    with pytest.raises(
        InputError, match=r"its blocks norm the residual stream after they add to it\. Use activation_p"
    ):
        direct_effect(model, PAIR)
