"""How well a model does a task: is the greedy next token the answer, and by how many logits.

Prompts of one token length share a batch, so that nothing is padded: with left padding and masks OPT and unprocessed
Llama give NaN (TransformerLens 4.3), and a position would mean something else in every row.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from igap.attribution.maps import Progress
from igap.engine.activations import frozen
from igap.errors import InputError
from igap.inputs.labelled_prompts import Prompt
from igap.inputs.prompts import encode_prompt
from igap.inputs.tokenizing import answer_token

N_GENERATED = 3
"""Tokens of the notebook's greedy continuation."""

_NUMBERS_A_BATCH = 2**24  # 64 MiB of the widest activation in float32


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts of one token length."""

    indices: tuple[int, ...]
    """Which prompts, in their order."""
    tokens: Int[Tensor, "prompt pos"]
    answer: Int[Tensor, " prompt"]
    distractor: Int[Tensor, " prompt"] | None
    answers: tuple[str, ...]
    """As texts, without spaces."""


@dataclass(frozen=True, eq=False)
class Performance:
    """What the model did on each prompt, in the prompts' order."""

    correct: Bool[np.ndarray, " prompt"]
    """Whether the token with the largest logit is the answer."""
    logit_diff: Float[np.ndarray, " prompt"] | None
    """logit[answer] - logit[distractor], in logits; None where the prompts have no distractor."""
    generated: Bool[np.ndarray, " prompt"] | None
    """The notebook's criterion: the answer is in the first word of three greedy tokens. Only where asked for."""


@dataclass(frozen=True)
class Encoded:
    """A prompt as token ids of one model."""

    ids: list[int]
    answer: int
    distractor: int | None


Edit = Callable[[Batch], AbstractContextManager[None]]
"""A block in which the model runs changed on a batch."""


def encode_prompts(prompts: Sequence[Prompt], tokenizer: Any, *, item: str, **known: Any) -> list[Encoded]:
    """The prompts as token ids, every condition checked; `known` is what `encode_prompt` takes.

    Raises InputError on the first prompt that cannot be, and on answers and distractors that are not one token, all of
    them counted.
    """
    ids = [
        encode_prompt(tokenizer, prompt.text, item=f"{item}, row {row}", bos=prompt.bos, **known)
        for row, prompt in enumerate(prompts, start=1)
    ]
    tokens: dict[str, list[Any]] = {}
    for name in ("answer", "distractor"):
        words = [getattr(prompt, name) for prompt in prompts]
        found: list[Any] = []
        refused: dict[int, InputError] = {}
        for row, (prompt, word) in enumerate(zip(prompts, words, strict=True), start=1):
            try:
                place = f"Row {row}: {name}"
                found.append(
                    None if word is None else answer_token(tokenizer, place, word, prompt.text, known["n_vocab"])
                )
            except InputError as error:
                refused[row] = error
        if refused:
            bad = list(refused)
            raise InputError(
                f"{item}: got {len(bad)} of {len(words)} {name}s that are not one token of this model (rows "
                f"{', '.join(map(str, bad[:10]))}{', ...' if len(bad) > 10 else ''}; the first is "
                f"{words[bad[0] - 1]!r}), wanted one each. Remove those rows, or use a model that knows the words. "
                f"{refused[bad[0]]}"
            )
        tokens[name] = found
    return [Encoded(*one) for one in zip(ids, tokens["answer"], tokens["distractor"], strict=True)]


