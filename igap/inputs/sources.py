"""Where the prompt pairs of a run come from: the config's four texts, a file, or the IOI generator.

Needs a tokenizer, because generated names have to be single tokens, and no model.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from igap.config import TEXTS, PromptsConfig
from igap.errors import InputError
from igap.inputs.files import read_pairs
from igap.inputs.ioi import generate_ioi
from igap.inputs.prompts import PromptPair, TokenPair, encode_pair
from igap.inputs.tokenizing import single_tokens
from igap.inputs.words import NAMES


def read_prompt_pairs(prompts: PromptsConfig, tokenizer: Any) -> tuple[PromptPair, ...]:
    """Read or generate the pairs, in order; each knows its name in messages. Raises InputError on the first bad one."""
    if prompts.file is not None:
        return tuple(
            _pair([row[name] for name in TEXTS], prompts, f"{place}: ")
            for place, row in itertools.islice(read_pairs(prompts.file).items(), prompts.limit)
        )
    if prompts.n is None:
        return (_pair([getattr(prompts, name) for name in TEXTS], prompts, "prompts."),)
    names = single_tokens(tokenizer, NAMES)
    if len(names) < 2:
        raise InputError(
            f"prompts.n: got {prompts.n}, but only {len(names)} of the generator's {len(NAMES)} names "
            f"({', '.join(NAMES[:3])}, ...) are single tokens of this model, wanted at least 2. Use prompts.file with "
            "words that the model knows, or another model."
        )
    return tuple(
        _pair([ioi.clean, ioi.corrupted, ioi.answer, ioi.distractor], prompts, f"generated pair {index}: ")
        for index, ioi in enumerate(generate_ioi(prompts.n, prompts.seed, names=names))
    )


def _pair(texts: Sequence[str], prompts: PromptsConfig, place: str) -> PromptPair:
    clean, corrupted, answer, distractor = texts
    return PromptPair(clean, corrupted, answer, distractor, prompts.min_gap, prompts.align, prompts.bos, place)


def encode_pairs(
    prompts: PromptsConfig, pairs: tuple[PromptPair, ...], tokenizer: Any, **known: Any
) -> list[TokenPair]:
    """Tokenise the pairs; `known` are keyword arguments of `encode_pair`. Raises InputError on the first bad one."""
    if prompts.n is None:
        return [encode_pair(pair, tokenizer, **known) for pair in pairs]
    try:
        return [encode_pair(pair, tokenizer, **known) for pair in pairs]
    except InputError as error:
        # The reason alone: prompt and remedy are for prompts that people write.
        reason = str(error).partition(" (in '")[0].partition(". ")[0]
        raise InputError(
            f"prompts.n: got {prompts.n}, whose generated prompts this model cannot take ({reason}). Use prompts.file "
            "with words that the model knows, or another model."
        ) from None


def describe_source(prompts: PromptsConfig, n: int) -> str:
    """Number and source of the pairs: "100 pairs (generated, seed 0)" or "12 pairs (pairs.csv)"."""
    source = f"generated, seed {prompts.seed}" if prompts.file is None else Path(prompts.file).name
    return f"{n} pairs ({source})"
