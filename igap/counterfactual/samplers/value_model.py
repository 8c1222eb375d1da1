"""A model of the trials' values, fitted anew for each batch, and the candidates that it expects most of."""

import heapq
import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from igap.counterfactual.history import Floats, History
from igap.counterfactual.samplers.repeats import equal_words
from igap.counterfactual.spaces.base import Candidate, Space

_MODELLED = 300
"""The latest trials that the model learns from at most: its cost grows with their cube."""
_OPTIONS = 256
"""Options of a slot that it knows at most, beside those of the trials: those of the farthest first-order scores."""
_PAIRS = (0.0, 0.1, 0.3, 1.0)
"""Prior variance of all pairs of words beside that of all words, of which the one that predicts best is taken."""
_REPEATS = (0.0, 0.5)
"""Prior variance of two slots having the same word, likewise."""
_SLOPES = (0.0, 0.3, 1.0, 3.0)
"""Prior variance of what first-order scores foretell, likewise."""
_NOISES = (0.003, 0.03, 0.3)
"""Variance of the noise, likewise."""
_NODES = 200_000
"""Partial candidates that the search for the maximum makes, at most."""


@dataclass(frozen=True, eq=False)
class ValueModel:
    """Values as a sum of effects of words, and of pairs of words."""

    space: Space
    options: tuple[NDArray[np.int64], ...]
    """The options of each slot that the model knows."""
    mean: float
    single: tuple[Floats, ...]
    """`[known option]`, for each slot."""
    pairs: dict[tuple[int, int], Floats]
    """`[known option, known option]` of two slots, the earlier one first."""
    r2: float
    """1 - squared error / variance of the trials, each predicted from all the others."""

    def predict(self, candidate: Candidate) -> float:
        """The value that it expects, of known options."""
        places = [int(np.searchsorted(known, o)) for known, o in zip(self.options, candidate, strict=True)]
        total = self.mean + sum(float(weights[p]) for weights, p in zip(self.single, places, strict=True))
        return total + sum(float(weights[places[s], places[t]]) for (s, t), weights in self.pairs.items())

    def negative(self) -> "ValueModel":
        """The model of values with the other sign."""
        return replace(
            self,
            mean=-self.mean,
            single=tuple(-weights for weights in self.single),
            pairs={slots: -weights for slots, weights in self.pairs.items()},
        )


