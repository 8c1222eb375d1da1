"""Cost of a computation: the floating-point operations of its matrix products, as torch counts them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode

Made = TypeVar("Made")


def _linear(x: Tensor, weight: Tensor) -> int:
    return 2 * x.numel() * weight.shape[0]


def _product(x: Tensor, y: Tensor) -> int:
    return 2 * x.numel() * y.shape[-1]


def _attention(query: Tensor, key: Tensor, value: Tensor) -> int:
    return flop_counter.sdpa_flop_count(query.shape, key.shape, value.shape)  # type: ignore[no-any-return]


def _attention_backward(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor) -> int:
    return flop_counter.sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)  # type: ignore[no-any-return]


_COUNTED: dict[Any, tuple[slice, Callable[..., int]]] = {
    torch.ops.aten.mm: (slice(2), _product),
    torch.ops.aten.bmm: (slice(2), _product),
    torch.ops.aten.addmm: (slice(1, 3), _product),
    torch.ops.mkldnn._linear_pointwise: (slice(2), _linear),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (slice(3), _attention),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (slice(4), _attention_backward),
}
"""Operators that torch's own counter is slow with or does not know: the tensors of the product among its arguments, and
its cost."""


class _Counter(TorchDispatchMode):
    """torch's own `FlopCounterMode` without its table by modules, whose hooks `torch.autograd.grad` refuses."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is compiled, and each operator would pass through torch._dynamo

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        operator = func.overloadpacket
        if operator in _COUNTED:
            factors, count = _COUNTED[operator]
            self.total += count(*args[factors])
        elif operator in flop_counter.flop_registry:
            self.total += flop_counter.flop_registry[operator](*args, **(kwargs or {}), out_val=made)
        return made


def count_operations(compute: Callable[[], Made]) -> tuple[int, Made]:
    """What `compute` costs, and its result."""
    with _Counter() as counter:
        made = compute()
    return counter.total, made
