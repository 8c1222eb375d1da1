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

from igap.console import log_progress, show_route
from igap.counterfactual.config import Sign
from igap.counterfactual.output import scan
from igap.counterfactual.output.errors import describe_error
from igap.counterfactual.output.optimality import describe_optimality
from igap.counterfactual.search import SearchResult
from igap.counterfactual.session import OnProgress, Progress
from igap.counterfactual.validation.results import BestByEditCount, PairEffects, PrunedPrompt, Validation
from igap.counterfactual.validation.verdict import decimals, stands_out
from igap.errors.missing import Missing
from igap.inputs.answers import format_answer
from igap.metrics import LogitDiff
from igap.statistics.bootstrap import interval_label

_TOP = 5
"""Best prompts that are shown; of a front twice as many."""
_WORTH_IT = 0.01
"""Share of the best value by which a one-word change must be better for more trials to be worth their time."""
_ENOUGH = 250
"""Random trials from which on a slot's share of the variance is known to about 10%, with 60 words a slot."""
_ROUNDING = 1e-6
"""Share of a head's effect by which another must be larger to be called larger."""

_REJECTED = {
    "outside the space": "outside the space: it has the clean prompt's words in slots that do not offer them, so that "
    "no trial can be this prompt; its value may be above the best",
    "out of bounds": "out of bounds: it violates a constraint, so that no trial with it counts; its value may be above "
    "the best",
}
"""What is said once of prompts that the search could not give."""


