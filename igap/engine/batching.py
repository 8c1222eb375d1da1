"""How many rows make one pass: what the memory budget holds, no more than caches gain from, half after running out."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# More rows in a pass gain nothing: weights are reused enough, and on a CPU activations leave the caches.
_MOST_MIB = {"cpu": 100, "cuda": 8192}
_DEFAULT_GIB = 2.0
_GPU_SHARE = 0.5

_recomputed: ContextVar[bool] = ContextVar("recomputed", default=False)

log = logging.getLogger("igap")


@contextmanager
def _recompute(wanted: bool) -> Iterator[None]:
    token = _recomputed.set(wanted)
    try:
        yield
    finally:
        _recomputed.reset(token)


def most_processes() -> int:
    """Processes with a model each that this machine is asked to run side by side: no more than four a core."""
    return 4 * (os.cpu_count() or 1)


def machine_bytes() -> int | None:
    """Bytes of this machine's memory; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return None


def stage(compute: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """What `compute` makes of its inputs; in a pass of `AdaptiveBatch` that recompute, its activations are not kept.

    A backward pass computes them again then: a third more time, and one block's memory instead of all blocks'.
    """
    if not (_recomputed.get() and torch.is_grad_enabled()):
        return compute(*inputs)
    made: Tensor = checkpoint(compute, *inputs, use_reentrant=False, preserve_rng_state=False)
    return made


class AdaptiveBatch:
    """The number of rows of a pass; it halves, once and for all that follows, when memory runs out."""

    def __init__(self, number: int, *, recompute: bool = False) -> None:
        """At least 1. `recompute` where not even one row has room for the activations of all blocks; see `stage`."""
        self.number, self.recompute = number, recompute
        self._told = False

    def each(
        self, compute: Callable[[Tensor], Tensor], items: Tensor, rows_an_item: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(items, what `compute` makes of them), a pass at a time."""
        while len(items):
            now = items[: max(1, self.number // rows_an_item)]
            made = self.attempt(partial(compute, now), len(now) * rows_an_item, smallest=rows_an_item)
            if made is not None:
                yield now, made
                items = items[len(now) :]

    def attempt(self, compute: Callable[[], Tensor], used: int, smallest: int = 1) -> Tensor | None:
        """What `compute` makes, or None when it ran out of memory: then `number` is half of the rows it used."""
        try:
            with _recompute(self.recompute):
                return compute()
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _out_of_memory(error) or used <= smallest:
                raise
        # Outside of the handler, so that the failed pass is no longer held by its traceback.
        self.number = max(1, used // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not self._told:
            self._told = True
            log.warning(
                "out of memory with %d rows a pass; going on with fewer. Set memory_gib lower to start there.", used
            )
        return None


def budget_bytes(device: torch.device, memory_gib: float | None) -> float:
    """The bytes that `memory_gib` allows; None: 2 GiB on a CPU, half of what is free on a GPU."""
    if memory_gib is not None:
        return float(memory_gib * 2**30)
    if device.type == "cuda":
        return float(_GPU_SHARE * torch.cuda.mem_get_info(device)[0])
    return _DEFAULT_GIB * 2**30


def adaptive_batch(
    bytes_a_block: int,
    blocks_kept: int,
    device: torch.device,
    asked: int | None = None,
    memory_gib: float | None = None,
    *,
    recomputes: bool = False,
) -> AdaptiveBatch:
    """As many rows as asked, or as `memory_gib` holds, see `budget_bytes`.

    A row takes `bytes_a_block` in each block, and `blocks_kept` of them are held at once (one, or all for gradients).
    Where that is more than there is for a single row, blocks are computed again instead of held, if the pass
    `recomputes`: goes through `stage`.
    """
    if asked is not None:
        return AdaptiveBatch(asked)
    budget = budget_bytes(device, memory_gib)
    most = _MOST_MIB["cpu" if device.type == "cpu" else "cuda"] * 2**20
    recompute = recomputes and bytes_a_block * blocks_kept > budget
    return AdaptiveBatch(
        max(1, int(min(budget / (1 if recompute else blocks_kept), most) // bytes_a_block)), recompute=recompute
    )


def _out_of_memory(error: BaseException) -> bool:
    # torch has no class of its own for a CPU that runs out.
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or "DefaultCPUAllocator: can't allocate memory" in str(error)
