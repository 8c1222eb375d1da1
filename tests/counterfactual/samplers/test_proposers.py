"""Proposals on spaces without a model: what is proposed is a function of the trials and the generator."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igap.counterfactual.history import History, Proposal
from igap.counterfactual.samplers.base import START, draw
from igap.counterfactual.samplers.gradient import even_proposals, gradient, hotflip_proposals
from igap.counterfactual.samplers.hybrid import hybrid
from igap.counterfactual.samplers.registry import SAMPLERS, make_sampler
from igap.counterfactual.samplers.repeats import find_repeats, make_repeats
from igap.counterfactual.samplers.thompson import thompson
from igap.counterfactual.samplers.value_model import best_of_model, fit
from igap.counterfactual.spaces.base import KEEP, Slot, Space

OWN = {name: make_sampler(name, None, 0, 1) for name in SAMPLERS if name not in ("tpe", "nsga2", "gp")}


def space_of(*sizes, max_edits=None, without_keep=()):
    """A space of this many options a slot, the first of which is KEEP. Slots offer the same words."""
    options = [
        tuple(KEEP if o == 0 and slot not in without_keep else f"w{o}" for o in range(size))
        for slot, size in enumerate(sizes)
    ]
    slots = tuple(Slot(f"s{i}", words, (i + 1,)) for i, words in enumerate(options))
    return Space("slots", slots, max_edits=max_edits)


def history_of(space, candidates, objective_value, source="start"):
    """These candidates, tried, and what `worth` says of them."""
    points = np.array([np.atleast_1d(objective_value(one)) for one in candidates], dtype=float)
    points = points if len(points) else np.zeros((0, 1))
    return History(space, tuple(Proposal(one, source) for one in candidates), points)


def with_batch(history, batch, objective_value):
    """The history and a batch after it."""
    points = np.array([np.atleast_1d(objective_value(one.candidate)) for one in batch], dtype=float)
    return History(history.space, (*history.proposals, *batch), np.concatenate([history.points, points]))


def additive(space, seed=0):
    """A worth that is a sum over slots, its weights, and its gains."""
    weights = [np.random.default_rng([seed, i]).normal(size=n) for i, n in enumerate(space.sizes)]

    def objective_value(candidate):
        return sum(float(w[o]) for w, o in zip(weights, candidate, strict=True))

    return objective_value, weights, lambda one, _term=0: [w - w[o] for w, o in zip(weights, one, strict=True)]


SEARCHES = st.tuples(
    st.lists(st.integers(1, 5), min_size=1, max_size=4).filter(lambda sizes: np.prod(sizes) > 1),
    st.none() | st.integers(1, 4),
    st.sets(st.integers(0, 3), max_size=1),  # slots that do not offer KEEP
    st.lists(st.integers(0, 2**20), max_size=30),  # what has been tried, modulo the size of the space
    st.integers(1, 20),
    st.integers(0, 9),
)


@pytest.mark.parametrize("name", OWN)
@given(search=SEARCHES)
@settings(max_examples=30, deadline=None)
def test_every_proposer_offers_new_allowed_candidates_and_the_same_ones_again(name, search):
    sizes, max_edits, without_keep, picked, n, seed = search
    space = space_of(*sizes, max_edits=max_edits, without_keep=without_keep)
    everyone = list(space.candidates())
    order = list(dict.fromkeys(everyone[pick % space.size] for pick in picked))
    objective_value, _, first_order_scores = additive(space, seed)
    history = history_of(space, order, lambda one: np.nan if sum(one) % 5 == 4 else objective_value(one))
    if name == "epo":
        second = np.arange(len(history.proposals)) % 3 * 1.0
        history = History(history.space, history.proposals, np.column_stack([history.values, second]))
    found, again = (OWN[name](history, first_order_scores, n, np.random.default_rng(seed)) for _ in range(2))
    candidates = [one.candidate for one in found]
    assert found == again, "of the history and the generator alone"
    assert len(set(candidates)) == len(candidates) <= n
    assert not set(candidates) & history.seen
    assert set(candidates) <= set(everyone)
    assert all(type(option) is int for one in candidates for option in one), "what Optuna and JSON take"
    left = history.space.size - len(history.seen)
    if name in ("hybrid", "random", "brute"):
        assert len(found) == min(n, left), "nothing is left out while something is left"


@pytest.mark.parametrize("name", OWN)
def test_a_space_that_is_used_up_gives_no_proposal(name):
    space = space_of(2, 3)
    objective_value, _, first_order_scores = additive(space)
    history = history_of(
        space, list(space.candidates()), (lambda one: (objective_value(one), 0.0)) if name == "epo" else objective_value
    )
    assert OWN[name](history, first_order_scores, 4, np.random.default_rng(0)) == []


@pytest.mark.parametrize("name", ["hybrid", "gradient", "evolution", "thompson", "gcg", "adapt", "epo"])
def test_where_every_trial_failed_the_next_are_drawn_at_random(name):
    space = space_of(4, 4)
    history = history_of(space, [(0, 0), (1, 1)], lambda _: (np.nan, np.nan))
    found = OWN[name](history, additive(space)[2], 5, np.random.default_rng(0))
    assert [one.source for one in found] == ["start"] * 5


def test_brute_force_goes_through_all_candidates_in_order():
    space = space_of(3, 2, 4, max_edits=2)
    history = history_of(space, [], lambda _: 0.0)
    while batch := OWN["brute"](history, additive(space)[2], 5, np.random.default_rng(0)):
        history = with_batch(history, batch, lambda _: 0.0)
    assert [one.candidate for one in history.proposals] == list(space.candidates())
    assert len(history.proposals) == space.size == 1 + (2 + 1 + 3) + (2 * 1 + 2 * 3 + 1 * 3)


def test_random_candidates_are_uniform_over_the_options_of_each_slot():
    space, n = space_of(5, 4, 50, 50), 4000
    found = draw(History(space, (), np.zeros((0, 1))), n, np.random.default_rng(0))
    for slot in (0, 1):
        counts = Counter(one.candidate[slot] for one in found)
        share = 1 / space.sizes[slot]
        # Five standard deviations of a binomial; 4 of 10,000 pairs of candidates are equal, which moves less than that.
        assert all(abs(counts[o] / n - share) < 5 * np.sqrt(share / n) for o in range(space.sizes[slot]))


def test_random_candidates_of_limited_edits_are_about_uniform_over_the_number_of_edits():
    space, n = space_of(*[40] * 6, max_edits=3), 3000
    found = draw(History(space, (), np.zeros((0, 1))), n, np.random.default_rng(0))
    counts = Counter(len(space.edits(one.candidate)) for one in found)
    # Single edits are 6 x 39 = 234 in all and soon used up; pairs and triples share what is left alike.
    assert counts[1] <= 234
    assert abs(counts[2] - counts[3]) < 0.15 * n


def test_random_candidates_run_out_with_the_space():
    space = space_of(3, 3)
    history = history_of(space, [(0, 0)], lambda _: 0.0)
    found = draw(history, 20, np.random.default_rng(0))
    assert sorted(one.candidate for one in found) == [one for one in space.candidates() if one != (0, 0)]
    assert draw(history, 8, np.random.default_rng(1)) != found[:8], "in another order"


def test_thompson_finds_the_optimum_of_a_sum_over_slots_by_the_trials_alone():
    space = space_of(6, 6, 6, 6)
    objective_value, weights, _ = additive(space)
    optimum = tuple(int(w.argmax()) for w in weights)
    rng, silent = np.random.default_rng(0), [np.zeros(n) for n in space.sizes]
    start = draw(History(space, (), np.zeros((0, 1))), 16, rng, "start")
    history = history_of(space, [one.candidate for one in start], objective_value)
    for _ in range(6):  # 96 of 1,296 candidates
        history = with_batch(history, thompson(history, lambda _: silent, 16, rng), objective_value)
    assert history.best == optimum


def test_thompson_trusts_gains_as_far_as_they_foretell_the_trials():
    """Whatever the gains' scale the first proposal is the optimum; gains that lie count as none."""
    space = space_of(30, 30, 30, 30)
    objective_value, weights, first_order_scores = additive(space)
    optimum = tuple(int(w.argmax()) for w in weights)
    history = started(space, objective_value)

    def found(scale):
        scaled = lambda one: [scale * each for each in first_order_scores(one)]  # noqa: E731
        return [one.candidate for one in thompson(history, scaled, 16, np.random.default_rng(0))]

    for scale in (1.0, 1e-3):
        assert found(scale)[0] == optimum
        assert min(map(objective_value, found(scale))) > history.values.max()
    assert found(-1.0) == found(0.0)


