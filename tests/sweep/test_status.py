"""igap status: what it says beside the table of jobs."""

import json
import shutil

import pytest

from igap.output.tracking import places
from igap.sweep.folder import PlannedJob, SweepFolder
from igap.sweep.status import show_status

KEYS = ("a" * 12, "b" * 12, "c" * 12, "d" * 12)


@pytest.fixture
def sweep(written, tmp_path):
    """A sweep of three finished runs and one that is planned."""
    sweep = SweepFolder(tmp_path / "s[b]")
    sweep.write_plan([PlannedJob(key, ()) for key in KEYS])
    for key in KEYS[:3]:
        folder = shutil.copytree(written, sweep.run(key))
        summary = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps(summary | {"key": key}))
    return sweep


def mark(folder, mode, place):
    (folder / places.MARK).parent.mkdir()
    (folder / places.MARK).write_text(json.dumps({"mode": mode, "place": place}))


def test_finished_runs_that_wandb_does_not_have_are_counted(sweep, capsys):
    online, uploaded, lost = map(sweep.run, KEYS[:3])
    mark(online, "online", "https://wandb.example/run")
    mark(uploaded, "offline", "wandb/offline-run-1")
    (uploaded / "wandb" / "offline-run-1").mkdir()
    assert show_status([sweep.path]) == 0
    said = "2 of 3 finished runs wait on this machine for W&B: igap sync "
    assert said + str(sweep.path) in capsys.readouterr().out.replace("\n", "")
    (uploaded / "wandb" / "offline-run-1" / "run.wandb.synced").touch()
    show_status([sweep.path])
    assert said.replace("2", "1", 1) in capsys.readouterr().out
    config = json.loads((lost / "config.json").read_text())
    config["tracking"]["mode"] = "disabled"
    (lost / "config.json").write_text(json.dumps(config))
    show_status([sweep.path])
    assert "wait on this machine" not in capsys.readouterr().out
