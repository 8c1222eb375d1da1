"""Agreement of a bridge with the Hugging Face model it wraps: next-token logits of both, on the same tokens.

The bridge wraps the model's own modules and processing edits their weights, so the model itself runs first.
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
"""Tokens of the compared prompts; they are longer than a sliding window if the window is shorter than this."""
_WINDOWS = ("sliding_window", "window_size", "local_attention", "attention_chunk_size")

_ROUNDINGS = {torch.float32: 100.0, torch.float64: 100.0, torch.bfloat16: 10.0}
"""Largest difference that counts as rounding, in units of eps sqrt(layers) times the logits' standard deviation.

Each layer adds a rounding of about eps, and independent roundings add up as the square root of their number. The logits
themselves are rounded once more, by eps times their root mean square. Over 60 families with random weights and both
processings, the largest difference was 10 of these units in float32 and 4.4 in bfloat16. A real fault is larger: an
unscaled attention gives two million in float32 and 29 in bfloat16."""


@dataclass(frozen=True, eq=False)
class Reference:
    """Next-token logits of the untouched model after two prompts that differ in their last token."""

    tokens: Int[Tensor, "prompt pos"]
    logits: Float[Tensor, "prompt vocab"]
    bound: Float[Tensor, " prompt"]
    """Largest root mean square over the vocabulary, in logits, that counts as rounding."""
    dtype: torch.dtype


def reference(hf_model: Any, n_ctx: int | None, name: str) -> Reference:
    """The model's own next-token logits, on tokens from its whole vocabulary, beyond its sliding window.

    Raises InputError on a model that looks ahead, whose logits before the last token depend on that token.
    """
    config, embedding = hf_model.config, hf_model.get_input_embeddings()
    windows = [w for field in _WINDOWS if isinstance(w := getattr(config, field, None), int)]
    passed = [w + 8 for w in windows if w + 8 <= _LONGEST]
    length = min([n_ctx or _LONGEST, max([_SHORT, *passed])])
    # A fixed sequence of small and large token ids, and the same sequence with another last token.
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
    """Raises InputError if logit differences of the bridge are not those of the model itself.

    It raises as well if the bridge's heads are not the model's, which the logits do not show.
    """
    with torch.no_grad():
        point = hook_name("heads", 0)
        output, cache = model.run_with_cache(wanted.tokens, names_filter=[point], logits_to_keep=1)
    if point in cache:
        check_heads(model.original_model.config, cache[point].shape[2], name)
    # If every logit is infinite or NaN, the run itself says in which layer that begins.
    finite = wanted.logits.isfinite().all(0)
    if not finite.any():
        return
    logits = output[:, -1].cpu().double()[:, finite]
    # Centring the unembedding adds one number to all logits, which changes no difference of two.
    difference = logits - wanted.logits[:, finite]
    size = _rms(difference - difference.mean(-1, keepdim=True))
    if not (size <= wanted.bound).all():
        worst = int((size / wanted.bound).argmax())
        remedy = "Try model.processing=raw, or use" if processing == "processed" else "Use"
        raise InputError(
            f"model.name: got {name!r}, whose logits change in TransformerLens' bridge ({processing}): they differ "
            f"by {size[worst]:.2g} (root mean square; rounding in {str(wanted.dtype).removeprefix('torch.')} gives at "
            f"most {wanted.bound[worst]:.1g}), so that its numbers would be wrong. {remedy} another model."
        )


def _rms(logits: Float[Tensor, "prompt vocab"]) -> Float[Tensor, " prompt"]:
    return logits.square().mean(-1).sqrt()
