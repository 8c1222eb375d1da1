"""How near the best prompt is to the best of its space: the share of the space's prompts that are better.

Adaptive multilevel splitting, of the last particle (Guyader, Hengartner, Matzner-Lober 2011). Particles are prompts
that are drawn uniformly from those within the constraints. The lowest of them die, one after another; each is born
again as a copy of another, moved by a Markov chain among the prompts above the one that died. If the chain forgets
where it began, the number of deaths until all are above a value is Poisson with mean -N log(share of the prompts
above it), whatever the values are, and gives an interval of the share. What the chain does not forget makes that
number vary more: see SPREAD.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2

from igap.counterfactual.history import Floats
from igap.counterfactual.session import SearchSession
from igap.counterfactual.spaces.base import Candidate, Space
from igap.counterfactual.trials.study import EvaluatedTrial
from igap.counterfactual.validation.neighbours import ROUNDING
from igap.errors import InputError
from igap.errors.missing import Missing
from igap.statistics.bootstrap import LEVEL

SPREAD = 3.0
"""The variance of the number of deaths beside a Poisson's, on the safe side of the 1.4 that
`tests/benchmarks/optimality.py` finds."""
MOVES = 20
"""Steps of the Markov chain of a particle that is born again, at least."""
PARTICLES = (25, 200)
"""How many particles there are: the least and the most."""
_MOST = 20
"""Times as many moves where most proposals are known."""
_AT_ONCE = 10
"""A share of this many particles moves at once, so that they share forward passes."""

Score = Callable[[Sequence[Candidate]], Floats]
"""Candidates' values; -inf of those that violate a constraint or have none."""


@dataclass(frozen=True)
class Optimality:
    """The share of a space's prompts, of those within the constraints, that are better than the best known one."""

    share: float | Missing
    """The estimate, 0 to 1; missing where no better prompt was met."""
    upper: float
    """The end of its one-sided 95% confidence interval, 0 to 1."""
    n_evaluations: int
    """Prompts that were evaluated for it."""
    n_particles: int


def least_evaluations(size: int) -> int:
    """Evaluations that the splitting needs to come down to one prompt of a space of this size."""
    return math.ceil(PARTICLES[0] * (1 + MOVES * _levels(size)))


def check_budget(evaluations: int, size: int) -> None:
    """Raises InputError where these are too few for the levels of a space of this size."""
    least = least_evaluations(size)
    if evaluations < least:
        remedy = f"optimality={least}" if least < size else "search.sampler=brute, which tries them all"
        raise InputError(
            f"optimality: got {evaluations} evaluations, wanted at least {least:,} for {size:.4g} candidates: "
            f"{PARTICLES[0]} particles, {math.ceil(_levels(size))} levels, {MOVES} moves each. Use {remedy}."
        )


