"""The launchers that start other processes: the same runs in the same folders, and failures that cost no other job."""

import json
import os
import shutil
import subprocess
import warnings
from pathlib import Path
from subprocess import Popen

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from safetensors.torch import load_file, save_file

from igap import cli, pipeline
from igap.cli import launch, launchers
from igap.cli.compose import compose_multirun, compose_one
from igap.errors import InputError
from igap.models import cached
from igap.sweep import worker
from igap.sweep.folder import SweepFolder
from igap.sweep.plan import Composed, Job, Plan
from igap.sweep.worker import Outcome


@pytest.fixture(scope="module")
def broken(checkpoint, tmp_path_factory) -> Path:
    """A checkpoint whose second layer gives NaN: found out when it runs, not before."""
    folder = shutil.copytree(checkpoint("gpt2"), tmp_path_factory.mktemp("broken") / "gpt2")
    weights = load_file(folder / "model.safetensors")
    weights["transformer.h.1.mlp.c_fc.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def numbers(folder):
    """By key, the numbers of the finished runs and their heads' scores, without seconds."""
    return {
        path.parent.name: {
            **{k: v for k, v in json.loads(path.read_text()).items() if isinstance(v, float) and "seconds" not in k},
            **{f"head {n}": v for n, v in enumerate(load_file(path.parent / "attributions.safetensors")["ig.heads"])},
        }
        for path in Path(folder).glob("*/summary.json")
    }


@pytest.mark.long
@pytest.mark.usefixtures("forks")
def test_every_launcher_gives_the_same_runs_and_a_failing_job_costs_no_other(
    checkpoint, broken, tmp_path, monkeypatch, capsys
):
    """The processes of submitit are started, not forked: theirs is an interpreter of its own."""
    monkeypatch.chdir(tmp_path)
    grid = [f"model.name={checkpoint('gpt2')},{broken}", "ig.n_steps=2,3"]
    quiet = [
        "tracking=disabled",
        "prompts.min_gap=0",
        "device=cpu",
        "curves.components=none",
        "explain=false",
        "plots=none",
        "sites=heads",
    ]
    launchers = {
        "basic": [],
        "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
        "submitit_local": ["hydra/launcher=submitit_local", "hydra.launcher.pack=4"],
    }
    found = {}
    for name, options in launchers.items():
        if name == "submitit_local":
            monkeypatch.setattr(subprocess, "Popen", Popen)
        assert cli.main(["run", "-m", "model=hf", *grid, *quiet, f"output={name}", *options]) == 1
        out = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert "2 of 4 jobs finished" in out
        assert out.count("clean run: got NaN or infinity in layer") >= 2, "each with its reason"
        assert all(story.read_text().startswith("Traceback") for story in Path(name).glob("*/*/failure.log"))
        assert len(list(Path(name).glob("*/*/failure.log"))) == 2
        assert cli.main(["status", name]) == 1
        assert "2 done, 2 failed" in capsys.readouterr().out
        found[name] = numbers(f"{name}/multirun")
        GlobalHydra.instance().clear()
    assert len(found["basic"]) == 2
    for name in ("joblib", "submitit_local"):
        assert found[name].keys() == found["basic"].keys()
        for key, run in found["basic"].items():
            for what, number in run.items():
                # Processes with other numbers of threads may add in another order.
                assert torch.allclose(*map(torch.as_tensor, (found[name][key][what], number)), rtol=1e-4, atol=1e-6)
    assert len(list(Path("submitit_local/multirun/.submitit").glob("*/*_result.pkl"))) == 1, "four jobs a process"
    cached._cached_model.cache_clear()


@pytest.mark.parametrize(
    ("overrides", "cores", "expected"),
    [
        ([], 8, (1, 1, None)),
        (["hydra/launcher=joblib"], 8, (8, 1, 1)),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.launcher.pack=5"], 8, (2, 5, 4)),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=-3"], 8, (6, 1, 1)),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=16"], 8, (16, 1, 1)),
        (["hydra/launcher=submitit_local", "hydra.launcher.cpus_per_task=3"], 8, (1, 4, 3)),
        (["hydra/launcher=submitit_slurm", "hydra.launcher.array_parallelism=5"], 2, (5, 8, 4)),
    ],
)
def test_processes_share_the_cores_and_packs_share_a_model(overrides, cores, expected, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    found = launchers.launcher_of(*compose_multirun(overrides))
    assert (found.at_once, found.pack, found.threads) == expected


def test_a_process_uses_the_threads_it_is_given(tmp_path):
    before = torch.get_num_threads()
    try:
        worker.do_all([], SweepFolder(tmp_path), pipeline.silent, lambda *_: None, wait=False, threads=1)
        assert torch.get_num_threads() == 1
        torch.set_num_threads(2)
        worker.do_all([], SweepFolder(tmp_path), pipeline.silent, lambda *_: None, wait=False, threads=None)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("name", "extra"), [("joblib", "joblib"), ("submitit_slurm", "submitit")])
