"""How near each sampler of `igap search` comes to the best known prompt at equal cost.

    python tests/benchmarks/samplers.py [--quick] [--space words|slots] [--json FILE]
    python tests/benchmarks/samplers.py --model smollm2 --device cuda --dtype float32 --json FILE [--seconds 600]
    python tests/benchmarks/samplers.py --pareto [--json FILE]

A study ends when its evaluations and gradients have cost as much as --trials evaluations, as the search counts cost
(forward equivalents; a gradient of the effect is 4 evaluations); trials beyond that do not count. No control trials. A
sampler's share is its best value over the best known of the head: the best of all studies, of which the --polish best
are improved by every one-word change until none helps. With --pareto, effect against fluency: the area between the
worst and the best of all studies that a study's trials beat, over what those of all studies beat together, one more of
`epo` with four times the budget among them.

FILE is written after each study; the same command goes on where it stopped, also with more heads, seeds or samplers.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from igap import PromptPair, load_model
from igap.counterfactual.history import Floats
from igap.counterfactual.objective.objective import Objective
from igap.counterfactual.samplers.pareto import front
from igap.counterfactual.samplers.registry import samplers_for
from igap.counterfactual.session import Progress, SearchSession
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
WORDS = {
    "first": ["names"],
    "second": ["names"],
    "subject": ["names", "animals"],
    "place": ["places"],
    "verb": ["verbs"],
    "object": ["objects"],
}
SPACES = {"words": WORDS, "slots": None}
SLOW = ("gp", "brute")
"""Samplers that take part only where they are named: minutes a study, and no sampler at all."""
DEFAULTS: dict[str, dict[str, Any]] = {
    "ioi-mini": {"heads": "0.6,0.3,1.2,1.7,2.3,2.6,3.1,3.6", "seeds": 5, "trials": 300, "samplers": None},
    "smollm2": {
        "heads": "23.3,20.0,29.1,17.4",
        "seeds": 3,
        "trials": 200,
        "samplers": "hybrid,gradient,gcg,adapt,random",
    },
}


class SpentError(Exception):
    """A study has used up its budget."""


class Study:
    """A search of its own, explored until its budget is spent."""

    def __init__(
        self, model: Any, head: str, sampler: str, seed: int, asked: argparse.Namespace, times: int = 1
    ) -> None:
        self.search = SearchSession(
            model,
            PAIR,
            head,
            Objective(("ap", "fluency") if asked.pareto else ("ap",)),
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
        self.search.seed = seed
        evaluator, until = self.search.cached.evaluator, times * asked.trials
        assert self.search.space.size > 2 * until, "a smaller space is tried as a whole"
        before = evaluator.cost
        example: Candidate = tuple(0 for _ in self.search.space.slots)
        self.search.cached.measure(self.search.bound.tokens([example]), self.search.objective)
        unit, start = evaluator.cost - before, evaluator.cost
        since, n_before = time.perf_counter(), 0
        self.n = 0
        """Trials within the budget."""

        def watch(progress: Progress) -> None:
            nonlocal n_before
            over = (evaluator.cost - start) / unit - until
            self.n = max(n_before, progress.n - max(0, math.ceil(over - 1e-6)))
            n_before = progress.n
            if over >= -1e-6:
                raise SpentError

        with suppress(SpentError):
            self.search.explore(2 * until, sampler, control=0, on_progress=watch)
        self.seconds = time.perf_counter() - since
        self.forward_equivalents = evaluator.cost - start
        self.candidates = [each.candidate for each in self.search.trials.history().proposals[: self.n]]
        self.points: Floats = self.search.trials.history().points[: self.n]


def polish(search: SearchSession, candidate: Candidate, value: float) -> float:
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


def record(study: Study, asked: argparse.Namespace) -> dict[str, Any]:
    """What is kept of a study."""
    row: dict[str, Any] = {
        "trials": study.n,
        "seconds": study.seconds,
        "forward_equivalents": study.forward_equivalents,
    }
    if asked.pareto:
        return row | {
            "front": study.points[front(study.points)].tolist(),
            "low": study.points.min(0).tolist(),
        }
    best = int(study.points[:, 0].argmax())
    return row | {"value": float(study.points[best, 0]), "candidate": list(study.candidates[best])}


def shares_of_head(kept: dict[str, Any], head: str) -> dict[str, list[float]]:
    """Each sampler's shares, a study each."""
    rows = {key: row for key, row in kept.items() if key.split("/")[0] == head and len(key.split("/")) == 3}
    values: dict[str, list[float]] = {}
    if any("front" in row for row in rows.values()):
        long = [kept[f"{head}/best"]] if f"{head}/best" in kept else []
        every = np.concatenate([np.array(row["front"]) for row in [*rows.values(), *long]])
        low, high = np.array([row["low"] for row in rows.values()]).min(0), every.max(0)
        known = hypervolume(every, low, high)
        numbers = {key: hypervolume(np.array(row["front"]), low, high) / known for key, row in rows.items()}
    else:
        known = max([row["value"] for row in rows.values()] + kept.get(f"{head}/best", {}).get("values", []))
        numbers = {key: row["value"] / known for key, row in rows.items()}
    for key, number in numbers.items():
        values.setdefault(key.split("/")[1], []).append(number)
    return values


