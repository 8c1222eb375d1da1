"""The engine's weights: products against torch's own, and which models are read."""

import pytest
import torch
from helpers.checkpoints import save_checkpoint
from torch.nn import functional

from igap import load_model
from igap.engine.decoder import UnknownDecoderError, read
from igap.engine.linear import ACTIVATIONS, Linear


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def dtype(request):
    return request.param


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_products_and_their_gradients_are_torchs(dtype, bias, transposed):
    weight = torch.randn(48, 32, dtype=dtype).T if transposed else torch.randn(32, 48, dtype=dtype)
    shift = torch.randn(32, dtype=dtype) if bias else None
    linear = Linear(weight, shift)
    rows = torch.randn(2, 5, 3, 2 * 48, dtype=dtype)[..., ::2]  # strided, as a slice of a wider tensor is
    ours, theirs = (rows.clone().requires_grad_() for _ in range(2))
    # Sums of 48 products of size 1.
    close = {"atol": 1e-5 if dtype == torch.float32 else 1e-13, "rtol": 0}
    torch.testing.assert_close(linear(rows), functional.linear(rows, weight, shift), **close)
    outer = torch.randn(2, 5, 3, 32, dtype=dtype)
    for x, product in ((ours, linear(ours)), (theirs, functional.linear(theirs, weight, shift))):
        (product.tanh() * outer).sum().backward()
        assert x.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, **close)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_in_the_product_is_the_one_after_it(dtype, name):
    from transformers.activations import ACT2FN

    linear = Linear(torch.randn(32, 48, dtype=dtype), torch.randn(32, dtype=dtype))
    rows = torch.randn(7, 48, dtype=dtype)
    expected = ACT2FN[name](functional.linear(rows, linear.weight, linear.bias))
    close = {"atol": 1e-5 if dtype == torch.float32 else 1e-13, "rtol": 0}
    torch.testing.assert_close(linear(rows, ACTIVATIONS[name]), expected, **close)
    torch.testing.assert_close(linear(rows.requires_grad_(), ACTIVATIONS[name]), expected, **close)


@pytest.mark.parametrize("processing", ["processed", "raw"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_weights_are_the_models_own_and_no_copies(checkpoint, architecture, processing):
    """A model of two billion parameters fits into memory once."""
    model = load_model(str(checkpoint(architecture)), processing=processing)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    for block in read(model).blocks:
        for linear in (block.query, block.key, block.value, block.out, block.gate or block.up, block.up, block.down):
            assert linear.weight.untyped_storage().data_ptr() in own


@pytest.mark.parametrize(
    ("architecture", "settings", "why"),
    [
        ("gpt2", {"reorder_and_upcast_attn": True}, "the engine has no form for its reorder_and_upcast_attn=True"),
        ("gpt2", {"activation_function": "gelu_fast"}, "its activation gelu_fast is none of gelu_new,"),
        ("gptj", {}, "the engine has no form for GPTJForCausalLM"),
    ],
)
def test_what_is_not_known_is_not_guessed(tmp_path, architecture, settings, why):
    save_checkpoint(architecture, 1, tmp_path, **settings)
    with pytest.raises(UnknownDecoderError, match=f"^{why}"):
        read(load_model(str(tmp_path)))


@pytest.mark.parametrize("processing", ["processed", "raw"])
def test_weights_are_those_that_the_model_has_now(checkpoint, processing):
    model = load_model(str(checkpoint("gpt2")), processing=processing)
    rows = torch.randn(3, 32)
    before = read(model).blocks[1].up
    product = before(rows) - before.bias
    with torch.no_grad():
        getattr(model.blocks[1].mlp, "in").weight.mul_(2)
    after = read(model).blocks[1].up
    torch.testing.assert_close(after(rows) - after.bias, 2 * product)
