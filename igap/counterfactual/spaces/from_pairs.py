"""Pairs that a search is given, by a file or by the caller: those that one space holds for."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from igap.counterfactual.config import Lengths
from igap.counterfactual.spaces.base import KEEP
from igap.counterfactual.spaces.positions import encode, find_slots, match_slots, split_prompt
from igap.counterfactual.spaces.rules import OTHER
from igap.counterfactual.spaces.template import find_template, slot_names
from igap.errors import InputError
from igap.inputs.prompts import PromptPair, encode_pair
from igap.inputs.tokenizing import continuation

COLUMN = "template"
"""The column of a pairs file that may hold each clean prompt with its slots in braces."""

_Shape = tuple[object, ...]
"""The template and the number of tokens of each of its pieces; without a template the number of tokens. Of prompts of
any length the template alone."""


@dataclass(frozen=True)
class Reading:
    """How pairs are read."""

    prepend_bos: bool
    """Whether the model wants a BOS token before each prompt."""
    several: bool = False
    """Whether the metric knows answers of several tokens."""
    lengths: Lengths = "one"
    """Whether clean prompts of a search have one length, or any."""

    @property
    def any_length(self) -> bool:
        """Whether they may have any."""
        return self.lengths == "any"


@dataclass(frozen=True, eq=False)
class Alike:
    """Pairs of one shape, no clean prompt twice, in the order in which a search takes them."""

    pairs: tuple[PromptPair, ...]
    template: str | None
    """What all of them follow; None: the space has no slots of a template."""
    left_out: Mapping[str, int]
    """The pairs that are not among them: how many for each reason."""


def select_alike(
    pairs: Sequence[PromptPair], tokenizer: Any, reading: Reading, *, seed: int, template: str | None, in_slots: bool
) -> Alike:
    """Select the pairs of the shape that most have; of several such shapes that of the earliest pair.

    Args:
        pairs: as they were given.
        tokenizer: the model's.
        reading: how they are read.
        seed: of the order.
        template: what all of them follow; None: each pair's own, of its column, or else one of igap's.
        in_slots: whether the space has slots of a template.

    Raises:
        InputError: no pair, one that a search cannot use, a column whose template its prompt does not follow, or no
            template.
    """
    if not pairs:
        raise InputError("pair: got no pair, wanted at least one.")
    for pair in pairs:
        check_pair(pair, tokenizer, reading)
    templates = [(template or _own_template(pair)) if in_slots else None for pair in pairs]
    shapes = [_shape(*both, tokenizer, reading) for both in zip(pairs, templates, strict=True)]
    counts = Counter(shape for shape in shapes if shape is not None and (shape[0] is not None or not in_slots))
    if not counts:
        follows = "follows none of igap's templates" if template is None else "does not follow it"
        raise InputError(
            f"search.space.template: got {'null' if template is None else repr(template)}, but {pairs[0].place}"
            f"clean ({pairs[0].clean!r}) {follows}, nor does any other. Write the prompt with its "
            f"slots in braces, here or in a column {COLUMN} of the file, or use search/space=substitute."
        )
    chosen = max(counts, key=counts.__getitem__)
    same = [pair for pair, shape in zip(pairs, shapes, strict=True) if shape == chosen]
    return _in_order(same, len(pairs), templates[shapes.index(chosen)], seed, reading)


def select_like(
    alike: Alike, pairs: Sequence[PromptPair], tokenizer: Any, reading: Reading, *, item: str, seed: int
) -> Alike:
    """Select those of other pairs, which the argument `item` gives, that have the shape of these.

    Raises InputError on no pair, and on one that a search cannot use.
    """
    if not pairs:
        raise InputError(f"{item}: got no pair, wanted at least one. Leave it out.")
    for pair in pairs:
        check_pair(pair, tokenizer, reading)
    wanted, *shapes = (_shape(pair, alike.template, tokenizer, reading) for pair in (alike.pairs[0], *pairs))
    same = [pair for pair, shape in zip(pairs, shapes, strict=True) if shape == wanted]
    return _in_order(same, len(pairs), alike.template, seed, reading)


def check_pair(pair: PromptPair, tokenizer: Any, reading: Reading) -> None:
    """Raises InputError on a pair that a search cannot use: answers that its metric does not know, unequal lengths."""
    tokens = encode_pair(
        pair, tokenizer, prepend_bos=reading.prepend_bos, n_ctx=None, n_vocab=None, several=reading.several
    )
    if tokens.clean.shape != tokens.corrupted.shape:
        raise InputError(
            f"{pair.place}corrupted: got {tokens.corrupted.shape[1] - tokens.n_leading} tokens, {pair.place}clean has "
            f"{tokens.clean.shape[1] - tokens.n_leading} (without the token before every prompt); a search needs "
            "prompts of one length. Reword one of them."
        )


def list_words(alike: Alike, tokenizer: Any, *, any_length: bool) -> dict[str, tuple[str, ...]]:
    """For each slot of the template two rules, and the words that the pairs have there, in clean and corrupted prompts.

    The rules are KEEP and, where every corrupted prompt follows the template, OTHER. Words of another number of tokens
    than the first pair's are not among them; with `any_length` they are, and `template_space` leaves out what does not
    fit into some clean prompt.
    """
    assert alike.template is not None
    texts = [text for pair in alike.pairs for text in (pair.clean, pair.corrupted)]
    every = [fills for fills in (match_slots(alike.template, text) for text in texts) if fills is not None]
    places = find_slots(alike.template, every[0], tokenizer, 0)
    rules = (KEEP, OTHER) if len(every) == len(texts) else (KEEP,)

    def fit(slot: str, word: str) -> bool:
        return all(place.fits(tokenizer, word, any_length=any_length) for place in places[slot])

    return {
        slot: (*rules, *(word for word in dict.fromkeys(fills[slot] for fills in every) if fit(slot, word)))
        for slot in places
    }


def unchanged_slots(alike: Alike) -> tuple[str, ...]:
    """The slots in which no pair's corrupted prompt differs from its clean one; none where one follows no template."""
    assert alike.template is not None
    both = [tuple(match_slots(alike.template, text) for text in (pair.clean, pair.corrupted)) for pair in alike.pairs]
    return tuple(
        slot
        for slot in dict.fromkeys(slot_names(alike.template))
        if all(clean and corrupted and clean[slot] == corrupted[slot] for clean, corrupted in both)
    )


