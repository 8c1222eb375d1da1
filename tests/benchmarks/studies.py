"""What a search's bookkeeping costs, by the number of its trials: nothing is evaluated, values are made up.

    python tests/benchmarks/studies.py [--trials 1000,10000,100000] [--storage sqlite,journal] [--batch 16] [--page]

Six slots of 40 words, 8 clean prompts, 2 constraints. A trial's milliseconds are those between two batches: the history
that samplers get, the batch put into the study, and what another worker would have added looked for. The study is then
opened anew, as a search that goes on does, and read by `igap status`; with --page the search's files are written as
`igap search` does, and the page of `igap compare` is made and opened in Chromium. CPU seconds are in brackets.
"""

import argparse
import contextlib
import io
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from compare_page import OPTIONS
from playwright.sync_api import sync_playwright

from igap.counterfactual.history import Proposal
from igap.counterfactual.objective.objective import Objective
from igap.counterfactual.output.plots import search_history
from igap.counterfactual.quiet import quiet_logs
from igap.counterfactual.search import SearchResult
from igap.counterfactual.spaces.base import Slot, Space
from igap.counterfactual.trials.storages import open_storage
from igap.counterfactual.trials.study import EvaluatedTrial, TrialStore
from igap.counterfactual.validation.results import RandomControl
from igap.errors.missing import Missing
from igap.output.dashboard.command import compare_runs
from igap.storage.studies import read_status
from igap.storage.tables import write_csv

LAST = "the last 50 batches"
SLOTS, WORDS, PROMPTS = 6, 40, 8
SPACE = Space("slots", tuple(Slot(f"slot{i}", tuple(f"word{k}" for k in range(WORDS)), (i,)) for i in range(SLOTS)))


def evaluated(n: int) -> list[EvaluatedTrial]:
    """Trials with different candidates and drawn values; a tenth break a constraint."""
    rng = np.random.default_rng(0)
    numbers = rng.choice(WORDS**SLOTS, size=n, replace=False)
    candidates = np.stack(np.unravel_index(numbers, (WORDS,) * SLOTS), axis=1).tolist()
    effects = rng.normal(size=(n, PROMPTS))
    fluency = rng.normal(size=n) - 1.28
    return [
        EvaluatedTrial(
            Proposal(tuple(candidates[i]), "random" if i % 5 == 0 else "anchor", i // 50),
            (float(effects[i].mean()),),
            tuple(effects[i].tolist()),
            {"min_clean": -1.5, "min_fluency": float(fluency[i])},
            f"min_fluency is broken by {fluency[i]:.4g}" if fluency[i] > 0 else "",
        )
        for i in range(n)
    ]


@contextlib.contextmanager
def timed(times: dict[str, tuple[float, float]], name: str) -> Iterator[None]:
    """Take the seconds of the block: of the clock, and of the CPU."""
    clock, cpu = time.perf_counter(), time.process_time()
    yield
    times[name] = time.perf_counter() - clock, time.process_time() - cpu


def opened(kind: str, folder: Path) -> TrialStore:
    """The study, as a search opens it."""
    return TrialStore(open_storage(kind, folder), SPACE, {"head": "1.2", "objective": ["ap"]}, Objective())


def measure(kind: str, folder: Path, trials: list[EvaluatedTrial], batch: int) -> dict[str, tuple[float, float]]:
    """Seconds of the clock and of the CPU, by what was done; the last batches are those of a full study."""
    times: dict[str, tuple[float, float]] = {}
    store, n = opened(kind, folder), len(trials)
    store.expect(n)
    filled = max(0, n - 50 * batch)
    with timed(times, "fill it, in batches of 5,000"):
        for start in range(0, filled, 5000):
            store.add(trials[start : min(filled, start + 5000)], n)
        store.history()  # reads the last 5,000, which are none of those that follow
    with quiet_logs(), timed(times, LAST):
        for start in range(filled, n, batch):
            history = store.history()
            assert len(history.seen) == start
            store.count("start", "random")
            store.add(trials[start : start + batch], n)
    with timed(times, "open it anew, and its history"):
        again = opened(kind, folder)
        assert len(again.history().proposals) == n
    assert again.all() == trials
    with timed(times, "igap status"):
        assert read_status(folder).n_trials == n
    return times


def measure_page(folder: Path, trials: list[EvaluatedTrial]) -> dict[str, tuple[float, float]]:
    """As `measure`, of the table and the picture that a search writes at its end, and of the page of `igap compare`."""
    times: dict[str, tuple[float, float]] = {}
    search: Any = SimpleNamespace(space=SPACE, objective=Objective(), trials=trials)
    with timed(times, "write trials.csv"):
        table = SearchResult.to_frame(search)
        write_csv(folder / "trials.csv", table)
    missing = Missing("not evaluated")
    random = RandomControl(0, 0, missing, "abs", missing, missing, "abs")
    with timed(times, "draw history.png"):
        picture = search_history(table, "1.2", "ap", random=random, reference=0.0, neutral=missing)
        picture.savefig(folder / "history.png", dpi=150)
    numbers = {"schema": 1, "key": "k", "head": "1.2", "objective": "ap", "n_trials": len(trials), "best/value": 1.0}
    (folder / "search_summary.json").write_text(json.dumps(numbers))
    (folder / "config.json").write_text("{}")
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        with timed(times, "igap compare"), contextlib.redirect_stdout(io.StringIO()):
            compare_runs([folder], output=Path(place))
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=OPTIONS.split())
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        with timed(times, "open its page"):
            page.goto(f"file://{place}/compare.html")
            page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")  # painted
        browser.close()
    return times


def main() -> None:
    """Prints a table a storage and number of trials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", default="1000,10000,100000")
    parser.add_argument("--storage", default="sqlite,journal")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--page", action="store_true", help="with what a search writes, and a browser")
    arguments = parser.parse_args()
    for n in map(int, arguments.trials.split(",")):
        trials = evaluated(n)
        for kind in arguments.storage.split(","):
            with tempfile.TemporaryDirectory() as place:
                times = measure(kind, Path(place), trials, arguments.batch)
                times |= measure_page(Path(place), trials) if arguments.page and kind == "sqlite" else {}
                size = max((path.stat().st_size for path in Path(place).iterdir()), default=0) / 1e6
            print(f"{n:,} trials, {kind}, batches of {arguments.batch}; {size:.0f} MB")
            for name, (clock, cpu) in times.items():
                each = min(n, 50 * arguments.batch) if name == LAST else 0
                a_trial = f"   {clock / each * 1e3:6.3f} ms a trial ({cpu / each * 1e3:.3f} of the CPU)" if each else ""
                print(f"  {name:<30} {clock:8.2f} s ({cpu:.2f} of the CPU){a_trial}", flush=True)


if __name__ == "__main__":
    main()
