"""The page in a real Chromium: it opens without errors, sorts, filters, and a hover shows what heads.csv says."""

import json
import re
import shutil

import pandas as pd
import pytest
from helpers.finished_runs import make

from igap.output.dashboard import command

CHROMIUM = shutil.which("chromium")
OPTIONS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
OPTIONS += "--disable-component-update --disable-sync"

pytestmark = pytest.mark.skipif(
    CHROMIUM is None,
    reason="no command chromium, the browser the page is tested in: apt-get install chromium (Debian), "
    "dnf install chromium (Fedora), brew install --cask chromium (macOS)",
)


@pytest.fixture(scope="module")
def tab():
    """A tab of the browser, for one test after the other; what it says, and what it asks for."""
    from playwright.sync_api import sync_playwright

    said, asked = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS.split())
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        page.set_default_timeout(60_000)  # machines are busy
        yield page, said, asked
        browser.close()


@pytest.fixture
def opened(tab, tmp_path):
    """Opens the page of the runs in a folder; fails on any error, and on any request but the one for the page."""
    page, said, asked = tab
    address = f"file://{tmp_path}/out/compare.html"
    wanted = []

    def opened(folder):
        command.compare_runs([folder], output=tmp_path / "out")
        page.goto(address)
        page.wait_for_selector("body[data-ready]")
        wanted.append(address)
        return page

    yield opened
    page.goto("about:blank")
    page.mouse.move(0, 0)
    heard, urls = said.copy(), [url for url in asked if url != "about:blank"]
    said.clear()
    asked.clear()
    assert heard == []
    assert urls == wanted


@pytest.fixture
def four(tmp_path):
    """Two baselines, three numbers of steps; the gaps are in another order as texts than as numbers."""
    for name, kind, steps, gap in (
        ("a", "zero", 5, 9.0),
        ("b", "zero", 100, 10.0),
        ("c", "corrupted", 20, None),
        ("d", "zero", 20, -2.0),
    ):
        summary = {"gap": gap} if gap else {"gap": None, "gap/reason": "undefined <b>here</b>"}
        settings = {"baseline.kind": kind, "ig.n_steps": steps, "tracking.group": name}
        make(tmp_path / "runs" / name, settings=settings, summary=summary, seed=ord(name))
    return tmp_path / "runs"


def column(page, number):
    return page.locator(f"#runs tbody td:nth-child({number})").all_inner_texts()


def tip(page):
    return page.locator("#tip").inner_text().split("\n")


def shown(number):
    """As the page shows it: 5 digits."""
    return f"{number:.5g}"


def same(text, number):
    return float(text) == pytest.approx(float(shown(number)), rel=1e-9, abs=1e-300)


def test_a_real_run_opens_and_a_hover_shows_its_head_ig_and_ap(opened, written):
    page = opened(written)
    frame = pd.read_csv(written / "heads.csv", dtype={"name": str}).set_index("name")
    for name in ("0.0", "2.3", "1.2"):
        for panel in ("IG", "AP", "AP - IG"):
            page.locator(f'svg[data-map="{panel}"] rect[data-name="{name}"]').hover()
            head, ig, ap, difference, unit = tip(page)
            assert (head, unit) == (f"head {name}", "scores, no unit")
            assert same(ig.removeprefix("IG "), frame.loc[name, "ig"])
            assert same(ap.removeprefix("AP "), frame.loc[name, "ap"])
            assert same(difference.removeprefix("AP - IG "), frame.loc[name, "difference"])
    page.locator("h1").hover()
    assert page.locator("#tip").is_hidden()


def test_a_heatmaps_colours_are_on_one_scale_for_ig_and_ap_and_on_its_own_for_the_difference(opened, written):
    page = opened(written)
    frame = pd.read_csv(written / "heads.csv", dtype={"name": str}).set_index("name")
    legends = [
        float(page.locator(f'svg[data-map="{panel}"] text').nth(-2).text_content()) for panel in ("IG", "AP", "AP - IG")
    ]
    both, difference = frame[["ig", "ap"]].abs().max().max(), frame["difference"].abs().max()
    assert legends == pytest.approx([both, both, difference], rel=5e-3)
    largest = frame[["ig", "ap"]].abs().stack().idxmax()
    cell = page.locator(f'svg[data-map="{largest[1].upper()}"] rect[data-name="{largest[0]}"]')
    assert cell.get_attribute("fill") in ("rgb(33,102,172)", "rgb(178,24,43)")
    assert (cell.get_attribute("fill") == "rgb(178,24,43)") == (frame.loc[largest] > 0)


