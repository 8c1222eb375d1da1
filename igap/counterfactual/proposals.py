"""Which candidates to try next. Each method is a function of what has been tried and a random generator, no more.

So a search that was killed goes on as if it had not been: nothing is remembered but the trials.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from igap.counterfactual.space import Candidate, Space

Floats = NDArray[np.float64]
Gains = Callable[[Candidate], list[Floats]]
"""For each option of each slot, the change of the objective to first order if the candidate had it."""

START = 16
"""Random candidates before anything else."""

_DOUBLE = 0.25
"""Share of gradient proposals that swap two words."""
_STALL = 12
"""Proposals of the second anchor without a better one, after which it starts anew from another random candidate."""
_TEMPERATURE = 0.6
"""Scale of the Gumbel noise on gains, in standard deviations of a slot's gains."""
_QUIET = 0.1
"""A slot's spread is taken to be at least this share of the largest: words that do nothing get few swaps."""
_NOISE = 0.3
"""Of the linear model, in standard deviations of what first-order gains do not foretell."""
_LEAST = 1e-3
"""Variance of what they do not foretell that is taken at least, the values' own being 1."""
_TRIES = 200
_MODELLED = 1000
"""Trials that the linear model looks at, the best ones: its cost grows with their cube."""
_NEAREST = 50


@dataclass(frozen=True)
class Proposal:
    """A candidate to try, and who proposed it."""

    candidate: Candidate
    source: str
    """start, random, incumbent, anchor, thompson, ... or the name of an Optuna sampler."""
    lineage: int = 0
    """Of `anchor` proposals: how often the anchor has started anew, from 1."""


@dataclass(frozen=True, eq=False)
class History:
    """What has been tried, in order."""

    space: Space
    proposals: tuple[Proposal, ...]
    points: Floats
    """`[trial, term]`, higher is better; NaN where a trial failed or broke a bound."""

    @property
    def values(self) -> Floats:
        """The first term of each trial."""
        return self.points[:, 0]

    @cached_property
    def seen(self) -> frozenset[Candidate]:
        """All candidates tried, whatever came of them."""
        return frozenset(one.candidate for one in self.proposals)

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


Proposer = Callable[[History, Gains, int, np.random.Generator], list[Proposal]]


def draw(history: History, n: int, rng: np.random.Generator, source: str = "random") -> list[Proposal]:
    """`n` candidates drawn at random, none tried before; fewer where no more are left.

    Uniformly over options; where edits are limited, over numbers of edits first.
    """
    space, taken = history.space, set(history.seen)
    left = space.size - len(taken)
    if left < 4 * n:  # few are left: find them all
        pool = [one for one in space.every() if one not in taken] if left else []
        rng.shuffle(pool)
        return [Proposal(tuple(map(int, one)), source) for one in pool[:n]]
    return _unseen((_drawn(space, rng) for _ in itertools.count()), n, taken, source)


def _drawn(space: Space, rng: np.random.Generator) -> Candidate:
    words = [int(rng.integers(size)) for size in space.sizes]
    if space.max_edits is not None:
        kept = rng.permutation(len(words))[int(rng.integers(1, space.max_edits + 1)) :]
        for slot in kept:
            words[slot] = _keep(space, int(slot), words[slot])
    return within(space, tuple(words), rng)


def _keep(space: Space, slot: int, otherwise: int) -> int:
    keep = space.keeps[slot]
    return otherwise if keep is None else keep


def within(space: Space, candidate: Candidate, rng: np.random.Generator, new: Iterable[int] = ()) -> Candidate:
    """The candidate with as many edits taken back as there are too many: at random, those in the slots `new` last."""
    if space.allowed(candidate):
        return candidate
    assert space.max_edits is not None
    words = list(candidate)
    back = [slot for slot in space.edits(candidate) if space.keeps[slot] is not None]
    later = set(new)
    order = sorted(map(int, rng.permutation(back)), key=lambda slot: slot in later)
    for slot in order[: len(space.edits(candidate)) - space.max_edits]:
        words[slot] = _keep(space, slot, words[slot])
    return tuple(words)


def by_gradient(history: History, gains: Gains, n: int, rng: np.random.Generator) -> list[Proposal]:
    """Swaps of the best candidate's words that first-order gains rank high, with noise."""
    best = history.best
    if best is None:
        return draw(history, n, rng, "start")
    return swaps(history.space, best, gains, n, rng, Proposal(best, "incumbent"), set(history.seen))


