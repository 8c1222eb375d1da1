"""From a space's config to the space, and to the clean prompts that a search may be made on; without a model."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from igap.config import validate_settings
from igap.counterfactual.config import SpaceConfig
from igap.counterfactual.spaces.base import BoundSpace, Space, asked_words
from igap.counterfactual.spaces.prompt_list import bind_prompt_list, prompt_list_space
from igap.counterfactual.spaces.substitution import bind_substitution, substitution_space
from igap.counterfactual.spaces.template import (
    SLOTS,
    bind_template,
    find_template,
    generate_clean_prompts,
    template_space,
)
from igap.errors import InputError, printable
from igap.inputs.files import read_text
from igap.inputs.prompts import PromptPair, encode_pair


@dataclass(frozen=True, eq=False)
class Prepared:
    """A space, and the prompts of its kind that a search may be made on."""

    space: Space
    pairs: tuple[PromptPair, ...]
    """The pair, then others of its template, more of them than are needed: some may turn out below `min_clean`."""
    bind: Callable[[Sequence[PromptPair]], BoundSpace]
    """The space for some of these pairs."""


def prepare(
    pair: PromptPair,
    tokenizer: Any,
    *,
    space: SpaceConfig | Mapping[str, Sequence[str]] | None = None,
    clean_n: int = 8,
    heldout_n: int = 32,
    seed: int = 0,
    prepend_bos: bool = False,
    device: torch.device | str = "cpu",
) -> Prepared:
    """Make the space and its clean prompts, without a model.

    Args:
        pair: the reference pair.
        tokenizer: the model's.
        space: the config of a space, or what each slot of the pair's template offers; None: the default of every slot.
        clean_n: clean prompts of the search.
        heldout_n: further clean prompts, which the search does not see.
        seed: of the other clean prompts.
        prepend_bos: whether the model wants a BOS token before each prompt.
        device: of the tokens.

    Raises:
        InputError: a pair or a space that the search cannot use.
    """
    asked_words(pair)
    tokens = encode_pair(pair, tokenizer, prepend_bos=prepend_bos, n_ctx=None, n_vocab=None)
    if tokens.clean.shape != tokens.corrupted.shape:
        raise InputError(
            f"prompts.corrupted: got {tokens.corrupted.shape[1] - tokens.n_leading} tokens, prompts.clean has "
            f"{tokens.clean.shape[1] - tokens.n_leading} (without the token before every prompt); a search needs "
            "prompts of one length. Reword one of them."
        )
    if not isinstance(space, SpaceConfig):
        slots = {name: tuple(words) for name, words in (SLOTS if space is None else space).items()}
        space = validate_settings(SpaceConfig, {"slots": slots})
    options = {"prepend_bos": prepend_bos}
    if space.kind == "slots":
        made = template_space(space.template, space.slots, pair, tokenizer, max_edits=space.max_edits, **options)
        bind = bind_template
    elif space.kind == "substitute":
        made = substitution_space(pair, space.positions, space.vocabulary, space.max_edits, tokenizer, **options)
        bind = bind_substitution
    else:
        made = prompt_list_space(pair, _read_prompts(space), tokenizer, **options)
        bind = bind_prompt_list
    template = made.template or find_template(pair.clean)
    n = clean_n + heldout_n
    pairs = generate_clean_prompts(pair, template, n if n == 1 else 2 * n, seed, tokenizer, at_least=n)
    bind_pairs = partial(_bind, bind, made, tokenizer, prepend_bos=prepend_bos, device=device)
    bind_pairs(pairs)  # a rule whose word does not fit is refused now
    return Prepared(made, tuple(pairs), bind_pairs)


def _bind(
    bind: Callable[..., BoundSpace], space: Space, tokenizer: Any, pairs: Sequence[PromptPair], **options: Any
) -> BoundSpace:
    return bind(space, pairs, tokenizer, **options)


def _read_prompts(asked: SpaceConfig) -> Sequence[str]:
    """The prompts of the config, or of its file: one a line."""
    if asked.file is None:
        return asked.prompts
    text = read_text(Path(os.path.expanduser(asked.file)), printable(asked.file), item="search.space.file")
    return [line for line in text.splitlines() if line.strip()]
