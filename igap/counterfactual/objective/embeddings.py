"""The embeddings that a model begins with, as a table: candidates are compared in it, and gradients taken in it."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from igap.counterfactual.spaces.base import BoundSpace, Candidate
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


def scores_of_options(
    bound: BoundSpace,
    embed: Float[Tensor, "d_vocab d_model"],
    candidate: Candidate,
    gradient: Float[Tensor, "corrupted changing d_model"],
) -> list[Float[Tensor, " _option"]]:
    """For every option of every slot, its embeddings less the candidate's, times the gradient; over all prompts.

    `gradient` is of the last positions, as many as there are.
    """
    tokens = bound.tokens([candidate])[:, 0]
    first = tokens.shape[1] - gradient.shape[1]
    scores = []
    for slot, table in zip(bound.space.slots, bound.tables, strict=True):
        where = list(slot.positions)
        here = gradient[:, [position - first for position in where]]
        own = (embed[tokens[:, where]] * here).sum((-1, -2))
        used, at = torch.unique(table, return_inverse=True)  # a word's products once, however many slots offer it
        products = (embed[used] @ here.flatten(0, 1).T).unflatten(1, here.shape[:2])  # [used, corrupted, width]
        corrupted, width = (torch.arange(n, device=here.device) for n in here.shape[:2])
        by_option = products[at, corrupted[:, None, None], width].sum(-1) - own[:, None]  # [corrupted, option]
        scores.append(by_option.sum(0).cpu())
    return scores
