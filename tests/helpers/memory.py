"""How much memory a call takes at its fullest."""

import re
from collections.abc import Callable
from pathlib import Path

import torch


def peak_gib(device: str, work: Callable[[], object]) -> float:
    """GiB that a call takes on a device beyond what was there before it. On a CPU of Linux alone."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**30
    status = Path("/proc/self/status")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    before = _kib(status.read_text(), "VmRSS")
    work()
    return (_kib(status.read_text(), "VmHWM") - before) / 2**20


def _kib(status: str, name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", status)
    assert found
    return int(found[1])
