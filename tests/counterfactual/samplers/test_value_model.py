"""The model of values against least squares written out, and its best candidates against all of them."""

import itertools

import numpy as np
import pytest

from igap.counterfactual.history import History, Proposal
from igap.counterfactual.samplers import value_model
from igap.counterfactual.samplers.value_model import ValueModel, best_of_model, fit
from igap.counterfactual.spaces.base import KEEP, Slot, Space


def space_of(*sizes, max_edits=None, without_keep=(), shared=()):
    """Slots of words of their own; those in `shared` offer the same words."""
    options = [
        tuple(KEEP if o == 0 and i not in without_keep else f"{'w' if i in shared else i}-{o}" for o in range(n))
        for i, n in enumerate(sizes)
    ]
    return Space("slots", tuple(Slot(f"s{i}", o, (i + 1,)) for i, o in enumerate(options)), max_edits=max_edits)


def truth_of(space, seed=0, pairs=1.0):
    """A model of random weights."""
    rng, n = np.random.default_rng(seed), len(space.sizes)
    weights = {
        (s, t): pairs * rng.normal(size=(space.sizes[s], space.sizes[t]))
        for s, t in itertools.combinations(range(n), 2)
    }
    options = tuple(np.arange(size) for size in space.sizes)
    return ValueModel(space, options, 0.3, tuple(rng.normal(size=size) for size in space.sizes), weights, 1.0)


def history_of(space, candidates, value):
    points = np.array([[value(candidate)] for candidate in candidates], dtype=float)
    return History(space, tuple(Proposal(candidate, "start") for candidate in candidates), points)


def drawn(space, n, rng):
    return [tuple(int(rng.integers(size)) for size in space.sizes) for _ in range(n)]


def no_scores(space):
    return [np.zeros(size) for size in space.sizes]


@pytest.mark.parametrize(
    "space",
    [space_of(4, 3, 5, 2), space_of(4, 3, 5, 2, max_edits=2), space_of(4, 3, 5, 2, max_edits=2, without_keep=(3,)),
     space_of(7)],
    ids=["all", "edits", "edits and a slot that must be", "one slot"],
)  # fmt: skip
def test_branch_and_bound_finds_the_best_candidates_that_are_not_taken(space):
    for seed in range(5):
        model = truth_of(space, seed)
        ranked = sorted(space.candidates(), key=model.predict, reverse=True)
        taken = {ranked[0], ranked[3]}
        assert best_of_model(model, 4, taken) == [one for one in ranked if one not in taken][:4]


def test_a_space_of_the_default_s_size_is_searched_within_the_nodes():
    space = space_of(57, 57, 57, 30, 30, 20)
    model = truth_of(space, pairs=0.05)
    (best,) = best_of_model(model, 1)
    value = model.predict(best)
    for slot, size in enumerate(space.sizes):
        assert all(model.predict((*best[:slot], o, *best[slot + 1 :])) <= value for o in range(size))


@pytest.mark.parametrize("max_edits", [1, 2, 3])
@pytest.mark.parametrize("without_keep", [(), (3,)])
def test_with_few_edits_of_many_slots_the_best_are_those_of_all(max_edits, without_keep):
    space = space_of(*[60] * 6, 4, 4, max_edits=max_edits, without_keep=without_keep)
    model = truth_of(space, pairs=0.0)
    gains = [weights - (0 if slot in without_keep else weights[0]) for slot, weights in enumerate(model.single)]
    forced = [[(slot, option) for option in range(60)] for slot in without_keep]
    changes = [(slot, o) for slot, gain in enumerate(gains) if slot not in without_keep for o in range(1, len(gain))]
    most = sorted(changes, key=lambda change: -gains[change[0]][change[1]])[:60]  # no better set has another
    values = {}
    for first in itertools.product(*forced):
        for n in range(max_edits - len(first) + 1):
            for rest in itertools.combinations(most, n):
                if len({slot for slot, _ in rest}) == n:
                    words = dict([*first, *rest])
                    candidate = tuple(words.get(slot, 0) for slot in range(8))
                    values[candidate] = model.predict(candidate)
    expected = sorted(values, key=values.__getitem__, reverse=True)[:4]
    assert best_of_model(model, 4) == expected


