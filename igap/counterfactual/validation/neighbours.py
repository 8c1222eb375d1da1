"""Prompts beside the best one: a word changed, and a few of its words alone."""

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import Tensor

from igap.counterfactual.config import Bounds
from igap.counterfactual.history import Floats
from igap.counterfactual.objective.cache import Remembered
from igap.counterfactual.objective.objective import Objective
from igap.counterfactual.session import Search
from igap.counterfactual.spaces.base import Candidate, Filled
from igap.counterfactual.trials.study import Tried

Number = float | int | str | None
Row = Mapping[str, Number]

SINGLE_EDITS = 2000
"""One-word changes of the best that are evaluated at most: those with the largest first-order gains."""
ENOUGH = 0.95
"""Share of the best value that its simplest form must keep."""
LOOKED_AT = 2000
"""Trials, the best ones, among which those with few edits are looked for."""
ROUNDING = 1e-6
"""Share of the best value by which another must be larger to be better."""


def single_edits(
    search: Search, filled: Filled, objective: Objective, free: Remembered, best: Candidate, value: float
) -> list[Row]:
    """Rows of the one-word changes of the best candidate, the best first.

    Changes with more edits than may be, or out of bounds, are among them and not `allowed`; bounds are looked at where
    a change is better than the best.
    """
    edits = [
        (slot, option) for slot, size in enumerate(search.space.sizes) for option in range(size) if option != best[slot]
    ]
    if len(edits) > SINGLE_EDITS:
        gains = objective.gains(free.evaluator, best)
        edits = sorted(edits, key=lambda edit: -gains[edit[0]][edit[1]])[:SINGLE_EDITS]
    if not edits:
        return []
    changed = [(*best[:slot], option, *best[slot + 1 :]) for slot, option in edits]
    values = free.worths(filled.tokens(changed), objective)
    allowed = np.array([search.space.allowed(one) for one in changed])
    promising = np.flatnonzero(allowed & (values > value + ROUNDING * abs(value)))
    if search.objective.bounds != Bounds() and len(promising):
        free.ordinary = search.ordinary
        broken = search.objective.violations(
            free.measured(filled.tokens([changed[i] for i in promising]), search.objective)
        )
        for by in broken.values():
            allowed[promising[(by > 0).numpy()]] = False
    rows: list[Row] = [
        {
            "slot": search.space.slots[slot].name,
            "option": search.space.slots[slot].options[option],
            "value": float(v),
            "allowed": int(may),
        }
        for (slot, option), v, may in zip(edits, values, allowed, strict=True)
    ]
    return sorted(rows, key=lambda row: -float(str(row["value"])))


def ladder(
    search: Search,
    filled: Filled,
    worths: Callable[[Sequence[Tensor]], Floats],
    best: Candidate,
    value: float,
    ranked: Sequence[Tried],
) -> list[Row]:
    """The best known prompts with 1, 2 and 3 words changed: by some of the best candidate's words, or a trial's."""
    changed = filled.changed(best)
    of_trials: dict[int, Candidate] = {}
    for one in ranked:
        of_trials.setdefault(len(filled.changed(one.proposal.candidate)), one.proposal.candidate)
    rows: list[Row] = []
    for n in range(1, min(3, len(changed)) + 1):
        choices = [(best, choice) for choice in itertools.combinations(changed, n)]
        if n in of_trials:
            choices.append((of_trials[n], filled.changed(of_trials[n])))
        found = worths([filled.partly(candidate, choice) for candidate, choice in choices])
        candidate, choice = choices[int(np.argmax(found))]
        share = float(found.max()) / value if value else None
        said = ", ".join(_said(search, candidate, slot) for slot in choice)
        rows.append({"edits": n, "value": float(found.max()), "share": share, "words": said})
    return rows


def simplest(
    search: Search, filled: Filled, worths: Callable[[Sequence[Tensor]], Floats], best: Candidate, value: float
) -> dict[str, Number]:
    """The best prompt without words that do next to nothing: taken out one by one, that with the least loss first."""
    kept, left = list(filled.changed(best)), value
    while len(kept) > 1:
        found = worths([filled.partly(best, [one for one in kept if one != slot]) for slot in kept])
        if found.max() < ENOUGH * value:
            break
        left = float(found.max())
        del kept[int(found.argmax())]
    words = ", ".join(_said(search, best, slot) for slot in kept)
    return {"simplest/edits": len(kept), "simplest/value": left, "simplest/words": words}


def _said(search: Search, best: Candidate, slot: int) -> str:
    return f"{search.space.slots[slot].name} := {search.space.words(best)[slot].lstrip('=')}"
