"""The engine beside a notebook's loop, batched hooks, Captum and this machine's matrix-multiply limit.

    python tests/benchmarks/engine.py [--quick] [--device cuda] [--json FILE] [--only SECTION ...] [--smollm2 FOLDER]

Every repetition measures all contenders one after the other; ratios are taken within a repetition, and medians are
reported. Contenders that would take an hour run a sample, stated in the table, and are extrapolated. Run it on an idle
machine: beside other work the threads of small operations wait for each other, which hurts the slow contenders most.
"""

import argparse
import itertools
import json
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import captum.attr
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.patching import get_act_patch_attn_head_out_all_pos

from igap import PromptPair, activation_patching, integrated_gradients, load_model, pipeline
from igap.cli.compose import compose_one
from igap.components import SITES, Site, hook_name
from igap.engine.linear import Linear
from igap.engine.open_pairs import contrast
from igap.inputs.ioi import ioi_stream
from igap.models.load import find_checkpoint

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.memory import peak_gib

PAIR = PromptPair(
    clean="After John and Mary went to the store, Mary gave a bottle of milk to",
    corrupted="After John and Mary went to the store, John gave a bottle of milk to",
    answer=" John",
    distractor=" Mary",
    min_gap=0.0,
)
HOOKED_ROWS = 32

Report = dict[str, Any]


