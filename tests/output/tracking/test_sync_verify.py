"""igap sync and igap verify: what is on disk gets to W&B's files, once, and is compared with them."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.finished_runs import make

from igap import cli
from igap.errors import InputError
from igap.models.load import EMBEDDED
from igap.output.tracking import places, sync, verify, wandb_run
from igap.storage.finished import find_runs


@pytest.fixture(autouse=True)
def _no_key(no_key, forks):
    pass


@pytest.fixture(scope="module")
def logged(result, slim, tmp_path_factory):
    folder = shutil.copytree(slim, tmp_path_factory.mktemp("synced") / "run")
    wandb_run.log(folder, result.config.tracking)
    return folder


def copy(logged, tmp_path, name="run"):
    return shutil.copytree(logged, tmp_path / name, symlinks=True)


@pytest.fixture
def whole(slim, tmp_path, result):
    """A run logged where it is."""
    folder = shutil.copytree(slim, tmp_path / "whole")
    wandb_run.log(folder, result.config.tracking)
    return folder


def test_a_run_whose_offline_folder_was_lost_is_logged_again_from_disk(logged, whole, tmp_path, capsys):
    lost = copy(logged, tmp_path, "lost")
    shutil.rmtree(lost / "wandb")
    before = sorted(whole.rglob("*"))
    assert sync.sync_runs([tmp_path]) == 0
    said = capsys.readouterr().out
    assert "W&B: offline (W&B's server does not answer within 3 s)" in said
    assert "logged offline from disk" in said
    assert "2 of 2 runs wait on this machine" in said
    assert sorted(whole.rglob("*")) == before
    assert verify.verify_runs([tmp_path]) == 0
    assert "2 of 2 runs are in W&B's files as they are on disk" in capsys.readouterr().out
    assert sync.sync_runs([tmp_path]) == 0
    said = capsys.readouterr().out
    assert said.count("logged offline already") == 2
    assert "from disk" not in said, "the second time there is nothing to do"


def test_a_run_that_is_online_is_not_counted_as_compared(written, tmp_path, capsys):
    folder = shutil.copytree(written, tmp_path / "online")
    (folder / "wandb").mkdir()
    (folder / places.MARK).write_text('{"mode": "online", "place": "https://wandb.example/me/igap/runs/1"}')
    assert verify.verify_runs([tmp_path]) == 0
    said = capsys.readouterr().out
    assert "0 of 1 runs are in W&B's files as they are on disk, 1 are online, not compared" in said
    assert "online, not compared: https://wandb.example/me/igap/runs/1" in said


def test_searches_are_logged_and_compared_as_the_runs_in_them_are(logged, small, pair, tmp_path, capsys, monkeypatch):
    from igap.cli.compose import compose_searches
    from igap.counterfactual import search, session
    from igap.counterfactual.output.write import write as write_search
    from igap.counterfactual.spaces import prepare

    for module in (prepare, session):
        monkeypatch.setattr(module, "MOST_ORDINARY", 10)
    (config,) = compose_searches(["head='0.4'", "name=found"])
    words = {"first": ["=keep", "Tom", "Anna"]} | {
        n: ["=keep"] for n in ("second", "subject", "place", "verb", "object")
    }
    free = config.constraints.model_copy(update={"min_clean": None})
    result = search.search(small(EMBEDDED), pair, "0.4", space=words, constraints=free, clean_n=1, heldout_n=0)
    folder = tmp_path / "searches" / "found"
    folder.mkdir(parents=True)
    write_search(result, config, folder)
    copy(logged, folder / "runs", "a")
    assert verify.verify_runs([tmp_path]) == 1
    assert "1 of 2 runs are in W&B's files" in capsys.readouterr().out
    assert sync.sync_runs([tmp_path]) == 0
    assert capsys.readouterr().out.count("logged offline") == 2
    assert verify.verify_runs([tmp_path]) == 0
    assert [run.folder for run in find_runs([tmp_path])[0]] == [folder / "runs" / "a"], "compare and status read runs"


def test_a_relative_folder_as_the_hint_names_it_will_do(logged, tmp_path, monkeypatch):
    lost = copy(logged, tmp_path, "lost")
    shutil.rmtree(lost / "wandb")
    monkeypatch.chdir(tmp_path)
    assert sync.sync_runs([Path("lost")]) == 0
    assert places.find_logged_run(lost).mode == "offline"


def test_wandb_sync_without_a_server_fails_and_is_told(logged, tmp_path, monkeypatch):
    """The real command, against a closed port, where it would try again for minutes."""
    folder = copy(logged, tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(sync, "UPLOAD_SECONDS", 1.0)
    end = sync._upload(folder / places.find_logged_run(folder).place, {})
    assert (end.failed, end.waits) == (True, True)
    assert end.message == "wandb sync did not end within 1 s"


@pytest.mark.parametrize(("code", "marked"), [(1, True), (0, False)])
def test_an_upload_that_fails_or_leaves_no_mark_is_no_upload(code, marked, tmp_path, monkeypatch):
    mark = tmp_path / "run-1.wandb.synced"

    def run(command, **_):
        if marked:
            mark.touch()
        return subprocess.CompletedProcess(command, code, "", "first\nthe server said no\n")

    monkeypatch.setattr(subprocess, "run", run)
    end = sync._upload(tmp_path, {})
    assert (end.failed, end.waits, end.message) == (True, True, "wandb sync failed: the server said no")
    assert not mark.exists()


def test_a_number_or_setting_that_differs_is_named_with_both_values(logged, tmp_path, capsys):
    folder = copy(logged, tmp_path)
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    path.write_text(json.dumps(summary | {"gap": summary["gap"] * (1 + 1e-9), "heads/new": 1}))
    config = json.loads((folder / "config.json").read_text())
    config["ig"]["n_steps"] = 77
    (folder / "config.json").write_text(json.dumps(config))
    assert verify.verify_runs([folder]) == 1
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"gap: disk {summary['gap'] * (1 + 1e-9)!r}" in said
    assert "heads/new: disk 1, W&B None" in said
    assert "config ig.n_steps: disk 77, W&B 50" in said
    assert "0 of 1 runs" in said


def test_a_run_that_was_not_logged_or_cannot_be_read_back_is_told(logged, tmp_path, capsys):
    missing, broken = copy(logged, tmp_path, "missing"), copy(logged, tmp_path, "broken")
    (missing / places.MARK).unlink()
    (binary,) = broken.glob("wandb/offline-run-*/*.wandb")
    binary.write_bytes(b"")
    assert verify.verify_runs([tmp_path]) == 1
    said = capsys.readouterr().out
    assert "missing: nothing was logged" in said
    assert "unreadable" in said or "differs" in said
    assert "0 of 2 runs" in said


@pytest.mark.parametrize("name", ["sync", "verify"])
def test_bad_input_is_one_line(name, tmp_path, capsys):
    for arguments, message in (
        ([str(tmp_path)], "without a finished run in it"),
        ([str(tmp_path), "--nope"], f"option: got '--nope', which igap {name} does not have, wanted DIR or one of "),
    ):
        assert cli.main([name, *arguments]) == 2
        out, err = capsys.readouterr()
        assert message in err
        assert err.count("\n") == 1
        assert out == ""


def test_runs_of_one_key_whose_numbers_differ_are_named_with_the_first_number_that_does(tmp_path, capsys):
    numbers = {"gap": 4.0, "heads/pearson": 0.5, "seconds/total": 1.0}
    for name, seed, changed in (
        ("a/1", 1, {}),
        ("b/1", 1, {"gap": 4.000001, "heads/pearson": 0.75, "seconds/total": 9.0}),
        ("a/2", 2, {}),
        ("b/2", 2, {"heads/pearson": None}),
        ("a/3", 3, {}),
        ("b/3", 3, {"gap": 4.000001, "seconds/total": 9.0}),
    ):
        settings = {"tracking.project": "igap"}
        make(tmp_path / name, seed=seed, settings=settings, summary={"heads/max_abs_delta": 0.0, **numbers, **changed})
    sync.sync_runs([tmp_path / "a", tmp_path / "b"])
    a, b = tmp_path / "a", tmp_path / "b"
    said = "igap: {a} and {b} have the key {key:012x}, and so are one run in the W&B project igap: that of {b}, "
    said += "which is sent last."
    assert capsys.readouterr().err.splitlines() == [
        f"{said.format(a=a / '3', b=b / '3', key=3)} Their numbers are equal.",
        f"{said.format(a=a / '1', b=b / '1', key=1)} Their numbers differ: heads/pearson 0.5 and 0.75. To keep both,"
        " sync one of the folders with project=NAME. 1 more likewise.",
    ]


def test_runs_of_one_key_in_two_projects_are_two_runs_unless_one_project_is_given(tmp_path, capsys):
    for name in ("a", "b"):
        make(tmp_path / name, settings={"tracking.project": name})
    sync.sync_runs([tmp_path])
    assert capsys.readouterr().err == ""
    sync.sync_runs([tmp_path], project="both")
    assert "are one run in the W&B project both" in capsys.readouterr().err


def test_sync_without_a_folder_says_that_one_is_wanted():
    with pytest.raises(InputError, match=r"folder: got none, wanted .* Name one: igap sync runs\."):
        sync.sync_runs([], project="other")