def test_a_click_sorts_numbers_as_numbers_and_missing_ones_come_last(opened, four):
    page = opened(four)
    heading = page.locator("#runs th button", has_text="gap")
    heading.click()
    assert column(page, 4) == ["-2", "9", "10", "-"]
    assert column(page, 1) == ["d", "a", "b", "c"]
    heading.click()
    assert column(page, 4) == ["10", "9", "-2", "-"]
    assert page.locator("#runs th[aria-sort=descending]").count() == 1
    page.locator("#runs th button", has_text="n_steps").click()
    assert column(page, 3) == ["5", "20", "20", "100"]
    assert page.locator("#runs td[title]").get_attribute("title") == "undefined <b>here</b>"


def test_the_filter_leaves_rows_and_plots_of_what_matches(opened, four):
    page = opened(four)
    for typed, left in (
        ("corrupted", ["c"]),
        ("ig.n_steps>5 zero", ["b", "d"]),
        ("ig.n_steps=20", ["c", "d"]),
        ("gap<=9", ["a", "d"]),
        ("IG.n_steps != 20", ["a", "b"]),
        ("baseline=zero  gap <= 9", ["a", "d"]),
        ("nothing", []),
        ("", ["a", "b", "c", "d"]),
    ):
        page.locator("#filter").fill(typed)
        assert column(page, 1) == left, typed
        assert page.locator("#count").inner_text() == f"{len(left)} of 4 runs", typed
        assert page.locator("#scatter-note").inner_text().startswith(f"{len(left)} of {len(left)} runs drawn."), typed


def test_the_filter_names_a_column_that_there_is_not_and_the_heads_are_those_of_a_run_that_passes(opened, four):
    page = opened(four)
    page.locator("#filter").fill("ig.n_steps=20")
    assert page.locator("#run").input_value() == "2"
    page.locator("#filter").fill("heads/pearsn>0.5")
    assert page.locator("#count").inner_text() == "0 of 4 runs; no column is called heads/pearsn"
    page.locator("#filter").fill("")
    assert page.locator("#count").inner_text() == "4 of 4 runs"


def test_a_click_on_a_row_shows_its_heads(opened, four):
    page = opened(four)
    page.locator("#runs tbody tr", has_text="corrupted").click()
    assert page.locator("#run").input_value() == "2"
    page.locator('svg[data-map="AP"] rect[data-name="1.2"]').hover()
    frame = pd.read_csv(four / "c" / "heads.csv", dtype={"name": str}).set_index("name")
    assert same(tip(page)[2].removeprefix("AP "), frame.loc["1.2", "ap"])


def test_a_hover_in_the_scatter_lists_the_head_in_every_run_of_its_model(opened, four, tmp_path):
    make(four / "other", settings={"model.name": "another", "tracking.group": "e"}, seed=9)
    page = opened(four)
    frame = pd.read_csv(four / "a" / "heads.csv", dtype={"name": str}).set_index("name")
    place = page.evaluate("(({ x, y }) => [x, y])(scatter.points.find((one) => one.run === 0 && one.i === 5))")
    page.locator("#scatter canvas").hover(position={"x": place[0], "y": place[1]})
    assert same(tip(page)[2].removeprefix("IG "), frame.loc["1.2", "ig"])
    rows = page.locator("#linked tbody tr").all_inner_texts()
    assert [row.split("\t")[0].strip() for row in rows] == ["a", "b", "c", "d"]
    for row, name in zip(rows, "abcd", strict=True):
        head = pd.read_csv(four / name / "heads.csv", dtype={"name": str}).set_index("name").loc["1.2"]
        _, ig, ap = row.split("\t")
        assert same(ig, head["ig"])
        assert same(ap, head["ap"])


def legend(page):
    return page.locator("#legend div").all_inner_texts()


def colours(page):
    """The runs' colours in the scatter."""
    return page.evaluate("scatter.runs.map(colourOf)")


def test_up_to_eight_runs_have_a_colour_each_whatever_the_filter(opened, four):
    page = opened(four)
    assert [text.strip() for text in legend(page)] == ["a", "b", "c", "d"]
    before = colours(page)
    assert len(set(before)) == 4
    page.locator("#filter").fill("zero")
    assert [text.strip() for text in legend(page)] == ["a", "b", "d"]
    assert colours(page) == [before[0], before[1], before[3]]