@pytest.mark.parametrize("others", [True, False], ids=["another plugin is there", "no plugin at all"])
def test_a_launcher_that_is_not_installed_is_refused_with_the_remedy(name, extra, others, monkeypatch):
    composed = compose_multirun([f"hydra/launcher={name}"])

    def find_spec(module):
        if not others:
            raise ModuleNotFoundError("No module named 'hydra_plugins'")

    monkeypatch.setattr("importlib.util.find_spec", find_spec)
    with pytest.raises(
        InputError, match=rf"pip install -e '\.\[{extra}\]' -c constraints\.txt, or hydra/launcher=basic"
    ):
        launchers.launcher_of(*composed)
    launchers.launcher_of(*compose_multirun([]))


class Rounds:
    """Stands for the processes of a launcher: in each round, what becomes of the jobs that are begun."""

    def __init__(self, folder, *rounds):
        self.folder, self.rounds, self.asked = folder, list(rounds), []

    def __call__(self, worker, n, launcher):
        assert n == len(worker.packs)
        self.asked.append(([[job.key for job in pack] for pack in worker.packs], worker.wait))
        ends = self.rounds.pop(0)
        for key, end in ends.items():
            if end == "done":
                self.folder.run(key).mkdir(parents=True, exist_ok=True)
                (self.folder.run(key) / "summary.json").write_text(json.dumps({"key": key, "schema": 1}))
                (self.folder.run(key) / "config.json").write_text("{}")
            if end == "dies":
                self.folder._locks.mkdir(exist_ok=True)
                (self.folder._locks / f"{key}.json").write_text("{}")
                (self.folder._locks / f"{key}.lock").touch()
        outcomes = [Outcome(key, end, "storm") for key, end in ends.items() if end != "dies"]
        return [outcomes], "a worker died" if "dies" in ends.values() else ""


@pytest.fixture
def plan(tmp_path):
    config = compose_one([]).config
    jobs = tuple(Job(key, (), Composed((), config, ""), 1, config.tracking) for key in ("aa", "bb", "cc"))
    folder = SweepFolder(tmp_path)
    return Plan(folder, jobs, {job.key: folder.status(job.key) for job in jobs}, 0, ())


def launched(plan, monkeypatch, *rounds, options=()):
    """The reasons, and the packs and waiting of each round."""
    stub = Rounds(plan.folder, *rounds)
    monkeypatch.setattr(launch, "one_round", stub)
    reasons = launch.launch(plan, launchers.launcher_of(*compose_multirun(list(options))))
    assert not stub.rounds
    return reasons, stub.asked


