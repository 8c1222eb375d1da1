"""Positions of the prompts that a question is about: all at once, each alone, or spans by name.

Positions are those of the run that is patched, the clean one when noising; 0 is the first token the model sees.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from igap.config import PositionsConfig
from igap.errors import InputError, printable, short_repr
from igap.inputs.prompts import TokenPair
from igap.vocabulary import ROLES, BaselineKind, Direction

Positions = Literal["all", "each", "last", "diff", "roles", "own"] | Mapping[str, str | Sequence[int]]
"""Which positions change, and whether together.

`all`: every position at once. `each`: one at a time. `last`: the prompt's last, which the answer follows. `diff`: those
whose token differs between the prompts, at once. `roles`: those of the names in a prompt of indirect object
identification, each alone: IO (the answer), S1 and S2 (the distractor, twice), S1+1, END. `own`: spans that each pair
names itself (`PromptPair.further`). A mapping: spans by name, each changed alone; a span is its positions, or words of
the prompt (" bottle of milk"; "Mary:2" is the second Mary; "+New" is of the tokens of an answer that follow it).
"""


@dataclass(frozen=True, eq=False)
class Spans:
    """Positions that are changed together, by name."""

    names: tuple[str, ...]
    masks: tuple[Bool[Tensor, "pair pos"], ...]
    """One a name: the positions of each pair."""
    has_axis: bool
    """Whether maps have an axis of spans; `last` and `diff` are one span and give `[layer, component]`."""


@dataclass(frozen=True)
class Wording:
    """How messages name a setting that asks for spans, where that is not `positions`."""

    got: str
    """What a message begins with: "head: got 9.6@S2"."""
    remedy: str
    """What it ends with."""


def find_spans(
    positions: Positions,
    pairs: Sequence[TokenPair],
    direction: Direction,
    named_in: Direction | None = None,
    *,
    wording: Wording | None = None,
) -> Spans | None:
    """The spans of pairs of one token length; None for all positions at once.

    `named_in` is the direction whose patched prompt the spans are of, if it is the other one: their partners are taken,
    and a position without a partner, which takes nothing from the other prompt, has none. `wording` names the setting
    that the spans are of, if it is not `positions`.

    Raises InputError on a position or words that a prompt does not have, words that it has more than once without a
    number, and on spans that are empty or share a position.
    """
    if positions == "all":
        return None
    if named_in not in (None, direction):
        return _partners(find_spans(positions, pairs, named_in), pairs, direction)
    sides = [_Side.of(pair, direction, wording) for pair in pairs]
    n_tokens = len(sides[0].ids)
    device = pairs[0].clean.device
    if positions == "each":
        words = {side.words for side in sides}
        names = [f"{i} {word.strip()}" if len(words) == 1 else str(i) for i, word in enumerate(sides[0].words)]
        eye = torch.eye(n_tokens, dtype=torch.bool, device=device)
        return Spans(tuple(names), tuple(row.expand(len(pairs), -1) for row in eye), has_axis=True)
    by_name: dict[str, list[list[int]]]
    if positions == "roles":
        roles = [_roles(pair, direction, wording) for pair in pairs]
        by_name = {name: [[each[name]] for each in roles] for name in roles[0]}
        _check_apart(by_name, wording)
    elif positions == "own":
        own = [
            {name: side.span(name, where) for name, where in own_spans(pair).items()}
            for side, pair in zip(sides, pairs, strict=True)
        ]
        by_name = {name: [each[name] for each in own] for name in sorted(own[0])}  # a JSON object has no order
        _check_apart(by_name, wording)
    elif isinstance(positions, str):
        last = [[n_tokens - pair.n_read] for pair in pairs]
        by_name = {positions: last if positions == "last" else [side.differences() for side in sides]}
    else:
        if not positions:
            raise InputError("positions: got no span, wanted at least one. Use positions=all.")
        by_name = {name: [side.span(name, where) for side in sides] for name, where in positions.items()}
        _check_apart(by_name, wording)
    masks = []
    for spans in by_name.values():
        mask = torch.zeros(len(pairs), n_tokens, dtype=torch.bool, device=device)
        for row, span in zip(mask, spans, strict=True):
            row[span] = True
        masks.append(mask)
    return Spans(tuple(by_name), tuple(masks), has_axis=positions not in ("last", "diff"))


def check_spans(positions: Positions, pair: TokenPair, direction: Direction, baseline: BaselineKind) -> None:
    """Raises InputError as `find_spans` does, and on a named span that would keep its activation: it has no partner."""
    spans = find_spans(positions, [pair], direction)
    if spans is None or positions == "each" or baseline != "corrupted":
        return
    partners = pair.alignment.clean if direction == "noising" else pair.alignment.corrupted
    for name, mask in zip(spans.names, spans.masks, strict=True):
        if all(partners[position] is None for position in mask[0].nonzero().flatten().tolist()):
            raise InputError(
                f"positions: got the span {name!r}, none of whose positions has a partner in the other prompt, so that "
                "nothing moves there: every effect would be 0. Take prompts of one length, or another span."
            )


def span_named(text: str, names: Sequence[str], positions: Positions | str) -> str | None:
    """The span that a text means: by its name, or with `each` by its position's number alone; None if it means none."""
    if text in names:
        return text
    numbers = {name.partition(" ")[0]: name for name in names} if positions == "each" else {}
    return numbers.get(text)


