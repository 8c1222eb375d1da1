"""The corrupted prompts that a search chooses from: a word of a list for each slot of a template.

A candidate is one option a slot, as indices. An option is a text, the same for all clean prompts, or a relational
operator ("=S"), which takes its word from the clean prompt at hand: a rule such as "second := S" says something of
every prompt. Everything is decided in tokens: an option takes as many as what stands in its slot in the clean prompt,
so that all prompts have one length and are read at one position.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from string import Formatter
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from igap.datasets import ioi
from igap.datasets.words import ANIMALS, NAMES, OBJECTS, PLACES, VERBS
from igap.errors import InputError
from igap.prompts import PromptPair, single_tokens

LISTS: Mapping[str, Sequence[str]] = {
    "names": NAMES,
    "places": PLACES,
    "verbs": VERBS,
    "objects": OBJECTS,
    "animals": ANIMALS,
}
"""Lists a slot may offer by name; of these, words that the slot cannot hold are left out. A user's own must fit."""

OPERATORS = ("=keep", "=S", "=IO", "=N1", "=N2", "=fresh[K]", "=animal[K]")
"""What the slot has in the clean prompt; its subject, its indirect object; its first and second name; the K-th name
that it does not have; the K-th animal."""

_OPERATOR = re.compile(r"=(keep|S|IO|N1|N2|(?P<pool>fresh|animal)\[(?P<index>\d+)\])")

Candidate = tuple[int, ...]
"""One option's index a slot."""


@dataclass(frozen=True)
class Slot:
    """A part of the prompt that candidates differ in."""

    name: str
    options: tuple[str, ...]
    """Words or phrases, and operators."""
    positions: tuple[int, ...]
    """Token positions, BOS counted."""


@dataclass(frozen=True, eq=False)
class Space:
    """All candidates, for one or several clean prompts of one template."""

    template: str
    slots: tuple[Slot, ...]
    left_out: Mapping[str, int]
    """Slot to words of named lists that it cannot hold: they are more tokens than stand there, or unknown."""

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Options of each slot."""
        return tuple(len(slot.options) for slot in self.slots)

    @property
    def size(self) -> int:
        """Candidates in all."""
        size = 1
        for n in self.sizes:
            size *= n
        return size

    def index(self, words: Mapping[str, str]) -> Candidate | None:
        """The candidate of these options, one a slot; None where a slot does not offer its one."""
        found = [words.get(slot.name) for slot in self.slots]
        if any(word not in slot.options for slot, word in zip(self.slots, found, strict=True)):
            return None
        return tuple(slot.options.index(str(word)) for slot, word in zip(self.slots, found, strict=True))

    @property
    def digest(self) -> str:
        """12 hex digits of template, slots and options, in their order: what the indices of a candidate mean."""
        text = json.dumps([self.template, [[slot.name, slot.options] for slot in self.slots]])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def words(self, candidate: Candidate) -> tuple[str, ...]:
        """The options that the candidate names."""
        return tuple(slot.options[index] for slot, index in zip(self.slots, candidate, strict=True))

    def rule(self, candidate: Candidate) -> str:
        """The candidate in words, "subject := S, place := zoo", without slots that keep what they have."""
        named = zip(self.slots, self.words(candidate), strict=True)
        return ", ".join(f"{slot.name} := {word.lstrip('=')}" for slot, word in named if word != "=keep") or "nothing"


@dataclass(frozen=True, eq=False)
class Filled:
    """A space and the clean prompts it is filled in for."""

    space: Space
    pairs: tuple[PromptPair, ...]
    """Each clean prompt, and beside it the corrupted prompt made by hand: the other name acts."""
    clean: Int[Tensor, "pair pos"]
    tables: tuple[Int[Tensor, "given option width"], ...]
    """Of each slot the tokens of its options, for every clean prompt, or once where they are equal for all."""
    shared: bool
    """Whether a candidate is the same corrupted prompt for all clean prompts; the axis `given` then has length 1."""

    @cached_property
    def first(self) -> int:
        """The first position at which any candidate differs from any clean prompt, or clean prompts differ."""
        found = [position for slot in self.space.slots for position in slot.positions]
        differ = (self.clean != self.clean[:1]).any(0).nonzero().flatten().tolist() if self.shared else []
        return int(min([*found, *differ]))

    def tokens(self, candidates: Sequence[Candidate]) -> Int[Tensor, "given candidate pos"]:
        """The corrupted prompts' tokens."""
        rows = self.clean[: self.given, None].repeat(1, len(candidates), 1)
        for column, (slot, table) in enumerate(zip(self.space.slots, self.tables, strict=True)):
            chosen = torch.tensor([candidate[column] for candidate in candidates], device=rows.device)
            rows[:, :, list(slot.positions)] = table[:, chosen]
        return rows

    @property
    def given(self) -> int:
        """Corrupted prompts a candidate: one a clean prompt, or one for all."""
        return 1 if self.shared else len(self.pairs)

    def unshared(self) -> "Filled":
        """The same with a corrupted prompt for every clean prompt, so that these may keep some of their own words."""
        n = len(self.pairs)
        tables = tuple(table.expand(n, -1, -1) for table in self.tables)
        return Filled(self.space, self.pairs, self.clean, tables, shared=False)

    def partly(self, candidate: Candidate, slots: Sequence[int]) -> Int[Tensor, "given pos"]:
        """The clean prompts with the candidate's words in these slots only."""
        rows = self.clean[: self.given].clone()
        whole = self.tokens([candidate])[:, 0]
        for index in slots:
            where = list(self.space.slots[index].positions)
            rows[:, where] = whole[:, where]
        return rows

    def edited(self, candidate: Candidate) -> tuple[int, ...]:
        """Indices of the slots in which the corrupted prompt differs from a clean prompt."""
        differ = (self.tokens([candidate])[:, 0] != self.clean[: self.given]).any(0)
        return tuple(i for i, slot in enumerate(self.space.slots) if bool(differ[list(slot.positions)].any()))

    def texts(self, candidate: Candidate) -> list[str]:
        """The corrupted prompt of every clean prompt."""
        found = []
        for pair in self.pairs:
            fills = _fills(self.space.template, pair.clean)
            assert fills is not None, "clean_prompts follow the template"
            words = zip(self.space.slots, self.space.words(candidate), strict=True)
            own = {slot.name: _word(option, slot.name, fills, pair) for slot, option in words}
            found.append(self.space.template.format(**fills | own))
        return found


