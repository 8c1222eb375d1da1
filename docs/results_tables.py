"""The tables and pictures of docs/results.md."""

from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

import numpy as np
from results_runs import AREAS, METHODS, TERMS, Bends, Task, r_over_pairs
from scipy import stats

from igap.plots.canvas import PALETTE, figure, use_style
from igap.statistics.bootstrap import mean_intervals, row_correlations
from igap.statistics.comparison import compare_values


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
    for title, maps_of in (("corrupted", lambda task: task.maps), ("zero", lambda task: task.zero_maps)):
        for task in tasks.values():
            maps = maps_of(task)
            ig, ap = maps["ig"], maps["ap"]
            compared = compare_values(ig.mean(0)[None], ap.mean(0)[None])
            each = row_correlations(ig, ap)
            ends = mean_intervals(each[:, None], seed=0)
            rows.append(
                [
                    title,
                    task.title,
                    len(ig),
                    interval(*r_over_pairs(ig, ap)),
                    interval(each.mean(), ends.low[0], ends.high[0]),
                    n(compared.spearman),
                    f"{compared.sign_agreement:.0%}",
                    n(compared.jaccard_at(10), 2),
                    n(compared.jaccard_at(30), 2),
                ]
            )
    return table(
        [
            "IG from", "task", "pairs", "r of the means", "mean r of a pair", "Spearman", "same sign", "Jaccard@10",
            "Jaccard@30",
        ],
        rows,
    )  # fmt: skip


def of_terms(tasks: Mapping[str, Task]) -> str:
    """The mean magnitude over heads of each term, in logits."""
    rows = []
    for task in tasks.values():
        terms = task.table("explanation")
        sizes = [terms[f"effect_{name}"].abs().mean() for name in ("ap", *TERMS)]
        rows.append([task.title, *(n(size, 4) for size in (*sizes, np.abs(task.baseline_term).mean()))])
    return table(["mean magnitude, logits", "AP itself", *TERMS, "baseline (from zero)"], rows)


def of_outliers(tasks: Mapping[str, Task]) -> str:
    """The heads on which the methods differ most."""
    rows = []
    for task in tasks.values():
        terms = task.table("explanation")
        terms = terms.assign(off=(terms["ap"] - terms["ig"]).abs()).sort_values("off", ascending=False).head(4)
        rows += [
            [task.title, row.name, *(f"{value:+.3f}" for value in (row.ap, row.ig, row.ap - row.ig))]
            for row in terms.itertuples(index=False)
        ]
    return table(["task", "head", "AP", "IG", "AP - IG"], rows)


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
                    for name in ("ig", "ap", "ap - ig")
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
                    interval(*r_over_pairs(task.maps[method], task.maps["ap"]))
                    if method != "atp_star"
                    else n(found["pearson"]),
                    n(found["spearman"]),
                    *(int(found[f"{what}@{k}"]) for what in ("missed", "needed") for k in (10, 30)),
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
        ],
        rows,
    )


def of_nodes(task: Task) -> str:
    """Queries, keys and values."""
    titles = {"atp": "AtP", "atp_qk": "AtP with the QK fix", "atp_star": "AtP*"}
    numbers = task.corrupted.summary
    rows = [
        [
            kind,
            title,
            *(n(numbers[f"{kind}/{method}/{name}"]) for name in ("pearson", "spearman")),
            *(numbers[f"{kind}/{method}/missed@{k}"] for k in (10, 30)),
        ]
        for kind in ("queries", "keys", "values")
        for method, title in titles.items()
        if (kind, method) != ("values", "atp_qk")  # the same as AtP
    ]
    return table(["of", "method", "r with AP", "Spearman", "misses of AP's 10", "of 30"], rows)


def of_rankings(tasks: Mapping[str, Task]) -> str:
    """CPR and CMD."""
    rows = []
    for task in tasks.values():
        for area in AREAS:
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


def of_searches(searches: Sequence[Mapping[str, Any]]) -> str:
    """What the searches found."""
    rows = []
    for found in searches:
        rows.append(
            [
                found["head"],
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


def of_prompts(searches: Sequence[Mapping[str, Any]]) -> str:
    """The best prompt of each head, its changed words in bold."""
    lines = []
    for found in searches:
        clean, corrupted = found["best/clean"].split(), found["best/corrupted"].split()
        marked = []
        for kind, _, _, start, stop in SequenceMatcher(None, clean, corrupted, autojunk=False).get_opcodes():
            marked += [word if kind == "equal" else f"**{word}**" for word in corrupted[start:stop]]
        lines.append(f"- {found['head']}: {' '.join(marked)} (clean: {' '.join(clean)})")
    return "\n".join(lines)


def span(values: Iterable[float], digits: int = 3) -> str:
    """The smallest and the largest."""
    listed = [*values]
    low, high = (n(end(listed), digits) for end in (min, max))
    return low if low == high else f"{low} to {high}"


@use_style()
def draw_agreement(tasks: Mapping[str, Task]) -> Any:
    """IG against AP, a column a task and a row a baseline."""
    fig, axes = figure(11.0, 5.6, 2, len(tasks), "")
    for i, baseline in enumerate(("corrupted", "zero")):
        for ax, task in zip(axes[i * len(tasks) :], tasks.values(), strict=False):
            maps = task.zero_maps if i else task.maps
            x, y = maps["ig"].mean(0), maps["ap"].mean(0)
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


@use_style()
def draw_bends(tasks: Mapping[str, Task], bends: Bends) -> Any:
    """|AP - AtP| and |AP - IG| against |bend|, means over pairs, one point a head."""
    task = next(iter(tasks.values()))
    fig, axes = figure(9.0, 4.2, 1, 2, f"{len(bends.bend)} pairs of {task.title}, means over pairs, one point a head")
    names, bend = task.table("heads")["name"], np.abs(bends.bend).mean(0)
    for ax, (name, title) in zip(axes, (("atp", "|AP - AtP|"), ("ig", "|AP - IG|")), strict=True):
        off = bends.off[name].mean(0)
        ax.loglog(bend, off, "o", markersize=3, color=PALETTE[0], alpha=0.7)
        for j in np.argsort(-off)[:6]:
            ax.annotate(names[j], (bend[j], off[j]), xytext=(4, 3), textcoords="offset points", fontsize=7)
        ax.set(xlabel="|bend| of the head's output curve, logits", ylabel=f"{title}, logits")
        ax.set_title(f"Spearman {stats.spearmanr(bend, off).statistic:.2f}")
    return fig
