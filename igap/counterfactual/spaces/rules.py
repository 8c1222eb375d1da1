"""Options that are rules: they take their words from the clean prompt at hand."""

import re
from collections.abc import Mapping, Sequence

from igap.counterfactual.spaces.base import KEEP, all_words, asked_words
from igap.counterfactual.spaces.positions import match_slots
from igap.errors import InputError
from igap.inputs.prompts import PromptPair

OTHER = "=other"
"""The option that takes the word of the corrupted prompt of the clean prompt's own pair."""

OPERATORS = (KEEP, OTHER, "=S", "=IO", "=N1", "=N2", "=fresh[K]", "=animal[K]")
"""What the slot has in the clean prompt, in its pair's corrupted prompt; the clean prompt's subject, indirect object,
first and second name; the K-th name that it does not have; the K-th animal."""

OPERATOR = re.compile(r"=(keep|other|S|IO|N1|N2|(?P<pool>fresh|animal)\[(?P<index>\d+)\])")


def word_of(
    option: str,
    slot: str,
    template: str,
    fills: Mapping[str, str],
    pair: PromptPair,
    pools: Mapping[str, Sequence[str]],
) -> str:
    """The text that an option puts into a slot of this clean prompt."""
    operator = OPERATOR.fullmatch(option)
    if operator is None:
        return option
    if operator["pool"]:
        present = {*fills.values(), *all_words(pair)}
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
    if option == OTHER:
        beside = match_slots(template, pair.corrupted)
        if beside is None:
            raise InputError(
                f"search.space.slots.{slot}: got {option}, but {pair.place}corrupted ({pair.corrupted!r}) does not "
                "follow the template. Take it out."
            )
        return beside[slot]
    if option == KEEP:
        return fills[slot]
    if operator[1] == "S" and "subject" in fills:
        return fills["subject"]
    answer, distractor = asked_words(pair, f"search.space.slots.{slot} offers {option}, which needs")
    return answer if operator[1] == "IO" else distractor
