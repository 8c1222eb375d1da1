"""Spaces of a template's slots: named lists, words of the user's own, and rules over the clean prompt's roles.

And further clean prompts of a template: the same question with other words, so that what is found is no fact about one
prompt. An option takes as many tokens as what stands in its slot.
"""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache, partial
from string import Formatter
from typing import Any

import torch

from igap.counterfactual.space import KEEP, Candidate, Filled, Slot, Space, filled
from igap.datasets import ioi
from igap.datasets.words import ANIMALS, NAMES, OBJECTS, PLACES, VERBS
from igap.errors import InputError
from igap.prompts import PromptPair, encode_prompt, single_tokens

LISTS: Mapping[str, Sequence[str]] = {
    "names": NAMES,
    "places": PLACES,
    "verbs": VERBS,
    "objects": OBJECTS,
    "animals": ANIMALS,
}
"""Lists a slot may offer by name; of these, words that the slot cannot hold are left out. A user's own must fit."""

SLOTS: Mapping[str, Sequence[str]] = {
    "first": [KEEP, "=N2", "=fresh[0]", "=fresh[1]", "=animal[0]", "=animal[1]", "names"],
    "second": [KEEP, "=N1", "=fresh[0]", "=fresh[1]", "=animal[0]", "=animal[1]", "names"],
    "subject": [KEEP, "=S", "=IO", "=fresh[0]", "=fresh[1]", "=animal[0]", "=animal[1]", "names"],
    "place": [KEEP, "places"],
    "verb": [KEEP, "verbs"],
    "object": [KEEP, "objects"],
}
"""The default space, that of `conf/search/space/slots.yaml`: words and rules for the notebook's template."""

OPERATORS = (KEEP, "=S", "=IO", "=N1", "=N2", "=fresh[K]", "=animal[K]")
"""What the slot has in the clean prompt; its subject, its indirect object; its first and second name; the K-th name
that it does not have; the K-th animal."""

_OPERATOR = re.compile(r"=(keep|S|IO|N1|N2|(?P<pool>fresh|animal)\[(?P<index>\d+)\])")


def matching_template(text: str) -> str | None:
    """The generator's template that this prompt follows; None where it follows none."""
    return next((template for template in ioi.TEMPLATES if _fills(template, text) is not None), None)


def build(
    template: str | None,
    lists: Mapping[str, Sequence[str]],
    pair: PromptPair,
    tokenizer: Any,
    *,
    prepend_bos: bool,
    max_edits: int | None = None,
) -> Space:
    """The space of a template, with for each of its slots named lists, words and rules.

    Raises InputError on a slot without a list or a list without a slot, on words that take another number of tokens
    than stand there, and on a space with fewer than two candidates.
    """
    asked, template = template, template or matching_template(pair.clean)
    if template is None:
        raise InputError(
            f"search.space.template: got null, and prompts.clean ({pair.clean!r}) follows none of igap's templates. "
            "Write the prompt with its slots in braces: search.space.template='After {first} met {second}, {subject} "
            "waved to'."
        )
    fills = _fills(template, pair.clean)
    if fills is None:
        raise InputError(
            f"search.space.template: got {template!r}, which prompts.clean ({pair.clean!r}) does not follow. Correct "
            "one of the two."
        )
    if template != asked:  # one of igap's own, of which not all have the slots of the notebook's
        kept = {name: (KEEP,) for name in fills if name not in SLOTS}
        lists = kept | {name: words for name, words in lists.items() if name in fills or name not in SLOTS}
    for name in [*fills, *lists]:
        if name not in lists or name not in fills:
            what, remedy = (
                ("a slot without a list", f"Add '+search.space.slots.{name}=[\"=keep\"]' to keep it as it is.")
                if name in fills
                else ("a list without a slot in the template", f"Take it out: '~search.space.slots.{name}'.")
            )
            raise InputError(
                f"search.space.slots.{name}: got {what}, wanted lists for exactly {', '.join(fills)}. {remedy}"
            )
    pieces = [_ids(tokenizer, text) for _, text in _pieces(template, fills)]
    whole = _ids(tokenizer, pair.clean)
    if list(itertools.chain(*pieces)) != whole:
        shown = "|".join(tokenizer.decode([i]) for i in whole)
        raise InputError(
            f"search.space.template: got {template!r}, whose slots begin or end within tokens of {pair.clean!r} "
            f"({shown}). Let slots be whole words."
        )
    slots: list[Slot] = []
    left_out: dict[str, int] = {}
    for slot, places in _places(template, fills, tokenizer, int(prepend_bos)).items():
        width = len(places[0][1])
        options, left_out[f"{slot}: not {width} known token{'s' * (width != 1)}"] = _options(
            slot, lists[slot], fills[slot], places, tokenizer
        )
        slots.append(Slot(slot, options, tuple(itertools.chain(*(where for _, where in places)))))
    chosen = tuple(one for one in slots if one.options != (KEEP,))
    return Space("slots", chosen, template, max_edits, left_out).check()


