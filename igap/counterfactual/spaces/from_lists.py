"""Further clean prompts of any template: the pair with other words of its slots' lists, and the answer that follows.

What is equal in the pair stays equal, and what differs stays different: a word that stands in two slots, or in a slot
of both prompts, is replaced as one; two that differ are replaced by two. The same holds for what goes with a word
("dogs; verb=are; of=dog"): where the pair's two words share it, the new ones do.
"""

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from igap.counterfactual.spaces.base import asked_words
from igap.counterfactual.spaces.from_pairs import Reading, check_pair
from igap.counterfactual.spaces.positions import find_slots, match_slots, split_prompt
from igap.counterfactual.spaces.template import LISTS, slot_names, split_entry
from igap.errors import InputError
from igap.inputs.prompts import PromptPair
from igap.inputs.tokenizing import continuation

_DRY = 500
"""Draws in a row that give nothing new, after which there is taken to be nothing else."""

Cell = tuple[bool, str]
"""Whether it is the clean prompt's, and the slot."""
Words = Mapping[str, Mapping[str, str]]
"""The words of a slot, each with what goes with it by name."""


@dataclass(frozen=True, eq=False)
class ListedTemplate:
    """A pair's template with lists for its slots, and how answer and distractor follow from them."""

    pair: PromptPair
    template: str
    words: Mapping[str, Words]
    """For each slot the words that fit; empty: the slot keeps what the pair has there."""
    answer: str
    """With names in braces of slots, or of what goes with their words: the clean prompt's."""
    distractor: str
    """The same of the corrupted prompt's."""
    tokenizer: Any
    reading: Reading

    @cached_property
    def fills(self) -> Mapping[bool, Mapping[str, str]]:
        """The pair's words by slot, of the clean prompt (True) and of the corrupted one."""
        clean, corrupted = (match_slots(self.template, text) for text in (self.pair.clean, self.pair.corrupted))
        assert clean is not None, "template_space has seen to it"
        if corrupted is None:
            raise InputError(
                f"prompts.corrupted: got {self.pair.corrupted!r}, which does not follow search.space.template, wanted "
                "one that does, so that those of further clean prompts can be made. Reword it, or use clean.n=1 "
                "heldout.n=0."
            )
        return {True: clean, False: corrupted}

    @cached_property
    def cells(self) -> Mapping[str, Sequence[Cell]]:
        """Where each word of the pair stands. Those that something goes with come first: few words agree with them."""
        places: dict[str, list[Cell]] = {}
        for is_clean, slot in itertools.product((True, False), self.words):
            places.setdefault(self.fills[is_clean][slot], []).append((is_clean, slot))
        return dict(sorted(places.items(), key=lambda at: not any(self._tags(slot) for _, slot in at[1])))

    def _tags(self, slot: str) -> tuple[str, ...]:
        return tuple(next(iter(self.words[slot].values()), {}))

    def domain(self, word: str) -> tuple[str, ...]:
        """What may stand for a word of the pair: words that all of its slots offer; itself if none has a list."""
        offers = [self.words[slot] for slot in dict.fromkeys(slot for _, slot in self.cells[word]) if self.words[slot]]
        return tuple(each for each in offers[0] if all(each in other for other in offers)) if offers else (word,)

    def check(self) -> None:
        """Raises InputError where answer or distractor cannot be told from the lists, or is not the pair's own."""
        owners: dict[str, str] = {}
        for slot, words in self.words.items():
            for tag in self._tags(slot):
                if tag in owners or tag in self.words:
                    raise InputError(
                        f"search.space.slots.{slot}: got {tag}=... with its words, which is also the name of "
                        f"{'a slot' if tag in self.words else f'what goes with {owners[tag]}'}. Rename one."
                    )
                owners[tag] = slot
            for word in {self.fills[side][slot] for side in (True, False)} if self._tags(slot) else ():
                if word not in words:
                    raise InputError(
                        f"search.space.slots.{slot}: got no {word!r}, which the pair has there, wanted it with what "
                        f"goes with it. Add '{word}{''.join(f'; {tag}=...' for tag in self._tags(slot))}'."
                    )
        for item, text, is_clean in (("answer", self.answer, True), ("distractor", self.distractor, False)):
            for name in names_in(text, item):
                slot = owners.get(name, name)
                if slot not in self.words:
                    raise InputError(
                        f"search.space.{item}: got {{{name}}}, which is no slot of the template and goes with no "
                        f"word of its lists, wanted one of {', '.join((*self.words, *owners))}. Correct it."
                    )
                if len(self.domain(self.fills[is_clean][slot])) < 2:
                    raise InputError(
                        f"search.space.{item}: got {{{name}}}, but search.space.slots.{slot} has no list of words, so "
                        "that all clean prompts would ask the same. Give it one, with words as long as the pair's."
                    )
        own_words = asked_words(self.pair, "search.space.answer names")
        for item, own, made in zip(("answer", "distractor"), own_words, self._answer_after(self.fills), strict=True):
            if own != made.strip():
                raise InputError(
                    f"search.space.{item}: got {getattr(self, item)!r}, which is {made!r} in the pair, whose {item} is "
                    f"{getattr(self.pair, item)!r}. Correct one of the two."
                )

    def _answer_after(self, fills: Mapping[bool, Mapping[str, str]]) -> tuple[str, str]:
        """The answer after these words, and the distractor."""
        known = {}
        for is_clean, words in fills.items():
            beside = (self.words[slot].get(word, {}) for slot, word in words.items())
            known[is_clean] = {**words, **{tag: text for tags in beside for tag, text in tags.items()}}
        return self.answer.format(**known[True]), self.distractor.format(**known[False])

    def draw(self, rng: random.Random) -> Mapping[bool, Mapping[str, str]] | None:
        """Draw other words for both prompts; None where there are none."""
        chosen = next(self._choices(rng, list(self.cells), {}), None)
        if chosen is None:
            return None
        drawn: dict[bool, dict[str, str]] = {True: {}, False: {}}
        for word, cells in self.cells.items():
            for is_clean, slot in cells:
                drawn[is_clean][slot] = chosen[word]
        return drawn

    def _choices(self, rng: random.Random, left: Sequence[str], chosen: dict[str, str]) -> Iterator[Mapping[str, str]]:
        """Every way to replace the words that are left, in an order of the generator's."""
        if not left:
            yield chosen
            return
        word, *others = left
        domain = self.domain(word)
        for new in rng.sample(domain, len(domain)):
            more = {**chosen, word: new}
            if new not in chosen.values() and self._agrees(more):
                yield from self._choices(rng, others, more)

    def _agrees(self, chosen: Mapping[str, str]) -> bool:
        """Whether what goes with the words of a slot is shared by both prompts where it is in the pair."""
        for slot, words in self.words.items():
            pair = [self.fills[side][slot] for side in (True, False)]
            if self._tags(slot) and all(word in chosen for word in pair):
                own, other, new, beside = (words[word] for word in (*pair, *(chosen[word] for word in pair)))
                if any((own[tag] == other[tag]) != (new[tag] == beside[tag]) for tag in own):
                    return False
        return True

    def generate(self, n: int, seed: int, *, at_least: int | None = None) -> list[PromptPair]:
        """The pair and up to `n` - 1 others, no two of one clean prompt, in the pair's numbers of tokens or any.

        Raises InputError where there are fewer than `at_least` (None: `n`).
        """
        self.check()
        pairs, texts, rng, dry, reason = [self.pair], {self.pair.clean}, random.Random(seed), 0, ""
        widths = self._widths(self.fills[True])
        lead = [text[: len(text) - len(text.lstrip())] for text in map(str, (self.pair.answer, self.pair.distractor))]
        while len(pairs) < n and dry < _DRY:
            drawn = self.draw(rng)
            if drawn is None:
                break
            dry += 1
            clean, corrupted = (self.template.format(**drawn[side]) for side in (True, False))
            own, beside = (self._widths(drawn[side]) for side in (True, False))
            if clean in texts or own != beside or (own != widths and not self.reading.any_length):
                continue
            answer, distractor = (
                before + text.strip() for before, text in zip(lead, self._answer_after(drawn), strict=True)
            )
            try:
                made = PromptPair(clean, corrupted, answer, distractor, self.pair.min_gap, bos=self.pair.bos)
                check_pair(made, self.tokenizer, self.reading)
            except InputError as error:  # an answer of several tokens
                reason = reason or f" (for example, {str(error).partition('. ')[0]})"
                continue
            pairs.append(made)
            texts.add(clean)
            dry = 0
        wanted = n if at_least is None else at_least
        if len(pairs) < wanted:
            any_length = self.reading.any_length
            alike = "" if any_length else " that take the pair's number of tokens"
            remedy = "offer more words" if any_length else "offer more words, or use clean.lengths=any"
            raise InputError(
                f"clean.n: got {wanted} (heldout.n counted), but with words of the lists{alike} only {len(pairs)} "
                f"prompts were made{reason}. Use a smaller number, {'or ' * any_length}{remedy}."
            )
        return pairs

    def _widths(self, fills: Mapping[str, str]) -> list[int]:
        pieces = split_prompt(self.template, fills)
        return [len(continuation(self.tokenizer, before, text) or ()) for _, before, text in pieces]

    @property
    def unchanged(self) -> tuple[str, ...]:
        """Slots in which the pair's two prompts agree, and that neither answer nor distractor is told from."""
        told = {*names_in(self.answer, "answer"), *names_in(self.distractor, "distractor")}
        alone = {word: cells for word, cells in self.cells.items() if {slot for _, slot in cells} == {cells[0][1]}}
        return tuple(
            slot
            for slot in self.words
            if self.fills[True][slot] == self.fills[False][slot]
            and self.fills[True][slot] in alone
            and not told & {slot, *self._tags(slot)}
        )


