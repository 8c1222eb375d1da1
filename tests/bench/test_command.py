"""`igap bench`: the table, the files, the pictures, and what is refused."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from igap import cli, run_bench
from igap.attribution.estimators import estimators
from igap.bench.plots import effects_bars

FEW = ["bench", "circuits=or,always_on", "output=out"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def test_the_table_the_files_and_the_pictures(place, capsys):
    assert cli.main(FEW) == 0
    printed, _ = capsys.readouterr()
    rows = {
        cells[0]: cells[1:] for line in printed.splitlines() if len(cells := [c.strip() for c in line.split("│")[1:-1]])
    }
    missed = [name in ("ap", "atp", "atp_star", "relp", "gim") for name in estimators()]
    assert rows["or"][:-1] == ["0.79 -1" if i == 1 else "0.57 -2" if miss else "1.00" for i, miss in enumerate(missed)]
    assert rows["always_on"] == ["1.00", "1.00 ±", *["1.00"] * (len(missed) - 2), "ig_zero turns 0.1"]
    assert printed.splitlines()[-1] == "bench.csv, bench.json and 2 pictures in out"
    assert sorted(path.name for path in (place / "out").iterdir()) == [
        "always_on.png",
        "bench.csv",
        "bench.json",
        "or.png",
    ]
    with (place / "out" / "bench.csv").open() as file:
        marks = {(row["circuit"], row["estimator"], row["site"]): row for row in csv.DictReader(file)}
    assert len(marks) == 2 * len(estimators()) * 3
    page = (Path(__file__).parents[2] / "docs" / "reference" / "files.md").read_text()
    (row,) = re.findall(r"^\| `bench.csv`(.*)$", page, flags=re.MULTILINE)
    assert list(marks["or", "ap", "all"]) == [
        name for name in re.findall(r"`(\w+)`", row) if name not in ("all", "heads", "neurons")
    ]
    assert marks["or", "ap", "all"]["missed"] == "0.0 0.1"
    assert marks["or", "atp_star", "heads"]["n_wrong_sign"] == ""
    record = json.loads((place / "out" / "bench.json").read_text())
    assert record["or"]["matters"] == ["0.0", "0.1", "L1.N0"]
    assert record["or"]["truth"]["denoising"]["0.0"] == 1
    assert record["or"]["estimators"]["ap"]["effects"]["L1.N0"] == pytest.approx(-1)
    assert record["always_on"]["estimators"]["ap"]["marks"]["neurons"]["roc_area"] is None


def test_the_same_command_writes_the_same_bytes_and_no_picture_where_none_is_wanted(place, capsys):
    for folder, circuits in (("a", "and"), ("b", "[and]")):  # a list as other keys take it
        assert cli.main(["bench", f"circuits={circuits}", f"output={folder}", "plots=none"]) == 0
    for name in ("bench.csv", "bench.json"):
        assert (place / "a" / name).read_bytes() == (place / "b" / name).read_bytes()
    assert not list(place.glob("*/*.png"))


def test_the_list_says_what_each_computes(place, capsys):
    assert cli.main(["bench", "list"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "xor" in printed
    assert "Two neurons compute the XOR of two heads." in printed
    assert not list(place.iterdir())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["circuits=orr"], "circuits: got 'orr', wanted names of linear, "),
        (["circuits=,"], "circuits: got none, wanted names of linear, "),
        (["circuits="], "circuits: got nothing, wanted a value."),
        (["plots=some"], "plots: got 'some', wanted one of all, none."),
        (["lists"], "command: got 'lists', wanted one of circuits, list, run. Did you mean list?"),
        (["circuit=or"], "option: got 'circuit=or', which igap bench circuits does not have"),
        (["output=file", "circuits=or"], "output: got file, wanted a folder that can be written to"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_a_model_is_made(place, capsys, arguments, line):
    (place / "file").write_text("")
    assert cli.main(["bench", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"igap: {line}")
    assert err.count("\n") == 1


def test_a_picture_has_a_bar_of_the_truth_and_of_every_estimator_for_each_component(place):
    bench = run_bench(["cancellation"])
    (ax,) = effects_bars(bench, "cancellation").axes
    shown = [label.get_text() for label in ax.get_xticklabels()]
    assert shown[:3] == ["0.0", "0.1", "L1.N0"]
    bars = {each.get_label(): [bar.get_height() for bar in each] for each in ax.containers}
    assert list(bars) == ["truth", *(f"{name} (no sign)" if name == "atp_star" else name for name in estimators())]
    assert bars["truth"][:3] == pytest.approx([-1.5, 9, -1])
    assert bars["ig"][:2] == pytest.approx([-10, 9], abs=1e-5)
    assert np.all(np.array(bars["atp_star (no sign)"]) >= 0)


def test_the_exam_of_a_run_has_a_row_an_estimator_and_its_files_in_the_runs_output(place, capsys):
    assert cli.main(["bench", "run", "sites=heads", "output=mine", "--top", "4"]) == 0
    printed, _ = capsys.readouterr()
    assert "ioi-mini: 32 components, one prompt pair." in " ".join(printed.split())
    assert printed.splitlines()[-1] == "bench.csv, bench.json and ioi-mini.png in mine/bench"
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if "│" in line]
    assert [row[:2] for row in cells] == [["all", name] for name in estimators()]
    assert cells[2][2:7] == ["1.000", "1.00", "0 of 4", "0", "0 (0.0)"]
    record = json.loads((place / "mine" / "bench" / "bench.json").read_text())["ioi-mini"]
    assert len(record["matters"]) == 4
    assert (place / "mine" / "bench" / "ioi-mini.png").stat().st_size > 10_000


def test_the_exam_of_a_run_says_which_methods_it_has_not(place, capsys):
    assert cli.main(["bench", "run", "sites=resid_pre", "metric=kl", "output=mine", "--plots", "none"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2] == "left out, not to be had of this model with these settings: atp, atp_star, relp, gim"
    assert printed[-1] == "bench.csv, bench.json in mine/bench"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--top", "0"], "--top: got '0', wanted a whole number from 1 on."),
        (["direction=denoising"], "direction: got denoising, but the exam patches in both directions, wanted noising."),
        (["positions=last"], "positions: got last, but the exam is about whole components, wanted all."),
        (["ap.top=5"], "ap.top: got 5, but every effect is the truth of the exam, wanted null. Leave ap.top out."),
        (["baseline=zero"], "baseline: got zero, but the exam asks IG with corrupted and with zero, wanted corrupted."),
        (["methods=relp"], "methods: got relp, but the exam asks every method, wanted default."),
        (["ablation=zero"], "ablation: got zero, but the exam does not ablate, wanted none. Leave ablation out."),
        (["faithfulness=heads"], "faithfulness: got heads, but the exam has no curves, wanted none."),
        (["analyses=sets"], "analyses: got sets, but the exam has none, wanted none."),
        (["model=nope"], "model: got 'nope', wanted one of"),
        (["output=file"], "output: got file/bench, wanted a folder that can be written to"),
        (["ig.n_steps=1,2"], "ig.n_steps: got 2 values (1, 2), wanted one."),
    ],
)
def test_what_the_exam_of_a_run_cannot_have_is_refused_before_the_model_loads(place, capsys, arguments, line):
    (place / "file").write_text("")
    assert cli.main(["bench", "run", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"igap: {line}")
    assert err.count("\n") == 1
