"""Prompts with their answers, one at a time: what performance is measured on. Files in, files out, or generated.

A file has the notebook's fields (`prompt`, `answer`) or those of a prompt pair, whose clean prompt is meant.
"""

import csv
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igap.arguments import checks_arguments
from igap.config import TEXTS
from igap.errors import InputError
from igap.inputs.files import read_rows
from igap.inputs.ioi import generate_ioi
from igap.inputs.tokenizing import glued, single_tokens, token_ids
from igap.inputs.words import NAMES


@checks_arguments
@dataclass(frozen=True)
class Prompt:
    """A prompt, the word that should follow it, and the word it is compared with."""

    text: str
    answer: str
    """With its leading space where the tokenizer cares."""
    distractor: str | None = None
    """None where a file has none: then there is no logit difference."""
    bos: str = "auto"
    """The token before it, as in a PromptPair."""

    def __post_init__(self) -> None:
        for name, text in (("text", self.text.strip()), ("answer", self.answer), ("distractor", self.distractor)):
            if text == "":
                raise InputError(f"{name}: got an empty text, wanted words. Fill it in.")


def generated(n: int, seed: int, tokenizer: Any) -> list[Prompt]:
    """`n` IOI prompts in names that are single tokens, no token length of which occurs once only.

    Resampling needs another prompt of the same length. Raises InputError where fewer than two names are single tokens.
    """
    names = single_tokens(tokenizer, NAMES)
    if len(names) < 2:
        raise InputError(
            f"ablation.n: got {n} prompts to generate, but only {len(names)} of the generator's {len(NAMES)} names are "
            "single tokens of this model, wanted at least 2. Use ablation.file, or ablation=none."
        )
    drawn = [Prompt(one.clean, one.answer, one.distractor) for one in generate_ioi(2 * n, seed, names=names)]
    lengths = [len(token_ids(tokenizer, prompt.text)) for prompt in drawn]
    shared = {length for length, count in Counter(lengths[:n]).items() if count > 1}
    return [prompt for prompt, length in zip(drawn, lengths, strict=True) if length in shared][:n]


def read_prompts(file: str, *, item: str = "ablation.file") -> list[Prompt]:
    """The prompts of a .json, .jsonl or .csv file, in its order. Raises InputError naming file and row.

    An answer without a leading space gets one where prompt and answer would grow together ("to" + "John"): the
    notebook's file has its answers so.
    """
    rows = read_rows(file, (("prompt", "answer"), ("prompt", "answer", "distractor"), TEXTS), item=item)
    return [
        Prompt(text, _spaced(text, row["answer"]), _spaced(text, row["distractor"]) if "distractor" in row else None)
        for row in rows
        for text in [row.get("prompt") or row["clean"]]
    ]


def write_prompts(file: str, prompts: Sequence[Prompt]) -> None:
    """The prompts as a .json list in the notebook's fields, .jsonl or .csv, with `distractor` where all have one."""
    whole = all(prompt.distractor is not None for prompt in prompts)
    rows = [
        {"prompt": one.text, "answer": one.answer} | ({"distractor": str(one.distractor)} if whole else {})
        for one in prompts
    ]
    path = Path(os.path.expanduser(file))
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    else:
        raise InputError(f"file: got {file}, wanted a name that ends in .json, .jsonl or .csv. Rename it.")


def _spaced(prompt: str, answer: str) -> str:
    return f" {answer}" if glued(prompt, answer) else answer
