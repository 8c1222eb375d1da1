"""Results of which anything may be damaged: shown, or left out with a line; what is whole is shown beside it."""

import csv
import io
import json
import os
import re

import pytest
from helpers.damaged_results import damaged_runs
from helpers.finished_runs import make

from igap.errors import InputError
from igap.output.dashboard import command as compare
from igap.output.tracking import places, sync, verify
from igap.storage import finished, untrusted, versions
from igap.storage.cache import ResultCache, inputs_of
from igap.sweep import cache_command, status
from igap.sweep.folder import PlannedJob, SweepFolder

KEY = "0123456789ab"
NO_RUN = ("a file", "a link to itself", "a link to nothing", "a named pipe", "empty", "a link to what is above")
"""Damages to a run's folder after which there is none."""


SHOWN = ("summary.json: ", "config.json: prompts", "config.json: all", "heads.csv: ig", "heads.csv: layer")
"""Beginnings of the damages whose runs are set side by side: a text, a number and a cell of each kind."""


@pytest.fixture
def run(tmp_path):
    """A finished run with what a summary and a config have: numbers, texts, null, lists, names in names."""
    settings = {
        "ablation.also": ["0.1"],
        "prompts.clean": "John gave",
        "tracking.project": "igap",
        "tracking.group": None,
        "tracking.timeout": 5.0,
    }
    summary = {"key": KEY, "heads/slope": None, "heads/slope/reason": "one value", "version/torch": "1"}
    return make(tmp_path / "source", settings=settings, summary=summary)


def lines_of(text):
    """The lines of what a command has said; none holds what would move a cursor or turn text."""
    assert all(line.isprintable() for line in text.split("\n"))
    return text.splitlines()


def told(lines, place):
    return [line for line in lines if untrusted.printable(place) in line]


def test_every_damaged_run_is_shown_or_left_out_with_one_line_and_the_others_are_shown(run, tmp_path):
    good, damaged = make(tmp_path / "runs" / "good", seed=1), tmp_path / "runs"
    copies = [*damaged_runs(run, damaged)]
    runs, troubles = finished.find_runs([damaged])
    folders = {str(one.folder) for one in runs}
    assert str(good) in folders
    for description, copy in copies:
        what = description.removeprefix("the folder: ")
        shown = [folder for folder in folders if folder == str(copy)]
        lines = [line for line in troubles if line.startswith(f"{untrusted.printable(copy)}: ")]
        lines += [line for line in troubles if line.startswith(f"{untrusted.printable(copy)}/")]
        expected_run = what not in NO_RUN and description != "summary.json: missing" and "600 deep" not in what
        assert len(lines) <= 1, description
        assert bool(shown or lines) == (expected_run or ("a link to" in what and "above" not in what)), description
        assert shown or not lines or "left out" in lines[0], description


def test_no_hostile_text_number_or_name_breaks_the_table_the_csv_or_the_page(run, tmp_path, capsys):
    copies = [copy for what, copy in damaged_runs(run, tmp_path / "runs") if what.startswith(SHOWN)]
    assert compare.compare_runs(copies, output=tmp_path / "out", sort="-gap")
    said = capsys.readouterr()
    assert max(map(len, lines_of(said.err))) < 600
    rows = [line for line in lines_of(said.out) if line.startswith("│")]
    text = (tmp_path / "out" / "compare.csv").read_bytes().decode()
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text), (
        "what some readers take for the end of a line or a file"
    )
    table = [*csv.DictReader(io.StringIO(text, newline=""))]
    assert len(table) == len(rows) > 100
    assert {row["folder"] for row in table} <= {str(copy) for copy in copies}
    page = (tmp_path / "out" / "compare.html").read_text()
    assert page.count("</script>") == 2
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert len(data["runs"]) == len(table)


def test_every_damaged_sweep_is_shown_or_left_out_with_one_line_and_the_others_are_shown(tmp_path, capsys):
    sweep = SweepFolder(tmp_path / "source")
    sweep.write_plan([PlannedJob(KEY, ("ig.n_steps=5",)), PlannedJob("failed", ("ig.n_steps=6",))])
    sweep.fail("failed", "no memory", "story")
    (sweep.path / ".locks").mkdir()
    (sweep.path / ".locks" / f"{KEY}.json").write_text(json.dumps({"host": "here", "pid": 1, "since": "now"}))
    place = tmp_path / "sweeps"
    copies = [*damaged_runs(sweep.path, place)]
    SweepFolder(place / "good").write_plan([PlannedJob("good", ())])
    assert status.show_status([place]) == 1
    said = capsys.readouterr()
    shown = "".join(lines_of(said.out))
    troubles = lines_of(said.err)
    assert "│ good " in shown
    for description, copy in copies:
        lines = told(troubles, copy)
        assert len(lines) <= 1, description
        if description.startswith("sweep.json: ") and "missing" not in description and "line ends" not in description:
            name = str(copy)
            harmless = lines == [] and name in shown.replace("\n", "")
            assert harmless or "left out" in lines[0], description
    assert max(map(len, troubles)) < 600