class Bench:
    """Options, and how a time is taken."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.quick: bool = options.quick
        self.device: str = options.device
        self.repeats: int = options.repeats or (1 if options.quick else 3)
        self.smollm2: Path | None = options.smollm2

    def seconds(self, work: Callable[[], object]) -> float:
        """Seconds of one call, the card's work included."""
        self._wait()
        since = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - since

    def rounds(self, contenders: dict[str, Callable[[], object]], warm: Sequence[str] = ()) -> dict[str, list[float]]:
        """Seconds of every contender in every repetition, each that is not `warm` already run once before."""
        for name, work in contenders.items():
            if name not in warm:
                work()
        found: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(self.repeats):
            for name, work in contenders.items():
                found[name].append(self.seconds(work))
        return found

    def _wait(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()


def gpt2_small(bench: Bench, folder: Path, dtype: str = "float32", **shape: int) -> TransformerBridge:
    """GPT-2 small's shapes (or others) with random weights, and the embedded model's tokenizer."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(**shape)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(find_checkpoint("ioi-mini")).save_pretrained(folder)
    return load_model(str(folder), device=bench.device, dtype=dtype)


def smollm2_shapes(bench: Bench, folder: Path) -> Path:
    """SmolLM2's own checkpoint where it was given, or one of its shapes with random weights, made in `folder`."""
    if bench.smollm2:
        return bench.smollm2
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152}
    config = LlamaConfig(num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(find_checkpoint("ioi-mini")).save_pretrained(folder)
    return folder


class Hooked:
    """What a notebook does: the whole model with a hook, all logits of all positions, one component a row."""

    def __init__(self, model: TransformerBridge, pair: PromptPair) -> None:
        with contrast(model, pair) as question:
            self.question = question
        self.model, self.pair = model, question.pairs[0]

    def logit_diff(self, site: Site, layer: int, components: Sequence[int]) -> torch.Tensor:
        """F with each component, alone, replaced: one row a component, in logits."""
        source = self.question.corrupted.activations[site][layer]

        def patch(activation: torch.Tensor, hook: Any) -> torch.Tensor:
            activation = activation.clone()
            for row, component in enumerate(components):
                activation[row, :, component] = source[0, :, component]
            return activation

        tokens = self.question.clean.tokens.expand(len(components), -1)
        with torch.no_grad():
            logits = self.model.run_with_hooks(tokens, fwd_hooks=[(hook_name(site, layer), patch)])
        return logits[:, -1, self.pair.answer] - logits[:, -1, self.pair.distractor]


def patching(bench: Bench) -> Report:
    """All neurons and heads of a GPT-2-small-sized model, notebook's pair: 17 tokens, the first difference at 10."""
    with tempfile.TemporaryDirectory() as folder:
        model = gpt2_small(bench, Path(folder))
        tiny = gpt2_small(bench, Path(folder, "tiny"), "float64", n_embd=32, n_layer=3, n_head=4, n_inner=48)
    report = patching_of(bench, model, "GPT-2-small shapes")
    exact, plain = (activation_patching(tiny, PAIR, "neurons", route=route).effect for route in ("suffix", "hooks"))
    name = "largest difference to hooks, float64, small model, logits"
    report[name] = (exact - plain).abs().max().item()
    line(name, f"{report[name]:10.1e}")
    return report


def patching_of(bench: Bench, model: TransformerBridge, title: str) -> Report:
    """All neurons and heads of a model, beside the notebook's loop, batched hooks and the matrix-multiply limit."""
    with contrast(model, PAIR) as question:
        n_tokens, first = question.clean.tokens.shape[1], question.first
    hooked = Hooked(model, PAIR)
    n_layers, cfg = model.cfg.n_layers, model.cfg
    n_all = n_layers * (cfg.n_heads + cfg.d_mlp)
    layers = list(range(n_layers))[:: 4 if bench.quick else 1]
    sample = [("neurons", layer, 101 * layer % cfg.d_mlp) for layer in layers]
    sample += [("heads", layer, 5) for layer in layers]
    a_pass = 100
    found: dict[tuple[Site, int, int], float] = {}

    def loop() -> None:
        for site, layer, component in sample:
            found[site, layer, component] = hooked.logit_diff(site, layer, [component]).item()

    def batched() -> None:
        for layer in layers[::3]:
            hooked.logit_diff("neurons", layer, range(HOOKED_ROWS))

    def engine() -> None:
        if bench.quick:
            with contrast(model, PAIR) as question, torch.no_grad():
                for layer in layers:
                    question.patches("neurons", layer)(torch.arange(a_pass))
        else:
            for site in SITES:
                maps[site] = activation_patching(model, PAIR, site)

    maps: dict[Site, Any] = {}
    limit = Limit(bench, model, a_pass * (n_tokens - first))
    memory = peak_gib(bench.device, engine)
    rounds = bench.rounds({"loop": loop, "batched": batched, "limit": limit.work, "engine": engine}, warm=["engine"])
    seconds = {
        "notebook loop": [s / len(sample) * n_all for s in rounds["loop"]],
        "hooks, batches of 32": [s / len(layers[::3]) / HOOKED_ROWS * n_all for s in rounds["batched"]],
        "igap": [s / (len(layers) * a_pass) * n_all for s in rounds["engine"]] if bench.quick else rounds["engine"],
    }
    rate = [limit.flop / s for s in rounds["limit"]]
    needed = flop_needed(cfg, n_layers, n_tokens - first)
    share = [needed / s / r for s, r in zip(seconds["igap"], rate, strict=True)]
    report: Report = {
        "components": n_all,
        "sample of the loop": len(sample),
        "seconds": seconds,
        "times faster than the notebook loop": ratio(seconds, "notebook loop"),
        "times faster than batched hooks": ratio(seconds, "hooks, batches of 32"),
        "needed flop": needed,
        "limit, flop/s": rate,
        "limit with F.linear, flop/s": limit.torchs(),
        "share of the limit": share,
        "peak memory beyond the model, GiB": memory,
    }
    if maps:
        unpatched = question.clean.logit_diff.item()
        report["largest difference to hooks, float32, logits"] = max(
            abs(maps[site].effect[layer, c].item() - (value - unpatched)) for (site, layer, c), value in found.items()
        )
    print(f"\nActivation patching, {title}, {n_tokens} tokens, first difference {first}, {n_all} components")
    for name, values in seconds.items():
        how = "" if name == "igap" and maps else " (extrapolated)"
        line(f"{name}{how}", f"{statistics.median(values):10.1f} s")
    for name in ("times faster than the notebook loop", "times faster than batched hooks"):
        line(name, f"{statistics.median(report[name]):10.1f}")
    line("matrix-multiply limit, same shapes", f"{statistics.median(rate) / 1e9:10.0f} GFLOP/s")
    line("  of it with F.linear", f"{report['limit with F.linear, flop/s'] / 1e9:10.0f} GFLOP/s")
    line("share of the limit reached", f"{statistics.median(share):10.0%}")
    line("peak memory beyond the model", f"{memory:10.2f} GiB")
    for name, value in report.items():
        if name.startswith("largest"):
            line(name, f"{value:10.1e}")
    with contrast(model, PAIR) as question, torch.no_grad():
        per_neuron = {}
        for layer in (0, 5, 10):
            patch = question.patches("neurons", layer)
            times = bench.rounds({"": lambda patch=patch: patch(torch.arange(a_pass))})[""]
            per_neuron[layer] = [s / a_pass * 1e3 for s in times]
    report["ms a neuron by layer"] = per_neuron
    line("ms a neuron in layers 0, 5, 10", "   ".join(f"{statistics.median(ms):.2f}" for ms in per_neuron.values()))
    return report


class Limit:
    """The four products of a block, at the rows of one pass."""

    def __init__(self, bench: Bench, model: TransformerBridge, rows: int) -> None:
        self._bench = bench
        self._products = []
        for d_in, d_out in products(model.cfg):
            weight, x = torch.randn(d_out, d_in, device=bench.device), torch.randn(rows, d_in, device=bench.device)
            self._products.append((Linear(weight, None), x))
        self._times = 20
        self.flop = self._times * 2 * rows * sum(d_in * d_out for d_in, d_out in products(model.cfg))

    def work(self) -> None:
        """Each product, as the engine multiplies."""
        with torch.no_grad():
            for _ in range(self._times):
                for linear, x in self._products:
                    linear(x)

    def torchs(self) -> float:
        """Operations a second of torch's own product."""

        def work() -> None:
            for _ in range(self._times):
                for linear, x in self._products:
                    torch.nn.functional.linear(x, linear.weight)

        return self.flop / statistics.median(self._bench.rounds({"": work})[""])


def products(cfg: Any) -> list[tuple[int, int]]:
    """Inputs and outputs of a block's four products: queries, keys and values; W_O; W_in (and W_gate); W_out."""
    d, heads, width = cfg.d_model, cfg.n_heads * cfg.d_head, cfg.d_mlp
    keys_values = 2 * (cfg.n_key_value_heads or cfg.n_heads) * cfg.d_head
    return [(d, heads + keys_values), (heads, d), (d, (1 + bool(cfg.gated_mlp)) * width), (width, d)]


def flop_needed(cfg: Any, n_layers: int, changed: int) -> int:
    """Floating-point operations in matrices to patch all neurons and heads, with shared keys and values.

    After layer L: n - 2 - L whole blocks a changed position, and the last block's keys and values of every changed
    position, query, output projection and MLP of one. A head's own block adds its output projection and the MLP.
    """
    qkv, out, up, down = (2 * d_in * d_out for d_in, d_out in products(cfg))
    keys_values = qkv - out
    whole, total = qkv + out + up + down, 0
    for layer in range(n_layers):
        last = layer == n_layers - 1
        after = 0 if last else ((n_layers - 2 - layer) * whole + keys_values) * changed + whole - keys_values
        own = (out // cfg.n_heads + up + down) * (1 if last else changed)
        total += cfg.d_mlp * after + cfg.n_heads * (after + own)
    return total


def gradients(bench: Bench) -> Report:
    """Joint IG of a GPT-2-small-sized model."""
    with tempfile.TemporaryDirectory() as folder:
        model = gpt2_small(bench, Path(folder))
    return gradients_of(bench, model, "GPT-2-small shapes")


def gradients_of(bench: Bench, model: TransformerBridge, title: str) -> Report:
    """Joint IG with 50 nodes, heads and neurons: Captum's layer class, igap, and igap with n_steps=auto."""
    with contrast(model, PAIR) as question:
        clean, corrupted, pair = question.clean.tokens, question.corrupted.tokens, question.pairs[0]
    model.requires_grad_(False)
    last = model.cfg.n_layers - 1
    layers = [round(share * last) for share in ((0, 0.5, 1) if bench.quick else (0, 0.25, 0.5, 0.75, 1))]
    theirs: dict[tuple[Site, int], torch.Tensor] = {}

    def metric(tokens: torch.Tensor) -> torch.Tensor:
        logits = model(tokens)
        return logits[:, -1, pair.answer] - logits[:, -1, pair.distractor]

    def captums(site: Site, layer: int) -> None:
        method = captum.attr.LayerIntegratedGradients(metric, model.hook_dict[hook_name(site, layer)])
        # Its path runs the other way round, in the run of `inputs`.
        found = -method.attribute(clean, corrupted, n_steps=50)
        width = model.cfg.n_heads if site == "heads" else found.shape[-1]
        theirs[site, layer] = found.reshape(*found.shape[:2], width, -1).sum((0, 1, 3))

    report: Report = {"layers of Captum": len(layers), "seconds": {}, "n_steps of auto": {}, "largest difference": {}}
    print(f"\nJoint IG, 50 nodes, {title}, {clean.shape[1]} tokens; Captum on {len(layers)} layers a site")
    total: dict[str, list[float]] = {}
    for site in SITES:
        maps = {}

        def ours(n_steps: Any, name: str, site: Site = site, maps: dict[str, Any] = maps) -> None:
            maps[name] = integrated_gradients(model, PAIR, site, n_steps=n_steps)

        rounds = bench.rounds(
            {
                "Captum": lambda site=site: [captums(site, layer) for layer in layers],
                "igap": lambda ours=ours: ours(50, "igap"),
                "igap auto": lambda ours=ours: ours("auto", "auto"),
            }
        )
        rounds["Captum"] = [s / len(layers) * model.cfg.n_layers for s in rounds["Captum"]]
        report["seconds"][site] = rounds
        report["n_steps of auto"][site] = maps["auto"].n_steps.tolist()
        largest = maps["igap"].effect.abs().max().item()
        difference = max(
            (maps["igap"].effect[layer] - theirs[site, layer].cpu()).abs().max().item() for layer in layers
        )
        apart = (maps["igap"].effect - maps["auto"].effect).abs().max().item()
        report["largest difference"][site] = {
            "to Captum, logits": difference,
            "auto to 50, of largest": apart / largest,
        }
        for name, values in rounds.items():
            total[name] = [a + b for a, b in itertools.zip_longest(total.get(name, []), values, fillvalue=0.0)]
            line(f"{site}: {name}", f"{statistics.median(values):10.2f} s")
        line(f"{site}: largest difference to Captum", f"{difference:10.1e} logits")
        line(f"{site}: auto's nodes by layer", " ".join(map(str, report["n_steps of auto"][site])))
    report["times faster than Captum"] = ratio(total, "Captum", "igap")
    report["auto, share of the time"] = [a / b for a, b in zip(total["igap auto"], total["igap"], strict=True)]
    line("times faster than Captum", f"{statistics.median(report['times faster than Captum']):10.1f}")
    line("auto's share of the time of 50 nodes", f"{statistics.median(report['auto, share of the time']):10.0%}")
    return report


def growth(bench: Bench) -> Report:
    """Cost by tokens and first difference, by components, and by pairs."""
    with tempfile.TemporaryDirectory() as folder:
        model = gpt2_small(bench, Path(folder))
    report: Report = {"tokens": [], "components": {}, "pairs": {}}
    print("\nGPT-2-small shapes, a neuron of layer 0, by tokens and first difference")
    for n_tokens, first in ((17, 10), (64, 4), (64, 56), (256, 4), (256, 248)):
        pair = long_pair(n_tokens, first)
        changed = n_tokens - first
        n = 8 if bench.quick else max(16, 1000 // changed)
        hooked = Hooked(model, pair)
        with contrast(model, pair) as question, torch.no_grad():
            assert (question.clean.tokens.shape[1], question.first) == (n_tokens, first)
            patch = question.patches("neurons", 0)
            rounds = bench.rounds(
                {
                    "igap": lambda patch=patch, n=n: patch(torch.arange(n)),
                    "hooks": lambda hooked=hooked: hooked.logit_diff("neurons", 0, range(8)),
                }
            )
            difference = (patch(torch.arange(8))[0] - hooked.logit_diff("neurons", 0, range(8))).abs().max().item()
        a_neuron = [s / n * 1e3 for s in rounds["igap"]]
        faster = [b / 8 * 1e3 / a for a, b in zip(a_neuron, rounds["hooks"], strict=True)]
        row = {"tokens": n_tokens, "first": first, "ms a neuron": a_neuron, "times faster than batched hooks": faster}
        report["tokens"].append({**row, "largest difference, logits": difference})
        ms = statistics.median(a_neuron)
        line(
            f"{n_tokens} tokens, first difference {first}",
            f"{ms:8.2f} ms, {ms / changed:6.3f} a changed token, {statistics.median(faster):6.1f} times faster than "
            f"batched hooks, difference {difference:.0e}",
        )
    print("GPT-2-small shapes, layer 0, by components")
    with contrast(model, PAIR) as question, torch.no_grad():
        rows = question.rows(None, None, gradients=False)
        patch = question.patches("neurons", 0)
        for n in (128, 256, 512, 1024)[: 2 if bench.quick else 4]:
            times = bench.rounds({"": lambda n=n: list(rows.each(patch, torch.arange(n)))})[""]
            report["components"][n] = times
            line(f"{n} neurons", f"{statistics.median(times) / n * 1e3:8.2f} ms a neuron")
    print("ioi-mini, all heads and neurons, AP and IG (50 nodes), by pairs")
    mini = load_model(device=bench.device)
    pairs = [PromptPair(e.clean, e.corrupted, e.answer, e.distractor) for e in itertools.islice(ioi_stream(0), 100)]
    for n in (1, 10, 100)[: 2 if bench.quick else 3]:

        def both(n: int = n) -> None:
            for site in SITES:
                activation_patching(mini, pairs[:n], site)
                integrated_gradients(mini, pairs[:n], site)

        times = bench.rounds({"": both})[""]
        report["pairs"][n] = times
        line(f"{n} pairs", f"{statistics.median(times):8.2f} s, {statistics.median(times) / n * 1e3:8.1f} ms a pair")
    return report


def embedded(bench: Bench) -> Report:
    """ioi-mini with all components: every neuron and head by igap and by plain hooks."""
    model = load_model(device=bench.device)
    hooked = Hooked(model, PAIR)
    sample = [("neurons", layer, 40 * layer) for layer in range(4)] + [("heads", layer, layer) for layer in range(4)]
    maps: dict[str, dict[Site, Any]] = {}

    def patch(route: Any) -> None:
        maps[str(route)] = {site: activation_patching(model, PAIR, site, route=route) for site in SITES}

    rounds = bench.rounds(
        {
            "notebook loop": lambda: [hooked.logit_diff(site, layer, [c]) for site, layer, c in sample],
            "hooks": lambda: patch("hooks"),
            "igap": lambda: patch(None),
            "igap, IG of 50 nodes": lambda: [integrated_gradients(model, PAIR, site) for site in SITES],
        }
    )
    n_all = sum(found.effect.numel() for found in maps["None"].values())
    rounds["notebook loop"] = [s / len(sample) * n_all for s in rounds["notebook loop"]]
    difference = max((maps["None"][s].effect - maps["hooks"][s].effect).abs().max().item() for s in SITES)
    print(f"\nioi-mini, all {n_all} components (the notebook's loop on {len(sample)}, extrapolated)")
    for name, values in rounds.items():
        line(name, f"{statistics.median(values):8.2f} s")
    faster = ratio(rounds, "notebook loop", "igap")
    line("times faster than the notebook loop", f"{statistics.median(faster):8.1f}")
    line("largest difference to hooks", f"{difference:8.1e} logits")
    return {"seconds": rounds, "times faster than the notebook loop": faster, "largest difference, logits": difference}


def smollm2(bench: Bench) -> Report:
    """SmolLM2's shapes: 30 layers of 9 heads with 3 key-value heads and 1,536 neurons; and a whole default run."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = smollm2_shapes(bench, Path(folder))
        model = load_model(str(checkpoint), device=bench.device)
        title = "SmolLM2" if bench.smollm2 else "SmolLM2's shapes"
        return {
            "heads": heads_beside_transformer_lens(bench, model, title),
            "gradients": gradients_of(bench, model, title),
            "patching": patching_of(bench, model, title),
            "default run, seconds": {} if bench.quick else default_run(bench, checkpoint, title),
        }


def heads_beside_transformer_lens(bench: Bench, model: TransformerBridge, title: str) -> Report:
    """All heads at all positions, clean into corrupted, by TransformerLens' own function and by igap."""
    with contrast(model, PAIR, direction="denoising") as question:
        clean, corrupted, pair = question.clean.tokens, question.corrupted.tokens, question.pairs[0]
        start = question.corrupted.logit_diff.item()

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return logits[0, -1, pair.answer] - logits[0, -1, pair.distractor]

    found: dict[str, torch.Tensor] = {}

    def theirs() -> None:
        with torch.no_grad():
            _, cache = model.run_with_cache(clean)
            patched = get_act_patch_attn_head_out_all_pos(model, corrupted, cache, metric)
        found["theirs"] = patched.cpu() - start

    def ours() -> None:
        found["ours"] = activation_patching(model, PAIR, "heads", direction="denoising").effect

    seconds = bench.rounds({"TransformerLens": theirs, "igap": ours}, warm=["TransformerLens"])
    print(f"\n{title}, {found['ours'].numel()} heads, clean into corrupted")
    for name, values in seconds.items():
        line(name, f"{statistics.median(values):10.2f} s")
    faster, difference = ratio(seconds, "TransformerLens"), (found["ours"] - found["theirs"]).abs().max().item()
    line("times faster than TransformerLens", f"{statistics.median(faster):10.1f}")
    line("largest difference", f"{difference:10.1e} logits")
    return {"seconds": seconds, "times faster than TransformerLens": faster, "largest difference, logits": difference}


def default_run(bench: Bench, checkpoint: Path, title: str) -> dict[str, float]:
    """Seconds of a default run's stages, without its files."""
    overrides = ["model=hf", f"model.name={checkpoint}", "prompts.min_gap=0", f"device={bench.device}"]
    seconds = dict(pipeline.run(compose_one(overrides).config).seconds)
    print(f"\n{title}, a default run")
    for name, value in seconds.items():
        line(name, f"{value:10.1f} s")
    return seconds


def long_pair(n_tokens: int, first: int) -> PromptPair:
    """A pair of so many tokens (BOS among them) that differ at `first` and nowhere else."""
    words = ["and", "the", "a", "of"]
    text = [words[i % 4] for i in range(n_tokens - 1)]
    other = text.copy()
    text[first - 1], other[first - 1] = "Mary", "John"
    return replace(PAIR, clean=" ".join(text), corrupted=" ".join(other))


def ratio(seconds: dict[str, list[float]], slow: str, fast: str = "igap") -> list[float]:
    """How many times faster, repetition by repetition."""
    return [a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)]


def line(name: str, value: str) -> None:
    """One line of a table."""
    print(f"  {name:<60}{value}", flush=True)


SECTIONS: dict[str, Callable[[Bench], Report]] = {
    "patching": patching,
    "gradients": gradients,
    "growth": growth,
    "ioi-mini": embedded,
    "smollm2": smollm2,
}


def main() -> None:
    """Prints every section's table; writes all repetitions as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small samples, one repetition")
    parser.add_argument("--repeats", type=int, help="repetitions; 3 unless --quick")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--json", type=Path, help="file for all repetitions")
    parser.add_argument("--smollm2", type=Path, help="SmolLM2's checkpoint folder; random weights without")
    options = parser.parse_args()
    bench = Bench(options)
    machine = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": _processor(),
        "device": torch.cuda.get_device_name(bench.device) if bench.device.startswith("cuda") else "cpu",
        "repeats": bench.repeats,
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()) + "\n")
    report = {"machine": machine, **{name: SECTIONS[name](bench) for name in options.only}}
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
        print(f"\nwritten to {options.json}")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    flags = [flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if found and flag in info.read_text()]
    return f"{found[1] if found else platform.processor()} ({' '.join(flags)})"


if __name__ == "__main__":
    main()