def batches(model: TransformerBridge, prompts: Sequence[Prompt], *, batch_size: int | None = None) -> list[Batch]:
    """The prompts in batches of one token length, shortest first. Raises InputError as `encode_prompts` does."""
    cfg, tokenizer = model.cfg, model.tokenizer
    known = {"prepend_bos": bool(cfg.default_prepend_bos), "n_ctx": cfg.n_ctx, "n_vocab": cfg.d_vocab}
    encoded = encode_prompts(prompts, tokenizer, item="prompts", **known)
    device = next(model.parameters()).device
    lengths: dict[int, list[int]] = {}
    for index, one in enumerate(encoded):
        lengths.setdefault(len(one.ids), []).append(index)
    compared = all(prompt.distractor is not None for prompt in prompts)

    def tensor(indices: Sequence[int], name: str) -> Tensor:
        return torch.tensor([getattr(encoded[i], name) for i in indices], device=device)

    found = []
    for length, members in sorted(lengths.items()):
        size = batch_size or max(1, _NUMBERS_A_BATCH // (length * max(cfg.d_mlp or 0, 4 * cfg.d_model)))
        for start in range(0, len(members), size):
            chosen = members[start : start + size]
            found.append(
                Batch(
                    indices=tuple(chosen),
                    tokens=tensor(chosen, "ids"),
                    answer=tensor(chosen, "answer"),
                    distractor=tensor(chosen, "distractor") if compared else None,
                    answers=tuple(prompts[i].answer.strip() for i in chosen),
                )
            )
    return found


def performance(
    model: TransformerBridge,
    made: Sequence[Batch],
    *,
    edit: Edit | None = None,
    generate: bool = False,
    on_progress: Progress | None = None,
) -> Performance:
    """What the model does on these batches, unchanged or as `edit` changes it.

    Raises InputError on NaN or infinite logits.
    """
    n = sum(len(batch.indices) for batch in made)
    correct, generated = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    compared = all(batch.distractor is not None for batch in made)
    difference = np.full(n, np.nan)
    done = 0
    with frozen(model), torch.no_grad():
        for batch in made:
            where, each = list(batch.indices), torch.arange(len(batch.indices), device=batch.tokens.device)
            logits = _logits(model, batch, batch.tokens, edit)
            correct[where] = (logits.argmax(-1) == batch.answer).cpu().numpy()
            if batch.distractor is not None:
                difference[where] = (logits[each, batch.answer] - logits[each, batch.distractor]).double().cpu().numpy()
            if generate:
                generated[where] = _continued(model, batch, logits, edit)
            done += len(where)
            if on_progress:
                on_progress(done, n)
    return Performance(correct, difference if compared else None, generated if generate else None)


def _logits(
    model: TransformerBridge, batch: Batch, tokens: Int[Tensor, "prompt pos"], edit: Edit | None
) -> Float[Tensor, "prompt vocab"]:
    if edit is None:
        logits: Tensor = model(tokens, logits_to_keep=1)[:, -1]
    else:
        with edit(batch if tokens is batch.tokens else _longer(batch, tokens)):
            logits = model(tokens, logits_to_keep=1)[:, -1]
    if not logits.isfinite().all():
        raise InputError(
            "performance: got NaN or infinite logits, wanted finite ones. Check the checkpoint, or use "
            "model.dtype=float32."
        )
    return logits


def _longer(batch: Batch, tokens: Int[Tensor, "prompt pos"]) -> Batch:
    return Batch(batch.indices, tokens, batch.answer, batch.distractor, batch.answers)


def _continued(
    model: TransformerBridge, batch: Batch, logits: Float[Tensor, "prompt vocab"], edit: Edit | None
) -> Bool[np.ndarray, " prompt"]:
    """Whether the answer is in the first word of the greedy continuation; one that is empty has no word."""
    tokens = torch.cat([batch.tokens, logits.argmax(-1, keepdim=True)], 1)
    for _ in range(N_GENERATED - 1):
        following = _logits(model, batch, tokens, edit).argmax(-1, keepdim=True)
        tokens = torch.cat([tokens, following], 1)
    texts = [model.tokenizer.decode(ids) for ids in tokens[:, -N_GENERATED:].tolist()]
    first = [(text.split() or [""])[0] for text in texts]
    return np.array([answer in word for answer, word in zip(batch.answers, first, strict=True)])
