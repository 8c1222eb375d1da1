import dataclasses
import io
import json
import shutil
from pathlib import Path

import pytest
from helpers.small_gaps import without_scores
from rich.console import Console

from igap.console import show_stage
from igap.inputs.alignment import align
from igap.inputs.prompts import encode_pair
from igap.models.load import read_header
from igap.output import run_tables, terminal
from igap.sweep.folder import JobStatus, SweepFolder
from igap.sweep.plan import Composed, Estimate, Job, Plan
from igap.sweep.terminal import show_plan, show_plan_end


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=160)


def text(console):
    return console.file.getvalue()


def test_the_end_of_a_run_says_pair_numbers_and_paths(console, result, written):
    terminal.show(console, result, written)
    shown = text(console)
    assert result.pairs[0].clean in shown
    assert f"clean {result.clean_logit_diff:+.3f}" in shown
    assert f"gap {result.gap:+.3f} logits" in shown
    for site in ("heads", "neurons"):
        comparison = result.comparisons[site]
        assert f"{comparison.pearson:.3f} [{comparison.pearson_low:.3f}, {comparison.pearson_high:.3f}]" in shown
        assert f"{comparison.jaccard_at(10):.3f} (chance" in shown
    assert f"outliers among heads (|AP - IG| > 1.96 SD): {len(result.comparisons['heads'].outliers('heads'))}" in shown
    assert str(written) in shown
    for path in ("summary.json", "plots/heads_scatter.png", "heads.csv"):
        assert path in shown


def test_the_top_heads_are_the_largest_effects_with_their_signed_scores(console, result, written):
    terminal.show(console, result, written)
    effect, score = (getattr(result.maps["heads"]["ap"], name).flatten() for name in ("effect", "score"))
    best = int(effect.abs().argmax())
    assert f"{best // 4}.{best % 4} {score[best]:+.3f}" in text(console)


def test_prompts_and_warnings_are_text_and_not_markup(console, result, written):
    pair = dataclasses.replace(result.pairs[0], clean="[bold]not bold[/bold] John")
    terminal.show(console, dataclasses.replace(result, pairs=(pair,), warnings=("ig: [red]x",)), written)
    assert "[bold]not bold[/bold] John" in text(console)
    assert "warning: ig: [red]x" in text(console)


def test_a_sweep_ends_with_a_line_a_job_and_failures_with_reason_and_log(console, result, written, tmp_path):
    folder = SweepFolder(tmp_path / "x")
    jobs = tuple(
        Job(
            key,
            (f"ig.n_steps={n}",),
            Composed(("seed=1", f"ig.n_steps={n}"), result.config, ""),
            1,
            result.config.tracking,
        )
        for n, key in ((2, result.key), (3, "b" * 12), (4, "c" * 12))
    )
    shutil.copytree(written, folder.run(result.key))
    summary = folder.run(result.key) / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"warnings": "ig: use more steps"}))
    folder.fail("b" * 12, "no [red]luck[/red]", "Traceback")
    plan = Plan(folder, jobs, {job.key: folder.status(job.key) for job in jobs}, 0, ())
    show_plan_end(console, plan, {"b" * 12: "no [red]luck[/red]"})
    finished, failed, planned, reason = (line for line in text(console).splitlines() if "ig.n_steps=" in line)
    assert f"{result.gap:.3f}" in finished
    assert "failed" in failed
    assert "planned" in planned
    assert "no [red]luck[/red]" in reason
    assert "failure.log" in text(console)
    assert f"warnings of 1 run, in their summary.json: {result.key}\n" in text(console)
    assert "seed=1" not in text(console)
    assert "1 of 3 jobs finished" in text(console)
    assert "the same command again does the rest" in text(console)


@pytest.mark.parametrize(
    ("time_left", "said"),
    [
        (None, "nothing of this kind"),
        (Estimate(100.0, 3), "about 100 s, going by 3 finished runs in"),
        (Estimate(600.0, 1), "about 10 min, going by 1 finished run in"),
    ],
)
def test_a_plan_says_how_long_it_takes_where_that_is_known(console, result, tmp_path, time_left, said):
    job = Job(result.key, (), Composed((), result.config, ""), 1, result.config.tracking)
    plan = Plan(SweepFolder(tmp_path), (job,), {job.key: JobStatus(job.key, "planned")}, 0, ())
    show_plan(console, plan, time_left)
    assert said in text(console)


