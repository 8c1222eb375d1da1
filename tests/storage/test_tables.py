"""Tables that a spreadsheet may open: no text in them is a formula, and what is read back is what was written."""

import csv
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igap.output import disk
from igap.output.dashboard.table import tabulate
from igap.storage import tables
from igap.storage.finished import read_run
from igap.storage.tables import escape_formula, unescape_formula

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", '=HYPERLINK("http://x")', "=keep", "-"]
STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


@pytest.mark.parametrize("text", FORMULAS)
def test_a_text_that_begins_as_a_formula_is_written_with_an_apostrophe(text):
    assert escape_formula(text) == f"'{text}"


@given(st.text())
def test_no_text_is_written_as_a_formula_and_each_is_read_back(text):
    assert not escape_formula(text).startswith(STARTS)
    assert unescape_formula(escape_formula(text)) == text


@pytest.mark.parametrize("text", ["'=1", "''-a", "'tis", "'", " =1", "a=1"])
def test_texts_with_an_apostrophe_of_their_own_come_back_too(text):
    assert unescape_formula(escape_formula(text)) == text


def test_a_column_is_no_formula_either_and_components_are_texts(tmp_path):
    names = pd.DataFrame(
        {"=1+1": ["x", "y"], "first": ["9.10", "9.1"], "second": ["10.10", "10.1"], "set": ["0.10", "0.1"]}
    )
    tables.write_csv(tmp_path / "a.csv", names)
    assert (tmp_path / "a.csv").read_text().startswith("'=1+1,first,")
    for exact in (False, True):
        found = tables.read_csv(tmp_path / "a.csv", tables.TEXTS, exact=exact)
        assert found[["first", "second", "set"]].to_numpy().tolist() == [
            ["9.10", "10.10", "0.10"],
            ["9.1", "10.1", "0.1"],
        ]


def test_numbers_types_and_gaps_stay_as_they_are(tmp_path):
    frame = pd.DataFrame({"x": [-1.5, 1e-300], "n": [-1, 2], "flag": [True, False], "text": ["-1.5", None]})
    frame["mixed"] = pd.Series(["=a", -2], dtype=object)
    tables.write_csv(tmp_path / "a.csv", frame)
    assert (tmp_path / "a.csv").read_text() == "x,n,flag,text,mixed\n-1.5,-1,True,'-1.5,'=a\n1e-300,2,False,,-2\n"
    found = tables.read_csv(tmp_path / "a.csv", {"text": str})
    assert found["text"].tolist()[0] == "-1.5"
    assert found["mixed"].tolist() == ["=a", "-2"]
    assert found["x"].tolist() == [-1.5, 1e-300]


def cells(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def is_number(cell):
    try:
        float(cell)
    except ValueError:
        return False
    return True


def test_no_table_of_a_run_holds_a_formula(many, tmp_path):
    """Whatever the texts of the pairs are."""
    texts = FORMULAS[: len(many.pairs)]
    pairs = [
        replace(pair, clean=text, corrupted=f"{text} x", answer="=a", distractor="-b")
        for pair, text in zip(many.pairs, texts, strict=True)
    ]
    disk.prepare(tmp_path)
    config = many.config.model_copy(update={"plots": "none"})
    disk.write(replace(many, pairs=tuple(pairs), config=config), tmp_path)
    written = sorted(tmp_path.glob("*.csv"))
    assert {"pairs.csv", "heads.csv", "neurons.csv"} <= {path.name for path in written}
    for path in written:
        for row in cells(path):
            assert not any(cell.startswith(STARTS) and not is_number(cell) for cell in row), path.name
    assert tables.read_csv(tmp_path / "pairs.csv")["clean"].tolist() == texts


def test_settings_that_are_texts_are_guarded_in_compare_csv_and_numbers_are_not(written, many_written):
    runs = [read_run(folder)[0] for folder in (written, many_written)]
    changes = [{"prompts.answer": "=1+1", "prompts.min_gap": -1}, {"prompts.answer": "-1", "prompts.min_gap": -2.5}]
    runs = [replace(run, settings={**run.settings, **own}) for run, own in zip(runs, changes, strict=True)]
    header, first, second = csv.reader(tabulate(runs).csv().splitlines())
    columns = dict(zip(header, zip(first, second, strict=True), strict=True))
    assert columns["prompts.answer"] == ("'=1+1", "'-1")
    assert columns["prompts.min_gap"] == ("-1", "-2.5")
