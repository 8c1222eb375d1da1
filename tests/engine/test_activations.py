import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from igap import activation_patching, integrated_gradients, load_model
from igap.engine.activations import borrow, record
from igap.engine.open_pairs import contrast
from igap.inputs.prompts import tokenize


def state(model):
    """Everything about a model that a method could leave changed."""
    return {
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "hooks": {name: (len(p.fwd_hooks), len(p.bwd_hooks), len(p._forward_hooks)) for name, p in
                  model.hook_dict.items()},
        "grads": [(p.requires_grad, p.grad is None) for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "logits": model(model.to_tokens("After John and Mary went")).detach(),
    }  # fmt: skip


def assert_unchanged(before, after):
    for name, value in before["weights"].items():
        assert torch.equal(value, after["weights"][name]), name
    assert torch.equal(before["logits"], after["logits"])
    for key in ("hooks", "grads", "modes"):
        assert before[key] == after[key], key


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_borrowed_model_comes_back_unchanged(checkpoint, pair, architecture):
    model = load_model(str(checkpoint(architecture)), dtype="float64")
    next(model.parameters()).requires_grad_(False)  # a mixture of flags must come back as the mixture it was
    before = state(model)
    integrated_gradients(model, pair, "heads", n_steps=2, baseline="zero_input")
    activation_patching(model, pair, "neurons")
    assert_unchanged(before, state(model))


def test_a_borrowed_model_comes_back_unchanged_after_an_error(checkpoint, pair):
    model = load_model(str(checkpoint("gpt2")), dtype="float64")
    before = state(model)
    with pytest.raises(RuntimeError), contrast(model, pair) as question:
        question.function("heads", 1)(torch.zeros(1, 2, 3, 1, 1, dtype=torch.float64))  # no such shape of z
    assert_unchanged(before, state(model))


def test_a_model_in_training_mode_is_measured_in_evaluation_mode(checkpoint, pair):
    model = load_model(str(checkpoint("gpt2")), dtype="float64")
    expected = activation_patching(model, pair, "heads").effect
    model.train()  # GPT-2 has dropout
    assert torch.equal(activation_patching(model, pair, "heads").effect, expected)
    assert model.training


def test_methods_work_where_gradients_are_switched_off(small, pair):
    expected = integrated_gradients(small(), pair, "heads", n_steps=3).effect
    with torch.no_grad():
        found = integrated_gradients(small(), pair, "heads", n_steps=3).effect
        assert not torch.is_grad_enabled()
    assert torch.equal(found, expected)


def test_a_run_holds_the_models_own_activations(small, pair):
    model = small("gpt_neox")
    tokens = tokenize(model, pair)
    logits, cache = model.run_with_cache(tokens.clean)
    run = record(model, tokens.clean, [tokens], name="clean")
    for layer in range(3):
        assert torch.equal(run.activations["heads"][layer], cache[f"blocks.{layer}.attn.hook_z"])
        assert torch.equal(run.activations["neurons"][layer], cache[f"blocks.{layer}.mlp.hook_post"])
        assert torch.equal(run.residual[layer], cache[f"blocks.{layer}.hook_resid_pre"])
    assert run.logit_diff.item() == pytest.approx(
        (logits[0, -1, tokens.answer] - logits[0, -1, tokens.distractor]).item()
    )


def test_left_padding_changes_nothing_of_the_metric(small, pair):
    """A prompt is run alone and unpadded; the same prompt, padded on the left and masked, has the same F."""
    model = small("gpt2")
    tokens = tokenize(model, pair)
    run = record(model, tokens.clean, [tokens], name="clean")
    hf = model.original_model
    width = tokens.clean.shape[1]
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), tokens.clean], 1)
    mask = torch.tensor([[0] * 3 + [1] * width])
    positions = torch.tensor([[0] * 3 + list(range(width))])
    with torch.no_grad():
        logits = hf(input_ids=padded, attention_mask=mask, position_ids=positions).logits[0, -1]
    assert run.logit_diff.item() == pytest.approx((logits[tokens.answer] - logits[tokens.distractor]).item(), abs=1e-9)


@pytest.mark.parametrize("layer", [0, 2])
def test_infinite_activations_are_refused_by_layer(checkpoint, pair, layer):
    model = load_model(str(checkpoint("gpt2")), dtype="float64")
    with torch.no_grad():
        getattr(model.blocks[layer].mlp, "in").weight.fill_(float("inf"))
    tokens = tokenize(model, pair)
    with (
        borrow(model),
        pytest.raises(ValueError, match=rf"clean run: got NaN or infinity in layer {layer} \(neurons\)"),
    ):
        record(model, tokens.clean, [tokens], name="clean")


def test_a_bridge_that_wraps_no_hugging_face_model_is_attributed_to_by_hooks(ioi_mini, pair):
    settings = {"d_model": 8, "n_layers": 1, "n_heads": 2, "d_head": 4, "d_mlp": 12, "n_ctx": 24, "act_fn": "gelu"}
    settings["d_vocab"] = ioi_mini.cfg.d_vocab
    model = TransformerBridge.boot_native(settings, tokenizer=ioi_mini.tokenizer)
    assert activation_patching(model, pair, "neurons").effect.shape == (1, 12)
    with pytest.raises(ValueError, match=r"route: got suffix, .*: the engine has no form for TransformerLensNative"):
        activation_patching(model, pair, "neurons", route="suffix")
