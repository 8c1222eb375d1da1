"""What a search says on the terminal."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import SequenceMatcher
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from igap.counterfactual.beside import Number
from igap.counterfactual.exploration import OnProgress, Progress
from igap.counterfactual.search import SearchResult
from igap.report import lines, stage

__all__ = ["searching", "show", "show_paths", "show_scan", "stage"]

_TOP = 5


@contextmanager
def searching(console: Console) -> Iterator[OnProgress]:
    """A progress bar with the best value so far and evaluations a second, gone when it is done; lines in a log file."""
    if not console.is_terminal:
        said = lines(console, "search")
        yield lambda now: said(now.n, now.until, f"; best {now.best:.3f}")
        return
    columns = (
        TextColumn("search"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("best {task.fields[best]:.3f}, {task.fields[rate]:.0f} a second"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("search", total=None, best=float("nan"), rate=0.0)

        def tell(now: Progress) -> None:
            bar.update(task, completed=now.n, total=now.until, best=now.best, rate=now.rate)

        yield tell


def show(console: Console, result: SearchResult, head: str, *, brief: bool = False) -> None:
    """The best pair with its changed words marked, what it is worth and how far to believe it, the next best."""
    summary, best = result.certificate.summary, result.best
    console.print(f"\n[bold]clean[/]      {escape(best.clean)} [green]{escape(best.answer)}[/]", soft_wrap=True)
    console.print(f"[bold]corrupted[/]  {_marked(best.clean, best.corrupted)}", soft_wrap=True)
    console.print(f"rule: {summary['best/rule']}", markup=False, soft_wrap=True)
    console.print(f"token before every prompt: {summary['prompts/bos']}", markup=False, highlight=False)
    asked, n = result.objective, len(result.clean)
    of_abs = f": here {summary['best/sign']}" if asked.sign != summary["best/sign"] else ""
    over = f"{asked.aggregate} over {n} clean prompts" if n > 1 else "one clean prompt"
    table = Table(title=f"{head}: {asked.terms[0]} (sign={asked.sign}{of_abs}), {over}, logits", title_justify="left")
    for column in (
        "best", "made by hand", "best of random", "search, as many", "neutral edits, p95", "held out",
        "by hand, held out",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    table.add_row(
        _n(summary["best/value"]), _n(summary["by_hand/value"]),
        f"{_n(summary['random/best'])} (of {summary['random/n']})" if summary["random/n"] else "-",
        _n(summary["random/search_at_equal_budget"]),
        _n(summary["neutral/p95"]), _n(summary["heldout/value"]), _n(summary.get("heldout/by_hand")),
    )  # fmt: skip
    console.print(table)
    if brief:
        return
    pairs = Table(title="As igap run has it, means over clean prompts", title_justify="left")
    for column in ("pair", "AP effect, logits", "gap, logits", "score (effect / gap)", "rank among heads"):
        pairs.add_column(column, justify="right" if column != "pair" else "left")
    for name, title in (("by_hand", "made by hand"), ("best", "best")):
        pairs.add_row(title, *(_n(summary.get(f"{name}/{key}")) for key in ("ap", "gap", "score", "rank")))
    console.print(pairs)
    for sentence in sentences(result):
        console.print(sentence, markup=False, soft_wrap=True)
    term = result.objective.terms[0]
    front = result.certificate.tables["front"]
    rows, title = (front, "The front: no trial beats one of these in every term") if front else (
        result.certificate.tables["top"], "Best prompts, two words apart at least"
    )  # fmt: skip
    top = Table(title=title, title_justify="left")
    for column in (*result.objective.terms, "corrupted", "from"):
        top.add_column(column, justify="left" if column in ("corrupted", "from") else "right", overflow="fold")
    for row in sorted(rows, key=lambda row: -float(str(row[term])))[: 2 * _TOP if front else _TOP]:
        values = (_n(row[name]) for name in result.objective.terms)
        top.add_row(*values, escape(str(row["corrupted"])), str(row["source"]))
    console.print(top)


def sentences(result: SearchResult) -> list[str]:
    """What the certificate says, in words."""
    summary, tables = result.certificate.summary, result.certificate.tables
    n, of, better = summary["single_edits/n"], summary["single_edits/of"], summary["single_edits/better"]
    what = "other prompts of the list" if result.space.kind == "prompts" else "one-word changes of the best"
    found = [
        _trials(result),
        f"{what}: {n}{'' if n == of else f' of {of} (the largest first-order gains)'} tried, {better} better"
        + (f", up to {_n(summary['single_edits/best'])}; more trials would help" if better else ": a local optimum"),
    ]
    if len(result.clean) > 1:
        found.append(
            f"made by hand: the pair itself {_n(summary['by_hand/own'])}; of the other clean prompts, whose pairs igap "
            "made, who acts is swapped"
        )
    if tables["ladder"] and result.space.kind != "prompts":
        steps = "; ".join(f"{row['edits']}: {_n(row['value'])} ({row['words']})" for row in tables["ladder"])
        found.append(f"with few words changed: {steps}")
        n = summary["simplest/edits"]
        if n != summary["best/edits"]:
            found.append(
                f"{n} of its {summary['best/edits']} words are enough: {_n(summary['simplest/value'])} "
                f"({summary['simplest/words']})"
            )
    if tables["slots"] and result.space.kind != "prompts":
        losses = ", ".join(f"{row['slot']} {_n(row['loss'])}" for row in tables["slots"][:6])
        found.append(f"lost without a slot's word: {losses}")
        told = [row for row in tables["slots"] if row["variance_share"] is not None]
        if told:
            first = sorted(told, key=lambda row: -float(str(row["variance_share"])))[:6]
            each = ", ".join(
                f"{row['slot']} {100 * float(str(row['variance_share'])):.0f} "
                f"± {100 * float(str(row['variance_share_error'])):.0f}%"
                for row in first
            )
            found.append(f"share of the variance at random: {each}")
    if summary.get("heldout/low") is not None:
        ends = f"{_n(summary['heldout/low'])}, {_n(summary['heldout/high'])}"
        share = summary["heldout/share"]
        found.append(
            f"held out: mean effect {_n(summary['heldout/mean'])} [95% over {summary['heldout/n']} prompts: {ends}]"
            + (f", {_n(share)} of the value found" if share is not None else "")
        )
    if summary.get("deletion/ap") is not None:
        small = 2 * abs(float(str(summary["best/ap"]))) < abs(float(str(summary["deletion/ap"])))
        what = (
            "the counterfactual writes something in rather than taking out what the component gives"
            if summary["deletion/writes_in"]
            else f"the counterfactual takes out {'less than half of' if small else 'about'} what the component gives"
        )
        found.append(
            f"deleted (its mean instead): {_n(summary['deletion/ap'])}, patched: {_n(summary['best/ap'])}: {what}"
        )
    percentile = summary.get("best/percentile")
    found.append(
        f"the best prompts: {_n(summary['best/fluency'])} nats a token beside the clean ones"
        + (f"; the component's activation at percentile {float(str(percentile)):.0f} of ordinary prompts'"
           if percentile is not None else "")
    )  # fmt: skip
    left_out = sum(result.space.left_out.values())
    if left_out:
        what = ", ".join(f"{n} ({why})" for why, n in result.space.left_out.items() if n)
        found.append(f"left out of the space: {what}")
    if result.n_found:
        one = result.n_found == 1
        found.append(
            f"{result.n_found} candidate{'' if one else 's'} {'was' if one else 'were'} known from earlier searches"
        )
    return found


def _trials(result: SearchResult) -> str:
    """How many trials there are, what became of those that do not count, and what they took."""
    tried = result.tried
    failed = [one.reason for one in tried if one.value != one.value]
    n_out = sum(bool(one.broken) for one in tried)
    return (
        f"{len(tried)} trials of {float(result.space.size):.4g} candidates"
        + (f", {n_out} out of bounds" if n_out else "")
        + (f", {len(failed)} failed ({failed[0]})" if failed else "")
        + f"; this time {result.seconds:.1f} s, {result.cost:,.0f} forward equivalents"
    )


def show_scan(console: Console, results: Sequence[tuple[str, SearchResult]], folder: Path) -> None:
    """A line a component, and where the matrix and the map are."""
    term = results[0][1].objective.terms[0]
    table = Table(title=f"What each component reaches: AP effects, and values of {term}, logits", title_justify="left")
    for column in ("", "AP by hand", "AP deleted", "AP best", "value", "best of random", "held out", "rank by hand",
                   "rank", "rule"):  # fmt: skip
        table.add_column(column, justify="left" if column in ("", "rule") else "right", overflow="fold")
    for name, result in results:
        summary = result.certificate.summary
        keys = ("by_hand/ap", "deletion/ap", "best/ap", "best/value", "random/best", "heldout/value", "by_hand/rank",
                "best/rank")  # fmt: skip
        table.add_row(name, *(_n(summary.get(key)) for key in keys), escape(str(summary["best/rule"])))
    console.print(table)
    console.print(f"written to {folder}: scan.csv, matrix.csv, plots/", markup=False, soft_wrap=True)


def show_paths(console: Console, folder: Path) -> None:
    """Where everything is."""
    console.print(f"\nwritten to {folder}", markup=False, soft_wrap=True)
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        if path.is_file() and not {"runs", "wandb"} & set(inside) and not path.name.startswith("."):
            console.print(f"  {path.relative_to(folder)}", highlight=False)
    for run in sorted(folder.glob("runs/*/summary.json")):
        console.print(f"  {run.parent.relative_to(folder)}/  (igap run of a best pair)", highlight=False)


def _marked(clean: str, corrupted: str) -> str:
    """The corrupted prompt, its words that are not the clean prompt's in colour."""
    here, there = clean.split(" "), corrupted.split(" ")
    if len(here) == len(there):
        same = {i for i, (old, new) in enumerate(zip(here, there, strict=True)) if old == new}
    else:
        blocks = SequenceMatcher(None, here, there, autojunk=False).get_matching_blocks()
        same = {block.b + i for block in blocks for i in range(block.size)}
    return " ".join(escape(word) if i in same else f"[bold red]{escape(word)}[/]" for i, word in enumerate(there))


def _n(value: Number) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
