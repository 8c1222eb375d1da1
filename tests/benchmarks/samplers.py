"""How near each sampler of `igap search` comes to the best known prompt in a given number of evaluations.

    python tests/benchmarks/samplers.py [--quick] [--samplers hybrid,gradient,...] [--until 300] [--space words]
    python tests/benchmarks/samplers.py --pareto [--until 600]

On the embedded model, several heads and seeds. The best known prompt of a head is the best of all runs, each polished
by every one-word change until none is better. A sampler's share is its best value over that. No control trials: every
sampler gets the whole budget. With --pareto: effect against fluency, the share of the box between the worst and the
best of all runs that a sampler's trials beat.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from igap import PromptPair, load_model
from igap.counterfactual.objective.objective import Objective
from igap.counterfactual.samplers.registry import samplers_for
from igap.counterfactual.session import SearchSession
from igap.counterfactual.spaces.base import Candidate
from igap.counterfactual.trials.storages import open_storage
from igap.engine.activations import borrow

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.hypervolume import hypervolume

PAIR = PromptPair(
    "After John and Mary went to the store, Mary gave a bottle of milk to",
    "After John and Mary went to the store, John gave a bottle of milk to",
    " John",
    " Mary",
)
HEADS = ("0.6", "0.3", "1.2", "1.7", "2.3", "2.6", "3.1", "3.6")
WORDS = {
    "first": ["names"],
    "second": ["names"],
    "subject": ["names", "animals"],
    "place": ["places"],
    "verb": ["verbs"],
    "object": ["objects"],
}
SPACES = {"words": WORDS, "slots": None}


def run(
    model: Any, head: str, asked: argparse.Namespace, sampler: str, seed: int, terms: Sequence[str]
) -> SearchSession:
    """A search of its own, explored to the end."""
    search = SearchSession(
        model,
        PAIR,
        head,
        Objective(tuple(terms)),
        space=SPACES[asked.space],
        clean_n=asked.clean,
        heldout_n=0,
        seed=0,  # of the clean prompts, the same for all
        storage=open_storage("memory", Path()),
        name="benchmark",
        identity={},
        remember=None,
        memory_gib=None,
    )
    search.seed = seed
    search.explore(asked.until, sampler, control=0)
    return search


def polished(search: SearchSession, candidate: Candidate, value: float) -> float:
    """The value after every one-word change that helps, the best first, until none does."""
    sizes = search.space.sizes
    while True:
        changes = [
            (*candidate[:slot], option, *candidate[slot + 1 :])
            for slot, size in enumerate(sizes)
            for option in range(size)
            if option != candidate[slot]
        ]
        values = search.cached.objective_values(search.bound.tokens(changes), search.objective)
        if values.max() <= value:
            return value
        candidate, value = changes[int(values.argmax())], float(values.max())


def single(model: Any, heads: Sequence[str], seeds: int, names: Sequence[str], asked: argparse.Namespace) -> Any:
    """Shares of the best known, by sampler."""
    shares: dict[str, list[float]] = {name: [] for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    costs: dict[str, list[float]] = {name: [] for name in names}
    for head in heads:
        best: dict[str, list[float]] = {name: [] for name in names}
        known = 0.0
        for name in names:
            for seed in range(seeds):
                since = time.perf_counter()
                search = run(model, head, asked, name, seed, ["ap"])
                seconds[name].append(time.perf_counter() - since)
                costs[name].append(search.cached.evaluator.cost)
                history = search.trials.history()
                top = history.order[0]
                best[name].append(float(history.values[top]))
                known = max(known, polished(search, history.proposals[top].candidate, best[name][-1]))
        for name in names:
            shares[name] += [value / known for value in best[name]]
        row = "  ".join(f"{name} {statistics.fmean(best[name]) / known:.3f}" for name in names)
        print(f"{head:>4}  best known {known:.3f} logits  {row}", flush=True)
    return {
        name: {
            "mean": statistics.fmean(shares[name]),
            "worst": min(shares[name]),
            "seconds": statistics.median(seconds[name]),
            "forward_equivalents": statistics.median(costs[name]),
        }
        for name in names
    }


def pareto(model: Any, heads: Sequence[str], seeds: int, names: Sequence[str], asked: argparse.Namespace) -> Any:
    """Shares of the box, by sampler."""
    shares: dict[str, list[float]] = {name: [] for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for head in heads:
        points: dict[str, list[Any]] = {name: [] for name in names}
        for name in names:
            for seed in range(seeds):
                since = time.perf_counter()
                points[name].append(run(model, head, asked, name, seed, ["ap", "fluency"]).trials.history().points)
                seconds[name].append(time.perf_counter() - since)
        every = np.concatenate([one for of_name in points.values() for one in of_name])
        low, high = every.min(0), every.max(0)
        for name in names:
            shares[name] += [hypervolume(one, low, high) for one in points[name]]
        print(f"{head:>4}  " + "  ".join(f"{n} {statistics.fmean(shares[n][-seeds:]):.3f}" for n in names), flush=True)
    return {
        name: {
            "mean": statistics.fmean(shares[name]),
            "worst": min(shares[name]),
            "seconds": statistics.median(seconds[name]),
        }
        for name in names
    }


def main() -> None:
    """Prints a table: mean and worst share, seconds and forward equivalents a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 heads, 2 seeds")
    parser.add_argument("--pareto", action="store_true")
    parser.add_argument("--samplers")
    parser.add_argument("--until", type=int)
    parser.add_argument("--clean", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--heads", default=",".join(HEADS))
    parser.add_argument("--space", choices=tuple(SPACES), default="words")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    asked.until = asked.until or (600 if asked.pareto else 300)
    heads, seeds = (HEADS[:2], 2) if asked.quick else (asked.heads.split(","), asked.seeds)
    known = samplers_for(2 if asked.pareto else 1)
    names = asked.samplers.split(",") if asked.samplers else [name for name in known if name not in ("gp", "brute")]
    model = load_model("ioi-mini")
    with borrow(model):
        table = (pareto if asked.pareto else single)(model, heads, seeds, names, asked)
    print(f"{len(heads)} heads x {seeds} seeds, {asked.until} evaluations, {asked.clean} clean prompts, {asked.space}")
    for name, row in sorted(table.items(), key=lambda item: -item[1]["mean"]):
        more = f", {row['forward_equivalents']:.0f} forward equivalents" if "forward_equivalents" in row else ""
        print(
            f"{name:>10}  share: mean {row['mean']:.3f}, worst {row['worst']:.3f}; {row['seconds']:.1f} s{more} a run"
        )
    if asked.json:
        asked.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
