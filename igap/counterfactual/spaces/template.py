"""Template spaces: each slot offers named lists, the user's own words, and rules over the clean prompt's roles.

Further clean prompts of a template ask the same question in other words, so that a result is no fact about one prompt.
An option takes as many tokens as what stands in its slot.
"""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch

from igap.counterfactual.spaces.base import (
    KEEP,
    BoundSpace,
    Candidate,
    Slot,
    Space,
    all_words,
    bind_space,
)
from igap.counterfactual.spaces.positions import (
    SlotPosition,
    count_leading_tokens,
    encode,
    find_slots,
    match_slots,
    parse_template,
    split_prompt,
)
from igap.counterfactual.spaces.rules import OPERATOR, OPERATORS, OTHER, word_of
from igap.errors import InputError
from igap.inputs import ioi
from igap.inputs.prompts import PromptPair
from igap.inputs.tokenizing import continuation, single_tokens, token_ids
from igap.inputs.words import ANIMALS, NAMES, OBJECTS, PLACES, VERBS

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

_BESIDE = re.compile(r";\s*([A-Za-z]\w*)=([^;]*)")


def split_entry(entry: str) -> tuple[str, dict[str, str]]:
    """The word of a list's entry, and what goes with it by name: "Paris; country=France"."""
    word, *rest = re.split(r"(?=;\s*[A-Za-z]\w*=)", entry, maxsplit=1)
    return word, {name: text.strip() for name, text in _BESIDE.findall("".join(rest))}


def find_template(text: str) -> str | None:
    """The generator's template that this prompt follows; None if it follows none."""
    return next((template for template in ioi.TEMPLATES if match_slots(template, text) is not None), None)


def template_space(
    template: str | None,
    lists: Mapping[str, Sequence[str]],
    pair: PromptPair,
    tokenizer: Any,
    *,
    prepend_bos: bool,
    max_edits: int | None = None,
    beside: Sequence[PromptPair] | None = None,
) -> Space:
    """The space of a template, with for each of its slots named lists, words and rules.

    `beside` are clean prompts of other lengths, which an option fits into, too: a word of the user's that does not is
    left out then, and counted. None: all clean prompts have the pair's length.

    Raises InputError on a slot without a list or a list without a slot, on words that take another number of tokens
    than stand there, and on a space with fewer than two candidates.
    """
    asked, template = template, template or find_template(pair.clean)
    if template is None:
        raise InputError(
            f"search.space.template: got null, and prompts.clean ({pair.clean!r}) follows none of igap's templates. "
            "Write the prompt with its slots in braces: search.space.template='After {first} met {second}, {subject} "
            "waved to'."
        )
    fills = match_slots(template, pair.clean)
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
    pieces = [continuation(tokenizer, before, text) for _, before, text in split_prompt(template, fills)]
    whole = token_ids(tokenizer, pair.clean)
    if None in pieces or list(itertools.chain(*filter(None, pieces))) != whole:
        shown = "|".join(tokenizer.decode([i]) for i in whole)
        raise InputError(
            f"search.space.template: got {template!r}, whose slots begin or end within tokens of {pair.clean!r} "
            f"({shown}). Let slots be whole words."
        )
    slots: list[Slot] = []
    left_out: dict[str, int] = {}
    start = count_leading_tokens(pair, tokenizer, prepend_bos=prepend_bos)
    others = [match_slots(template, other.clean) or {} for other in beside or ()]
    elsewhere = [find_slots(template, words, tokenizer, start) for words in others]
    for slot, places in find_slots(template, fills, tokenizer, start).items():
        width = len(places[0].positions)
        every = [*places, *(place for other in elsewhere for place in other[slot])]
        every = [*{(place.before, place.lead, len(place.positions)): place for place in every}.values()]
        fits = len({len(place.positions) for place in every}) == 1
        why = f"{slot}: not {width} known token{'s' * (width != 1)}" if fits else (
            f"{slot}: not as many tokens as in all clean prompts"
        )  # fmt: skip
        options, left_out[why] = _options(slot, lists[slot], fills[slot], every, tokenizer, refuses=beside is None)
        slots.append(Slot(slot, options, tuple(itertools.chain(*(place.positions for place in places)))))
    chosen = tuple(slot for slot in slots if slot.options != (KEEP,))
    return Space("slots", chosen, template, max_edits, left_out).check()


