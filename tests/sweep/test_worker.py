"""The work of one job where it lands: what another process has done or is doing is left to it."""

import dataclasses
import json
import shutil
from contextlib import ExitStack

import pytest
from helpers.small_disk import no_file_above

from igap import pipeline
from igap.errors.failures import Failure
from igap.output import disk, figures, record
from igap.output.tracking import places
from igap.sweep import folder as sweep_folder
from igap.sweep import worker
from igap.sweep.folder import SweepFolder
from igap.sweep.plan import Composed, Job


def do(job, folder):
    """What became of one job."""
    (outcome,) = worker.do_all([job], folder, pipeline.silent, lambda *_: None, wait=False, threads=None)
    return outcome


@pytest.fixture
def job(result):
    return Job(result.key, (), Composed((), result.config, ""), 1, result.config.tracking)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "run", lambda *_: pytest.fail("computed"))
    return SweepFolder(tmp_path)


def test_what_another_process_has_finished_meanwhile_is_not_done_again(job, folder, written):
    shutil.copytree(written, folder.run(job.key))
    assert do(job, folder) == worker.Outcome(job.key, "before")


def test_what_another_process_is_at_is_left_to_it(job, folder, monkeypatch):
    monkeypatch.setattr(sweep_folder, "_PATIENCE", 0.1)
    with folder.claim(job.key, wait=False):
        assert do(job, folder) == worker.Outcome(job.key, "busy")


def test_a_folder_that_is_gone_is_a_failure_with_its_reason_and_no_traceback(job, tmp_path):
    (tmp_path / "file").write_text("")
    outcome = do(job, SweepFolder(tmp_path / "file"))
    assert outcome.end == "failed"
    assert "Not a directory" in outcome.reason


def test_a_study_killed_before_its_own_summary_is_done_again(job, folder, result, written, monkeypatch):
    place = folder.run(job.key)
    shutil.copytree(written, place / "second-pair")
    for left in (place / "heads.csv.77.unfinished", place / "second-pair" / ".space.77.unfinished"):
        left.write_text("")
    monkeypatch.setattr(pipeline, "run", lambda *_: result)
    monkeypatch.setattr(figures, "figures", lambda data: {})
    assert do(job, folder).end == "done"
    assert (place / "second-pair" / "summary.broken.json").exists()
    assert not list(place.rglob("*.unfinished")), "what killed processes leave behind"


def test_a_failure_of_wandb_costs_no_run(job, folder, result, monkeypatch, caplog):
    def lost(place, tracking):
        raise OSError("no sink")

    monkeypatch.setattr(pipeline, "run", lambda *_: result)
    monkeypatch.setattr(figures, "figures", lambda data: {})
    monkeypatch.setattr(worker.wandb_run, "log", lost)
    assert do(job, folder) == worker.Outcome(job.key, "done")
    assert "W&B did not take " in caplog.text
    assert json.loads((folder.run(job.key) / "summary.json").read_text())["key"] == job.key
    assert folder.holder(job.key) is None


@pytest.fixture
def untracked(job):
    return dataclasses.replace(job, tracking=job.tracking.model_copy(update={"mode": "disabled"}))


def test_a_run_with_a_failed_follow_up_is_kept_and_done_again(untracked, folder, result, monkeypatch):
    """What was found counts until the next try has found more: also when that try fails altogether."""
    job, key = untracked, untracked.key
    lame = dataclasses.replace(result, failures={"ablation": Failure("a flat tyre", "the story")})
    monkeypatch.setattr(figures, "figures", lambda data: {})
    monkeypatch.setattr(pipeline, "run", lambda *_: lame)
    assert do(job, folder) == worker.Outcome(key, "failed", "ablation: a flat tyre")
    for _ in range(2):
        status = folder.status(key)
        assert (status.state, status.finished) == ("failed", False)
        assert status.run.summary["ablation/reason"] == "a flat tyre"
        assert status.run.summary["heads/pearson"] is not None
        folder.forget_failure(key)
        assert (folder.status(key).state, folder.status(key).finished) == ("planned", False)
        monkeypatch.setattr(pipeline, "run", lambda *_: 1 / 0)
        assert do(job, folder).reason == "ZeroDivisionError: division by zero"
    monkeypatch.setattr(pipeline, "run", lambda *_: result)
    assert do(job, folder) == worker.Outcome(key, "done")
    assert folder.status(key).finished
    assert "failed" not in folder.status(key).run.summary
    assert not (folder.run(key) / "failure.json").exists()


def test_a_retry_that_cannot_be_written_leaves_what_was_found_before(untracked, folder, result, monkeypatch):
    lame = dataclasses.replace(result, failures={"ablation": Failure("a flat tyre", "the story")})
    monkeypatch.setattr(figures, "figures", lambda data: {})
    monkeypatch.setattr(pipeline, "run", lambda *_: lame)
    do(untracked, folder)
    mark = folder.run(untracked.key) / places.MARK
    mark.parent.mkdir(exist_ok=True)
    mark.write_text("{}")
    write = disk.write_numbers

    def on_a_small_disk(result, place, failures):
        with no_file_above(2000):
            return write(result, place, failures)

    monkeypatch.setattr(disk, "write_numbers", on_a_small_disk)
    assert "File too large" in do(untracked, folder).reason
    assert folder.status(untracked.key).run.summary["ablation/reason"] == "a flat tyre"
    assert not mark.exists(), "what W&B has is replaced as well"


