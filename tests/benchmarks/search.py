"""How many corrupted prompts a second a search evaluates, beside one candidate at a time through hooks.

    python tests/benchmarks/search.py [--quick] [--json FILE] [--repeats N]

GPT-2 small's shapes, random weights, AP of head 9.6, prompts of 17 tokens, spaces of words (one corrupted prompt for
all clean prompts) and of words and rules (one for each). Every repetition measures all contenders one after the other;
ratios are taken within a repetition, and medians are reported. Run it on an idle machine.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine import PAIR, Bench, gpt2_small
from transformer_lens.model_bridge import TransformerBridge

from igap.counterfactual.history import History
from igap.counterfactual.objective.evaluator import Evaluator
from igap.counterfactual.samplers.base import draw
from igap.counterfactual.spaces.base import BoundSpace, Candidate
from igap.counterfactual.spaces.prepare import prepare
from igap.counterfactual.target import Target
from igap.engine.activations import borrow
from igap.inputs.prompts import tokenize

TARGET = Target((("heads", 9, 6),))
HOOK = "blocks.9.attn.hook_z"
WORDS = {
    "first": ["names"],
    "second": ["names"],
    "subject": ["names", "animals"],
    "place": ["places"],
    "verb": ["verbs"],
    "object": ["objects"],
}


def hooked(model: TransformerBridge, bound: BoundSpace, candidates: Sequence[Candidate]) -> torch.Tensor:
    """`[candidate, pair]`, in logits: a corrupted run and a patched clean run each, the whole model, all logits."""
    tokens = bound.tokens(candidates).expand(len(bound.pairs), -1, -1)
    pairs = [tokenize(model, pair) for pair in bound.pairs]
    found = torch.empty(len(candidates), len(pairs))
    with torch.no_grad():
        clean = [model(pair.clean)[0, -1, [pair.answer, pair.distractor]] for pair in pairs]
        for row in range(len(candidates)):
            for i, pair in enumerate(pairs):
                kept: list[torch.Tensor] = []

                def keep(z: torch.Tensor, hook: Any, kept: list[torch.Tensor] = kept) -> None:
                    kept.append(z[:, :, TARGET.index].clone())

                def patch(z: torch.Tensor, hook: Any, kept: list[torch.Tensor] = kept) -> torch.Tensor:
                    z = z.clone()
                    z[:, :, TARGET.index] = kept[0]
                    return z

                model.run_with_hooks(tokens[i, row : row + 1], fwd_hooks=[(HOOK, keep)])
                logits = model.run_with_hooks(pair.clean, fwd_hooks=[(HOOK, patch)])[0, -1]
                answer, distractor = clean[i]
                found[row, i] = logits[pair.answer] - logits[pair.distractor] - (answer - distractor)
    return found


def main() -> None:
    """Prints a table, and the largest difference between both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one repetition, fewer candidates")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int)
    asked = parser.parse_args()
    bench = Bench(asked)
    n, n_hooked = (32, 4) if asked.quick else (128, 8)
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = gpt2_small(bench, Path(folder))
    print(f"{torch.get_num_threads()} threads; {n} candidates in batches of 16, {n_hooked} through hooks")
    with borrow(model):
        for name, slots in (("words", WORDS), ("words and rules", None)):
            for n_clean in (1, 8):
                bound = prepare(PAIR, model.tokenizer, space=slots, clean_n=n_clean, heldout_n=0, prepend_bos=True)
                here = bound.bind(bound.pairs[:n_clean])
                evaluator = Evaluator(model, here, TARGET)
                history = History(here.space, (), np.zeros((0, 1)))
                drawn = [one.candidate for one in draw(history, n, np.random.default_rng(0))]
                few = drawn[:n_hooked]

                def batches(evaluator: Evaluator = evaluator, drawn: list[Candidate] = drawn) -> None:
                    for start in range(0, len(drawn), 16):
                        evaluator.effects(drawn[start : start + 16])

                def first_order_scores(evaluator: Evaluator = evaluator, drawn: list[Candidate] = drawn) -> None:
                    evaluator.first_order_scores(drawn[0], torch.ones(len(evaluator.bound.pairs)))

                def one_by_one(here: BoundSpace = here, few: list[Candidate] = few) -> None:
                    hooked(model, here, few)

                off = (evaluator.effects(few) - hooked(model, here, few)).abs().max().item()
                seconds = bench.rounds({"batches": batches, "hooks": one_by_one, "gains": first_order_scores})
                a_candidate = [took / n for took in seconds["batches"]]
                ratios = [slow / n_hooked / fast for slow, fast in zip(seconds["hooks"], a_candidate, strict=True)]
                row = {
                    "evaluations a second": 1 / statistics.median(a_candidate),
                    "times as fast as hooks": statistics.median(ratios),
                    "of all repetitions": [round(ratio, 1) for ratio in ratios],
                    "gains of every word, in evaluations": statistics.median(seconds["gains"])
                    / statistics.median(a_candidate),
                    "largest difference, logits": off,
                }
                report[f"{name}, {n_clean} clean"] = row
                print(
                    f"{name:>16}, {n_clean} clean: {row['evaluations a second']:6.1f} evaluations a second, "
                    f"{row['times as fast as hooks']:5.1f} times hooks {row['of all repetitions']}; gains of every "
                    f"word cost {row['gains of every word, in evaluations']:.1f} evaluations; within {off:.1e} logits",
                    flush=True,
                )
    if asked.json:
        asked.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