def test_thompson_respects_the_number_of_edits_and_finds_the_best_of_them():
    space = space_of(5, 5, 5, 5, max_edits=2)
    objective_value, _, _ = additive(space, seed=3)
    rng, silent = np.random.default_rng(0), [np.zeros(n) for n in space.sizes]
    start = draw(History(space, (), np.zeros((0, 1))), 16, rng, "start")
    history = history_of(space, [one.candidate for one in start], objective_value)
    for _ in range(4):
        history = with_batch(history, thompson(history, lambda _: silent, 16, rng), objective_value)
    assert history.best == max(space.candidates(), key=objective_value)


def test_gradient_proposals_are_the_swaps_that_gain_most():
    space = space_of(30, 30, 30)
    anchor = (0, 0, 0)
    history = history_of(space, [anchor], lambda _: 0.0)
    best = {(slot, option) for slot in range(3) for option in (5, 6)}
    first_order_scores = [
        np.array([1000.0 if (slot, o) in best else float(o % 7) for o in range(30)]) for slot in range(3)
    ]
    found = gradient(history, lambda _: first_order_scores, 6, np.random.default_rng(0))
    changed = [[(s, o) for s, o in enumerate(one.candidate) if o != anchor[s]] for one in found]
    # 1,000 is some 5 spreads, 0.6 of which scale the noise: 8 against a Gumbel's standard deviation of 1.3.
    assert sum(set(one) <= best for one in changed) >= 5
    assert {len(one) for one in changed} <= {1, 2}
    assert {one.source for one in found} == {"incumbent"}


