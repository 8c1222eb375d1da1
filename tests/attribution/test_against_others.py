"""The methods against code we did not write, or wrote as slowly and plainly as possible."""

import captum.attr
import pytest
import torch
from helpers.checkpoints import save_checkpoint
from helpers.reference import HOOKS, Reference
from transformer_lens import patching
from transformer_lens.tools.analysis.attribution_patching import attribution_patch

from igap import activation_patching, attribution_patching, integrated_gradients, load_model
from igap.components import SITES

MODELS = [
    ("gpt2", "processed"),
    ("gpt2", "raw"),
    ("llama", "raw"),
    ("gpt_neox", "processed"),
    ("opt", "processed"),
    ("gptj", "raw"),
]


WIDTH = {"gpt2": "n_inner", "gptj": "n_inner", "opt": "ffn_dim"}
"""What the config calls the number of neurons, where it is not `intermediate_size`."""


@pytest.fixture(params=MODELS, ids=lambda m: "-".join(m), scope="module")
def reference(request, pair, tmp_path_factory):
    """Of 12 neurons a layer, each of which takes a pass."""
    architecture, processing = request.param
    folder = tmp_path_factory.mktemp(architecture)
    save_checkpoint(architecture, 3, folder, **{WIDTH.get(architecture, "intermediate_size"): 12})
    model = load_model(str(folder), processing=processing, dtype="float64")
    return Reference(model, pair.clean, pair.corrupted, pair.answer, pair.distractor)


@pytest.mark.parametrize("site", SITES)
def test_activation_patching_equals_one_hooked_forward_a_component(reference, pair, site):
    for direction, runs in (("noising", ("clean", "corrupted")), ("denoising", ("corrupted", "clean"))):
        found = activation_patching(reference.model, pair, site, direction=direction)
        torch.testing.assert_close(found.effect, reference.activation_patching(site, *runs), atol=1e-12, rtol=0)
    assert found.gap == pytest.approx((reference.f("clean") - reference.f("corrupted")).item())


def test_head_patching_equals_transformer_lens(reference, pair):
    # Their function patches the "clean" cache into the "corrupted" tokens: noising is the two exchanged.
    with torch.no_grad():
        theirs = patching.get_act_patch_attn_head_out_all_pos(
            reference.model, reference.tokens["clean"], reference.cache["corrupted"], reference.metric
        )
        unpatched = reference.f("clean")
    ours = activation_patching(reference.model, pair, "heads")
    # They keep their results in float32.
    torch.testing.assert_close(ours.effect, theirs.double() - unpatched, atol=1e-6, rtol=0)


@pytest.mark.parametrize("site", SITES)
def test_joint_ig_equals_a_plain_loop_over_quadrature_nodes(reference, pair, site):
    effects, deltas = reference.integrated_gradients(site, n_steps=5)
    ours = integrated_gradients(reference.model, pair, site, n_steps=5)
    torch.testing.assert_close(ours.effect, effects, atol=1e-7, rtol=1e-7)  # Captum keeps weights in float32: 6e-8
    torch.testing.assert_close(ours.delta, deltas, atol=1e-7, rtol=0)


@pytest.mark.parametrize("site", SITES)
def test_joint_ig_with_the_zero_baseline_equals_the_plain_loop(reference, pair, site):
    zeros = {
        HOOKS[site].format(layer): torch.zeros_like(reference.cache["clean"][HOOKS[site].format(layer)])
        for layer in range(3)
    }
    effects, _ = reference.integrated_gradients(site, 5, zeros)
    ours = integrated_gradients(reference.model, pair, site, n_steps=5, baseline="zero")
    torch.testing.assert_close(ours.effect, effects, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("site", SITES)
def test_joint_ig_equals_captums_layer_class_used_correctly(small, pair, site):
    # Used correctly: one value a row, so that every step gets its gradient. Captum keeps the run of its `inputs` around
    # the layer and walks from `baselines` to `inputs`: our path backwards, hence the sign.
    model = small("gpt2", "raw")
    reference = Reference(model, pair.clean, pair.corrupted, pair.answer, pair.distractor)
    ours = integrated_gradients(model, pair, site, n_steps=11)

    def f(tokens):
        logits = model(tokens)
        return logits[:, -1, reference.answer] - logits[:, -1, reference.distractor]

    for layer in range(model.cfg.n_layers):
        method = captum.attr.LayerIntegratedGradients(f, model.hook_dict[HOOKS[site].format(layer)])
        theirs = method.attribute(reference.tokens["clean"], reference.tokens["corrupted"], n_steps=11)
        effect = theirs.unflatten(-1, (ours.effect.shape[1], -1)).sum((0, 1, 3))
        torch.testing.assert_close(ours.effect[layer], -effect, atol=1e-7, rtol=0)


def test_attribution_patching_equals_transformer_lens(small, pair):
    for architecture in ("gpt2", "gpt_neox"):
        model = small(architecture, "raw")
        reference = Reference(model, pair.clean, pair.corrupted, pair.answer, pair.distractor)
        # Theirs is denoising, summed per position; noising is the two prompts exchanged.
        for direction, (clean, corrupted) in {
            "denoising": ("clean", "corrupted"),
            "noising": ("corrupted", "clean"),
        }.items():
            theirs = attribution_patch(
                model, reference.tokens[clean], reference.tokens[corrupted], reference.metric
            ).node_scores
            heads = torch.zeros(3, 4, dtype=torch.float64)
            mlps = torch.zeros(3, dtype=torch.float64)
            for node, score in theirs.items():
                if node.kind == "attn_head_out":
                    heads[node.layer, node.head] += score
                elif node.kind == "mlp_out":
                    mlps[node.layer] += score
            ours = attribution_patching(model, pair, "heads", direction=direction)
            torch.testing.assert_close(ours.effect, heads, atol=1e-12, rtol=0)
            # An MLP's output is linear in its neurons: their effects sum to the output's.
            neurons = attribution_patching(model, pair, "neurons", direction=direction)
            torch.testing.assert_close(neurons.effect.sum(1), mlps, atol=1e-12, rtol=0)
