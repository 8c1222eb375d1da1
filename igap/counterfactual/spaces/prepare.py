"""From a space's config to the space, and to the clean prompts that a search may be made on; without a model."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from igap.config import validate_settings
from igap.counterfactual.config import Lengths, SpaceConfig
from igap.counterfactual.spaces.base import BoundSpace, Space
from igap.counterfactual.spaces.from_lists import listed_template
from igap.counterfactual.spaces.from_pairs import (
    Alike,
    Reading,
    check_pair,
    list_words,
    select_alike,
    select_like,
    unchanged_slots,
)
from igap.counterfactual.spaces.mixed import bind_by_shape
from igap.counterfactual.spaces.prompt_list import bind_prompt_list, prompt_list_space
from igap.counterfactual.spaces.substitution import bind_substitution, substitution_space
from igap.counterfactual.spaces.template import (
    SLOTS,
    bind_template,
    find_template,
    generate_clean_prompts,
    template_space,
)
from igap.errors import InputError, printable
from igap.inputs import ioi
from igap.inputs.answers import AnswerSetError
from igap.inputs.files import read_text
from igap.inputs.prompts import PromptPair

MOST_ORDINARY = 200
"""Ordinary prompts that activations are compared with, at most."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A space, and the prompts of its kind that a search may be made on."""

    space: Space
    pairs: tuple[PromptPair, ...]
    """The pair, then others of its shape, as many as there may be: some may turn out below `min_clean`."""
    bind: Callable[[Sequence[PromptPair]], BoundSpace]
    """The space for some of these pairs."""
    is_single: bool = True
    """Whether the first pair alone was given, and the others are made after it."""
    heldout: tuple[PromptPair, ...] | None = None
    """Held-out pairs to choose from; None: those of `pairs` that the clean prompts leave."""
    ordinary: tuple[PromptPair, ...] | None = None
    """Pairs whose clean prompts are ordinary ones; None: those of several pairs that are left, or generated ones."""
    swapped: str = ""
    """How the corrupted prompts of generated pairs differ from the clean ones; empty: the pairs are given."""
    neutral: tuple[str, ...] | None = None
    """Slots that no corrupted prompt made by hand changes; None: a place, a verb, an object by their names."""

    @property
    def every(self) -> tuple[PromptPair, ...]:
        """All pairs that may become clean or held-out ones."""
        return (*self.pairs, *(self.heldout or ()))


def prepare(
    pair: PromptPair | Sequence[PromptPair],
    tokenizer: Any,
    *,
    space: SpaceConfig | Mapping[str, Sequence[str]] | None = None,
    heldout: Sequence[PromptPair] | None = None,
    reference: Sequence[PromptPair] | None = None,
    clean_n: int = 8,
    heldout_n: int = 32,
    lengths: Lengths = "one",
    several: bool = False,
    seed: int = 0,
    prepend_bos: bool = False,
    device: torch.device | str = "cpu",
) -> Prepared:
    """Make the space and its clean prompts, without a model.

    Args:
        pair: the reference pair, or several, of which clean, held-out and reference prompts are taken.
        tokenizer: the model's.
        space: the config of a space, or what each slot of the pair's template offers; None: the default of every slot.
        heldout: pairs for held-out prompts; None: others of `pair`, or generated ones.
        reference: pairs for ordinary prompts; None: what is left of several pairs, or generated ones.
        clean_n: clean prompts of the search.
        heldout_n: further clean prompts, which the search does not see.
        lengths: of clean and held-out prompts: one in tokens, or any.
        several: whether the metric knows answers of several tokens.
        seed: of the other clean prompts.
        prepend_bos: whether the model wants a BOS token before each prompt.
        device: of the tokens.

    Raises:
        InputError: a pair or a space that the search cannot use.
    """
    reading = Reading(prepend_bos, several, lengths)
    if not isinstance(space, SpaceConfig):
        slots = {name: tuple(words) for name, words in (SLOTS if space is None else space).items()}
        space = validate_settings(SpaceConfig, {"slots": slots})
    in_slots, n = space.kind == "slots", clean_n + (heldout_n if heldout is None else 0)
    alike: Alike | None = None
    if isinstance(pair, PromptPair):
        check_pair(pair, tokenizer, reading)
    else:
        alike = select_alike(pair, tokenizer, reading, seed=seed, template=space.template, in_slots=in_slots)
        _check_number(alike, n, heldout is None, any_length=reading.any_length)
        pair = alike.pairs[0]
    make = _maker(space, alike, pair, tokenizer, reading)
    made = make(() if reading.any_length else None)
    if alike is None:
        further = _generate(space, made, pair, n, seed, tokenizer, reading)
    elif space.answer is None:
        neutral = None if alike.template in (None, *ioi.TEMPLATES) else unchanged_slots(alike)
        further = _Further(alike, neutral=neutral)
    else:
        raise InputError(
            f"search.space.answer: got {space.answer!r} beside several pairs, wanted one of the two: each pair has an "
            "answer. Leave it out, or clean.file."
        )
    kept_out, ordinary = (
        None if pairs is None else select_like(further.alike, pairs, tokenizer, reading, item=item, seed=seed).pairs
        for item, pairs in (("heldout", heldout), ("reference", reference))
    )
    if reading.any_length:
        made = make((*further.alike.pairs, *(kept_out or ())))
    if several:
        made = _without_unfit_rules(made, space, (*further.alike.pairs, *(kept_out or ())), tokenizer, prepend_bos)
    bind_pairs = partial(
        _bind, _BINDERS[made.kind], made, tokenizer, prepend_bos=prepend_bos, several=several, device=device
    )
    bind_pairs(further.alike.pairs)  # a rule whose word does not fit is refused now
    _check_kept_out(further.alike, kept_out, heldout_n)
    if kept_out:
        bind_pairs(kept_out)
    return Prepared(
        space=replace(made, left_out={**made.left_out, **further.alike.left_out}),
        pairs=further.alike.pairs,
        bind=bind_pairs,
        is_single=alike is None,
        heldout=kept_out,
        ordinary=further.ordinary if ordinary is None else ordinary,
        swapped=further.swapped,
        neutral=further.neutral,
    )


