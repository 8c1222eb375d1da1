"""A multirun's plan: keys, duplicates, what cannot be; and how long what is left takes."""

import pytest

from igap.cli.compose import compose_one
from igap.errors import InputError
from igap.sweep.folder import SweepFolder
from igap.sweep.plan import Refused, estimate, plan


def composed(*overrides):
    return compose_one(list(overrides))


def planned(jobs, tmp_path, check=lambda config: f"{config.baseline.kind}-{config.ig.n_steps}"):
    ticks = []
    found = plan(SweepFolder(tmp_path), jobs, check, lambda done, total: ticks.append((done, total)))
    assert ticks == [(n + 1, len(jobs)) for n in range(len(jobs))]
    return found


def test_jobs_of_one_key_are_one_job_and_what_all_share_is_not_their_own(tmp_path):
    jobs = [composed("seed=1", f"ig.n_steps={n}", f"output={place}") for n in (2, 3) for place in ("a", "b")]
    found = planned(jobs, tmp_path)
    assert [job.key for job in found.jobs] == ["corrupted-2", "corrupted-3"]
    assert found.n_duplicates == 2
    assert [job.own for job in found.jobs] == [("ig.n_steps=2", "output=a"), ("ig.n_steps=3", "output=a")]
    assert [job.key for job in found.to_do] == ["corrupted-2", "corrupted-3"]


def test_what_cannot_be_is_kept_with_its_reason_whoever_found_out(tmp_path):
    def check(config):
        if config.ig.n_steps == 3:
            raise InputError("three")
        return "x"

    jobs = [composed("ig.n_steps=2"), Refused(("ig.n_steps=0",), "none"), composed("ig.n_steps=3")]
    found = planned(jobs, tmp_path, check)
    assert found.refused == (Refused(("ig.n_steps=0",), "none"), Refused(("ig.n_steps=3",), "three"))
    assert len(found.jobs) == 1


def jobs_of(tmp_path, *overrides):
    return planned([composed(*one) for one in overrides], tmp_path).jobs


def summary(**changed):
    """A run of one pair and 50 steps: 5 s of IG, 3 s of all else, 1 s of files, 2 s to load the model."""
    numbers = {"model": "ioi-mini", "model/processing": "processed", "n_pairs": 1, "ig/n_steps": 50}
    seconds = {"seconds/ig": 5.0, "seconds/total": 10.0, "seconds/model": 2.0, "seconds/files": 1.0}
    return {**numbers, **seconds, **{name.replace("__", "/"): value for name, value in changed.items()}}


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
    assert estimate(jobs_of(tmp_path, *overrides), [summary()], at_once) == pytest.approx(seconds)


def test_runs_of_as_many_pairs_go_before_others(tmp_path):
    ten = summary(n_pairs=10, seconds__ig=10.0, seconds__total=20.0, seconds__model=0.0)
    jobs = jobs_of(tmp_path, ["ig.n_steps=100", "prompts.n=10"])
    assert estimate(jobs, [summary(), summary(), ten], 1) == pytest.approx(20 + 10 + 1)


def test_rates_are_medians_of_runs_of_the_same_model_only(tmp_path):
    jobs = jobs_of(tmp_path, ["ig.n_steps=50"])
    runs = [summary(), summary(seconds__ig=6.0, seconds__total=11.0), summary(seconds__ig=100.0, seconds__total=500.0)]
    other = summary(model="gpt2", seconds__total=1e6)
    assert estimate(jobs, [*runs, other, other, {}], 1) == pytest.approx(6 + 4)
    assert estimate(jobs, [other], 1) is None
    assert estimate(jobs, [], 1) is None
