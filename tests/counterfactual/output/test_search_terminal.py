"""What a search says on the terminal, and what several heads' searches show together."""

import io
import re
from dataclasses import replace
from html import escape

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import igap
from igap.console import number
from igap.counterfactual.config import SearchConfig, SpaceConfig, check_terms
from igap.counterfactual.history import Proposal
from igap.counterfactual.output import scan, terminal
from igap.counterfactual.output.flatten import flatten
from igap.counterfactual.trials.study import EvaluatedTrial
from igap.counterfactual.validation.results import BestByEditCount, PrunedPrompt
from igap.counterfactual.validation.verdict import decimals, verdict
from igap.errors.missing import Missing
from igap.models.load import EMBEDDED

KEPT = {name: ["=keep"] for name in ("place", "verb", "object")}
SPACE = {"first": ["=keep", "Tom"], "second": ["=keep", "=N1", "Tom", "Anna"], "subject": ["=keep", "=IO"], **KEPT}


@pytest.fixture(scope="module")
def results(small, pair):
    asked = {"space": SPACE, "until": 16, "clean_n": 2, "heldout_n": 2}
    return [(name, igap.search(small(EMBEDDED), pair, name, **asked)) for name in ("0.4", "1.2")]


def said(show, *arguments, **options):
    text = io.StringIO()
    show(Console(file=text, width=160), *arguments, **options)
    return text.getvalue()


def test_the_slow_route_is_said_with_its_reason(results):
    name, result = results[0]
    assert "route" not in said(terminal.show, result, name)
    slow = replace(result, route="hooks", why_route="another family")
    assert "route: hooks, the slower one: another family\n" in said(terminal.show, slow, name)


def test_the_report_names_the_pair_its_rule_units_and_what_to_compare_it_with(results):
    name, result = results[0]
    summary, text = flatten(result.validation), said(terminal.show, result, name)
    assert result.best.corrupted in text
    assert f"rule: {summary['best/rule']}" in text
    assert f"0.4: ap (sign=abs: here {summary['best/sign']}), mean over 2 clean prompts, logits" in text
    assert f"made by hand: the pair itself {summary['by_hand/own']:.3f}; of the other clean prompts" in text
    for key in (
        "best/value",
        "by_hand/value",
        "neutral/p95",
        "heldout/value",
        "heldout/by_hand",
        "best/ap",
        "best/gap",
    ):
        assert f"{summary[key]:.3f}" in text, key
    assert "mean of effect / gap" in text
    assert re.search(r"16 trials of 16 candidates; this time \d+\.\d s, [\d,]+ forward equivalents", text)
    assert "one-word changes of the best: 5 tried, 0 better: a local optimum" in text
    assert "rank among heads" in text
    brief = said(terminal.show, result, name, brief=True)
    assert "rank among heads" not in brief
    assert result.best.corrupted in brief


def changed(result, **sections):
    """The result with sections of its validation changed: a mapping has the fields that differ."""
    validation = result.validation
    for name, to in sections.items():
        section = replace(getattr(validation, name), **to) if isinstance(to, dict) else to
        validation = replace(validation, **{name: section})
    return replace(result, validation=validation)


def test_a_share_of_variance_that_may_be_any_is_not_said(results):
    shares = {"first": (0.2, 0.1), "second": (0.43, 0.3), "subject": (0.0, 0.6)}
    slots = tuple(
        replace(slot, variance_share=shares[slot.slot][0], variance_share_error=shares[slot.slot][1])
        for slot in results[0][1].validation.slots
    )
    told = terminal.sentences(changed(results[0][1], slots=slots))
    assert (
        "share of the variance at random: first 20 ± 10%, too few random trials to say for second, subject, anything "
        "from 0 to 100% (about 250 would do: search.control=250, search.until=750 or more)"
    ) in told


def test_shares_of_variance_come_with_their_errors_the_largest_first_and_unknown_ones_are_left_out(results):
    result = results[0][1]
    shares = {"first": (0.2, 0.1), "second": (0.43, 0.17), "subject": (Missing("one word"), Missing("one word"))}
    slots = tuple(
        replace(slot, variance_share=shares[slot.slot][0], variance_share_error=shares[slot.slot][1])
        for slot in result.validation.slots
    )
    told = terminal.sentences(changed(result, slots=slots))
    assert "share of the variance at random: second 43 ± 17%, first 20 ± 10%" in told


