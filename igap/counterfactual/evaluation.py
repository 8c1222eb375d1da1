"""Candidates with their values, and the best of many of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from igap.counterfactual.history import Floats, Proposal
from igap.counterfactual.spaces.base import Candidate, Space
from igap.counterfactual.trials.chunks import Chunk, is_complete
from igap.counterfactual.trials.study import EvaluatedTrial

_PIECE = 8192
"""Candidates of a chunk that are evaluated at once."""


@dataclass(frozen=True, eq=False)
class EvaluatedBatch:
    """Candidates with their values."""

    candidates: Sequence[Candidate]
    values: Floats
    """`[candidate, term]`."""
    effects: Float[Tensor, "candidate pair"]
    violations: Mapping[str, Floats]
    """`[candidate]` each; 0 or less: the constraint is satisfied."""
    changed: Bool[np.ndarray, " candidate"]
    """Whether each candidate differs from a clean prompt."""

    @cached_property
    def finite(self) -> Bool[np.ndarray, " candidate"]:
        """Whether each has a value, and is known to satisfy the constraints or not."""
        finite: Bool[np.ndarray, " candidate"]
        finite = np.logical_and.reduce(np.isfinite(np.column_stack([self.values, *self.violations.values()])), axis=1)
        return finite

    @cached_property
    def admissible(self) -> Bool[np.ndarray, " candidate"]:
        """Whether each has a value and satisfies every constraint."""
        within = [each <= 0 for each in self.violations.values()]
        admissible: Bool[np.ndarray, " candidate"] = np.logical_and.reduce([self.finite, *within])
        return admissible

    def trial(self, i: int, proposal: Proposal) -> EvaluatedTrial:
        """The trial of one of them."""
        finite = bool(self.finite[i])
        return EvaluatedTrial(
            proposal,
            tuple(map(float, self.values[i])) if finite else (float("nan"),) * self.values.shape[1],
            tuple(self.effects[i].tolist()),
            {name: float(each[i]) for name, each in self.violations.items()} if finite else {},
            "" if finite else "a number is not finite",
        )


Evaluate = Callable[[Sequence[Candidate]], EvaluatedBatch]


def evaluate_chunk(space: Space, evaluate: Evaluate, chunk: Chunk) -> EvaluatedTrial:
    """The trial of a chunk's best candidate: within the constraints where one is, with a value where one has it.

    Of equal ones the first.
    """
    start, stop = chunk.ends(space.size)
    best: tuple[tuple[bool, bool, bool, float], EvaluatedTrial] | None = None
    n_failed = n_out = 0
    for first in range(start, stop, _PIECE):
        batch = evaluate(space.candidates_between(first, min(stop, first + _PIECE)))
        n_failed += int((~batch.finite).sum())
        n_out += int((batch.finite & ~batch.admissible).sum())
        values = np.where(batch.finite, batch.values[:, 0], -np.inf)
        # What changes nothing is no answer, whatever is worse than it.
        earlier = np.arange(len(values), 0, -1)
        i = int(np.lexsort([earlier, values, batch.finite, batch.changed, batch.admissible])[-1])
        rank = bool(batch.admissible[i]), bool(batch.changed[i]), bool(batch.finite[i]), float(values[i])
        if best is None or rank > best[0]:
            best = rank, batch.trial(i, Proposal(batch.candidates[i], "brute"))
    assert best is not None
    return replace(best[1], chunk=replace(chunk, n_tried=stop - start, n_failed=n_failed, n_out=n_out))


def is_exact(trials: Sequence[EvaluatedTrial], space: Space) -> bool:
    """Whether these are all candidates of the space, as trials or in chunks."""
    if is_complete(trial.chunk for trial in trials if trial.chunk):
        return True
    return len({trial.proposal.candidate for trial in trials}) == space.size