def test_more_runs_have_the_colours_of_a_setting_and_a_legend_that_marks_its_points(opened, tmp_path):
    for i in range(16):
        settings = {"baseline.kind": ("zero", "corrupted", "mean")[i % 3], "ig.n_steps": 10 + i}
        make(tmp_path / "runs" / f"{i:02}", settings=settings, seed=i)
    page = opened(tmp_path / "runs")
    assert page.locator("#colour").input_value() == "baseline.kind"
    assert [text.strip() for text in legend(page)] == ["corrupted (5 runs)", "mean (5 runs)", "zero (6 runs)"]
    zero, corrupted, mean, again, *_ = colours(page)
    assert len({zero, corrupted, mean}) == 3
    assert again == zero
    pixels = "document.querySelector('#scatter canvas').toDataURL()"
    plain = page.evaluate(pixels)
    page.locator("#legend div").nth(1).hover()
    assert page.evaluate(pixels) != plain
    page.locator("h1").hover()
    assert page.evaluate(pixels) == plain
    page.locator("#colour").select_option("run")
    assert len(legend(page)) == len(set(colours(page))) == 16
    page.locator("#filter").fill("mean")
    assert [text.strip() for text in legend(page)] == ["02", "05", "08", "11", "14"]


def test_prompts_are_one_column_whose_texts_are_under_the_mouse(opened, tmp_path):
    for name, answer in (("a", " Tom"), ("b", " Ann")):
        texts = {"prompts.clean": f"for{answer}", "prompts.answer": answer, "prompts.distractor": " Bob"}
        make(tmp_path / "runs" / name, settings=texts, seed=ord(name))
    page = opened(tmp_path / "runs")
    assert column(page, 2) == ["Tom - Bob", "Ann - Bob"]
    cell = page.locator("#runs tbody td:nth-child(2)").first
    assert cell.get_attribute("title") == "prompts.clean=for Tom\nprompts.answer= Tom"
    rows = [row.split("\t")[0] for row in page.locator("#diff tbody tr").all_inner_texts()]
    assert rows == ["prompts.clean", "prompts.answer"]
    page.locator("#filter").fill("prompts.answer=Ann")
    assert column(page, 1) == []
    page.locator("#filter").fill("ann")
    assert column(page, 1) == ["b"]


def test_two_runs_settings_show_only_the_keys_that_differ_kept_where_included(opened, four):
    page = opened(four)
    page.locator("#second").select_option(label="d")
    rows = [row.split("\t") for row in page.locator("#diff tbody tr").all_inner_texts()]
    assert sorted(rows) == [["ig.n_steps", "5", "20"], ["tracking.group", "a", "d"]]
    page.locator("#second").select_option(label="a")
    assert page.locator("#diff-note").inner_text() == "The same run twice."
    assert page.locator("#diff").is_hidden()


def test_convergence_joins_runs_that_differ_in_steps_alone(opened, four):
    make(four / "e", settings={"baseline.kind": "zero", "ig.n_steps": "auto"}, seed=5)
    page = opened(four)
    assert "1 with ig.n_steps=auto left out" in page.locator("#steps-note").inner_text()
    assert page.locator("#steps-group option").all_inner_texts() == ["baseline.kind=zero"]
    delta, ig = page.locator("#steps svg").all()
    page.locator("#steps svg").nth(0).locator("circle").nth(2).hover()
    summary = json.loads((four / "b" / "summary.json").read_text())
    run, _, steps, number = tip(page)
    assert (run, steps) == ("b", "100 steps")
    assert same(re.sub(r"max .delta. | logits", "", number), summary["heads/max_abs_delta"])
    assert delta.locator("circle").count() == 3
    assert ig.locator("circle").count() == 3 * 6
    page.locator("#filter").fill("ig.n_steps=20")
    assert page.locator("#steps").inner_text() == "No runs that pass the filter differ in ig.n_steps alone."


def test_a_metric_is_drawn_against_each_setting_that_varies(opened, four):
    page = opened(four)
    page.locator("#metric").select_option("gap")
    assert page.locator("#varied-note").inner_text() == "3 of 4 runs have a number for gap."
    (plot,) = page.locator("#varied svg").all()
    assert plot.get_attribute("aria-label") == "ig.n_steps"
    page.locator("#varied circle").nth(1).hover()
    assert tip(page) == ["b", "ig.n_steps=100", "gap 10"]
    page.locator("#metric").select_option("heads/pearson")
    assert page.locator("#varied svg").count() == 2