def matching_template(text: str) -> str:
    """The generator's template that this prompt follows. Raises InputError where there is none."""
    for template in ioi.TEMPLATES:
        if _fills(template, text) is not None:
            return template
    raise InputError(
        f"search.space.template: got null, and prompts.clean ({text!r}) follows none of igap's templates. Write the "
        "prompt with its slots in braces: search.space.template='After {first} met {second}, {subject} waved to'."
    )


def build(
    template: str | None, lists: Mapping[str, Sequence[str]], pair: PromptPair, tokenizer: Any, *, prepend_bos: bool
) -> Space:
    """The space of a template, with for each of its slots named lists, words and operators.

    Raises InputError on a slot without a list or a list without a slot, on words that take another number of tokens
    than stand there, and on a space with fewer than two candidates.
    """
    template = matching_template(pair.clean) if template is None else template
    fills = _fills(template, pair.clean)
    if fills is None:
        raise InputError(
            f"search.space.template: got {template!r}, which prompts.clean ({pair.clean!r}) does not follow. Correct "
            "one of the two."
        )
    for name in [*fills, *lists]:
        if name not in lists or name not in fills:
            what = "a slot without a list" if name in fills else "a list without a slot in the template"
            raise InputError(
                f"search.space.slots.{name}: got {what}, wanted lists for exactly {', '.join(fills)}. "
                f"Add search.space.slots.{name}=[=keep] to keep it as it is, or take it out."
            )
    slots: list[Slot] = []
    left_out: dict[str, int] = {}
    parts = _pieces(template, fills, tokenizer)
    start = int(prepend_bos)
    for slot, piece, width in parts:
        if slot is not None:
            options, left_out[slot] = _options(slot, lists[slot], piece, width, tokenizer)
            if options != ("=keep",):
                slots.append(Slot(slot, options, tuple(range(start, start + width))))
        start += width
    space = Space(template, tuple(slots), left_out)
    if space.size < 2:
        raise InputError(
            f"search.space: got a space of {space.size} candidate, wanted at least two. Give a slot more words."
        )
    return space


def fill(
    space: Space, pairs: Sequence[PromptPair], tokenizer: Any, *, prepend_bos: bool, device: torch.device | str = "cpu"
) -> Filled:
    """The space for these clean prompts, which all follow its template in as many tokens."""
    every = [_fills(space.template, pair.clean) for pair in pairs]
    leads = {name: _lead(space.template, name) for name in slot_names(space.template)}
    rows = [[tokenizer.bos_token_id] * prepend_bos + _ids(tokenizer, pair.clean) for pair in pairs]
    tables = []
    for slot in space.slots:
        texts = [
            [_word(option, slot.name, fills, pair) for option in slot.options]
            for fills, pair in zip(every, pairs, strict=True)
            if fills is not None
        ]
        ids = {text: _ids(tokenizer, leads[slot.name] + text) for text in set(itertools.chain(*texts))}
        table = torch.tensor([[ids[text] for text in row] for row in texts], device=device)
        tables.append(table)
    clean = torch.tensor(rows, device=device)
    fixed = torch.ones(clean.shape[1], dtype=torch.bool, device=device)
    fixed[[position for slot in space.slots for position in slot.positions]] = False
    shared = all(bool((table == table[:1]).all()) for table in tables) and bool((clean == clean[:1])[:, fixed].all())
    return Filled(space, tuple(pairs), clean, tuple(table[:1] if shared else table for table in tables), shared)