def listed_template(
    pair: PromptPair,
    template: str,
    lists: Mapping[str, Sequence[str]],
    answer: str,
    distractor: str | None,
    tokenizer: Any,
    reading: Reading,
) -> ListedTemplate:
    """The template with the words of its lists that fit; without a distractor that is the corrupted prompt's answer.

    Raises InputError on a list in which what goes with a word is missing, or given twice.
    """
    fills = match_slots(template, pair.clean) or {}
    places = find_slots(template, fills, tokenizer, 0)
    words: dict[str, Words] = {}
    for slot in places:
        entries = [split_entry(entry) for name in lists.get(slot, ()) for entry in LISTS.get(name, (name,))]
        offered: dict[str, Mapping[str, str]] = {}
        tags = next((tuple(beside) for _, beside in entries if beside), ())
        for word, beside in entries:
            if word.startswith("="):
                continue
            if tuple(sorted(beside)) != tuple(sorted(tags)) or offered.get(word, beside) != beside:
                raise InputError(
                    f"search.space.slots.{slot}: got {word!r} {'twice, with' if word in offered else 'with'} "
                    f"{', '.join(beside) or 'nothing'} beside it, wanted {', '.join(tags) or 'nothing'} with every "
                    "word, and each word once. Correct the list."
                )
            if all(place.fits(tokenizer, word, any_length=reading.any_length) for place in places[slot]):
                offered[word] = beside
        words[slot] = offered
    return ListedTemplate(pair, template, words, answer, distractor or answer, tokenizer, reading)


def names_in(text: str, item: str) -> list[str]:
    """The names in braces. Raises InputError on braces that hold no name."""
    try:
        return slot_names(text)
    except InputError:
        raise InputError(
            f"search.space.{item}: got {text!r}, wanted names in braces, such as {{city}}. Correct the braces."
        ) from None
