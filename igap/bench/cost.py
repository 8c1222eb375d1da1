"""Cost of a computation: the floating-point operations of its matrix products, as torch counts them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

Made = TypeVar("Made")


class _Counter(TorchDispatchMode):
    """torch's own `FlopCounterMode` without its table by modules, whose hooks `torch.autograd.grad` refuses."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=made)
        return made


def count_operations(compute: Callable[[], Made]) -> tuple[int, Made]:
    """What `compute` costs, and its result."""
    with _Counter() as counter:
        made = compute()
    return counter.total, made
