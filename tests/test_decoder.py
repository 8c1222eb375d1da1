"""The engine's weights: products against torch's own, and which models are read."""

import pytest
import torch
from conftest import save_checkpoint
from torch.nn import functional

from igap import load_model
from igap.decoder import ACTIVATIONS, Linear, read


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
    part = linear.rows(8, 20)
    torch.testing.assert_close(part(rows), functional.linear(rows, weight, shift)[..., 8:20], **close)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_in_the_product_is_the_one_after_it(dtype, name):
    from transformers.activations import ACT2FN

    linear = Linear(torch.randn(32, 48, dtype=dtype), torch.randn(32, dtype=dtype))
    rows = torch.randn(7, 48, dtype=dtype)
    expected = ACT2FN[name](functional.linear(rows, linear.weight, linear.bias))
    close = {"atol": 1e-5 if dtype == torch.float32 else 1e-13, "rtol": 0}
    torch.testing.assert_close(linear(rows, ACTIVATIONS[name]), expected, **close)
    torch.testing.assert_close(linear(rows.requires_grad_(), ACTIVATIONS[name]), expected, **close)


def test_float32_on_the_cpu_takes_the_packed_weights_and_float64_does_not():
    single, double = (Linear(torch.randn(4, 6, dtype=t), None) for t in (torch.float32, torch.float64))
    for linear in (single, double):
        linear(torch.randn(2, 6, dtype=linear.weight.dtype))
    assert "packed" in vars(single)
    assert "packed" not in vars(double)


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
    assert read(load_model(str(tmp_path))).startswith(why)


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
