"""Trains the embedded model: python -m igap.models.ioi_mini.train --out FOLDER

Generated sentences only, fixed seed, about 9 minutes on one core. Two choices make it worth attributing:

- whole heads are dropped in training, so that the task is spread over several heads;
- one sentence in 25 ends with the wrong name, so that the softmax does not saturate.
"""

import argparse
import logging
import random
import re
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from igap.inputs.ioi import HELD_OUT_TEMPLATE, TEMPLATES, generate_animals, generate_ioi, is_held_out
from igap.inputs.words import ANIMALS, NAMES, OBJECTS, PLACES, VERBS

N_HEADS = 8
BOS, UNKNOWN = "<|endoftext|>", "<unk>"
_IGNORED = -100  # transformers' label of positions without loss

log = logging.getLogger(__name__)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word or punctuation mark of the generator; a leading space changes nothing."""
    texts = [re.sub(r"{\w+}", " ", template) for template in TEMPLATES]
    words = sorted(set(re.findall(r"\w+|[^\w\s]", " ".join([*texts, *NAMES, *PLACES, *OBJECTS, *VERBS, *ANIMALS]))))
    vocabulary = {word: index for index, word in enumerate([BOS, UNKNOWN, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, pad_token=BOS, unk_token=UNKNOWN
    )


def make_model(n_tokens: int) -> GPT2LMHeadModel:
    """The untrained model, its embeddings tied."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=n_tokens,
            n_positions=64,
            n_embd=128,
            n_layer=4,
            n_head=N_HEADS,
            n_inner=512,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )


def drop_heads(model: GPT2LMHeadModel, p: float) -> None:
    """In training mode, each head's output is 0 with probability `p` in each sentence, and 1 / (1 - p) larger else."""

    def drop(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if not module.training:
            return inputs
        z = inputs[0].unflatten(-1, (N_HEADS, -1))
        mask = (torch.rand(len(z), 1, N_HEADS, 1) >= p) / (1 - p)
        return ((z * mask).flatten(-2),)

    blocks: Any = model.transformer.h
    for block in blocks:
        block.attn.c_proj.register_forward_pre_hook(drop)


def sentences(n: int, seed: int, wrong: float) -> list[str]:
    """`n` training sentences, 1 in 8 of them about animals; no held-out template, no held-out pair of names."""
    rng = random.Random(seed)
    trained = [index for index in range(len(TEMPLATES)) if index != HELD_OUT_TEMPLATE]
    texts = generate_animals(n // 8, seed)
    for example in generate_ioi(2 * n, seed, templates=trained):
        if len(texts) < n and not is_held_out(example.answer.strip(), example.distractor.strip()):
            texts.append(example.clean + (example.distractor if rng.random() < wrong else example.answer))
    return texts


def batch(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Token ids `[row, pos]`, BOS first, padded on the right, and the labels: the same without the padding."""
    rows = [[0, *ids] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    width = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    labels = torch.tensor([row + [_IGNORED] * (width - len(row)) for row in rows])
    return tokens, labels


def loss_of(model: GPT2LMHeadModel, tokens: Tensor, labels: Tensor) -> Tensor:
    """Mean loss of the last tokens, which are the task, plus mean loss of all others."""
    logits = model(tokens, attention_mask=(labels != _IGNORED).long()).logits[:, :-1]
    targets = labels[:, 1:]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    losses = losses.view(targets.shape)
    counted = targets != _IGNORED
    last = losses.gather(1, counted.sum(1, keepdim=True) - 1)
    return last.mean() + (losses.sum() - last.sum()) / (counted.sum() - len(last))


def train(out: Path, *, steps: int, size: int, seed: int, head_dropout: float, wrong: float, rate: float) -> None:
    """Writes the trained checkpoint and its tokenizer to `out`."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    drop_heads(model, head_dropout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps, pct_start=0.1)
    model.train()
    started = time.perf_counter()
    for step in range(steps):
        tokens, labels = batch(tokenizer, sentences(size, seed * 1_000_003 + step, wrong))
        loss = loss_of(model, tokens, labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            log.info("step %d of %d, loss %.3f, %.0f s", step, steps, loss.item(), time.perf_counter() - started)
    model.eval().save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    """Command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--steps", type=int, default=1300)
    parser.add_argument("--size", type=int, default=128, help="sentences a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--head-dropout", type=float, default=0.3)
    parser.add_argument("--wrong", type=float, default=0.04, help="share of sentences that end with the wrong name")
    parser.add_argument("--rate", type=float, default=3e-3, help="largest learning rate")
    arguments = vars(parser.parse_args())
    train(arguments.pop("out"), **arguments)


if __name__ == "__main__":
    main()
