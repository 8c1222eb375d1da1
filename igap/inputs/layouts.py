"""The layouts in which people of this field publish prompt pairs, read as they are: their columns to answers.

Those of the data of Hanna et al. 2024 (arXiv 2403.17806): token ids of GPT-2 in place of words. A layout is one
function and one line of `LAYOUTS`.
"""

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from igap.config import TEXTS
from igap.errors import InputError, printable, short_repr
from igap.inputs.answers import Answer, from_cell, one_or_set, words_of
from igap.inputs.tokenizing import single_tokens
from igap.inputs.words import VERB_FORMS
from igap.models.load import read_tokenizer


@dataclass(frozen=True)
class Vocabularies:
    """The words of a file's token ids, and those that the model at hand has."""

    ids_of: str
    """The tokenizer that the ids are of."""
    tokenizer: Any
    """The model's."""
    tried: list[str] = field(default_factory=list)
    """The row whose words were looked for in its texts, once there is one."""

    @cached_property
    def _published(self) -> Any:
        return read_tokenizer(self.ids_of, item="prompts.ids_of")

    @cached_property
    def verbs(self) -> list[tuple[str, str]]:
        """The verb forms, singular and plural, of which both are single tokens of the model."""
        known = set(single_tokens(self.tokenizer, itertools.chain(*VERB_FORMS)))
        return [(f" {one}", f" {many}") for one, many in VERB_FORMS if {one, many} <= known]

    def word(self, token: object, item: str) -> str:
        """The text of a token with its leading space. Raises InputError, naming `item`, on what is no token or text."""
        n_tokens, of = len(self._published), printable(self.ids_of)
        if type(token) is not int or not 0 <= token < n_tokens:
            raise InputError(
                f"{item}: got {short_repr(token)}, wanted a token id of {of}, 0 to {n_tokens - 1}. Set prompts.ids_of "
                "to the tokenizer that the file's ids are of."
            )
        # Some tokenizers take the space off a text's first word.
        once, twice = (self._published.decode([token] * n, clean_up_tokenization_spaces=False) for n in (1, 2))
        word: str = twice[len(once) :]
        if "\ufffd" in word or not word.strip():
            raise InputError(
                f"{item}: got {token}, which is {short_repr(word)} in {of}, wanted the token of a word. Correct it, or "
                "set prompts.ids_of to the tokenizer that the file's ids are of."
            )
        return word


Answers = tuple[Answer, Answer]
"""Those of a pair: the right and the wrong."""


@dataclass(frozen=True)
class Layout:
    """A published layout: it has the columns `clean` and `corrupted`, and these."""

    columns: tuple[str, ...]
    answers: Callable[[Mapping[str, str], Vocabularies, str], Answers]
    """Of a row, whose place in messages comes last."""


def answers_of(row: Mapping[str, str], vocabularies: Vocabularies, place: str) -> tuple[Answers, Mapping[str, str]]:
    """The answers of a row of `read_pairs`, and the cells that are neither they nor prompts, by column.

    Raises InputError naming `place` and the column.
    """
    further = {name: cell for name, cell in row.items() if name not in TEXTS}
    if {"answer", "distractor"} <= row.keys():
        return (from_cell(row["answer"]), from_cell(row["distractor"])), further
    layout = next(each for each in LAYOUTS.values() if set(each.columns) <= set(row))
    return layout.answers(row, vocabularies, place), further


def _ids(right: str, wrong: str, texts: tuple[str, ...] = (), *, given: str = "clean") -> Layout:
    """A column of token ids for each of the two answers: one, or a list.

    Their words stand in these text columns, in files that have the column `given`.
    """

    def answers(row: Mapping[str, str], vocabularies: Vocabularies, place: str) -> Answers:
        answer, distractor = (_words(vocabularies, _parse(row[column]), place + column) for column in (right, wrong))
        if given in row and not vocabularies.tried:  # of another tokenizer, all rows are wrong
            for words, text in zip((answer, distractor), texts, strict=False):
                _check_words(words, row.get(text), vocabularies.ids_of, f"{text} of {place.partition(', ')[2]}")
            vocabularies.tried.append(place)
        return answer, distractor

    return Layout((right, wrong), answers)


def _check_words(answer: Answer, text: str | None, ids_of: str, where: str) -> None:
    """Raises InputError where a decoded word does not stand in the text that has it: the ids are another tokenizer's.

    Not in the name of the row, which `prompts.skip_invalid` would leave out: the other rows are wrong then, too.
    """
    for word in words_of(answer) if text is not None else ():
        if word.strip() not in str(text):
            raise InputError(
                f"prompts.ids_of: got {printable(ids_of)}, by which an answer is {short_repr(word)}, wanted a word of "
                f"the {where.rstrip(': ')} ({short_repr(text)}): the file's ids are of another tokenizer. Name it."
            )


def _words(vocabularies: Vocabularies, ids: object, item: str) -> Answer:
    if not isinstance(ids, list):
        return vocabularies.word(ids, item)
    if not ids:
        raise InputError(f"{item}: got an empty list, wanted at least one token id. Fill it in.")
    return one_or_set([vocabularies.word(token, item) for token in ids])


def _years(row: Mapping[str, str], vocabularies: Vocabularies, place: str) -> Answers:  # noqa: ARG001 - see Layout
    """The two digits above those of the year, which are right, and the others."""
    year = _parse(row["correct_idx"].strip().lstrip("0") or "0")
    if type(year) is not int or not 0 <= year < 99:
        raise InputError(
            f"{place}correct_idx: got {short_repr(row['correct_idx'])}, wanted the last two digits of a year, 0 to 98: "
            "those above are right. With a column incorrect_idx beside it, it is a token id."
        )
    digits = [f"{number:02d}" for number in range(100)]
    return one_or_set(digits[year + 1 :]), one_or_set(digits[: year + 1])


def _verbs(row: Mapping[str, str], vocabularies: Vocabularies, place: str) -> Answers:
    """The verb forms of the subject's number, which are right, and those of the other."""
    if row["plural"].strip() not in ("0", "1"):
        raise InputError(f"{place}plural: got {short_repr(row['plural'])}, wanted 1 (plural) or 0. Correct it.")
    if not vocabularies.verbs:
        raise InputError(
            f"{place}plural: got a pair that asks for a verb, but of igap's {len(VERB_FORMS)} verbs the tokenizer has "
            "none as single tokens. Use columns answer and distractor with words of the model."
        )
    singular, plural = (one_or_set(forms) for forms in zip(*vocabularies.verbs, strict=True))
    return (plural, singular) if row["plural"].strip() == "1" else (singular, plural)


def _parse(cell: str) -> object:
    """The number or list in a cell; the cell where there is none."""
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return cell


LAYOUTS: Mapping[str, Layout] = {
    "ioi": _ids("correct_idx", "incorrect_idx", ("clean", "clean"), given="corrupted_hard"),
    "gender_bias": _ids("clean_answer_idx", "corrupted_answer_idx"),
    "capital_country": _ids("country_idx", "corrupted_country_idx", ("country", "corrupted_country")),
    "hypernymy": _ids("answers_idx", "corrupted_answers_idx", ("answers", "corrupted_answers")),
    "greater_than": Layout(("correct_idx",), _years),
    "sva": Layout(("plural",), _verbs),
}
"""A layout whose columns are all there and another's besides comes first."""
