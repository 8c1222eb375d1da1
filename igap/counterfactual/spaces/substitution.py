"""Spaces without a template: other words at token positions of the clean prompt."""

import itertools
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch

from igap.counterfactual.spaces.base import KEEP, BoundSpace, Candidate, Slot, Space, bind_space
from igap.counterfactual.spaces.positions import count_leading_tokens, encode, fits
from igap.counterfactual.spaces.template import LISTS
from igap.errors import InputError
from igap.inputs.prompts import PromptPair
from igap.inputs.tokenizing import continuation

WORDS = "words"
"""Stands in a vocabulary for every word of the tokenizer that is one token."""

_LETTERS = re.compile(r"[A-Za-z]+")


def substitution_space(
    pair: PromptPair,
    positions: Sequence[int] | None,
    vocabulary: Sequence[str],
    max_edits: int | None,
    tokenizer: Any,
    *,
    prepend_bos: bool,
    beside: Sequence[PromptPair] = (),
) -> Space:
    """The space of other words at these token positions (BOS counted; None: every whole word), a slot each.

    A position counts as a whole word where it is one in the pair and in all `beside` it.
    `vocabulary` holds words, names of lists, or `WORDS`. Raises InputError on positions that are no whole words, on
    words that are not one token, and on a space with fewer than two candidates.
    """
    spans = dict(_find_whole_words(pair, tokenizer, prepend_bos=prepend_bos))
    for other in beside:
        also = _find_whole_words(other, tokenizer, prepend_bos=prepend_bos)
        spans = {position: span for position, span in spans.items() if position in also}
    chosen = sorted(spans) if positions is None else list(positions)
    wrong = [position for position in chosen if position not in spans]
    if wrong or len(set(chosen)) < len(chosen):
        what = f"position {wrong[0]}, which is no whole word" if wrong else "a position twice"
        known = ", ".join(f"{i} {pair.clean[slice(*span)]!r}" for i, span in spans.items())
        raise InputError(f"search.space.positions: got {what}, wanted some of {known}.")
    words, n_out = _vocabulary(vocabulary, tokenizer)
    slots = []
    for position in chosen:
        start, _ = spans[position]
        # At the start of the text there is no space before a word, and for most tokenizers it is another token.
        own = words if start else [word for word in words if fits(tokenizer, "", word, 1)]
        slots.append(Slot(f"token{position}", (KEEP, *own), (position,)))
    left_out = {"not one known token": n_out}
    return Space("substitute", tuple(slots), max_edits=max_edits, left_out=left_out).check()


def bind_substitution(
    space: Space, pairs: Sequence[PromptPair], tokenizer: Any, *, prepend_bos: bool, device: torch.device | str = "cpu"
) -> BoundSpace:
    """The space for these clean prompts. Raises InputError where a position is no whole word in one of them."""
    clean = torch.tensor([encode(pair, tokenizer, prepend_bos=prepend_bos) for pair in pairs])
    spans = {pair.clean: _find_whole_words(pair, tokenizer, prepend_bos=prepend_bos) for pair in pairs}
    for pair, slot in itertools.product(pairs, space.slots):
        if slot.positions[0] not in spans[pair.clean]:
            raise InputError(
                f"search.space.positions: got position {slot.positions[0]}, which is no whole word in the clean prompt "
                f"{pair.clean!r}. Take it out, or use clean.n=1 heldout.n=0."
            )

    @cache
    def token(word: str, *, at_start: bool) -> int:
        ids = _word_ids(tokenizer, word, at_start=at_start)
        assert ids is not None, "substitution_space has seen to it"
        return ids[0]

    tables = []
    for slot in space.slots:
        (position,) = slot.positions
        start = spans[pairs[0].clean][position][0]
        others = torch.tensor([token(word, at_start=start == 0) for word in slot.options[1:]], dtype=torch.long)
        tables.append(torch.cat([clean[:, position, None], others.expand(len(pairs), -1)], 1)[..., None].to(device))

    def write(pair: PromptPair, candidate: Candidate) -> str:
        text = pair.clean
        for slot, word in reversed(list(zip(space.slots, space.words(candidate), strict=True))):
            start, end = spans[pair.clean][slot.positions[0]]
            text = text if word == KEEP else text[:start] + word + text[end:]
        return text

    return bind_space(space, pairs, clean.to(device), tables, write)


def _vocabulary(entries: Sequence[str], tokenizer: Any) -> tuple[list[str], int]:
    """The words, each once, that are one token after a space, and how many of named lists are not."""
    words: dict[str, None] = {}
    misfits, n_out = [], 0
    for entry in entries:
        if entry == WORDS:
            words |= dict.fromkeys(_list_words(tokenizer))
        else:
            for word in LISTS.get(entry, (entry,)):
                if fits(tokenizer, word, f" {word}", 1):
                    words[word] = None
                elif entry in LISTS:
                    n_out += 1
                else:
                    misfits.append(repr(word))
    if misfits:
        raise InputError(
            f"search.space.vocabulary: got {', '.join(misfits)}, wanted words that are one known token. Take them out."
        )
    return list(words), n_out


def _list_words(tokenizer: Any) -> list[str]:
    special = set(tokenizer.all_special_ids)
    texts = [tokenizer.decode([i]) for i in range(len(tokenizer)) if i not in special]
    words = dict.fromkeys(text.strip() for text in texts if _LETTERS.fullmatch(text.strip()))
    return [word for word in words if fits(tokenizer, word, f" {word}", 1)]


def _find_whole_words(pair: PromptPair, tokenizer: Any, *, prepend_bos: bool) -> Mapping[int, tuple[int, int]]:
    """Token position to the characters of the word, of every token of the clean prompt that is a whole word."""
    text, first = pair.clean, count_leading_tokens(pair, tokenizer, prepend_bos=prepend_bos)
    whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = {}
    for i, (token, (start, end)) in enumerate(zip(whole["input_ids"], whole["offset_mapping"], strict=True)):
        start += len(text[start:end]) - len(text[start:end].lstrip())
        starts_a_word = start == 0 or text[start - 1] == " "
        if not starts_a_word or text[end : end + 1].isalpha() or not _LETTERS.fullmatch(text[start:end]):
            continue
        # A space that is a token of its own would become part of another word.
        if _word_ids(tokenizer, text[start:end], at_start=start == 0) == [token]:
            spans[i + first] = (start, end)
    return spans


def _word_ids(tokenizer: Any, word: str, *, at_start: bool) -> list[int] | None:
    """The word's tokens after another and a space, or at the start of the text."""
    return continuation(tokenizer, "", word) if at_start else continuation(tokenizer, word, f" {word}")
