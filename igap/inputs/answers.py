"""Answers of a prompt pair: a word, or a set of words of which each is right, or wrong, as the others are."""

import json
from collections.abc import Sequence

from igap.errors import InputError

Answer = str | tuple[str, ...]


def words_of(answer: Answer) -> tuple[str, ...]:
    """The words: one, or those of the set."""
    return (answer,) if isinstance(answer, str) else answer


def one_or_set(words: Sequence[str]) -> Answer:
    """The answer with these words; of one word the word."""
    return words[0] if len(words) == 1 else tuple(words)


def format_answer(answer: Answer) -> str:
    """An answer as a sentence has it: the word; of a set the first three, and how many there are."""
    if isinstance(answer, str):
        return answer
    more = f", ... ({len(answer)} words)" if len(answer) > 3 else ""
    return f"{{{', '.join(word.strip() for word in answer[:3])}{more}}}"


def _quote(answer: Answer) -> str:
    return repr(answer) if isinstance(answer, str) else format_answer(answer)


def to_cell(answer: Answer) -> str:
    """An answer as a table has it: the word, or a JSON list."""
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)


def from_cell(cell: str) -> Answer:
    """The inverse of `to_cell`. What is no JSON list of texts is a word."""
    try:
        words = json.loads(cell) if cell.startswith("[") else None
    except (ValueError, RecursionError):
        return cell
    return one_or_set(words) if words and isinstance(words, list) and all(isinstance(w, str) for w in words) else cell


def check_words(item: str, answer: Answer) -> None:
    """Raises InputError, naming `item`, on an empty set or text."""
    if not answer:
        what = "an empty text" if isinstance(answer, str) else "an empty set"
        raise InputError(f"{item}: got {what}, wanted words. Fill it in.")
    if not all(word.strip() for word in words_of(answer)):
        raise InputError(f"{item}: got an empty text, wanted words. Fill it in.")


def check_apart(
    place: str, right: Answer, wrong: Answer, tokens: tuple[Sequence[object], Sequence[object]] | None = None
) -> None:
    """Raises InputError where something is there twice: a word, or a token where the words' `tokens` are known."""
    answers, distractors = words_of(right), words_of(wrong)
    what, short = "word" if tokens is None else "token", place.rpartition(": ")[2]
    of_answers, of_distractors = tokens or [[word.strip() for word in words] for words in (answers, distractors)]
    first = dict(zip(reversed(of_answers), reversed(answers), strict=True))
    for word, each in zip(distractors, of_distractors, strict=True):
        if each in first:
            other = "" if tokens is None else f" {first[each]!r}"
            remedy = "the metric logit[answer] - logit[distractor] would be 0. Name another word."
            if len(answers) + len(distractors) > 2:
                remedy = "a word is right or wrong. Take it out of one set."
            raise InputError(f"{place}distractor: got {word!r}, the same {what} as {short}answer{other}; {remedy}")
    for name, words, of_words in (("answer", answers, of_answers), ("distractor", distractors, of_distractors)):
        seen: dict[object, str] = {}
        for word, each in zip(words, of_words, strict=True):
            if each in seen:
                raise InputError(
                    f"{place}{name}: got {word!r}, the same {what} as {seen[each]!r} in its set, wanted each once. "
                    "Take one out."
                )
            seen[each] = word


def check_sets(items: Sequence[tuple[str, str]], tokens: Sequence[Sequence[int]], right: Answer, wrong: Answer) -> None:
    """Raises InputError where a word of a set, by its (item, word), is several tokens."""
    n_right = len(words_of(right))
    for part, answer in ((slice(n_right), right), (slice(n_right, None), wrong)):
        for (item, word), ids in zip(items[part], tokens[part], strict=True):
            if len(ids) > 1 and not isinstance(answer, str):
                raise InputError(
                    f"{item}: got a set with {word!r}, which is {len(ids)} tokens, wanted sets of single tokens: each "
                    "longer word would need a run of its own. Leave it out, or name it alone."
                )


class AnswerSetError(InputError):
    """A set of answers or distractors where one word is wanted."""


def check_single(place: str, right: Answer, wrong: Answer, asks: str) -> tuple[str, str]:
    """The two words. Raises AnswerSetError, saying what asks for one of each, where one is a set."""
    if not (isinstance(right, str) and isinstance(wrong, str)):
        raise AnswerSetError(
            f"{place}answer: got {_quote(right)} beside {_quote(wrong)}, but {asks} one answer and one distractor. "
            "Name one of each."
        )
    return right, wrong
