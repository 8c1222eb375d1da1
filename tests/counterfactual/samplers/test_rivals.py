"""GCG step by step against the published rule; ADAPT's beam and the strength of its mutations."""

from dataclasses import replace

import numpy as np
import pytest
from counterfactual.samplers.test_proposers import additive, space_of, started, with_batch

from igap.counterfactual.history import History, Proposal
from igap.counterfactual.samplers.adapt import adapt
from igap.counterfactual.samplers.gcg import gcg

N = 16


def differing(one, other):
    """The slots in which two candidates differ."""
    return [slot for slot, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]


def test_gcg_moves_to_the_best_of_each_batch_also_where_that_is_worse():
    space = space_of(60, 60, 60, 60, 60)
    objective_value, _, first_order_scores = additive(space)
    history, current = started(space, objective_value), None
    for step in range(1, 6):
        current = current or history.best
        gains = first_order_scores(current)
        batch = gcg(history, first_order_scores, N, np.random.default_rng(step))
        assert len(batch) == N
        for proposal in batch:
            (slot,) = differing(proposal.candidate, current)
            better = sum(gain > gains[slot][proposal.candidate[slot]] for gain in gains[slot])
            assert better < 9, "one of the 8 best of its slot, the current word aside"
            assert proposal.lineage == step
        # From the third step on every batch is worse than all before it, and the values turn the gradient round.
        values = [objective_value(proposal.candidate) - 100.0 * step * (step > 2) for proposal in batch]
        if step == 4:
            values[:8] = [np.nan] * 8
        current = batch[int(np.nanargmax(values))].candidate
        history = History(
            space, (*history.proposals, *batch), np.concatenate([history.points, np.array(values)[:, None]])
        )


def test_gcg_takes_the_swaps_uniformly_over_slots_whatever_their_gradients():
    space = space_of(60, 60, 60, 60)
    history = started(space, additive(space)[0])
    scores = [scale * np.arange(60.0) for scale in (1e6, 1.0, 1e-6, 0.0)]
    slots = [
        differing(proposal.candidate, history.best)[0]
        for seed in range(50)
        for proposal in gcg(history, lambda _: scores, 8, np.random.default_rng(seed))
    ]
    counts = np.bincount(slots, minlength=4)
    assert all(abs(count - 100) < 5 * np.sqrt(400 * 0.25 * 0.75) for count in counts)  # of a binomial


def test_a_step_of_gcg_that_has_no_value_is_passed_over_and_one_without_swaps_is_random():
    space = space_of(4, 4)
    objective_value, _, first_order_scores = additive(space)
    rest = [one for one in space.candidates() if 0 not in one]
    history = History(space, (Proposal((3, 3), "start"), Proposal((0, 0), "start")), np.array([[8.0], [9.0]]))
    batch = gcg(history, first_order_scores, 6, np.random.default_rng(0))
    assert {len(differing(proposal.candidate, (0, 0))) for proposal in batch} == {1}
    failed = with_batch(history, batch, lambda _: np.nan)
    anew = gcg(failed, first_order_scores, 4, np.random.default_rng(0))
    assert {proposal.candidate for proposal in anew} <= set(rest)
    assert {len(differing(proposal.candidate, (3, 3))) for proposal in anew} == {1, 2}, "no swaps of the first trial"
    assert [(proposal.source, proposal.lineage) for proposal in anew] == [("gcg", 2)] * 4
    after = with_batch(failed, anew, objective_value)
    best = max((proposal.candidate for proposal in anew), key=objective_value)
    next_step = gcg(after, first_order_scores, 2, np.random.default_rng(1))
    assert {len(differing(proposal.candidate, best)) for proposal in next_step} == {1}


def test_adapts_beam_draws_words_of_its_own_slots_of_the_four_best():
    space = space_of(20, 20, 20, 20, 20, 20)
    objective_value, _, first_order_scores = additive(space)
    history = started(space, objective_value)
    for stage, slots in enumerate(([0, 4], [1, 5], [2], [3]), start=1):
        beam = [history.proposals[i].candidate for i in history.order[:4]]
        batch = adapt(history, first_order_scores, N, np.random.default_rng(stage))
        assert {(proposal.source, proposal.lineage) for proposal in batch} == {("adapt-beam", stage)}
        changed = {tuple(differing(proposal.candidate, each)) for proposal in batch for each in beam}
        assert {(slot,) for slot in slots} <= changed
        for proposal in batch:
            assert any(differing(proposal.candidate, each) in [[slot] for slot in slots] for each in beam)
        history = with_batch(history, batch, objective_value)
    assert {proposal.source for proposal in adapt(history, first_order_scores, N, np.random.default_rng(9))} == {
        "adapt"
    }


def test_adapts_beam_passes_over_slots_of_one_option():
    space = space_of(20, 1, 20, 20)
    objective_value, _, first_order_scores = additive(space)
    history = started(space, objective_value)
    for stage, slot in enumerate((0, 2, 3), start=1):
        batch = adapt(history, first_order_scores, 4, np.random.default_rng(stage))
        assert {(proposal.source, proposal.lineage) for proposal in batch} == {("adapt-beam", stage)}
        beam = [history.proposals[i].candidate for i in history.order[:4]]
        assert all(any(differing(each.candidate, one) == [slot] for one in beam) for each in batch)
        history = with_batch(history, batch, objective_value)


@pytest.mark.parametrize(("stalled", "n_parents"), [(0, 1), (23, 1), (24, 2), (48, 3), (72, 4), (500, 4)])
def test_adapts_mutations_grow_stronger_the_longer_none_is_better(stalled, n_parents):
    space = space_of(*[200] * 6)
    objective_value, _, _ = additive(space)
    history = started(space, objective_value)
    beam = tuple(Proposal(each.candidate, "adapt-beam", 4) for each in history.proposals)
    best = history.proposals[history.order[0]]
    worse = [Proposal((i % 200, i // 200, 199, 199, 199, 199), "adapt") for i in range(30 + stalled)]
    points = np.concatenate([history.points, np.full((30, 1), -50.0), [[50.0]], np.full((stalled, 1), -50.0)])
    rise = replace(best, candidate=tuple((word + 1) % 200 for word in best.candidate))
    history = History(space, (*beam, *worse[:30], rise, *worse[30:]), points)
    parents = [history.proposals[i].candidate for i in history.order[:4]]
    asked = []

    def first_order_scores(candidate):
        asked.append(candidate)
        return [np.zeros(200)] * 6

    batch = adapt(history, first_order_scores, 240, np.random.default_rng(0))
    assert asked == parents[:n_parents]
    assert len(batch) == 240
    double = sum(min(len(differing(proposal.candidate, each)) for each in parents) == 2 for proposal in batch)
    share = (0.1, 0.25, 0.5, 0.75)[n_parents - 1]
    assert abs(double - 240 * share) < 5 * np.sqrt(240 * share * (1 - share)), "of a binomial"
