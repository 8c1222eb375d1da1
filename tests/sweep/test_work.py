"""The work of one job where it lands: what another process has done or is doing is left to it."""

import json
import shutil

import pytest

from igap import pipeline
from igap.sweep import work
from igap.sweep.folder import SweepFolder
from igap.sweep.plan import Composed, Job


@pytest.fixture
def job(result):
    return Job(result.key, (), Composed((), result.config, ""), 1, result.config.tracking)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "run", lambda *_: pytest.fail("computed"))
    return SweepFolder(tmp_path)


def test_what_another_process_has_finished_meanwhile_is_not_done_again(job, folder, written):
    shutil.copytree(written, folder.run(job.key))
    assert work.do(job, folder, pipeline.silent, wait=False) == work.Outcome(job.key, "before")


def test_what_another_process_is_at_is_left_to_it(job, folder):
    with folder.claimed(job.key, wait=False):
        assert work.do(job, folder, pipeline.silent, wait=False) == work.Outcome(job.key, "busy")


def test_a_folder_that_is_gone_is_a_failure_with_its_reason_and_no_traceback(job, tmp_path):
    (tmp_path / "file").write_text("")
    outcome = work.do(job, SweepFolder(tmp_path / "file"), pipeline.silent, wait=False)
    assert outcome.end == "failed"
    assert "Not a directory" in outcome.reason


def test_a_study_killed_before_its_own_summary_is_done_again(job, folder, result, written, monkeypatch):
    place = folder.run(job.key)
    shutil.copytree(written, place / "second-pair")
    for left in (place / "heads.csv.77.unfinished", place / "second-pair" / ".space.77.unfinished"):
        left.write_text("")
    monkeypatch.setattr(pipeline, "run", lambda *_: result)
    monkeypatch.setattr(work.records, "figures", lambda result: {})
    assert work.do(job, folder, pipeline.silent, wait=False).end == "done"
    assert (place / "second-pair" / "summary.broken.json").exists()
    assert not list(place.rglob("*.unfinished")), "what killed processes leave behind"


def test_a_failure_of_wandb_costs_no_run(job, folder, result, monkeypatch, caplog):
    def lost(place, tracking):
        raise OSError("no sink")

    monkeypatch.setattr(pipeline, "run", lambda *_: result)
    monkeypatch.setattr(work.records, "figures", lambda result: {})
    monkeypatch.setattr(work.tracking, "log", lost)
    assert work.do(job, folder, pipeline.silent, wait=False) == work.Outcome(job.key, "done")
    assert "W&B did not take " in caplog.text
    assert json.loads((folder.run(job.key) / "summary.json").read_text())["key"] == job.key
    assert folder.holder(job.key) is None