def fill(
    space: Space, pairs: Sequence[PromptPair], tokenizer: Any, *, prepend_bos: bool, device: torch.device | str = "cpu"
) -> Filled:
    """The space for these clean prompts, which all follow its template in as many tokens.

    Raises InputError on a rule whose word takes another number of tokens than the slot has.
    """
    template = space.template
    assert template is not None
    pools = {"fresh": single_tokens(tokenizer, NAMES), "animal": single_tokens(tokenizer, ANIMALS)}
    every = [_fills(template, pair.clean) or {} for pair in pairs]
    places_of = _places(template, every[0], tokenizer, int(prepend_bos))
    tables = []
    for slot in space.slots:
        places = places_of[slot.name]
        words = [
            [_word(option, slot.name, fills, pair, pools) for option in slot.options]
            for fills, pair in zip(every, pairs, strict=True)
        ]
        ids = {text: [_ids(tokenizer, lead + text) for lead, _ in places] for text in set(itertools.chain(*words))}
        for option, text in zip(slot.options * len(pairs), itertools.chain(*words), strict=True):
            for found, (_, where) in zip(ids[text], places, strict=True):
                if len(found) != len(where):
                    raise InputError(
                        f"search.space.slots.{slot.name}: got {option}, which gives {text!r} ({len(found)} tokens) "
                        f"where the prompt has {len(where)}. Take it out."
                    )
        rows_of = [[list(itertools.chain(*ids[text])) for text in row] for row in words]
        tables.append(torch.tensor(rows_of, device=device))
    rows = [_encoded(tokenizer, pair.clean, prepend_bos=prepend_bos) for pair in pairs]

    def write(pair: PromptPair, candidate: Candidate) -> str:
        fills = _fills(template, pair.clean) or {}
        named = zip(space.slots, space.words(candidate), strict=True)
        return template.format(**fills | {s.name: _word(option, s.name, fills, pair, pools) for s, option in named})

    return filled(space, pairs, torch.tensor(rows, device=device), tables, write)


