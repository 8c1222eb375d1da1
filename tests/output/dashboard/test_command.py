"""`igap compare` as it is typed: what it says, what it writes, what it refuses."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from helpers.finished_runs import make

from igap import cli
from igap.output.dashboard.command import compare_runs
from igap.output.dashboard.terminal import shorten


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Three runs in two folders, one of them deeper; the current folder is empty."""
    for name, steps, seed in (("sweep/0", 5, 1), ("sweep/1", 50, 2), ("single", 500, 3)):
        make(tmp_path / "runs" / name, settings={"ig.n_steps": steps}, summary={"gap": 10.0 * seed}, seed=seed)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "runs"


def test_folders_of_runs_and_runs_are_shown_and_written(runs, tmp_path, capsys):
    assert cli.main(["compare", str(runs / "sweep"), str(runs / "single"), "sort=-gap", "metrics=gap"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in captured.out.splitlines() if "│" in line]
    assert lines == [["single", "500", "30"], ["sweep/1", "50", "20"], ["sweep/0", "5", "10"]]
    assert captured.out.splitlines()[-2:] == ["written: compare.csv", "written: compare.html"]
    assert list(pd.read_csv("compare.csv")["ig.n_steps"]) == [500, 50, 5]
    assert {path.name for path in (tmp_path / "here").iterdir()} == {"compare.csv", "compare.html"}


def test_prompts_with_markup_are_shown_as_they_are(runs, capsys):
    make(runs / "odd", settings={"prompts.clean": "[red]a[/] | b"})
    compare_runs([runs], output=Path("out"))
    assert "[red]a[/] | b" in capsys.readouterr().out


def test_on_a_narrow_terminal_the_table_comes_in_parts_with_every_number_whole(runs, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    long = {f"made/number_{i}": -123450000000.0 - i for i in range(9)}
    make(runs / (70 * "x"), settings={"prompts.clean": 30 * "word "}, summary=long)
    compare_runs([runs], metrics=["gap", *long])
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= 80
    cells = [cell.strip() for line in lines if line.startswith("│") for cell in line.split("│")[1:-1]]
    assert cells.count("-1.2345e+11") == len(long)
    assert cells.count("sweep/0") > 1, "each part names the runs"


def test_what_cannot_be_read_is_a_line_on_stderr_and_on_the_page(runs, tmp_path, capsys):
    (runs / "sweep" / "0" / "summary.json").write_text("no JSON")
    (runs / "sweep" / "1" / "heads.csv").unlink()
    compare_runs([runs], output=Path("out"))
    captured = capsys.readouterr()
    first, second = captured.err.splitlines()
    assert first.startswith(f"igap: {runs}/sweep/0: left out: summary.json cannot be read (")
    assert second == f"igap: {runs}/sweep/1: its heads cannot be read (heads.csv: No such file or directory)."
    assert "2 finished runs" in captured.out
    page = (tmp_path / "here" / "out" / "compare.html").read_text()
    assert "sweep/0: left out: summary.json cannot be read" in page


def test_a_run_of_another_schema_is_shown_without_its_settings(runs, capsys):
    make(runs / "later", settings={"ig.n_steps": 7}, summary={"schema": 2, "gap": 77.5})
    compare_runs([runs], metrics=["gap"])
    captured = capsys.readouterr()
    assert "its schema is 2, this igap knows 1" in captured.err
    (line,) = [line for line in captured.out.splitlines() if "later" in line]
    assert [cell.strip() for cell in line.split("│")[1:-1]] == ["later", "-", "77.5"]


def test_one_run_is_shown_and_said_to_be_alone(runs, capsys):
    compare_runs([runs / "single"])
    assert "One run: there is no other to set it beside." in capsys.readouterr().out


def test_a_setting_may_be_written_as_a_key_or_as_an_option(runs, capsys):
    tables = []
    for asked in (["sort=-gap", "metrics=gap"], ["--sort=-gap", "--metrics", "gap"]):
        assert cli.main(["compare", str(runs), *asked]) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], r"^igap: folder: got nowhere, which is no folder"),
        (["."], r"^igap: folder: got \., without a finished run in it"),
        (["RUNS", "sort=gapp"], r"^igap: sort: got 'gapp', which is no column\. Did you mean gap"),
        (["RUNS", "metrics=gap,heads/person"], r"^igap: metrics: got 'heads/person', .* Did you mean heads/pearson\?"),
        (
            ["RUNS", "srot=gap"],
            r"^igap: option: got 'srot=gap', which igap compare does not have, wanted DIR or one of sort, "
            r"metrics, output, --wandb, --help\. Did you mean sort\? igap compare --help shows them\.$",
        ),
        (["RUNS", "--wand=a/b"], r"^igap: option: got '--wand', .* Did you mean --wandb\?"),
        (["RUNS", "sort="], r"^igap: sort: got nothing, wanted a value"),
        (["RUNS", "--wandb"], r"^igap: --wandb: got nothing"),
        (["--wandb", "project"], r"^igap: --wandb: got 'project', wanted ENTITY/PROJECT"),
        (["sort=gap"], r"^igap: folder: got none, wanted a run's folder"),
        (
            ["RUNS", "output=RUNS/single"],
            r"^igap: output: got .*/single, in the run's folder .*/single, wanted a folder of",
        ),
        (["RUNS", "output=RUNS/single/new"], r"^igap: output: got .*/new, in the run's folder .*/single, wanted"),
        (["RUNS", "output=RUNS/single/heads.csv"], r"^igap: output: got .*, in the run's folder"),
        (["RUNS", "output=file"], r"^igap: output: got file, wanted a folder that can be written to"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(arguments, message, runs, tmp_path, capsys):
    (tmp_path / "here" / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["compare", *(argument.replace("RUNS", str(runs)) for argument in arguments)]) == 2
    out, err = capsys.readouterr()
    assert re.search(message, err)
    assert err.count("\n") == 1
    assert out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_in_which_no_run_can_be_read_is_refused_after_saying_why(tmp_path, capsys):
    shutil.rmtree(tmp_path / "bad", ignore_errors=True)
    make(tmp_path / "bad")
    (tmp_path / "bad" / "summary.json").write_text("[")
    assert cli.main(["compare", str(tmp_path / "bad"), f"output={tmp_path}/out"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "left out: summary.json cannot be read" in first
    assert second.startswith("igap: folder: got no run that can be read")


def test_a_folder_with_an_equals_sign_in_its_name_is_a_folder(tmp_path, capsys):
    make(tmp_path / "lr=3")
    assert cli.main(["compare", str(tmp_path / "lr=3"), f"output={tmp_path}/out"]) == 0


@pytest.mark.parametrize("arguments", [["--help"], ["RUNS", "output=out"]])
def test_neither_help_nor_a_table_imports_anything_heavy(arguments, runs):
    code = (
        "import sys; from igap import cli; assert cli.main(['compare', *sys.argv[1:]]) == 0; "
        "heavy = {'torch', 'pandas', 'numpy', 'wandb', 'matplotlib', 'hydra', 'rich'} & set(sys.modules); "
        "assert heavy <= ({'rich'} if 'output=out' in sys.argv else set()), heavy"
    )
    command_line = [sys.executable, "-c", code, *(argument.replace("RUNS", str(runs)) for argument in arguments)]
    done = subprocess.run(command_line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_long_texts_are_cut_to_where_they_differ():
    long = "After John and Mary went to the store, {} gave a bottle of milk to"
    assert shorten([long.format("Mary"), long.format("Anna")]) == [
        "…Mary gave a bottle of …",
        "…Anna gave a bottle of …",
    ]
    assert shorten(["/models/tiny/one", "/models/tiny/another"]) == ["/models/tiny/one", "/models/tiny/another"]
    assert shorten(["/a/long/folder/of/models/one", "/a/long/folder/of/models/two"]) == ["…one", "…two"]
    assert shorten(["gpt2", "/a/long/folder/of/models/mine"]) == ["gpt2", "…/mine"]
    assert shorten(["/a/long/folder/of/models/1/b", "/a/long/folder/of/models/2/b"]) == ["…1/b", "…2/b"]
    late = ["The quick brown fox jumps over it A", "The quick brown fox jumps over it B", "Zebra"]
    assert shorten(late) == late, "cut, two would be the same"
    assert shorten([30 * "x", "y"]) == [23 * "x" + "…", "y"]
    assert max(map(len, shorten([f"{word} {60 * 'z'}" for word in "ab"]))) == 24


def test_on_a_terminal_a_long_prompt_takes_one_line(runs, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    for word in ("Mary", "Anna"):
        make(runs / word, settings={"prompts.clean": f"After John and {word} went to the store, they gave a bottle to"})
    compare_runs([runs], metrics=["gap"], output=Path("out"))
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert len([line for line in lines if line.startswith("│")]) == 5, "a line a run"
    assert max(map(len, lines[:12])) <= 80