@contextmanager
def progress_bar(console: Console) -> Iterator[OnProgress]:
    """A progress bar with the best value so far and evaluations a second, gone when it is done; lines in a log file."""
    if not console.is_terminal:
        said = log_progress(console, "search")
        yield lambda now: said(now.n, now.until, f"; best {decimals(now.best)}")
        return
    columns = (
        TextColumn("search"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("best {task.fields[best]}, {task.fields[rate]:.0f} a second"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("search", total=None, best="nan", rate=0.0)

        def tell(now: Progress) -> None:
            bar.update(task, completed=now.n, total=now.until, best=decimals(now.best), rate=now.rate)

        yield tell


def show(console: Console, result: SearchResult, head: str, *, brief: bool = False) -> None:
    """Print the verdict, the best pair with its changed words marked, what it is worth, and the next best."""
    validation, pair, answer = result.validation, result.best, format_answer(result.best.answer)
    best, random, heldout = validation.best, validation.random, validation.heldout
    first, *others = result.verdict.split("\n")
    console.print(f"\n[bold]{escape(first)}[/]", highlight=False, soft_wrap=True)
    for line in others:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"\n[bold]clean[/]      {escape(pair.clean)} [green]{escape(answer)}[/]", soft_wrap=True)
    console.print(f"[bold]corrupted[/]  {_mark_changes(pair.clean, pair.corrupted)}", soft_wrap=True)
    console.print(f"rule: {best.rule}", markup=False, soft_wrap=True)
    console.print(f"token before every prompt: {validation.leading or 'none'}", markup=False, highlight=False)
    show_route(console, result.route, result.why_route)
    asked, n = result.objective, len(result.clean)
    of_abs = f": here {best.sign}" if asked.sign != best.sign else ""
    over = f"{asked.aggregate} over {n} clean prompts" if n > 1 else "one clean prompt"
    unit = asked.unit
    metric = "" if asked.f == LogitDiff() else f" on {asked.f.name}"
    title = f"{head}: {asked.terms[0]}{metric} (sign={asked.sign}{of_abs}), {over}, {unit}"
    table = Table(title=title, title_justify="left")
    for column in (
        "best", "made by hand", "best of random", f"search's first {random.n}", "neutral edits, p95", "held out",
        "by hand, held out",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    table.add_row(
        _format(best.value),
        _format(validation.reference.value),
        _random_best(result),
        _format(random.search_at_equal_budget) + _other_direction(result, random.search_sign),
        _format(neutral if isinstance(neutral := validation.neutral, Missing) else neutral.p95),
        _format(heldout if isinstance(heldout, Missing) else heldout.value),
        _format(heldout if isinstance(heldout, Missing) else heldout.reference),
    )
    console.print(table)
    if brief:
        return
    pairs = Table(title="As igap run has it, means over clean prompts", title_justify="left")
    for column in ("pair", f"AP effect, {unit}", f"gap, {unit}", "mean of effect / gap", "rank among heads"):
        pairs.add_column(column, justify="right" if column != "pair" else "left")
    for title, effects, of in (
        ("made by hand", validation.reference_effects, n),
        ("best", validation.best_effects, len(validation.pairs)),
    ):
        pairs.add_row(title, _format(effects.ap), _format(effects.gap), _score(effects, of), _format(effects.rank))
    console.print(pairs)
    for sentence in sentences(result):
        console.print(sentence, markup=False, soft_wrap=True)
    console.print(_table_of_prompts(validation, asked.terms))


def _random_best(result: SearchResult) -> str:
    """The best random trial, of how many, its direction where that is not the best prompt's."""
    random = result.validation.random
    if not random.n:
        return "-"
    within = f", {random.n_feasible} within bounds" if random.n_feasible < random.n else ""
    return f"{_format(random.best)}{_other_direction(result, random.best_sign)} (of {random.n}{within})"


def _other_direction(result: SearchResult, sign: Sign) -> str:
    """The direction of a trial's |effect| where it is not the best prompt's."""
    best = result.validation.best.sign
    return f" {sign}" if result.objective.sign == "abs" and "abs" not in (best, sign) and sign != best else ""


def _score(effects: PairEffects, n: int) -> str:
    """The mean quotient of a component's effect and the gap, and over how many of the n pairs where not over all."""
    part = not isinstance(effects.score, Missing) and effects.n_scored < n
    return _format(effects.score) + (f" (over {effects.n_scored} of {n})" if part else "")


def _table_of_prompts(validation: Validation, terms: Sequence[str]) -> Table:
    """The front of a Pareto study, else the best prompts."""
    front = validation.front
    title = "The front: no trial beats one of these in every term" if front else (
        "Best prompts, two words apart at least"
    )  # fmt: skip
    table = Table(title=title, title_justify="left")
    for column in (*terms, "corrupted", "from"):
        table.add_column(column, justify="left" if column in ("corrupted", "from") else "right", overflow="fold")
    rows = sorted(front or validation.top, key=lambda row: -row.values[0])
    for row in rows[: 2 * _TOP if front else _TOP]:
        table.add_row(*map(_format, row.values), escape(row.corrupted), row.source)
    return table


def sentences(result: SearchResult) -> list[str]:
    """What the validation says, in words."""
    validation = result.validation
    lines = [_describe_trials(result), *describe_optimality(result), _describe_single_edits(result)]
    if len(result.clean) > 1:
        swapped = validation.reference.swapped
        others = f", whose pairs igap made, {swapped}" if swapped else ", the corrupted prompts of their own pairs"
        lines.append(
            f"made by hand: the pair itself {_format(validation.reference.own)}; of the other clean prompts{others}"
        )
    if result.space.kind != "prompts":
        lines += _describe_words(validation)
    lines += [*_describe_held_out(result), *describe_error(validation.error, result.objective.unit)]
    percentile, after = validation.plausibility.percentile, validation.plausibility.downstream
    lines.append(
        f"fluency of the best prompts: {_format(validation.plausibility.fluency)} nats a token beside the clean ones"
        + ("" if isinstance(percentile, Missing) else
           f"; the component's activation at percentile {percentile:.0f} of ordinary prompts'")
        + ("" if isinstance(after, Missing) else
           f", what follows it at {after.percentile:.0f} ({after.unpatched:.0f} unpatched; farthest after layer "
           f"{after.layer}, at {after.at_layer:.0f} there)")
    )  # fmt: skip
    if left_out := ", ".join(f"{n} ({why})" for why, n in result.space.left_out.items() if n):
        lines.append(f"left out of the space: {left_out}")
    if result.n_cached:
        what = "candidate was" if result.n_cached == 1 else "candidates were"
        lines.append(f"{result.n_cached} {what} known from earlier searches")
    return lines


def _describe_trials(result: SearchResult) -> str:
    """How many trials there are, what became of those that are not feasible, and what they took."""
    failed = [trial.reason for trial in result.trials if trial.is_failed]
    n_out = sum(bool(trial.violated) for trial in result.trials)
    chunks = [trial.chunk for trial in result.trials if trial.chunk]
    each = f", {result.n_tried:,} of which were tried: a trial is the best of a chunk of them" if chunks else ""
    return (
        f"{len(result.trials)} trials of {float(result.space.size):.4g} candidates{each}"
        + (f", {n_out} out of bounds" if n_out else "")
        + (f", {len(failed)} failed ({failed[0]})" if failed else "")
        + f"; this time {result.seconds:.1f} s, {result.cost:,.0f} forward equivalents"
    )


def _describe_single_edits(result: SearchResult) -> str:
    edits, best = result.validation.single_edits, result.validation.best.value
    n, of, n_allowed = len(edits.edits), edits.n_possible, sum(edit.allowed for edit in edits.edits)
    what = "other prompts of the list" if result.space.kind == "prompts" else "one-word changes of the best"
    tried = f"{what}: {n if n_allowed == n else f'{n_allowed} allowed of {n}'} tried"
    chosen = "with the largest first-order gains" if result.objective.follows_gradient else "drawn at random"
    notes = [f"those of {of} {chosen}"] if n != of else []
    if n_allowed < n and any(trial.violations for trial in result.trials):
        notes.append("bounds are checked of the better ones alone")
    tried += f" ({'; '.join(notes)})" if notes else ""
    if not edits.n_better or isinstance(edits.best, Missing):
        return f"{tried}, 0 better: a local optimum{'' if n == of else ' among these'}"
    more = "; more trials would help" if edits.best - best >= _WORTH_IT * abs(best) else ", by less than 1%"
    return f"{tried}, {edits.n_better} better, up to {_format(edits.best)}{more}"


def _describe_shares(shares: Sequence[tuple[str, float, float]]) -> str:
    """The largest shares of the variance with their errors; that nothing is known where the 95% interval holds all."""
    largest = sorted(shares, key=lambda share: -share[1])[:6]
    unknown = [slot for slot, share, error in largest if 1.96 * error >= max(share, 1 - share)]
    said = [
        f"{slot} {round(100 * share)} ± {round(100 * error)}%" for slot, share, error in largest if slot not in unknown
    ]
    if unknown:
        said.append(
            f"too few random trials to say for {', '.join(unknown)}, anything from 0 to 100% (about {_ENOUGH} would "
            f"do: search.control={_ENOUGH}, search.until={3 * _ENOUGH} or more)"
        )
    return ", ".join(said)


def _describe_words(validation: Validation) -> list[str]:
    """What few words do, and what each slot does."""
    lines = []
    if validation.by_edit_count:
        steps = "; ".join(f"{step.edits}: {_partial(step)}" for step in validation.by_edit_count)
        lines.append(f"with few words changed: {steps}")
        pruned, n = validation.pruned, validation.best.edits
        if pruned.edits != n:
            be = "is" if pruned.edits == 1 else "are"
            lines.append(f"{pruned.edits} of its {n} words {be} enough: {_partial(pruned)}")
        rejections = {pruned.rejection, *(step.rejection for step in validation.by_edit_count)}
        lines += [text for rejection, text in _REJECTED.items() if rejection in rejections]
    if validation.slots:
        losses = ", ".join(f"{slot.slot} {_format(slot.loss)}" for slot in validation.slots[:6])
        lines.append(f"lost with the clean prompt's word in a slot: {losses}")
        shares = [
            (slot.slot, slot.variance_share, slot.variance_share_error)
            for slot in validation.slots
            if not isinstance(slot.variance_share, Missing) and not isinstance(slot.variance_share_error, Missing)
        ]
        if shares:
            lines.append(f"share of the variance at random: {_describe_shares(shares)}")
    return lines


def _partial(prompt: BestByEditCount | PrunedPrompt) -> str:
    """The value and the words of a prompt that has some of the best one's, and why the search could not give it."""
    rejection = f"; {prompt.rejection}" if prompt.rejection else ""
    return f"{_format(prompt.value)} ({prompt.words}{rejection})"


def _describe_held_out(result: SearchResult) -> list[str]:
    """The objective's value on clean prompts that the search has not seen, and the mean effect there."""
    heldout, term, sign = result.validation.heldout, result.objective.terms[0], result.validation.best.sign
    if isinstance(heldout, Missing):
        return []
    share = "" if isinstance(heldout.share, Missing) else f", {_format(heldout.share)} of the value found"
    effect = "effect" if term in ("ap", "selectivity") else term
    interval = (
        ""
        if isinstance(heldout.low, Missing)
        else f" [{interval_label(heldout.n)}: {_format(heldout.low)}, {_format(heldout.high)}]"
    )
    return [
        f"held out, {heldout.n} clean prompt{'s' if heldout.n > 1 else ''}: {term} {_format(heldout.value)}{share}; "
        f"mean {effect}{', drop being positive,' if sign == 'drop' else ''} {_format(heldout.mean)}{interval}"
    ]


def show_scan(console: Console, results: Sequence[tuple[str, SearchResult]]) -> None:
    """Print a line a component, which of them stand out, and which reach more in the prompt found for another."""
    objective = results[0][1].objective
    title = (
        f"What each component reaches in its own search: AP effects, and values of {objective.terms[0]}, "
        f"{objective.unit}"
    )
    table = Table(title=title, title_justify="left")
    for column in ("", "AP by hand", "AP deleted", "AP best", "value", "best of random", "held out", "rank by hand",
                   "rank", "rule"):  # fmt: skip
        table.add_column(column, justify="left" if column in ("", "rule") else "right", overflow="fold")
    for name, result in results:
        validation = result.validation
        reference, best = validation.reference_effects, validation.best_effects
        deletion, heldout = validation.deletion, validation.heldout
        numbers = (
            reference.ap,
            deletion if isinstance(deletion, Missing) else deletion.ap,
            best.ap,
            validation.best.value,
            validation.random.best,
            heldout if isinstance(heldout, Missing) else heldout.value,
            reference.rank,
            best.rank,
        )
        table.add_row(name, *map(_format, numbers), escape(validation.best.rule))
    console.print(table)
    verdicts = {name: stands_out(result.validation) for name, result in results}
    heads = [name for name, each in verdicts.items() if not isinstance(each, Missing)]
    standing = ", ".join(name for name in heads if verdicts[name]) or "none"
    if heads:
        what = f"heads that stand out in their own best prompts (rank 1 by |AP effect|), of {len(heads)}: {standing}"
        console.print(what, markup=False, highlight=False, soft_wrap=True)
    beaten = []
    for head, effects in scan.matrix(results).to_dict("index").items():
        where = max(effects, key=lambda name: abs(effects[name]))
        if abs(effects[where]) > (1 + _ROUNDING) * abs(effects[head]):
            beaten.append(f"{head} {_format(effects[where])} in {where}'s ({_format(effects[head])} in its own)")
    if beaten:
        console.print(
            f"a larger |AP effect| in another's best prompt: {'; '.join(beaten)}", markup=False, soft_wrap=True
        )


def show_paths(console: Console, folder: Path) -> None:
    """Print the files in a search's folder, and the runs of its best pairs."""
    console.print(f"\nwritten to {folder}", markup=False, soft_wrap=True)
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        if path.is_file() and not {"runs", "wandb", "artifacts"} & set(inside) and not path.name.startswith("."):
            console.print(f"  {path.relative_to(folder)}", highlight=False)
    for run in sorted(folder.glob("runs/*/summary.json")):
        console.print(f"  {run.parent.relative_to(folder)}/  (igap run of a best pair)", highlight=False)


def _mark_changes(clean: str, corrupted: str) -> str:
    """The corrupted prompt, its words that are not the clean prompt's in colour."""
    here, there = clean.split(" "), corrupted.split(" ")
    if len(here) == len(there):
        same = {i for i, (old, new) in enumerate(zip(here, there, strict=True)) if old == new}
    else:
        blocks = SequenceMatcher(None, here, there, autojunk=False).get_matching_blocks()
        same = {block.b + i for block in blocks for i in range(block.size)}
    return " ".join(escape(word) if i in same else f"[bold red]{escape(word)}[/]" for i, word in enumerate(there))


def _format(value: int | float | Missing) -> str:
    """Three decimals, a whole number as it is, "-" for a missing one."""
    if isinstance(value, Missing):
        return "-"
    return decimals(value) if isinstance(value, float) else str(value)
