"""Runs read back from disk: what can be read is, and what cannot is said."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from igap.errors import InputError
from igap.storage import finished


def test_a_run_comes_back_with_its_numbers_and_settings(result, written):
    (run,), troubles = finished.find_runs([written])
    assert troubles == []
    assert run.summary == json.loads((written / "summary.json").read_text())
    assert run.key == result.key
    assert run.settings["ig.n_steps"] == result.config.ig.n_steps
    assert run.settings["baseline.kind"] == "corrupted"
    assert run.settings["ablation.also"] == ()
    assert {"model", "ig"} & set(run.settings) == set()


def test_runs_are_found_once_and_those_of_a_study_belong_to_it(written, tmp_path):
    for place in ("b", "a/deep", "b/second-pair", "b/plots", ".stale/c"):
        shutil.copytree(written, tmp_path / place, dirs_exist_ok=True)
    runs, _ = finished.find_runs([tmp_path / "b", tmp_path, tmp_path / "a" / ".." / "b"])
    assert [str(run.folder.relative_to(tmp_path)) for run in runs] == ["b", "a/deep"]


def test_what_cannot_be_read_is_said_and_the_rest_is_read(written, tmp_path):
    for name in ("good", "text", "list", "old", "unlisted", "unset"):
        shutil.copytree(written, tmp_path / name)
    (tmp_path / "text" / "summary.json").write_text("gap: 3")
    (tmp_path / "list" / "summary.json").write_text("[1]")
    summary = json.loads((written / "summary.json").read_text())
    (tmp_path / "old" / "summary.json").write_text(json.dumps(summary | {"schema": 99}))
    (tmp_path / "unlisted" / "config.json").write_text("[]")
    (tmp_path / "unset" / "config.json").write_text("{")
    runs, troubles = finished.find_runs([tmp_path])
    with_settings = {run.folder.name: bool(run.settings) for run in runs}
    assert with_settings == {"good": True, "old": False, "unlisted": False, "unset": False}
    assert all(run.summary["gap"] == summary["gap"] for run in runs)
    said = [line.removeprefix(f"{tmp_path}/").partition(" (")[0] for line in troubles]
    assert said == [
        "list: left out: summary.json cannot be read",
        "old: its schema is 99, this igap knows 1: its numbers are shown under their names, its settings are not.",
        "text: left out: summary.json cannot be read",
        "unlisted: its settings cannot be read",
        "unset: its settings cannot be read",
    ]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({f"n{i}": 0 for i in range(finished._MOST_NUMBERS)}, r"it holds 10,\d\d\d names, more than 10,000"),
        ({"key": "../other"}, "key holds '../other', wanted letters and digits"),
        ({"gap": [1]}, "gap holds list, wanted a number, a text or null"),
    ],
)
def test_a_summary_that_no_run_writes_is_left_out(tmp_path, written, more, reason):
    summary = json.loads((written / "summary.json").read_text())
    (tmp_path / "summary.json").write_text(json.dumps(summary | more))
    run, trouble = finished.read_run(tmp_path)
    assert run is None
    assert re.search(f"left out: summary.json cannot be read \\({reason}\\)", trouble)


def test_settings_beyond_any_runs_are_not_shown_and_a_name_that_is_no_text_is_left_out(tmp_path, written):
    shutil.copytree(written, tmp_path / "wide")
    (tmp_path / "wide" / "config.json").write_text(json.dumps({f"k{i}": i for i in range(1001)}))
    os.mkdir(os.fsencode(tmp_path) + b"/\xff")
    (run,), troubles = finished.find_runs([tmp_path])
    assert (run.folder.name, run.settings) == ("wide", {})
    assert troubles == [
        f"{tmp_path}/\\udcff: left out: its name is no UTF-8 text. Rename it.",
        f"{tmp_path}/wide: its settings cannot be read (config.json: it holds 1,001 settings, more than 1,000).",
    ]


def test_a_folder_that_cannot_be_read_is_said_and_links_end(written, tmp_path, monkeypatch):
    shutil.copytree(written, tmp_path / "deep" / "good")
    (tmp_path / "closed").mkdir()
    for name in ("up", "again"):
        (tmp_path / "deep" / name).symlink_to("..")
    listed = Path.iterdir

    def iterdir(path):
        if path.name == "closed":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    runs, troubles = finished.find_runs([tmp_path])
    assert [run.folder.name for run in runs] == ["good"]
    assert troubles == [f"{tmp_path}/closed: left out: it cannot be read (Permission denied)."]


def test_a_folder_without_runs_beside_one_that_has_some_is_named(written, tmp_path):
    shutil.copytree(written, tmp_path / "runs" / "good")
    (tmp_path / "docs").mkdir()
    runs, troubles = finished.find_runs([tmp_path / "docs", tmp_path / "runs"])
    assert [run.folder.name for run in runs] == ["good"]
    assert troubles == [f"{tmp_path}/docs: left out: no finished run in it (no summary.json)."]


def test_no_folder_and_no_run_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"folder: got .*/no, which is no folder"):
        finished.find_runs([tmp_path / "no"])
    with pytest.raises(InputError, match=r"without a finished run in it \(no summary\.json\)"):
        finished.find_runs([tmp_path])