def _in_order(same: Sequence[PromptPair], n: int, template: str | None, seed: int, reading: Reading) -> Alike:
    """Pairs of one shape of the `n` that there are, shuffled; of those with one clean prompt the first."""
    first = {pair.clean: pair for pair in reversed(same)}
    once = [pair for pair in same if first[pair.clean] is pair]
    left_out = {
        f"pairs of another template{'' if reading.any_length else ' or length'}": n - len(same),
        "pairs whose clean prompt another has": len(same) - len(once),
    }
    return Alike(tuple(random.Random(seed).sample(once, len(once))), template, left_out)


def _own_template(pair: PromptPair) -> str | None:
    """The template in the pair's column, or that of igap's which it follows; a column without a slot is a label."""
    own = pair.further.get(COLUMN, "")
    if "{" not in own:
        return find_template(pair.clean)
    try:
        slots = slot_names(own)
    except InputError:
        slots = []
    if not slots or match_slots(own, pair.clean) is None:
        raise InputError(
            f"{pair.place}{COLUMN}: got {own!r}, wanted the clean prompt ({pair.clean!r}) with slots as names in "
            "braces. Correct one of the two."
        )
    return own


def _shape(pair: PromptPair, template: str | None, tokenizer: Any, reading: Reading) -> _Shape | None:
    """The shape of a pair; None where it does not follow the template."""
    if template is None:
        return (None, 0 if reading.any_length else len(encode(pair, tokenizer, prepend_bos=reading.prepend_bos)))
    fills = match_slots(template, pair.clean)
    if fills is None:
        return None
    if reading.any_length:
        return (template,)
    pieces = split_prompt(template, fills)
    return (template, *(len(continuation(tokenizer, before, text) or ()) for _, before, text in pieces))