def clean_prompts(pair: PromptPair, space: Space, n: int, seed: int, tokenizer: Any) -> list[PromptPair]:
    """The pair and `n` - 1 others of its template: other names, places, verbs, objects, no two equal.

    Raises InputError where the template is none of the generator's, or has too few prompts.
    """
    if n == 1:
        return [pair]
    if space.template not in ioi.TEMPLATES:
        raise InputError(
            f"clean.n: got {n} with a template of your own, whose other clean prompts igap cannot make. Use clean.n=1 "
            "heldout.n=0, or one of igap's templates (search.space.template=null)."
        )
    widths = [width for _, _, width in _pieces(space.template, _fills(space.template, pair.clean) or {}, tokenizer)]
    found, texts = [pair], {pair.clean}
    order = _order(space.template, pair)
    stream = ioi.ioi_stream(
        seed,
        templates=[ioi.TEMPLATES.index(space.template)],
        names=single_tokens(tokenizer, NAMES),
        orders=[order],
    )
    for example in itertools.islice(stream, 200 * n):
        fills = _fills(space.template, example.clean) or {}
        if example.clean in texts or widths != [w for _, _, w in _pieces(space.template, fills, tokenizer)]:
            continue
        texts.add(example.clean)
        found.append(PromptPair(example.clean, example.corrupted, example.answer, example.distractor, pair.min_gap))
        if len(found) == n:
            return found
    raise InputError(
        f"clean.n: got {n}, but among {200 * n} generated prompts only {len(found)} take the pair's number of tokens "
        "in every slot. Use a smaller number."
    )


def _options(name: str, offered: Sequence[str], clean: str, width: int, tokenizer: Any) -> tuple[tuple[str, ...], int]:
    """The options of a slot, each once, and how many words of named lists it cannot hold."""
    lead = clean[: len(clean) - len(clean.lstrip())]
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
                if _fits(tokenizer, lead + word, width):
                    options[word] = None
                elif entry in LISTS:
                    n_out += 1
                else:
                    misfits.append(f"{word!r} ({len(_ids(tokenizer, lead + word))} tokens)")
    if misfits:
        raise InputError(
            f"search.space.slots.{name}: got {', '.join(misfits)}, wanted words of {width} known token"
            f"{'s' * (width != 1)}, as many as {clean.strip()!r}. Take them out."
        )
    if not options:
        raise InputError(f"search.space.slots.{name}: got no word that fits, wanted one or more of {width} tokens.")
    return tuple(options), n_out


def _fits(tokenizer: Any, text: str, width: int) -> bool:
    """Whether a text is as many known tokens, and these tokens this text."""
    ids = _ids(tokenizer, text)
    known = tokenizer.unk_token_id is None or tokenizer.unk_token_id not in ids
    return len(ids) == width and known and tokenizer.decode(ids).strip() == text.strip()


def _word(option: str, slot: str, fills: Mapping[str, str], pair: PromptPair) -> str:
    """What an option puts into a slot of this clean prompt."""
    operator = _OPERATOR.fullmatch(option)
    if operator is None:
        return option
    if operator["pool"]:
        present = set(fills.values())
        pool = [word for word in (NAMES if operator["pool"] == "fresh" else ANIMALS) if word not in present]
        return pool[int(operator["index"]) % len(pool)]
    named = {"keep": fills[slot], "S": pair.distractor.strip(), "IO": pair.answer.strip()}
    return named.get(operator[1]) or fills[{"N1": "first", "N2": "second"}[operator[1]]]


def _fills(template: str, text: str) -> dict[str, str] | None:
    """What a prompt has in each slot of the template; None where it does not follow it."""
    parts = []
    seen: set[str] = set()
    for literal, name, _, _ in Formatter().parse(template):
        parts.append(re.escape(literal))
        if name is not None:
            parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>.+?)")
            seen.add(name)
    match = re.fullmatch("".join(parts), text)
    return None if match is None else match.groupdict()


def slot_names(template: str) -> list[str]:
    """The names in braces, in order."""
    return [name for _, name, _, _ in Formatter().parse(template) if name is not None]


def _lead(template: str, name: str) -> str:
    """The space before a slot, which belongs to its first token; none at the start of the prompt."""
    return " " if f" {{{name}}}" in template else ""


def _pieces(template: str, fills: Mapping[str, str], tokenizer: Any) -> list[tuple[str | None, str, int]]:
    """The prompt in pieces, a slot's name or None, its text, its tokens; a space belongs to what follows it."""
    texts: list[tuple[str | None, str]] = []
    lead = ""
    for literal, name, _, _ in Formatter().parse(template):
        text = lead + literal
        lead = " " if name is not None and text.endswith(" ") else ""
        texts.append((None, text[: len(text) - len(lead)]))
        if name is not None:
            texts.append((name, lead + fills[name]))
            lead = ""
    return [(name, text, len(_ids(tokenizer, text))) for name, text in texts if text]


def _order(template: str, pair: PromptPair) -> ioi.Order:
    fills = _fills(template, pair.clean) or {}
    return "ABBA" if fills["first"] == pair.answer.strip() else "BABA"


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
