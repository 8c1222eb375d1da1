"""How well a model does a task: is the greedy next token the answer, and by how many logits.

Prompts of one token length share a batch, so that nothing is padded: with left padding and masks OPT and unprocessed
Llama give NaN (TransformerLens 4.3), and a position would mean something else in every row.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from igap.attribution.maps import Progress
from igap.engine.activations import block_numbers, borrow
from igap.engine.batching import AdaptiveBatch, adaptive_batch
from igap.engine.metrics import Custom, Readout, check_custom, read_out
from igap.errors import InputError
from igap.inputs.alignment import Alignment
from igap.inputs.labelled_prompts import Prompt
from igap.inputs.prompts import TokenPair, encode_prompt
from igap.inputs.tokenizing import answer_token
from igap.metrics import METRICS, LogitDiff, Metric

N_GENERATED = 3
"""Tokens of the greedy continuation in which the notebook (see `igap.replication`) looks for the answer."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts of one token length."""

    indices: tuple[int, ...]
    """Each row's place in the list of prompts."""
    tokens: Int[Tensor, "prompt pos"]
    answer: Int[Tensor, " prompt"]
    distractor: Int[Tensor, " prompt"] | None
    answers: tuple[str, ...]
    """The answers as text, without the spaces around them."""
    pairs: tuple[TokenPair, ...] = ()
    """Each prompt as a pair with itself, for positions and metrics; its distractors are none where it has none."""

    def select(self, rows: Sequence[int]) -> "Batch":
        """The batch of some of its prompts."""
        index = list(rows)
        return Batch(
            indices=tuple(self.indices[row] for row in index),
            tokens=self.tokens[index],
            answer=self.answer[index],
            distractor=None if self.distractor is None else self.distractor[index],
            answers=tuple(self.answers[row] for row in index),
            pairs=tuple(self.pairs[row] for row in index) if self.pairs else (),
        )


