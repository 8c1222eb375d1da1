"""The token positions of a template's slots, and the tokens that a word takes there."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Any

from igap.errors import InputError
from igap.inputs.prompts import PromptPair, encode_prompt
from igap.inputs.tokenizing import continuation, token_ids


def parse_template(template: str) -> list[tuple[str, str | None]]:
    """Split a template into texts, each with the slot after it. Raises InputError on braces that are no slots."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError:
        parts = [("", "", None, None)]
    if any(name is not None and (not name.isidentifier() or spec or kind) for _, name, spec, kind in parts):
        raise InputError(
            f"search.space.template: got {template!r}, wanted each slot as a name in braces, such as {{subject}}. "
            "Correct the braces."
        )
    return [(literal, name) for literal, name, _, _ in parts]


def match_slots(template: str, text: str) -> dict[str, str] | None:
    """Match a prompt against a template: the text in each slot, or None where it does not follow the template."""
    parts = []
    seen: set[str] = set()
    for literal, name in parse_template(template):
        parts.append(re.escape(literal))
        if name is not None:
            parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>.+?)")
            seen.add(name)
    match = re.fullmatch("".join(parts), text)
    return None if match is None else match.groupdict()


def split_prompt(template: str, fills: Mapping[str, str]) -> list[tuple[str | None, str, str]]:
    """Split a prompt into pieces: the slot's name or None, the piece before ("" at the start), the text.

    A space belongs to what follows it.
    """
    texts: list[tuple[str | None, str]] = []
    for literal, name in parse_template(template):
        lead = " " if name is not None and literal.endswith(" ") else ""
        texts.append((None, literal[: len(literal) - len(lead)]))
        if name is not None:
            texts.append((name, lead + fills[name]))
    pieces = [(name, text) for name, text in texts if text]
    before = ["", *(text for _, text in pieces)]
    return [(name, earlier, text) for earlier, (name, text) in zip(before, pieces, strict=False)]


@dataclass(frozen=True)
class SlotPosition:
    """A place where the template has a slot."""

    before: str
    """The piece of the prompt before it; "" at its start."""
    lead: str
    """The space before the slot's word, or none."""
    positions: range
    """The tokens that the slot fills."""

    def ids(self, tokenizer: Any, word: str) -> list[int]:
        """The word's tokens there; none where it grows together with what is before."""
        return continuation(tokenizer, self.before, self.lead + word) or []

    def fits(self, tokenizer: Any, word: str, *, any_length: bool = False) -> bool:
        """True if the word takes as many known tokens as the slot has, or with `any_length` any number of them."""
        return fits(tokenizer, self.before, self.lead + word, None if any_length else len(self.positions))


def find_slots(template: str, fills: Mapping[str, str], tokenizer: Any, start: int) -> dict[str, list[SlotPosition]]:
    """The places where the template has each slot; the first token of the text is at `start`."""
    places: dict[str, list[SlotPosition]] = {}
    for slot, before, text in split_prompt(template, fills):
        width = len(continuation(tokenizer, before, text) or [])
        if slot is not None:
            lead = text[: len(text) - len(fills[slot])]
            places.setdefault(slot, []).append(SlotPosition(before, lead, range(start, start + width)))
        start += width
    return places


def fits(tokenizer: Any, before: str, text: str, width: int | None) -> bool:
    """True if a text continues `before` by `width` known tokens (None: by some) that decode to it."""
    ids = continuation(tokenizer, before, text)
    if not ids or (width is not None and len(ids) != width):
        return False
    known = tokenizer.unk_token_id is None or tokenizer.unk_token_id not in ids
    return bool(known and tokenizer.decode(ids).strip() == text.strip())


def encode(
    pair: PromptPair, tokenizer: Any, text: str | None = None, *, prepend_bos: bool, item: str = "prompts.clean"
) -> list[int]:
    """Token ids of the clean prompt, or of another text in its place."""
    text = pair.clean if text is None else text
    return encode_prompt(tokenizer, text, prepend_bos=prepend_bos, bos=pair.bos, item=item, n_ctx=None, n_vocab=None)


def count_leading_tokens(pair: PromptPair, tokenizer: Any, *, prepend_bos: bool) -> int:
    """Tokens before those of the clean prompt's text: 1 or none."""
    return len(encode(pair, tokenizer, prepend_bos=prepend_bos)) - len(token_ids(tokenizer, pair.clean))