@pytest.mark.parametrize("only", [False, True])
def test_status_of_a_broken_sweep_alone_is_refused(tmp_path, only, capsys):
    SweepFolder(tmp_path / "broken").write_plan([PlannedJob(KEY, ())])
    (tmp_path / "broken" / "sweep.json").write_text('{"schema": 1, "jobs": 5}')
    if only:
        with pytest.raises(InputError, match=r"sweep\.json: left out: its jobs are no list of keys and overrides\."):
            status.show_status([tmp_path])
        return
    SweepFolder(tmp_path / "good").write_plan([PlannedJob(KEY, ())])
    assert status.show_status([tmp_path]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_job_whose_lock_is_no_file_is_held_by_nobody(tmp_path):
    sweep = SweepFolder(tmp_path)
    (tmp_path / ".locks" / f"{KEY}.lock").mkdir(parents=True)
    assert sweep.status(KEY).state == "planned"


def test_every_damaged_file_of_a_store_is_told_and_removed(tmp_path, capsys):
    import torch

    def kept(folder, site):
        common = {"versions": dict(versions.versions())}
        ResultCache(folder / ".store", common).get_or_compute(
            "ap", {"site": site}, lambda: {"effect": torch.arange(6.0)}
        )

    kept(tmp_path / "source", "heads")
    copies = [*damaged_runs(tmp_path / "source", tmp_path / "sweeps")]
    kept(tmp_path / "sweeps" / "good", "neurons")
    broken = [file for _, copy in copies for file in copy.glob(".store/*.safetensors") if not is_sound(file)]
    full = [file for file in broken if file.is_dir() and not file.is_symlink() and any(file.iterdir())]
    assert len(broken) > 25
    assert cache_command.show_store([tmp_path / "sweeps"]) == 1
    assert "removed" not in " ".join(lines_of(capsys.readouterr().out))
    assert cache_command.show_store([tmp_path / "sweeps"], prune="broken") == 1, "a folder that holds something stays"
    said = " ".join(lines_of(capsys.readouterr().out))
    assert [file for file in broken if os.path.lexists(file)] == full
    assert said.count("cannot be removed") == len(full) == 1
    assert "ap neurons" in said
    assert cache_command.show_store([tmp_path / "sweeps" / "good"], prune="broken") == 0
    assert [*(tmp_path / "sweeps" / "good" / ".store").glob("*.safetensors")]


def is_sound(file):
    try:
        return bool(inputs_of(file))
    except ValueError:
        return False


MARKS = {"mode": "offline", "place": "wandb/offline-run-1-x"}


def test_a_damaged_mark_of_wandb_leads_nowhere_outside_the_run(tmp_path):
    mark = tmp_path / "source" / places.MARK
    (mark.parent / "offline-run-1-x").mkdir(parents=True)
    mark.write_text(json.dumps(MARKS))
    assert places.find_logged_run(tmp_path / "source") == places.LoggedRun("offline", MARKS["place"])
    for description, copy in damaged_runs(tmp_path / "source", tmp_path / "copies"):
        found = places.find_logged_run(copy)
        assert found is None or found.mode == "online" or found.place == MARKS["place"], description


@pytest.mark.parametrize("name", ["heads.csv", "attributions.safetensors", "plots/a.png"])
def test_wandb_is_given_no_pipe(run, name, no_key):
    path = run / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    read = finished.read_run(run)[0]
    end = sync._sync(read, {}, online=False)
    assert end.failed
    assert re.search(rf"{name}: it is a named pipe, no file", end.message)


def test_settings_that_no_tracking_takes_fail_that_run_alone(run):
    config = json.loads((run / "config.json").read_text())
    for value in (5, [1], {"a": 1}, True):
        (run / "config.json").write_text(json.dumps({**config, "tracking": {"project": value, "timeout": "x"}}))
        end = sync._sync(finished.read_run(run)[0], {}, online=False)
        assert end.failed
        assert end.message == "left out: config.json: invalid tracking.project, tracking.timeout"


def test_an_offline_run_that_is_a_pipe_is_unreadable_and_not_waited_for(run):
    place = run / "wandb" / "offline-run-1-x"
    place.mkdir(parents=True)
    os.mkfifo(place / "run-x.wandb")
    (run / places.MARK).write_text(json.dumps(MARKS))
    assert verify._compare(finished.read_run(run)[0], places.find_logged_run(run)) == (
        True,
        "unreadable: it is a named pipe, no file",
    )
