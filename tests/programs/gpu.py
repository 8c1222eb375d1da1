"""Does a GPU give the numbers that a CPU gives, twice the same, and within its memory?

    python tests/programs/gpu.py [--device cuda] [--only SECTION ...] [--match TEXT] [--smollm2]

families: AP and IG of every model family, in float64. methods: every public function, in float64 and in float32. runs:
whole runs by command line, cell by cell of every table, and twice on the GPU. searches: the best score. memory:
the peak of long prompts beside `memory_gib`, and going on after running out.
Ends with exit code 1 where something differs by more than rounding, or fails.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import igap
from igap.engine.open_pairs import contrast
from igap.inputs.ioi import ioi_stream

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from helpers.families import FAMILIES, save
from helpers.family_agreement import effects, precisely
from helpers.memory import peak_gib

PAIR = igap.PromptPair(
    clean="After John and Mary went to the store, Mary gave a bottle of milk to",
    corrupted="After John and Mary went to the store, John gave a bottle of milk to",
    answer=" John",
    distractor=" Mary",
    min_gap=0.0,
)
# Models are loaded on the CPU and moved, because weights are folded in float32, on either device with a rounding of its
# own. The cosines of rotary positions are float32 too, whatever the model (5e-6 logits at most on an H100).
ROUNDING = {"float64": 1e-10, "float32": 5e-4}
"""Logits. Random models have effects of size 1; SmolLM2's logits are of size 15, 30 layers deep."""
RUNS: dict[str, list[str]] = {
    "default": ["ablation=mean", "faithfulness=heads", "curves.components=1.2"],
    "pairs": ["prompts.n=12", "baseline=mean", "ig.n_steps=auto", "ablation=mean_positional"],
    "zero": ["baseline=zero", "ablation=resample"],
    "denoising": ["direction=denoising", "prompts=second-pair"],
    "positions": ["sites=heads,resid_pre,v", "positions=roles", "prompts.n=6"],
    "tokens": ["metric=logprob", "prompts.answer=' John and'", "explain=all", "sites=heads,attn_out", "positions=each"],
    "divergence": ["metric=kl", "faithfulness=heads", "direction=denoising"],
    "notebook": ["experiment=notebook"],
}
REAL = {
    "smollm2": ["model=smollm2", "sites=heads"],
    "smollm2, 6 pairs": ["model=smollm2", "sites=heads", "prompts.n=6"],
}
SEARCHES: dict[str, list[str]] = {
    "search_mini": ["search_mini"],
    "a set at the end": ["head=3.1+3.6@END", "metric=logprob", "search.until=60", "clean.n=3", "heldout.n=4"],
}
REAL_SEARCHES = {"smollm2, 23.3": ["head=23.3", "model=smollm2", "search.until=160", "clean.n=4", "heldout.n=16"]}


class Checks:
    """What was compared, and what was off."""

    def __init__(self, device: str, *, real: bool, match: str) -> None:
        self.device, self.real, self.match = device, real, match
        self.wrong: list[str] = []

    def line(self, name: str, off: float, bound: float, more: str = "") -> None:
        """Prints a difference; it is wrong beyond the bound, and when it is no number."""
        fine = off <= bound
        print(f"  {name:<44}{off:10.1e}  {more}{'' if fine else f'  WRONG, at most {bound:.0e}'}", flush=True)
        self.wrong += [] if fine else [name]

    def attempt(self, name: str, check: Callable[[], None]) -> None:
        """Goes on after a failure."""
        if self.match not in name:
            return
        try:
            check()
        except Exception:
            print(f"  {name}: FAILED\n{traceback.format_exc(limit=-6)}", flush=True)
            self.wrong.append(name)


def families(checks: Checks) -> None:
    """AP of all components and IG of 8 nodes, by the route that each family takes."""
    for name, family in FAMILIES.items():
        processing = next((each for each in ("processed", "raw") if each not in family.refused), None)

        def check(name: str = name, family: Any = family, processing: Any = processing) -> None:
            said = {}
            with tempfile.TemporaryDirectory() as folder, precisely(family):
                save(family, Path(folder))
                for device in ("cpu", checks.device):
                    model = igap.load_model(folder, processing=processing, dtype=family.dtype).to(
                        device, print_details=False
                    )
                    with contrast(model, PAIR) as question:
                        said[device], route = effects(family, question), question.backend.route
            here, there = said["cpu"], said[checks.device]
            off = max(float((here[each] - there[each]).abs().max()) for each in here)
            rotary = any("rotary" in each for each, _ in model.named_modules())
            checks.line(name, off, max(ROUNDING[family.dtype], 1e-5 if rotary else 0), route)

        if processing:
            checks.attempt(name, check)