def bind_template(
    space: Space, pairs: Sequence[PromptPair], tokenizer: Any, *, prepend_bos: bool, device: torch.device | str = "cpu"
) -> BoundSpace:
    """The space for these clean prompts, which all follow its template in as many tokens.

    Raises InputError on a rule whose word takes another number of tokens than the slot has.
    """
    template = space.template
    assert template is not None
    pools = {"fresh": single_tokens(tokenizer, NAMES), "animal": single_tokens(tokenizer, ANIMALS)}
    every = [match_slots(template, pair.clean) or {} for pair in pairs]
    places_of = find_slots(
        template, every[0], tokenizer, count_leading_tokens(pairs[0], tokenizer, prepend_bos=prepend_bos)
    )
    tables = []
    for slot in space.slots:
        places = places_of[slot.name]
        rules = set(filter(OPERATOR.fullmatch, slot.options))  # few: a word is the same for every clean prompt
        words = [
            [
                word_of(option, slot.name, template, fills, pair, pools) if option in rules else option
                for option in slot.options
            ]
            for fills, pair in zip(every, pairs, strict=True)
        ]
        option_of: dict[str, str] = {}  # the first that gives a text
        for option, text in zip(slot.options * len(pairs), itertools.chain(*words), strict=True):
            option_of.setdefault(text, option)
        rows_of_texts = []
        for text, option in option_of.items():
            ids = [place.ids(tokenizer, text) for place in places]
            for tokens, place in zip(ids, places, strict=True):
                if len(tokens) != len(place.positions):
                    raise InputError(
                        f"search.space.slots.{slot.name}: got {option}, which gives {text!r} ({len(tokens)} tokens) "
                        f"where the prompt has {len(place.positions)}. Take it out."
                    )
            rows_of_texts.append(list(itertools.chain(*ids)))
        row_of = {text: row for row, text in enumerate(option_of)}
        chosen = torch.tensor([[row_of[text] for text in row] for row in words], device=device)
        tables.append(torch.tensor(rows_of_texts, device=device)[chosen])
    rows = [encode(pair, tokenizer, prepend_bos=prepend_bos) for pair in pairs]

    def write(pair: PromptPair, candidate: Candidate) -> str:
        fills = match_slots(template, pair.clean) or {}
        named = zip(space.slots, space.words(candidate), strict=True)
        return template.format(
            **fills | {s.name: word_of(option, s.name, template, fills, pair, pools) for s, option in named}
        )

    return bind_space(space, pairs, torch.tensor(rows, device=device), tables, write)


