"""Searches round after round: what is proposed does not depend on where a search was interrupted."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from helpers.small_searches import SPACE, candidates, opened

from igap.counterfactual.trials.storages import open_storage
from igap.engine.activations import borrow
from igap.errors import InputError

AFTER = {
    "hybrid": range(8, 48, 8),
    "gradient": [24],
    "evolution": [32],
    "thompson": [24],
    "random": [16],
    "gcg": [40],
    "adapt": [40],
}
"""Trials after which a search with this sampler is interrupted."""


@pytest.fixture
def model(small):
    with borrow(small("gpt2")):
        yield small("gpt2")


def stopping(after):
    """A progress that interrupts, as Ctrl-C does, once there are this many trials."""

    def tell(progress):
        if progress.n >= after:
            raise KeyboardInterrupt

    return tell


@pytest.mark.parametrize("sampler", AFTER)
def test_a_search_interrupted_after_any_batch_goes_on_as_if_it_had_not_been(model, pair, tmp_path, sampler):
    whole = opened(model, pair)
    whole.explore(48, sampler, batch=8, control=20)
    storage = open_storage("memory", tmp_path)
    for after in AFTER[sampler]:
        interrupted = opened(model, pair, storage=storage)
        with pytest.raises(KeyboardInterrupt):
            interrupted.explore(48, sampler, 8, 20, on_progress=stopping(after))
        assert len(candidates(interrupted)) == after
    last = opened(model, pair, storage=storage)
    last.explore(48, sampler, 8, 20)
    assert candidates(last) == candidates(whole)
    assert [one.values for one in last.trials.all()] == [one.values for one in whole.trials.all()]


def test_a_pareto_search_goes_on_as_if_it_had_not_been_interrupted(model, pair, tmp_path):
    terms = ("ap", "edits")
    whole = opened(model, pair, terms=terms)
    whole.explore(48, "epo", 8, 16)
    storage = open_storage("memory", tmp_path)
    for after in (16, 32):
        with pytest.raises(KeyboardInterrupt):
            opened(model, pair, storage=storage, terms=terms).explore(48, "epo", 8, 16, on_progress=stopping(after))
    last = opened(model, pair, storage=storage, terms=terms)
    last.explore(48, "epo", 8, 16)
    assert candidates(last) == candidates(whole)


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_a_search_on_disk_proposes_what_one_in_memory_does_also_when_it_is_interrupted(model, pair, tmp_path, kind):
    whole = opened(model, pair)
    whole.explore(40, batch=8)
    with pytest.raises(KeyboardInterrupt):
        opened(model, pair, storage=open_storage(kind, tmp_path)).explore(40, batch=8, on_progress=stopping(24))
    last = opened(model, pair, storage=open_storage(kind, tmp_path))
    last.explore(40, batch=8)
    assert last.trials.all() == whole.trials.all(), "to the last bit of every value"


def test_seeds_and_workers_draw_numbers_of_their_own(model, pair):
    found = {}
    for seed, worker in ((0, 0), (1, 0), (0, 1)):
        search = opened(model, pair, seed=seed)
        search.explore(24, worker=worker)
        found[seed, worker] = tuple(candidates(search))
    assert len(set(found.values())) == 3


def test_until_counts_all_trials_and_a_third_of_them_at_most_is_the_random_control(model, pair, tmp_path):
    search = opened(model, pair)
    search.explore(90, control=60)
    sources = Counter(one.source for one in candidates(search))
    assert sum(sources.values()) == 90
    assert sources["start"] == 16
    assert sources["start"] + sources["random"] == 30, "a third of 90"
    assert {one.source for one in candidates(search)[-14:]} == {"random"}, "reserved for the end"
    search.explore(90, control=60)
    assert len(candidates(search)) == 90, "nothing is left to do"
    search.explore(70, control=60)
    assert len(candidates(search)) == 90
    search.explore(120, control=24)
    sources = Counter(one.source for one in candidates(search))
    assert sum(sources.values()) == 120
    assert sources["start"] + sources["random"] == 30, "more than asked for are there already"


def test_no_candidate_is_evaluated_twice(model, pair):
    search = opened(model, pair)
    search.explore(200)
    trials = [one.candidate for one in candidates(search)]
    assert len(set(trials)) == len(trials) == search.cached.n_computed == 200


def test_a_space_no_larger_than_the_budget_goes_by_brute_force(model, pair):
    space = {**SPACE, "second": ["=keep", "Tom"], "subject": ["=keep", "Anna", "dog"]}
    search = opened(model, pair, space=space)
    assert search.space.size == 12 * 2 * 3
    search.explore(72)
    assert [one.candidate for one in candidates(search)] == list(search.space.candidates())
    assert {one.source for one in candidates(search)} == {"brute"}
    again = opened(model, pair, space=space)
    again.explore(1000)
    assert len(candidates(again)) == 72, "and ends with the space"
    chosen = opened(model, pair, space=space)
    chosen.explore(71)
    assert {one.source for one in candidates(chosen)} >= {"start", "incumbent"}, "one more than the budget"


def test_a_value_that_is_not_finite_fails_its_trial_with_a_reason_and_the_search_goes_on(model, pair, monkeypatch):
    search = opened(model, pair, constraints={"max_corrupted": 50.0})
    column = search.space.slots[0].options.index("cat")
    numbers = search.cached.evaluator.numbers

    def broken(tokens, names):
        found = dict(numbers(tokens, names))
        spoilt = tokens[0, :, search.space.slots[0].positions[0]] == search.bound.tables[0][0, column, 0]
        found["ap"] = torch.where(spoilt[:, None], torch.nan, found["ap"])
        return found

    monkeypatch.setattr(search.cached.evaluator, "numbers", broken)
    search.explore(80)
    trials = search.trials.all()
    failed = [one for one in trials if one.proposal.candidate[0] == column]
    assert len(trials) == 80
    assert failed
    for one in trials:
        assert np.isnan(one.value) == (one in failed)
        assert one.is_feasible == (one not in failed)
        assert one.reason == ("a number is not finite" if one in failed else "")
    states = Counter(trial.state.name for trial in search.trials.study.get_trials())
    assert states == {"FAIL": len(failed), "COMPLETE": 80 - len(failed)}


def test_a_candidate_out_of_bounds_is_kept_with_its_reason_and_never_the_incumbent(model, pair):
    loose = opened(model, pair)
    loose.explore(150)
    edge = float(np.median([one.value for one in loose.trials.all()]))
    search = opened(model, pair, constraints={"max_corrupted": edge})
    search.explore(150)
    trials = search.trials.all()
    out = [one for one in trials if one.violated]
    assert 0 < len(out) < 150
    assert all(one.reason == f"max_corrupted is broken by {one.violations['max_corrupted']:.4g}" for one in out)
    history = search.trials.history()
    assert [np.isnan(value) for value in history.values] == [bool(one.violated) for one in trials]
    within = [one for one in trials if not one.violated]
    assert history.best == max(within, key=lambda one: one.value).proposal.candidate
    assert search.trials.study.best_trial.value == max(one.value for one in within), "Optuna says the same"


def test_progress_tells_how_many_are_done_the_best_so_far_and_the_rate_of_this_process(model, pair):
    search, told = opened(model, pair), []
    search.explore(48, on_progress=told.append)
    assert [one.n for one in told] == [0, 16, 32, 48]
    assert {one.until for one in told} == {48}
    assert np.isnan(told[0].best)
    values = [one.value for one in search.trials.all()]
    assert [one.best for one in told[1:]] == [max(values[:n]) for n in (16, 32, 48)]
    assert all(one.rate > 0 for one in told[1:])
    more = []
    search.explore(64, on_progress=more.append)
    assert more[0].rate == 0, "trials of before are none of this process"


def test_a_head_that_the_model_does_not_have_is_refused(model, pair):
    with pytest.raises(InputError, match=r"head: got '?1\.9"):
        opened(model, pair, head="1.9")


def test_a_model_that_does_not_prefer_the_answer_is_refused(model, pair):
    with pytest.raises(InputError, match=r"constraints\.min_clean: got 1000\.0, but the logit difference after"):
        opened(model, pair, constraints={"min_clean": 1000.0})


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (
            {"constraints": {"max_percentile": 99.0}},
            r"constraints\.max_percentile: got 99\.0, but there are fewer than",
        ),
        (
            {"constraints": {"max_downstream": 99.0}},
            r"constraints\.max_downstream: got 99\.0, but there are fewer than",
        ),
        ({"terms": ("ap", "downstream")}, "objective: got downstream, but there are fewer than"),
    ],
)
def test_what_needs_ordinary_prompts_is_refused_without_them(model, pair, objective, message):
    with pytest.raises(InputError, match=message):
        opened(model, pair, **objective)


def test_a_bound_on_the_percentile_without_ordinary_prompts_is_refused_and_leaves_no_study(model, pair, tmp_path):
    storage = partial(open_storage, "sqlite", tmp_path)
    with pytest.raises(InputError, match=r"constraints\.max_percentile: got 99\.0, but there are fewer than"):
        opened(model, pair, constraints={"max_percentile": 99.0}, storage=storage)
    assert not any(tmp_path.iterdir())
    assert opened(model, pair, storage=storage).trials.all() == []
    assert (tmp_path / "study.db").exists()