def split_place(
    text: str, positions: Positions, pair: TokenPair, direction: Direction, *, item: str
) -> tuple[str, int]:
    """A component as maps of these positions have it, `9.6@S2` or `9.6`: its name, and its span's place on their axis.

    Raises InputError, naming `item`, where the maps have an axis of spans and the text names none, or the other way
    round, and on a span that they do not have.
    """
    component, at, where = text.partition("@")
    spans = find_spans(positions, [pair], direction)
    names = spans.names if spans is not None and spans.has_axis else ()
    examples = [f"{component}@{name.partition(' ')[0] if positions == 'each' else name}" for name in names]
    if bool(at) != bool(names):
        kind = positions if isinstance(positions, str) else "spans"
        wanted = examples[-1] if names else f"{component} alone"
        raise InputError(
            f"{item}: got {text} with positions={kind}, wanted a component of the run's maps, such as {wanted}. "
            "Correct it."
        )
    if not at:
        return component, 0
    span = span_named(where, names, positions)
    if span is None:
        raise InputError(
            f"{item}: got {text}, but the maps have no span {short_repr(where)}, wanted one of "
            f"{printable(', '.join(names))}. Write {examples[0]}."
        )
    return component, names.index(span)


def _partners(spans: Spans | None, pairs: Sequence[TokenPair], direction: Direction) -> Spans:
    """Spans of the other prompt at the positions of the prompt that is patched in this direction."""
    assert spans is not None
    own = [pair.alignment.clean if direction == "noising" else pair.alignment.corrupted for pair in pairs]
    device = spans.masks[0].device
    index = torch.tensor([[j or 0 for j in each] for each in own], device=device)
    matched = torch.tensor([[j is not None for j in each] for each in own], device=device)
    return replace(spans, masks=tuple(mask.gather(1, index) & matched for mask in spans.masks))


def _roles(pair: TokenPair, direction: Direction, wording: Wording | None) -> dict[str, int]:
    """The positions of the names in an IOI prompt. Raises InputError on a pair that is none."""
    by = wording or Wording("positions: got roles", "Take positions=each, or name spans.")
    if not pair.has_logit_diff:
        raise InputError(
            f"{by.got} with an answer or distractor of several tokens, wanted names that are one token each. "
            f"{by.remedy}"
        )
    ids, words = pair.clean[0].tolist(), [word.strip() for word in pair.clean_words]
    answer, distractor = (
        [i for i, word in enumerate(words) if word in {words[ids.index(token)] for token in tokens if token in ids}]
        for tokens in (pair.answers, pair.distractors)
    )
    if (len(answer), len(distractor)) != (1, 2):
        raise InputError(
            f"{by.got}, but a clean prompt has the answer {len(answer)} and the distractor {len(distractor)} times, "
            f"wanted one of indirect object identification, which has them once and twice. {by.remedy}"
        )
    (io,), (s1, s2) = answer, distractor
    clean = dict(zip(ROLES, (io, s1, s1 + 1, s2, len(ids) - 1), strict=True))
    if direction == "noising":
        return clean
    partners = {name: pair.alignment.clean[position] for name, position in clean.items()}
    roles = {name: position for name, position in partners.items() if position is not None}
    if len(roles) < len(clean):
        missing = next(name for name in clean if name not in roles)
        raise InputError(
            f"{by.got}, but {missing} of a clean prompt has no partner in the corrupted one, which is "
            "patched. Take direction=noising, or name spans."
        )
    return roles


def own_spans(pair: TokenPair) -> Mapping[str, str | Sequence[int]]:
    """The spans that a pair names itself. Raises InputError where it names none, or what names none."""
    wanted = 'wanted spans by name in the column spans of its file, such as {"S2": 10, "end": "15-16"}'
    if pair.spans is None:
        raise InputError(f"positions: got own with a pair that has no spans, {wanted}. Add it, or take another option.")
    try:
        positions = PositionsConfig(kind="spans", spans=json.loads(pair.spans)).value
    except (ValueError, RecursionError):
        raise InputError(f"positions: got own with the spans {short_repr(pair.spans)}, {wanted}. Correct it.") from None
    assert not isinstance(positions, str)
    return positions


