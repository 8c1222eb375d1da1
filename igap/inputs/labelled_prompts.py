"""Single prompts with their answers, on which accuracy is measured: generated, read from files, written to files.

A file has the fields `prompt` and `answer` (as the research notebook's data set) or those of a prompt pair, of which
the clean prompt is taken.
"""

import csv
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from igap.config import TEXTS
from igap.errors import InputError
from igap.errors.arguments import checks_arguments
from igap.inputs.files import read_rows
from igap.inputs.ioi import generate_ioi
from igap.inputs.tokenizing import merges, single_tokens, token_ids
from igap.inputs.words import NAMES


@checks_arguments
@dataclass(frozen=True)
class Prompt:
    """A prompt, the word that should follow it, and the word it is compared with.

    Args:
        text: The prompt.
        answer: The right next word, one token, with its leading space where the tokenizer has one (" John").
        distractor: The word it is compared with. None (default): there is no logit difference, only accuracy.
        bos: The token before the prompt, "auto" by default; see PromptPair.
        place: What messages call it, "prompts.csv, row 3 (line 4)". Empty (default): by its number.

    Raises:
        InputError: An empty text.

    Example:
        >>> Prompt(pair.clean, " John", " Mary").answer
        ' John'
    """

    text: str
    answer: str
    """With its leading space where the tokenizer cares."""
    distractor: str | None = None
    """None where a file has none: then there is no logit difference."""
    bos: str = "auto"
    """The token before it, as in a PromptPair."""
    place: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        for name, text in (("text", self.text.strip()), ("answer", self.answer), ("distractor", self.distractor)):
            if text == "":
                raise InputError(f"{name}: got an empty text, wanted words. Fill it in.")


def generate_prompts(n: int, seed: int, tokenizer: Any) -> list[Prompt]:
    """Generate `n` IOI prompts whose names are single tokens; every token length occurs at least twice.

    Resample ablation needs another prompt of the same length. Raises InputError if fewer than two names are single
    tokens.
    """
    names = single_tokens(tokenizer, NAMES)
    if len(names) < 2:
        raise InputError(
            f"ablation.n: got {n} prompts to generate, but only {len(names)} of the generator's {len(NAMES)} names are "
            "single tokens of this model, wanted at least 2. Use ablation.file, or ablation=none."
        )
    drawn = [Prompt(ioi.clean, ioi.answer, ioi.distractor) for ioi in generate_ioi(2 * n, seed, names=names)]
    lengths = [len(token_ids(tokenizer, prompt.text)) for prompt in drawn]
    repeated = {length for length, count in Counter(lengths[:n]).items() if count > 1}
    return [prompt for prompt, length in zip(drawn, lengths, strict=True) if length in repeated][:n]


def read_prompts(file: str, *, item: str = "ablation.file") -> list[Prompt]:
    """Read the prompts of a .json, .jsonl or .csv file in order. Raises InputError naming file and row.

    An answer without a leading space gets one where it would merge with the prompt's last word ("to" + "John"), as in
    the research notebook's file.
    """
    rows = read_rows(file, (("prompt", "answer"), ("prompt", "answer", "distractor"), TEXTS), item=item)
    return [
        Prompt(
            text,
            _add_space(text, row["answer"]),
            _add_space(text, row["distractor"]) if "distractor" in row else None,
            place=place,
        )
        for place, row in rows.items()
        for text in [row.get("prompt") or row["clean"]]
    ]


def write_prompts(file: str, prompts: Sequence[Prompt]) -> None:
    """Write the prompts as .json, .jsonl or .csv: `prompt`, `answer`, and `distractor` if all have one."""
    with_distractor = all(prompt.distractor is not None for prompt in prompts)
    rows = [
        {"prompt": prompt.text, "answer": prompt.answer}
        | ({"distractor": str(prompt.distractor)} if with_distractor else {})
        for prompt in prompts
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


def _add_space(prompt: str, answer: str) -> str:
    return f" {answer}" if merges(prompt, answer) else answer
