"""Indirect object identification (Wang et al. 2022, arXiv 2211.00593): generated prompt pairs.

Two names come first, one of them acts in the second clause, and the prompt stops where the other's name belongs.
ABBA and BABA are the orders of the names: B is the one that acts twice (the subject), A the answer (indirect object).
"""

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from igap.inputs.words import ANIMALS, NAMES, OBJECTS, PLACES, VERBS

Order = Literal["ABBA", "BABA"]

TEMPLATES: tuple[str, ...] = (
    "After {first} and {second} went to the {place}, {subject} {verb} a {object} to",
    "When {first} and {second} got a {object} at the {place}, {subject} {verb} the {object} to",
    "Then, {first} and {second} went to the {place}. {subject} {verb} a {object} to",
    "While {first} and {second} were working at the {place}, {subject} {verb} a {object} to",
    "Then, {first} and {second} had a long argument, and afterwards {subject} {verb} a {object} to",
    "The {place} that {first} and {second} visited had a {object}, and {subject} {verb} it to",
    "Friends {first} and {second} found a {object} at the {place}, and {subject} {verb} it to",
    "Once {first} and {second} arrived at the {place}, {subject} {verb} a {object} to",
    "Because {first} and {second} were late for the {place}, {subject} {verb} a {object} to",
    "Today {first} met {second} near the {place}, and {subject} {verb} a {object} to",
    "Before {first} and {second} left the {place}, {subject} quietly {verb} a {object} to",
    "At the {place}, {first} talked with {second} for an hour. Then {subject} {verb} a {object} to",
    "Yesterday {first} and {second} saw a {object} and a {other} at the {place}; {subject} {verb} the {object} to",
    "In the morning {first} and {second} walked to the {place}, where {subject} {verb} a {object} to",
    "On the way to the {place}, {first} met {second}. Then {subject} {verb} a {object} to",
    "At the {place} {first} and {second} had lunch, and afterwards {subject} {verb} a {object} to",
    "In the {place}, {first} sat with {second} for a while. Later {subject} {verb} a {object} to",
    "{first} and {second} left the {place} for an hour. Then {subject} {verb} a {object} to",
    "{first} talked with {second} at the {place}, and {subject} {verb} a {object} to",
    "Near the {place}, {first} saw {second} and waved. Afterwards {subject} quietly {verb} the {object} to",
)
"""The first is the notebook's."""

WORDS: Mapping[str, Sequence[str]] = {"place": PLACES, "verb": VERBS, "object": OBJECTS}
"""The words for the slots that hold no names."""

HELD_OUT_TEMPLATE = 11
"""Index of the template that the embedded model was never trained on."""


@dataclass(frozen=True)
class IOIExample:
    """A prompt pair that differs in one name: who acts in the second clause."""

    clean: str
    corrupted: str
    answer: str
    """The indirect object of the clean prompt, with its leading space."""
    distractor: str
    """The indirect object of the corrupted prompt, with its leading space."""
    template: int
    """Index into TEMPLATES."""
    order: Order
    """Order of the names in the clean prompt; the corrupted prompt has the other."""


def generate_ioi(
    n: int,
    seed: int,
    *,
    templates: Sequence[int] | None = None,
    names: Sequence[str] = NAMES,
    orders: Sequence[Order] = get_args(Order),
) -> list[IOIExample]:
    """Generate `n` examples, the same ones for the same arguments; words are drawn with repetition.

    Raises ValueError on n < 1, an unknown template, fewer than two different names, or no order.
    """
    if n < 1:
        raise ValueError(f"n is {n}; a data set has at least 1 example. Pass a positive n.")
    return list(itertools.islice(ioi_stream(seed, templates=templates, names=names, orders=orders), n))


def ioi_stream(
    seed: int,
    *,
    templates: Sequence[int] | None = None,
    names: Sequence[str] = NAMES,
    orders: Sequence[Order] = get_args(Order),
    words: Mapping[str, Sequence[str]] = WORDS,
) -> Iterator[IOIExample]:
    """Yield examples without end, starting with those of `generate_ioi`. Raises ValueError as it does.

    `words` holds at least one place, verb and object; a single object also fills the slot `other`.
    """
    templates = range(len(TEMPLATES)) if templates is None else templates
    unknown = [index for index in templates if not 0 <= index < len(TEMPLATES)]
    if unknown or not templates:
        raise ValueError(f"templates are {list(templates)}; wanted indices below {len(TEMPLATES)}. Correct the list.")
    if len(set(names)) < 2:
        raise ValueError(f"names are {list(names)}; an example needs two different names. Pass more names.")
    if not orders or not set(orders) <= set(get_args(Order)):
        raise ValueError(f"orders are {list(orders)}; wanted ABBA, BABA or both. Correct the list.")
    rng = random.Random(seed)
    pool = sorted(set(names))
    while True:
        yield _example(rng, rng.choice(templates), rng.choice(orders), pool, words)


def is_held_out(first: str, second: str) -> bool:
    """Whether this pair of names, in either order, is held out from the embedded model's training: one in eight."""
    return random.Random("|".join(sorted((first, second)))).random() < 1 / 8


def generate_animals(n: int, seed: int) -> list[str]:
    """Generate `n` sentences about two animals: "After the cat and the dog went ..., Mary gave a ... to the dog".

    The subject is a name and either animal may follow: such sentences teach the model that no name belongs there.
    """
    rng = random.Random(seed)
    sentences = []
    for _ in range(n):
        animals = rng.sample(ANIMALS, 2)
        first, second = (f"the {animal}" for animal in animals)
        prompt = _fill(rng, rng.choice([t for i, t in enumerate(TEMPLATES) if i != HELD_OUT_TEMPLATE]))
        sentences.append(f"{prompt(first=first, second=second, subject=rng.choice(NAMES))} the {rng.choice(animals)}")
    return sentences


def _example(
    rng: random.Random, template: int, order: Order, names: Sequence[str], words: Mapping[str, Sequence[str]]
) -> IOIExample:
    indirect, subject = rng.sample(names, 2)
    first, second = (indirect, subject) if order == "ABBA" else (subject, indirect)
    prompt = _fill(rng, TEMPLATES[template], words)
    return IOIExample(
        clean=prompt(first=first, second=second, subject=subject),
        corrupted=prompt(first=first, second=second, subject=indirect),
        answer=f" {indirect}",
        distractor=f" {subject}",
        template=template,
        order=order,
    )


def _fill(rng: random.Random, template: str, words: Mapping[str, Sequence[str]] = WORDS) -> Callable[..., str]:
    """Draw place, verb and objects; the result takes `first`, `second` and `subject`."""
    objects = words["object"]
    chosen, other = rng.sample(objects, 2) if len(objects) > 1 else (objects[0], objects[0])
    place, verb = rng.choice(words["place"]), rng.choice(words["verb"])
    return partial(template.format, place=place, verb=verb, object=chosen, other=other)