_BINDERS: Mapping[str, Callable[..., BoundSpace]] = {
    "slots": bind_template, "substitute": bind_substitution, "prompts": bind_prompt_list,
}  # fmt: skip


def _maker(
    space: SpaceConfig, alike: Alike | None, pair: PromptPair, tokenizer: Any, reading: Reading
) -> Callable[[Sequence[PromptPair] | None], Space]:
    """The function that makes the space, given clean prompts of other lengths; None: all have the pair's."""
    options = {"prepend_bos": reading.prepend_bos}
    if space.kind == "slots":
        template, lists = _lists(space, alike, tokenizer, any_length=reading.any_length)
        return lambda beside: template_space(
            template, lists, pair, tokenizer, max_edits=space.max_edits, beside=beside, **options
        )
    if space.kind == "substitute":
        own = () if alike is None else alike.pairs
        return lambda beside: substitution_space(
            pair, space.positions, space.vocabulary, space.max_edits, tokenizer, beside=(*own, *(beside or ())),
            **options,
        )  # fmt: skip
    if reading.any_length:
        raise InputError(
            "clean.lengths: got any with a list of prompts, each of which stands beside all clean prompts, wanted one. "
            "Leave it out, or use another search/space."
        )
    return lambda _: prompt_list_space(pair, _read_prompts(space), tokenizer, **options)


@dataclass(frozen=True, eq=False)
class _Further:
    """The pair and others of its kind, and what is known of them; see `Prepared`."""

    alike: Alike
    swapped: str = ""
    neutral: tuple[str, ...] | None = None
    ordinary: tuple[PromptPair, ...] | None = None


def _generate(
    space: SpaceConfig, made: Space, pair: PromptPair, n: int, seed: int, tokenizer: Any, reading: Reading
) -> _Further:
    """The pair and up to twice as many others of its template as are wanted, at least as many."""
    n_made = n if n == 1 else 2 * n
    if space.answer is None:
        template = made.template or find_template(pair.clean)
        pairs = generate_clean_prompts(
            pair, template, n_made, seed, tokenizer, at_least=n, any_length=reading.any_length
        )
        return _Further(Alike(tuple(pairs), made.template, {}), "who acts is swapped")
    assert made.template is not None
    listed = listed_template(pair, made.template, space.slots, space.answer, space.distractor, tokenizer, reading)
    pairs = listed.generate(n_made, seed, at_least=n)
    return _Further(
        Alike(tuple(pairs), made.template, {}),
        "other words stand where the pair's own two prompts differ",
        listed.unchanged,
        tuple(listed.generate(MOST_ORDINARY, seed + 1, at_least=0)),
    )