def clean_prompts(
    pair: PromptPair, template: str | None, n: int, seed: int, tokenizer: Any, *, at_least: int | None = None
) -> list[PromptPair]:
    """The pair and up to `n` - 1 others of its template: other names, places, verbs, objects, all known, no two equal.

    Raises InputError where there are fewer than `at_least` (None: `n`), or the template is none of the generator's.
    """
    if n == 1:
        return [pair]
    if template not in ioi.TEMPLATES:
        raise InputError(
            f"clean.n: got {n} clean prompts (heldout.n counted) with a prompt of your own, whose others igap cannot "
            "make. Use clean.n=1 heldout.n=0, or a prompt that follows one of igap's IOI templates."
        )
    fills = _fills(template, pair.clean)
    assert fills is not None, "build or matching_template has seen to it"
    if [pair.answer.strip(), pair.distractor.strip()] != [_other(fills), fills["subject"]]:
        raise InputError(
            f"clean.n: got {n} clean prompts (heldout.n counted), whose others ask for the name that does not act "
            f"beside the one that does; the pair asks for {pair.answer!r} beside {pair.distractor!r}. Use clean.n=1 "
            "heldout.n=0."
        )
    ids = cache(partial(_ids, tokenizer))  # few words in many prompts

    def widths_of(fills: Mapping[str, str]) -> list[int]:
        return [len(ids(text)) for _, text in _pieces(template, fills)]

    widths = widths_of(fills)
    places = _places(template, fills, tokenizer, 0)
    words = {
        slot: [
            word for word in every if all(fits(tokenizer, lead + word, len(at)) for lead, at in places.get(slot, ()))
        ]
        for slot, every in ioi.WORDS.items()
    }
    names = single_tokens(tokenizer, NAMES)
    possible = len(names) * (len(names) - 1) * math.prod(len(words[slot]) for slot in words if slot in fills)
    if "other" in fills:
        possible *= len(words["object"]) - 1
    offered = {slot: words.get(slot, words["object"] if slot == "other" else names) for slot in fills}
    n_most = possible + any(word not in offered[slot] for slot, word in fills.items())
    order: ioi.Order = "ABBA" if fills["first"] == pair.answer.strip() else "BABA"
    found, texts = [pair], {pair.clean}
    stream = ioi.ioi_stream(
        seed,
        templates=[ioi.TEMPLATES.index(template)],
        names=names,
        orders=[order],
        words=words,
    )
    for example in itertools.islice(stream, 200 * n if possible else 0):
        own = _fills(template, example.clean) or {}
        known = all(tokenizer.unk_token_id not in ids(text) for _, text in _pieces(template, own))
        if example.clean not in texts and known and widths == widths_of(own):
            texts.add(example.clean)
            found.append(PromptPair(example.clean, example.corrupted, example.answer, example.distractor, pair.min_gap))
            if len(found) == min(n, n_most):
                break
    if len(found) < (n if at_least is None else at_least):
        raise InputError(
            f"clean.n: got {n} (heldout.n counted), but of igap's words that the tokenizer knows and that take the "
            f"pair's number of tokens in every slot only {len(found)} prompts were made. Use a smaller number."
        )
    return found


def _other(fills: Mapping[str, str]) -> str:
    """Of the two names of a generated prompt the one that does not act."""
    return fills["second"] if fills["subject"] == fills["first"] else fills["first"]


def slot_names(template: str) -> list[str]:
    """The names in braces, in order."""
    return [name for _, name in _parsed(template) if name is not None]


def fits(tokenizer: Any, text: str, width: int) -> bool:
    """Whether a text is as many known tokens, and these tokens this text: a decode-encode round trip."""
    ids = _ids(tokenizer, text)
    known = tokenizer.unk_token_id is None or tokenizer.unk_token_id not in ids
    return len(ids) == width and known and tokenizer.decode(ids).strip() == text.strip()


def _encoded(tokenizer: Any, text: str, *, prepend_bos: bool) -> list[int]:
    return encode_prompt(tokenizer, text, prepend_bos=prepend_bos, item="prompts.clean", n_ctx=None, n_vocab=None)


