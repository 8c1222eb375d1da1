"""A multirun as a user meets it: planned first, resumed by the same command, its work shared, its failures told."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import load_file

from igap import cli, console, pipeline
from igap.attribution.methods import METHODS
from igap.cli import multirun, settings
from igap.output import disk

pytestmark = pytest.mark.usefixtures("one_model")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    GlobalHydra.instance().clear()


@pytest.fixture
def sweep(checkpoint, capsys):
    """Runs a multirun of the random GPT-2; its exit code, and what it said."""

    def run(*overrides, command=("run", "-m")):
        quiet = [
            "tracking=disabled",
            "prompts.min_gap=0",
            "device=cpu",
            "curves.components=none",
            "explain=false",
            "plots=none",
            "sites=heads",
        ]
        code = cli.main([*command, "model=hf", f"model.name={checkpoint('gpt2')}", *quiet, *overrides])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def computed(monkeypatch):
    """What has been computed, in order: "ap heads", "ig neurons", ..."""
    calls = []

    def counted(method):
        def attribute(contrast, site, *rest):
            calls.append(f"{method.name} {site}")
            return method.attribute(contrast, site, *rest)

        return dataclasses.replace(method, attribute=attribute)

    for name, method in METHODS.items():
        monkeypatch.setitem(METHODS, name, counted(method))
    return calls


def summaries(folder="runs/multirun"):
    return {path.parent.name: json.loads(path.read_text()) for path in Path(folder).glob("*/summary.json")}


def content(folder="runs/multirun"):
    """Every byte of the finished runs' results but for their seconds."""
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).glob("[0-9a-f]*/*"))
        if path.suffix in (".csv", ".safetensors") and path.name != "record.safetensors"  # which holds seconds
    }
    numbers = {
        key: {name: value for name, value in one.items() if not name.startswith("seconds/")}
        for key, one in summaries(folder).items()
    }
    return files, numbers


def test_the_same_command_again_does_nothing_twice_and_a_larger_grid_only_what_is_new(sweep, computed):
    code, out, _ = sweep("ig.n_steps=2,3")
    assert code == 0
    assert "2 jobs in runs/multirun, 2 to do" in out
    assert "nothing of this kind has run here" in out
    first = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in Path("runs").glob("*/*/summary.json")}
    assert {path.parent.name for path in first} == {one["key"] for one in summaries().values()}
    done = list(computed)
    code, out, _ = sweep("ig.n_steps=3,2", "tracking.project=other", "hydra.job.name=x", "memory_gib=1")
    assert code == 0
    assert "2 jobs in runs/multirun, 0 to do, 2 done already" in out
    assert "2 of 2 jobs finished" in out
    assert computed == done
    code, out, _ = sweep("ig.n_steps=2,3,4", "baseline=corrupted,zero")
    assert code == 0
    assert "6 jobs in runs/multirun, 4 to do, 2 done already" in out
    assert "going by 2 finished runs" in out
    assert "had another grid, of 2 jobs; 2 of them are in this one too" in out
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in first} == first
    assert computed.count("ig heads") == 6


def test_a_grid_of_baselines_and_steps_computes_what_depends_on_neither_once(sweep, computed, tmp_path):
    assert sweep("ig.n_steps=2,3", "baseline=corrupted,zero", "sites=both")[0] == 0
    assert [
        computed.count(f"{name} {site}") for name in ("ap", "atp", "atp_star") for site in ("heads", "neurons")
    ] == [1] * 6
    assert computed.count("ig heads") == 4
    files, numbers = content()
    shutil.rmtree("runs")
    sweep("ig.n_steps=2", "sites=both")
    shutil.rmtree("runs/multirun/.store")
    sweep("ig.n_steps=3", "baseline=zero", "sites=both")
    assert computed.count("ap heads") == 3, "each of the two alone"
    files_alone, numbers_alone = content()
    assert len(numbers_alone) == 2
    shared = {path: data for path, data in files.items() if path.split("/")[0] in numbers_alone}
    assert files_alone == shared, "shared or not, every byte is the same"
    assert numbers_alone == {key: numbers[key] for key in numbers_alone}