def methods(checks: Checks) -> None:
    """Every public function on the embedded model, over three pairs."""
    drawn = itertools.islice(ioi_stream(1), 2)
    pairs = [PAIR, *(igap.PromptPair(each.clean, each.corrupted, each.answer, each.distractor) for each in drawn)]
    prompts = [igap.Prompt(each.clean, each.answer, each.distractor) for each in itertools.islice(ioi_stream(2), 40)]
    long = replace(PAIR, answer=" John and")
    calls: dict[str, Callable[[Any], Any]] = {
        "AP, heads": lambda model: igap.activation_patching(model, pairs).effect,
        "AP, neurons, hooks": lambda model: igap.activation_patching(model, PAIR, "neurons", route="hooks").effect,
        "IG, auto": lambda model: igap.integrated_gradients(model, pairs, n_steps="auto").effect,
        "IG, single": lambda model: igap.integrated_gradients(model, PAIR, path="single").effect,
        "IG, zero_input": lambda model: igap.integrated_gradients(model, PAIR, "neurons", baseline="zero_input").effect,
        "IG, denoising": lambda model: igap.integrated_gradients(model, PAIR, direction="denoising").effect,
        "AP, mean baseline": lambda model: (
            igap.activation_patching(model, PAIR, baseline=igap.Baseline("mean", n=32)).effect
        ),
        "AtP, neurons": lambda model: igap.attribution_patching(model, pairs, "neurons").effect,
        "AtP*": lambda model: igap.atp_star(model, pairs).effect,
        **{
            f"{name} of {site} by position, {metric}": lambda model, method=method, site=site, metric=metric: (
                method(model, PAIR, site, positions="each", metric=metric, direction="denoising").effect
            )
            for name, method in (
                ("AP", igap.activation_patching),
                ("IG", igap.integrated_gradients),
                ("AtP", igap.attribution_patching),
            )
            for site, metric in (("heads", "prob"), ("resid_mid", "kl"), ("k", "js"), ("mlp_out", "logprob"))
        },
        "AP, two metrics in a pass": lambda model: np.stack(
            [
                each.effect
                for each in igap.activation_patching(model, pairs, metric=["logit_diff", "kl", "prob"]).values()
            ]
        ),
        **{
            f"{name}, an answer of two tokens": lambda model, method=method: (
                method(model, long, "heads", metric="logprob", positions="each").effect
            )
            for name, method in (("AP", igap.activation_patching), ("IG", igap.integrated_gradients))
        },
        "set of three sites": lambda model: igap.set_effects(
            model, PAIR, "0.6.q+L1.mlp_out+2.1.k", metric="prob"
        ).subset_frame()["effect"],
        "curve of the residual stream": lambda model: igap.output_curve(model, PAIR, ["L2.resid_mid"]).values,
        "ablation at the end, prob": lambda model: (
            igap.ablate(model, prompts, ["2.3", "L1.attn_out"], "zero", positions="last", metric="prob", controls=1)
            .to_frame()
            .select_dtypes("number")
            .to_numpy()
        ),
        "set of three": lambda model: igap.set_effects(model, pairs, "0.6+3.1+L1.N7").subset_frame()["effect"],
        "self-repair": lambda model: igap.self_repair(model, PAIR, "0.6").to_frame()["effect_given"],
        "direct effects": lambda model: igap.direct_effect(model, pairs).direct.effect,
        "both directions": lambda model: igap.both_directions(model, PAIR).asymmetry("ap"),
        "curves by role": lambda model: igap.output_curve(model, PAIR, ["0.6"], positions="roles").values,
        "output curves": lambda model: igap.output_curve(model, PAIR, ["0.1", "L1.N7"]).values,
        "ablation": lambda model: (
            igap.ablate(model, prompts, ["0.1", "2.3"], kind="mean", reference_n=32, controls=2)
            .to_frame()
            .select_dtypes("number")
            .to_numpy()
        ),
    }
    for dtype, bound in ROUNDING.items():
        here, there = (
            igap.load_model("ioi-mini", processing="raw", dtype=dtype, device=device)
            for device in ("cpu", checks.device)
        )
        models = (here, there, there)
        for name, call in calls.items():

            def check(
                name: str = name, call: Any = call, bound: float = bound, dtype: str = dtype, models: Any = models
            ) -> None:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    a, b, again = (np.asarray(call(model), dtype=float) for model in models)
                same = "twice the same" if np.array_equal(b, again, equal_nan=True) else "NOT TWICE THE SAME"
                checks.line(f"{name}, {dtype}", largest(a, b), bound, same)

            checks.attempt(f"{name}, {dtype}", check)