def test_in_a_log_file_a_stage_is_a_line_and_then_about_one_a_minute(console):
    now = [100.0]
    with show_stage(console, "ig heads", clock=lambda: now[0]) as progress:
        assert text(console) == "ig heads\n"
        for second, done in ((30, 1), (59, 2), (61, 3), (90, 4), (125, 5)):
            now[0] = 100.0 + second
            progress(done, 20)
    assert text(console).splitlines() == [
        "ig heads",
        "ig heads: 3 of 20 after 61 s, about 6 min left",  # 61 s * 17 / 3 is 346 s
        "ig heads: 5 of 20 after 2 min, about 6 min left",  # 125 s * 15 / 5 is 375 s
    ]


def test_a_stage_that_is_not_announced_is_silent_for_a_minute(console):
    now = [0.0]
    with show_stage(console, "check jobs", clock=lambda: now[0], announced=False) as progress:
        progress(1, 3)
        assert text(console) == ""
        now[0] = 60.0
        progress(2, 3)
    assert text(console) == "check jobs: 2 of 3 after 60 s, about 30 s left\n"


def test_progress_on_a_terminal_shows_the_stage_and_its_counts():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with show_stage(console, "ig heads") as progress:
        progress(3, 12)
    assert "ig heads" in console.file.getvalue()
    assert "3/12" in console.file.getvalue()


def test_several_pairs_are_shown_by_number_and_source_with_intervals(console, many, many_written):
    terminal.show(console, many, many_written)
    shown = text(console)
    assert "prompts  5 pairs (five.csv)" in shown
    assert many.pairs[0].clean not in shown
    assert f"mean over pairs: clean {many.clean_logit_diff:+.3f}" in shown
    assert f"gap {many.gap:+.3f} logits" in shown
    low, high = many.spread.gap.low[0], many.spread.gap.high[0]
    assert f"gap: [95% over pairs: {low:+.3f}, {high:+.3f}], SD " in shown
    assert f"from {min(many.gaps):+.3f} to {max(many.gaps):+.3f} logits" in shown
    assert "How far the mean maps of IG and AP agree" in shown
    for site in ("heads", "neurons"):
        r, low, high = many.spread.pearson_mean(site, 0)
        assert f"Pearson r of single pairs, {site}: mean {r:.3f} [95% over pairs: {low:.3f}, {high:.3f}]" in shown
    assert "warning: prompts: the gap F(clean) - F(corrupted) of 1 of 5 pairs is too small" in shown
    assert "  pairs.csv" in shown


def test_outlier_neurons_that_the_table_leaves_out_are_counted(console, result, written, monkeypatch):
    terminal.show(console, result, written)
    assert "leaves out" not in text(console)
    monkeypatch.setattr(run_tables, "TOP_NEURONS", 2)
    monkeypatch.setattr(run_tables, "MOST_OUTLIERS", 1)
    monkeypatch.setattr(terminal, "MOST_OUTLIERS", 1)
    terminal.show(console, result, written)
    outliers = result.comparisons["neurons"].outliers("neurons")
    left_out = len(set(outliers) - set(run_tables.top_neurons(result)["name"]))
    assert left_out > 1
    assert f"neurons.csv leaves out {left_out} of them, those with the smallest |AP - IG|" in text(console)


def test_the_lines_against_ap_come_after_those_that_explain_the_outliers(console, result, written):
    terminal.show(console, result, written)
    shown = text(console)
    lines = [
        "outliers among neurons",
        "the difference of",
        "output curves: ",
        "heads, IG against AP",
        "queries, ATP ag",
    ]
    places = [shown.index(line) for line in lines]
    assert places == sorted(places)
    assert shown.rindex("the difference of") < places[3]


def test_the_first_of_the_mean_is_told_with_the_pairs_in_which_it_is_first(console, many, many_written):
    terminal.show(console, many, many_written)
    for site, width in (("heads", 4), ("neurons", 48)):
        parts = []
        for method in ("ig", "ap"):
            effect = many.maps[site][method].effect.abs()
            layer, index = divmod(int(effect.argmax()), width)
            first = [
                bool(of.effect.abs()[layer, index] == of.effect.abs().max()) for of in many.maps[site][method].pairs
            ]
            name = f"{layer}.{index}" if site == "heads" else f"L{layer}.N{index}"
            parts.append(f"{name} by {method.upper()} (first in {sum(first)} of 5 pairs)")
        assert f"{site}, first in the mean: {', '.join(parts)}\n" in text(console)


