"""What a run says on the terminal: its progress while it works, and its numbers when it is done."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from igap.attribution.maps import Progress as OnProgress
from igap.pipeline import Result
from igap.records import Summary, outliers
from igap.sites import SITES, component_name

_TOP = 5


@contextmanager
def stage(console: Console, name: str) -> Iterator[OnProgress]:
    """A progress bar for one stage of work, gone when it is done."""
    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def show(console: Console, result: Result, folder: Path) -> None:
    """Pair, logit differences, agreement a site, top heads and neurons by each method, outliers, paths written."""
    prompts = result.config.prompts
    console.print(f"\n[bold]clean[/]      {escape(prompts.clean)} [green]{escape(prompts.answer)}[/]")
    console.print(f"[bold]corrupted[/]  {escape(prompts.corrupted)} [green]{escape(prompts.distractor)}[/]")
    console.print(
        f"logit difference {escape(prompts.answer.strip())} - {escape(prompts.distractor.strip())}: clean "
        f"{result.clean_logit_diff:+.3f}, corrupted {result.corrupted_logit_diff:+.3f}, gap {result.gap:+.3f} logits"
    )
    console.print(_agreement(result))
    console.print(_top(result))
    for site in SITES:
        names = outliers(result, site)
        console.print(
            f"outliers among {site} (|AP - IG| > 1.96 SD): {len(names)}"
            + (f": {', '.join(names[:12])}{' ...' if len(names) > 12 else ''}" if names else "")
        )
    for warning in result.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}")
    console.print(f"\nwritten to {folder}", markup=False, soft_wrap=True)
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".json", ".csv", ".safetensors", ".png")):
        if "wandb" not in path.relative_to(folder).parts:
            console.print(f"  {path.relative_to(folder)}", highlight=False)


def show_sweep(console: Console, rows: Sequence[tuple[tuple[str, ...], Summary | None, Path]]) -> None:
    """One line a job of a multirun: its folder, the overrides that not all jobs have, its key numbers or `failed`."""
    names = ("gap", "heads/pearson", "heads/jaccard@10", "neurons/pearson", "neurons/jaccard@30")
    common = set.intersection(*(set(overrides) for overrides, _, _ in rows)) if len(rows) > 1 else set()
    table = Table(title="Jobs", title_justify="left")
    for column in ("folder", "overrides", *names):
        table.add_column(column, justify="right" if column in names else "left", overflow="fold")
    for overrides, summary, folder in rows:
        own = " ".join(override for override in overrides if override not in common)
        numbers = [_number(summary.get(name)) for name in names] if summary else ["failed"] * len(names)
        table.add_row(escape(folder.name), escape(own), *numbers)
    console.print(table)
    console.print(f"{len(rows)} jobs in {rows[0][2].parent}", markup=False, soft_wrap=True)


def _agreement(result: Result) -> Table:
    table = Table(title="How far IG and AP agree", title_justify="left")
    for column in (
        "site",
        "n",
        "Pearson r [95%]",
        "Spearman [95%]",
        "same sign",
        "Jaccard@10",
        "Jaccard@30",
        "max |delta|",
    ):
        table.add_column(column, justify="left" if column == "site" else "right")
    for site in SITES:
        numbers = result.comparisons[site].summary()
        delta = result.maps[site]["ig"].delta
        table.add_row(
            site,
            f"{numbers['n_components']}",
            *(
                f"{_number(numbers[r])} [{_number(numbers[f'{r}_low'])}, {_number(numbers[f'{r}_high'])}]"
                for r in ("pearson", "spearman")
            ),
            _number(numbers["sign_agreement"]),
            *(
                f"{_number(numbers[f'jaccard@{k}'])} (chance {_number(numbers[f'jaccard_chance@{k}'])})"
                for k in (10, 30)
            ),
            "-" if delta is None else f"{float(delta.abs().max()):.1e}",
        )
    return table


def _top(result: Result) -> Table:
    unit = "score" if result.has_scores else "logits"
    table = Table(title=f"Top {_TOP} by |effect|, with {unit}", title_justify="left")
    for column in ("rank", *(f"{site} {method}" for site in SITES for method in ("IG", "AP"))):
        table.add_column(column, justify="right")
    columns = [_ranked(result, site, method) for site in SITES for method in ("ig", "ap")]
    for rank, cells in enumerate(zip(*columns, strict=True), start=1):
        table.add_row(str(rank), *cells)
    return table


def _ranked(result: Result, site: str, method: str) -> list[str]:
    found = result.maps[site][method]  # type: ignore[index]
    values = found.score if result.has_scores else found.effect
    order = torch.argsort(found.effect.abs().flatten(), descending=True, stable=True)[:_TOP]
    width = values.shape[1]
    return [
        f"{component_name(found.site, int(i) // width, int(i) % width):>8} {float(values.flatten()[i]):+.3f}"
        for i in order
    ]


def _number(value: float | int | str | None) -> str:
    return "-" if not isinstance(value, float | int) or value != value else f"{value:.3f}"
