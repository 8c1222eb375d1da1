"""Backward passes that follow other rules than the derivative's; forward the model is what it is, to the last bit.

`Decoder.with_rules` gives the blocks rules, and the engine's own backward pass goes through them. Norms are linear
then, with their denominator held; what else is changed, `Rules` says.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from igap.engine.linear import Activation
from igap.errors import InputError

Norm = Callable[[Tensor], Tensor]

_EPSILONS = ("eps", "variance_epsilon", "epsilon")
_EPSILON = 1e-5
"""torch's own, for norms that do not say theirs (OLMo)."""
_NEAR = 1e-4
"""How near a norm's linear form must come to it, as a share of the largest output: far above float32's rounding."""


@dataclass(frozen=True)
class Rules:
    """What a backward pass does with what is not linear, beside norms."""

    identity: bool = False
    """Whether a nonlinearity f passes the gradient on times f(x) / x, not times its derivative."""
    product: float = 1.0
    """Factor of the gradient that both operands of gate times up get."""
    query_key: float = 1.0
    """Factor of the gradient that queries and keys get, and `value` of that of values."""
    value: float = 1.0
    temperature: float | None = None
    """T of s = softmax(score / T), for the gradient s (g - sum of g s) of scores; None: the derivative."""

    def activation(self, activation: Activation) -> Activation:
        """The nonlinearity."""
        if not self.identity:
            return activation

        def of(x: Tensor) -> Tensor:
            y = activation.function(x).detach()
            return pass_gradient_of(y, torch.where(x == 0, 0.0, y / x.detach()) * x)

        return Activation(of)

    def softmax(self, scores: Tensor, dtype: torch.dtype | None) -> Tensor:
        """Attention patterns."""
        pattern = scores.softmax(-1, dtype=dtype)
        if self.temperature is None:
            return pattern
        return pass_gradient_of(pattern, self.temperature * (scores / self.temperature).softmax(-1, dtype=dtype))


DERIVATIVES = Rules()
"""No rules but the derivative's."""


def pass_gradient_of(value: Tensor, like: Tensor) -> Tensor:
    """This value, with the gradient of the other."""
    return value.detach() + (like - like.detach())


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """The same, which passes on a gradient times this factor."""
    return x if factor == 1 else pass_gradient_of(x, factor * x)


def hold_denominator(norm: Norm) -> Norm:
    """The norm, which passes on the gradient of W (x - mean) / s + b, or W x / s + b, with s held.

    Which of the two it is, and W, are read from what it gives, and tried on each input.
    """

    def normalize(x: Tensor) -> Tensor:
        epsilon = next((float(getattr(norm, name)) for name in _EPSILONS if hasattr(norm, name)), _EPSILON)
        with torch.no_grad():
            y = norm(x)
            probe = torch.ones_like(x[(0,) * (x.ndim - 2)])
            probe[..., 1::2] = -1
            bias = norm(torch.zeros_like(probe))
            given, shifted = norm(probe) - bias, norm(probe + 3) - bias
            centres = bool((shifted - given).abs().max() <= _NEAR * given.abs().max())
            weight = given * _root(probe, epsilon, centres=centres) / _center(probe, centres=centres)
            by = weight / _root(x, epsilon, centres=centres)
            off = (by * _center(x, centres=centres) + bias - y).abs().max()
        if not off <= _NEAR * max(1.0, float(y.abs().max())):
            raise InputError(
                f"methods: got relp or gim with a model whose {type(norm).__name__} is not linear with its denominator "
                "held, wanted layer norms or root-mean-square norms. Leave them out."
            )
        return pass_gradient_of(y, by * _center(x, centres=centres))

    return normalize


def _center(x: Tensor, *, centres: bool) -> Tensor:
    return x - x.mean(-1, keepdim=True) if centres else x


def _root(x: Tensor, epsilon: float, *, centres: bool) -> Tensor:
    return (_center(x, centres=centres).square().mean(-1, keepdim=True) + epsilon).sqrt()
