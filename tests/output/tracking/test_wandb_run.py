"""W&B's offline run, read back with W&B's own reader, says what the folder says."""

import gc
import json
import shutil
import subprocess
import sys

import pytest

from igap import cli
from igap.output.tracking import places, wandb_run

pytestmark = pytest.mark.usefixtures("forks")


@pytest.fixture(scope="module")
def offline(result, written, tmp_path_factory):
    """A run's folder after its W&B run was written into it, and what the reader makes of that."""
    folder = shutil.copytree(written, tmp_path_factory.mktemp("tracked") / "run-0")
    return folder, folder / wandb_run.log(folder, result.config.tracking)


def inspect(place, *options):
    command = [sys.executable, "-m", "wandb", "leet", "inspect", place, "--json", *options]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_summary_read_back_is_summary_json(offline):
    folder, place = offline
    read = json.loads(inspect(place, "--summary"))
    summary = json.loads((folder / "summary.json").read_text())
    for name, value in summary.items():
        if isinstance(value, float):
            value = pytest.approx(value, rel=1e-12)
        assert read["summary"].get(name, "absent") == ("absent" if value is None else value), name
    assert read["name"] == "run-0"
    assert read["state"] == "finished"


def test_the_config_read_back_is_the_runs(offline, result):
    config = json.loads(inspect(offline[1], "--summary"))["config"]
    assert config["key"] == result.key
    for group in ("model", "prompts", "baseline", "ig", "ablation"):
        assert config[group] == result.config.model_dump(mode="json")[group]


def test_tables_plots_and_the_artifact_are_in_the_run(offline):
    folder, place = offline
    records = inspect(place)
    for path in (folder / "plots").glob("*.png"):
        assert f"plots/{path.stem}" in records
    for path in folder.glob("*.csv"):
        assert f"tables/{path.stem}" in records
    for expected in ("attributions.safetensors", "summary.json"):
        assert expected in records


def test_a_heads_name_is_a_text_in_the_tables(offline):
    """As a number, 0.10 would be 0.1."""
    tables = {
        name: json.loads(next(offline[1].rglob(f"tables/{name}_*.table.json")).read_text())
        for name in ("heads", "interactions")
    }
    for table in tables.values():
        names = [row[table["columns"].index("name")] for row in table["data"]]
        assert names
        assert all(isinstance(name, str) for name in names)
    heads = tables["heads"]
    assert [row[heads["columns"].index("name")] for row in heads["data"]][:2] == ["0.0", "0.1"]


def test_jobs_of_a_sweep_are_one_group_and_carry_its_name(result, slim, tmp_path):
    folder = shutil.copytree(slim, tmp_path / "monday" / "3")
    (folder.parent / "sweep.json").write_text("{}")
    place = folder / wandb_run.log(folder, result.config.tracking)
    assert json.loads(inspect(place, "--summary"))["name"] == "monday/3"
    (line,) = (line for line in inspect(place).splitlines() if '"type":"run"' in line)
    assert '"run_group":"monday"' in line
    assert '"job_type":"sweep"' in line
    assert "baseline=corrupted" in line


def test_the_id_is_the_key_and_a_folder_holds_one_offline_run_of_it(offline, result, tmp_path):
    folder = shutil.copytree(offline[0], tmp_path / "again", symlinks=True)
    (folder / "wandb" / "offline-run-20200101_000000-another").mkdir()
    first = json.loads((folder / places.MARK).read_text())["place"]
    (folder / first / "lost").write_text("")
    second = wandb_run.log(folder, result.config.tracking)
    assert second.endswith(f"-{result.key}")
    names = sorted(path.name for path in (folder / "wandb").glob("offline-run-*"))
    assert names == ["offline-run-20200101_000000-another", second.rpartition("/")[2]]
    assert not (folder / second / "lost").exists()


def test_what_was_cut_off_while_it_was_logged_is_not_trusted(offline, tmp_path):
    folder = shutil.copytree(offline[0], tmp_path / "cut", symlinks=True)
    assert places.find_logged_run(folder).mode == "offline"
    mark = (folder / places.MARK).read_text()
    for text in ("", "{", "[]", '{"mode": "offline"}', '{"mode": "offline", "place": "wandb/none"}'):
        (folder / places.MARK).write_text(text)
        assert places.find_logged_run(folder) is None
    (folder / places.MARK).write_text(mark)
    assert places.find_logged_run(folder) is not None
    (folder / places.MARK).unlink()
    assert places.find_logged_run(folder) is None


def test_a_second_log_that_fails_leaves_nothing_to_trust(offline, result, tmp_path):
    folder = shutil.copytree(offline[0], tmp_path / "twice", symlinks=True)
    (folder / "plots" / "heads.png").write_bytes(b"not a picture")
    with pytest.raises(OSError, match="cannot identify image"):
        wandb_run.log(folder, result.config.tracking)
    assert not (folder / places.MARK).exists()
    gc.collect()  # W&B's half-made media, whose finalizers would run in a test that takes wandb away


def test_several_pairs_bring_their_table_and_no_single_pairs_text(many, many_written, tmp_path):
    folder = shutil.copytree(many_written, tmp_path / "many")
    place = folder / wandb_run.log(folder, many.config.tracking)
    records = inspect(place)
    assert "tables/pairs" in records
    assert '"pairs.csv"' in records
    read = json.loads(inspect(place, "--summary"))
    assert (read["summary"]["n_pairs"], read["config"]["key"]) == (5, many.key)
    assert read["config"]["prompts"]["clean"] is None
    assert read["config"]["prompts"]["file"] == many.config.prompts.file


def test_online_without_a_key_is_refused_before_the_run_and_asks_for_nothing(no_key, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "tracking=online"]) == 2
    assert capsys.readouterr().err == (
        "igap: tracking: got online, but W&B has no key for this machine. Run wandb login, set WANDB_API_KEY, or use "
        "tracking=offline.\n"
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", [["run", "tracking=online"], ["workspace", "me/igap", "--upload"]])
def test_a_key_that_wandb_does_not_take_is_one_line(command, forgetful, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "short")
    assert cli.main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "W&B takes no key of this machine (WANDB_API_KEY invalid: " in line


def test_disabled_tracking_does_not_even_import_wandb(result, written, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracking_off = result.config.tracking.model_copy(update={"mode": "disabled"})
    assert wandb_run.log(written, tracking_off) is None


def test_a_failure_of_wandb_is_a_warning_and_costs_no_result(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it raises
    quick = ["ig.n_steps=2", "explain=false", "curves.components=none", "plots=none"]
    assert cli.main(["run", "model=hf", f"model.name={checkpoint('gpt2')}", "prompts.min_gap=0", *quick]) == 0
    captured = capsys.readouterr()
    assert "igap: W&B did not take the run (" in captured.err
    assert "everything is in " in captured.err
    assert "How far IG and AP agree" in captured.out, "the numbers are shown whatever W&B does"
    assert len(list(tmp_path.glob("runs/*/summary.json"))) == 1