def test_the_verdict_stands_above_all_else_on_the_terminal_in_a_notebook_and_in_the_summary(results):
    name, result = results[0]
    lines = verdict(result.validation, name, result.objective)
    for brief in (False, True):
        assert said(terminal.show, result, name, brief=brief).startswith("\n" + "\n".join(lines) + "\n\nclean")
    assert result.verdict == "\n".join(lines)
    html = result._repr_html_()
    places = [html.index(escape(line)) for line in (*lines, "best ap")]
    assert places == sorted(places)
    assert "search for ap of 0.4: 16 trials" in html


def test_prompts_of_few_words_that_the_search_could_not_give_are_marked_and_told_once(results):
    def told(*rejections):
        steps = tuple(BestByEditCount(n, 1.0 + n, 1.0, "first := Tom", each) for n, each in enumerate(rejections, 1))
        pruned = PrunedPrompt(1, 1.25, "second := Tom", rejections[-1])
        return terminal.sentences(changed(results[0][1], by_edit_count=steps, best={"edits": 3}, pruned=pruned))

    plain = told("", "")
    assert "with few words changed: 1: 2.000 (first := Tom); 2: 3.000 (first := Tom)" in plain
    assert not any("outside the space" in line or "out of bounds" in line for line in plain)
    for rejection in ("outside the space", "out of bounds"):
        lines = told("", rejection)
        assert f"with few words changed: 1: 2.000 (first := Tom); 2: 3.000 (first := Tom; {rejection})" in lines
        assert f"1 of its 3 words is enough: 1.250 (second := Tom; {rejection})" in lines
        (explained,) = (line for line in lines if line.startswith(f"{rejection}: "))
        assert explained.endswith("its value may be above the best")


def test_a_share_of_the_value_is_told_of_means_only(results):
    for share, told in ((0.5, True), (Missing("aggregate=min"), False)):
        other = changed(results[0][1], heldout={"share": share})
        (held,) = (line for line in terminal.sentences(other) if "held out" in line)
        assert ("of the value found" in held) is told


def test_held_out_prompts_give_the_objectives_value_with_its_share_and_then_the_mean_effect(results):
    measured = {"n": 16, "value": -0.1, "share": -0.2, "mean": 0.3, "low": 0.25, "high": 0.5}
    found = changed(results[0][1], heldout=measured, best={"sign": "raise"})

    def line(term, **other):
        asked = replace(found, objective=replace(found.objective, terms=(term,)))
        return next(each for each in terminal.sentences(changed(asked, **other)) if each.startswith("held out"))

    begin = "held out, 16 clean prompts: {} -0.100, -0.200 of the value found; mean "
    effect = begin + "effect 0.300 [95% over pairs: 0.250, 0.500]"
    assert line("ap") == effect.format("ap")
    assert line("selectivity") == effect.format("selectivity")
    assert "; mean effect, drop being positive, 0.300 [" in line("ap", best={"sign": "drop"})
    assert line("ig") == effect.format("ig").replace("mean effect", "mean ig")
    without_direction = line("disagreement", best={"sign": "abs"})
    assert without_direction.startswith(begin.format("disagreement") + "disagreement 0.300 [")
    for n in (2, 3):
        assert f"[about the range of {n} pairs: 0.250, 0.500]" in line("ap", heldout={"n": n})
    one = line("ap", heldout={"n": 1, "low": Missing("one"), "high": Missing("one")})
    assert one.startswith("held out, 1 clean prompt: ap")
    assert one.endswith("0.300")


def test_a_mean_of_quotients_says_of_how_many_pairs_it_is_where_some_have_none(results):
    _, result = results[0]
    n = len(result.validation.pairs)

    def row(**effects):
        text = said(terminal.show, changed(result, best_effects=effects), "0.4")
        return next(line for line in text.splitlines() if line.startswith("│ best ") and "gap" not in line)

    assert f"│ 0.500 (over {n - 1} of {n}) │" in " ".join(row(score=0.5, n_scored=n - 1).split())
    assert "over" not in row(score=0.5, n_scored=n)
    assert "over" not in row(score=Missing("no gap"), n_scored=0)


