"""Searches in `igap compare`: a table and a CSV file of their own, and the history of each on the page."""

import csv
import json
import re
from html import unescape
from pathlib import Path

import pytest
from helpers.finished_runs import make

from igap.errors import InputError
from igap.output.dashboard import searches as dashboard
from igap.output.dashboard.command import compare_runs
from igap.storage import untrusted
from igap.storage.finished import find_runs


def make_search(folder, *, best, trials, until=9, term="ap", **summary):
    """A search in `folder`; `trials` are rows of value and whether the trial counts."""
    folder.mkdir(parents=True)
    numbers = {
        "by_hand/value": 1.0, "random/best": -0.0, "heldout/value": 0.5, "heldout/mean": 0.75, "heldout/low": 0.25,
        "heldout/high": None, "n_trials": len(trials), "space/size": 64.0,
    }  # fmt: skip
    texts = {"head": folder.name, "objective": term, "sampler": "random", "best/rule": "=keep", "model": "handmade"}
    whole = {"best/value": best, **numbers, **texts, "schema": 1, "key": "key" + folder.name[-1], **summary}
    (folder / "search_summary.json").write_text(json.dumps(whole))
    (folder / "config.json").write_text(json.dumps({"head": folder.name, "search": {"until": until}}))
    rows = [["trial", "source", term.partition(",")[0], "counts"]]
    rows += [[i, "random", value, counts] for i, (value, counts) in enumerate(trials)]
    with (folder / "trials.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    return folder


@pytest.fixture
def searches(tmp_path, monkeypatch):
    """A run and three searches: one tried as a whole, one with an interval and a bound, one of two terms."""
    trials = [(1.0, True), (5.0, False), (0.5, True), (3.0, True), ("", False)]
    make_search(tmp_path / "s" / "0.1", best=3.0, trials=trials, **{"space/exact": 1})
    more = {"heldout/high": 1.25, "optimality/upper": 0.00123, "metric": "kl", "metric/unit": "nats"}
    make_search(tmp_path / "s" / "0.2", best=2.0, trials=[(2.0, True)], until=5, **more)
    make_search(tmp_path / "s" / "0.3", best=7.0, trials=[(-1.0, True), (7.0, True)], term="ap,fluency")
    make(tmp_path / "s" / "0.1" / "runs" / "best", summary={"gap": 2.5})
    atlas = {"schema": 1, "key": "atlas", "model": "handmade", "atlas/n_heads": 3}
    (tmp_path / "s" / "atlas").mkdir()
    (tmp_path / "s" / "atlas" / "atlas_summary.json").write_text(json.dumps(atlas))
    (tmp_path / "s" / "atlas" / "config.json").write_text("{}")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "s"


def test_searches_are_a_table_beside_that_of_runs(searches, capsys):
    assert compare_runs([searches], metrics=["gap"]) == [
        Path("compare.csv"), Path("compare_searches.csv"), Path("compare.html"),
    ]  # fmt: skip
    said = capsys.readouterr()
    assert said.err == ""
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.out.splitlines() if "│" in line]
    assert lines == [
        ["best", "2.5"],
        ["0.1", "handmade", "0.1", "ap", "logit_diff", "1", "3", "0", "0.5", "0.75", "random", "5", "=keep",
         "none: all tried"],
        ["0.2", "handmade", "0.2", "ap", "kl", "1", "2", "0", "0.5", "0.75 [0.25, 1.25]", "random", "1", "=keep",
         "at most 0.0012 of the space (95%)"],
        ["0.3", "handmade", "0.3", "ap,fluency", "logit_diff", "1", "7", "0", "0.5", "0.75", "random", "2", "=keep",
         "-"],
    ]  # fmt: skip
    assert "3 finished searches" in said.out
    with Path("compare_searches.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [(row["key"], row["search.until"], row["best/value"]) for row in rows] == [
        ("key1", "9", "3.0"), ("key2", "5", "2.0"), ("key3", "9", "7.0"),
    ]  # fmt: skip
    assert [row["best/rule"] for row in rows] == ["'=keep"] * 3
    assert (rows[1]["heldout/high"], rows[0]["heldout/high"], rows[2]["space/size"]) == ("1.25", "", "64.0")
    assert "best/value" not in Path("compare.csv").read_text()


def test_a_history_is_the_best_of_the_trials_that_count_however_many_there_are(searches, monkeypatch):
    read, _ = find_runs([searches], searches=True)
    monkeypatch.setattr(untrusted, "LARGEST", 16)  # a million trials take more than a text may
    found = [each for each in read if each.is_search]
    histories = [dashboard.read_history(search)[0] for search in found]
    assert histories == [[(0, 1.0), (3, 3.0), (4, 3.0)], [(0, 2.0)], [(0, -1.0), (1, 7.0)]]
    first, second, third = dashboard.Searches(found, histories).panels()
    # Logits share an axis from -1 to 7: 1 is at three quarters of 160 from above, 3 at half.
    assert first["line"] == "0.0,120.0 225.0,120.0 225.0,80.0 300.0,80.0 300.0,80.0"
    assert third["line"] == "0.0,160.0 300.0,160.0 300.0,0.0"
    assert [each["axis"] for each in (first, second, third)] == ["ap, logits", "ap, nats", "ap, logits"]
    assert (second["low"], second["high"]) == ("2", "2")


def test_the_page_of_searches_alone_has_their_table_and_no_script(searches, capsys):
    make_search(searches / "0.4", best=1.0, trials=[(1.0, True)], **{"best/rule": "<script>alert(1)</script>"})
    (searches / "0.4" / "trials.csv").write_text("trial,ap,counts\n0,1.0,Tr")
    wanted = [Path("compare_searches.csv"), Path("compare.html")]
    assert compare_runs([searches / "0.3", searches / "0.4"]) == wanted
    text = Path("compare.html").read_text()
    assert "<script" not in text
    cells = [unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", text)]
    assert "<script>alert(1)</script>" in cells
    assert text.count("<polyline") == 1
    assert "its history is not known" in text
    assert "0.4: its history cannot be read (trials.csv: its last line has no end" in capsys.readouterr().err
    with pytest.raises(InputError, match="sort: got 'gap', but there are only searches"):
        compare_runs([searches / "0.3"], sort="gap")
    with pytest.raises(InputError, match="in the search's folder"):
        compare_runs([searches / "0.3"], output=searches / "0.3")