def _lists(
    space: SpaceConfig, alike: Alike | None, tokenizer: Any, *, any_length: bool
) -> tuple[str | None, Mapping[str, Sequence[str]]]:
    """The template and its lists; of pairs with a template that is none of igap's the words that they have are lists.

    A list of the config, other than the default one of that name, goes before.
    """
    if alike is None or alike.template is None or alike.template in ioi.TEMPLATES:
        return space.template, space.slots
    own = {name: words for name, words in space.slots.items() if list(words) != list(SLOTS.get(name, ()))}
    return alike.template, {**list_words(alike, tokenizer, any_length=any_length), **own}


def _check_number(alike: Alike, n: int, with_heldout: bool, *, any_length: bool) -> None:
    """Raises InputError where there are fewer pairs than clean prompts wanted."""
    if len(alike.pairs) < n:
        out = ", ".join(f"{many} {why}" for why, many in alike.left_out.items() if many)
        raise InputError(
            f"clean.n: got {n} clean prompts{' (heldout.n counted)' * with_heldout}, but the given pairs have "
            f"{len(alike.pairs)} of one template{'' if any_length else ' and length'}{f', beside {out}' if out else ''}"
            f". Use a smaller clean.n{' or heldout.n' * with_heldout}, or add pairs{_or_any_length(alike, any_length)}."
        )


def _or_any_length(alike: Alike, any_length: bool) -> str:
    """The remedy that takes pairs of other lengths, where some were left out."""
    return "" if any_length or not any("length" in why and n for why, n in alike.left_out.items()) else (
        ", or use clean.lengths=any"
    )  # fmt: skip


def _check_kept_out(alike: Alike, kept_out: Sequence[PromptPair] | None, n: int) -> None:
    """Raises InputError on held-out pairs that are too few, or whose clean prompt the search may see."""
    if kept_out is None:
        return
    seen = {pair.clean: pair for pair in alike.pairs}
    for pair in kept_out:
        if pair.clean in seen:
            raise InputError(
                f"{pair.place}clean: got {pair.clean!r}, which {seen[pair.clean].place.removesuffix(': ')} has as "
                "well, wanted held-out prompts that are no clean prompts of the search. Take it out of one."
            )
    if len(kept_out) < n:
        raise InputError(
            f"heldout.n: got {n}, but of the held-out pairs only {len(kept_out)} have the clean prompts' template and "
            "length. Use a smaller number, or add pairs."
        )


def _without_unfit_rules(
    made: Space, asked: SpaceConfig, pairs: Sequence[PromptPair], tokenizer: Any, prepend_bos: bool
) -> Space:
    """The space without those of igap's own rules of answers that one of the pairs has no fitting word for.

    A rule that the user has written is left in: it is refused when it is bound.
    """
    slots, left_out = list(made.slots), dict(made.left_out)
    for place, slot in enumerate(made.slots if made.kind == "slots" else ()):
        if list(asked.slots.get(slot.name, ())) != list(SLOTS.get(slot.name, ())):
            continue
        for rule in [option for option in slot.options if option in ("=S", "=IO")]:
            alone = replace(made, slots=(replace(slot, options=(rule,)),))
            try:
                _bind(bind_template, alone, tokenizer, pairs, prepend_bos=prepend_bos, several=True)
            except InputError as error:
                is_set = isinstance(error, AnswerSetError)
                why = "which needs one answer" if is_set else "whose word takes another number of tokens in a prompt"
                left_out[f"{slot.name}: {rule}, {why}"] = 1
                kept = tuple(option for option in slots[place].options if option != rule)
                slots[place] = replace(slots[place], options=kept)
    return replace(made, slots=tuple(slots), left_out=left_out) if len(left_out) > len(made.left_out) else made


def _bind(
    bind: Callable[..., BoundSpace], space: Space, tokenizer: Any, pairs: Sequence[PromptPair], **options: Any
) -> BoundSpace:
    return bind_by_shape(bind, space, pairs, tokenizer, **options)


def _read_prompts(asked: SpaceConfig) -> Sequence[str]:
    """The prompts of the config, or of its file: one a line."""
    if asked.file is None:
        return asked.prompts
    text = read_text(Path(os.path.expanduser(asked.file)), printable(asked.file), item="search.space.file")
    return [line for line in text.splitlines() if line.strip()]