def maps(folder="runs/multirun"):
    """The tensors of each run by its metric and baseline."""
    runs = {}
    for path in Path(folder).glob("*/config.json"):
        config = json.loads(path.read_text())
        tensors = load_file(path.parent / "attributions.safetensors")
        runs[config["metric"]["name"], config["baseline"]["kind"]] = tensors
    return runs


METRICS_GRID = ("metric=logit_diff,kl,prob", "baseline=corrupted,zero", "sites=both", "positions=last", "ig.n_steps=2")


def test_a_grid_of_metrics_patches_once_and_has_the_numbers_of_runs_alone(sweep, computed):
    assert sweep(*METRICS_GRID)[0] == 0
    assert [computed.count(f"ap {site}") for site in ("heads", "neurons")] == [1, 1]
    assert computed.count("atp heads") == 1, "of kl there is none"
    assert computed.count("ig heads") == 6
    together = maps()
    assert len(together) == 6
    shutil.rmtree("runs")
    for metric, baseline in (("logit_diff", "corrupted"), ("kl", "zero"), ("prob", "corrupted")):
        assert sweep(f"metric={metric}", f"baseline={baseline}", *METRICS_GRID[2:])[0] == 0
    alone = maps()
    assert len(alone) == 3
    assert computed.count("ap heads") == 1 + 3
    for key, tensors in alone.items():
        assert set(tensors) == set(together[key])
        for name, tensor in tensors.items():
            # Of the logit difference a pass that reads whole logits has fewer rows, and rows round each other.
            shared = "atp" in name or ("ap." in name and key[0] == "logit_diff")
            most = 1e-3 * float(tensor.abs().nan_to_num().max()) if shared else 0.0
            torch.testing.assert_close(tensor, together[key][name], atol=most, rtol=0, equal_nan=True)
    first, *others = (together[metric, "zero"]["effect.ap.heads"] for metric in ("logit_diff", "kl", "prob"))
    assert not any(torch.allclose(first, other, rtol=0.01, atol=0) for other in others)