def test_scores_that_are_not_finite_count_as_none():
    space, rng = space_of(5, 5, 5), np.random.default_rng(0)
    tried = drawn(space, 30, rng)
    history = history_of(space, tried, truth_of(space).predict)
    broken = [np.full(5, np.nan), np.array([0.0, np.inf, 0.0, -np.inf, 0.0]), np.zeros(5)]
    assert best_of_model(fit(history, broken), 3) == best_of_model(fit(history, no_scores(space)), 3)


@pytest.mark.parametrize("shared", [(), (0, 2)], ids=["words of their own", "two slots share words"])
@pytest.mark.parametrize("scored", [False, True])
def test_the_model_is_ridge_regression_and_its_r2_is_that_of_trials_left_out(shared, scored):
    space, rng = space_of(3, 4, 3, shared=shared), np.random.default_rng(1)
    truth, candidates = truth_of(space, 2), drawn(space, 40, rng)
    noise = dict(zip(sorted(set(candidates)), 0.2 * rng.normal(size=99), strict=False))
    again = {candidate: 2.0 * (shared != () and candidate[0] == candidate[2] > 0) for candidate in candidates}
    history = history_of(space, candidates, lambda c: truth.predict(c) + noise[c] + again[c])
    scores = [w + rng.normal(size=len(w)) for w in truth.single] if scored else no_scores(space)
    model, values = fit(history, scores), history.values
    centred = [each - each.mean() for each in scores]
    scale = np.sqrt(sum((each**2).mean() for each in centred)) or 1.0

    def columns(candidate):
        """1 and each word; pairs of words; the same word twice; scores by slot and their sum. Their prior variances
        are 1 with these square roots taken in."""
        words = [np.eye(n)[o] / np.sqrt(3) for n, o in zip(space.sizes, candidate, strict=True)]
        pairs = [np.outer(a, b).ravel() * 3 for a, b in itertools.combinations(words, 2)]
        slopes = np.array([each[o] / scale for each, o in zip(centred, candidate, strict=True)])
        return (
            np.concatenate([[1.0], *words]),
            np.concatenate(pairs) / np.sqrt(3),
            np.array([float(shared != () and candidate[0] == candidate[2] > 0)]),
            np.array([*slopes, slopes.sum()]) / np.sqrt(2),
        )

    fits = []
    target, every = (values - values.mean()) / values.std(), np.arange(40)
    for share, repeat, slope, ridge in itertools.product(
        (0.0, 0.1, 0.3, 1.0), (0.0, 0.5) if shared else (0.0,), (0.0, 0.3, 1.0, 3.0), (0.003, 0.03, 0.3)
    ):
        design = np.array(
            [
                np.concatenate([a, np.sqrt(share) * b, np.sqrt(repeat) * c, np.sqrt(slope) * d])
                for a, b, c, d in map(columns, candidates)
            ]
        )

        def predict(rows, to, ridge=ridge, design=design):
            weights = np.linalg.solve(design[rows].T @ design[rows] + ridge * np.eye(design.shape[1]),
                                      design[rows].T @ target[rows])  # fmt: skip
            return design[to] @ weights

        left_out = np.array([predict(every != i, [i])[0] for i in every])
        fits.append((((left_out - target) ** 2).sum(), predict(every, every), repeat, slope))
    error, fitted, repeat, slope = min(fits, key=lambda each: each[0])
    assert (repeat > 0, slope > 0) == (shared != (), scored), "the case is one in which these matter"
    assert model.r2 == pytest.approx(1 - error / 40, abs=1e-9)
    assert [model.predict(candidate) for candidate in candidates] == pytest.approx(
        list(values.mean() + values.std() * fitted), abs=1e-9
    )