def test_gains_are_measured_in_the_spread_of_their_slot():
    space = space_of(40, 40, max_edits=1)
    history = history_of(space, [(0, 0)], lambda _: 0.0)
    slopes = np.linspace(-1, 1, 40)
    found = gradient(history, lambda _: [1e6 * slopes, slopes], 16, np.random.default_rng(0))
    changed = Counter(slot for one in found for slot in (0, 1) if one.candidate[slot])
    assert min(changed[0], changed[1]) > 3, "the slot whose numbers are a millionth has its turn"


def test_a_quarter_of_gradient_proposals_swap_two_words_and_none_where_one_edit_is_the_limit():
    space, rng = space_of(200, 200, 200), np.random.default_rng(0)
    zero = [np.zeros(200)] * 3
    found = hotflip_proposals(space, (0, 0, 0), lambda _: zero, 200, rng, Proposal((0, 0, 0), "incumbent"), {(0, 0, 0)})
    double = sum(len(space.edits(one.candidate)) == 2 for one in found)
    assert abs(double - 50) < 5 * np.sqrt(200 * 0.25 * 0.75)  # five standard deviations of a binomial
    one = space_of(200, 200, 200, max_edits=1)
    found = hotflip_proposals(one, (0, 0, 0), lambda _: zero, 100, rng, Proposal((0, 0, 0), "incumbent"), {(0, 0, 0)})
    assert {len(one.edits(each.candidate)) for each in found} == {1}


def started(space, objective_value, seed=0):
    """A history of START random candidates."""
    start = draw(History(space, (), np.zeros((0, 1))), START, np.random.default_rng(seed), "start")
    return history_of(space, [one.candidate for one in start], objective_value)


def changes(before, after):
    """Slots in which two candidates differ, with the second one's options."""
    return {slot: b for slot, (a, b) in enumerate(zip(before, after, strict=True)) if a != b}


def test_of_sixteen_hybrid_proposals_four_are_the_models_two_repeat_a_word_and_ten_are_even_swaps():
    space = space_of(20, 20, 20, 20)
    objective_value, _, first_order_scores = additive(space)
    history = started(space, objective_value)
    batch = hybrid(history, first_order_scores, 16, np.random.default_rng(0))
    assert [proposal.source for proposal in batch] == ["model"] * 4 + ["repeat"] * 2 + ["incumbent"] * 10
    model = fit(history, first_order_scores(history.best))
    assert [proposal.candidate for proposal in batch[:4]] == best_of_model(model, 4, history.seen)
    for proposal in batch[4:6]:
        ((_, option),) = changes(history.best, proposal.candidate).items()
        assert option in history.best
    gains = first_order_scores(history.best)
    for proposal in batch[6:]:
        ((slot, option),) = changes(history.best, proposal.candidate).items()
        better = sum(gain > gains[slot][option] for gain in gains[slot])
        assert better < 9, "one of the 8 best of its slot, the current word aside"


def test_where_an_effect_may_have_either_sign_both_maxima_are_searched():
    """|sum over slots| is largest on one side for some weights, on the other for others."""
    space, sources = space_of(25, 25, 25, 25), Counter()
    for seed in range(4):
        signed, weights, _ = additive(space, seed)
        largest = max(sum(w.max() for w in weights), -sum(w.min() for w in weights))

        def with_sides(history, signed=signed):
            effects = np.array([signed(proposal.candidate) for proposal in history.proposals])
            return History(space, history.proposals, np.abs(effects)[:, None], np.sign(effects))

        def scores(candidate, _term=0, signed=signed, weights=weights):
            side = np.sign(signed(candidate))
            return [side * (w - w[o]) for w, o in zip(weights, candidate, strict=True)]

        history = with_sides(started(space, signed))
        for n in range(5):
            batch = hybrid(history, scores, 16, np.random.default_rng(n))
            sources.update(proposal.source for proposal in batch)
            history = with_sides(with_batch(history, batch, lambda _: 0.0))
        assert history.values.max() == pytest.approx(largest)
    assert 4 <= sources["other-sign"] <= 2 * 5 * 4
    signs = -np.ones(len(history.proposals))
    low = History(space, history.proposals[:20], history.points[:20], signs[:20])
    batch = hybrid(low, first_order_scores := additive(space)[2], 16, np.random.default_rng(0))
    model = fit(low, first_order_scores(low.best))
    assert [proposal.candidate for proposal in batch[:4]] == best_of_model(model.negative(), 4, low.seen)
    alone = started(space, additive(space)[0])
    batch = hybrid(alone, additive(space)[2], 16, np.random.default_rng(0))
    assert "other-sign" not in {proposal.source for proposal in batch}, "values that are no sizes have one side"


