"""Several workers on one study: processes of one command, and those of Hydra's launchers."""

import contextlib
import json
import os
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from helpers.forked import FORK, load_embedded
from helpers.small_searches import n_trials
from hydra.core.global_hydra import GlobalHydra
from programs.kills import alive, descendants

from igap import cli
from igap.counterfactual import workers
from igap.counterfactual.trials.storages import open_storage

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_model")]

QUIET = [
    "head=1.2", "name=few", "tracking=disabled", "full_run=false", "device=cpu", "clean.n=1", "heldout.n=2",
    "search.until=64", "search.batch=8", "search.control=8",
]  # fmt: skip


WORKER = b"python"
"""In the command line of a process that is forked from here."""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    GlobalHydra.instance().clear()


def finished(folder="searches/few", kind="sqlite"):
    """The trials of a search that has its report."""
    place = Path(folder)
    trials = optuna.load_study(study_name=place.name, storage=open_storage(kind, place)).get_trials()
    assert json.loads((place / "search_summary.json").read_text())["n_trials"] == len(trials)
    assert Counter(trial.state.name for trial in trials) == {"COMPLETE": len(trials)}
    candidates = [tuple(trial.params.values()) for trial in trials]
    assert len(set(candidates)) == len(candidates), "none twice"
    return trials


def interrupted():
    return json.loads(Path("searches/few/search_summary.json").read_text())["interrupted"]


@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_workers_of_a_launcher_share_one_study_and_end_with_one_report(launcher, capfd, caplog):
    load_embedded()  # workers are forked from here
    options = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    storage = "journal" if launcher == "joblib" else "sqlite"
    arguments = [
        *QUIET,
        "search.until=32",
        "search.worker=range(2)",
        f"search/storage={storage}",
        f"hydra/launcher={launcher}",
        *options,
    ]
    assert cli.main(["search", "-m", *arguments]) == 0
    assert caplog.text == "", "the command would do what the workers leave undone"
    assert len(finished(kind=storage)) == 32
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


@pytest.fixture
def started(monkeypatch):
    """A command of two workers, once both are at work; both are forked from here."""
    monkeypatch.setattr(workers, "_CONTEXT", FORK)
    load_embedded()
    return _started


def _started(until):

    def command():
        os.setsid()
        sys.exit(cli.main(["search", *QUIET, "search.workers=2", until]))

    process = FORK.Process(target=command)
    process.start()
    deadline = time.monotonic() + 300
    file = Path("searches/few/study.db")
    while not (_at_work(process.pid) and n_trials(file) >= 16) and time.monotonic() < deadline:
        time.sleep(0.05)
    return process


def test_two_workers_of_one_command_end_by_ctrl_c_with_a_report_and_the_command_goes_on_to_its_total(started, capfd):
    process = started("search.until=5000")
    time.sleep(0.5)
    below = descendants(process.pid)
    (second,) = alive(below, WORKER)
    ignored = re.search(r"SigIgn:\s*(\w+)", Path(f"/proc/{second}/status").read_text())[1]
    assert int(ignored, 16) & 1 << signal.SIGINT - 1, "the second worker leaves the report to the first"
    os.killpg(process.pid, signal.SIGINT)
    process.join(timeout=300)
    assert process.exitcode == 130
    assert not alive(below, WORKER)
    n = len(finished())  # the report's number is the storage's
    assert 16 <= n < 5000
    assert interrupted() == 1
    said = capfd.readouterr()
    assert "Traceback" not in said.err
    assert f"interrupted at {n} trials; the same command goes on" in said.out
    assert "rule: " in said.out
    assert cli.main(["search", *QUIET, "search.workers=2", f"search.until={n + 20}"]) == 0
    assert len(finished()) == n + 20
    assert interrupted() == 0
    assert len([path for path in Path("searches").iterdir() if path.is_dir()]) == 1, "one study, one folder"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_command_that_started_them(started, how):
    process = started("search.until=50000")
    below = descendants(process.pid)
    assert len(alive(below, WORKER)) == 1, "the second worker"
    os.kill(process.pid, how)
    process.join(timeout=300)
    deadline = time.monotonic() + 300
    while alive(below, WORKER) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(below, WORKER)
    trials = optuna.load_study(study_name="few", storage=open_storage("sqlite", Path("searches/few"))).get_trials()
    assert {trial.state.name for trial in trials} <= {"COMPLETE"}


def _at_work(pid):
    """Whether the second worker has opened the study."""
    for child in alive(descendants(pid), WORKER):
        with contextlib.suppress(OSError):
            opened = [os.readlink(file) for file in Path(f"/proc/{child}/fd").iterdir()]
            if any(file.endswith("study.db") for file in opened):
                return True
    return False
