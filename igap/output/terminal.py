"""What a run says on the terminal: its progress while it works, and its numbers when it is done."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from igap.components import PLACES, Site
from igap.console import number, show_route
from igap.inputs.answers import format_answer
from igap.inputs.prompts import TokenPair
from igap.inputs.sources import describe_source
from igap.output.run_tables import MOST_OUTLIERS, top_neurons
from igap.pipeline import Result
from igap.statistics.across_pairs import PairStatistics
from igap.statistics.bootstrap import interval_label
from igap.statistics.comparison import REPORTED_K
from igap.statistics.units import values_in

_TOP = 5
_LAST = ("screening", "qk", "stability")
"""Analyses of many lines a run, shown after those that explain what is above: the outliers."""


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
    for site, maps in result.maps.items():
        if (top := maps["ap"].top) is not None:
            over = f"; r and the rest are over the {result.comparisons[site].n:,} patched" if top.n_left_out else ""
            console.print(f"{site}: {top}{over}", markup=False, highlight=False, soft_wrap=True)
    settings = result.config
    for site in result.maps:
        if PLACES[site].is_vector and settings.positions.is_default and settings.baseline.kind == "corrupted":
            console.print(
                f"{site}: one component a layer, so that IG and AP are one number up to quadrature, a self-check; r "
                "says nothing"
            )
    leading, bos = result.tokens[0].leading, result.config.prompts.bos
    console.print(f"token before every prompt: {leading or 'none'} (prompts.bos={bos})", markup=False, highlight=False)
    show_route(console, result.route, result.why_route)
    if result.spread is not None:
        for site in result.maps:
            r, low, high = map(number, result.spread.pearson_mean(site, result.config.prompts.seed))
            over = interval_label(int(np.count_nonzero(~np.isnan(result.spread.pearson[site]))))
            console.print(f"Pearson r of single pairs, {site}: mean {r} \\[{over}: {low}, {high}]")
    console.print(_top(result))
    if result.spread is not None:
        for site in result.maps:
            console.print(_first_in_pairs(result, site))
    for site in result.maps:
        names = result.comparisons[site].outliers(site)
        console.print(
            f"outliers among {site} (|AP - IG| > 1.96 SD): {len(names)}"
            + (f": {', '.join(names[:12])}{' ...' if len(names) > 12 else ''}" if names else "")
        )
        if site == "neurons" and len(names) > MOST_OUTLIERS:
            left_out = len(names) - int(top_neurons(result)["outlier_abs"].sum())
            console.print(
                f"neurons.csv leaves out {left_out:,} of them, those with the smallest |AP - IG|; "
                "attributions.safetensors holds every neuron"
            )
    for name in sorted(result.findings, key=_LAST.__contains__):
        for sentence in result.findings[name].sentences():
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
    answer, distractor = escape(format_answer(pair.answer)), escape(format_answer(pair.distractor))
    console.print(f"\n[bold]clean[/]      {escape(pair.clean)} [green]{answer}[/]")
    console.print(f"[bold]corrupted[/]  {escape(pair.corrupted)} [green]{distractor}[/]")
    (tokens,) = result.tokens
    if result.has_logit_diffs:
        console.print(
            f"logit difference {answer.strip()} - {distractor.strip()}: clean "
            f"{result.clean_logit_diff:+.3f}, corrupted {result.corrupted_logit_diff:+.3f}{_gap(result)}"
        )
    if tokens.forced:
        appended = " ".join(tokens.clean_words[tokens.n_prompt :])
        console.print(
            f"answer of {tokens.n_read} tokens: both prompts go on with {appended}, and F is read at the last "
            f"{tokens.n_read} positions",
            markup=False,
            soft_wrap=True,
        )
    _show_values(console, result)
    if not tokens.alignment.is_plain:
        _show_alignment(console, tokens)


def _gap(result: Result) -> str:
    """The gap of the logit difference, where that is F."""
    return f", gap {result.gap:+.3f} logits" if result.config.metric.is_default else " logits"


def _show_values(console: Console, result: Result) -> None:
    """F of the prompts where it is another than the logit difference; of several pairs the mean."""
    if not result.config.metric.is_default:
        clean, corrupted = fmean(result.clean_values), fmean(result.corrupted_values)
        mean = ", mean over pairs" if result.spread else ""
        console.print(
            f"F is {result.metric}{mean}: clean {clean:+.3f}, corrupted {corrupted:+.3f}, gap {result.gap:+.3f} "
            f"{result.unit}"
        )
    if not result.config.positions.is_default:
        console.print(f"positions: {result.config.positions.kind}")


def _show_alignment(console: Console, tokens: TokenPair) -> None:
    """The two prompts token below token, in lines that fit; a position without a partner has none above or below it."""
    cells = [(_word(tokens.clean_words, i), _word(tokens.corrupted_words, j)) for i, j in tokens.alignment.rows]
    widths = [max(len(word) for word in cell) for cell in cells]
    console.print(
        f"alignment: {tokens.clean.shape[1]} and {tokens.corrupted.shape[1]} tokens"
        f"{', the one before every prompt included' if tokens.leading else ''}, {tokens.alignment.n_unmatched} of "
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


def _show_pairs(console: Console, result: Result, spread: PairStatistics) -> None:
    gaps = result.gaps
    console.print(f"\n[bold]prompts[/]  {escape(describe_source(result.config.prompts, len(gaps)))}")
    if result.has_logit_diffs:
        console.print(
            f"logit difference answer - distractor, mean over pairs: clean {result.clean_logit_diff:+.3f}, corrupted "
            f"{result.corrupted_logit_diff:+.3f}{_gap(result)}"
        )
    if longest := [tokens.n_read for tokens in result.tokens if tokens.forced]:
        console.print(
            f"{len(longest)} of {len(gaps)} answers are several tokens, at most {max(longest)}: their prompts go on "
            "with all but the last, and F is read at as many positions"
        )
    _show_values(console, result)
    console.print(
        f"gap: \\[{interval_label(len(gaps))}: {spread.gap.low[0]:+.3f}, {spread.gap.high[0]:+.3f}], SD "
        f"{stdev(gaps):.3f}, from {min(gaps):+.3f} to {max(gaps):+.3f} {result.unit}"
    )
    aligned = [tokens.alignment for tokens in result.tokens if not tokens.alignment.is_plain]
    if aligned:
        n_tokens = sum(len(alignment.clean) + len(alignment.corrupted) for alignment in aligned)
        n_unmatched = sum(alignment.n_unmatched for alignment in aligned)
        console.print(
            f"alignment ({result.config.prompts.align}): {len(aligned)} of {len(gaps)} pairs have prompts of two "
            f"lengths; of their {n_tokens} tokens {n_unmatched} have no partner and take nothing from the other prompt "
            "(alignment.csv)"
        )


def _agreement(result: Result) -> Table:
    maps = "the mean maps of IG and AP" if result.spread else "IG and AP"
    table = Table(title=f"How far {maps} agree", title_justify="left")
    for column in (
        "site",
        "n",
        "Pearson r [95%]",
        "Spearman [95%]",
        "same sign",
        *(f"Jaccard@{k}" for k in REPORTED_K),
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
                f"{number(numbers[r])} [{number(numbers[f'{r}_low'])}, {number(numbers[f'{r}_high'])}]"
                for r in ("pearson", "spearman")
            ),
            number(numbers["sign_agreement"]),
            *(
                f"{number(numbers[f'jaccard@{k}'])} (chance {number(numbers[f'jaccard_chance@{k}'])})"
                for k in REPORTED_K
            ),
            "-" if delta is None else f"{float(delta.abs().max()):.1e}",
        )
    return table


def _top(result: Result) -> Table:
    unit = "score" if result.has_scores else result.unit
    if result.spread:
        over = f" \\[{interval_label(len(result.pairs) - result.n_unscored)}]"
        unit = f"mean {unit}{over if result.has_scores else ''}"
    table = Table(title=f"Top {_TOP} by |effect|, with {unit}", title_justify="left")
    for column in ("rank", *(f"{site} {method}" for site in result.maps for method in ("IG", "AP"))):
        table.add_column(column, justify="right")
    columns = [_list_largest(result, site, method) for site in result.maps for method in ("ig", "ap")]
    for rank, cells in enumerate(zip_longest(*columns, fillvalue=""), start=1):
        table.add_row(str(rank), *cells)
    return table


def _first_in_pairs(result: Result, site: Site) -> str:
    """The component that is first in the mean map, by each method, and in how many pairs it is first."""
    parts = []
    for method in ("ig", "ap"):
        mean_map = result.maps[site][method]
        first, *of_pairs = (int(each.effect.abs().nan_to_num(0).argmax()) for each in (mean_map, *mean_map.pairs))
        parts.append(
            f"{mean_map.names[first]} by {method.upper()} (first in {of_pairs.count(first)} of {len(of_pairs)} pairs)"
        )
    return f"{site}, first in the mean: {', '.join(parts)}"


def _list_largest(result: Result, site: Site, method: str) -> list[str]:
    attribution = result.maps[site][method]
    values = values_in(result.comparisons[site].unit, attribution)
    order = torch.argsort(attribution.effect.abs().nan_to_num(0).flatten(), descending=True, stable=True)[:_TOP]
    names = attribution.names
    named = [f"{names[i]:>8} {values.flat[i]:+.3f}" for i in order.tolist()]
    if result.spread is None or not result.has_scores:
        return named
    ends = result.spread.intervals[attribution.site][method]
    return [
        f"{text} \\[{ends.low[i]:+.3f}, {ends.high[i]:+.3f}]" for text, i in zip(named, order.tolist(), strict=True)
    ]
