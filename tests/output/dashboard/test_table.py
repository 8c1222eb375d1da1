"""The table: which settings it shows, which numbers, in which order."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from igap.errors import InputError
from igap.output.dashboard import table
from igap.statistics.comparison import compare_values
from igap.storage.finished import FinishedRun, find_runs


def run(name, settings=None, **summary):
    return FinishedRun(Path("/runs", name), {"key": name, **summary}, settings or {})


def folders(found):
    return [one.folder.name for one in found.runs]


def test_only_settings_that_differ_are_shown_and_never_where_or_how_a_run_is_done():
    same = {"model.name": "gpt2", "ig.tolerance": 0.001}
    runs = [
        run("a", {**same, "ig.n_steps": 5, "output": "x", "tracking.mode": "offline", "also": (), "device": "cpu"}),
        run("b", {**same, "ig.n_steps": 50, "output": "y", "sweep": "z", "also": ("zero",), "device": "cuda"}),
    ]
    found = table.tabulate(runs)
    assert list(found.settings) == ["ig.n_steps", "also", "device"]
    assert found.rows == [["a", "5", "[]", "cpu"], ["b", "50", '["zero"]', "cuda"]]
    assert set(table.differing_keys(runs, all_keys=True)) == {
        "ig.n_steps",
        "also",
        "device",
        "output",
        "tracking.mode",
        "sweep",
    }


@pytest.mark.parametrize(
    ("first", "second", "differ"),
    [(1, 1.0, False), (1, True, True), (1, "1", True), (None, "null", True), ((1,), (1,), False), ((1,), (2,), True)],
)
def test_values_are_equal_as_numbers_and_texts_are(first, second, differ):
    assert table.differing_keys([run("a", {"x": first}), run("b", {"x": second})]) == (["x"] if differ else [])


def test_a_key_that_one_run_lacks_differs_and_a_run_without_settings_makes_nothing_differ():
    runs = [run("a", {"x": 1, "new": None}), run("b", {"x": 1}), run("unread")]
    found = table.tabulate(runs)
    assert found.rows == [["a", "null"], ["b", table.ABSENT], ["unread", table.ABSENT]]


def test_default_metrics_are_those_that_the_summaries_have():
    found = table.tabulate([run("a", gap=1.0, other=2.0), run("b", **{"gap": 2.0, "heads/pearson": None})])
    assert found.metrics == ["gap", "heads/pearson"]
    assert found.rows == [["a", 1.0, None], ["b", 2.0, None]]
    assert list(found.every_metric) == ["gap", "other"]


def test_ap_on_ig_is_the_slope_of_ap_on_ig_that_a_fit_of_the_runs_own_table_gives(written):
    (run,), _ = find_runs([written])
    found = table.tabulate([run])
    frame = pd.read_csv(written / "heads.csv")
    wanted, _ = np.polyfit(frame["ig"], frame["ap"], 1)
    assert found.runs[0].summary["heads/ap_on_ig"] == pytest.approx(wanted, rel=1e-9)
    assert {"heads/ap_on_ig", "neurons/ap_on_ig"} <= set(found.metrics)


@pytest.mark.parametrize(("scale", "noise"), [(0.61, 0.02), (1.0, 0.0), (0.001, 0.0), (2.0, 5.0), (-0.1, 1.0)])
def test_ap_on_ig_shows_the_scale_that_r_does_not(scale, noise):
    rng = np.random.default_rng(0)
    ig = rng.normal(size=(4, 8))
    ap = scale * ig + noise * rng.normal(size=(4, 8))
    found = table.with_scale(
        run("a", **{f"heads/{name}": value for name, value in compare_values(ig, ap).summary().items()})
    )
    assert found.summary["heads/ap_on_ig"] == pytest.approx(np.polyfit(ig.ravel(), ap.ravel(), 1)[0], rel=1e-9)


@pytest.mark.parametrize(
    ("pearson", "slope"), [(None, 0.5), (0.5, None), (0.5, 2.0), (0.5, -3e200), (7.0, 0.5), ("x", 0)]
)
def test_ap_on_ig_is_missing_where_r_and_the_slope_do_not_determine_it(pearson, slope):
    numbers = {"heads/pearson": pearson, "heads/slope": slope}
    runs = [run("a", **numbers), run("b", **numbers, **{"heads/slope/reason": "constant"}), run("c", gap=1.0)]
    found = table.tabulate(runs, metrics=["heads/ap_on_ig"])
    assert found.rows == [["a", None], ["b", None], ["c", None]]
    reasons = "constant; not determined by pearson and slope; not measured"
    assert found.notes()[-1] == f"heads/ap_on_ig: no number in 3 of 3 runs: {reasons}."


def test_two_slopes_of_ap_on_ig_have_one_bias_where_r_is_negative():
    r, b = -0.9, 2.3
    roots = np.roots([2 - b, -2 * b * r, -(2 + b)])
    assert (roots > 0).all()
    for k in roots:
        assert 2 * (k**2 - 1) / (k**2 + 1 + 2 * r * k) == pytest.approx(b)
    assert table.with_scale(run("a", **{"heads/pearson": r, "heads/slope": b})).summary["heads/ap_on_ig"] is None


IOI = {"prompts.clean": "C", "prompts.corrupted": "c", "prompts.answer": " John", "prompts.distractor": " Mary"}
IOI |= {"prompts.n": None, "prompts.file": None}
GENERATED = dict.fromkeys(IOI) | {"prompts.n": 100}


def test_texts_of_prompts_are_one_column_of_labels_but_in_the_csv():
    runs = [
        run("a", {**IOI, "x": 1}),
        run("b", {**IOI, "x": 2}),
        run("c", {**IOI, "prompts.corrupted": "another", "x": 1}),
        run("d", {**GENERATED, "x": 1}),
        run("e", {**dict.fromkeys(IOI), "prompts.file": "/my/pairs.csv", "x": 1}),
        run("unread"),
    ]
    found = table.tabulate(runs)
    labels = ["John - Mary (2)", "John - Mary (2)", "John - Mary (1)", "100 generated", "pairs.csv", table.ABSENT]
    assert found.shown_settings == {"prompts": labels, "x": ["1", "2", "1", "1", "1", ""]}
    assert [row[1] for row in found.rows] == labels
    assert [row[1] for row in table.tabulate(runs[::-1]).rows] == labels[::-1], "whatever the order"
    assert folders(table.tabulate(runs, sort="prompts"))[:3] == ["unread", "d", "c"]
    rows = list(csv.DictReader(io.StringIO(found.csv())))
    assert [row["prompts.corrupted"] for row in rows] == ["c", "c", "another", "null", "null", ""]
    assert list(found.frame().columns)[:2] == ["prompts.clean", "prompts.corrupted"]
    (note,) = found.notes()
    assert note.startswith("The texts of the prompts are in compare.csv (prompts.clean, prompts.corrupted, ")


def test_the_texts_of_prompts_are_said_where_nothing_else_differs():
    runs = [run("a", {**IOI, "prompts.seed": 0}), run("b", {**GENERATED, "prompts.seed": 1})]
    found = table.tabulate(runs)
    assert found.rows == [["a", "John - Mary", "0"], ["b", "100 generated", "1"]]
    assert found.notes() == ["John - Mary: C | c"]


def test_prompts_that_are_no_texts_have_a_label():
    damaged = {**IOI, "prompts.clean": ([1], {"a": 2}), "prompts.answer": ([3],)}
    found = table.tabulate([run("a", damaged), run("b", IOI)])
    assert found.rows == [["a", "([3],) - Mary"], ["b", "John - Mary"]]


def test_one_text_of_prompts_that_differs_is_its_own_column():
    found = table.tabulate([run("a", IOI), run("b", {**IOI, "prompts.clean": "D"})])
    assert found.shown_settings == {"prompts.clean": ["C", "D"]}
    assert found.notes() == []


def test_what_repeats_a_setting_or_is_no_number_is_no_metric():
    summary = {"gap": 1.0, "schema": 1, "seed": 0, "ig/n_steps": 50, "model": "gpt2", "flag": True, "list": [1]}
    assert table.every_metric([run("a", **summary)]) == ["gap"]


def test_a_number_that_is_not_finite_is_missing():
    assert [table.metric(run("a", gap=value), "gap") for value in (float("nan"), float("inf"), "3", True, 0)] == [
        None, None, None, None, 0
    ]  # fmt: skip


def test_names_that_no_terminal_should_see_are_escaped_in_a_refusal():
    runs = [run("a", **{"gap": 1.0, "a\x1b[31m\n": 2.0})]
    for asked in ({"metrics": ["nothing"]}, {"sort": "nothing"}, {"metrics": ["a[31m"]}):
        with pytest.raises(InputError) as refused:
            table.tabulate(runs, **asked)
        assert str(refused.value).isprintable()


def test_an_unknown_metric_is_refused_with_its_neighbours():
    runs = [run("a", **{"gap": 1.0, "heads/pearson": 0.5, "heads/pearson_low": 0.1, "route": 2})]
    said = r"metrics: got 'heads/pearsn', which is no number of any run's summary\. Did you mean hea"
    with pytest.raises(InputError, match=said):
        table.tabulate(runs, metrics=["gap", "heads/pearsn"])


@pytest.mark.parametrize(
    ("column", "order"),
    [
        ("gap", ["c", "a", "b", "none"]),
        ("-gap", ["b", "a", "c", "none"]),
        ("ig.n_steps", ["a", "b", "none", "c"]),
        ("-ig.n_steps", ["c", "none", "b", "a"]),
        ("-folder", ["none", "c", "b", "a"]),
    ],
)
def test_rows_sort_as_numbers_and_missing_ones_come_last_either_way(column, order):
    runs = [
        run("b", {"ig.n_steps": 20}, gap=10.0),
        run("none", {"ig.n_steps": 100}, gap=None),
        run("c", {"ig.n_steps": "auto"}, gap=-3.0),
        run("a", {"ig.n_steps": 5}, gap=9.5),
    ]
    assert folders(table.tabulate(runs, sort=column)) == order


def test_equal_rows_stay_as_they_are_either_way():
    runs = [run(name, {"x": 1}, gap=1.0) for name in "cab"]
    assert folders(table.tabulate(runs, sort="gap")) == folders(table.tabulate(runs, sort="-gap")) == list("cab")


def test_an_unknown_column_is_refused():
    with pytest.raises(InputError, match=r"sort: got 'gapp', which is no column\. Did you mean gap\?"):
        table.tabulate([run("a", gap=1.0)], sort="-gapp")


def test_the_csv_holds_every_number_in_full_and_texts_as_they_are(written, many_written):
    runs, _ = find_runs([written, many_written])
    found = table.tabulate(runs, metrics=["gap"])
    frame = pd.read_csv(io.StringIO(found.csv()), dtype={"key": str})
    assert list(frame["folder"]) == [str(written), str(many_written)]
    assert list(frame["key"]) == [one.key for one in runs]
    for row, folder in enumerate((written, many_written)):
        summary = json.loads((folder / "summary.json").read_text())
        for name in ("gap", "heads/pearson", "neurons/jaccard@30", "seconds/total"):
            assert (frame[name][row] == summary[name]) or (summary[name] is None and pd.isna(frame[name][row])), name


def test_a_setting_keeps_its_text_in_the_csv():
    text = 'a, "b"\nc'
    runs = [run("a", {"prompts.clean": text, "curves.components": "9.10"}), run("b", {"prompts.clean": "x"})]
    rows = list(csv.DictReader(io.StringIO(table.tabulate(runs).csv())))
    assert (rows[0]["prompts.clean"], rows[0]["curves.components"]) == (text, "9.10")


def test_labels_are_the_folders_below_what_they_share(tmp_path):
    places = [tmp_path / "monday" / "0", tmp_path / "monday" / "1", tmp_path / "tuesday"]
    runs = [FinishedRun(place, {}, {}) for place in places]
    assert table.labels(runs) == ["monday/0", "monday/1", "tuesday"]
    assert table.labels(runs[:2]) == ["0", "1"]
    assert table.labels(runs[:1]) == ["0"]


def test_the_notes_say_what_the_table_cannot():
    assert table.tabulate([run("a", {"x": 1})]).notes() == ["One run: there is no other to set it beside."]
    assert table.tabulate([run("a", {"x": 1}, warnings="ig", gap=None)], metrics=["gap"]).notes()[1:] == [
        "It has warnings, in summary.json: a.",
        "gap: no number: not measured.",
    ]
    same = [run("a", {"x": 1}, gap=1.0), run("b", {"x": 1}, gap=1.0), run("unread", gap=2.0)]
    assert table.tabulate(same).notes() == ["No setting differs among the 2 runs whose settings are known."]
    runs = [
        run("a", {"x": 1}, **{"version/torch": "2.6", "prompts/bos": "<s>", "gap": None, "gap/reason": "too small"}),
        run("b", {"x": 2}, **{"version/torch": "2.13", "gap": 1.0, "warnings": ["ig: delta"]}),
        run("c", {"x": 3}, **{"version/torch": "2.13", "prompts/bos": "none"}),
    ]
    assert table.tabulate(runs).notes() == [
        "version/torch differs among the runs: 2.13, 2.6.",
        "prompts/bos differs among the runs: <s>, none, unknown.",
        "1 of 3 runs has warnings, in summary.json: b.",
        "gap: no number in 2 of 3 runs: not measured; too small.",
    ]