@dataclass(frozen=True, eq=False)
class PromptOutcomes:
    """What a model did on each prompt, in the prompts' order."""

    correct: Bool[np.ndarray, " prompt"]
    """Whether the token with the largest logit is the answer."""
    logit_diff: Float[np.ndarray, " prompt"] | None
    """logit[answer] - logit[distractor], in logits; None where the prompts have no distractor."""
    generated: Bool[np.ndarray, " prompt"] | None
    """The notebook's criterion: whether the first word of three greedy tokens contains the answer. None: not asked."""
    value: Float[np.ndarray, " prompt"] | None = None
    """F, in its unit; None where it is the logit difference."""


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as token ids of one model; answer and distractor are one token each."""

    ids: list[int]
    answer: int
    distractor: int | None


Logits = Iterator[Float[Tensor, "prompt d_vocab"]]
"""The logits after each prompt of a batch, then after each token that is greedily added to it, without end."""


def encode_prompts(prompts: Sequence[Prompt], tokenizer: Any, *, item: str, **limits: Any) -> list[EncodedPrompt]:
    """The prompts as token ids, all of them checked.

    Args:
        prompts: What to encode.
        tokenizer: The model's.
        item: What the errors name: a file, or a key of the config.
        **limits: What `encode_prompt` takes beside: `prepend_bos`, `n_ctx` and `n_vocab`.

    Raises:
        InputError: On the first invalid prompt, and on answers or distractors that are not one token, which are
            counted.
    """
    places = [prompt.place or f"{item}, row {row}" for row, prompt in enumerate(prompts, start=1)]
    ids = [
        encode_prompt(tokenizer, prompt.text, item=place, bos=prompt.bos, **limits)
        for place, prompt in zip(places, prompts, strict=True)
    ]
    tokens: dict[str, list[Any]] = {}
    for name in ("answer", "distractor"):
        words = [getattr(prompt, name) for prompt in prompts]
        words_as_tokens: list[Any] = []
        refused: dict[int, InputError] = {}
        for row, (prompt, word) in enumerate(zip(prompts, words, strict=True), start=1):
            try:
                place = f"{places[row - 1]}: {name}"
                words_as_tokens.append(
                    None if word is None else answer_token(tokenizer, place, word, prompt.text, limits["n_vocab"])
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
        tokens[name] = words_as_tokens
    return [EncodedPrompt(*each) for each in zip(ids, tokens["answer"], tokens["distractor"], strict=True)]


def batch_by_length(model: TransformerBridge, prompts: Sequence[Prompt]) -> list[Batch]:
    """The prompts in batches, one a token length, shortest first. Raises InputError as `encode_prompts` does."""
    cfg, tokenizer = model.cfg, model.tokenizer
    limits = {"prepend_bos": bool(cfg.default_prepend_bos), "n_ctx": cfg.n_ctx, "n_vocab": cfg.d_vocab}
    encoded = encode_prompts(prompts, tokenizer, item="prompts", **limits)
    device = next(model.parameters()).device
    lengths: dict[int, list[int]] = {}
    for index, prompt in enumerate(encoded):
        lengths.setdefault(len(prompt.ids), []).append(index)
    words = cache(lambda token: tokenizer.decode([token]))
    compared = all(prompt.distractor is not None for prompt in prompts)

    def tensor(indices: Sequence[int], name: str) -> Tensor:
        return torch.tensor([getattr(encoded[i], name) for i in indices], device=device)

    return [
        Batch(
            indices=tuple(indices),
            tokens=tensor(indices, "ids"),
            answer=tensor(indices, "answer"),
            distractor=tensor(indices, "distractor") if compared else None,
            answers=tuple(prompts[i].answer.strip() for i in indices),
            pairs=tuple(as_pair(encoded[i], words, device) for i in indices),
        )
        for _, indices in sorted(lengths.items())
    ]


def as_pair(prompt: EncodedPrompt, word_of: Callable[[int], str], device: str | torch.device = "cpu") -> TokenPair:
    """A prompt as a pair with itself, in which all that positions and metrics ask of a clean prompt is known."""
    tokens, itself = torch.tensor([prompt.ids], device=device), tuple(range(len(prompt.ids)))
    words = tuple(map(word_of, prompt.ids))
    return TokenPair(
        clean=tokens,
        corrupted=tokens,
        alignment=Alignment(itself, itself),
        answers=(prompt.answer,),
        distractors=() if prompt.distractor is None else (prompt.distractor,),
        min_gap=0.0,
        clean_words=words,
        corrupted_words=words,
    )


def batch_rows(
    model: TransformerBridge, batches: Sequence[Batch], batch_size: int | None = None, memory_gib: float | None = None
) -> AdaptiveBatch:
    """How many prompts share a pass: what `memory_gib` holds of the longest, and of what is kept to restart them."""
    cfg = model.cfg
    n_tokens = max(batch.tokens.shape[1] for batch in batches) + N_GENERATED - 1
    working = n_tokens * (block_numbers(model) + 2 * n_tokens * cfg.n_heads)
    working += 2 * cfg.d_vocab
    kept = cfg.n_layers * n_tokens * 6 * cfg.d_model  # residual stream, z, and keys and values of two passes
    weight = next(model.parameters())
    size = working * weight.element_size()
    return adaptive_batch(size, 1 + math.ceil(kept / working), weight.device, batch_size, memory_gib)


def evaluate_accuracy(
    model: TransformerBridge,
    batches: Sequence[Batch],
    *,
    variants: Callable[[Batch], Iterator[Logits]] | None = None,
    n_variants: int = 1,
    generate: bool = False,
    metric: Metric = METRICS["logit_diff"],
    rows: AdaptiveBatch | None = None,
    on_progress: Progress | None = None,
) -> list[PromptOutcomes]:
    """What the model does on each prompt, one entry a variant of the model; of the model itself unless told otherwise.

    Args:
        model: The bridge, which comes back as it was.
        batches: Prompts of one token length each, as `batch_by_length` makes them.
        variants: A batch to the logits of `n_variants` variants of the model on it, one after another.
        n_variants: How many there are.
        generate: Whether to judge by the notebook's criterion, too: two more tokens a prompt.
        metric: F, which is measured too; the clean output that "kl" and "js" compare with is that of the first variant.
        rows: How many prompts share a pass; by default as many as 2 GiB hold.
        on_progress: Called with prompts done, counted once a variant, and how many there are.

    Raises:
        InputError: On NaN or infinite logits.
    """
    rows = rows or batch_rows(model, batches)
    run = variants or (lambda batch: iter([whole_model(model, batch)]))
    n_prompts = sum(len(batch.indices) for batch in batches)
    outcomes = torch.full((n_prompts, n_variants, 4), torch.nan, dtype=torch.float64)
    done = 0

    def judge_all(batch: Batch, members: Tensor) -> Tensor:
        part, judged = batch.select(members.tolist()), []
        readout: Readout | None = None
        for passes in run(part):
            logits = _finite(next(passes))
            if metric != LogitDiff() and readout is None:
                readout = _readout(part, metric, logits)
            judged.append(_judge(model, part, logits, passes, generate, readout))
            if on_progress:
                on_progress(done + len(judged) * len(members), n_prompts * n_variants)
        return torch.stack(judged, 1)

    with borrow(model), torch.no_grad():
        for batch in batches:
            for members, judged in rows.each(partial(judge_all, batch), torch.arange(len(batch.indices))):
                outcomes[torch.tensor(batch.indices)[members]] = judged
                done += len(members) * n_variants
    compared = all(batch.distractor is not None for batch in batches)
    return [
        PromptOutcomes(
            correct=correct.numpy() == 1,
            logit_diff=difference.numpy() if compared else None,
            generated=generated.numpy() == 1 if generate else None,
            value=None if metric == LogitDiff() else value.numpy(),
        )
        for correct, difference, generated, value in outcomes.permute(1, 2, 0)
    ]


def whole_model(model: TransformerBridge, batch: Batch) -> Logits:
    """The logits of the model itself, which runs whole for every token."""
    tokens = batch.tokens
    while True:
        logits = model(tokens, logits_to_keep=1)[:, -1]
        yield logits
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], 1)


def _readout(batch: Batch, metric: Metric, clean: Float[Tensor, "prompt d_vocab"]) -> Readout:
    """F of each prompt; `clean` are the logits of the model itself."""
    # What has no distractor is asked for nothing of one: see `ablate`.
    pairs = [replace(pair, distractors=pair.distractors or pair.answers) for pair in batch.pairs]
    if isinstance(metric, Custom):
        for pair, logits in zip(pairs, clean, strict=True):
            check_custom(metric.function, pair, logits[None])
    return read_out(pairs, clean.device, [metric], clean[:, None])


def _judge(
    model: TransformerBridge,
    batch: Batch,
    logits: Float[Tensor, "prompt d_vocab"],
    passes: Logits,
    generate: bool,
    readout: Readout | None,
) -> Float[Tensor, "prompt 4"]:
    """Each prompt's numbers: correct (1 or 0), logit difference, the notebook's criterion, F; NaN where not asked."""
    outcomes = torch.full((len(batch.indices), 4), torch.nan, dtype=torch.float64)
    outcomes[:, 0] = logits.argmax(-1) == batch.answer
    if batch.distractor is not None:
        each = torch.arange(len(batch.indices), device=logits.device)
        outcomes[:, 1] = logits[each, batch.answer] - logits[each, batch.distractor]
    if readout is not None:
        outcomes[:, 3] = readout(logits[:, None])
    if generate:
        tokens = [each.argmax(-1) for each in (logits, *map(_finite, itertools.islice(passes, N_GENERATED - 1)))]
        texts = [model.tokenizer.decode(ids) for ids in torch.stack(tokens, 1).tolist()]
        # A continuation that is empty has no word.
        words = [(text.split() or [""])[0] for text in texts]
        outcomes[:, 2] = torch.tensor([answer in word for answer, word in zip(batch.answers, words, strict=True)])
    return outcomes


def _finite(logits: Float[Tensor, "prompt d_vocab"]) -> Float[Tensor, "prompt d_vocab"]:
    if not logits.isfinite().all():
        raise InputError(
            "performance: got NaN or infinite logits, wanted finite ones. Check the checkpoint, or use "
            "model.dtype=float32."
        )
    return logits
