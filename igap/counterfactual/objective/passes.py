"""How many prompts each kind of an evaluator's passes has."""

from dataclasses import dataclass

import torch
from transformer_lens.model_bridge import TransformerBridge

from igap.engine.activations import block_numbers
from igap.engine.batching import AdaptiveBatch, adaptive_batch
from igap.engine.metrics import Readout


@dataclass(frozen=True, eq=False)
class Passes:
    """Prompts in one pass of each kind."""

    patched: AdaptiveBatch
    """From the positions on at which prompts change."""
    gradient: AdaptiveBatch
    """The same, with gradients."""
    whole: AdaptiveBatch
    """Of the whole model."""
    whole_gradient: AdaptiveBatch
    nodes: AdaptiveBatch
    """Positions of prompts that share beginnings; see `SharedPrefixes`."""


def plan_passes(
    model: TransformerBridge,
    n_tokens: int,
    first: int,
    readout: Readout,
    batch_size: int | None,
    memory_gib: float | None,
) -> Passes:
    """As many prompts of this length, which change from `first` on, as fit into the memory allowed, or as are asked."""
    cfg, numbers = model.cfg, block_numbers(model)
    vocabulary = 0 if readout.is_logit_diff else 4 * cfg.d_vocab * readout.n_read
    patched = (n_tokens - first) * numbers + vocabulary
    whole = n_tokens * max(numbers, 3 * cfg.d_vocab)
    kept = n_tokens * (cfg.n_layers * numbers + 4 * cfg.d_vocab)

    def batch(size: int, blocks_kept: int, asked: int | None = batch_size) -> AdaptiveBatch:
        embed: torch.Tensor = model.W_E
        return adaptive_batch(size * embed.element_size(), blocks_kept, embed.device, asked, memory_gib)

    return Passes(
        batch(patched, 1),
        batch(patched, cfg.n_layers),
        batch(whole, 1),
        batch(kept, 1),
        batch(numbers + vocabulary, 1, None),
    )
