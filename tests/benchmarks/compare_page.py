"""How long the page of many runs takes to open in Chromium, drawn, and how large its file is.

    python tests/benchmarks/compare_page.py [--runs 200] [--layers 12] [--heads 12] [--repeats 5]

The runs are made up: 4 baselines, 5 numbers of steps and seeds, as many metrics as a summary of `igap run` has. The
clock starts before the address is asked for and stops when everything is drawn.
"""

import argparse
import contextlib
import io
import itertools
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from igap.output.dashboard import command

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.finished_runs import make

OPTIONS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
METRICS = 260


def main() -> None:
    """Prints both figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("runs", 200), ("layers", 12), ("heads", 12), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        grid = itertools.product(
            range(arguments.runs), ("corrupted", "zero", "mean", "zero_input"), (5, 10, 20, 50, 100)
        )
        for i, (seed, kind, steps) in enumerate(itertools.islice(grid, arguments.runs)):
            settings = {"prompts.seed": seed, "baseline.kind": kind, "ig.n_steps": steps}
            numbers = {f"heads/number_{k}": (i + 1) / (k + 7) for k in range(METRICS)}
            shape = arguments.layers, arguments.heads
            make(folder / "runs" / str(i), settings=settings, summary=numbers, seed=i, shape=shape)
        since = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            command.compare_runs([folder / "runs"], output=folder)
        print(f"igap compare, {arguments.runs} runs       {time.perf_counter() - since:6.2f} s")
        print(f"compare.html                 {(folder / 'compare.html').stat().st_size / 1e6:6.2f} MB")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=OPTIONS.split())
            times = []
            for _ in range(arguments.repeats):
                page = browser.new_page(viewport={"width": 1280, "height": 900})
                since = time.perf_counter()
                page.goto(f"file://{folder}/compare.html")
                page.wait_for_selector("body[data-ready]")
                page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")  # painted
                times.append(time.perf_counter() - since)
                page.close()
            browser.close()
        print(f"opened and drawn, median     {statistics.median(times):6.2f} s   (slowest {max(times):.2f} s)")


if __name__ == "__main__":
    main()