def test_numbers_of_two_units_have_a_plot_each_and_those_without_one_share_it(opened, four):
    nats = {"metric": "kl", "metric/unit": "nats"}
    make(four / "e", settings={"ig.n_steps": 7, "metric.name": "kl"}, summary=nats, seed=5)
    page = opened(four)
    page.locator("#metric").select_option("gap")
    n_settings = len({plot.get_attribute("aria-label") for plot in page.locator("#varied svg").all()})
    assert page.locator("#varied svg").count() == 2 * n_settings
    labels = [page.locator("#varied svg").nth(i).text_content() for i in (0, 1)]
    assert ["gap, logits" in labels[0], "gap, nats" in labels[1]] == [True, True]
    assert [page.locator("#varied svg").nth(i).locator("circle").count() for i in (0, 1)] == [3, 1]
    page.locator("#varied svg").nth(1).locator("circle").hover()
    assert tip(page)[2].endswith(" nats")
    page.locator("#metric").select_option("heads/pearson")
    assert page.locator("#varied svg").count() == n_settings


def test_a_setting_with_one_value_that_some_runs_lack_is_not_drawn_against(opened, four):
    make(four / "e", settings={"ig.new": 1}, seed=5)
    page = opened(four)
    assert "ig.\u200bnew" in page.locator("#runs thead").inner_text()
    plots = page.locator("#varied svg").all()
    assert [plot.get_attribute("aria-label") for plot in plots] == ["baseline.kind", "ig.n_steps"]


def test_missing_scores_and_heads_are_said_and_models_of_several_shapes_are_drawn(opened, tmp_path):
    runs = tmp_path / "runs"
    make(runs / "a", gap=None, seed=1)
    make(runs / "b", settings={"model.name": "wide"}, shape=(3, 40))
    make(runs / "c", settings={"ig.n_steps": 9})
    (runs / "c" / "heads.csv").unlink()
    (runs / "c" / "config.json").unlink()
    page = opened(runs)
    assert "effects in logits are shown" in page.locator("#maps").inner_text()
    page.locator('svg[data-map="IG"] rect[data-name="0.1"]').hover()
    frame = pd.read_csv(runs / "a" / "heads.csv", dtype={"name": str}).set_index("name")
    assert same(tip(page)[1].removeprefix("IG "), frame.loc["0.1", "effect_ig"])
    assert tip(page)[-1] == "effects, in logits"
    assert page.locator("#scatter-note").inner_text().startswith("1 of 3 runs drawn. 2 left out: without scores.")
    page.locator("#run").select_option(label="b")
    assert page.locator('svg[data-map="AP"] rect.cell').count() == 120
    page.locator("#run").select_option(label="c")
    assert page.locator("#maps").inner_text() == "No heads of c: its heads could not be read."
    page.locator("#second").select_option(label="c")
    assert page.locator("#diff-note").inner_text() == "The settings of c could not be read."
    assert column(page, 2)[2] == "unknown"


