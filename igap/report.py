"""What a run says on the terminal: its progress while it works, and its numbers when it is done."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import stdev

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from igap.attribution.maps import Progress as OnProgress
from igap.pair_sources import describe
from igap.pipeline import Result
from igap.prompts import TokenPair
from igap.sites import SITES, component_name
from igap.spread import Spread
from igap.sweep.folder import JobStatus
from igap.sweep.plan import Plan

_TOP = 5


_SECONDS_BETWEEN = 60.0
"""Least time between two lines of a log file about one stage."""


def lines(
    console: Console, name: str, *, clock: Callable[[], float] = time.monotonic, announced: bool = True
) -> Callable[[int, int, str], None]:
    """What a log file gets for one stage, in place of a bar: a line now, then about every minute how far it is.

    What it gives takes what is done, of how much, and what else to say. `clock` gives seconds.
    """
    started = said = clock()
    if announced:
        console.print(name, markup=False, highlight=False, soft_wrap=True)

    def tell(done: int, total: int, more: str = "") -> None:
        nonlocal said
        now = clock()
        if now - said >= _SECONDS_BETWEEN:
            said = now
            left = f", about {_duration((now - started) * (total - done) / done)} left" if done else ""
            text = f"{name}: {done} of {total} after {_duration(now - started)}{left}{more}"
            console.print(text, markup=False, highlight=False, soft_wrap=True)

    return tell


@contextmanager
def stage(
    console: Console, name: str, *, clock: Callable[[], float] = time.monotonic, announced: bool = True
) -> Iterator[OnProgress]:
    """A progress bar for one stage of work, gone when it is done; lines where there is no terminal.

    Without `announced` there the first line comes after a minute.
    """
    if not console.is_terminal:
        tell = lines(console, name, clock=clock, announced=announced)
        yield lambda done, total: tell(done, total, "")
        return
    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def show(
    console: Console, result: Result, folder: Path | None = None, failures: Mapping[str, str] | None = None
) -> None:
    """Pairs, logit differences, agreement a site, top heads and neurons by each method, outliers, failures, warnings.

    Then the files in `folder`; None is for a result that could not be written. `failures` (None: of the result alone)
    are reasons by name.
    """
    if result.spread is None:
        _show_pair(console, result)
    else:
        _show_pairs(console, result, result.spread)
    console.print(_agreement(result))
    leading, bos = result.tokens[0].leading, result.config.prompts.bos
    console.print(f"token before every prompt: {leading or 'none'} (prompts.bos={bos})", markup=False, highlight=False)
    if result.spread is not None:
        for site in result.maps:
            r, low, high = map(_number, result.spread.pearson_mean(site, result.config.prompts.seed))
            console.print(f"Pearson r of single pairs, {site}: mean {r} [95% over pairs: {low}, {high}]")
    console.print(_top(result))
    for site in result.maps:
        names = result.comparisons[site].outliers(site)
        console.print(
            f"outliers among {site} (|AP - IG| > 1.96 SD): {len(names)}"
            + (f": {', '.join(names[:12])}{' ...' if len(names) > 12 else ''}" if names else "")
        )
    for finding in result.findings.values():
        for sentence in finding.sentences():
            console.print(sentence, markup=False)
    if failures is None:
        failures = {name: failure.reason for name, failure in result.failures.items()}
    for name, reason in failures.items():
        console.print(f"[red]failed:[/] {escape(name)}: {escape(reason)}", highlight=False, soft_wrap=True)
    for warning in result.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}")
    if folder is None:
        return
    console.print(f"\nwritten to {folder}", markup=False, soft_wrap=True)
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".json", ".csv", ".safetensors", ".png", ".html")):
        if "wandb" not in path.relative_to(folder).parts:
            console.print(f"  {path.relative_to(folder)}", highlight=False)


def _show_pair(console: Console, result: Result) -> None:
    (pair,) = result.pairs
    console.print(f"\n[bold]clean[/]      {escape(pair.clean)} [green]{escape(pair.answer)}[/]")
    console.print(f"[bold]corrupted[/]  {escape(pair.corrupted)} [green]{escape(pair.distractor)}[/]")
    console.print(
        f"logit difference {escape(pair.answer.strip())} - {escape(pair.distractor.strip())}: clean "
        f"{result.clean_logit_diff:+.3f}, corrupted {result.corrupted_logit_diff:+.3f}, gap {result.gap:+.3f} logits"
    )
    (tokens,) = result.tokens
    if not tokens.alignment.is_plain:
        _show_alignment(console, tokens)


def _show_alignment(console: Console, tokens: TokenPair) -> None:
    """The two prompts token below token, in lines that fit; a position without a partner has none above or below it."""
    cells = [(_word(tokens.clean_words, i), _word(tokens.corrupted_words, j)) for i, j in tokens.alignment.rows]
    widths = [max(len(word) for word in cell) for cell in cells]
    console.print(
        f"alignment: {tokens.clean.shape[1]} and {tokens.corrupted.shape[1]} tokens, {tokens.alignment.n_unmatched} of "
        "them without a partner, which take nothing from the other prompt"
    )
    line: list[int] = []
    for index in range(len(cells) + 1):
        full = sum(widths[i] + 1 for i in line) + (widths[index] if index < len(cells) else 0) > console.width - 14
        if line and (full or index == len(cells)):
            for name, side in (("clean", 0), ("corrupted", 1)):
                words = " ".join(cells[i][side].ljust(widths[i]) for i in line)
                console.print(f"  {name:<10}{words}", markup=False, highlight=False, soft_wrap=True)
            line = []
        line.append(index)


def _word(words: Sequence[str], position: int | None) -> str:
    """A token as it is shown, a line break as '\\n'; "-" where there is none."""
    return "-" if position is None else words[position].strip() or repr(words[position])


def _show_pairs(console: Console, result: Result, spread: Spread) -> None:
    gaps = result.gaps
    console.print(f"\n[bold]prompts[/]  {escape(describe(result.config.prompts, len(gaps)))}")
    console.print(
        f"logit difference answer - distractor, mean over pairs: clean {result.clean_logit_diff:+.3f}, corrupted "
        f"{result.corrupted_logit_diff:+.3f}, gap {result.gap:+.3f} logits"
    )
    console.print(
        f"gap: [95% over pairs: {spread.gap.low[0]:+.3f}, {spread.gap.high[0]:+.3f}], SD {stdev(gaps):.3f}, from "
        f"{min(gaps):+.3f} to {max(gaps):+.3f} logits"
    )
    aligned = [tokens.alignment for tokens in result.tokens if not tokens.alignment.is_plain]
    if aligned:
        n_tokens = sum(len(one.clean) + len(one.corrupted) for one in aligned)
        n_unmatched = sum(one.n_unmatched for one in aligned)
        console.print(
            f"alignment ({result.config.prompts.align}): {len(aligned)} of {len(gaps)} pairs have prompts of two "
            f"lengths; of their {n_tokens} tokens {n_unmatched} have no partner and take nothing from the other prompt "
            "(alignment.csv)"
        )


def show_plan(console: Console, plan: Plan, seconds: float | None, n_measured: int, *, single: bool = False) -> None:
    """How many jobs a multirun has, how they stand, how long those to do take, and which cannot be; or a single run."""
    counts = {state: len(plan.in_state(state)) for state in ("done", "stale", "running", "failed")}
    said = [f"{counts['done']} done already"] if counts["done"] else []
    said += [f"{counts['running']} running in another process"] if counts["running"] else []
    said += [f"{counts['failed']} failed before"] if counts["failed"] else []
    said += [f"{plan.n_duplicates} duplicate{'s' * (plan.n_duplicates != 1)} left out"] if plan.n_duplicates else []
    n = len(plan.jobs)
    text = f"{n} job{'s' * (n != 1)} in {plan.folder.path}, {len(plan.to_do)} to do" + "".join(f", {x}" for x in said)
    if single:
        text = f"1 run, key {plan.jobs[0].key}, which can be done"
    console.print(text, markup=False, soft_wrap=True)
    if counts["stale"]:
        stale = plan.in_state("stale")
        done = "done again" if stale[0] in plan.to_do else "kept; stale=redo does them again"
        console.print(
            f"{counts['stale']} stale, made by other code ({plan.statuses[stale[0].key].detail}): {done}", markup=False
        )
    for job in plan.rejected:
        console.print(f"[yellow]dropped[/] {escape(' '.join(job.overrides))}: {escape(job.reason)}")
    if plan.to_do:
        took = "nothing of this kind has run here to tell how long it takes"
        if seconds is not None:
            runs = f"{n_measured} finished run{'s' * (n_measured != 1)}"
            took = f"about {_duration(seconds)}, going by {runs} in {plan.folder.path.parent}"
        console.print(took, markup=False, soft_wrap=True)


def show_job(console: Console, count: str, overrides: Sequence[str], status: JobStatus, reason: str = "") -> None:
    """One line for a job that has ended: its key numbers, or why there are none."""
    said = []
    if status.run is not None:
        summary = status.run.summary
        names = [name for site in SITES if (name := f"{site}/pearson") in summary]
        numbers = (f"{name} {_number(summary[name])}" for name in names)
        said.append(f"{', '.join(numbers)} ({_number(summary.get('seconds/total'))} s)")
    if not status.finished:
        said.append(f"failed: {reason or status.detail}")
    text = f"[{count}] {status.key} {' '.join(overrides)}: {'; '.join(said)}"
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def show_plan_end(console: Console, plan: Plan, reasons: Mapping[str, str]) -> None:
    """A line a finished job, a table of those that failed with their reasons and logs, and where everything is."""
    names = ("gap", "heads/pearson", "heads/jaccard@10", "heads/max_abs_delta", "neurons/pearson", "neurons/jaccard@30")
    table = Table(title="Jobs", title_justify="left")
    for column in ("folder", "overrides", *names):
        table.add_column(column, justify="right" if column in names else "left", overflow="fold")
    n_finished = 0
    for job in plan.jobs:
        status = plan.folder.status(job.key)
        numbers: list[str] = [status.state] * len(names)
        if status.run is not None:
            numbers = [_number(status.run.summary.get(name)) for name in names]
        n_finished += status.finished
        table.add_row(job.key, escape(" ".join(job.distinct_overrides)), *numbers)
    console.print(table)
    if reasons:
        failures = Table(title="Failed", title_justify="left")
        for column in ("folder", "overrides", "reason", "log"):
            failures.add_column(column, overflow="fold")
        for job in plan.jobs:
            if job.key in reasons:
                story = plan.folder.run(job.key) / "failure.log"
                output = next((p for p in (plan.folder.path / n for n in (".submitit", ".launch")) if p.exists()), "-")
                log = str(story) if story.exists() else str(output)
                failures.add_row(
                    job.key, escape(" ".join(job.distinct_overrides)), escape(reasons[job.key]), escape(log)
                )
        console.print(failures)
    n = len(plan.jobs)
    console.print(f"{n_finished} of {n} jobs finished in {plan.folder.path}", markup=False, soft_wrap=True)
    if n_finished < n:
        console.print("the same command again does the rest", markup=False)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _agreement(result: Result) -> Table:
    maps = "the mean maps of IG and AP" if result.spread else "IG and AP"
    table = Table(title=f"How far {maps} agree", title_justify="left")
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
    for site in result.maps:
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
    if result.spread:
        unit = f"mean {unit}{' [95% over pairs]' if result.has_scores else ''}"
    table = Table(title=f"Top {_TOP} by |effect|, with {unit}", title_justify="left")
    for column in ("rank", *(f"{site} {method}" for site in result.maps for method in ("IG", "AP"))):
        table.add_column(column, justify="right")
    columns = [_ranked(result, site, method) for site in result.maps for method in ("ig", "ap")]
    for rank, cells in enumerate(zip(*columns, strict=True), start=1):
        table.add_row(str(rank), *cells)
    return table


def _ranked(result: Result, site: str, method: str) -> list[str]:
    found = result.maps[site][method]  # type: ignore[index]
    values = found.score if result.has_scores else found.effect
    order = torch.argsort(found.effect.abs().flatten(), descending=True, stable=True)[:_TOP]
    width = values.shape[1]
    named = [
        f"{component_name(found.site, int(i) // width, int(i) % width):>8} {float(values.flatten()[i]):+.3f}"
        for i in order
    ]
    if result.spread is None or not result.has_scores:
        return named
    ends = result.spread.intervals[found.site][method]
    return [
        f"{text} \\[{ends.low[i]:+.3f}, {ends.high[i]:+.3f}]" for text, i in zip(named, order.tolist(), strict=True)
    ]


def _number(value: float | int | str | None) -> str:
    if not isinstance(value, float | int) or value != value:
        return "-"
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3f}"
