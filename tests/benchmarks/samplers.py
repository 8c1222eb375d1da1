"""How near each sampler of `igap search` comes to the best known prompt in a given number of evaluations.

    python tests/benchmarks/samplers.py [--quick] [--samplers hybrid,gradient,...] [--until 300] [--clean 4]

On the embedded model, the default space (2e11 prompts), several heads and seeds. The best known prompt of a head is the
best of all runs, each polished by every one-word change until none is better. A sampler's share is its best value
over that. No control trials: every sampler gets the whole budget.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from optuna.storages import InMemoryStorage

from igap import PromptPair, load_model
from igap.counterfactual.config import SAMPLERS
from igap.counterfactual.evaluation import Evaluator
from igap.counterfactual.objectives import Objective
from igap.counterfactual.search import component, explore, prepare
from igap.counterfactual.study import Trials
from igap.runs import frozen

PAIR = PromptPair(
    "After John and Mary went to the store, Mary gave a bottle of milk to",
    "After John and Mary went to the store, John gave a bottle of milk to",
    " John",
    " Mary",
)
HEADS = ("0.6", "0.3", "1.2", "1.7", "2.3", "2.6", "3.1", "3.6")


def polished(evaluator: Evaluator, objective: Objective, candidate: tuple[int, ...], value: float) -> float:
    """The value after every one-word change that helps, the best first, until none does."""
    sizes = evaluator.filled.space.sizes
    while True:
        changes = [
            (*candidate[:slot], option, *candidate[slot + 1 :])
            for slot, size in enumerate(sizes)
            for option in range(size)
            if option != candidate[slot]
        ]
        values = objective.of(objective.effects(evaluator, changes))
        if values.max() <= value:
            return value
        candidate, value = changes[int(values.argmax())], float(values.max())


def main() -> None:
    """Prints a table: share of the best known, mean, worst, seconds and forward equivalents a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 heads, 2 seeds")
    parser.add_argument("--samplers", default=",".join(name for name in SAMPLERS if name not in ("gp", "brute")))
    parser.add_argument("--until", type=int, default=300)
    parser.add_argument("--clean", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    heads, seeds = (HEADS[:2], 2) if asked.quick else (HEADS, asked.seeds)
    model = load_model("ioi-mini")
    filled = prepare(PAIR, model.tokenizer, clean_n=asked.clean, heldout_n=0, prepend_bos=True).filled
    objective = Objective()
    names = asked.samplers.split(",")
    shares: dict[str, list[float]] = {name: [] for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    costs: dict[str, list[float]] = {name: [] for name in names}
    with frozen(model):
        for head in heads:
            evaluator = Evaluator(model, filled, component(model, head))
            best: dict[str, list[float]] = {name: [] for name in names}
            known = 0.0
            for name in names:
                for seed in range(seeds):
                    trials, cost, since = (
                        Trials(InMemoryStorage(), filled.space, {}),
                        evaluator.cost,
                        time.perf_counter(),
                    )
                    explore(evaluator, objective, trials, asked.until, name, 16, 0, seed, None)
                    seconds[name].append(time.perf_counter() - since)
                    costs[name].append(evaluator.cost - cost)
                    history = trials.history()
                    top = history.order[0]
                    best[name].append(float(history.values[top]))
                    known = max(known, polished(evaluator, objective, history.proposals[top].candidate, best[name][-1]))
            for name in names:
                shares[name] += [value / known for value in best[name]]
            row = "  ".join(f"{name} {statistics.fmean(best[name]) / known:.3f}" for name in names)
            print(f"{head:>4}  best known {known:.3f} logits  {row}", flush=True)
    table = {
        name: {
            "mean": statistics.fmean(shares[name]),
            "worst": min(shares[name]),
            "seconds": statistics.median(seconds[name]),
            "forward_equivalents": statistics.median(costs[name]),
        }
        for name in names
    }
    print(f"{len(heads)} heads x {seeds} seeds, {asked.until} evaluations, {asked.clean} clean prompts")
    for name, row in sorted(table.items(), key=lambda item: -item[1]["mean"]):
        print(
            f"{name:>10}  share of the best known: mean {row['mean']:.3f}, worst {row['worst']:.3f}; "
            f"{row['seconds']:.1f} s, {row['forward_equivalents']:.0f} forward equivalents a run"
        )
    if asked.json:
        asked.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