def test_of_equal_values_there_is_no_model():
    space = space_of(9, 9, 9)
    candidates = list(space.candidates())[:60]
    assert fit(history_of(space, candidates, lambda _: 1.0), no_scores(space)) is None
    assert fit(history_of(space, candidates[:1], lambda _: 1.0), no_scores(space)) is None


def test_where_effects_add_up_the_best_of_the_space_is_the_models():
    space, rng = space_of(8, 8, 8, 8), np.random.default_rng(0)
    truth = truth_of(space, pairs=0.1)
    every = list(space.candidates())
    best = max(every, key=truth.predict)
    some = [every[i] for i in rng.choice(len(every), 80, replace=False)]
    model = fit(
        history_of(space, [candidate for candidate in some if candidate != best], truth.predict), no_scores(space)
    )
    assert best in best_of_model(model, 4)


def test_words_never_tried_are_expected_to_do_what_first_order_scores_foretell():
    space, rng = space_of(40, 40, 40), np.random.default_rng(0)
    truth = truth_of(space, pairs=0.0)
    best = tuple(int(weights.argmax()) for weights in truth.single)
    few = [c for c in drawn(space, 60, rng) if not any(o == b for o, b in zip(c, best, strict=True))]
    scores = [3.0 * (weights - weights[0]) for weights in truth.single]
    assert best_of_model(fit(history_of(space, few, truth.predict), scores), 1) == [best]
    assert best_of_model(fit(history_of(space, few, truth.predict), no_scores(space)), 1) != [best]


def test_a_word_that_two_slots_say_is_worth_something_by_itself():
    space, rng = space_of(30, 30, 3, shared=(0, 1), without_keep=(0, 1)), np.random.default_rng(0)
    tried = [c for c in drawn(space, 60, rng) if c[0] != c[1]] + [(o, o, 0) for o in range(3)]
    model = fit(history_of(space, tried, lambda c: 5.0 * (c[0] == c[1]) + 0.1 * c[2]), no_scores(space))
    assert all(c[0] == c[1] for c in best_of_model(model, 40))


def test_an_effects_sign_is_learned_with_its_size():
    space, rng = space_of(12, 12, 12), np.random.default_rng(0)
    truth = truth_of(space, pairs=0.0)
    tried = drawn(space, 100, rng)
    effects = np.array([truth.predict(candidate) for candidate in tried])
    proposals = tuple(Proposal(candidate, "start") for candidate in tried)
    history = History(space, proposals, np.abs(effects)[:, None], np.sign(effects))
    model = fit(history, no_scores(space))
    assert model.r2 > 0.95
    lowest = tuple(int(weights.argmin()) for weights in truth.single)
    assert best_of_model(model.negative(), 1) == [lowest]
    assert model.negative().predict(lowest) == -model.predict(lowest)


def test_of_many_options_those_tried_and_those_of_the_farthest_scores_are_known(monkeypatch):
    monkeypatch.setattr(value_model, "_OPTIONS", 6)
    space, rng = space_of(50, 50, 4, max_edits=2), np.random.default_rng(0)
    truth = truth_of(space, pairs=0.0)
    truth.single[0][0] = truth.single[0][1:].mean()  # KEEP, which the other words of the slot are tried with
    tried = [c for c in drawn(space, 4000, rng) if space.is_allowed(c) and c[0]][:12]
    model = fit(history_of(space, tried, truth.predict), truth.single)
    for slot in (0, 1):
        farthest = np.argsort(-abs(truth.single[slot] - truth.single[slot].mean()))[:6]
        assert set(model.options[slot]) == {0, *farthest, *(candidate[slot] for candidate in tried)}
    assert list(model.options[2]) == [0, 1, 2, 3]
    chosen = best_of_model(model, 5)
    assert len(chosen) == 5
    assert all(space.is_allowed(candidate) for candidate in chosen)
    assert [model.predict(candidate) for candidate in chosen] == sorted(map(model.predict, chosen), reverse=True)