def test_a_figure_that_cannot_be_drawn_is_told_once_and_its_run_is_done(untracked, folder, result, monkeypatch):
    monkeypatch.setattr(figures, "figures", lambda data: {"jaccard": lambda: 1 / 0})
    monkeypatch.setattr(pipeline, "run", lambda *_: result)
    outcome = do(untracked, folder)
    assert (outcome.end, outcome.reason) == ("failed", "plots/jaccard: ZeroDivisionError: division by zero")
    assert folder.status(untracked.key).state == "done"
    assert do(untracked, folder).end == "before"


def test_a_disk_too_small_for_a_run_is_one_line_and_its_numbers_are_shown(
    untracked, folder, result, monkeypatch, capsys, caplog
):
    write = disk.write_numbers

    def on_a_small_disk(result, place, failures):
        with no_file_above(2000):
            return write(result, place, failures)

    monkeypatch.setattr(pipeline, "run", lambda *_: result)
    monkeypatch.setattr(disk, "write_numbers", on_a_small_disk)
    outcome = do(untracked, folder)
    assert outcome.end == "failed"
    file = folder.run(untracked.key) / "attributions.safetensors"
    assert outcome.reason == f"{file} cannot be written or read (File too large)"
    assert "How far IG and AP agree" in capsys.readouterr().out
    assert [line for line in caplog.text.splitlines() if "failed" in line and "Traceback" not in line]
    assert "Traceback" not in caplog.text
    assert folder.status(untracked.key).run is None


def test_a_run_whose_process_died_before_its_pictures_is_finished_from_its_record(untracked, folder, result, written):
    """`folder` fails the test where anything is computed."""
    disk.prepare(folder.run(untracked.key))
    disk.write_numbers(result, folder.run(untracked.key), {})
    assert folder.status(untracked.key).state == "planned"
    drawn = {"heads_scatter.png", "jaccard.png"}
    plots = untracked.composed.config.model_copy(update={"plots": "heads_scatter jaccard"})
    job = dataclasses.replace(untracked, composed=Composed((), plots, ""))
    assert do(job, folder) == worker.Outcome(untracked.key, "done")
    assert {path.name for path in folder.run(untracked.key).glob("plots/*")} == drawn
    for path in written.rglob("*"):
        again = folder.run(untracked.key) / path.relative_to(written)
        if path.name in drawn or (path.suffix in (".csv", ".safetensors") and path.name != "record.safetensors"):
            assert again.read_bytes() == path.read_bytes(), path.name
    summaries = [json.loads((place / "summary.json").read_text()) for place in (written, folder.run(untracked.key))]
    assert summaries[0].keys() == summaries[1].keys()
    assert {n for n in summaries[0] if summaries[0][n] != summaries[1][n]} <= {"seconds/files"}


@pytest.mark.parametrize("why", ["another key", "other versions", "an analysis failed", "cut short"])
def test_a_record_that_does_not_say_all_is_computed_again(untracked, folder, result, monkeypatch, why):
    place = folder.run(untracked.key)
    disk.prepare(place)
    failures = {"curves": Failure("a flat tyre", "")} if why == "an analysis failed" else {}
    changed = {"another key": {"key": "0" * 12}, "other versions": {"versions": {"torch": "1.0"}}}.get(why, {})
    disk.write_numbers(dataclasses.replace(result, **changed), place, failures)
    if why == "cut short":
        (place / "record.safetensors").write_bytes(b"")
    monkeypatch.setattr(pipeline, "run", lambda *_: 1 / 0)
    assert do(untracked, folder).reason == "ZeroDivisionError: division by zero"


def test_an_interruption_keeps_the_mark_that_a_job_was_begun(untracked, folder, result, monkeypatch):
    def interrupted(folder, wanted):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run", lambda *_: result)
    monkeypatch.setattr(record, "draw_or_say", interrupted)
    with pytest.raises(KeyboardInterrupt):
        do(untracked, folder)
    assert folder.holder(untracked.key) is None, "its lock is free"
    assert folder.status(untracked.key).detail == "was interrupted before"


def test_jobs_are_drawn_by_the_process_beside_and_here_once_it_has_died(untracked, folder, result, monkeypatch, forks):
    ends = []
    monkeypatch.setattr(pipeline, "run", lambda *_: result)
    plots = untracked.composed.config.model_copy(update={"plots": "jaccard"})
    job = dataclasses.replace(untracked, composed=Composed((), plots, ""))
    with ExitStack() as claims, worker.Pictures(folder, lambda job, end: ends.append(end), beside=True) as pictures:
        place = folder.run(job.key)
        for number in range(2):
            begun = worker.begin(job, folder, pipeline.silent, claims, wait=False)
            assert not (place / "summary.json").exists(), "a job is finished with its pictures"
            assert folder.holder(job.key) is not None, "and claimed until then"
            pictures.add(begun)
            if number:
                pictures._process._process.kill()
            pictures.finish()
            assert ends == [worker.Outcome(job.key, "done")] * (number + 1)
            assert [path.name for path in place.glob("plots/*")] == ["jaccard.png"]
            assert (pictures._process is None) == bool(number)
            shutil.rmtree(place)
