"""Products with a model's weights, and the activation functions of its MLPs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Activation:
    """A nonlinearity, and its name in oneDNN, which applies it while a product is still in the cache, if it has one."""

    function: Callable[[Tensor], Tensor]
    onednn: tuple[str, str] | None = None


ACTIVATIONS = {
    "gelu_new": Activation(partial(functional.gelu, approximate="tanh"), ("gelu", "tanh")),
    "gelu_pytorch_tanh": Activation(partial(functional.gelu, approximate="tanh"), ("gelu", "tanh")),
    "gelu": Activation(functional.gelu, ("gelu", "none")),
    "relu": Activation(functional.relu, ("relu", "")),
    "relu2": Activation(lambda x: functional.relu(x).square()),
    "tanh": Activation(torch.tanh),
    "silu": Activation(functional.silu, ("swish", "")),
}


class Linear:
    """x W^T + b with frozen weights: W `[d_out, d_in]`, b `[d_out]` or None.

    On the CPU in float32 oneDNN multiplies: torch takes MKL there, which leaves AMD processors at less than half of
    their rate. Results differ by rounding only. W is not packed for it: that is a second copy of the model, a third
    for gradients, and gains 5% in passes of hundreds of rows, less than a call spends on packing.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """The weights are shared, not copied."""
        self.weight = weight.detach()
        self.bias = None if bias is None else bias.detach()
        self._onednn = (
            weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()
        )

    def __call__(self, x: Tensor, activation: Activation | None = None) -> Tensor:
        """The product of `[..., d_in]`, after the activation if there is one."""
        fused = activation is None or activation.onednn is not None
        if self._onednn and fused and not (torch.is_grad_enabled() and x.requires_grad):
            return _multiply(x, self.weight, self.bias, *((activation and activation.onednn) or ()))
        differentiable: Callable[..., Tensor] = _Differentiable.apply
        product = differentiable(x, self) if self._onednn else functional.linear(x, self.weight, self.bias)
        return activation.function(product) if activation else product


class _Differentiable(torch.autograd.Function):
    """x W^T + b with the gradient for x; oneDNN's operator has none of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: Linear) -> Tensor:
        ctx.linear = linear
        return _multiply(x, linear.weight, linear.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _multiply(gradients[0], ctx.linear.weight.T, None), None


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none", variant: str = "") -> Tensor:
    operator = torch.ops.mkldnn._linear_pointwise
    product: Tensor = operator(x.contiguous(), weight, bias, activation, [], variant)
    return product