def test_one_word_changes_count_the_allowed_ones_and_advise_more_trials_only_where_these_gain_a_percent(results):
    _, result = results[0]
    edits = result.validation.single_edits
    found = changed(result, best={"value": -2.0}, single_edits={"n_better": 3, "best": -1.981})

    def line(result):
        return next(each for each in terminal.sentences(result) if each.startswith("one-word"))

    assert line(found) == "one-word changes of the best: 5 tried, 3 better, up to -1.981, by less than 1%"
    assert line(changed(found, single_edits={"best": -1.979})).endswith("up to -1.979; more trials would help")
    some = tuple(replace(edit, allowed=i > 1) for i, edit in enumerate(edits.edits))
    other = changed(result, single_edits={"edits": some, "n_possible": 9})
    assert line(other) == (
        "one-word changes of the best: 3 allowed of 5 tried (those of 9 with the largest first-order gains), "
        "0 better: a local optimum among these"
    )
    bounded = replace(result.trials[0], violations={"min_fluency": -1.0})
    assert "gains; bounds are checked of the better ones alone), 0 better" in line(replace(other, trials=(bounded,)))


def test_what_chance_found_is_told_with_its_direction_and_its_bounds_where_these_matter(results):
    _, result = results[0]
    asked = {"n": 60, "n_feasible": 60, "best": 1.0, "best_sign": "raise", "search_sign": "raise"}
    asked |= {"search_at_equal_budget": 2.0}

    def cells(sign="raise", **random):
        text = said(terminal.show, changed(result, best={"sign": sign}, random=asked | random), "0.4", brief=True)
        line = text.splitlines()[next(i for i, each in enumerate(text.splitlines()) if "best of random" in each) + 2]
        return [cell.strip() for cell in line.split("│")[3:5]]

    assert cells() == ["1.000 (of 60)", "2.000"]
    assert cells(n_feasible=4) == ["1.000 (of 60, 4 within bounds)", "2.000"]
    assert cells("drop") == ["1.000 raise (of 60)", "2.000 raise"]
    assert cells("abs") == ["1.000 (of 60)", "2.000"], "an objective without a direction"


def test_the_pruned_prompt_is_named_where_it_is_simpler(results):
    for n, named in ((3, False), (1, True)):
        other = changed(results[0][1], best={"edits": 3}, pruned=PrunedPrompt(n, 1.25, "second := Tom", ""))
        text = "\n".join(terminal.sentences(other))
        assert ("1 of its 3 words is enough: 1.250 (second := Tom)" in text) is named


def test_the_report_counts_trials_out_of_bounds_and_says_why_one_failed(results):
    result = results[0][1]
    some = Proposal(result.trials[0].proposal.candidate, "random")
    failed = EvaluatedTrial(some, (float("nan"),), (), {}, "a number is not finite")
    broken = EvaluatedTrial(some, (1.0,), (), {"min_fluency": 0.5})
    text = said(terminal.show, replace(result, trials=(*result.trials, failed, broken, broken), n_cached=1), "0.4")
    assert "19 trials of 16 candidates, 2 out of bounds, 1 failed (a number is not finite); this time" in text
    assert "1 candidate was known from earlier searches" in text


def test_of_a_list_of_prompts_the_report_speaks_of_prompts_and_not_of_words(small, pair):
    texts = [pair.clean.replace(", Mary", f", {name}") for name in ("John", "Anna", "Tom")]
    space = SpaceConfig(kind="prompts", prompts=tuple(texts))
    result = igap.search(small(EMBEDDED), pair, "0.4", space=space, clean_n=1, heldout_n=0)
    text = said(terminal.show, result, "0.4")
    assert "other prompts of the list: 2 tried, 0 better" in text
    assert "one-word" not in text
    assert "few of its words" not in text
    assert "without a slot's word" not in text


@pytest.mark.parametrize(
    ("corrupted", "marked"),
    [
        ("a x c", "a [bold red]x[/] c"),
        ("a b new c", "a b [bold red]new[/] c"),
        ("a c", "a c"),
        ("a [b] c", r"a [bold red]\[b][/] c"),
    ],
)
def test_words_that_the_clean_prompt_does_not_have_are_marked_whatever_their_number(corrupted, marked):
    assert terminal._mark_changes("a b c", corrupted) == marked


