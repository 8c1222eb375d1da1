"""The history that samplers learn from: what was proposed, and the value of each proposal."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from igap.counterfactual.spaces.base import Candidate, Space

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Proposal:
    """A candidate to try, and who proposed it."""

    candidate: Candidate
    source: str
    """start, random, incumbent, model, repeat, ... or the name of a sampler."""
    lineage: int = 0
    """A count of the sampler's own, from 1: steps of GCG, stages of a beam; 0: none."""


@dataclass(frozen=True, eq=False)
class History:
    """The trials so far, in order."""

    space: Space
    proposals: tuple[Proposal, ...]
    points: Floats
    """`[trial, term]`, higher is better; NaN where a trial failed or violates a constraint."""
    sides: Floats | None = None
    """`[trial]`, the sign of the effect whose size is the first term; None: one that is no size."""
    tried: frozenset[Candidate] | None = None
    """The candidates of all proposals, where they are known; None: they are gathered when they are asked for."""

    @property
    def values(self) -> Floats:
        """The first term of each trial, `[trial]`."""
        return self.points[:, 0]

    @property
    def signed(self) -> Floats:
        """The first term of each trial, with the sign of the effect where it is the size of one."""
        return self.values if self.sides is None else self.values * self.sides

    @cached_property
    def seen(self) -> frozenset[Candidate]:
        """All candidates tried, whatever came of them."""
        return frozenset(proposal.candidate for proposal in self.proposals) if self.tried is None else self.tried

    @property
    def order(self) -> list[int]:
        """Indices of the trials with a value, best first; of equal ones the earlier."""
        known = np.flatnonzero(~np.isnan(self.values))
        return [int(i) for i in known[np.argsort(-self.values[known], kind="stable")]]

    @property
    def best(self) -> Candidate | None:
        """The candidate of the highest value."""
        order = self.order
        return self.proposals[order[0]].candidate if order else None
