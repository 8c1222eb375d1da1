"""The embeddings that a model begins with, as a table: candidates are compared in it, and gradients taken in it."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from igap.errors import InputError


def token_embeddings(model: TransformerBridge, tokens: Int[Tensor, "1 pos"]) -> Float[Tensor, "d_vocab d_model"]:
    """The embedding that the model begins with for each token, before positions are added: W_E, or W_E times a factor.

    Gemma and Granite have such a factor. Raises InputError on a model that does more with them.
    """
    with torch.no_grad():
        begun = model.run_with_cache(tokens, names_filter=["hook_embed"], logits_to_keep=1)[1]["hook_embed"]
    table: Tensor = model.W_E.detach()
    plain = table[tokens]
    factor = (begun * plain).sum() / plain.square().sum()
    rounding = 100 * torch.finfo(plain.dtype).eps * begun.abs().max()
    for scaled in (1.0, factor):
        if (begun - scaled * plain).abs().max() <= rounding:
            return table if scaled == 1.0 else scaled * table
    raise InputError(
        f"model.name: got {model.cfg.model_name}, whose tokens' embeddings are more than rows of a table, wanted a "
        "model of a family that search knows, such as GPT-2, Llama, Qwen or Gemma."
    )