def test_candidates_repeat_a_word_where_another_slot_offers_it():
    space = space_of(4, 4, 3, max_edits=2)  # of KEEP, w1, w2, w3
    assert list(make_repeats(space, (0, 0, 0))) == [], "a rule says something else in each prompt"
    assert set(make_repeats(space, (3, 1, 0))) == {(1, 1, 0), (3, 3, 0)}
    assert set(make_repeats(space, (0, 3, 0))) == {(3, 3, 0)}, "the last slot does not offer it"
    assert find_repeats(space, (1, 1, 1)) == [[0, 1, 2]]
    assert find_repeats(space, (0, 0, 2)) == []


def test_a_word_that_several_slots_say_is_swapped_in_all_of_them_too():
    space = space_of(30, 20, 30)
    gains = [np.full(30, -1.0), np.full(20, -1.0), np.full(30, -1.0)]
    gains[0][4] = gains[1][5] = gains[2][4] = 0.0
    gains[0][25], gains[2][29], gains[0][7], gains[2][7] = 5.0, 5.0, 3.0, 3.0
    like = Proposal((4, 5, 4), "incumbent")
    swaps = {
        together: [
            proposal.candidate
            for seed in range(30)
            for proposal in even_proposals(
                space, (4, 5, 4), lambda _: gains, 8, np.random.default_rng(seed), like, set(), together=together
            )
        ]
        for together in (False, True)
    }
    both = [candidate for candidate in swaps[True] if len(changes((4, 5, 4), candidate)) == 2]
    assert 0.15 < len(both) / len(swaps[True]) < 0.35, "a quarter: of three slots and one word"
    assert all(first == third != 4 and second == 5 for first, second, third in both)
    assert max(set(both), key=lambda candidate: sum(gains[s][candidate[s]] for s in (0, 2))) == (7, 5, 7)
    assert (4, 5, 4) not in swaps[True]
    assert all(len(changes((4, 5, 4), candidate)) == 1 for candidate in swaps[False])
    history = history_of(space, [(4, 5, 4), (1, 2, 3)], lambda candidate: candidate[0])
    batch = hybrid(history, lambda _: gains, 16, np.random.default_rng(0))
    own = [proposal.candidate for proposal in batch if proposal.source == "incumbent"]
    assert any(first == third != 4 for first, _, third in own), "the default sampler does it"


def test_swaps_of_words_without_first_order_scores_are_of_any_word():
    space = space_of(40, 40, 40)
    history = started(space, additive(space)[0])
    zeros = [np.zeros(40)] * 3
    words = {
        b
        for seed in range(40)
        for proposal in hybrid(history, lambda _: zeros, 3, np.random.default_rng(seed))
        for a, b in zip(history.best, proposal.candidate, strict=True)
        if a != b
    }
    assert len(words) > 30


@pytest.mark.parametrize("name", ["tpe", "nsga2"])
def test_optunas_samplers_propose_new_allowed_candidates_and_learn_from_what_others_tried(name):
    space = space_of(8, 8, 8, max_edits=2)
    objective_value, _, first_order_scores = additive(space)
    sampler = make_sampler(name, space, 0, 1)
    history, rng = started(space, objective_value), np.random.default_rng(0)
    for _ in range(6):
        batch = sampler(history, first_order_scores, 8, rng)
        candidates = [one.candidate for one in batch]
        assert len(set(candidates)) == len(candidates)
        assert not set(candidates) & history.seen
        assert all(map(space.is_allowed, candidates))
        assert {one.source for one in batch} <= {name}
        batch += draw(history, 8 - len(batch), rng)  # as a search does where the sampler repeats itself
        history = with_batch(history, batch, lambda one: np.nan if one[0] == 7 else objective_value(one))
    done = [trial for trial in sampler._study.get_trials() if trial.values]
    assert len(done) == sum(~np.isnan(history.values[: sampler._known])), "every value is told once"
    told = {tuple(trial.params[f"s{i}"] for i in range(3)): trial.value for trial in done}
    assert all(value == objective_value(one) for one, value in told.items())
