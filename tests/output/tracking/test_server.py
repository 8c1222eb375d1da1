"""Online mode, igap sync and igap compare --wandb, end to end against a stand-in for W&B's server."""

import base64
import hashlib
import json
import shutil
import subprocess
from io import BytesIO

import pandas as pd
import pytest
import wandb
from helpers.forked import Forked
from helpers.wandb_server import ENTITY, serving

from igap.config import TrackingConfig
from igap.errors import InputError
from igap.output.dashboard import site_maps, wandb_runs
from igap.output.tracking import places, sync, wandb_run, writing
from igap.storage import tables
from igap.storage.finished import read_run

ONLINE = TrackingConfig.model_validate({"mode": "online", "timeout": 300})
PASSING = [
    ("UpsertBucket", 500),
    *(("CreateArtifactFiles", kind) for kind in (429, "slow", "close")),
    *(("PUT artifact", kind) for kind in (500, "close")),
    *(("PUT run", kind) for kind in (429, "slow")),
    *(("file_stream", kind) for kind in ("close", 500)),
]
"""What fails for a moment, each once."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The server that W&B finds meanwhile, with a key, an empty home folder and an empty working folder."""
    home, work = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("work")
    wandb.teardown()
    with serving() as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", Forked)
        patch.setenv("WANDB_BASE_URL", server.address)
        patch.setenv("WANDB_API_KEY", "a" * 40)
        patch.setenv("HOME", str(home))
        patch.chdir(work)
        for what in ("GRAPHQL", "FILE_STREAM", "FILE_TRANSFER"):  # else seconds, that double
            patch.setenv(f"WANDB__{what}_RETRY_WAIT_MIN_SECONDS", "1")  # whole ones: less is none, and then the default
            patch.setenv(f"WANDB__{what}_RETRY_WAIT_MAX_SECONDS", "1")
        yield server
        wandb.teardown()
        assert list(home.iterdir()) == list(work.iterdir()) == []
        assert server.unknown == [], "all that the client asked was answered"


