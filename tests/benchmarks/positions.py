"""Patching by position beside TransformerLens' own functions, on GPT-2 small's shapes with random weights, 17 tokens.

    python tests/benchmarks/positions.py [--quick] [--device cuda] [--repeats 3] [--json FILE]

As engine.py: contenders one after the other in every repetition, ratios within a repetition, medians. TransformerLens
takes a forward of the whole model a row; it runs a sample of its rows, stated in the table, and is extrapolated.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from engine import PAIR, Bench, gpt2_small, line, ratio
from transformer_lens import patching
from transformer_lens.model_bridge import TransformerBridge

from igap import activation_patching
from igap.components import Site
from igap.engine.open_pairs import contrast

SAMPLE = 24
THEIRS: dict[Site, Callable[..., Any]] = {
    "heads": patching.get_act_patch_attn_head_out_by_pos,
    "resid_pre": patching.get_act_patch_resid_pre,
}


def beside(bench: Bench, model: TransformerBridge, site: Site) -> dict[str, Any]:
    """A site at each position, clean into corrupted as TransformerLens has it, by both."""
    with contrast(model, PAIR, direction="denoising", sites=[site]) as question:
        clean, corrupted, pair = question.clean.tokens, question.corrupted.tokens, question.pairs[0]
        start, first = question.corrupted.logit_diff.item(), question.first
    axes = {"layer": model.cfg.n_layers, "pos": corrupted.shape[1]}
    axes |= {"head": model.cfg.n_heads} if site == "heads" else {}
    index = patching.make_df_from_ranges(list(axes.values()), list(axes))
    rows = index.iloc[:: len(index) // (4 if bench.quick else SAMPLE)]
    found: dict[str, torch.Tensor] = {}

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return logits[0, -1, pair.answer] - logits[0, -1, pair.distractor]

    with torch.no_grad():
        _, cache = model.run_with_cache(clean)

    def theirs() -> None:
        with torch.no_grad():
            values = THEIRS[site](model, corrupted, cache, metric, index_axis_names=None, index_df=pd.DataFrame(rows))
        found["theirs"] = values.cpu() - start

    def ours(name: str, **options: Any) -> None:
        found[name] = activation_patching(model, PAIR, site, **options).effect

    seconds = bench.rounds(
        {
            "TransformerLens": theirs,
            "igap, each position": partial(ours, "each", positions="each", direction="denoising"),
            "igap, each position, towards zero": partial(ours, "zero", positions="each", baseline="zero"),
            "igap, all positions at once": partial(ours, "all", direction="denoising"),
            "igap, all positions at once, KL": partial(ours, "kl", direction="denoising", metric="kl"),
        },
        warm=[
            "igap, each position, towards zero",
            "igap, all positions at once",
            "igap, all positions at once, KL",
        ],
    )
    seconds["TransformerLens"] = [s / len(rows) * len(index) for s in seconds["TransformerLens"]]
    each = found["each"] if site == "heads" else found["each"][..., 0]
    difference = (each[tuple(rows.to_numpy().T)] - found["theirs"]).abs().max().item()
    size = " x ".join(f"{n} {name}" for name, n in axes.items())
    print(f"\n{site}: {size}, the prompts differ at {first}; TransformerLens from {len(rows)} of {len(index)} forwards")
    for name, values in seconds.items():
        line(name, f"{statistics.median(values):10.2f} s")
    faster = {name: ratio(seconds, "TransformerLens", name) for name in seconds if name.startswith("igap, each")}
    for name, values in faster.items():
        line(f"times faster than TransformerLens: {name}", f"{statistics.median(values):10.1f}")
    divergence = statistics.median(ratio(seconds, "igap, all positions at once, KL", "igap, all positions at once"))
    line("KL in place of the logit difference, all positions: times as long", f"{divergence:10.2f}")
    line("largest difference", f"{difference:10.1e} logits")
    return {"seconds": seconds, "times faster": faster, "largest difference, logits": difference}


def main() -> None:
    """Prints the table of both sites; writes all repetitions as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small samples, one repetition")
    parser.add_argument("--repeats", type=int, help="repetitions; 3 unless --quick")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="file for all repetitions")
    options = parser.parse_args()
    options.smollm2 = None
    bench = Bench(options)
    print(f"torch {torch.__version__}, threads {torch.get_num_threads()}, repeats {bench.repeats}")
    with tempfile.TemporaryDirectory() as folder:
        model = gpt2_small(bench, Path(folder))
    report = {site: beside(bench, model, site) for site in THEIRS}
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
