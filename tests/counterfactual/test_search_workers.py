"""Several workers on one study: processes of one command, and those of Hydra's launchers."""

import json
from collections import Counter
from pathlib import Path

import optuna
import pytest
from hydra.core.global_hydra import GlobalHydra

from igap import cli
from igap.counterfactual.study import storage_of

QUIET = [
    "head=1.2", "name=few", "tracking=disabled", "full_run=false", "device=cpu", "clean.n=1", "heldout.n=2",
    "search.until=64", "search.batch=8", "search.control=8",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    GlobalHydra.instance().clear()


def finished(folder="searches/few", kind="sqlite"):
    """The trials of a search that has its report."""
    place = Path(folder)
    trials = optuna.load_study(study_name=place.name, storage=storage_of(kind, place)).get_trials()
    assert json.loads((place / "search_summary.json").read_text())["n_trials"] == len(trials)
    assert Counter(trial.state.name for trial in trials) == {"COMPLETE": len(trials)}
    candidates = [tuple(trial.params.values()) for trial in trials]
    assert len(set(candidates)) == len(candidates), "none twice"
    return trials


def test_two_workers_of_one_command_reach_the_total_and_the_same_command_has_nothing_left_to_do(capfd):
    assert cli.main(["search", *QUIET, "search.workers=2"]) == 0
    trials = finished()
    assert len(trials) == 64
    assert "Traceback" not in capfd.readouterr().err
    assert cli.main(["search", *QUIET, "search.workers=2"]) == 0
    assert [trial.datetime_complete for trial in finished()] == [trial.datetime_complete for trial in trials]
    assert len([path for path in Path("searches").iterdir() if path.is_dir()]) == 1, "one study, one folder"


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_workers_of_a_launcher_share_one_study_and_end_with_one_report(launcher, capfd):
    options = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    storage = "journal" if launcher == "joblib" else "sqlite"
    arguments = [*QUIET, "search.worker=range(3)", f"search/storage={storage}", f"hydra/launcher={launcher}", *options]
    assert cli.main(["search", "-m", *arguments]) == 0
    assert len(finished(kind=storage)) == 64
    assert capfd.readouterr().out.count("written to") == 1
    assert len(list(Path("searches").glob("*/search_summary.json"))) == 1


@pytest.mark.parametrize("asked", [["search.workers=2"], ["-m", "search.worker=range(2)"]])
def test_workers_cannot_share_a_storage_in_memory(asked, capsys):
    assert cli.main(["search", *asked, *QUIET, "search/storage=memory"]) == 2
    said = capsys.readouterr().err
    assert said == (
        "igap: search.storage: got memory, which several workers cannot share. Use search/storage=sqlite, or journal.\n"
    )


def test_two_searches_that_differ_cannot_have_one_folder(capsys):
    assert cli.main(["search", "-m", *QUIET, "objective=ap,curve"]) == 2
    assert "name: got one folder (searches/few) for two searches that differ." in capsys.readouterr().err


def test_a_study_of_another_search_is_refused_by_the_command(capsys):
    small = [one for one in QUIET if not one.startswith("search.until")] + ["search.until=16"]
    assert cli.main(["search", *small]) == 0
    capsys.readouterr()
    assert cli.main(["search", *small, "seed=1"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("igap: search: got a study of another search: it has ")
    assert "seed 0, asked for 1" in said
