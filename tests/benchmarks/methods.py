"""Seconds and memory of every attribution method of a run, on GPT-2 small's shapes with random weights, 17 tokens.

    python tests/benchmarks/methods.py [--sites heads] [--without shapley] [--device cuda] [--repeats 3] [--json FILE]

One pair, the settings that a run has by default. As engine.py: contenders one after the other in every repetition,
ratios to AP within a repetition, medians. Memory is the peak beyond the model, of a call of its own.
"""

import argparse
import json
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from engine import PAIR, Bench, gpt2_small, line, ratio
from helpers.memory import peak_gib

from igap.attribution.methods import METHODS
from igap.attribution.over_pairs import attribute_pairs
from igap.cli.compose import compose_one
from igap.components import Site
from igap.engine.open_pairs import OpenPairs, open_pairs


def beside(bench: Bench, opened: OpenPairs, site: Site, names: list[str]) -> dict[str, Any]:
    """Every method on one site."""
    config = compose_one([]).config

    def attribute(name: str) -> None:
        method = METHODS[name]
        about: Any = {"baseline": method.baseline(config), "positions": "all"}
        attribute_pairs(
            lambda contrast, advance: method.attribute(contrast, site, config, advance), opened, site, **about
        )

    # A call of its own runs before the clock does.
    gib = {name: peak_gib(bench.device, partial(attribute, name)) for name in names}
    seconds = bench.rounds({name: partial(attribute, name) for name in names}, warm=names)
    print(f"\n{site}, {opened.model.cfg.n_layers} layers: seconds, times AP, GiB beyond the model")
    for name in names:
        beside_ap = statistics.median(ratio(seconds, name, "ap"))
        line(name, f"{statistics.median(seconds[name]):9.2f} s {beside_ap:9.2f} {gib[name]:9.2f} GiB")
    return {"seconds": seconds, "GiB": gib}


def main() -> None:
    """Prints the table of each site; writes all repetitions as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", nargs="+", default=["heads", "neurons"])
    parser.add_argument("--without", nargs="*", default=[], help="methods that are left out")
    parser.add_argument("--repeats", type=int, help="repetitions; 3 unless told otherwise")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="file for all repetitions")
    options = parser.parse_args()
    options.smollm2, options.quick = None, False
    bench = Bench(options)
    print(f"torch {torch.__version__}, threads {torch.get_num_threads()}, repeats {bench.repeats}")
    names = [name for name in METHODS if name not in options.without]
    report = {}
    with tempfile.TemporaryDirectory() as folder:
        model = gpt2_small(bench, Path(folder))
    for site in options.sites:
        with open_pairs(model, PAIR, sites=(site,)) as opened:
            report[site] = beside(bench, opened, site, names)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
