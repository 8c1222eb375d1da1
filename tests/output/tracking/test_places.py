"""All that W&B's offline run needs is in the run's own folder, and nothing in the home folder, whatever that is."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wandb.sdk.mailbox import MailboxClosedError
from wandb.sdk.wandb_run import Run

from igap.config import TrackingConfig
from igap.output.tracking import places, sync, wandb_run

OFFLINE = TrackingConfig.model_validate({"mode": "offline"})


@pytest.fixture(scope="module")
def logged(slim, tmp_path_factory):
    folder = shutil.copytree(slim, tmp_path_factory.mktemp("places") / "run").resolve()
    return folder, folder / wandb_run.log(folder, OFFLINE)


def homes(folder):
    (folder / "file").write_text("")
    (folder / "empty").mkdir()
    return {
        "empty": str(folder / "empty"),
        "missing": str(folder / "none"),
        "a file": str(folder / "file"),
        "not to be made": "/proc/none",
        "unset": None,
    }


@pytest.mark.parametrize("kind", ["empty", "missing", "a file", "not to be made", "unset"])
def test_whatever_the_home_folder_is_the_run_is_logged_and_nothing_left_there(
    slim, tmp_path, forgetful, monkeypatch, capfd, kind
):
    home = homes(tmp_path)[kind]
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    if home is None:
        monkeypatch.delenv("HOME")
    else:
        monkeypatch.setenv("HOME", home)
    folder = shutil.copytree(slim, tmp_path / "run")
    place = folder / wandb_run.log(folder, OFFLINE)
    assert places.is_complete(folder.resolve(), place.resolve())
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_relative_to(home or "/none")) == [
        name for name in ["empty", "file"] if home and Path(home).name == name
    ]
    assert capfd.readouterr().err == ""
    assert "WANDB_DATA_DIR" not in os.environ


def test_every_path_in_the_wandb_file_is_in_the_runs_folder(logged, forks):
    """The paths as W&B's own reader gives them."""
    folder, place = logged
    command = [sys.executable, "-m", "wandb", "leet", "inspect", str(place), "--json"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    read = [json.loads(line) for line in text.splitlines()]
    staged = {
        Path(entry["local_path"])
        for record in read
        for entry in record.get("artifact", {}).get("manifest", {}).get("contents", ())
    }
    own = {place / "files" / file["path"] for record in read for file in record.get("files", {}).get("files", ())}
    n_tables = len(list(folder.glob("*.csv")))
    assert len(staged) == 2 * n_tables + 3, "each table in an artifact of its own, and in that of the run"
    assert places.files_to_upload(place) == staged | own | set(place.glob("*.wandb"))
    assert all(path.is_file() and path.is_relative_to(place) for path in places.files_to_upload(place))
    assert staged == set((place / places.STAGED).glob("*")), "and no more copies than that"


def test_a_run_that_was_moved_or_lacks_a_file_is_logged_again_from_disk(logged, no_key, tmp_path, capsys):
    folder = shutil.copytree(logged[0], tmp_path / "moved", symlinks=True)
    place = folder / places.find_logged_run(folder).place
    assert not places.is_complete(folder, place), "W&B would take the artifact's files from the old place"
    assert sync.sync_runs([folder]) == 0
    assert "logged offline from disk" in capsys.readouterr().out
    place = folder / places.find_logged_run(folder).place
    assert places.is_complete(folder, place)
    for path in sorted(places.files_to_upload(place)):
        aside = path.rename(tmp_path / "aside")
        assert not places.is_complete(folder, place), path
        aside.rename(path)
    next((place / places.STAGED).glob("*")).unlink()
    assert sync.sync_runs([folder]) == 0
    assert "logged offline from disk" in capsys.readouterr().out
    assert sync.sync_runs([folder]) == 0
    assert "from disk" not in capsys.readouterr().out


def test_what_wandb_calls_synced_is_not_while_files_of_its_artifacts_wait(logged, no_key, tmp_path, capsys):
    """`wandb sync` says so whether or not it found them, and removes those that it found."""
    folder = shutil.copytree(logged[0], tmp_path / "moved", symlinks=True)
    (binary,) = (folder / places.find_logged_run(folder).place).glob("*.wandb")
    binary.with_suffix(".wandb.synced").touch()
    assert sync.sync_runs([folder]) == 0
    assert "logged offline from disk" in capsys.readouterr().out
    place = folder / places.find_logged_run(folder).place
    next(place.glob("*.wandb")).with_suffix(".wandb.synced").touch()
    shutil.rmtree(place / places.STAGED)
    assert sync.sync_runs([folder]) == 0
    assert "uploaded already" in capsys.readouterr().out


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_wandb_file_that_was_cut_or_changed_is_not_whole(logged, data):
    folder, place = logged
    (file,) = place.glob("*.wandb")
    good, needs = file.read_bytes(), places.files_to_upload(place)
    try:
        at = data.draw(st.integers(0, len(good) - 1), label="cut at")
        file.write_bytes(good[:at])
        assert not places.is_complete(folder, place)
        at = data.draw(st.integers(7, len(good) - 1), label="changed at")
        file.write_bytes(good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :])
        assert not places.is_complete(folder, place) or places.files_to_upload(place) == needs, (
            "the zeros at a block's end"
        )
    finally:
        file.write_bytes(good)


@pytest.mark.parametrize("when", ["log", "finish"])
def test_a_death_of_wandbs_process_is_one_exception_and_the_next_run_is_logged(
    slim, tmp_path, forgetful, monkeypatch, capfd, when
):
    folder = shutil.copytree(slim, tmp_path / "run")

    def dying(run, *arguments, **named):
        monkeypatch.undo()
        for process in psutil.Process().children():
            if "wandb-core" in process.name():
                process.kill()
                process.wait()
        return getattr(run, when)(*arguments, **named)

    monkeypatch.setattr(Run, when, dying)
    with pytest.raises((ConnectionError, MailboxClosedError)):
        wandb_run.log(folder, OFFLINE)
    assert places.find_logged_run(folder) is None
    shutil.rmtree(folder / "wandb")
    assert wandb_run.log(folder, OFFLINE) == places.find_logged_run(folder).place
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()])
def test_what_is_no_file_is_not_whole_and_is_not_waited_for(make, tmp_path):
    make(tmp_path / "run-abc.wandb")
    assert not places.is_complete(tmp_path, tmp_path)
