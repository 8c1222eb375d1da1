"""Spaces tried as a whole: what a chunk's trial is, against a search with a trial for each candidate."""

import numpy as np
import pytest
from helpers.small_searches import SPACE, opened

import igap
from igap.counterfactual.config import Constraints
from igap.counterfactual.output.optimality import describe_optimality
from igap.counterfactual.trials.storages import open_storage
from igap.engine.activations import borrow
from igap.errors import InputError

SMALL = {**SPACE, "first": ["=keep", "Tom", "Anna", "John"], "subject": ["=keep", "cat", "Mary", "dog", "Tom"]}
"""4 x 12 x 5 = 240 candidates."""


@pytest.fixture
def model(small):
    with borrow(small("gpt2")):
        yield small("gpt2")


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"head": "0.3@S1"},
        {"head": "1.2@S2", "sign": "raise"},
        {"constraints": {"max_corrupted": 0.0}, "clean_n": 2},
    ],
    ids=["everywhere", "early span", "span", "bounds"],
)
def test_a_chunk_s_trial_is_the_best_of_its_candidates(model, pair, asked):
    single, whole = (opened(model, pair, space=SMALL, **asked) for _ in range(2))
    single.explore(240)
    whole.explore(17, "brute")
    each, chunks = single.trials.all(), whole.trials.all()
    assert [trial.chunk.index for trial in chunks] == list(range(17))
    assert sum(trial.chunk.n_tried for trial in chunks) == 240
    for trial in chunks:
        start, stop = trial.chunk.ends(240)
        own = [one for one in each[start:stop] if one.is_feasible]
        assert trial.chunk.n_out == sum(bool(one.violated) for one in each[start:stop])
        best = max((one.value for one in own), default=None)
        if best is None:
            assert not trial.is_feasible
        else:
            assert trial.is_feasible
            assert trial.value == pytest.approx(best, abs=1e-12)
            (listed,) = [one for one in own if one.proposal.candidate == trial.proposal.candidate]
            # What is behind the span is the first candidate's, of those with the same activation.
            assert listed.value == pytest.approx(best, abs=1e-12)


def test_what_changes_nothing_is_the_best_of_no_chunk(model, pair):
    whole = opened(model, pair, space=SMALL, sign="raise")
    alone = [candidate for candidate in whole.space.candidates() if candidate[0] == candidate[2] == 0]
    values = whole.evaluate(alone).values[:, 0]
    assert values.min() < 0
    word = whole.space.slots[1].options[alone[int(values.argmin())][1]]
    only = {**SMALL, "first": ["=keep"], "second": ["=keep", word], "subject": ["=keep"]}
    of_two = opened(model, pair, space=only, sign="raise")
    of_two.explore(1, "brute")
    (trial,) = of_two.trials.all()
    assert of_two.bound.changed_slots(trial.proposal.candidate)


def test_a_whole_space_goes_on_after_an_interruption_whatever_the_budget_is_then(model, pair, tmp_path):
    whole, storage = opened(model, pair, space=SMALL), open_storage("memory", tmp_path)
    whole.explore(20, "brute")

    def stop(progress):
        if progress.n >= 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opened(model, pair, space=SMALL, storage=storage).explore(20, "brute", on_progress=stop)
    last = opened(model, pair, space=SMALL, storage=storage)
    last.explore(12, "brute")
    assert [one.chunk.index for one in last.trials.all()] == [*range(12)]
    last.explore(50, "brute")
    assert last.trials.all() == whole.trials.all(), "the chunks are those it began with"
    last.explore(100, "hybrid")
    last.explore(500)
    assert len(last.trials.all()) == 20, "nothing is left to try"


def test_workers_share_a_whole_space_and_none_of_its_chunks_is_kept_twice(model, pair, tmp_path):
    storage = open_storage("memory", tmp_path)
    workers = [opened(model, pair, space=SMALL, storage=storage) for _ in range(3)]

    def stopping_after(n):
        def tell(progress):
            if progress.n >= n:
                raise KeyboardInterrupt

        return tell

    for n in range(1, 24):
        with pytest.raises(KeyboardInterrupt):
            workers[n % 3].explore(24, "brute", worker=n % 3, on_progress=stopping_after(n))
    workers[1].explore(24, "brute", worker=1)
    trials = workers[0].trials.all()
    order = [one.chunk.index for one in trials]
    assert order != sorted(order) == list(range(24)), "others than the first begin elsewhere"
    assert sum(search.cached.n_computed for search in workers) == 240
    workers[0].trials.add([trials[3]], 99)
    assert len(workers[0].trials.all()) == 24


def test_the_best_of_a_chunk_may_have_been_a_trial_before(model, pair):
    search = opened(model, pair, space=SMALL)
    search.explore(40, "hybrid")
    search.explore(60, "brute")
    trials = search.trials.all()
    assert [one.chunk is None for one in trials] == [True] * 40 + [False] * 20
    before = {one.proposal.candidate for one in trials[:40]}
    assert before & {one.proposal.candidate for one in trials[40:]}


@pytest.mark.parametrize("until", [30, 240])
def test_a_search_says_that_its_best_is_the_best_of_the_space(small, pair, until):
    found = igap.search(
        small("gpt2"), pair, "1.2", space=SMALL, sampler="brute", until=until, clean_n=1, heldout_n=0,
        constraints=Constraints(min_clean=None),
    )  # fmt: skip
    assert (found.is_exact, found.n_tried, len(found.trials)) == (True, 240, until)
    assert describe_optimality(found) == ["the best of all 240 prompts of this space (exact)"]
    frame = found.to_frame()
    assert ("chunk/tried" in frame) == (until < 240)
    assert np.isclose(found.best_value, max(frame["ap"]))


def test_a_part_of_a_space_is_not_called_the_whole(small, pair):
    found = igap.search(
        small("gpt2"), pair, "1.2", space=SMALL, until=30, clean_n=1, heldout_n=0, control=0,
        constraints=Constraints(min_clean=None),
    )  # fmt: skip
    assert not found.is_exact
    assert describe_optimality(found) == []


def test_a_front_of_a_space_takes_a_trial_for_each_candidate(model, pair):
    search = opened(model, pair, space=SMALL, terms=("ap", "edits"))
    with pytest.raises(InputError, match=r"search\.sampler: got brute for several objectives and 240 candidates, want"):
        search.explore(239, "brute")
    search.explore(240, "brute")
    assert len(search.trials.all()) == 240
