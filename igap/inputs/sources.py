"""Where the prompt pairs of a run come from: the config's four texts, a file, or the IOI generator.

Needs a tokenizer, because generated names have to be single tokens, and no model.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from igap.config import TEXTS, PromptsConfig
from igap.errors import InputError, printable
from igap.inputs.answers import from_cell
from igap.inputs.files import read_pairs, read_pairs_or_errors, row_or_raise
from igap.inputs.ioi import generate_ioi
from igap.inputs.layouts import Vocabularies, answers_of
from igap.inputs.prompts import PromptPair, TokenPair, encode_pair
from igap.inputs.tokenizing import single_tokens
from igap.inputs.words import NAMES


def read_prompt_pairs(
    prompts: PromptsConfig, tokenizer: Any, left_out: list[str] | None = None, item: str = "prompts.file"
) -> tuple[PromptPair, ...]:
    """Read or generate the pairs, in order; each knows its name in messages, and `item` is the key of the file.

    Raises InputError on the first bad one. With `prompts.skip_invalid` the reason goes to `left_out` instead.
    """
    if prompts.file is not None:
        return _read_file(prompts, tokenizer, [] if left_out is None else left_out, item)
    if prompts.n is None:
        clean, corrupted, answer, distractor = (getattr(prompts, name) for name in TEXTS)
        return (_pair([clean, corrupted, from_cell(answer), from_cell(distractor)], prompts, "prompts."),)
    names = single_tokens(tokenizer, NAMES)
    if len(names) < 2:
        raise InputError(
            f"prompts.n: got {prompts.n}, but only {len(names)} of the generator's {len(NAMES)} names "
            f"({', '.join(NAMES[:3])}, ...) are single tokens of this model, wanted at least 2. Use prompts.file with "
            "words that the model knows, or another model."
        )
    return tuple(
        _pair(
            [ioi.clean, ioi.corrupted, ioi.answer, ioi.distractor],
            prompts,
            f"generated pair {index}: ",
            {"template": str(ioi.template), "corruption": f"from {ioi.order}"},
        )
        for index, ioi in enumerate(generate_ioi(prompts.n, prompts.seed, names=names))
    )


def _read_file(prompts: PromptsConfig, tokenizer: Any, left_out: list[str], item: str) -> tuple[PromptPair, ...]:
    assert prompts.file is not None
    rows: Iterable[tuple[str, dict[str, str] | InputError]] = (
        list(read_pairs_or_errors(prompts.file, item))
        if prompts.skip_invalid
        else read_pairs(prompts.file, item).items()
    )
    vocabularies, pairs = Vocabularies(prompts.ids_of, tokenizer), []
    for place, row in itertools.islice(rows, prompts.limit):
        with _leave_out(prompts, place, left_out):
            texts = row_or_raise(row)
            answers, further = answers_of(texts, vocabularies, f"{place}: ")
            pairs.append(_pair([texts["clean"], texts["corrupted"], *answers], prompts, f"{place}: ", further))
    return tuple(pairs)


def _pair(
    texts: Sequence[Any], prompts: PromptsConfig, place: str, further: Mapping[str, str] | None = None
) -> PromptPair:
    clean, corrupted, answer, distractor = texts
    known = prompts.min_gap, prompts.align, prompts.bos, place, further or {}
    return PromptPair(clean, corrupted, answer, distractor, *known)


@contextmanager
def _leave_out(prompts: PromptsConfig, place: str, left_out: list[str]) -> Iterator[None]:
    """A block about one row; with `prompts.skip_invalid` an InputError that names its place is kept and not raised."""
    try:
        yield
    except InputError as error:
        if not prompts.skip_invalid or place not in str(error):
            raise
        left_out.append(str(error).partition("\n")[0])


def encode_fitting(
    prompts: PromptsConfig, pairs: tuple[PromptPair, ...], tokenizer: Any, left_out: list[str], **known: Any
) -> tuple[tuple[PromptPair, ...], list[TokenPair]]:
    """The pairs and their tokens, as `encode_pairs` gives them; with `prompts.skip_invalid` of those that fit alone.

    Raises InputError where none fits.
    """
    if not prompts.skip_invalid:
        return pairs, encode_pairs(prompts, pairs, tokenizer, **known)
    fitting = []
    for pair in pairs:
        with _leave_out(prompts, pair.place.removesuffix(": "), left_out):
            fitting.append((pair, encode_pair(pair, tokenizer, **known)))
    if not fitting:
        raise InputError(
            f"prompts.skip_invalid: got {printable(prompts.file)}, none of whose {len(left_out)} rows fits, wanted at "
            f"least one. For example: {left_out[0]}"
        )
    return tuple(pair for pair, _ in fitting), [tokens for _, tokens in fitting]


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
