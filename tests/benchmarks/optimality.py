"""How often the bound of `optimality=N` holds, and how near its estimate is, on spaces whose truth is enumerated.

    python tests/benchmarks/optimality.py [--evaluations 20000] [--repeats 5]
    python tests/benchmarks/optimality.py --model [--spaces 16] [--repeats 7]

20 spaces of 10^6 candidates (6 slots of 10 options): sums of effects of slots, pairs and, in some, triples of slots;
some with a long upper tail, some with few distinct values. "The best known" is the candidate of rank 1, 4, 11, 31, 101
or 1001.
With --model the spaces are of language models: 100,000 prompts each, which are tried as a whole; three in four of a
head of the embedded model, one in four of a model with 8 layers of random weights. Template, names, words, head, sign
and clean prompt are drawn by seeds that nothing else uses, so that nothing was chosen by what these spaces show.
"""

import argparse
import itertools
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformer_lens.model_bridge import TransformerBridge

from igap import PromptPair, load_model
from igap.counterfactual.config import Constraints
from igap.counterfactual.history import Floats
from igap.counterfactual.objective.objective import Objective
from igap.counterfactual.session import SearchSession
from igap.counterfactual.spaces.base import Candidate, Slot, Space
from igap.counterfactual.trials.storages import open_storage
from igap.counterfactual.validation.neighbours import ROUNDING
from igap.counterfactual.validation.optimality import SPREAD, Optimality, estimate_share
from igap.engine.activations import borrow
from igap.errors.missing import Missing
from igap.inputs.ioi import TEMPLATES, generate_ioi
from igap.inputs.words import NAMES, PLACES, VERBS
from igap.models.load import find_checkpoint

RANKS = (1, 4, 11, 31, 101, 1001)
KINDS = ("pairs", "triples", "skewed", "plateaus")
N_SLOTS, N_OPTIONS = 6, 10
FIRST_SEED = 1000
"""Of the models' spaces; those below are synthetic."""


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


def deep_model(folder: Path) -> TransformerBridge:
    """8 layers of random weights, whose scale makes attention look at some tokens more than at others."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(find_checkpoint("ioi-mini"))
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_layer=8,
        n_head=8,
        n_embd=64,
        initializer_range=0.15,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(str(folder))


def drawn_search(seed: int, model: TransformerBridge) -> SearchSession:
    """A head, a clean prompt and five slots of ten words, by the seed."""
    rng = np.random.default_rng(seed)
    templates = [i for i, template in enumerate(TEMPLATES) if "{place}" in template and "{other}" not in template]
    (example,) = generate_ioi(1, seed, templates=[int(rng.choice(templates))])
    pair = PromptPair(example.clean, example.corrupted, example.answer, example.distractor, min_gap=0.0)
    lists = {"first": NAMES, "second": NAMES, "subject": NAMES, "place": PLACES, "verb": VERBS}
    space = {slot: [str(word) for word in rng.permutation(list(of))[:N_OPTIONS]] for slot, of in lists.items()}
    space["object"] = ["=keep"]
    head = f"{rng.integers(model.cfg.n_layers)}.{rng.integers(model.cfg.n_heads)}"
    sign: Any = rng.choice(["abs", "drop", "raise"])
    return SearchSession(
        model, pair, head, Objective(sign=sign, constraints=Constraints(min_clean=None)), space=space, clean_n=1,
        heldout_n=0, seed=0, storage=open_storage("memory", Path()), name="benchmark", identity={}, remember=None,
        memory_gib=None,
    )  # fmt: skip


def of_models(evaluations: int, repeats: int, n_spaces: int) -> None:
    """Spaces of language models that are tried as a whole."""
    marks = Marks()
    with tempfile.TemporaryDirectory() as folder:
        mini, deep = load_model("ioi-mini"), deep_model(Path(folder))
    for number in range(n_spaces):
        seed, model = FIRST_SEED + number, deep if number % 4 == 3 else mini
        with borrow(model):
            search = drawn_search(seed, model)
            since = time.process_time()
            pieces = range(0, search.space.size, 5000)
            values = np.concatenate(
                [
                    search.evaluate(search.space.candidates_between(at, min(at + 5000, search.space.size))).values[:, 0]
                    for at in pieces
                ]
            )
        ordered = np.sort(values)
        what = f"{'deep' if model is deep else 'mini'} {search.target.name} {search.objective.sign}"
        print(f"{what:>15}  {len(values):,} prompts in {time.process_time() - since:.1f} CPU seconds", flush=True)
        for repeat in range(repeats):
            rank = RANKS[(number + repeat) % len(RANKS)]
            best = float(ordered[-rank]) + ROUNDING * abs(float(ordered[-rank]))
            score = partial(look_up, values.reshape(search.space.sizes))
            rng = np.random.default_rng([seed, repeat])
            marks.add(rank, estimate_share(search.space, score, best, evaluations, rng), float((values > best).mean()))
        marks.tell()


def main() -> None:
    """Prints how often the bound held, and how near the estimates are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", action="store_true")
    parser.add_argument("--spaces", type=int, default=16)
    asked = parser.parse_args()
    if asked.model:
        of_models(asked.evaluations, asked.repeats, asked.spaces)
    else:
        synthetic(asked.evaluations, asked.repeats)


if __name__ == "__main__":
    main()