def generate_clean_prompts(
    pair: PromptPair,
    template: str | None,
    n: int,
    seed: int,
    tokenizer: Any,
    *,
    at_least: int | None = None,
    any_length: bool = False,
) -> list[PromptPair]:
    """The pair and up to `n` - 1 others of its template: other names, places, verbs, objects, all known, no two equal.

    They have the pair's numbers of tokens in every slot, unless with `any_length`.

    Raises InputError where there are fewer than `at_least` (None: `n`), or the template is none of the generator's.
    """
    if n == 1:
        return [pair]
    wanted = n if at_least is None else at_least
    if template not in ioi.TEMPLATES:
        raise InputError(
            f"clean.n: got {wanted} clean prompts (heldout.n counted) with a prompt of your own, whose others igap "
            "cannot make. Use clean.n=1 heldout.n=0, clean.file with a file of pairs, or search.space.answer, which "
            "says what the answer is in other words of the template."
        )
    fills = match_slots(template, pair.clean)
    assert fills is not None, "template_space or find_template has seen to it"
    if all_words(pair) != [_name_that_does_not_act(fills), fills["subject"]]:
        raise InputError(
            f"clean.n: got {wanted} clean prompts (heldout.n counted), whose others ask for the name that does not act "
            f"beside the one that does; the pair asks for {pair.answer!r} beside {pair.distractor!r}. Use clean.n=1 "
            "heldout.n=0."
        )
    ids = cache(partial(continuation, tokenizer))  # few words in many prompts

    def pieces_of(fills: Mapping[str, str]) -> list[list[int]]:
        return [ids(before, text) or [] for _, before, text in split_prompt(template, fills)]

    widths = list(map(len, pieces_of(fills)))
    places = find_slots(template, fills, tokenizer, 0)
    words = {
        slot: [
            word
            for word in every
            if all(place.fits(tokenizer, word, any_length=any_length) for place in places.get(slot, ()))
        ]
        for slot, every in ioi.WORDS.items()
    }
    names = single_tokens(tokenizer, NAMES)
    possible = len(names) * (len(names) - 1) * math.prod(len(words[slot]) for slot in words if slot in fills)
    if "other" in fills:
        possible *= len(words["object"]) - 1
    offered = {slot: words.get(slot, words["object"] if slot == "other" else names) for slot in fills}
    n_most = possible + any(word not in offered[slot] for slot, word in fills.items())
    order: ioi.Order = "ABBA" if fills["first"] == all_words(pair)[0] else "BABA"
    pairs, texts = [pair], {pair.clean}
    stream = ioi.ioi_stream(
        seed,
        templates=[ioi.TEMPLATES.index(template)],
        names=names,
        orders=[order],
        words=words,
    )
    for example in itertools.islice(stream, 200 * n if possible else 0):
        own = match_slots(template, example.clean) or {}
        pieces = pieces_of(own)
        known = all(piece and tokenizer.unk_token_id not in piece for piece in pieces)
        if example.clean not in texts and known and (any_length or widths == list(map(len, pieces))):
            texts.add(example.clean)
            made = (example.clean, example.corrupted, example.answer, example.distractor)
            pairs.append(PromptPair(*made, pair.min_gap, bos=pair.bos))
            if len(pairs) == min(n, n_most):
                break
    if len(pairs) < wanted:
        raise InputError(
            f"clean.n: got {wanted} (heldout.n counted), but of igap's words that the tokenizer knows and that take "
            f"the pair's number of tokens in every slot only {len(pairs)} prompts were made. Use a smaller number."
        )
    return pairs


def _name_that_does_not_act(fills: Mapping[str, str]) -> str:
    """The one of a generated prompt's two names that does not act."""
    return fills["second"] if fills["subject"] == fills["first"] else fills["first"]


def slot_names(template: str) -> list[str]:
    """The names in braces, in order."""
    return [name for _, name in parse_template(template) if name is not None]


def _options(
    name: str, offered: Sequence[str], clean: str, places: Sequence[SlotPosition], tokenizer: Any, *, refuses: bool
) -> tuple[tuple[str, ...], int]:
    """The options of a slot, each once, and how many words it cannot hold: those of named lists, or of all.

    With `refuses` a word of the user's that it cannot hold raises InputError.
    """
    width = len(places[0].positions)
    options: dict[str, None] = {}
    misfits: list[str] = []
    n_out = 0
    for entry in (split_entry(each)[0] for each in offered):
        if OPERATOR.fullmatch(entry):
            options[entry] = None
        elif entry.startswith("="):
            raise InputError(
                f"search.space.slots.{name}: got {entry!r}, wanted a word, a list ({', '.join(LISTS)}) or one of "
                f"{', '.join(OPERATORS)}."
            )
        else:
            for word in LISTS.get(entry, (entry,)):
                wrong = [place for place in places if not place.fits(tokenizer, word)]
                if not wrong:
                    options[word] = None
                elif entry in LISTS or not refuses:
                    n_out += 1
                else:
                    misfits.append(_describe_misfit(tokenizer, wrong[0], word))
    if misfits:
        raise InputError(
            f"search.space.slots.{name}: got {', '.join(misfits)}, wanted words of {width} known token"
            f"{'s' * (width != 1)}, as many as {clean!r}. Take them out."
        )
    if not options:
        widths = " and of ".join(map(str, sorted({len(place.positions) for place in places})))
        remedy = "Offer some." if refuses else f"Offer {KEEP}, {OTHER}, or use clean.lengths=one."
        raise InputError(
            f"search.space.slots.{name}: got no word that fits, wanted one or more of {widths} token"
            f"{'s' * (widths != '1')}. {remedy}"
        )
    return tuple(options), n_out


def _describe_misfit(tokenizer: Any, place: SlotPosition, word: str) -> str:
    ids = place.ids(tokenizer, word)
    unknown = tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids
    return f"{word!r} ({'unknown' if unknown else f'{len(ids)} tokens'})"
