"""The page of model families: how far igap is from plain modules on each, by which route, and how much faster.

    python tests/benchmarks/family_page.py [--write docs/families.md] [--only NAME ...] [--repeats 3] [--no-times]

About a second a family for the agreement, ten for the times. The times of a family are taken one after the
other in each repetition, and the ratio is that of the medians: run it on an idle machine.
"""

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

from igap import PromptPair, load_model
from igap.components import SITES
from igap.engine.contrast import Contrast
from igap.engine.open_pairs import contrast

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.families import FAMILIES, Family, Sizes, save
from helpers.family_agreement import METHODS, Agreement, agreements, effects, precisely

PAIR = PromptPair(
    clean="After John and Mary went to the store, Mary gave a bottle of milk to",
    corrupted="After John and Mary went to the store, John gave a bottle of milk to",
    answer=" John",
    distractor=" Mary",
    min_gap=0.0,
)
LARGE = Sizes(n_layers=12, n_heads=4, n_key_value_heads=2, d_head=64, d_mlp=1024)
ROWS = 64
"""Neurons of every other layer whose patches are timed, in one pass, beside all its heads."""

TEXT = f"""# Model families

`python tests/benchmarks/family_page.py --write docs/families.md` makes this page. Each family is a random checkpoint of
3 layers in which everything that makes the family what it is matters: windows shorter than the prompt, caps in the bend
of the tanh, norms and biases that are not 1 and 0. A test checks that each of them moves the logits, and that every
number here is rounding.

- **AP, IG**: largest difference between igap and plain Hugging Face modules with forward hooks, over all components,
  both processings of the weights and every route, in logits. All in float64: many families round norms, softmax and
  rotations to float32 in between, and for this comparison neither side does. IG has the weights of its quadrature from
  Captum, in float32. The effects themselves are of the size of 1. Families marked * cannot be computed in float64
  (transformers itself refuses): they are compared in float32.
- **as run**: the same for AP in float32, as `igap run` computes it.
- **route**: `suffix` restarts the model behind the patched site and shares what did not change; `hooks` runs the whole
  model, many patches a pass. **faster**: how many times faster `suffix` is than `hooks`: {LARGE.n_layers} layers of
  width {LARGE.d_model}, 17 tokens, AP of all heads and of {ROWS} neurons of every other layer, medians,
  on two cores of an EPYC with AVX-512. It was 5 to 11 on another, where torch's own products reached 94% of oneDNN's.
- Neurons are the columns that the MLP's last matrix reads, in every family. Those of mixtures of experts have no
  effects of their own, since which of them there are depends on the token.
"""


def main() -> None:
    """Writes the page, or prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--only", nargs="+", default=list(FAMILIES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-times", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    taken, refused = [], []
    for name in arguments.only:
        family = FAMILIES[name]
        for processing, why in family.refused.items():
            refused.append(f"| {name} | {processing} | {why} |")
        if len(family.refused) < 2:
            taken.append(row(name, family, 0 if arguments.no_times else arguments.repeats))
            print(taken[-1], file=sys.stderr, flush=True)
    head = ["family", "AP heads", "AP neurons", "IG heads", "IG neurons", "as run", "route", "faster"]
    page = "\n".join(
        [
            TEXT,
            *(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head))),
            *taken,
            "\n## Refused, in one line\n",
            "| family | `model.processing` | why |\n|---|---|---|",
            *refused,
        ]
    )
    if arguments.write:
        arguments.write.write_text(page + "\n")
    else:
        print(page)


def row(name: str, family: Family, repeats: int) -> str:
    """The family's row of the page."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are so small that a second thread only waits
    with tempfile.TemporaryDirectory() as folder:
        with precisely(family):
            agreement = agreements(family, Path(folder), PAIR)
        as_run, route = in_float32(family, Path(folder), agreement)
    torch.set_num_threads(threads)
    cells = [name if family.dtype == "float64" else f"{name} *"]
    for method in METHODS:
        for site in SITES:
            off = [each.off(site, method) for each in agreement.values()] if site in family.sites else None
            cells.append("no effects" if off is None else f"{max(off):.0e}")
    return f"| {' | '.join([*cells, f'{as_run:.0e}', route, faster(family, repeats) if route == 'suffix' else ''])} |"


def in_float32(family: Family, folder: Path, agreement: dict[str, Agreement]) -> tuple[float, str]:
    """Largest difference of AP as igap runs it from plain modules, in logits, and the route it takes."""
    processing = "raw" if "processed" in family.refused else "processed"
    model = load_model(str(folder), processing=processing)
    with contrast(model, PAIR) as question:
        route, ours = question.backend.route, effects(family, question)
    plain = agreement[processing].plain
    return max((ours[site, "ap"] - plain[site, "ap"]).abs().max().item() for site in family.sites), route


def faster(family: Family, repeats: int) -> str:
    """How many times faster the suffix route is than batched hooks."""
    if not repeats:
        return ""
    with tempfile.TemporaryDirectory() as folder:
        save(family, Path(folder), LARGE, gain=0.5)  # gentle enough for 12 layers to keep float32's digits
        model = load_model(folder, processing="raw" if "processed" in family.refused else "processed")
        seconds: dict[str, list[float]] = {"suffix": [], "hooks": []}
        with (
            torch.no_grad(),
            contrast(model, PAIR, route="suffix") as fast,
            contrast(model, PAIR, route="hooks") as slow,
        ):
            for repeat in range(repeats + 1):
                for question in (fast, slow):
                    spent = patch(question)
                    if repeat:  # the first one warms up
                        seconds[question.backend.route].append(spent)
    return f"{statistics.median(seconds['hooks']) / statistics.median(seconds['suffix']):.0f}"


def patch(question: Contrast) -> float:
    """Seconds of patching all heads and ROWS neurons of every other layer, in one pass each."""
    since = time.perf_counter()
    for layer in range(0, question.n_layers, 2):
        for site in SITES:
            question.patches(site, layer)(torch.arange(min(ROWS, question.n_components(site))))
    return time.perf_counter() - since


if __name__ == "__main__":
    main()
