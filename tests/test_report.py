import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console

from igap import records, report


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=160)


def text(console):
    return console.file.getvalue()


def test_the_end_of_a_run_says_pair_numbers_and_paths(console, result, written):
    report.show(console, result, written)
    shown = text(console)
    assert result.config.prompts.clean in shown
    assert f"clean {result.clean_logit_diff:+.3f}" in shown
    assert f"gap {result.gap:+.3f} logits" in shown
    for site in ("heads", "neurons"):
        comparison = result.comparisons[site]
        assert f"{comparison.pearson:.3f} [{comparison.pearson_low:.3f}, {comparison.pearson_high:.3f}]" in shown
        assert f"{comparison.jaccard_at(10):.3f} (chance" in shown
    assert f"outliers among heads (|AP - IG| > 1.96 SD): {len(records.outliers(result, 'heads'))}" in shown
    assert str(written) in shown
    for path in ("summary.json", "plots/heads_scatter.png", "heads.csv"):
        assert path in shown


def test_the_top_heads_are_the_largest_effects_with_their_signed_scores(console, result, written):
    report.show(console, result, written)
    effect, score = (getattr(result.maps["heads"]["ap"], name).flatten() for name in ("effect", "score"))
    best = int(effect.abs().argmax())
    assert f"{best // 4}.{best % 4} {score[best]:+.3f}" in text(console)


def test_prompts_and_warnings_are_text_and_not_markup(console, result, written):
    prompts = result.config.prompts.model_copy(update={"clean": "[bold]not bold[/bold] John"})
    config = result.config.model_copy(update={"prompts": prompts})
    report.show(console, dataclasses.replace(result, config=config, warnings=("ig: [red]x",)), written)
    assert "[bold]not bold[/bold] John" in text(console)
    assert "warning: ig: [red]x" in text(console)


def test_a_sweep_is_a_line_a_job_with_what_is_its_own_and_failures_named(console, result):
    summary = records.summarize(result)
    jobs = [
        (("seed=1", "ig.n_steps=2"), summary, Path("runs/x/0")),
        (("seed=1", "ig.n_steps=3"), None, Path("runs/x/1")),
    ]
    report.show_sweep(console, jobs)
    first, second = (line for line in text(console).splitlines() if "ig.n_steps=" in line)
    assert "ig.n_steps=2" in first
    assert f"{summary['gap']:.3f}" in first
    assert "ig.n_steps=3" in second
    assert "failed" in second
    assert "seed=1" not in text(console)
    assert "2 jobs in runs/x" in text(console)


def test_progress_is_quiet_where_nobody_watches():
    console = Console(file=io.StringIO(), force_terminal=False)
    with report.stage(console, "ig heads") as progress:
        progress(1, 2)
    assert console.file.getvalue() == ""


def test_progress_on_a_terminal_shows_the_stage_and_its_counts():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with report.stage(console, "ig heads") as progress:
        progress(3, 12)
    assert "ig heads" in console.file.getvalue()
    assert "3/12" in console.file.getvalue()