def by_thompson(history: History, gains: Gains, n: int, rng: np.random.Generator) -> list[Proposal]:
    """Best candidates of worlds drawn from what a linear model, a weight an option, believes after the trials."""
    best = history.best
    if best is None:
        return draw(history, n, rng, "start")
    return _thompson(history, gains(best), n, rng, set(history.seen))


def by_evolution(history: History, gains: Gains, n: int, rng: np.random.Generator) -> list[Proposal]:  # noqa: ARG001
    """Children of two of the ten best, a word of each slot from either, with one word at random."""
    parents = [history.proposals[i].candidate for i in history.order[:10]]
    if not parents:
        return draw(history, n, rng, "start")

    def child() -> Candidate:
        one, other = (parents[int(rng.integers(len(parents)))] for _ in range(2))
        words = [a if rng.random() < 0.5 else b for a, b in zip(one, other, strict=True)]
        slot = int(rng.integers(len(words)))
        words[slot] = int(rng.integers(history.space.sizes[slot]))
        return within(history.space, tuple(words), rng, [slot])

    return _unseen((child() for _ in range(_TRIES * n)), n, set(history.seen), "evolution") or draw(history, n, rng)


def hybrid(history: History, gains: Gains, n: int, rng: np.random.Generator) -> list[Proposal]:
    """Half gradient swaps of the best candidate, a quarter of a second anchor, a quarter Thompson's."""
    best = history.best
    if best is None:
        return draw(history, n, rng, "start")
    taken = set(history.seen)
    quarter = n // 4
    found = swaps(history.space, best, gains, n - 2 * quarter, rng, Proposal(best, "incumbent"), taken)
    if quarter:
        anchor = _anchor(history)
        found += swaps(history.space, anchor.candidate, gains, quarter, rng, anchor, taken)
        both = [(a + b) / 2 for a, b in zip(gains(best), gains(anchor.candidate), strict=True)]
        found += _thompson(history, both, quarter, rng, taken)
    return found + draw(History(history.space, (*history.proposals, *found), history.points), n - len(found), rng)


def brute(history: History, gains: Gains, n: int, rng: np.random.Generator) -> list[Proposal]:  # noqa: ARG001
    """The next ones of all candidates, in order."""
    return _unseen(history.space.every(), n, set(history.seen), "brute")


def at_random(history: History, gains: Gains, n: int, rng: np.random.Generator) -> list[Proposal]:  # noqa: ARG001
    """As `draw`."""
    return draw(history, n, rng)


PROPOSERS: dict[str, Proposer] = {
    "hybrid": hybrid,
    "gradient": by_gradient,
    "evolution": by_evolution,
    "thompson": by_thompson,
    "random": at_random,
    "brute": brute,
}
"""igap's own; the other samplers are Optuna's."""


def _unseen(candidates: Iterator[Candidate], n: int, taken: set[Candidate], source: str) -> list[Proposal]:
    """The first `n` that are not taken, which they are from then on."""
    found: list[Proposal] = []
    for candidate in candidates:
        if len(found) == n:
            break
        if candidate not in taken:
            taken.add(candidate)
            found.append(Proposal(candidate, source))
    return found


def swaps(
    space: Space,
    anchor: Candidate,
    gains: Gains,
    n: int,
    rng: np.random.Generator,
    like: Proposal,
    taken: set[Candidate],
) -> list[Proposal]:
    """Swaps of one or two of the anchor's words, drawn by gain: the noise is Gumbel's, on the scale of each slot.

    Within a slot the ranking is better than across slots, so each slot's gains are measured in its own spread, unless
    that is next to nothing.
    """
    by_slot = gains(anchor)
    least = _QUIET * max(float(gain.std()) for gain in by_slot)
    noisy = []
    for gain in by_slot:
        spread = _TEMPERATURE * max(float(gain.std()), least) or 1.0
        noisy.append(gain / spread + rng.gumbel(size=len(gain)))
    sizes = np.cumsum([len(one) for one in noisy])
    order = np.argsort(-np.concatenate(noisy), kind="stable")[: _TRIES * n]
    slots = np.searchsorted(sizes, order, side="right")
    scored = [
        (int(slot), int(place - (sizes[slot - 1] if slot else 0))) for slot, place in zip(slots, order, strict=True)
    ]
    found: list[Proposal] = []
    for rank, (slot, option) in enumerate(scored):
        if len(found) == n:
            break
        words, new = list(anchor), [slot]
        words[slot] = option
        if rng.random() < _DOUBLE and space.max_edits != 1:
            second = next((one for one in scored[rank + 1 :] if one[0] != slot), None)
            if second is not None:
                words[second[0]] = second[1]
                new.append(second[0])
        candidate = within(space, tuple(words), rng, new)
        if candidate not in taken:
            taken.add(candidate)
            found.append(Proposal(candidate, like.source, like.lineage))
    return found


