"""The script of docs/results.md, on the embedded model: the page says what the runs hold, and nothing that is false."""

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from igap import cli
from igap.statistics.comparison import compare_values
from igap.storage import finished

pytestmark = pytest.mark.long

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def results():
    """The script as a module, and those beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        yield importlib.import_module("results")
        for name in ("results", "results_runs", "results_tables"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def done(tmp_path_factory, small_searches):
    """The presets' runs and search, small: 4 generated pairs, one head."""
    folder = tmp_path_factory.mktemp("results")
    small = ["model=ioi-mini", "tracking=disabled"]
    sweep = [*small, "prompts=generated", "prompts.n=4", "sweep=results", f"output={folder}/runs", "plots=none"]
    assert cli.main(["sweep", "results", *sweep, "ablation.n=20", "ablation.reference_n=10"]) == 0
    assert cli.main(["sweep", "results_zero", *sweep]) == 0
    search = ["head=0.6", "search.until=8", "search.control=2", "clean.n=2", "heldout.n=3"]
    assert cli.main(["search", "results_search", *small, *search, f"output={folder}/searches"]) == 0
    return folder


@pytest.fixture
def page(results, done, tmp_path):
    results.write(done / "runs" / "results", done / "searches", tmp_path / "page.md", draft=True)
    return tmp_path / "page.md"


def rows(text, start):
    """The cells of the rows that begin so."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith(f"| {start} |")]
    return [[cell.strip() for cell in line] for line in lines]


def test_the_page_says_what_the_runs_hold(results, done, page):
    text = page.read_text()
    runs, _ = finished.find_runs([done / "runs" / "results"])
    (corrupted,) = (run for run in runs if run.settings["baseline.kind"] == "corrupted")
    (zero,) = (run for run in runs if run.settings["baseline.kind"] == "zero")
    agreement = rows(text, "corrupted") + rows(text, "zero")
    for run, cells in zip((corrupted, zero), agreement, strict=True):
        assert cells[1] == "IOI, generated"
        r, low, high = map(float, re.findall(r"-?\d\.\d+", cells[3]))
        assert r == pytest.approx(run.summary["heads/pearson"], abs=1e-3)
        assert low <= r <= high
        of_pairs = [run.summary[f"heads/pearson_pairs_mean{end}"] for end in ("", "_low", "_high")]
        assert [float(x) for x in re.findall(r"-?\d\.\d+", cells[4])] == pytest.approx(of_pairs, abs=1e-3)
        assert float(cells[5]) == pytest.approx(run.summary["heads/spearman"], abs=1e-3)
    task = results.read_tasks(done / "runs" / "results")["generated"]
    assert compare_values(task.maps["ig"].mean(0)[None], task.maps["ap"].mean(0)[None]).pearson == pytest.approx(
        corrupted.summary["heads/pearson"], abs=1e-6
    )
    (found,) = rows(text, "0.6")
    assert len(found) == 9
    for picture in re.findall(r"\]\((results/\w+\.png)\)", text):
        assert (page.parent / picture.replace("results", "page", 1)).stat().st_size > 10_000


def test_a_sentence_that_does_not_hold_stops_the_page_and_is_named(results, done, tmp_path):
    with pytest.raises(SystemExit, match="no longer holds; write it again: "):
        results.write(done / "runs" / "results", done / "searches", tmp_path / "page.md", draft=False)
    assert not (tmp_path / "page.md").exists()


def test_a_bend_is_the_largest_distance_from_the_chord_and_beyond_is_what_leaves_its_range(results):
    runs = sys.modules["results_runs"]
    alphas = runs.ALPHAS
    hill = 4 * alphas * (1 - alphas)
    bend, beyond = runs.departures(np.stack([alphas, hill, 1 - alphas - hill, alphas + hill / 8]))
    np.testing.assert_allclose(bend, [0, 1, -1, 1 / 8], atol=1e-12)
    # 1 - alpha - hill has its lowest point at alpha = 5/8, between two of the alphas; the last curve is monotone.
    np.testing.assert_allclose(beyond, [0, 1, max(4 * 0.6 * 0.4 - 0.4, 0), 0], atol=1e-12)


def test_changed_words_are_marked_where_a_phrase_has_another_number_of_words(results):
    search = {"head": "1.2", "best/clean": "Mary gave a bottle of milk to", "best/corrupted": "Tom gave a teapot to"}
    assert results.of_prompts([search]) == (
        "- 1.2: **Tom** gave a **teapot** to (clean: Mary gave a bottle of milk to)"
    )