def estimate_optimality(
    session: SearchSession,
    trials: Sequence[EvaluatedTrial],
    evaluations: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Optimality | Missing:
    """The share of the space's prompts that are better than the best of these trials, one of which has a value.

    `on_progress` is told how many evaluations of how many are made. Raises InputError on too few evaluations.
    """
    check_budget(evaluations, session.space.size)
    best = max(trial.value for trial in trials if trial.is_feasible)

    def score(candidates: Sequence[Candidate]) -> Floats:
        batch = session.evaluate(candidates, remember=True)
        return np.where(batch.admissible, batch.values[:, 0], -math.inf)

    rng = np.random.default_rng([session.seed, len(trials), evaluations])
    return estimate_share(session.space, score, best + ROUNDING * abs(best), evaluations, rng, on_progress)


def estimate_share(
    space: Space,
    score: Score,
    best: float,
    evaluations: int,
    rng: np.random.Generator,
    on_progress: Callable[[int, int], None] | None = None,
) -> Optimality | Missing:
    """The share of prompts whose score is strictly above `best`, by so many evaluations at most.

    Ties are no trouble: equal scores are ordered by a random number that each particle has.
    """
    n = int(min(PARTICLES[1], evaluations / (1 + MOVES * _levels(space.size))))
    n_moves = int((evaluations / n - 1) / _levels(space.size))
    known: dict[Candidate, float] = {}

    def evaluate(candidates: Sequence[Candidate]) -> Floats:
        new = list(dict.fromkeys(each for each in candidates if each not in known))
        if new:
            known.update(zip(new, score(new).tolist(), strict=True))
            if on_progress:
                on_progress(len(known), evaluations)
        return np.array([known[each] for each in candidates])

    drawn: list[Candidate] = []
    while len(drawn) < n and len(known) + n <= evaluations // 2:
        some = draw_uniformly(space, n, rng)
        drawn += [each for each, value in zip(some, evaluate(some), strict=True) if value > -math.inf]
    if len(drawn) < n:
        return Missing(f"only {len(drawn)} of {len(known)} prompts drawn are within the constraints")
    particles, chain = drawn[:n], _Chain(space, rng)
    scores, ranks = evaluate(particles), rng.random(n)
    n_deaths, new_share, none_left = 0, 1.0, 0.5 / space.size
    while True:
        order = np.lexsort([ranks, scores])
        lowest = order[: max(1, n // _AT_ONCE)]
        lowest = lowest[scores[lowest] <= best]
        upper = _upper_bound(n_deaths, n)
        if not len(lowest):
            return Optimality((1 - 1 / n) ** n_deaths, upper, len(known), n)
        if upper < none_left or len(known) + len(lowest) * n_moves > evaluations:
            return Optimality(Missing("no better prompt was met"), upper, len(known), n)
        n_deaths += len(lowest)
        levels, ranks_of_levels = scores[lowest].copy(), ranks[lowest].copy()
        parents = rng.choice(order[len(lowest) :], len(lowest))
        for i, parent in zip(lowest, parents, strict=True):
            particles[i] = particles[parent]
        scores[lowest], ranks[lowest] = scores[parents], ranks[parents]
        # A proposal that is known costs nothing: the more of them there were before, the more moves there are.
        before, n_now = len(known), min(_MOST * n_moves, round(n_moves / new_share))
        for _ in range(n_now):
            if len(known) + len(lowest) > evaluations:
                return Optimality(Missing("no better prompt was met"), upper, len(known), n)
            proposals, kinds, factors = chain.propose([particles[i] for i in lowest])
            allowed = np.array([proposal is not None for proposal in proposals])
            proposed = np.full(len(lowest), -math.inf)
            if allowed.any():
                proposed[allowed] = evaluate([each for each in proposals if each is not None])
            new_ranks = rng.random(len(lowest))
            above = (proposed > levels) | ((proposed == levels) & (new_ranks > ranks_of_levels))
            accepted = above & (rng.random(len(lowest)) < factors)
            chain.learn(kinds, accepted)
            for j in np.flatnonzero(accepted):
                proposal = proposals[j]
                assert proposal is not None
                particles[lowest[j]] = proposal
            scores[lowest[accepted]], ranks[lowest[accepted]] = proposed[accepted], new_ranks[accepted]
        new_share = 0.5 * new_share + 0.5 * (len(known) - before) / (n_now * len(lowest)) + 1e-6


class _Chain:
    """A Markov chain on the candidates whose stationary distribution is uniform.

    A move draws anew the options of some slots, the more of them the more often that is accepted; where edits are
    limited, every other move takes one edit back and makes another.
    """

    def __init__(self, space: Space, rng: np.random.Generator) -> None:
        self._space, self._rng = space, rng
        self._slots = [i for i, size in enumerate(space.sizes) if size > 1]
        self._accepted, self._tried = np.ones(len(self._slots)), np.ones(len(self._slots))

    def propose(self, candidates: Sequence[Candidate]) -> tuple[list[Candidate | None], list[int], Floats]:
        """For each candidate the next one, None where it is not allowed; how many slots less one; MH factors."""
        weights = np.arange(1, len(self._slots) + 1) * self._accepted / self._tried
        weights /= weights.sum()
        kinds = [int(kind) for kind in self._rng.choice(len(weights), len(candidates), p=weights)]
        proposals: list[Candidate | None] = []
        factors = np.ones(len(candidates))
        for j, (candidate, kind) in enumerate(zip(candidates, kinds, strict=True)):
            if self._space.max_edits is not None and self._rng.random() < 0.5:
                proposal, factors[j] = self._exchange(candidate)
                kinds[j] = -1
            else:
                words = list(candidate)
                for slot in self._rng.choice(self._slots, kind + 1, replace=False):
                    words[slot] = int(self._rng.integers(self._space.sizes[slot]))
                proposal = tuple(words)
            proposals.append(proposal if proposal is not None and self._space.is_allowed(proposal) else None)
        return proposals, kinds, factors

    def _exchange(self, candidate: Candidate) -> tuple[Candidate | None, float]:
        space, edited = self._space, self._space.edits(candidate)
        back = [slot for slot in edited if space.keeps[slot] is not None]
        fresh = [slot for slot in self._slots if slot not in edited]
        if not back or not fresh:
            return None, 1.0
        out, slot = (int(self._rng.choice(slots)) for slots in (back, fresh))
        words, keep = list(candidate), space.keeps[slot]
        assert keep is not None
        words[out] = space.keeps[out] or 0
        option = int(self._rng.integers(space.sizes[slot] - 1))
        words[slot] = option + (option >= keep)
        return tuple(words), (space.sizes[slot] - 1) / (space.sizes[out] - 1)

    def learn(self, kinds: Sequence[int], accepted: np.ndarray) -> None:
        """Remember which numbers of slots are accepted, the last rounds more than those of long ago."""
        self._accepted, self._tried = 0.99 * self._accepted + 0.001, 0.99 * self._tried + 0.01
        for kind, yes in zip(kinds, accepted, strict=True):
            if kind >= 0:
                self._accepted[kind] += bool(yes)
                self._tried[kind] += 1


def draw_uniformly(space: Space, n: int, rng: np.random.Generator) -> list[Candidate]:
    """Draw candidates uniformly, with replacement, also where edits are limited."""
    if space.max_edits is None:
        return list(zip(*(rng.integers(size, size=n).tolist() for size in space.sizes), strict=True))
    # Ways to go on from a slot with so many edits left, the last slot first.
    ways = [[1] * (space.max_edits + 1)]
    for size, keep in zip(reversed(space.sizes), reversed(space.keeps), strict=True):
        behind, changes = ways[0], size - (keep is not None)
        ways.insert(0, [
            (behind[left] if keep is not None else 0) + (changes * behind[left - 1] if left else 0)
            for left in range(space.max_edits + 1)
        ])  # fmt: skip
    candidates = []
    for _ in range(n):
        words, left = list[int](), space.max_edits
        for slot, (size, keep) in enumerate(zip(space.sizes, space.keeps, strict=True)):
            kept = 0.0 if keep is None else ways[slot + 1][left] / ways[slot][left]
            if keep is not None and rng.random() < kept:
                words.append(keep)
                continue
            option = int(rng.integers(size - (keep is not None)))
            words.append(option + (keep is not None and option >= keep))
            left -= 1
        candidates.append(tuple(words))
    return candidates


def _levels(size: int) -> float:
    """Levels, each with 1/e of the prompts of the one before, until not even one prompt of the space can be better."""
    return math.log(2 * size) + 2 * math.sqrt(SPREAD * math.log(2 * size) / PARTICLES[0])


def _upper_bound(n_deaths: int, n: int) -> float:
    """The upper end of the share's interval: a SPREAD-th of the deaths is Poisson with a SPREAD-th of -n log(share)."""
    return math.exp(-SPREAD * chi2.ppf(1 - LEVEL, 2 * n_deaths / SPREAD) / 2 / n) if n_deaths else 1.0