def fit(history: History, scores: Sequence[Floats]) -> ValueModel | None:
    """The model of the latest trials, by regularised least squares; None of fewer than two with a value, or equal ones.

    A word has a weight, two words together have one, two slots that say the same word have one, and the first-order
    scores have one for each slot and one for all: so the model has an opinion of words that were never tried. How much
    each kind of weight is regularised is chosen by the leave-one-out error. Where values are sizes of an effect, it is
    of the effect with its sign, which words add up to.

    Args:
        history: the trials.
        scores: `[option]` for each slot, first-order scores at some candidate; of either sign, the trials tell which.
    """
    known = np.flatnonzero(~np.isnan(history.values))[-_MODELLED:]
    values = history.signed[known]
    if len(known) < 2 or np.ptp(values) == 0:
        return None
    space = history.space
    candidates = np.array([history.proposals[i].candidate for i in known])
    options = tuple(_known_options(space, slot, candidates[:, slot], scores[slot]) for slot in range(len(space.slots)))
    places = np.stack([np.searchsorted(each, candidates[:, s]) for s, each in enumerate(options)], axis=1)
    slopes = _common_scale([scores[s][each] for s, each in enumerate(options)])
    repeats = {
        (s, t): same for (s, t), same in equal_words(space, options).items() if same[places[:, s], places[:, t]].any()
    }
    n_slots, n_pairs = len(options), max(1, len(options) * (len(options) - 1) // 2)

    of_words = (places[:, None] == places).astype(np.float64).sum(-1)
    of_pairs = (of_words**2 - of_words) / 2
    repeated = np.array([same[places[:, s], places[:, t]] for (s, t), same in repeats.items()], dtype=np.float64)
    of_repeats = repeated.T @ repeated if repeats else np.zeros_like(of_words)
    sloped = np.stack([slope[places[:, s]] for s, slope in enumerate(slopes)], axis=1)
    of_slopes = (sloped @ sloped.T + np.outer(sloped.sum(1), sloped.sum(1))) / 2

    mean, spread = float(values.mean()), float(values.std())
    target = (values - mean) / spread
    best: tuple[float, float, float, float, Floats] | None = None
    for share, repeat, slope in itertools.product(
        _PAIRS if n_slots > 1 else (0.0,), _REPEATS if repeats else (0.0,), _SLOPES if sloped.any() else (0.0,)
    ):
        kernel = 1 + of_words / n_slots + share / n_pairs * of_pairs + repeat * of_repeats + slope * of_slopes
        scale, basis = np.linalg.eigh(kernel)
        turned = basis.T @ target
        for noise in _NOISES:
            dual = basis @ (turned / (scale + noise))
            left_out = dual / (basis**2 @ (1 / (scale + noise)))  # the error of each trial, predicted from the others
            error = float((left_out**2).sum())
            if best is None or error < best[0]:
                best = error, share, repeat, slope, dual
    assert best is not None
    error, share, repeat, slope, dual = best
    single = []
    for s, each in enumerate(options):
        learned = np.bincount(places[:, s], dual, len(each)) / n_slots
        foretold = slope / 2 * float((sloped[:, s] + sloped.sum(1)) @ dual) * slopes[s]
        single.append(np.asarray(spread * (learned + foretold)))
    pairs = {}
    for s, t in itertools.combinations(range(n_slots), 2):
        weights = np.zeros((len(options[s]), len(options[t])))
        np.add.at(weights, (places[:, s], places[:, t]), spread * share / n_pairs * dual)
        pairs[s, t] = weights
    for ((s, t), same), row in zip(repeats.items(), repeated, strict=False):
        pairs[s, t] += spread * repeat * float(row @ dual) * same
    r2 = 1 - error / float(target @ target)
    return ValueModel(space, options, mean + spread * float(dual.sum()), tuple(single), pairs, r2)


def best_of_model(model: ValueModel, n: int, taken: Collection[Candidate] = ()) -> list[Candidate]:
    """The `n` candidates of the highest predicted values that are not taken, best first, by branch and bound.

    Slots are filled in order. What is still to fill is bounded by the sum, over its slots, of the best word beside
    those that are filled and, with each slot after it, its best partner; where edits are limited, of KEEP but for the
    slots where a word adds most, as many as may still be edited. So they are exactly the best of known options; fewer
    than `n` where so many are nearly equal that _NODES partial candidates do not tell them apart.
    """
    n_slots = len(model.options)
    ahead = [
        np.sum([np.zeros(len(each)), *(model.pairs[slot, t].max(1) for t in range(slot + 1, n_slots))], axis=0)
        for slot, each in enumerate(model.options)
    ]
    best: list[Candidate] = []
    # Less the bound, less its length (of equal ones the longest first), the places of known options, their value.
    queue: list[tuple[float, int, tuple[int, ...], float]] = [(0.0, 0, (), 0.0)]
    made = 0
    while queue and len(best) < n and made < _NODES:
        _, _, places, value = heapq.heappop(queue)
        slot, words = len(places), tuple(int(each[p]) for each, p in zip(model.options, places, strict=False))
        if slot == n_slots:
            if words not in taken:
                best.append(words)
            continue
        values = value + _beside(model, slot, places)
        later = [
            _beside(model, t, places) + model.pairs[slot, t] + ahead[t] for t in range(slot + 1, n_slots)
        ]  # `[option, later option]`
        left = np.array([_edits_left(model.space, (*words, int(option))) for option in model.options[slot]])
        bounds = values + _most_of(model, later, left)
        allowed = np.flatnonzero(left >= 0)
        made += len(allowed)
        for place in allowed.tolist():
            longer = (*places, place)
            heapq.heappush(queue, (-float(bounds[place]), -len(longer), longer, float(values[place])))
    return best


def _most_of(model: ValueModel, later: Sequence[Floats], left: Floats) -> Floats:
    """What the last slots add at most, `[option]` of the slot before them, with so many edits left for each option."""
    most = [each.max(1) for each in later]
    keeps = model.space.keeps[len(model.options) - len(later) :]
    if model.space.max_edits is None or not later:
        return np.asarray(np.sum([np.zeros(len(left)), *most], axis=0))
    total, gains = np.zeros(len(left)), [np.zeros(len(left))]
    for each, highest, keep, known in zip(later, most, keeps, model.options[-len(later) :], strict=True):
        if keep is None:  # it has an edit of its own
            total += highest
            continue
        kept = each[:, int(np.searchsorted(known, keep))]
        total += kept
        gains.append(highest - kept)
    falling = np.cumsum(-np.sort(-np.stack(gains[1:] or gains), axis=0), axis=0)
    n = np.clip(left, 0, len(falling)).astype(np.int64)
    added: Floats = np.concatenate([np.zeros((1, len(left))), falling])[n, np.arange(len(left))]
    return np.asarray(total + added)


def _known_options(space: Space, slot: int, tried: NDArray[np.int64], scores: Floats) -> NDArray[np.int64]:
    """The options that the model has weights for, ascending: all, or of many those tried, KEEP and the farthest."""
    if space.sizes[slot] <= _OPTIONS:
        return np.arange(space.sizes[slot])
    keep, farthest = space.keeps[slot], np.argsort(-abs(scores - scores.mean()), kind="stable")[:_OPTIONS]
    return np.unique([*tried, *farthest, *([] if keep is None else [keep])])


def _common_scale(scores: Sequence[Floats]) -> list[Floats]:
    """The scores with a mean of 0 in each slot, and a mean square of 1 summed over slots, unless all are alike."""
    finite = [np.nan_to_num(each, posinf=0.0, neginf=0.0) for each in scores]
    centred = [each - each.mean() for each in finite]
    scale = float(np.sqrt(sum((each**2).mean() for each in centred))) or 1.0
    return [each / scale for each in centred]


def _beside(model: ValueModel, slot: int, places: tuple[int, ...]) -> Floats:
    """What each known option of a slot adds to these of the first slots."""
    own: Floats = model.single[slot].copy()
    for earlier, place in enumerate(places):
        own += model.pairs[earlier, slot][place]
    return own


def _edits_left(space: Space, words: Candidate) -> float:
    """How many of the other slots that offer KEEP may be edited beside these words of the first; below 0: too many."""
    if space.max_edits is None:
        return np.inf
    edits = sum(word != keep for word, keep in zip(words, space.keeps, strict=False))
    return float(space.max_edits - edits - sum(keep is None for keep in space.keeps[len(words) :]))
