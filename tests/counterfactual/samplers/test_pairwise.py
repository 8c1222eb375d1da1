"""The fitted pairwise model against least squares written out, and its best candidates against all of them."""

import itertools

import numpy as np
import pytest

from igap.counterfactual.history import History, Proposal
from igap.counterfactual.samplers.pairwise import PairwiseModel, best_of_model, fit_pairwise, pairwise
from igap.counterfactual.spaces.base import KEEP, Slot, Space


def space_of(*sizes, max_edits=None, without_keep=()):
    options = [
        tuple(KEEP if o == 0 and i not in without_keep else f"w{o}" for o in range(n)) for i, n in enumerate(sizes)
    ]
    return Space("slots", tuple(Slot(f"s{i}", o, (i + 1,)) for i, o in enumerate(options)), max_edits=max_edits)


def truth_of(space, seed=0, pairs=1.0):
    """A model of random weights."""
    rng, n = np.random.default_rng(seed), len(space.sizes)
    weights = {
        (s, t): pairs * rng.normal(size=(space.sizes[s], space.sizes[t]))
        for s, t in itertools.combinations(range(n), 2)
    }
    return PairwiseModel(space, 0.3, tuple(rng.normal(size=size) for size in space.sizes), weights, 1.0)


def history_of(space, candidates, value):
    return History(
        space, tuple(Proposal(one, "start") for one in candidates), np.array([[value(c)] for c in candidates])
    )


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


def test_the_model_is_ridge_regression_and_its_r2_is_that_of_trials_left_out():
    space, rng = space_of(3, 4, 2), np.random.default_rng(1)
    truth = truth_of(space, 2)
    candidates = [tuple(int(rng.integers(n)) for n in space.sizes) for _ in range(40)]
    noise = dict(zip(sorted(set(candidates)), 0.2 * rng.normal(size=99), strict=False))
    history = history_of(space, candidates, lambda one: truth.predict(one) + noise[one])
    model, values = fit_pairwise(history), history.values

    def columns(one):
        """1, each word, each pair of words, with the square roots of their prior variances."""
        words = [np.eye(n)[o] / np.sqrt(3) for n, o in zip(space.sizes, one, strict=True)]
        pairs = [np.outer(a, b).ravel() * 3 for a, b in itertools.combinations(words, 2)]
        return np.concatenate([[1.0], *words]), np.concatenate(pairs) / np.sqrt(3)

    fits = []
    for share, ridge in itertools.product((0.0, 0.1, 0.3, 1.0), (0.003, 0.03, 0.3)):
        design = np.array([np.concatenate([a, np.sqrt(share) * b]) for a, b in map(columns, candidates)])
        target = (values - values.mean()) / values.std()

        def predict(rows, to, known, ridge=ridge, design=design):
            weights = np.linalg.solve(design[rows].T @ design[rows] + ridge * np.eye(design.shape[1]),
                                      design[rows].T @ known[rows])  # fmt: skip
            return design[to] @ weights

        every = np.arange(40)
        left_out = np.array([predict(every != i, [i], target)[0] for i in every])
        fits.append((((left_out - target) ** 2).sum(), predict(every, every, target)))
    error, fitted = min(fits, key=lambda fit: fit[0])
    assert model.r2 == pytest.approx(1 - error / 40, abs=1e-9)
    assert [model.predict(one) for one in candidates] == pytest.approx(
        list(values.mean() + values.std() * fitted), abs=1e-9
    )
    assert 0.5 < model.r2 < 1


def test_of_equal_values_there_is_no_model_and_hybrid_proposes():
    space = space_of(9, 9, 9)
    candidates = list(space.candidates())[:60]
    assert fit_pairwise(history_of(space, candidates, lambda _: 1.0)) is None
    scores = lambda _: [np.arange(9.0)] * 3  # noqa: E731
    proposals = pairwise(history_of(space, candidates, lambda _: 1.0), scores, 8, np.random.default_rng(0))
    assert len(proposals) == 8
    assert "pairwise" not in {one.source for one in proposals}


def test_where_effects_add_up_the_best_of_the_space_is_proposed():
    space, rng = space_of(8, 8, 8, 8), np.random.default_rng(0)
    truth = truth_of(space, pairs=0.1)
    every = list(space.candidates())
    some = [every[i] for i in rng.choice(len(every), 80, replace=False)]
    best = max(every, key=truth.predict)
    history = history_of(space, [one for one in some if one != best], truth.predict)
    scores = lambda _: [np.zeros(8)] * 4  # noqa: E731
    proposals = pairwise(history, scores, 16, np.random.default_rng(0))
    assert [one.source for one in proposals[:4]] == ["pairwise"] * 4
    assert best in [one.candidate for one in proposals[:4]]
    assert len({one.candidate for one in proposals}) == 16