def largest(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference; infinite where one side is missing."""
    if a.shape != b.shape or not np.array_equal(np.isnan(a), np.isnan(b)):
        return float("inf")
    return float(np.nanmax(np.abs(a - b), initial=0.0))


def command(checks: Checks, folder: Path, device: str, *arguments: str) -> float:
    """Runs igap; its wall-clock seconds, start included."""
    given = [sys.executable, "-m", "igap.cli", *arguments, f"device={device}", f"output={folder}", "tracking=disabled"]
    since = time.perf_counter()
    done = subprocess.run(given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"igap {' '.join(arguments)} on {device}: exit code {done.returncode}\n{done.stderr[-2500:]}"
        )
    return time.perf_counter() - since


def compare(checks: Checks, name: str, here: Path, there: Path, bound: float) -> None:
    """All tables of two folders of runs, cell by cell: effects and logits within the bound, the rest the same."""
    # The first folder is named by the time.
    tables = [
        {str(Path(*path.relative_to(each).parts[1:])): path for path in sorted(each.rglob("*.csv"))}
        for each in (here, there)
    ]
    off: dict[str, float] = {}
    apart: list[tuple[str, str, object, object]] = []
    if tables[0].keys() != tables[1].keys():
        raise RuntimeError(f"tables differ: {sorted(tables[0].keys() ^ tables[1].keys())}")
    for table in tables[0]:
        a, b = (pd.read_csv(each[table], keep_default_na=False, na_values=[""]) for each in tables)
        logits = [column for column in a if column.startswith(("effect", "logit_diff", "interaction", "value"))]
        if a.shape != b.shape or [*a] != [*b]:
            off[table] = np.inf
            continue
        key = [column for column in a if not pd.api.types.is_float_dtype(a[column])]
        in_order = [each.sort_values(key).reset_index(drop=True) for each in (a, b)]
        if in_order[0][key].equals(in_order[1][key]):  # rows may have changed places
            a, b = in_order
        else:
            cells = [
                (column, *both) for column in key for both in zip(*(x[column].fillna("") for x in (a, b)), strict=True)
            ]
            apart += [(table, *cell) for cell in cells if cell[1] != cell[2]]
        off[table] = largest(a[logits].to_numpy(float), b[logits].to_numpy(float))
    checks.line(
        name,
        max(off.values(), default=np.inf),
        bound,
        f"logits, {len(off)} tables, most in {max(off, key=off.__getitem__)}",
    )
    such = f", such as {apart[0]}" if apart else ""
    checks.line(f"{name}, text", len(apart), 0.0, f"cells of text or whole numbers that differ{such}")


def runs(checks: Checks) -> None:
    """Whole runs."""
    with tempfile.TemporaryDirectory() as work:
        for name, overrides in (REAL if checks.real else RUNS).items():

            def check(name: str = name, overrides: list[str] = overrides) -> None:
                one = Path(work, name)
                spent = {
                    each: command(checks, one / each, device, "run", *overrides, "plots=none")
                    for each, device in (("cpu", "cpu"), ("gpu", checks.device), ("again", checks.device))
                }
                compare(
                    checks, f"{name}, {spent['cpu']:.0f} s, GPU {spent['gpu']:.0f} s", one / "cpu", one / "gpu", 5e-4
                )
                compare(checks, f"{name}, twice", one / "gpu", one / "again", 0.0)
                stages(one / "cpu", one / "gpu")

            checks.attempt(name, check)


def stages(*folders: Path) -> None:
    """Seconds of the stages side by side."""
    read = [json.loads(next(each.rglob("summary.json")).read_text()) for each in folders]
    names = [name for name in read[0] if name.startswith("seconds/")]
    print("    " + ", ".join(f"{n.partition('/')[2]} {' '.join(f'{each[n]:.2f}' for each in read)}" for n in names))


def searches(checks: Checks) -> None:
    """Searches: the same best score."""
    with tempfile.TemporaryDirectory() as work:
        for name, overrides in (REAL_SEARCHES if checks.real else SEARCHES).items():

            def check(name: str = name, overrides: list[str] = overrides) -> None:
                said: list[Mapping[str, Any]] = []
                spent = []
                for each, device in (("cpu", "cpu"), ("gpu", checks.device)):
                    spent.append(command(checks, Path(work, name, each), device, "search", *overrides))
                    said.append(json.loads(next(Path(work, name, each).rglob("search_summary.json")).read_text()))
                # Float32 decides between prompts of equal score, and with them which are tried next.
                same = said[0]["best/corrupted"] == said[1]["best/corrupted"]
                more = f"logits, {'the same' if same else 'another'} prompt; {spent[0]:.0f} s, GPU {spent[1]:.0f} s"
                for key in ("by_hand/value", "best/value"):
                    here, there = (float(each[key]) for each in said)
                    checks.line(f"{name}, {key}", abs(here - there), max(1e-3 * abs(here), 1e-5), more)

            checks.attempt(name, check)


def memory(checks: Checks) -> None:
    """2,000 tokens, a Llama of 12 layers: the peak by route and method, and passes that run out of memory."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        sizes = {
            "hidden_size": 512,
            "intermediate_size": 1536,
            "num_hidden_layers": 12,
            "max_position_embeddings": 4096,
        }
        LlamaForCausalLM(LlamaConfig(num_attention_heads=8, vocab_size=4096, **sizes)).save_pretrained(folder)
        AutoTokenizer.from_pretrained(Path(igap.__file__).parent / "models" / "ioi_mini").save_pretrained(folder)
        model = igap.load_model(folder, processing="raw", device=checks.device)
    words = ["and", "the", "a", "of"]
    text = [words[i % 4] for i in range(1999)]
    pair = igap.PromptPair(
        " ".join([*text[:4], "Mary", *text[5:]]),
        " ".join([*text[:4], "John", *text[5:]]),
        " John",
        " Mary",
        min_gap=0.0,
    )
    budget = 2.0
    for name, call in {
        "AP": lambda: igap.activation_patching(model, pair, memory_gib=budget),
        "AP, hooks": lambda: igap.activation_patching(model, pair, memory_gib=budget, route="hooks", batch_size=2),
        "IG, 4 nodes": lambda: igap.integrated_gradients(model, pair, n_steps=4, memory_gib=budget),
        "AtP": lambda: igap.attribution_patching(model, pair),
    }.items():

        def check(name: str = name, call: Callable[[], Any] = call) -> None:
            since = time.perf_counter()
            peak = peak_gib(checks.device, call)
            # Both runs' activations are kept beside a pass, within the same budget once more.
            bound = np.inf if "hooks" in name else 2 * budget
            checks.line(f"{name}, 2,000 tokens", peak, bound, f"GiB at most, {time.perf_counter() - since:.1f} s")

        checks.attempt(name, check)

    def runs_out() -> None:
        fits = igap.activation_patching(model, pair, batch_size=4).effect
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 3 * 2**30) / total)
        try:
            halved = igap.activation_patching(model, pair, batch_size=4096).effect
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        checks.line("4,096 rows a pass in 3 GiB, beside 4 rows", float((fits - halved).abs().max()), 5e-4, "logits")

    if checks.device.startswith("cuda"):
        checks.attempt("running out", runs_out)


SECTIONS: dict[str, Callable[[Checks], None]] = {
    section.__name__: section for section in (families, methods, runs, searches, memory)
}


def main() -> int:
    """0 where all agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--match", default="", help="only checks whose name holds this text")
    parser.add_argument(
        "--smollm2", action="store_true", help="runs and searches of SmolLM2 in place of the embedded model's"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    name = torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") else options.device
    print(f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    checks = Checks(options.device, real=options.smollm2, match=options.match)
    for section in options.only:
        print(f"{section}: {str(SECTIONS[section].__doc__).splitlines()[0]}")
        since = time.perf_counter()
        SECTIONS[section](checks)
        print(f"  {section} took {time.perf_counter() - since:.0f} s", flush=True)
    print(f"wrong: {', '.join(checks.wrong)}" if checks.wrong else "all agree")
    return 1 if checks.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
