"""What a search says on the terminal."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from igap.counterfactual.certificate import Number
from igap.counterfactual.search import OnProgress, Progress, SearchResult
from igap.report import stage, terminal

__all__ = ["searching", "show", "show_paths", "stage", "terminal"]

_TOP = 5


@contextmanager
def searching(console: Console) -> Iterator[OnProgress]:
    """A progress bar with the best value so far and evaluations a second, gone when it is done."""
    columns = (
        TextColumn("search"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("best {task.fields[best]:.3f} logits, {task.fields[rate]:.0f} a second"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("search", total=None, best=float("nan"), rate=0.0)

        def tell(now: Progress) -> None:
            bar.update(task, completed=now.n, total=now.until, best=now.best, rate=now.rate)

        yield tell


def show(console: Console, result: SearchResult, head: str) -> None:
    """The best pair with its changed words marked, what it is worth and how far to believe it, the next best."""
    summary, best = result.certificate.summary, result.best
    console.print(f"\n[bold]clean[/]      {escape(best.clean)} [green]{escape(best.answer)}[/]", soft_wrap=True)
    console.print(f"[bold]corrupted[/]  {_marked(best.clean, best.corrupted)}", soft_wrap=True)
    console.print(f"rule: {summary['best/rule']}", markup=False, soft_wrap=True)
    table = Table(title=f"{head}: effect in logits, mean over {len(result.clean)} clean prompts", title_justify="left")
    for column in (
        "",
        "best",
        "made by hand",
        "best of random",
        "neutral edits, 95%",
        "held out [95%]",
        "by hand, held out",
    ):
        table.add_column(column, justify="right" if column else "left")
    held = f"{_n(summary['heldout/value'])} [{_n(summary.get('heldout/low'))}, {_n(summary.get('heldout/high'))}]"
    table.add_row(
        "objective", _n(summary["best/value"]), _n(summary["by_hand/value"]),
        f"{_n(summary['random/best'])} (of {summary['random/n']})", _n(summary["neutral/p95"]), escape(held),
        _n(summary.get("heldout/by_hand")),
    )  # fmt: skip
    console.print(table)
    pairs = Table(title="As igap run has it", title_justify="left")
    for column in ("pair", "AP effect", "gap", "score", "rank among heads"):
        pairs.add_column(column, justify="right" if column != "pair" else "left")
    for name, title in (("by_hand", "made by hand"), ("best", "best")):
        pairs.add_row(title, *(_n(summary.get(f"{name}/{key}")) for key in ("ap", "gap", "score", "rank")))
    console.print(pairs)
    for sentence in sentences(result):
        console.print(sentence, markup=False, soft_wrap=True)
    top = Table(title="Best prompts, two words apart at least", title_justify="left")
    for column in ("rank", "value", "corrupted", "from"):
        top.add_column(column, justify="right" if column in ("rank", "value") else "left", overflow="fold")
    for row in result.certificate.tables["top"][:_TOP]:
        top.add_row(str(row["rank"]), _n(row["value"]), escape(str(row["corrupted"])), str(row["source"]))
    console.print(top)


def sentences(result: SearchResult) -> list[str]:
    """What the certificate says, in words."""
    summary, found = result.certificate.summary, []
    n, better = summary["single_edits/n"], summary["single_edits/better"]
    found.append(
        f"one-word changes of the best: {n} tried, {better} better"
        + (f", up to {_n(summary['single_edits/best'])}; more trials would help" if better else ": a local optimum")
    )
    ladder = result.certificate.tables["ladder"]
    if ladder:
        found.append(
            "with few of its words: "
            + "; ".join(f"{row['edits']}: {_n(row['value'])} ({row['words']})" for row in ladder)
        )
    if summary.get("deletion/ap") is not None:
        what = (
            "the counterfactual writes something in rather than taking out what the component gives"
            if summary["deletion/writes_in"]
            else "the counterfactual takes out about what the component gives"
        )
        found.append(
            f"deleted (its mean instead): {_n(summary['deletion/ap'])}, patched: {_n(summary['best/ap'])}: {what}"
        )
    return found


def show_paths(console: Console, folder: Path) -> None:
    """Where everything is."""
    console.print(f"\nwritten to {folder}", markup=False, soft_wrap=True)
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        if path.is_file() and "runs" not in inside and not path.name.startswith("."):
            console.print(f"  {path.relative_to(folder)}", highlight=False)
    for run in sorted(folder.glob("runs/*/summary.json")):
        console.print(f"  {run.parent.relative_to(folder)}/  (igap run of the best pair)", highlight=False)


def _marked(clean: str, corrupted: str) -> str:
    """The corrupted prompt, its words that are not the clean prompt's in colour."""
    here, there = clean.split(" "), corrupted.split(" ")
    if len(here) != len(there):
        return escape(corrupted)
    return " ".join(
        escape(new) if new == old else f"[bold red]{escape(new)}[/]" for old, new in zip(here, there, strict=True)
    )


def _n(value: Number) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