def test_jobs_another_process_is_at_get_another_round_and_those_whose_process_died_one_alone(plan, monkeypatch):
    reasons, asked = launched(
        plan,
        monkeypatch,
        {"aa": "done", "bb": "busy", "cc": "dies"},
        {"bb": "done"},
        {"cc": "dies"},
        {"cc": "dies"},
    )
    assert asked == [([["aa", "bb", "cc"]], False), ([["bb"]], True), ([["cc"]], True), ([["cc"]], True)]
    assert reasons == {"cc": "its process ended without a word 3 times: killed, or out of memory"}


def test_a_job_whose_process_dies_costs_none_of_those_behind_it(plan, monkeypatch):
    reasons, asked = launched(
        plan, monkeypatch, {"aa": "dies"}, {"bb": "done", "cc": "dies"}, {"aa": "dies"}, {"aa": "done"}, {"cc": "done"},
        options=["hydra/launcher=submitit_local"],
    )  # fmt: skip
    assert [packs for packs, _ in asked] == [[["aa", "bb", "cc"]], [["bb", "cc"]], [["aa"]], [["aa"]], [["cc"]]]
    assert reasons == {}


def test_what_no_process_ever_began_is_told_with_the_launchers_own_words(plan, monkeypatch):
    monkeypatch.setattr(launch, "one_round", lambda worker, n, launcher: ([], "RuntimeError: no sbatch"))
    reasons = launch.launch(plan, launchers.launcher_of(*compose_multirun([])))
    assert reasons == dict.fromkeys(("aa", "bb", "cc"), "it was not started 3 times: RuntimeError: no sbatch")


def test_a_job_that_failed_is_not_tried_again_in_the_same_sweep(plan, monkeypatch):
    reasons, asked = launched(plan, monkeypatch, {"aa": "done", "bb": "failed", "cc": "busy"}, {"cc": "done"})
    assert asked[1:] == [([["cc"]], True)]
    assert reasons == {"bb": "storm"}


def test_a_job_without_a_place_fails_alone(plan, monkeypatch):
    (plan.folder.path / "bb").write_text("a file where the run's folder should be")
    reasons, asked = launched(plan, monkeypatch, {"aa": "done", "cc": "done"})
    assert asked == [([["aa", "cc"]], False)]
    assert set(reasons) == {"bb"}
    assert "bb" in reasons["bb"]


def test_a_process_that_joblib_restarts_for_its_memory_is_not_told_and_costs_no_job(plan, monkeypatch):
    """Its warning would end the round here, where warnings are errors."""

    class Restarts:
        def launch(self, overrides, initial_job_idx):
            warnings.warn("A worker stopped while some jobs were given to the executor.", UserWarning, stacklevel=1)
            return []

    monkeypatch.setattr(Plugins, "instantiate_launcher", lambda self, **_: Restarts())
    worker = launch.Worker((plan.jobs,), plan.folder, False, None, False)
    assert launch.one_round(worker, 1, launchers.launcher_of(*compose_multirun([]))) == ([], "")


def test_a_number_of_processes_that_is_none_is_refused_in_one_line():
    with pytest.raises(InputError, match=r"hydra\.launcher\.n_jobs: got 'abc', wanted a number of processes"):
        launchers.launcher_of(*compose_multirun(["hydra/launcher=joblib", "hydra.launcher.n_jobs=abc"]))


def test_a_setting_that_the_launcher_does_not_have_is_refused_before_any_job_starts():
    with pytest.raises(InputError, match=r"hydra\.launcher\.nonsense: got 3, which the launcher does not take"):
        launchers.launcher_of(*compose_multirun(["hydra/launcher=submitit_local", "++hydra.launcher.nonsense=3"]))


@pytest.mark.skipif(shutil.which("srun") is not None, reason="there is a SLURM here")
def test_a_launcher_that_cannot_start_is_the_reason_of_every_job(plan):
    reasons = launch.launch(plan, launchers.launcher_of(*compose_multirun(["hydra/launcher=submitit_slurm"])))
    assert set(reasons) == {"aa", "bb", "cc"}
    assert 'it was not started 3 times: RuntimeError: Could not detect "srun"' in reasons["aa"]