def test_a_prompt_with_markup_stays_a_text(opened, tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    for name, text in (("a", evil), ("b", "plain")):
        make(tmp_path / "runs" / name, settings={"prompts.clean": text}, summary={"model": evil}, seed=ord(name))
    page = opened(tmp_path / "runs")
    assert column(page, 2) == [evil, "plain"]
    assert page.locator("img").count() == 0
    place = page.evaluate("(({ x, y }) => [x, y])(scatter.points[0])")
    page.locator("#scatter canvas").hover(position={"x": place[0], "y": place[1]})
    assert evil in page.locator("#linked").inner_text()


def test_hostile_texts_and_numbers_leave_the_page_whole(opened, tmp_path):
    text = "</script><img src=x onerror=document.title='broken'>\x1b[31m\u202e\x00" + "word " * 2000
    for name, kind, gap in (("a", text, 1.7e308), ("b", "zero", -1.7e308), ("c", "x" * 10_000, 1.0)):
        make(tmp_path / "runs" / name, settings={"baseline.kind": kind}, summary={"gap": gap, "model": text})
    heads = tmp_path / "runs" / "c" / "heads.csv"
    heads.write_text(heads.read_text().replace("0.0,0,0,", "0.0,0,0,1e308,-1e308,0,0,0\r\n#", 1).replace("#", "", 1))
    lines = heads.read_text().splitlines()
    heads.write_text("\n".join([lines[0], *(line for line in lines[1:] if line.count(",") == 7)]) + "\n")
    page = opened(tmp_path / "runs")
    assert page.title() == "igap: runs side by side"
    assert page.locator("#runs tbody tr").count() == 3
    page.locator("#runs tbody tr").nth(2).click()
    assert page.locator("#maps svg").count() == 3


def test_maps_by_position_have_the_largest_components_and_a_hover_links_a_component_and_its_span(opened, tmp_path):
    runs, spans = tmp_path / "runs", ["S1", "{row} $&", "END"]
    for seed, name in enumerate("ab"):
        turned = spans[::-1] if seed else spans
        make(runs / name, sites=["heads", "resid_pre"], spans=turned, shape=(6, 8), seed=seed)
    make(runs / "c", seed=3, summary={"metric": "kl", "metric/unit": "nats"})
    page = opened(runs)
    assert page.locator("#scatter-note").inner_text().startswith("3 of 3 runs drawn. Hover"), "scores have no unit"
    frame = pd.read_csv(runs / "a" / "heads.csv", dtype={"name": str})
    assert page.locator("#maps-note").inner_text() == "Shown: the 40 of 48 heads with the largest |value|."
    size = frame.assign(size=frame[["ig", "ap"]].abs().max(axis=1)).groupby("name")["size"].max()
    names = page.locator('svg[data-map="IG"] rect').evaluate_all("(cells) => cells.map((cell) => cell.dataset.name)")
    assert {name.split(" at ")[0] for name in names if name} == set(size.nlargest(40).index)
    assert page.locator('svg[data-map="IG"] text', has_text="$&").count() == 1
    row = frame[(frame["name"] == size.idxmax()) & (frame["span"] == spans[1])].iloc[0]
    name = f"{size.idxmax()} at {spans[1]}"
    page.locator(f'svg[data-map="AP"] rect[data-name="{name}"]').hover()
    assert tip(page)[0] == f"head {name}"
    assert same(tip(page)[2].removeprefix("AP "), row["ap"])

    page.locator("#site").select_option("resid_pre")
    assert page.locator('svg[data-map="IG"] rect.cell').count() == 6 * 3
    page.locator("#scatter-site").select_option("resid_pre")
    assert page.locator("#scatter-note").inner_text().startswith("2 of 3 runs drawn. 1 left out: without resid_pre.")
    place = page.evaluate("(({ x, y }) => [x, y])(scatter.points.find((one) => one.name === 'L5.resid_pre at END'))")
    page.locator("#scatter canvas").hover(position={"x": place[0], "y": place[1]})
    rows = [text.split("\t") for text in page.locator("#linked tbody tr").all_inner_texts()]
    assert [row[0].strip() for row in rows] == ["a", "b"]
    for name, _, ap in rows:
        vectors = pd.read_csv(runs / name.strip() / "resid_pre.csv").set_index(["name", "span"])
        assert same(ap, vectors.loc[("L5.resid_pre", "END"), "ap"])
    page.locator("#runs tbody tr", has_text="c").last.click()
    assert page.locator("#site").is_hidden()
    assert page.locator('svg[data-map="IG"] rect.cell').count() == 6


def test_effects_of_one_unit_are_drawn_and_every_label_has_it(opened, tmp_path):
    nats = {"metric": "kl", "metric/unit": "nats"}
    for name, steps, summary in (("a", 5, nats), ("b", 20, nats), ("c", 5, {}), ("d", 20, {}), ("e", 9, {})):
        settings = {"metric": {"name": summary.get("metric", "logit_diff")}, "ig.n_steps": steps}
        make(tmp_path / "runs" / name, settings=settings, summary=summary, seed=ord(name), gap=None)
    page = opened(tmp_path / "runs")
    note = page.locator("#scatter-note")
    assert note.inner_text().startswith(
        "2 of 5 runs drawn. 3 left out: effects in logits, not in nats. No score is defined: effects in nats."
    )
    assert page.evaluate("scatter.runs") == [0, 1]
    assert page.locator("#steps svg").first.locator("circle").count() == 2
    texts = page.locator("#scatter svg text, #maps svg text, #steps svg text").all_text_contents()
    assert "IG, effect (nats)" in texts
    assert "max |delta|, nats (log)" in texts
    assert texts.count("effect (nats)") == 3
    assert not any("logits" in text for text in texts)
    assert page.locator("#maps .empty").inner_text() == (
        "No score of this run is defined (no gap of at least prompts.min_gap): effects in nats are shown."
    )
    page.locator('svg[data-map="IG"] rect[data-name="0.1"]').hover()
    assert tip(page)[-1] == "effects, in nats"
    page.locator("#filter").fill("logit_diff")
    assert note.inner_text().startswith("3 of 3 runs drawn. No score is defined: effects in logits.")
    page.locator("#steps circle").first.hover()
    assert tip(page)[-1].endswith(" logits")
