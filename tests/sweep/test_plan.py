"""A multirun's plan: keys, duplicates, what cannot be; and how long what is left takes."""

import os
from pathlib import Path

import pytest

from igap.cli.compose import compose_one
from igap.errors import InputError
from igap.storage.finished import FinishedRun
from igap.sweep.folder import SweepFolder
from igap.sweep.plan import RejectedJob, draws_beside, estimate, plan


def composed(*overrides):
    return compose_one(list(overrides))


def planned(
    jobs, tmp_path, check=lambda config: (f"{config.baseline.kind}-{config.ig.n_steps}", config.prompts.n or 1)
):
    ticks = []
    found = plan(SweepFolder(tmp_path), jobs, check, lambda done, total: ticks.append((done, total)))
    assert ticks == [(n + 1, len(jobs)) for n in range(len(jobs))]
    return found


def test_jobs_of_one_key_are_one_job_and_what_all_share_is_not_their_own(tmp_path):
    jobs = [composed("seed=1", f"ig.n_steps={n}", f"output={place}") for n in (2, 3) for place in ("a", "b")]
    found = planned(jobs, tmp_path)
    assert [job.key for job in found.jobs] == ["corrupted-2", "corrupted-3"]
    assert found.n_duplicates == 2
    assert [job.distinct_overrides for job in found.jobs] == [
        ("ig.n_steps=2", "output=a"),
        ("ig.n_steps=3", "output=a"),
    ]
    assert [job.key for job in found.to_do] == ["corrupted-2", "corrupted-3"]


def test_what_cannot_be_is_kept_with_its_reason_whoever_found_out(tmp_path):
    def check(config):
        if config.ig.n_steps == 3:
            raise InputError("three")
        return "x", 1

    jobs = [composed("ig.n_steps=2"), RejectedJob(("ig.n_steps=0",), "none"), composed("ig.n_steps=3")]
    found = planned(jobs, tmp_path, check)
    assert found.rejected == (RejectedJob(("ig.n_steps=0",), "none"), RejectedJob(("ig.n_steps=3",), "three"))
    assert len(found.jobs) == 1


def jobs_of(tmp_path, *overrides):
    return planned([composed(*one) for one in overrides], tmp_path).jobs


def finished(settings=(), **changed):
    """A run of one pair and 50 steps: 5 s of IG, 3 s of all else, 1 s of files, 2 s to load the model."""
    kind = {"model.name": "ioi-mini", "model.processing": "processed", "study": None, "faithfulness": "none"}
    numbers = {"n_pairs": 1, "ig/n_steps": 50}
    seconds = {"seconds/ig": 5.0, "seconds/total": 10.0, "seconds/model": 2.0, "seconds/files": 1.0}
    summary = {**numbers, **seconds, **{name.replace("__", "/"): value for name, value in changed.items()}}
    return FinishedRun(Path(), summary, {**kind, "ablation.kind": "none", **dict(settings)})


@pytest.mark.parametrize(
    ("overrides", "at_once", "seconds"),
    [
        ([["ig.n_steps=50"]], 1, 5 + 4),
        ([["ig.n_steps=100"]], 1, 10 + 4),
        ([["ig.n_steps=50", "prompts.n=10"]], 1, 10 * (5 + 3) + 1),
        ([["ig.n_steps=50"], ["ig.n_steps=100"]], 2, (9 + 14) / 2),
        ([["ig.n_steps=auto"]], 1, 5 + 4),
    ],
)
def test_the_rest_takes_what_finished_runs_took_by_steps_and_pairs(tmp_path, overrides, at_once, seconds):
    assert estimate(jobs_of(tmp_path, *overrides), [finished()], at_once).seconds == pytest.approx(seconds)


def test_runs_of_as_many_pairs_go_before_others(tmp_path):
    ten = finished(n_pairs=10, seconds__ig=10.0, seconds__total=20.0, seconds__model=0.0)
    jobs = jobs_of(tmp_path, ["ig.n_steps=100", "prompts.n=10"])
    assert estimate(jobs, [finished(), finished(), ten], 1).seconds == pytest.approx(20 + 10 + 1)