def _options(
    name: str, offered: Sequence[str], clean: str, places: Sequence[tuple[str, range]], tokenizer: Any
) -> tuple[tuple[str, ...], int]:
    """The options of a slot, each once, and how many words of named lists it cannot hold."""
    width = len(places[0][1])
    options: dict[str, None] = {}
    misfits: list[str] = []
    n_out = 0
    for entry in offered:
        if _OPERATOR.fullmatch(entry):
            options[entry] = None
        elif entry.startswith("="):
            raise InputError(
                f"search.space.slots.{name}: got {entry!r}, wanted a word, a list ({', '.join(LISTS)}) or one of "
                f"{', '.join(OPERATORS)}."
            )
        else:
            for word in LISTS.get(entry, (entry,)):
                wrong = [lead for lead, where in places if not fits(tokenizer, lead + word, len(where))]
                if not wrong:
                    options[word] = None
                elif entry in LISTS:
                    n_out += 1
                else:
                    misfits.append(_misfit(tokenizer, wrong[0], word))
    if misfits:
        raise InputError(
            f"search.space.slots.{name}: got {', '.join(misfits)}, wanted words of {width} known token"
            f"{'s' * (width != 1)}, as many as {clean!r}. Take them out."
        )
    if not options:
        raise InputError(
            f"search.space.slots.{name}: got no word that fits, wanted one or more of {width} token"
            f"{'s' * (width != 1)}. Offer some."
        )
    return tuple(options), n_out


def _misfit(tokenizer: Any, lead: str, word: str) -> str:
    ids = _ids(tokenizer, lead + word)
    unknown = tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids
    return f"{word!r} ({'unknown' if unknown else f'{len(ids)} tokens'})"


def _word(
    option: str, slot: str, fills: Mapping[str, str], pair: PromptPair, pools: Mapping[str, Sequence[str]]
) -> str:
    """What an option puts into a slot of this clean prompt."""
    operator = _OPERATOR.fullmatch(option)
    if operator is None:
        return option
    if operator["pool"]:
        present = {*fills.values(), pair.answer.strip(), pair.distractor.strip()}
        pool = [word for word in pools[operator["pool"]] if word not in present]
        if not pool:
            raise InputError(f"search.space.slots.{slot}: got {option}, but the tokenizer knows no such word as one.")
        return pool[int(operator["index"]) % len(pool)]
    if operator[1] in ("N1", "N2"):
        role = {"N1": "first", "N2": "second"}[operator[1]]
        if role not in fills:
            raise InputError(
                f"search.space.slots.{slot}: got {option}, but the template has no slot {{{role}}}. Take it out."
            )
        return fills[role]
    subject = fills.get("subject", pair.distractor.strip())
    return {"keep": fills[slot], "S": subject, "IO": pair.answer.strip()}[operator[1]]


def _fills(template: str, text: str) -> dict[str, str] | None:
    """What a prompt has in each slot of the template; None where it does not follow it."""
    parts = []
    seen: set[str] = set()
    for literal, name in _parsed(template):
        parts.append(re.escape(literal))
        if name is not None:
            parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>.+?)")
            seen.add(name)
    match = re.fullmatch("".join(parts), text)
    return None if match is None else match.groupdict()


def _parsed(template: str) -> list[tuple[str, str | None]]:
    """The texts between slots, each with the slot that follows it. Raises InputError on braces that are no slots."""
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


def _pieces(template: str, fills: Mapping[str, str]) -> list[tuple[str | None, str]]:
    """The prompt in pieces, a slot's name or None and its text; a space belongs to what follows it."""
    texts: list[tuple[str | None, str]] = []
    for literal, name in _parsed(template):
        lead = " " if name is not None and literal.endswith(" ") else ""
        texts.append((None, literal[: len(literal) - len(lead)]))
        if name is not None:
            texts.append((name, lead + fills[name]))
    return [(name, text) for name, text in texts if text]


def _places(template: str, fills: Mapping[str, str], tokenizer: Any, start: int) -> dict[str, list[tuple[str, range]]]:
    """Of each slot the places where the template has it: the space before its word or none, and token positions."""
    places: dict[str, list[tuple[str, range]]] = {}
    for slot, text in _pieces(template, fills):
        width = len(_ids(tokenizer, text))
        if slot is not None:
            places.setdefault(slot, []).append((text[: len(text) - len(fills[slot])], range(start, start + width)))
        start += width
    return places


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
