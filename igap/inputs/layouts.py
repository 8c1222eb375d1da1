"""The layouts in which people of this field publish prompt pairs, read as they are: their columns to answers.

Those of the data of Hanna et al. 2024 (arXiv 2403.17806): token ids of GPT-2 in place of words. A layout is one
function and one line of `LAYOUTS`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from igap.config import TEXTS
from igap.errors import InputError, printable, short_repr
from igap.models.load import read_tokenizer


@dataclass(frozen=True)
class Ids:
    """The words of token ids."""

    ids_of: str
    """The tokenizer that the ids are of."""
    item: str = "prompts.ids_of"

    @cached_property
    def _tokenizer(self) -> Any:
        return read_tokenizer(self.ids_of, item=self.item)

    def word(self, token: object, item: str) -> str:
        """The text of a token with its leading space. Raises InputError, naming `item`, on what is no token or text."""
        n_tokens, of = len(self._tokenizer), printable(self.ids_of)
        if type(token) is not int or not 0 <= token < n_tokens:
            raise InputError(
                f"{item}: got {short_repr(token)}, wanted a token id of {of}, 0 to {n_tokens - 1}. Set prompts.ids_of "
                "to the tokenizer that the file's ids are of."
            )
        # Some tokenizers take the space off a text's first word.
        once, twice = (self._tokenizer.decode([token] * n, clean_up_tokenization_spaces=False) for n in (1, 2))
        word: str = twice[len(once) :]
        if "\ufffd" in word or not word.strip():
            raise InputError(
                f"{item}: got {token}, which is {short_repr(word)} in {of}, wanted the token of a word. Correct it, or "
                "set prompts.ids_of to the tokenizer that the file's ids are of."
            )
        return word


Answers = tuple[str, str]
"""Those of a pair: the right one and the wrong one."""


@dataclass(frozen=True)
class Layout:
    """A published layout: it has the columns `clean` and `corrupted`, and these."""

    columns: tuple[str, ...]
    answers: Callable[[Mapping[str, str], Ids, str], Answers]
    """Of a row, whose place in messages comes last."""


def answers_of(row: Mapping[str, str], ids: Ids, place: str) -> tuple[Answers, Mapping[str, str]]:
    """The answers of a row of `read_pairs`, and the cells that are neither they nor prompts, by column.

    Raises InputError naming `place` and the column.
    """
    further = {name: cell for name, cell in row.items() if name not in TEXTS}
    if "answer" in row:
        return (row["answer"], row["distractor"]), further
    layout = next(each for each in LAYOUTS.values() if set(each.columns) <= set(row))
    return layout.answers(row, ids, place), further


def _one_each(right: str, wrong: str) -> Layout:
    """A column of token ids for each of the two answers."""

    def answers(row: Mapping[str, str], ids: Ids, place: str) -> Answers:
        one, other = (ids.word(_parse(row[column]), f"{place}{column}") for column in (right, wrong))
        return one, other

    return Layout((right, wrong), answers)


def _parse(cell: str) -> object:
    """The number or list in a cell; the cell where there is none."""
    try:
        return json.loads(cell)
    except ValueError:
        return cell


LAYOUTS: Mapping[str, Layout] = {
    "ioi": _one_each("correct_idx", "incorrect_idx"),
    "gender_bias": _one_each("clean_answer_idx", "corrupted_answer_idx"),
    "capital_country": _one_each("country_idx", "corrupted_country_idx"),
}
