"""The share of better prompts: on spaces that are enumerated, against their truth, and what is said of it."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from helpers.small_searches import SPACE, opened
from scipy.stats import chisquare

import igap
from igap.counterfactual.config import Constraints
from igap.counterfactual.output.flatten import flatten_optimality
from igap.counterfactual.output.optimality import describe_optimality, in_words
from igap.counterfactual.spaces.base import KEEP, Slot, Space
from igap.counterfactual.validation import optimality as splitting
from igap.counterfactual.validation.optimality import (
    Optimality,
    _Chain,
    check_budget,
    draw_uniformly,
    estimate_share,
    least_evaluations,
)
from igap.engine.activations import borrow
from igap.errors import InputError
from igap.errors.missing import Missing


def space_of(*sizes, max_edits=None):
    """A space of this many options a slot, the first of which is KEEP."""
    slots = [Slot(f"s{i}", (KEEP, *(f"w{o}" for o in range(1, n))), (i + 1,)) for i, n in enumerate(sizes)]
    return Space("slots", tuple(slots), max_edits=max_edits)


def worth(*sizes, seed=0):
    """Values with effects of slots and of pairs of slots."""
    rng, values = np.random.default_rng(seed), np.zeros(sizes)
    for order in (1, 2):
        for some in itertools.combinations(range(len(sizes)), order):
            values = values + rng.normal(size=[n if i in some else 1 for i, n in enumerate(sizes)]) / order
    return values


def look_up(values):
    return lambda some: values[tuple(np.array(some).T)]


@pytest.mark.parametrize(("rank", "digits"), [(3, None), (200, 0)], ids=["few", "plateaus"])
def test_the_share_of_better_candidates_is_estimated_and_bounded(rank, digits):
    sizes, held, logs = (8,) * 5, [], []
    values = worth(*sizes) if digits is None else np.round(worth(*sizes), digits)
    best = np.sort(values, axis=None)[-rank]
    truth = (values > best).mean()
    for seed in range(3):
        told = []
        made = estimate_share(
            space_of(*sizes),
            look_up(values),
            best,
            12_000,
            np.random.default_rng(seed),
            lambda *now, told=told: told.append(now),
        )
        assert told == [(n, 12_000) for n, _ in sorted(set(told))]
        assert told[-1][0] == made.n_evaluations <= 12_000
        held.append(made.upper >= truth)
        logs.append(math.log(made.share / truth))
    assert all(held)
    # Deaths vary by SPREAD * n * levels at most, and three runs are averaged: four standard errors.
    error = math.sqrt(splitting.SPREAD * -math.log(truth) / made.n_particles / 3)
    assert abs(np.mean(logs)) < 4 * error


def test_where_nothing_is_better_there_is_a_bound_and_no_estimate():
    values = worth(8, 8, 8, 8, 8)
    made = estimate_share(space_of(8, 8, 8, 8, 8), look_up(values), values.max(), 12_000, np.random.default_rng(0))
    assert made.share == Missing("no better prompt was met")
    assert 1e-6 < made.upper < 1 / values.size


def test_the_share_is_among_the_candidates_within_the_constraints():
    values = worth(8, 8, 8, 8, 8)
    outside = np.add.outer(np.arange(8) % 3 > 0, np.zeros((8,) * 4)).astype(bool)
    best = np.sort(values[~outside])[-200]
    allowed = np.where(outside, -np.inf, values)
    made = estimate_share(space_of(8, 8, 8, 8, 8), look_up(allowed), best, 12_000, np.random.default_rng(0))
    truth = (allowed > best).sum() / (~outside).sum()
    assert truth < made.upper
    assert 0.4 < made.share / truth < 2.5, "2.7 times that among all candidates"
    nothing = estimate_share(space_of(8, 8, 8, 8, 8), lambda some: np.full(len(some), -np.inf), 0.0, 12_000,
                             np.random.default_rng(0))  # fmt: skip
    assert isinstance(nothing, Missing)
    assert nothing.reason.startswith("only 0 of 5")


@pytest.mark.parametrize("max_edits", [None, 2])
def test_draws_and_moves_of_the_chain_are_uniform(max_edits):
    space, rng = space_of(3, 2, 5, max_edits=max_edits), np.random.default_rng(0)
    every = list(space.candidates())
    drawn = Counter(draw_uniformly(space, 8000, rng))
    assert chisquare([drawn[each] for each in every]).pvalue > 1e-3
    assert len(drawn) == len(every)
    chain, particles, seen = _Chain(space, rng), draw_uniformly(space, 300, rng), Counter()
    start = every[0]
    particles = [start] * 300
    for step in range(60):
        proposals, _, factors = chain.propose(particles)
        accepted = rng.random(300) < factors
        particles = [
            new if new is not None and yes else old
            for old, new, yes in zip(particles, proposals, accepted, strict=True)
        ]
        if step >= 20 and step % 8 == 0:
            seen.update(particles)
    assert chisquare([seen[each] for each in every]).pvalue > 1e-3


def test_a_budget_below_the_levels_is_refused_with_what_it_takes():
    with pytest.raises(InputError, match=r"optimality: got 500 evaluations, wanted at least 8,599 for 1e\+06 cand"):
        check_budget(500, 10**6)
    check_budget(least_evaluations(10**6), 10**6)
    with pytest.raises(InputError, match=r"Use search\.sampler=brute, which tries them all\.$"):
        check_budget(500, 2000)


def test_a_search_tells_how_many_prompts_are_better(small, pair, monkeypatch):
    monkeypatch.setattr(splitting, "MOVES", 6)
    asked = {"space": SPACE, "clean_n": 1, "heldout_n": 0, "constraints": Constraints(min_clean=None), "control": 0}
    found = igap.search(small("gpt2"), pair, "1.2", until=20, sampler="random", optimality=4000, **asked)
    whole = igap.search(small("gpt2"), pair, "1.2", until=20, sampler="brute", optimality=4000, **asked)
    assert whole.optimality is None, "known exactly"
    few = {**asked, "space": {**SPACE, "first": ["=keep"], "second": ["=keep"]}}
    known = igap.search(small("gpt2"), pair, "1.2", until=1000, optimality=1, **few)
    assert known.optimality is None, "no budget is too small for what is tried as a whole"
    with borrow(small("gpt2")):
        every = opened(small("gpt2"), pair)
        values = every.evaluate(list(every.space.candidates())).values
    truth = (values > found.best_value + 1e-9).mean()
    assert 0 < truth < found.optimality.upper < 1
    assert found.optimality.share == pytest.approx(truth, rel=0.6)
    (line,) = describe_optimality(found)
    upper, share = (in_words(each) for each in (found.optimality.upper, found.optimality.share))
    assert line.startswith(f"at most {upper} prompts of this space are better (95%); the estimate is {share} (")
    unknown = replace(found, optimality=Missing("a reason"))
    assert describe_optimality(unknown) == ["how many prompts of this space are better is not known: a reason"]
    with pytest.raises(InputError, match="optimality: got 4000 with several objectives"):
        igap.search(small("gpt2"), pair, "1.2", objective=["ap", "edits"], optimality=4000, **asked)


@pytest.mark.parametrize(
    ("share", "words"),
    [(1.0, "100 in a hundred"), (0.0311, "3.2 in a hundred"), (2.6e-6, "2.6 in a million"),
     (4.71e-7, "480 in a billion"), (0.0, "0 in 10^12")],
)  # fmt: skip
def test_shares_are_told_in_words_and_rounded_up(share, words):
    assert in_words(share) == words


def test_what_is_not_known_is_written_with_its_reason():
    assert flatten_optimality(Missing("a reason")) == {"optimality/upper": None, "optimality/upper/reason": "a reason"}
    assert flatten_optimality(Optimality(Missing("none"), 1e-6, 70, 25)) == {
        "optimality/share": None, "optimality/share/reason": "none", "optimality/upper": 1e-6, "optimality/n": 70,
    }  # fmt: skip
    assert flatten_optimality(None) == {}