@pytest.fixture(scope="module")
def slim(slim, tmp_path_factory):
    """The run's folder in that of a sweep."""
    folder = shutil.copytree(slim, tmp_path_factory.mktemp("server") / "monday" / "3")
    (folder.parent / "sweep.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def online(server, slim):
    """The folder, once it was logged online, though requests of every kind failed for a moment."""
    server.faults += PASSING
    assert wandb_run.log(slim, ONLINE) == f"{server.address}/{ENTITY}/igap/runs/{key(slim)}"
    assert server.faults == []
    return slim


def key(folder):
    return json.loads((folder / "summary.json").read_text())["key"]


def another(folder, place, name):
    """A copy under another key: to W&B another run."""
    shutil.copytree(folder, place, ignore=shutil.ignore_patterns("wandb"))
    summary = json.loads((place / "summary.json").read_text())
    (place / "summary.json").write_text(json.dumps(summary | {"key": name}))
    return place


def assert_whole(server, folder):
    """The server has what is in the folder, to the last byte."""
    run, artifact = server.runs[key(folder)], server.artifacts[f"attributions-{key(folder)}"]
    assert run.state == "finished"
    config = {name: item["value"] for name, item in run.config.items() if name != "_wandb"}
    disk = json.loads((folder / "config.json").read_text())
    assert disk.pop("analyses") == {}, "nothing, which W&B leaves out"
    del disk["tracking"]
    assert config == {**disk, "key": key(folder)}
    summary = json.loads((folder / "summary.json").read_text())
    assert {name: run.summary.get(name) for name in summary} == summary
    (step,) = run.history.values()
    for path in (folder / "plots").glob("*.png"):
        assert run.files[step[f"plots/{path.stem}"]["path"]] == path.read_bytes()
        assert run.summary[f"plots/{path.stem}"] == step[f"plots/{path.stem}"]
    for path in folder.glob("*.csv"):
        table = json.loads(run.files[step[f"tables/{path.stem}"]["path"]])
        wanted = pd.read_csv(path, dtype=tables.TEXTS).astype(object)
        assert table["columns"] == list(wanted.columns)
        assert table["data"] == wanted.where(wanted.notna(), None).to_numpy().tolist()
        assert artifact.files[path.name] == path.read_bytes()
        (own,) = (
            one
            for name, one in server.artifacts.items()
            if name.startswith(f"run-{key(folder)}-") and one.files.keys() == {f"tables/{path.stem}.table.json"}
        )
        assert own.state == "COMMITTED"
    for name in ("attributions.safetensors", "config.json", "summary.json"):
        assert artifact.files[name] == (folder / name).read_bytes()
    digests = {name: base64.b64encode(hashlib.md5(data).digest()).decode() for name, data in artifact.files.items()}
    assert {name: entry["digest"] for name, entry in artifact.manifest["contents"].items()} == digests
    assert artifact.state == "COMMITTED"


def test_a_run_arrives_as_it_is_on_disk_whatever_fails_for_a_moment(server, online):
    assert_whole(server, online)
    told = server.runs[key(online)].told
    assert (told["displayName"], told["groupName"], told["jobType"]) == ("monday/3", "monday", "sweep")
    assert "baseline=corrupted" in told["tags"]
    assert places.find_logged_run(online).mode == "online"


def test_it_is_read_back_as_it_is_on_disk(server, online, capfd):
    runs, maps, troubles = wandb_runs.fetch_runs(f"{ENTITY}/igap")
    (run,) = (run for run in runs if key(online) in str(run.folder))
    disk, _ = read_run(online)
    assert not any(key(online) in trouble for trouble in troubles)
    assert str(run.folder) == f"{ENTITY}/igap/monday/3 ({key(online)})"
    assert run.summary == {name: value for name, value in disk.summary.items() if value is not None}
    assert run.settings == {name: value for name, value in disk.settings.items() if not name.startswith("tracking.")}
    wanted, _ = site_maps.read(online)
    found = maps[run.folder]["heads"]
    assert (found.ig, found.ap) == (wanted.ig, wanted.ap)
    assert "a" * 40 not in "".join(capfd.readouterr())


@pytest.mark.parametrize("kind", [403, "garbage"])
def test_a_server_that_gives_no_runs_is_one_line(server, online, kind):
    server.faults.append(("Runs", kind))
    with pytest.raises(InputError, match=rf"^--wandb: {ENTITY}/igap cannot be read \(.*\)\. Check its name") as raised:
        wandb_runs.fetch_runs(f"{ENTITY}/igap")
    assert "\n" not in str(raised.value)
    assert server.faults == []


def test_what_the_server_refuses_is_told_each_time_until_all_has_arrived(server, slim, tmp_path, capsys, caplog):
    """W&B's client calls a run finished or synced whichever part of it was refused."""
    folder = another(slim, tmp_path / "run", "refused")
    server.faults.append(("file_stream", 403))
    place = wandb_run.log(folder, ONLINE)
    assert places.find_logged_run(folder) == places.LoggedRun("offline", place)
    (line,) = (record.getMessage() for record in caplog.records if record.name == "igap")
    assert "W&B failed online (RuntimeError: the server did not take all of it: filestream: " in line
    assert "logged offline. Upload it later: igap sync" in line
    for refused, why in {"CreateArtifact": "sender: failed to log artifact", "PUT run": "file transfer: "}.items():
        server.faults.append((refused, 403))
        assert sync.sync_runs([folder]) == 1
        said = " ".join(capsys.readouterr().out.split())
        assert f"wandb sync failed: {why}" in said
        assert "1 of 1 runs wait on this machine" in said
    assert sync.sync_runs([folder], project="other") == 0
    assert "uploaded" in capsys.readouterr().out
    assert server.runs[key(folder)].project == "other"
    assert_whole(server, folder)
    asked = server.asked.copy()
    assert sync.sync_runs([folder]) == 0
    assert "uploaded already" in capsys.readouterr().out
    assert server.asked["UpsertBucket"] == asked["UpsertBucket"]


def test_an_offline_run_that_was_moved_arrives_whole(server, slim, tmp_path, capsys):
    first = another(slim, tmp_path / "first", "moved")
    wandb_run.log(first, TrackingConfig.model_validate({"mode": "offline"}))
    folder = first.rename(tmp_path / "moved")
    assert sync.sync_runs([folder]) == 0
    assert "logged from disk" in capsys.readouterr().out
    assert_whole(server, folder)
    assert sync.sync_runs([folder]) == 0
    assert "there already" in capsys.readouterr().out


def test_two_folders_with_one_key_are_told_of_before_the_last_of_them_stands_at_the_server(
    server, slim, tmp_path, capsys, monkeypatch
):
    for sweep in ("first", "second"):
        another(slim, tmp_path / sweep / "twice", "twice")
        (tmp_path / sweep / "sweep.json").write_text("{}")
    first, second = (tmp_path / sweep / "twice" for sweep in ("first", "second"))
    assert sync.sync_runs([tmp_path / "second", tmp_path / "first"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"igap: {second} and {first} have the key twice, and so are one run in the W&B project igap: that of {first}, "
        "which is sent last. Their numbers are equal."
    )
    assert server.runs["twice"].told["groupName"] == "first"
    assert sync.sync_runs([tmp_path]) == 0
    assert capsys.readouterr().err == "", "nothing is sent"
    monkeypatch.setattr(sync, "_sync", lambda *_, **__: sync._Outcome("not now"))
    sync.sync_runs([another(first, tmp_path / "third", "twice"), second])
    assert f"that of {tmp_path}/third, which is sent last" in capsys.readouterr().err


def test_a_search_arrives_with_a_step_a_trial(server, tmp_path):
    trials = pd.DataFrame(
        {"trial": [0, 1, 2], "ap": [0.1, float("nan"), -0.5], "counts": [True, False, True], "text": ["a", "b", "c"]}
    )
    summary = dict.fromkeys(("model", "head", "sign", "sampler"), "x") | {"key": "searched", "objective": "ap"}
    (tmp_path / "plots").mkdir()
    trials.to_csv(tmp_path / "trials.csv", index=False)
    (tmp_path / "config.json").write_text(json.dumps({"seed": 1, "tracking": {}}))
    (tmp_path / writing.SEARCH).write_text(json.dumps(summary))
    wandb_run.log(tmp_path, ONLINE)
    run = server.runs["searched"]
    steps = [{name: step[name] for name in ("trial", "ap", "best") if name in step} for step in run.history.values()]
    assert steps == [
        {"trial": 0, "ap": 0.1, "best": 0.1}, {"trial": 1}, {"trial": 2, "ap": -0.5, "best": 0.1}, {},
    ]  # fmt: skip
    assert sorted(run.history) == [0, 1, 2, 3]
    assert (run.told["jobType"], run.state) == ("search", "finished")
    read = pd.read_csv(BytesIO(server.artifacts["search-searched"].files["trials.csv"]))
    pd.testing.assert_frame_equal(read, trials)