@dataclass(frozen=True)
class _Side:
    """The prompt of a pair that is patched."""

    name: str
    ids: list[int]
    words: tuple[str, ...]
    differing: list[int]
    """Positions whose partner in the other prompt has another token."""
    wording: Wording | None

    @classmethod
    def of(cls, pair: TokenPair, direction: Direction, wording: Wording | None = None) -> "_Side":
        clean, corrupted = pair.clean[0].tolist(), pair.corrupted[0].tolist()
        if direction == "noising":
            name, ids, other, words, partners = "clean", clean, corrupted, pair.clean_words, pair.alignment.clean
        else:
            name, ids, other, words = "corrupted", corrupted, clean, pair.corrupted_words
            partners = pair.alignment.corrupted
        differing = [i for i, j in enumerate(partners) if j is not None and ids[i] != other[j]]
        return cls(name, ids, words, differing, wording)

    def differences(self) -> list[int]:
        """`differing`. Raises InputError if there are none."""
        if not self.differing:
            by = self.wording or Wording("positions: got diff", "Name the positions, or take positions=all.")
            raise InputError(
                f"{by.got}, but no token of the {self.name} prompt has another one for partner: the prompts differ in "
                f"length there alone. {by.remedy}"
            )
        return self.differing

    def span(self, name: str, where: str | Sequence[int]) -> list[int]:
        """The positions that a span stands for."""
        shown, n = short_repr(where if isinstance(where, str) else list(where)), len(self.ids)
        got = self.wording.got if self.wording else f"positions[{name!r}]: got {shown}"
        if isinstance(where, str):
            return self._words(got, where)
        outside = [position for position in where if not 0 <= position < n]
        if outside or not where or len(set(where)) < len(where):
            raise InputError(
                f"{got}, wanted one or more positions of the {self.name} prompt, 0 to {n - 1}, none twice; {n - 1} is "
                f"{self.words[-1]!r}."
            )
        return sorted(where)

    def _words(self, got: str, text: str) -> list[int]:
        words, _, number = text.rpartition(":") if text.rpartition(":")[2].isdecimal() else (text, "", "")
        if number and (literally := self._places(_join(text))):  # "12:30" are words
            words, number, places = text, "", literally
        else:
            places = self._places(_join(words))
        if not places:
            raise InputError(
                f"{got}, wanted words of the {self.name} prompt, whose tokens are "
                f"{printable(' | '.join(map(str.strip, self.words)))}."
            )
        if not number and len(places) > 1:
            raise InputError(
                f"{got}, which the {self.name} prompt has {len(places)} times, wanted which one. Write "
                f"{words + ':1'!r} for the first."
            )
        if number and not 1 <= int(number) <= len(places):
            raise InputError(
                f"{got}, but the {self.name} prompt has {short_repr(words)} {len(places)} "
                f"time{'s' if len(places) > 1 else ''}. Take a number from 1 on."
            )
        return places[int(number or 1) - 1]

    def _places(self, wanted: str) -> list[list[int]]:
        """Where tokens spell the text, in order; they begin and end with something that is no white space."""
        spelled = [_join(word) for word in self.words]
        places = []
        for start in (i for i, word in enumerate(spelled) if word):
            end, text = start, ""
            while end < len(spelled) and len(text) < len(wanted) and wanted.startswith(text):
                text += spelled[end]
                end += 1
            if wanted and text == wanted:
                places.append(list(range(start, end)))
        return places


def _join(text: str) -> str:
    """A text without white space, which some tokenizers do not keep in single tokens."""
    return "".join(text.split())


def _check_apart(by_name: Mapping[str, Sequence[Sequence[int]]], wording: Wording | None) -> None:
    """Raises InputError where two spans share a position."""
    got, remedy = (f"{wording.got}, of spans", wording.remedy) if wording else ("positions: got spans", "Change one.")
    for (one, ones), (other, others) in combinations(by_name.items(), 2):
        for left, right in zip(ones, others, strict=True):
            if shared := sorted(set(left) & set(right)):
                raise InputError(
                    f"{got} {one!r} and {other!r}, which share position {shared[0]}, wanted spans apart from each "
                    f"other. {remedy}"
                )


def check_lengths(positions: Positions, pairs: Sequence[TokenPair], direction: Direction) -> None:
    """Raises InputError where positions are taken one by one of pairs of two lengths, or pairs name other spans."""
    if positions == "own":
        named = []
        for index, pair in enumerate(pairs):
            try:
                named.append(sorted(own_spans(pair)))
            except InputError as error:
                raise InputError(f"{error} This is pair {index}, counted from 0.") from None
        if other := next((each for each in named if each != named[0]), None):
            raise InputError(
                f"positions: got own with pairs that name the spans {', '.join(named[0])} and {', '.join(other)}, "
                "wanted the same names in every pair. Correct the column spans."
            )
    lengths = {(len(_Side.of(pair, direction).ids), pair.n_read) for pair in pairs}
    if positions == "each" and len(lengths) > 1:
        (least, n_least), (most, n_most) = min(lengths), max(lengths)
        two = f"{least} and {most} tokens" if n_least == n_most else f"answers of {n_least} and {n_most} tokens"
        raise InputError(
            f"positions: got each with pairs of {two}, wanted pairs of one length. "
            "Name spans that every pair has, or take positions=all."
        )