def table_of(kept: dict[str, Any], heads: Sequence[str]) -> dict[str, dict[str, float]]:
    """By sampler: mean and worst share, and the medians of a study's trials, seconds and cost."""
    by_head = {head: shares_of_head(kept, head) for head in heads if any(key.startswith(f"{head}/") for key in kept)}
    table = {}
    for name in dict.fromkeys(name for shares in by_head.values() for name in shares):
        shares = [share for of_head in by_head.values() for share in of_head.get(name, [])]
        rows = [row for key, row in kept.items() if key.split("/")[1] == name]
        table[name] = {
            "studies": len(shares),
            "mean": statistics.fmean(shares),
            "worst": min(shares),
            "worst head": min(statistics.fmean(of_head[name]) for of_head in by_head.values() if name in of_head),
            **{
                key: statistics.median(row[key] for row in rows) for key in ("trials", "seconds", "forward_equivalents")
            },
        }
    return dict(sorted(table.items(), key=lambda item: -item[1]["mean"]))


def write(file: Path | None, settings: dict[str, Any], kept: dict[str, Any], heads: Sequence[str]) -> None:
    """The table and all studies, whole or not at all."""
    if file is not None:
        beside = file.with_name(f"{file.name}.part")
        text = {"settings": settings, "table": table_of(kept, heads), "studies": kept}
        beside.write_text(json.dumps(text, indent=1))
        os.replace(beside, file)


def main() -> None:
    """Prints a table: mean and worst share, seconds and forward equivalents a study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(DEFAULTS), default="ioi-mini")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--quick", action="store_true", help="2 heads, 2 seeds")
    parser.add_argument("--pareto", action="store_true", help="effect against fluency")
    parser.add_argument("--samplers", help="names with commas between; by default all but gp and brute")
    parser.add_argument("--heads", help="names with commas between")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--trials", type=int, help="evaluations that a study may cost")
    parser.add_argument("--clean", type=int, default=4, help="clean prompts")
    parser.add_argument("--space", choices=tuple(SPACES), default="words")
    parser.add_argument("--polish", type=int, default=5, help="best prompts of a head that are polished")
    parser.add_argument("--seconds", type=float, default=math.inf, help="no study begins later than that")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    default = DEFAULTS[asked.model]
    asked.trials = asked.trials or (600 if asked.pareto else default["trials"])
    heads, seeds = (asked.heads or default["heads"]).split(","), asked.seeds or default["seeds"]
    if asked.quick:
        heads, seeds = heads[:2], 2
    chosen = asked.samplers or (None if asked.pareto else default["samplers"])
    all_names = samplers_for(2 if asked.pareto else 1)
    names = chosen.split(",") if chosen else [name for name in all_names if name not in SLOW]
    settings = {key: getattr(asked, key) for key in ("model", "dtype", "pareto", "trials", "clean", "space")}
    kept: dict[str, Any] = {}
    if asked.json and asked.json.exists():
        there = json.loads(asked.json.read_text())
        if there["settings"] != settings:
            sys.exit(f"{asked.json}: has {there['settings']}, asked for {settings}. Use another file.")
        kept = there["studies"]
    since, left = time.perf_counter(), 0
    model = load_model(asked.model, device=asked.device, dtype=asked.dtype)
    with borrow(model):
        for head in heads:
            study = None
            for seed in range(seeds):
                for name in names:
                    key = f"{head}/{name}/{seed}"
                    if key in kept:
                        continue
                    if time.perf_counter() - since > asked.seconds:
                        left += 1
                        continue
                    study = Study(model, head, name, seed, asked)
                    kept[key] = record(study, asked)
                    write(asked.json, settings, kept, heads)
            in_time = time.perf_counter() - since < asked.seconds
            if asked.pareto and in_time and f"{head}/best" not in kept:
                kept[f"{head}/best"] = record(Study(model, head, "epo", seeds, asked, times=4), asked)
                write(asked.json, settings, kept, heads)
            elif study is not None and not asked.pareto and asked.polish and in_time:
                ends = {tuple(row["candidate"]): row["value"] for key, row in kept.items() if key.startswith(f"{head}/")
                        and "value" in row}  # fmt: skip
                top = sorted(ends, key=ends.__getitem__)[-asked.polish :]
                kept[f"{head}/best"] = {"values": [polish(study.search, each, ends[each]) for each in top]}
                write(asked.json, settings, kept, heads)
            if any(key.startswith(f"{head}/") for key in kept):
                row = "  ".join(f"{n} {statistics.fmean(s):.3f}" for n, s in shares_of_head(kept, head).items())
                best = max(kept.get(f"{head}/best", {}).get("values", [0.0]))
                print(f"{head:>4}{f'  best known {best:.3f} logits' if best else ''}  {row}", flush=True)
    print(
        f"{asked.model} on {asked.device}, {len(heads)} heads x {seeds} seeds, {asked.trials} evaluations, "
        f"{asked.clean} clean prompts, {asked.space}"
    )
    for name, row in table_of(kept, heads).items():
        print(
            f"{name:>10}  share: mean {row['mean']:.3f}, worst {row['worst']:.3f}, worst head {row['worst head']:.3f}; "
            f"{row['trials']:.0f} trials, {row['seconds']:.1f} s, {row['forward_equivalents']:.0f} forward "
            f"equivalents a study; {row['studies']} studies"
        )
    if left:
        print(f"{left} studies are left: the same command with --json makes them")


if __name__ == "__main__":
    main()