def test_the_scan_holds_each_searchs_numbers_and_the_matrix_every_head_in_each_best_prompt(results, tmp_path):
    scan.write(results, tmp_path)
    table = pd.read_csv(tmp_path / "scan.csv", dtype={"name": str})
    assert table["name"].tolist() == ["0.4", "1.2"]
    for (_, result), row in zip(results, table.to_dict("records"), strict=True):
        for key in ("by_hand/ap", "best/ap", "best/value", "heldout/value", "deletion/ap", "best/rank", "best/rule"):
            assert row[key] == flatten(result.validation)[key]
        assert row["corrupted"] == result.best.corrupted
    matrix = scan.matrix(results)
    for column, result in results:
        effects = {head.name: head.best for head in result.validation.heads}
        assert matrix[column].to_dict() == {name: effects[name] for name in ("0.4", "1.2")}
    np.testing.assert_allclose(pd.read_csv(tmp_path / "matrix.csv", index_col=0).to_numpy(), matrix.to_numpy())
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"matrix.png", "scan.png"}


def test_the_scans_table_tells_effects_and_values_apart(results):
    text = said(terminal.show_scan, results)
    assert "reaches in its own search: AP effects, and values of ap, logits" in " ".join(text.split())
    for name, result in results:
        line = next(line for line in text.splitlines() if line.startswith(f"│ {name}"))
        cells = [cell.strip() for cell in line.split("│")[1:]]
        keys = ("by_hand/ap", "deletion/ap", "best/ap", "best/value")
        assert cells[1:5] == [decimals(flatten(result.validation)[key]) for key in keys]
    assert text.count("-0.") or text.count("-1.") or text.count("-2."), "an effect keeps its sign"


def test_the_scan_names_the_heads_that_stand_out_in_their_own_best_prompts(results):
    def told(*ranks):
        other = [(name, changed(result, best_effects={"rank": rank}))
                 for (name, result), rank in zip(results, ranks, strict=True)]  # fmt: skip
        return said(terminal.show_scan, other)

    begin = "\nheads that stand out in their own best prompts (rank 1 by |AP effect|), of"
    assert f"{begin} 2: 1.2\n" in told(3, 1)
    assert f"{begin} 2: none\n" in told(3, 2)
    assert f"{begin} 1: 0.4\n" in told(1, Missing("a neuron"))
    assert "stand out" not in told(Missing("a neuron"), Missing("a neuron"))


def test_heads_that_do_more_in_the_prompt_of_another_are_named_under_the_scans_table(results):
    def with_effects(result, **effects):
        heads = result.validation.heads
        return changed(result, heads=tuple(replace(head, best=effects.get(head.name, 0.0)) for head in heads))

    (a, first), (b, second) = results
    changes = {a: 0.5, b: -0.25}
    same = [(a, with_effects(first, **changes)), (b, with_effects(second, **changes))]
    assert "another's" not in said(terminal.show_scan, same)
    other = [same[0], (b, with_effects(second, **{a: -0.75, b: -0.25}))]
    text = said(terminal.show_scan, other)
    assert "a larger |AP effect| in another's best prompt: 0.4 -0.750 in 1.2's (0.500 in its own)\n" in text


def test_terms_that_make_no_search_together_are_refused():
    for terms, sampler, message in (
        (("ap", "ap"), "auto", "one of them twice"),
        (("edits", "fluency"), "auto", "says nothing of the head"),
        (("ap",), "epo", "'epo' for one objective"),
        (("ap", "edits"), "gp", "'gp' for several objectives"),
    ):
        with pytest.raises(ValueError, match=message):
            check_terms(terms, sampler)
    check_terms(("ap", "edits"), "epo")


def test_a_searchs_folder_is_named_by_head_and_objective_unless_it_has_a_name():
    def folder(**given):
        return SearchConfig.model_construct(**{"name": None, "objective": ("ap",), "head": "1.2", **given}).folder_name

    assert folder() == "1.2-ap"
    assert folder(head="0.6 1.2", objective=("ap", "fluency")) == "0.6_1.2-ap-fluency"
    assert folder(name="mine") == "mine"


def test_no_number_of_a_report_is_a_negative_zero():
    shares = terminal._describe_shares([("place", -0.001, 0.1), ("verb", 0.5, 0.004)])
    assert shares == "verb 50 ± 0%, place 0 ± 10%"
    assert number(-0.0) == "0.000"
