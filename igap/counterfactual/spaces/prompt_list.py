"""Spaces that are a list of corrupted prompts: one slot, the whole prompt."""

from collections.abc import Sequence
from typing import Any

import torch

from igap.counterfactual.spaces.base import BoundSpace, Slot, Space, bind_space
from igap.counterfactual.spaces.positions import count_leading_tokens, encode
from igap.errors import InputError
from igap.inputs.prompts import PromptPair


def prompt_list_space(pair: PromptPair, prompts: Sequence[str], tokenizer: Any, *, prepend_bos: bool) -> Space:
    """The space of these corrupted prompts: one slot, the whole prompt.

    What has another token length than the clean prompt, or unknown words, is left out and counted; so is a text that
    comes twice. Raises InputError on a space with fewer than two candidates.
    """
    length = len(encode(pair, tokenizer, prepend_bos=prepend_bos))
    options: dict[str, None] = {}
    left_out = {"another token length": 0, "unknown words": 0, "twice": 0}
    for text in prompts:
        try:
            ids = encode(pair, tokenizer, text, prepend_bos=prepend_bos, item="search.space.prompts")
        except InputError:
            left_out["unknown words"] += 1
            continue
        if len(ids) != length:
            left_out["another token length"] += 1
        elif text in options:
            left_out["twice"] += 1
        else:
            options[text] = None
    slot = Slot(
        "prompt", tuple(options), tuple(range(count_leading_tokens(pair, tokenizer, prepend_bos=prepend_bos), length))
    )
    return Space("prompts", (slot,), left_out=left_out).check()


def bind_prompt_list(
    space: Space, pairs: Sequence[PromptPair], tokenizer: Any, *, prepend_bos: bool, device: torch.device | str = "cpu"
) -> BoundSpace:
    """The space for these clean prompts: each candidate is the corrupted prompt of all of them."""
    (slot,) = space.slots
    clean, options = (
        torch.tensor([encode(pairs[0], tokenizer, text, prepend_bos=prepend_bos) for text in texts], device=device)
        for texts in ([pair.clean for pair in pairs], slot.options)
    )
    table = options[None, :, list(slot.positions)].expand(len(pairs), -1, -1)
    return bind_space(space, pairs, clean, [table], lambda _, candidate: slot.options[candidate[0]])
