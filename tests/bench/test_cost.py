"""Costs are those of the same products written out, whichever operator of the CPU does them."""

import torch
from torch.nn import functional

from igap.bench.cost import count_operations
from igap.engine.linear import ACTIVATIONS, Linear


def test_products_and_attention_cost_what_they_do_written_out():
    query, key, value = torch.randn(3, 2, 4, 5, 8)
    written, _ = count_operations(lambda: query @ key.mT @ value)
    assert written == 2 * 2 * 2 * 4 * 5 * 5 * 8
    fused, _ = count_operations(lambda: functional.scaled_dot_product_attention(query, key, value))
    assert fused == 2 * 2 * 2 * 4 * 5 * 5 * 8
    for dtype in (torch.float32, torch.float64):
        linear, x = Linear(torch.randn(6, 8, dtype=dtype), None), torch.randn(2, 5, 8, dtype=dtype)
        for activation in (None, ACTIVATIONS["relu"]):
            assert count_operations(lambda linear=linear, x=x, act=activation: linear(x, act))[0] == 2 * 10 * 8 * 6


def test_gradients_cost_as_well():
    query, key, value = torch.randn(3, 2, 4, 5, 8).requires_grad_().unbind()
    out = functional.scaled_dot_product_attention(query, key, value)
    cost, _ = count_operations(lambda: torch.autograd.grad(out.sum(), (query, key, value)))
    assert cost == 5 * 2 * 2 * 4 * 5 * 5 * 8, "scores once more, and four gradients"
    linear, x = Linear(torch.randn(6, 8), None), torch.randn(5, 8, requires_grad=True)
    product = linear(x)
    assert count_operations(lambda: torch.autograd.grad(product.sum(), x))[0] == 2 * 5 * 8 * 6
