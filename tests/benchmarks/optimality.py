"""How often the bound of `optimality=N` holds, and how near its estimate is, on spaces whose truth is enumerated.

    python tests/benchmarks/optimality.py [--evaluations 20000] [--repeats 5]
    python tests/benchmarks/optimality.py --model [--until 60]

20 spaces of 10^6 candidates (6 slots of 10 options): sums of effects of slots, pairs and, in some, triples of slots;
some with a long upper tail, some with few distinct values. "The best known" is the candidate of rank 1, 4, 11, 31, 101
or 1001.
With --model: heads of the embedded model on a space of 10,000 prompts, and the best of a search with --until trials.
"""

import argparse
import itertools
import math
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from igap import load_model
from igap.counterfactual.history import Floats
from igap.counterfactual.objective.objective import Objective
from igap.counterfactual.session import SearchSession
from igap.counterfactual.spaces.base import Candidate, Slot, Space
from igap.counterfactual.trials.storages import open_storage
from igap.counterfactual.validation.neighbours import ROUNDING
from igap.counterfactual.validation.optimality import SPREAD, Optimality, estimate_share
from igap.engine.activations import borrow
from igap.missing import Missing

sys.path.insert(0, str(Path(__file__).parent))
from samplers import PAIR

RANKS = (1, 4, 11, 31, 101, 1001)
KINDS = ("pairs", "triples", "skewed", "plateaus")
N_SLOTS, N_OPTIONS = 6, 10
WORDS = {
    "first": ["John", "Tom", "Anna", "Mark", "Paul", "Mary", "Kate", "Laura", "Peter", "Sarah"],
    "second": ["John", "Tom", "Anna", "Mark", "Paul", "Mary", "Kate", "Laura", "Peter", "Sarah"],
    "subject": ["John", "Tom", "Anna", "Mark", "Paul", "Mary", "Kate", "Laura", "Peter", "Sarah"],
    "place": ["store", "park", "school", "office", "house"],
    "verb": ["gave", "sold"],
    "object": ["bottle of milk"],
}


def made(seed: int, kind: str) -> tuple[Space, Floats]:
    """A space and the value of each of its candidates."""
    rng = np.random.default_rng(seed)
    slots = tuple(Slot(f"s{i}", tuple(f"w{o}" for o in range(N_OPTIONS)), (i + 1,)) for i in range(N_SLOTS))
    values: Floats = np.zeros([N_OPTIONS] * N_SLOTS)
    for order, most in ((1, 1.5), (2, 0.8), (3, 0.4 if kind == "triples" else 0.0)):
        for some in itertools.combinations(range(N_SLOTS), order):
            shape = [N_OPTIONS if i in some else 1 for i in range(N_SLOTS)]
            values = values + rng.uniform(0, most) * rng.normal(size=shape)
    values = {"skewed": np.exp, "plateaus": np.round}.get(kind, np.asarray)(values)
    return Space("slots", slots), values


def look_up(values: Floats, some: Sequence[Candidate]) -> Floats:
    """The values of some candidates."""
    return np.asarray(values[tuple(np.array(some).T)])


class Marks:
    """What the estimates are beside the truths."""

    def __init__(self) -> None:
        self.held: dict[object, list[bool]] = defaultdict(list)
        self.factors: list[float] = []
        self.scatter: list[float] = []
        self.evaluations: list[int] = []

    def add(self, group: object, estimate: Optimality | Missing, truth: float) -> None:
        """Mark one estimate; where no candidate is better, every bound holds."""
        assert isinstance(estimate, Optimality)
        self.held[group].append(estimate.upper >= truth)
        self.evaluations.append(estimate.n_evaluations)
        if truth > 0 and not isinstance(estimate.share, Missing):
            n = estimate.n_particles
            deaths, mean = math.log(estimate.share) / math.log(1 - 1 / n), -n * math.log(truth)
            self.factors.append(math.exp(abs(math.log(estimate.share / truth))))
            self.scatter.append((deaths - mean) / math.sqrt(mean))

    def tell(self) -> None:
        """Print them."""
        held = [each for group in self.held.values() for each in group]
        print(f"the bound held in {sum(held)} of {len(held)}, {100 * np.mean(held):.1f}%")
        print("  " + ", ".join(f"{group}: {sum(each)} of {len(each)}" for group, each in sorted(self.held.items())))
        median, ninth = np.quantile(self.factors, [0.5, 0.9])
        print(f"the estimate was within a factor of {median:.2f} in the median, {ninth:.2f} in 9 of 10 cases")
        print(f"variance of deaths beside a Poisson's: {np.var(self.scatter):.2f}; {SPREAD} is assumed")
        print(f"evaluations, mean: {np.mean(self.evaluations):,.0f}")


def synthetic(evaluations: int, repeats: int) -> None:
    """The 20 spaces of 10^6."""
    marks = Marks()
    for seed in range(20):
        space, values = made(seed, KINDS[seed % len(KINDS)])
        ordered = np.sort(values, axis=None)
        for repeat in range(repeats):
            rank = RANKS[(seed + repeat) % len(RANKS)]
            best = float(ordered[-rank])
            rng = np.random.default_rng([seed, repeat])
            estimate = estimate_share(space, partial(look_up, values), best, evaluations, rng)
            marks.add(rank, estimate, float((values > best).mean()))
    marks.tell()


def of_model(evaluations: int, repeats: int, until: int) -> None:
    """Heads of the embedded model, on a space that is tried as a whole."""
    model, marks = load_model("ioi-mini"), Marks()
    with borrow(model):
        for head in ("0.6", "0.3", "1.2", "1.7", "2.3", "2.6", "3.1", "3.6"):
            search = SearchSession(
                model, PAIR, head, Objective(), space=WORDS, clean_n=1, heldout_n=0, seed=0,
                storage=open_storage("memory", Path()), name="benchmark", identity={}, remember=None, memory_gib=None,
            )  # fmt: skip
            since = time.perf_counter()
            every = search.space.candidates_between(0, search.space.size)
            values = search.evaluate(every).values[:, 0]
            seconds = time.perf_counter() - since
            search.explore(until, control=0)
            best = max(trial.value for trial in search.trials.all())
            best += ROUNDING * abs(best)
            truth = float((values > best).mean())
            print(f"{head:>4}  {len(values):,} prompts in {seconds:.1f} s; better than the best found: {truth:.2g}")
            for repeat in range(repeats):
                score, rng = partial(look_up, values.reshape(search.space.sizes)), np.random.default_rng(repeat)
                marks.add(head, estimate_share(search.space, score, best, evaluations, rng), truth)
    marks.tell()


def main() -> None:
    """Prints how often the bound held, and how near the estimates are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", action="store_true")
    parser.add_argument("--until", type=int, default=60)
    asked = parser.parse_args()
    if asked.model:
        of_model(asked.evaluations, asked.repeats, asked.until)
    else:
        synthetic(asked.evaluations, asked.repeats)


if __name__ == "__main__":
    main()