def _anchor(history: History) -> Proposal:
    """Where the second anchor stands: the best of its lineage, or the next start when that has stalled."""
    lineage = max((one.lineage for one in history.proposals), default=0)
    own = [i for i, one in enumerate(history.proposals) if one.lineage == lineage and lineage > 0]
    starts = [i for i in history.order if history.proposals[i].source in ("start", "random")] or history.order
    origin = starts[lineage % len(starts)] if lineage else 0
    known = [i for i in [origin, *own] if lineage and not np.isnan(history.values[i])]
    best = max(known, key=lambda i: float(history.values[i]), default=None)
    if lineage == 0 or best is None or sum(i > best for i in own) >= _STALL:
        lineage += 1
        best = starts[lineage % len(starts)]
    return Proposal(history.proposals[best].candidate, "anchor", lineage)


def _thompson(
    history: History, by_slot: Sequence[Floats], n: int, rng: np.random.Generator, taken: set[Candidate]
) -> list[Proposal]:
    """For each of `n` draws from what a linear model believes after the trials, the best candidate that is not taken.

    The model has a weight an option. It expects first-order gains, `by_slot`, as many times as large as foretells the
    trials' values best, and learns from these what they say of each option beside that.
    """
    space, known = history.space, history.order[:_MODELLED]
    offsets = np.concatenate([[0], np.cumsum(space.sizes)])[:-1]
    columns = np.array([history.proposals[i].candidate for i in known]) + offsets
    target = _standard(history.values[known])
    expected = np.concatenate(by_slot)
    foretold = expected[columns].sum(1)
    foretold = foretold - foretold.mean()
    expected = expected * max(0.0, float(foretold @ target) / (float(foretold @ foretold) or 1.0))
    rest = target - (expected[columns].sum(1) - expected[columns].sum(1).mean())
    variance = max(float(rest.var()), _LEAST) / len(space.slots)
    noise = _NOISE * math.sqrt(variance * len(space.slots))
    # Draws from the posterior: prior draws plus the correction by residuals of noisy targets. A trial has a 1 in one
    # column a slot, so products with the design are sums over those columns. torch keeps to this process's threads.
    drawn = math.sqrt(variance) * rng.normal(size=(len(expected), n))
    residual = (rest + noise * rng.normal(size=(n, len(known)))).T - drawn[columns].sum(1)
    gram = variance * (columns[:, None] == columns).sum(-1) + noise**2 * np.eye(len(known))
    solved = torch.linalg.solve(torch.from_numpy(gram), torch.from_numpy(residual)).numpy()
    np.add.at(drawn, columns, variance * solved[:, None])
    found = []
    for weights in (expected[:, None] + drawn).T:
        found += _unseen(_best_first(space, np.split(weights, offsets[1:])), 1, taken, "thompson")
    return found


def _standard(values: Floats) -> Floats:
    """Of mean 0 and standard deviation 1, or all 0."""
    off: Floats = values - values.mean()
    return off / (float(off.std()) or 1.0)


def _best_first(space: Space, by_slot: Sequence[Floats]) -> Iterator[Candidate]:
    """The best candidate of a sum over slots, then those that differ from it least: one or two words changed."""
    best = [int(weights.argmax()) for weights in by_slot]
    if space.max_edits is not None:  # the edits that are worth most beside keeping the word
        worth = [
            float(weights[choice] - weights[keep]) if keep is not None else math.inf
            for weights, choice, keep in zip(by_slot, best, space.keeps, strict=True)
        ]
        for slot in np.argsort(worth)[: max(0, len(best) - space.max_edits)]:
            best[slot] = _keep(space, int(slot), best[slot])
    yield tuple(best)
    losses = [weights[best[slot]] - weights for slot, weights in enumerate(by_slot)]
    changes = sorted(
        (float(loss[option]), slot, int(option))
        for slot, loss in enumerate(losses)
        for option in np.argsort(loss, kind="stable")[:_NEAREST]
        if option != best[slot]
    )
    for _, slot, option in changes:
        one = (*best[:slot], option, *best[slot + 1 :])
        if space.allowed(one):
            yield one
    for (_, slot, option), (_, other, second) in itertools.combinations(changes[:_NEAREST], 2):
        words = list(best)
        words[slot], words[other] = option, second
        if slot != other and space.allowed(tuple(words)):
            yield tuple(words)
