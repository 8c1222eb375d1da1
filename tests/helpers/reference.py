"""Slow and obvious versions of each method, on TransformerLens' public hooks alone; nothing of igap runs here."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

HOOKS = {"heads": "blocks.{}.attn.hook_z", "neurons": "blocks.{}.mlp.hook_post"}


class Reference:
    """A prompt pair on a model: tokens, activations and metric, computed the plain way."""

    def __init__(self, model: TransformerBridge, clean: str, corrupted: str, answer: str, distractor: str) -> None:
        self.model = model
        self.tokens = {"clean": model.to_tokens(clean), "corrupted": model.to_tokens(corrupted)}
        self.answer, self.distractor = (
            int(model.to_tokens(word, prepend_bos=False)[0, 0]) for word in (answer, distractor)
        )
        with torch.no_grad():
            self.cache = {name: model.run_with_cache(tokens)[1] for name, tokens in self.tokens.items()}

    def metric(self, logits: Tensor) -> Tensor:
        return logits[0, -1, self.answer] - logits[0, -1, self.distractor]

    def f(self, run: str, hook: str | None = None, activation: Tensor | None = None) -> Tensor:
        """F of a run, with one hook point's activation replaced."""
        hooks = [] if hook is None else [(hook, lambda old, hook: activation)]
        return self.metric(self.model.run_with_hooks(self.tokens[run], fwd_hooks=hooks))

    def rows(self, run: str, hook: str, activations: Tensor) -> Tensor:
        """F of each row `[row, pos, ...]`, which one hook point's activation is replaced by: a batch of forwards."""
        tokens = self.tokens[run].expand(len(activations), -1)
        logits = self.model.run_with_hooks(tokens, fwd_hooks=[(hook, lambda old, hook: activations)])
        return torch.stack([self.metric(row) for row in logits.split(1)])

    def width(self, site: str) -> int:
        # Of what is there: TransformerLens' cfg.d_mlp is not OPT's ffn_dim.
        return self.cache["clean"][HOOKS[site].format(0)].shape[2]

    def activation_patching(self, site: str, run: str = "clean", source: str = "corrupted") -> Tensor:
        """One hooked full forward a component: a row of a batch."""
        effects = torch.zeros(self.model.cfg.n_layers, self.width(site), dtype=torch.float64)
        with torch.no_grad():
            unpatched = self.f(run)
            for layer in range(self.model.cfg.n_layers):
                hook = HOOKS[site].format(layer)
                patched = self.cache[run][hook].repeat(self.width(site), *[1] * (self.cache[run][hook].ndim - 1))
                for index, row in enumerate(patched):
                    row[:, index] = self.cache[source][hook][0, :, index]
                effects[layer] = self.rows(run, hook, patched) - unpatched
        return effects

    def integrated_gradients(
        self, site: str, n_steps: int, ends: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Joint path clean -> corrupted (or `ends` by hook name): effects `[layer, component]` and layer deltas.

        A sum over Gauss-Legendre nodes, one forward and one backward pass each: a row of a batch.
        """
        nodes, weights = np.polynomial.legendre.leggauss(n_steps)
        effects, deltas = [], []
        for layer in range(self.model.cfg.n_layers):
            hook = HOOKS[site].format(layer)
            start = self.cache["clean"][hook].clone()
            end = self.cache["corrupted"][hook].clone() if ends is None else ends[hook]
            points = torch.cat([start + node * (end - start) for node in (nodes + 1) / 2]).requires_grad_()
            (gradients,) = torch.autograd.grad(self.rows("clean", hook, points).sum(), points)
            mean = sum(weight * gradient for weight, gradient in zip(weights / 2, gradients[:, None], strict=True))
            attributions = ((end - start) * mean)[0]
            effect = attributions.sum((0, 2)) if site == "heads" else attributions.sum(0)
            with torch.no_grad():
                deltas.append(effect.sum() - (self.f("clean", hook, end) - self.f("clean")))
            effects.append(effect)
        return torch.stack(effects), torch.stack(deltas)

    def grad_drop(self, site: str, run: str = "clean", source: str = "corrupted") -> Tensor:
        """Mean |first-order effect| over the layers whose output is held at its value: one pass each."""
        n_layers = self.model.cfg.n_layers
        total = torch.zeros(n_layers, self.width(site), dtype=torch.float64)
        names = [HOOKS[site].format(layer) for layer in range(n_layers)]
        for held in range(n_layers):
            zeros = [torch.zeros_like(self.cache[run][name]).requires_grad_() for name in names]
            added = [(name, self._plus(zero)) for name, zero in zip(names, zeros, strict=True)]
            constants = [(name, self._constant(run)) for name in self._writers(held)]
            value = self.metric(self.model.run_with_hooks(self.tokens[run], fwd_hooks=[*added, *constants]))
            others = [layer for layer in range(n_layers) if layer != held]  # on its own held output nothing depends
            gradients = torch.autograd.grad(value, [zeros[layer] for layer in others])
            for layer, gradient in zip(others, gradients, strict=True):
                effect = ((self.cache[source][names[layer]] - self.cache[run][names[layer]]) * gradient)[0]
                total[layer] += (effect.sum((0, 2)) if site == "heads" else effect.sum(0)).abs()
        return total / (n_layers - 1)

    def _constant(self, run: str) -> Callable[[Tensor, HookPoint], Tensor]:
        return lambda old, hook: self.cache[run][hook.name]

    @staticmethod
    def _plus(zero: Tensor) -> Callable[[Tensor, HookPoint], Tensor]:
        return lambda old, hook: old + zero

    @staticmethod
    def _writers(layer: int) -> list[str]:
        return [f"blocks.{layer}.attn.hook_out", f"blocks.{layer}.mlp.hook_out"]
