"""What is in the page's file: its data, its size, and that no text of a run becomes markup."""

import base64
import json
import re
import shutil
import struct
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from helpers.finished_runs import make

from igap.output.dashboard import page as pages
from igap.output.dashboard import site_maps, table
from igap.output.dashboard.page import page
from igap.storage.finished import find_runs

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&amp;\u2028'\""


def build(folder, **options):
    runs, troubles = find_runs([folder])
    maps = {
        run.folder: {
            site: found for site in site_maps.mapped_sites(run) if (found := site_maps.read(run.folder, site)[0])
        }
        for run in runs
    }
    return page(table.tabulate(runs, **options), maps, troubles)


def data(text):
    (block,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(block)


class Tags(HTMLParser):
    """Every tag of a page, with its attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_ig_and_ap_come_back_exactly(written):
    (run,) = data(build(written))["runs"]
    frame = pd.read_csv(written / "heads.csv")
    heads = run["maps"]["heads"]
    numbers = struct.unpack(f"<{2 * len(frame)}f", base64.b64decode(heads["numbers"]))
    assert (heads["rows"], heads["columns"], heads["name"]) == (list("012"), list("0123"), "{row}.{column}")
    assert (heads["bytes"], heads["unit"]) == (4, "score")
    assert numbers == tuple(frame["ig"]) + tuple(frame["ap"])


def test_numbers_that_four_bytes_cannot_hold_take_eight(tmp_path):
    (run,) = data(build(make(tmp_path / "double")))["runs"]
    frame = pd.read_csv(tmp_path / "double" / "heads.csv")
    heads = run["maps"]["heads"]
    numbers = struct.unpack(f"<{2 * len(frame)}d", base64.b64decode(heads["numbers"]))
    assert heads["bytes"] == 8
    assert numbers == tuple(frame["ig"]) + tuple(frame["ap"])


def test_settings_and_metrics_are_columns_in_the_tables_order(tmp_path):
    for name, steps, gap in (("a", 5, 1 / 3), ("b", "auto", None), ("c", 20, 2.0)):
        reason = {"gap": gap} if gap else {"gap": None, "gap/reason": "too small"}
        make(tmp_path / name, settings={"ig.n_steps": steps, "output": name}, summary=reason)
    found = data(build(tmp_path, metrics=["gap"], sort="-gap"))
    assert [run["label"] for run in found["runs"]] == ["c", "a", "b"]
    assert [run["n_steps"] for run in found["runs"]] == [20, 5, None]
    steps, output = found["settings"]
    assert (steps["name"], steps["values"], steps["numeric"], steps["shown"]) == (
        "ig.n_steps", ["20", "5", "auto"], False, True
    )  # fmt: skip
    assert (output["name"], output["shown"]) == ("output", False)
    gap = found["metrics"][0]
    assert (gap["name"], gap["values"], gap["reasons"]) == ("gap", [2.0, 0.3333333, None], {"2": "too small"})
    assert [one["name"] for one in found["metrics"] if one["shown"]] == ["gap"]
    assert "heads/pearson" in [one["name"] for one in found["metrics"]]


def test_prompts_are_one_column_that_is_shown_before_their_own_which_are_not(tmp_path):
    for name, answer in (("a", " Tom"), ("b", " Ann")):
        texts = {"prompts.clean": f"for{answer}", "prompts.answer": answer, "prompts.distractor": " Bob"}
        make(tmp_path / name, settings=texts, summary={"heads/slope": -0.5})
    found = data(build(tmp_path))
    assert [(one["name"], one["shown"], one["values"]) for one in found["settings"]] == [
        ("prompts", True, ["Tom - Bob", "Ann - Bob"]),
        ("prompts.clean", False, ["for Tom", "for Ann"]),
        ("prompts.answer", False, [" Tom", " Ann"]),
    ]
    assert "heads/ap_on_ig" in [one["name"] for one in found["metrics"] if one["shown"]]


def test_no_text_of_a_run_becomes_markup(tmp_path):
    plain = build(make(tmp_path / "plain" / "a").parent)
    make(tmp_path / "evil" / "a", settings={"prompts.clean": EVIL}, summary={"heads/pearson": None, "model": EVIL})
    make(
        tmp_path / "evil" / "b <b>",
        settings={EVIL: EVIL},
        summary={"heads/pearson": None, "heads/pearson/reason": EVIL, EVIL: 1.0},
    )
    (tmp_path / "evil" / "b <b>" / "config.json").write_text("{")
    text = build(tmp_path / "evil")

    def tags(whole):
        return [found for found in Tags(whole).found if found[0] not in ("ul", "li")]

    assert tags(text) == tags(plain)
    assert data(text)["runs"][0]["model"] == EVIL
    assert "onerror" in text


def test_the_page_asks_for_no_other_file(written):
    text = build(written)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    sources = [(tag, value) for tag, attrs in Tags(text).found for k, value in attrs.items() if k in ("src", "href")]
    assert sources == [("link", "data:,")]


def test_maps_beyond_the_limit_are_left_out_and_said(tmp_path, monkeypatch):
    for i in range(20):
        make(tmp_path / f"{i:02}", settings={"prompts.seed": i}, shape=(48, 25), seed=i)
    monkeypatch.setattr(pages, "MAX_MAPS", pages.MAX_MAPS // 40)
    text = build(tmp_path)
    found = data(text)["runs"]
    held = [run for run in found if isinstance(run["maps"]["heads"], dict)]
    assert 0 < sum(len(str(run["maps"])) for run in held) <= pages.MAX_MAPS
    assert held == found[: len(held)]
    assert found[-1]["maps"]["heads"].startswith("left out: the maps of the runs above it and its own take over ")


def test_a_site_that_cannot_be_read_costs_itself_only(tmp_path):
    folder = make(tmp_path / "a", sites=["heads", "q", "resid_pre"], spans=["S1", "END"])
    (folder / "q.csv").write_text("layer\n")
    text = build(tmp_path)
    (run,) = data(text)["runs"]
    assert {site: isinstance(found, dict) or found for site, found in run["maps"].items()} == {
        "heads": True, "q": "its q could not be read", "resid_pre": True
    }  # fmt: skip


def test_a_run_about_neurons_alone_has_no_map_and_says_so(tmp_path):
    make(tmp_path / "a", settings={"sites": "neurons"})
    (run,) = data(build(tmp_path))["runs"]
    assert run["maps"] == {"heads": "it was asked about neurons only (sites=neurons)"}


def test_what_its_numbers_are_about_is_said_where_no_column_does(tmp_path):
    usual = {"metric": "logit_diff", "metric/unit": "logits", "positions": "all"}
    other = {"metric": "kl", "metric/unit": "nats", "positions": "last"}
    for name, summary in (("a", {}), ("b", usual), ("c", other)):
        make(tmp_path / name, summary=summary, settings={"metric": {"name": summary.get("metric")}})
    found = [(run["unit"], run["metric"], run["about"]) for run in data(build(tmp_path))["runs"]]
    assert found == [("logits", "", []), ("logits", "", []), ("nats", "kl", ["positions=last"])]
    assert "the unit of its run's metric F" in build(tmp_path)
    shutil.rmtree(tmp_path / "c")
    assert "An effect is in logits." in build(tmp_path)


def test_200_runs_stay_below_10_mb(tmp_path, written):
    summary = json.loads((written / "summary.json").read_text())
    numbers = {name: value for name, value in summary.items() if isinstance(value, float)}
    for i in range(200):
        make(tmp_path / f"{i:03}", settings={"prompts.seed": i}, shape=(12, 12), seed=i, summary=numbers)
    assert len(build(tmp_path).encode()) < 10_000_000


@pytest.mark.parametrize("name", ["page.js", "plots.js", "views.js"])
def test_the_script_sets_no_markup(name):
    text = (Path(pages.__file__).parent / name).read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(", text)
