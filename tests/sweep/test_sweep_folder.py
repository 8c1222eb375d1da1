"""A sweep's folder: how jobs stand, who works on them, and what a plan leaves; from the disk alone."""

import json
import os
import shutil
import subprocess
import sys
import threading

import pytest

from igap.storage import versions
from igap.sweep import folder as sweep_folder
from igap.sweep.folder import PLAN, PlannedJob, SweepFolder

KEY = "0123456789ab"


@pytest.fixture
def impatient(monkeypatch):
    """A claim that does not wait gives up after a tenth of a second in place of one."""
    monkeypatch.setattr(sweep_folder, "_PATIENCE", 0.1)


@pytest.fixture
def folder(tmp_path):
    return SweepFolder(tmp_path / "sweep")


@pytest.fixture
def finished(folder, written):
    """A folder with one finished run under KEY."""
    shutil.copytree(written, folder.run(KEY))
    path = folder.run(KEY) / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"key": KEY}))
    return folder


def test_a_job_nobody_has_touched_is_planned(folder):
    assert folder.status(KEY).state == "planned"
    assert folder.status(KEY).detail == ""


def test_a_finished_run_is_done(finished):
    status = finished.status(KEY)
    assert status.state == "done"
    assert status.run.summary["key"] == KEY


def test_a_run_that_other_code_made_is_stale_and_says_what_differs(finished):
    path = finished.run(KEY) / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version/torch": "0.1", "version/source": "abc"}))
    status = finished.status(KEY)
    now = versions.versions()
    assert status.state == "stale"
    assert status.detail == f"torch 0.1 -> {now['torch']}, source abc -> {now['source']}"


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"key": "another"}'])
def test_a_summary_that_is_none_of_this_run_does_not_count_as_finished(finished, text):
    (finished.run(KEY) / "summary.json").write_text(text)
    status = finished.status(KEY)
    assert status.state == "planned"
    assert status.run is None
    assert "summary" in status.detail


def test_a_failure_is_told_until_it_is_forgotten(folder):
    story = folder.fail(KEY, "a passing storm", "Traceback: a passing storm")
    assert (folder.status(KEY).state, folder.status(KEY).detail) == ("failed", "a passing storm")
    assert story.read_text() == "Traceback: a passing storm"
    folder.forget_failure(KEY)
    assert folder.status(KEY).state == "planned"
    assert list(folder.run(KEY).iterdir()) == []


def test_a_claimed_job_is_running_here_and_nobody_else_gets_it(folder, impatient):
    with folder.claim(KEY, wait=False) as mine:
        assert mine
        assert folder.status(KEY).state == "running"
        assert f"process {os.getpid()}, since 20" in folder.status(KEY).detail
        with folder.claim(KEY, wait=False) as other:
            assert not other
    assert folder.status(KEY).state == "planned"
    assert folder.status(KEY).detail == ""


def test_a_killed_process_leaves_no_claim_and_another_one_can_wait_for_it(folder, impatient, forks):
    code = (
        "import sys, time; from pathlib import Path; from igap.sweep.folder import SweepFolder\n"
        f"with SweepFolder(Path(sys.argv[1])).claim({KEY!r}, wait=False):\n"
        "    print('mine', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, folder.path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "mine\n"
    assert f"process {process.pid}" in folder.status(KEY).detail
    killer = threading.Timer(0.5, process.kill)  # later than a claim that does not wait gives up
    killer.start()
    with folder.claim(KEY, wait=True) as mine:
        assert mine
        assert not killer.is_alive()
    process.communicate()


def test_what_a_killed_process_was_at_was_interrupted(folder):
    with folder.claim(KEY, wait=False):
        left = (folder.path / ".locks" / f"{KEY}.json").read_bytes()
    (folder.path / ".locks" / f"{KEY}.json").write_bytes(left)
    assert folder.status(KEY).state == "planned"
    assert folder.status(KEY).detail == "was interrupted before"


def test_who_looks_is_not_in_the_way_of_who_works(folder):
    for _ in range(20):
        assert folder.holder(KEY) is None
        with folder.claim(KEY, wait=False) as mine:
            assert mine


@pytest.fixture
def stale(finished):
    """The finished run as other code made it."""
    path = finished.run(KEY) / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version/source": "abc"}))
    return finished


def test_a_stale_run_set_aside_is_kept_and_the_job_is_to_do_again(stale):
    finished = stale
    before = (finished.run(KEY) / "summary.json").read_bytes()
    aside = finished.set_aside(KEY)
    assert (aside / "summary.json").read_bytes() == before
    assert finished.status(KEY).run is None
    assert not list(finished.path.glob("*/summary.json")), "hidden from whoever lists the finished runs"


def test_a_run_somebody_works_on_is_not_set_aside(stale, impatient):
    with stale.claim(KEY, wait=False):
        assert stale.set_aside(KEY) is None
    assert stale.status(KEY).run is not None


def test_what_another_process_has_set_aside_or_done_again_stays(stale, finished):
    assert stale.set_aside(KEY) is not None
    assert stale.set_aside(KEY) is None
    shutil.copytree(next((stale.path / ".stale").iterdir()), stale.run(KEY))
    path = stale.run(KEY) / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version/source": versions.versions()["source"]}))
    assert stale.set_aside(KEY) is None
    assert stale.status(KEY).state == "done"


def test_a_process_that_died_at_a_job_is_told_once(folder):
    assert not folder.take_death_notice(KEY)
    with folder.claim(KEY, wait=False):
        assert not folder.take_death_notice(KEY), "it is at work"
        left = (folder.path / ".locks" / f"{KEY}.json").read_bytes()
    assert not folder.take_death_notice(KEY), "it has ended as it should"
    (folder.path / ".locks" / f"{KEY}.json").write_bytes(left)
    assert folder.take_death_notice(KEY)
    assert not folder.take_death_notice(KEY)


def test_another_users_lock_that_cannot_be_tried_is_whose_it_says(folder, monkeypatch):
    with folder.claim(KEY, wait=False):
        info = (folder.path / ".locks" / f"{KEY}.json").read_bytes()

    def refused(*_):
        raise PermissionError("another user's")

    monkeypatch.setattr(SweepFolder, "_lock", refused)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert folder.status(KEY).state == "planned"
    (folder.path / ".locks" / f"{KEY}.json").write_bytes(info)
    assert folder.status(KEY).state == "running"


def test_the_plan_comes_back_and_another_grid_is_said(folder):
    one, two, three = (PlannedJob(key, (f"ig.n_steps={n}",)) for n, key in enumerate(("a", "b", "c")))
    assert folder.plan() is None
    assert folder.write_plan([one, two]) is None
    assert folder.write_plan([two, one]) is None, "the same jobs in another order"
    assert folder.plan() == [two, one]
    said = folder.write_plan([two, three])
    assert "had another grid, of 2 jobs; 1 of them are in this one too and count for both" in said
    assert folder.plan() == [two, three]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"schema": 99, "jobs": []}', '{"schema": 1}', '{"schema": 1, "jobs": [3]}']
)
def test_a_plan_that_cannot_be_read_is_none(folder, text):
    folder.path.mkdir()
    (folder.path / PLAN).write_text(text)
    assert folder.plan() is None
    assert folder.write_plan([PlannedJob(KEY, ())]) is None, "and is replaced by the next"
