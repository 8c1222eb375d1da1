"""Whether a finished bridge is still the model it was made from: next-token logits of both, on the same tokens.

The bridge wraps the model's own modules and processing edits their weights, so that the model itself runs first.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from igap.components import hook_name
from igap.errors import InputError
from igap.models.families import check_heads

_SHORT = 24
_LONGEST = 600
"""Tokens. A sliding window is passed if it is shorter than this."""
_WINDOWS = ("sliding_window", "window_size", "local_attention", "attention_chunk_size")

_ROUNDINGS = {torch.float32: 100.0, torch.float64: 100.0, torch.bfloat16: 10.0}
"""Largest difference that is rounding, in units of eps sqrt(layers) times the logits' spread, root mean squares.

The logits themselves are rounded once more, by eps of their size, in which what all have in common counts.

A layer adds roundings of the size of eps, and independent ones add up as the square root of their number. Over 60
families, random and both processings, the largest was 10 in float32 and 4.4 in bfloat16, which leaves no more room:
there an unscaled attention has 29, in float32 two million."""


@dataclass(frozen=True, eq=False)
class Reference:
    """What the untouched model says after two prompts that differ in their last token."""

    tokens: Int[Tensor, "prompt pos"]
    logits: Float[Tensor, "prompt vocab"]
    bound: Float[Tensor, " prompt"]
    """Root mean square over the vocabulary of the largest difference that is rounding, in logits."""
    dtype: torch.dtype


def reference(hf_model: Any, n_ctx: int | None, name: str) -> Reference:
    """The model's own next-token logits, on tokens from all over its vocabulary, past a sliding window.

    Raises InputError on a model that looks ahead: one whose logits before the last token depend on it.
    """
    config, embedding = hf_model.config, hf_model.get_input_embeddings()
    windows = [w for field in _WINDOWS if isinstance(w := getattr(config, field, None), int)]
    passed = [w + 8 for w in windows if w + 8 <= _LONGEST]
    length = min([n_ctx or _LONGEST, max([_SHORT, *passed])])
    # A fixed sequence that meets small and large token ids alike, and the same with another token at its end.
    vocabulary = embedding.num_embeddings
    ids = torch.arange(length, device=embedding.weight.device) * 2_654_435_761 % vocabulary
    tokens = torch.stack([ids, torch.cat([ids[:-1], (ids[-1:] + 1) % vocabulary])])
    last_two = {"logits_to_keep": 2} if "logits_to_keep" in inspect.signature(hf_model.forward).parameters else {}
    with torch.no_grad():
        logits = hf_model(input_ids=tokens, use_cache=False, **last_two).logits[:, -2:].cpu().double()
    before, after = logits.unbind(1)
    dtype = embedding.weight.dtype
    eps = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)  # norms and folds are float32 also in float64
    finite = after[:, after.isfinite().all(0)]
    spread = _rms(finite - finite.mean(-1, keepdim=True))
    bound = eps * (_ROUNDINGS[dtype] * config.num_hidden_layers**0.5 * spread + _rms(finite))
    if length > 1 and (_rms(before[:1] - before[1:]) > bound).any():
        raise InputError(
            f"model.name: got {name!r}, whose logits depend on tokens that come later; wanted a causal decoder, which "
            "predicts the next token. Use one such as GPT-2, Llama or Qwen."
        )
    return Reference(tokens, after, bound, dtype)


def check(model: TransformerBridge, wanted: Reference, name: str, processing: str) -> None:
    """Raises InputError where differences between the bridge's logits are not those of the model itself.

    And where its heads are not the model's, which the logits do not show.
    """
    with torch.no_grad():
        point = hook_name("heads", 0)
        output, cache = model.run_with_cache(wanted.tokens, names_filter=[point], logits_to_keep=1)
    if point in cache:
        check_heads(model.original_model.config, cache[point].shape[2], name)
    # Where a model gives infinity or NaN for every token, the run says where it becomes so.
    finite = wanted.logits.isfinite().all(0)
    if not finite.any():
        return
    logits = output[:, -1].cpu().double()[:, finite]
    # One number added to all logits, as centring the unembedding does, changes no difference of two.
    difference = logits - wanted.logits[:, finite]
    size = _rms(difference - difference.mean(-1, keepdim=True))
    if not (size <= wanted.bound).all():
        worst = int((size / wanted.bound).argmax())
        remedy = "Try model.processing=raw, or use" if processing == "processed" else "Use"
        raise InputError(
            f"model.name: got {name!r}, whose logits are others in TransformerLens' bridge ({processing}): they differ "
            f"by {size[worst]:.2g} (root mean square; rounding in {str(wanted.dtype).removeprefix('torch.')} gives at "
            f"most {wanted.bound[worst]:.1g}), so that its numbers would be wrong. {remedy} another model."
        )


def _rms(logits: Float[Tensor, "prompt vocab"]) -> Float[Tensor, " prompt"]:
    return logits.square().mean(-1).sqrt()