def test_an_interval_over_three_pairs_is_called_their_range(console, many, many_written):
    numbers = {"clean_values": (5.0, 6.0, 7.0), "corrupted_values": (-5.0, -6.0, -7.0)}
    three = dataclasses.replace(many, pairs=many.pairs[:3], tokens=many.tokens[:3], **numbers)
    spread = dataclasses.replace(many.spread, pearson={site: r[:3] for site, r in many.spread.pearson.items()})
    terminal.show(console, dataclasses.replace(three, spread=spread), many_written)
    shown = text(console)
    assert "gap: [about the range of 3 pairs: " in shown
    assert "Top 5 by |effect|, with mean score [about the range of 3 pairs]" in shown
    assert "Pearson r of single pairs, neurons: mean " in shown
    assert shown.count("[about the range of 3 pairs: ") == 3
    assert "95% over pairs" not in shown


def test_beside_a_top_heads_mean_score_stands_its_interval(console, many, many_written):
    terminal.show(console, many, many_written)
    for method in ("ig", "ap"):
        found = many.maps["heads"][method]
        best = int(found.effect.abs().flatten().argmax())
        ends = many.spread.intervals["heads"][method]
        score = f"{best // 4}.{best % 4} {found.score.flatten()[best]:+.3f}"
        assert f"{score} [{ends.low[best]:+.3f}, {ends.high[best]:+.3f}]" in text(console)
    assert "Top 5 by |effect|, with mean score [95% over pairs]" in text(console)


def test_several_pairs_without_scores_show_mean_effects(console, many, many_written):
    terminal.show(console, without_scores(many), many_written)
    effect = many.maps["heads"]["ap"].effect.flatten()
    best = int(effect.abs().argmax())
    assert "Top 5 by |effect|, with mean logits" in text(console)
    assert f"{best // 4}.{best % 4} {effect[best]:+.3f} │" in text(console), "and no interval, which scores have"
    assert "nan" not in text(console)


def test_an_alignment_is_shown_token_below_token(result):
    (pair,) = result.pairs
    second = dataclasses.replace(
        pair, corrupted="After the cat and the dog went to the store, Mary gave a bottle of milk to", align="diff"
    )
    known = {"prepend_bos": True, "n_ctx": None, "n_vocab": None}
    tokens = encode_pair(second, read_header(result.config.model.name).tokenizer, **known)
    console = Console(file=io.StringIO(), width=60)
    terminal.show(console, dataclasses.replace(result, pairs=(second,), tokens=(tokens,)), Path("nowhere"))
    shown = console.file.getvalue()
    assert "17 and 19 tokens, the one before every prompt included, 6 of them without a partner" in " ".join(
        shown.split()
    )
    lines = [line for line in shown.splitlines() if line.startswith(("  clean ", "  corrupted "))]
    assert len(lines) == 6
    assert all(len(line) <= 60 for line in lines)
    above, below = (" ".join(line[12:] for line in lines[side::2]).split() for side in (0, 1))
    assert above[:9] == ["<|endoftext|>", "After", "John", "-", "-", "and", "Mary", "-", "-"]
    assert below[:9] == ["<|endoftext|>", "After", "-", "the", "cat", "and", "-", "the", "dog"]
    assert lines[0].index(" and") == lines[1].index(" and")


def test_a_token_of_spaces_is_not_shown_as_one_that_is_missing(result):
    alignment = align([1, 2, 3], [1, 3], "diff")
    tokens = dataclasses.replace(
        result.tokens[0], alignment=alignment, clean_words=("a", "\n", " b"), corrupted_words=("a", " b")
    )
    console = Console(file=io.StringIO(), width=60)
    terminal.show(console, dataclasses.replace(result, tokens=(tokens,)), Path("nowhere"))
    lines = [line for line in console.file.getvalue().splitlines() if line.startswith(("  clean ", "  corrupted "))]
    assert [line.split()[1:] for line in lines] == [["a", r"'\n'", "b"], ["a", "-", "b"]]


def test_of_several_pairs_those_of_two_lengths_are_counted(console, many, many_written):
    terminal.show(console, many, many_written)
    assert "alignment" not in text(console)
    aligned = dataclasses.replace(many.tokens[1], alignment=align([1, 2, 3], [1, 3], "diff"))
    config = many.config.model_copy(update={"prompts": many.config.prompts.model_copy(update={"align": "diff"})})
    changed = dataclasses.replace(many, config=config, tokens=(aligned, *many.tokens[1:4], aligned))
    terminal.show(console, changed, many_written)
    assert (
        "alignment (diff): 2 of 5 pairs have prompts of two lengths; of their 10 tokens 2 have no partner and take "
        "nothing from the other prompt (alignment.csv)" in " ".join(text(console).split())
    )
