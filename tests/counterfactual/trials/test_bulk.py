"""Batches written and read at once: the rows and lines that Optuna writes one by one, and what it reads of them."""

import json
import sqlite3
from contextlib import closing

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from igap.counterfactual.history import Proposal
from igap.counterfactual.objective.objective import Objective
from igap.counterfactual.spaces.base import KEEP, Slot, Space
from igap.counterfactual.trials.bulk import add_trials
from igap.counterfactual.trials.chunks import Chunk
from igap.counterfactual.trials.locking import exclusive
from igap.counterfactual.trials.storages import open_storage
from igap.counterfactual.trials.study import EvaluatedTrial, TrialStore
from igap.errors import InputError

SPACE = Space("slots", (Slot("first", (KEEP, "Tom", "Anna"), (2,)), Slot("second", ("Tom", "Mary"), (4,))))
NAN = float("nan")
BATCH = [
    EvaluatedTrial(Proposal((1, 0), "anchor", 3), (0.1, 2.0), (0.1, 1 / 3), {"min_fluency": -0.5, "a": 0.0}),
    EvaluatedTrial(Proposal((2, 1), "start"), (-2.0, 1.0), (1e-300, -4.0), {"min_fluency": 0.25, "a": -1.0}),
    EvaluatedTrial(Proposal((0, 0), "random"), (NAN, NAN), (float("inf"), 1.0), {}, "a number is not finite"),
    EvaluatedTrial(Proposal((0, 1), "brute"), (3.5, 0.0), (3.5,), chunk=Chunk(1, 4, 9, 2, 1)),
]


@pytest.fixture(params=["memory", "sqlite", "journal"])
def kind(request):
    return request.param


def opened(storage):
    return TrialStore(storage, SPACE, {}, Objective(("ap", "edits")))


def content(file):
    """Every row of every table; but for the study's own id, which is drawn."""
    with closing(sqlite3.connect(file)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {
            table: [row for row in connection.execute(f"SELECT * FROM {table} ORDER BY 1") if "id" not in row]
            for table in sorted(tables)
        }


def test_a_databases_rows_are_those_that_optuna_writes_trial_by_trial(tmp_path):
    for name in ("optuna", "ours"):
        (tmp_path / name).mkdir()
    theirs, ours = (opened(open_storage("sqlite", tmp_path / name)) for name in ("optuna", "ours"))
    trials = [theirs._to_optuna(trial) for trial in BATCH]
    theirs.study.add_trials(trials)
    for start in (0, 2):
        with exclusive(ours.storage, "igap"):
            add_trials(ours.storage, ours.study, trials[start : start + 2], start)
    rows = [content(tmp_path / name / "study.db") for name in ("optuna", "ours")]
    assert rows[0] == rows[1]
    assert {table: len(rows[1][table]) for table in ("trials", "trial_params", "trial_values")} == {
        "trials": 4, "trial_params": 8, "trial_values": 6,
    }  # fmt: skip
    assert len(rows[1]["trial_user_attributes"]) == 4 * 4 + 3
    assert len(rows[1]["trial_system_attributes"]) == 4


def test_a_journals_lines_are_those_that_optuna_writes_trial_by_trial_appended_at_once(tmp_path, monkeypatch):
    for name in ("optuna", "ours"):
        (tmp_path / name).mkdir()
    theirs, ours = (opened(open_storage("journal", tmp_path / name)) for name in ("optuna", "ours"))
    trials = [theirs._to_optuna(trial) for trial in BATCH]
    theirs.study.add_trials(trials)
    append, appended = ours.storage._backend.append_logs, []
    monkeypatch.setattr(ours.storage._backend, "append_logs", lambda logs: [appended.append(len(logs)), append(logs)])
    with exclusive(ours.storage, "igap"):
        add_trials(ours.storage, ours.study, trials, 0)
    assert appended == [4]
    lines = [
        [json.loads(line) for line in (tmp_path / name / "study.journal").read_text().splitlines()][-4:]
        for name in ("optuna", "ours")
    ]
    assert [{**line, "worker_id": ""} for line in lines[0]] == [{**line, "worker_id": ""} for line in lines[1]]
    fresh = optuna.load_study(
        study_name="igap",
        storage=optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(tmp_path / "ours" / "study.journal"))
        ),
    )
    assert ours.study.get_trials() == fresh.get_trials(), "with their distributions, which trials share"


def test_the_history_grows_by_what_others_add_and_is_that_of_all_trials(kind, tmp_path):
    storage = open_storage(kind, tmp_path)
    mine, other = opened(storage), opened(storage)
    first = mine.history()
    for store, batch in ((mine, BATCH[:1]), (other, BATCH[1:3]), (mine, BATCH[3:])):
        store.add(batch)
        grown, anew = mine.history(), opened(storage).history()
        assert grown.proposals == anew.proposals == tuple(trial.proposal for trial in mine.all())
        np.testing.assert_array_equal(grown.points, anew.points)
        assert grown.seen == {proposal.candidate for proposal in grown.proposals}
    np.testing.assert_array_equal(grown.points, [[0.1, -2.0], [NAN, NAN], [NAN, NAN], [3.5, 0.0]])
    assert (first.proposals, len(first.points), first.seen) == ((), 0, frozenset()), "what came later is not in it"
    assert mine.count("start", "random") == 2


def test_a_trial_that_another_program_runs_is_waited_for_and_hides_none_behind_it(kind, tmp_path):
    storage = open_storage(kind, tmp_path)
    store = opened(storage)
    store.add(BATCH[:1])
    asked = optuna.load_study(study_name="igap", storage=storage).ask()
    for batch, until in ((BATCH[:2], 2), (BATCH[2:], 2), (BATCH[:2], None)):
        store.add(batch, until)
        assert [trial.proposal for trial in store.all()] == [trial.proposal for trial in BATCH[:2]]
        assert store.history().seen == {(1, 0), (2, 1)}
        assert store.count("start", "anchor") == 2
    numbers = [trial.number for trial in store.study.get_trials(deepcopy=False)]
    assert numbers == [0, 1, 2]
    storage.set_trial_state_values(asked._trial_id, TrialState.FAIL)
    with pytest.raises(InputError, match="a study that cannot be read"):
        store.all()