def test_jobs_of_metrics_that_were_killed_go_on_from_the_patches_that_are_there(sweep, computed, monkeypatch):
    written = disk.write_numbers

    def killed(result, *rest):
        if result.config.metric.name == "kl":
            raise KeyboardInterrupt
        return written(result, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(disk, "write_numbers", killed)
        assert sweep("metric=logit_diff,kl,prob", "ig.n_steps=2")[0] != 0
    assert len(summaries()) == 1
    assert sweep("metric=logit_diff,kl,prob", "ig.n_steps=2")[0] == 0
    assert sorted(run["metric"] for run in summaries().values()) == ["kl", "logit_diff", "prob"]
    assert computed.count("ap heads") == 1


def test_several_metrics_of_a_run_need_no_m_and_leave_other_keys_one_value(sweep, computed):
    assert sweep("sites=heads,resid_pre", "metric=logit_diff,kl", "ig.n_steps=2", command=("run",))[0] == 0
    assert sorted(run["metric"] for run in summaries().values()) == ["kl", "logit_diff"]
    assert computed.count("ap heads") == computed.count("ap resid_pre") == 1
    assert sweep("metric=logit_diff,kl", command=("check",))[0] == 0
    code, _, err = sweep("metric=logit_diff,kl", "ig.n_steps=2,3", command=("run",))
    assert code == 2
    assert err.startswith("igap: ig.n_steps: got 2 values (2, 3), wanted one. Add -m")


def test_jobs_that_differ_in_more_than_the_metric_patch_on_their_own(sweep, computed):
    assert sweep("metric=logit_diff,kl", "direction=noising,denoising", "ig.n_steps=2")[0] == 0
    assert computed.count("ap heads") == 2
    assert sweep("metric=prob,js", "positions=last", "ig.n_steps=2", "sweep=other")[0] == 0
    assert sweep("metric=prob,js", "positions=diff", "ig.n_steps=2", "sweep=other")[0] == 0
    assert computed.count("ap heads") == 4


def test_a_function_of_the_users_fails_its_own_job_alone(sweep, computed):
    Path("odd_metric.py").write_text(
        "def odd(logits, pair):\n"
        "    if logits.shape[0] > 2:\n"
        "        raise ValueError('too many rows')\n"
        "    return logits[:, 0]\n"
    )
    code, out, _ = sweep("metric=prob,custom,kl", "metric.function=odd_metric:odd", "ig.n_steps=2")
    assert code == 1
    assert "too many rows" in " ".join(out.split())
    assert sorted(run["metric"] for run in summaries().values()) == ["kl", "prob"]
    assert computed.count("ap heads") == 1, "of prob and kl; the other had ended before"


def test_runs_keep_the_config_as_a_single_run_does(sweep):
    sweep("ig.n_steps=2")
    (folder,) = Path("runs/multirun").glob("[0-9a-f]*")
    assert "- ig.n_steps=2\n" in (folder / ".hydra" / "overrides.yaml").read_text().replace('"', "")
    assert "n_steps: 2\n" in (folder / ".hydra" / "config.yaml").read_text()
    assert json.loads((folder / "config.json").read_text())["ig"]["n_steps"] == 2


def test_settings_that_no_number_depends_on_are_duplicates(sweep):
    code, out, _ = sweep("ig.n_steps=2", "baseline.seed=0,1,2", command=("check", "-m"))
    assert code == 0
    assert "1 job in runs/multirun, 1 to do, 2 duplicates left out" in out
    assert not Path("runs").exists(), "a check writes nothing"


def test_a_check_of_a_single_run_says_whether_it_can_be_done(sweep):
    code, out, _ = sweep("ig.n_steps=2", command=("check",))
    assert code == 0
    assert out.startswith("1 run, key ")
    assert not Path("runs").exists()


def test_one_impossible_job_stops_the_sweep_before_the_first(sweep, computed):
    code, out, err = sweep("ig.n_steps=2,0,3")
    assert code == 2
    assert err.startswith("igap: job 2 of 3 (")
    assert "ig.n_steps: got 0, wanted a whole number" in err
    assert "Invalid jobs: 1 of 3; keep_going=true drops them." in err
    assert (out, computed) == ("", [])
    assert not Path("runs").exists()


def test_keep_going_drops_what_cannot_be_and_says_so(sweep):
    code, out, _ = sweep("keep_going=true", "ig.n_steps=2", "prompts.answer=' John',' Zebulon'")
    assert code == 0
    assert "1 job in runs/multirun, 1 to do" in out
    assert "the tokenizer does not know 'Zebulon'" in " ".join(out.split())
    assert len(summaries()) == 1


def test_a_grid_tells_how_many_of_its_jobs_are_composed_and_checked(sweep, monkeypatch):
    monkeypatch.setattr(console, "_SECONDS_BETWEEN", 0.0)
    code, _, told = sweep("ig.n_steps=2,0", "keep_going=true", command=("check", "-m"))
    assert code == 0
    each = [f"{what} jobs: {n} of 2" for what in ("compose", "check") for n in (1, 2)]
    assert re.findall(r"\w+ jobs: \d of \d", told) == each


def test_of_jobs_none_of_which_can_be_the_first_is_explained(sweep):
    code, _, err = sweep("keep_going=true", "ig.n_steps=2", "prompts.answer=' Zebulon',' Zebulo'")
    assert code == 2
    assert "none of its 2 jobs is valid. The first: prompts.answer: the tokenizer does not know 'Zebulon'" in err


def test_runs_of_other_code_are_listed_and_done_again_only_when_asked(sweep, computed):
    sweep("ig.n_steps=2")
    ((key, before),) = summaries().items()
    path = Path("runs/multirun") / key / "summary.json"
    path.write_text(json.dumps(before | {"version/torch": "0.1", "gap": 77.0}))
    done = list(computed)
    code, out, _ = sweep("ig.n_steps=2")
    assert code == 0
    assert "1 stale, made by other code (torch 0.1 -> " in out
    assert "kept; stale=redo does them again" in " ".join(out.split())
    assert computed == done
    assert summaries()[key]["gap"] == 77.0
    code, out, _ = sweep("ig.n_steps=2", "stale=redo")
    assert code == 0
    assert "1 stale runs moved to runs/multirun/.stale and done again" in " ".join(out.split())
    assert summaries()[key]["gap"] == before["gap"]
    (aside,) = Path("runs/multirun/.stale").glob("*/summary.json")
    assert json.loads(aside.read_text())["gap"] == 77.0, "nothing computed is lost"


def test_a_run_cut_short_is_done_again_and_comes_out_the_same(sweep, computed):
    sweep("ig.n_steps=2,3")
    whole = content()
    cut, broken = (Path("runs/multirun") / key for key in summaries())
    (cut / "summary.json").unlink()
    (cut / "heads.csv").write_text("half a f")
    (broken / "summary.json").write_text('{"key": ')
    code, out, _ = sweep("ig.n_steps=2,3")
    assert code == 0
    assert "2 to do" in out
    assert content() == whole
    assert (broken / "summary.broken.json").exists()


def test_a_failed_job_is_told_with_its_log_and_tried_again_next_time(sweep, monkeypatch, capsys):
    run = pipeline.run

    def storm(config, *rest):
        if config.ig.n_steps == 2:
            raise RuntimeError("a passing storm")
        return run(config, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "run", storm)
        code, out, err = sweep("ig.n_steps=2,3")
    assert code == 1
    assert "RuntimeError: a passing storm" in out
    assert "failure.log" in out.replace("\n", "").replace(" ", "")
    assert "Traceback" not in err
    assert "1 of 2 jobs finished" in out
    assert cli.main(["status", "runs"]) == 1
    said = capsys.readouterr().out
    assert "2 jobs: 1 done, 1 failed" in said
    assert "a passing storm" in said
    code, out, _ = sweep("ig.n_steps=2,3")
    assert code == 0
    assert "1 to do, 1 done already, 1 failed before" in out
    assert not list(Path("runs").glob("*/*/failure.*"))
    assert cli.main(["status", "runs/multirun"]) == 0


def test_a_checkpoint_that_changes_meanwhile_is_noticed(sweep, checkpoint, monkeypatch, tmp_path):
    """The plan's key is that of the content at its time; what runs must be that."""
    copy = shutil.copytree(checkpoint("gpt2"), tmp_path / "copy")
    run = pipeline.run

    def edited(config, *rest):
        (copy / "generation_config.json").write_text("{}")
        return run(config, *rest)

    monkeypatch.setattr(pipeline, "run", edited)
    code, out, _ = sweep("ig.n_steps=2", f"model.name={copy}")
    assert code == 1
    assert "a file or the checkpoint has changed since the plan was made" in " ".join(out.replace("│", " ").split())
    assert not summaries()


def test_the_shared_results_are_listed_and_pruned(sweep, capsys):
    sweep("ig.n_steps=2", "sites=both")
    files = sorted(Path("runs/multirun/.store").glob("*.safetensors"))
    assert {path.name.partition("-")[0] for path in files} == {"ap", "atp", "atp_star", "qk", "run"}
    assert load_file(files[0])["effect/ap"].shape[0] == 1, "one pair"
    assert cli.main(["store", "runs"]) == 0
    # Three maps of two sites, one of queries, keys and values, and each prompt's run, once for both sites.
    assert capsys.readouterr().out.count("sound") == len(files) == 9
    files[0].write_bytes(files[0].read_bytes()[:-1])
    assert cli.main(["store", "runs/multirun"]) == 1
    assert "cannot be read" in capsys.readouterr().out
    assert cli.main(["store", "runs", "--prune"]) == 0
    assert sorted(Path("runs/multirun/.store").glob("*.safetensors")) == files[1:]
    (Path("runs/multirun/.store") / "run-1.safetensors.77.unfinished").write_text("of a killed process")
    assert cli.main(["store", "runs", "--prune=all"]) == 0
    assert [path.suffix for path in Path("runs/multirun/.store").iterdir() if path.suffix != ".lock"] == []


BAD = [
    (["run", "-m", "ig.n_steps=range(5,5)"], "ig.n_steps: got 'ig.n_steps=range(5,5)', wanted at least one value."),
    (["run", "-m", "hydra/launcher=basic,joblib"], "hydra/launcher: got 'hydra/launcher=basic,joblib', wanted one"),
    (["run", "-m", "sweep=a,b"], "sweep: got 'a,b', wanted a folder's name (letters, digits, dots, dashes)."),
    (["run", "-m", "output=choice(a,b)"], "output: got \"output=choice('a','b')\", wanted one value"),
    (["run", "-m", "hydra/launcher=joblib", "++hydra.launcher.n_jobs=0"], "hydra.launcher.n_jobs: got 0, wanted a"),
    (["run", "-m", "sweep=a/b"], "sweep: got 'a/b', wanted a folder's name"),
    (["run", "-m", "stale=maybe"], "stale: got 'maybe', wanted one of 'keep' or 'redo'."),
    (["run", "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=0"], "hydra.launcher.n_jobs: got 0, wanted a"),
    (["run", "-m", "hydra/launcher=joblib", "hydra.launcher.pack=0"], "hydra.launcher.pack: got 0, wanted a whole"),
    (["run", "-m", "hydra/launcher=nope"], "hydra: "),
    (["check", "sweep"], "sweep: got no name, wanted one of ablations, baselines,"),
    (["check", "sweep", "nope"], "sweep: got 'nope', wanted one of ablations, baselines,"),
    (["check", "prompts.answer= Zebulon"], "prompts.answer: the tokenizer does not know 'Zebulon'"),
    (["status", "nowhere"], "folder: got nowhere, which is no folder, wanted a sweep's or a search's folder"),
    (["status", "."], "folder: got ., without a sweep or a search in it (no sweep.json, no study)"),
    (["status", "--wath", "."], "option: got '--wath', which igap status does not have, wanted DIR or one of --watch,"),
    (["status", "--watch"], "folder: got none, wanted the folder of a sweep or a search."),
    (["store", "."], "folder: got ., without a store in it"),
    (["store", "--prune"], "folder: got none, wanted the folder of a sweep. Name one: igap store runs/NAME."),
    (["store", ".", "--prune=al"], "--prune: got 'al', wanted one of broken, all."),
    (["store", ".", "--prun"], "option: got '--prun', which igap store does not have, wanted DIR or one of --prune,"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_bad_input_is_one_clear_line_and_exit_code_2(arguments, message, capsys):
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"igap: {message}") or f": {message}" in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not Path("runs").exists()


@pytest.fixture
def sweep_file(tmp_path, monkeypatch):
    """Writes sweeps/mine.yaml, in a folder whose name Hydra's grammar would read as more than one."""
    home = tmp_path / "a (1), b's"

    def write(text):
        (home / "sweeps").mkdir(parents=True)
        (home / "sweeps" / "mine.yaml").write_text(text)
        monkeypatch.setattr(settings, "SWEEPS", home / "sweeps")

    return write


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hydra: {sweeper: {params: {}}}", "without a grid, wanted KEY: VALUE,VALUE under hydra.sweeper.params."),
        ("hydra: {sweeper: {params: 3}}", "without a grid, wanted KEY: VALUE,VALUE under hydra.sweeper.params."),
        ("hydra: {sweeper: {params: ", "which is no YAML (while parsing"),
        ("hydra: {sweeper: {params: {ig: {n_steps: 3}}}}", "ig: got a mapping in the sweep's grid"),
    ],
)
def test_a_sweep_file_that_is_none_is_refused_in_one_line(sweep_file, text, said, capsys):
    sweep_file(text)
    assert cli.main(["sweep", "mine"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_zero_and_one_in_a_sweep_file_are_numbers(sweep_file):
    sweep_file("# @package _global_\nhydra: {sweeper: {params: {seed: [0, 1], explain: [true, false]}}}")
    assert multirun.sweep_request("mine", []).overrides == ("sweep='mine'", "seed=0,1", "explain=true,false")
    assert cli.main(["check", "sweep", "mine"]) == 0


@pytest.mark.parametrize(
    ("name", "n", "refused"),
    [("baselines", 16, 0), ("ig_steps", 14, 0), ("prompts", 4, 4), ("ablations", 8, 0), ("notebook", 2, 0),
     ("head_curves", 32, 0)],
)  # fmt: skip
def test_the_shipped_sweeps_can_all_be_done_by_the_embedded_model(name, n, refused, capsys):
    assert cli.main(["check", "sweep", name]) == 0
    out = capsys.readouterr().out
    assert f"{n} jobs in runs/{name}, {n} to do\n" in out
    assert out.count("dropped") == refused


def test_watching_ends_when_nothing_is_left_to_wait_for(sweep, capsys):
    sweep("ig.n_steps=2")
    assert cli.main(["status", "runs", "--watch"]) == 0
    assert "1 job: 1 done" in capsys.readouterr().out
