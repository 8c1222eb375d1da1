"""How far a search is, read from its study's file: the same as what Optuna reads."""

import json

import pytest

from igap.counterfactual.history import Proposal
from igap.counterfactual.spaces.base import KEEP, Slot, Space
from igap.counterfactual.trials.storages import open_storage
from igap.counterfactual.trials.study import EvaluatedTrial, TrialStore
from igap.errors import InputError
from igap.storage import studies
from igap.sweep.status import show_status

SPACE = Space("slots", (Slot("first", (KEEP, "Tom", "Anna"), (2,)), Slot("second", ("Tom", "Mary"), (4,))))


def study(folder, kind):
    """A study of four trials: the best breaks a constraint, one has failed; six were asked for."""
    folder.mkdir(parents=True)
    trials = TrialStore(open_storage(kind, folder), SPACE, {"head": "1.2", "objective": ["ap"]})
    trials.expect(7)
    trials.expect(6)
    rows = [(2.5, {"min_fluency": -0.5}), (9.0, {"min_fluency": 0.25}), (float("nan"), {}), (1.0, {})]
    trials.add(
        [
            EvaluatedTrial(Proposal((i % 3, i // 3), "random"), (value,), (value,), violations)
            for i, (value, violations) in enumerate(rows)
        ]
    )
    return folder


def report(folder, n, **more):
    numbers = {"schema": 1, "key": "k", "head": "1.2", "objective": "ap", "n_trials": n, "best/value": 2.5}
    (folder / "search_summary.json").write_text(json.dumps({**numbers, "space/size": 6.0, **more}))
    (folder / "config.json").write_text(json.dumps({"search": {"until": 300}}))


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_trials_best_value_and_report_are_those_of_the_study(tmp_path, kind):
    folder = study(tmp_path / "searches" / "odd?#%" / "a", kind)
    status = studies.read_status(folder)
    assert (status.n_trials, status.until, status.best, status.reported) == (4, 6, 2.5, None)
    assert (status.head, status.objective, status.is_done) == ("1.2", "ap", False)
    for n, done in ((3, False), (4, False)):
        report(folder, n)
        status = studies.read_status(folder)
        assert (status.reported, status.is_done) == (n, done)
    TrialStore(open_storage(kind, folder), SPACE, {"head": "1.2", "objective": ["ap"]}).expect(4)
    assert studies.read_status(folder).is_done


def test_a_line_of_a_journal_that_is_being_written_is_not_read_yet(tmp_path):
    folder = study(tmp_path / "a", "journal")
    file = folder / "study.journal"
    file.write_bytes(file.read_bytes()[:-20])
    assert studies.read_status(folder).n_trials == 3


def test_status_shows_searches_and_leaves_out_what_it_cannot_read(tmp_path, capsys):
    study(tmp_path / "heads" / "a", "sqlite")
    for name, size in (("elsewhere", 6.0), ("larger", 1e6)):
        (tmp_path / name).mkdir()
        report(tmp_path / name, 6, **{"space/size": size})
    assert show_status([tmp_path]) == 0
    said = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]][1:] for line in said.splitlines() if "│" in line]
    assert [row for row in rows if row[0]] == [
        ["1.2", "ap", "6 of 6", "2.500", "written"],
        ["1.2", "ap", "4 of 6", "2.500", "none yet"],
        ["1.2", "ap", "6 of 300", "2.500", "written"],
    ]
    assert "3 searches: 1 done" in said
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "study.db").write_bytes(b"no database" * 99)
    report(tmp_path / "elsewhere", 6, n_trials=[6])
    assert show_status([tmp_path]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("left out: ")[2][:27] for line in lines] == [
        "study.db cannot be read (Da", "search_summary.json cannot ",
    ]  # fmt: skip
    with pytest.raises(InputError, match="bad: left out: study"):
        show_status([tmp_path / "bad"])
