"""Slow and obvious versions of each method on plain Hugging Face modules; nothing of igap or TransformerLens runs here.

A component is a slice of what a block's projection back to the residual stream reads: a head is d_head columns of the
attention's output projection's input, a neuron one column of the MLP's down projection's.
"""

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._C import TensorBase

_PROJECTIONS = {
    "heads": re.compile(r"\.\d+\.[a-z_.]*att(n|ention)[a-z_.]*\.(o_proj|out_proj|c_proj|dense|Wo)$"),
    "neurons": re.compile(r"\.\d+\.((mlp|ffn)\.)?(down_proj|c_proj|fc_out|fc2|dense_4h_to_h|Wo)$"),
}


class Plain:
    """A prompt pair on a model of transformers: two rows of tokens of one length, and the metric's two tokens."""

    def __init__(self, model: Any, clean: Tensor, corrupted: Tensor, answer: int, distractor: int) -> None:
        self.model, self.answer, self.distractor = model, answer, distractor
        self.tokens = {"clean": clean, "corrupted": corrupted}
        self.n_heads: int = model.config.num_attention_heads

    def projections(self, site: str) -> list[nn.Module]:
        """The modules that read the site's activations, one a layer."""
        named = [m for name, m in self.model.named_modules() if _PROJECTIONS[site].search(name)]
        assert len(named) == self.model.config.num_hidden_layers
        return named

    def f(self, run: str = "clean", n_rows: int = 1) -> Tensor:
        """F of a run, `[row]`; all rows are alike unless a projection is given others."""
        logits = self.model(self.tokens[run].expand(n_rows, -1)).logits[:, -1]
        difference: Tensor = logits[:, self.answer] - logits[:, self.distractor]
        return difference

    def activations(self, site: str, run: str) -> list[Tensor]:
        """What each layer's projection reads, `[pos, width]`."""
        read: list[Tensor] = []
        handles = [
            module.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].flatten(0, -2)))
            for module in self.projections(site)
        ]
        with torch.no_grad():
            self.f(run)
        for handle in handles:
            handle.remove()
        return read

    def effects(self, site: str, n_steps: int) -> tuple[Tensor, Tensor]:
        """Activation patching and Integrated Gradients (joint, Gauss-Legendre), `[layer, component]`, in logits."""
        patching, gradients = [], []
        ends = (self.activations(site, run) for run in ("clean", "corrupted"))
        for module, start, end in zip(self.projections(site), *ends, strict=True):
            by_component = start.shape[1] // self._width(site, start)
            patching.append(self._patching(module, start, end, by_component))
            gradients.append(self._gradients(module, start, end, by_component, n_steps))
        return torch.stack(patching), torch.stack(gradients)

    def _width(self, site: str, activation: Tensor) -> int:
        return self.n_heads if site == "heads" else activation.shape[1]

    @torch.no_grad()
    def _patching(self, module: nn.Module, start: Tensor, end: Tensor, size: int) -> Tensor:
        rows = start.repeat(start.shape[1] // size, 1, 1)
        for index, row in enumerate(rows):
            columns = slice(index * size, (index + 1) * size)
            row[:, columns] = end[:, columns]
        unpatched = self.f()
        with _reads(module, rows):
            return self.f(n_rows=len(rows)) - unpatched

    def _gradients(self, module: nn.Module, start: Tensor, end: Tensor, size: int, n_steps: int) -> Tensor:
        nodes, weights = (torch.tensor(each) / 2 for each in np.polynomial.legendre.leggauss(n_steps))
        points = (start + (nodes + 0.5)[:, None, None] * (end - start)).to(start.dtype).requires_grad_()
        with _reads(module, points):
            (gradient,) = torch.autograd.grad(self.f(n_rows=n_steps).sum(), points)
        mean = (weights[:, None, None] * gradient).sum(0)
        return ((end - start) * mean).sum(0).unflatten(0, (-1, size)).sum(1)


@contextmanager
def _reads(module: nn.Module, rows: Tensor) -> Iterator[None]:
    """A block in which the module reads these rows instead of what the model gives it."""
    handle = module.register_forward_pre_hook(
        lambda _, inputs: rows.reshape(inputs[0].shape)
    )  # some flatten [row, pos]
    try:
        yield
    finally:
        handle.remove()


class Whole:
    """A block in which nothing rounds float64 to float32, as many families' norms, softmax and rotations do."""

    def __enter__(self) -> None:
        self._patch = pytest.MonkeyPatch()
        for owner, name in ((Tensor, "float"), (Tensor, "to"), (Tensor, "softmax"), (nn.functional, "softmax")):
            self._patch.setattr(owner, name, _unrounded(getattr(owner, name)))

    def __exit__(self, *_: object) -> None:
        self._patch.undo()


def _unrounded(function: Any) -> Any:
    """The function, which leaves float64 as it is where it is told to make float32 of it."""

    @functools.wraps(function)
    def call(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if tensor.dtype == torch.float64:
            if function is TensorBase.float:
                return tensor
            args = tuple(torch.float64 if each is torch.float32 else each for each in args)
            if kwargs.get("dtype") is torch.float32:
                kwargs["dtype"] = torch.float64
        return function(tensor, *args, **kwargs)

    return call