def test_rates_are_medians_of_runs_of_the_same_model_only(tmp_path):
    jobs = jobs_of(tmp_path, ["ig.n_steps=50"])
    runs = [finished(), finished(seconds__ig=6.0, seconds__total=11.0), finished(seconds__ig=1e2, seconds__total=5e2)]
    other = finished({"model.name": "gpt2"}, seconds__total=1e6)
    silent = FinishedRun(Path(), {}, {})
    left = estimate(jobs, [*runs, other, other, silent], 1)
    assert (left.seconds, left.n_runs) == (pytest.approx(6 + 4), 3)
    assert estimate(jobs, [other], 1) is None
    assert estimate(jobs, [], 1) is None


@pytest.mark.parametrize(("files", "seconds"), [(1.0, 16), (10.0, (16 + 20) / 2)])
def test_pictures_that_are_drawn_beside_the_next_job_take_no_time_unless_they_take_longer(tmp_path, files, seconds):
    jobs = jobs_of(tmp_path, ["ig.n_steps=50"], ["ig.n_steps=51"])
    runs = [finished(seconds__files=files)]
    one_after_another = estimate(jobs, runs, 1).seconds
    assert one_after_another == pytest.approx(16 + 2 * files, rel=0.01)
    assert estimate(jobs, runs, 1, beside=True).seconds == pytest.approx(seconds, rel=0.01)


def test_three_jobs_with_pictures_are_drawn_beside(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    jobs = jobs_of(tmp_path, ["ig.n_steps=2"], ["ig.n_steps=3"], ["ig.n_steps=4"], ["ig.n_steps=5", "plots=none"])
    assert draws_beside(jobs)
    assert not draws_beside(jobs[1:])
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert not draws_beside(jobs)


def test_runs_with_the_same_pictures_tell_how_long_the_files_take(tmp_path):
    jobs = jobs_of(tmp_path, ["ig.n_steps=50", "plots=none"])
    runs = [finished(seconds__files=4.0), finished({"plots": "all"}, seconds__files=6.0)]
    assert estimate(jobs, runs, 1).seconds == pytest.approx(8)
    assert estimate(jobs_of(tmp_path, ["ig.n_steps=50"]), runs, 1).seconds == pytest.approx(8 + 5)
    assert estimate(jobs_of(tmp_path, ["ig.n_steps=50", "plots=heatmap"]), runs, 1).seconds == pytest.approx(8 + 5)
    assert estimate(jobs, [*runs, finished({"plots": "none"}, seconds__files=0.5)], 1).seconds == pytest.approx(8.5)


@pytest.mark.parametrize("kind", [{"study": "notebook"}, {"faithfulness": "both"}, {"ablation.kind": "zero"}])
def test_runs_that_did_more_or_less_after_the_comparison_say_nothing(tmp_path, kind):
    assert estimate(jobs_of(tmp_path, ["ig.n_steps=50"]), [finished(kind)], 1) is None


def test_pairs_of_a_file_are_counted(tmp_path):
    (job,) = planned([composed("ig.n_steps=50")], tmp_path, check=lambda config: ("x", 300)).jobs
    assert job.n_pairs == 300
    assert estimate([job], [finished()], 1).seconds == pytest.approx(300 * (5 + 3) + 1)


def test_runs_with_impossible_numbers_give_no_estimate_or_a_time(tmp_path):
    jobs = jobs_of(tmp_path, ["ig.n_steps=50"])
    for name in ("seconds__ig", "seconds__total", "seconds__files", "seconds__model", "n_pairs", "ig__n_steps"):
        for value in (0, -1, 0.5, 1e300, 10**300, "x", None):
            left = estimate(jobs, [finished(**{name: value})], 1)
            assert left is None or 0 <= left.seconds < 1e12, (name, value)
