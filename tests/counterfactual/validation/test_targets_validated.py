"""Searches of sets, spans and metrics as a whole: every number beside the public methods' of a pair."""

import json

import numpy as np
import pytest
from helpers.searched import ABBA, PAIRS
from helpers.small_searches import opened

from igap import InputError, PromptPair, activation_patching, output_curve, search, set_effects
from igap.config import MetricConfig
from igap.counterfactual.config import Constraints, SearchConfig
from igap.counterfactual.trials.storages import open_storage
from igap.engine.activations import borrow
from igap.engine.baselines import Baseline
from igap.engine.metrics import as_metric
from igap.output import figures

SPACE = {name: ["=keep"] for name in ("place", "verb", "object")}
SPACE |= {"first": ["=keep", "Tom", "=N2"], "second": ["=keep", "Anna"], "subject": ["=keep", "=IO", "Tom", "Anna"]}
ASKED = {"space": SPACE, "until": 30, "clean_n": 1, "heldout_n": 0, "constraints": Constraints(min_clean=None)}
S2 = {"it": [10]}
MEAN = Baseline("mean", n=8)
"""As in `small_searches`."""


def squared(logits, pair):
    return (logits[:, pair.answer] - logits[:, pair.distractor]) ** 2


@pytest.mark.parametrize(
    ("head", "positions", "metric"),
    [
        ("0.1+1.2@S2", S2, "logprob"),
        ("1.2@S2", S2, "kl"),
        ("L1.resid_pre@S2", S2, "prob"),
        ("0.1+1.2@diff", "diff", squared),
    ],
)
def test_what_a_search_says_of_a_target_is_what_the_public_methods_say_of_its_best_pair(small, head, positions, metric):
    model = small("gpt2")
    result = search(model, ABBA, head, metric=metric, **ASKED)
    components = head.partition("@")[0]

    def ap(pair, **baseline):
        asked = {"positions": positions, "metric": metric, **baseline}
        return set_effects(model, pair, components, n_steps=1, **asked)

    best, validation = result.best, result.validation
    exact = PromptPair(best.clean, best.corrupted, best.answer, best.distractor, min_gap=0.0)
    effect, by_hand = ap(exact), ap(ABBA)
    assert abs(effect.effect) > 1e-4
    assert result.best_value == pytest.approx(abs(effect.effect), abs=1e-10)
    assert validation.best_effects.ap == pytest.approx(effect.effect, abs=1e-6), "kept as float32"
    assert validation.reference_effects.ap == pytest.approx(by_hand.effect, abs=1e-6)
    patched = activation_patching(model, exact, positions=positions, metric=metric)
    heads = patched.effect.flatten()
    assert validation.best_effects.gap == pytest.approx(patched.gap, abs=1e-6)
    assert [each.best for each in validation.heads] == pytest.approx(heads.tolist(), abs=1e-10)
    curve = output_curve(model, exact, components, positions=positions, metric=metric)
    assert np.allclose(validation.best_curve.values, curve.values, atol=1e-10)
    unit = effect.unit
    assert result.objective.unit == validation.best_curve.unit == unit
    assert f" {unit}" in result.verdict
    assert repr(result).startswith(f"SearchResult(search for ap of {head} on {effect.metric}: ")
    if head == "1.2@S2":
        rank = 1 + int((heads.abs() > heads.view(3, 4)[1, 2].abs()).sum())
        assert validation.best_effects.rank == rank
    else:
        assert "has no rank among heads" in validation.best_effects.rank.reason


def test_what_is_taken_out_is_taken_out_at_the_span(ioi_mini, pair):
    asked = {"until": 8, "clean_n": 1, "heldout_n": 0, "control": 2}
    found = search(ioi_mini, pair, "0.3+0.5@S2", metric="logprob", **asked).validation.deletion
    taken = set_effects(ioi_mini, pair, "0.3+0.5", positions=S2, metric="logprob", baseline=MEAN, n_steps=1)
    assert found.ap == pytest.approx(taken.effect, abs=1e-5)


def test_a_study_of_another_metric_span_or_set_is_another_study(small, tmp_path):
    model = small("gpt2")
    asked = ASKED | {"until": 4, "control": 1, "identity": {"weights": "these"}}
    storage = open_storage("sqlite", tmp_path)
    first = search(model, ABBA, "1.2@S2", metric="kl", storage=storage, **asked)
    again = search(model, ABBA, "1.2@S2", metric="kl", storage=storage, **asked)
    assert (again.id, [trial.values for trial in again.trials]) == (first.id, [trial.values for trial in first.trials])
    for head, metric, differs in (
        ("1.2@S2", "prob", "metric 'kl', asked for 'prob'"),
        ("1.2@S2", squared, "metric 'kl', asked for 'custom'"),
        ("1.2@END", "kl", "head '1.2@S2', asked for '1.2@END'"),
        ("1.2+0.1@S2", "kl", "head '1.2@S2', asked for '0.1+1.2@S2'"),
    ):
        with pytest.raises(InputError) as error:
            search(model, ABBA, head, metric=metric, storage=storage, **asked)
        assert differs in str(error.value)


def test_numbers_are_remembered_by_metric_and_span(small, tmp_path):
    model, seen = small("gpt2"), set()
    with borrow(model):
        for head, metric in (
            ("1.2", "logit_diff"), ("1.2", "prob"), ("1.2", squared), ("1.2@S2", "prob"), ("1.2@END", "prob"),
        ):  # fmt: skip
            for n_cached in (0, 8):
                search = opened(
                    model, ABBA, head=head, metric=as_metric(metric), space=SPACE, remember=tmp_path / "numbers",
                )  # fmt: skip
                search.explore(8, control=1)
                assert search.cached.n_cached == n_cached, (head, metric)
            seen.add(max(trial.value for trial in search.trials.all()))
    assert len(seen) == 5


def halved(logits, pair):
    return squared(logits, pair) / 2


def test_two_functions_of_one_file_share_no_numbers(small, tmp_path):
    asked = ASKED | {"identity": {"weights": "these"}, "remember": tmp_path / "numbers"}
    squares, halves = (search(small("gpt2"), ABBA, "1.2", metric=each, **asked) for each in (squared, halved))
    assert halves.best_value == pytest.approx(squares.best_value / 2)
    for of in (lambda logits, pair: squared(logits, pair), times(3)):
        with pytest.raises(InputError, match=r"^metric: got .*, a lambda or a function with values of its own, wanted"):
            search(small("gpt2"), ABBA, "1.2", metric=of, **asked)


def times(factor):
    def scaled(logits, pair):
        return factor * squared(logits, pair)

    return scaled


@pytest.mark.parametrize("name", ["f", "g"])
def test_a_folder_names_the_function_that_is_the_metric(name):
    asked = {"name": None, "objective": ("ap",), "head": "1.2"}
    metric = MetricConfig(name="custom", function=f"own:{name}")
    assert SearchConfig.model_construct(**asked, metric=metric).folder_name == f"1.2-ap-custom-{name}"


def test_what_is_taken_out_at_the_differing_positions_is_where_the_best_prompt_differs(ioi_mini, pair):
    """Of several names other than the pair's own corrupted prompt, which differs at one position."""
    asked = {"until": 8, "clean_n": 1, "heldout_n": 0, "control": 2}
    words = {**SPACE, "first": ["Tom", "Anna"], "second": ["=keep"], "subject": ["=keep", "Tom"]}
    result = search(ioi_mini, pair, "0.6@diff", **asked, space=words)
    best = PromptPair(result.best.clean, result.best.corrupted, pair.answer, pair.distractor)
    effect, taken = (
        activation_patching(ioi_mini, best, positions="diff", baseline=kind).effect[0, 6].item()
        for kind in ("corrupted", MEAN)
    )
    assert result.validation.deletion.ap == pytest.approx(taken, abs=1e-5)
    assert result.validation.deletion.injected == pytest.approx(effect - taken, abs=1e-5)
    by_hand = activation_patching(ioi_mini, pair, positions="diff", baseline=MEAN).effect[0, 6].item()
    assert abs(by_hand - taken) > 0.01


def test_a_metric_whose_text_is_not_known_is_refused_where_numbers_stay(small, tmp_path):
    written = {}
    exec("def made(logits, pair):\n    return logits[:, pair.answer]", written)
    made = written["made"]
    assert search(small("gpt2"), ABBA, "1.2", metric=made, **ASKED).objective.unit == "F"
    with pytest.raises(InputError, match=r"metric: got a function, whose source file cannot be read"):
        search(small("gpt2"), ABBA, "1.2", metric=made, remember=tmp_path / "numbers", **ASKED)


def test_a_search_of_heads_at_a_span_leaves_files_that_say_so_and_a_run_of_its_best_pair(tmp_path, monkeypatch):
    from igap.cli.search import run_searches

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figures, "figures", lambda data: {})  # of the run
    few = [f"search.space.slots.{slot}=['=keep']" for slot in ("first", "place", "verb", "object")]
    few += [f"search.space.slots.{slot}=['=keep',Tom,Anna]" for slot in ("second", "subject")]
    asked = ["search.until=6", "search.control=2", "clean.n=1", "heldout.n=2", "tracking=disabled", "metric=prob", *few]
    assert run_searches(["head=3.1@END,3.6@END", "full_run=false", *asked]) == 0
    folder = tmp_path / "searches" / "heads-ap-prob"
    matrix = (folder / "matrix.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in matrix] == ["head", "3.1@END", "3.6@END"]
    assert (folder / "plots" / "scan.png").exists()
    assert run_searches(["head=1.3+1.2.q@S2", *asked]) == 0
    folder = tmp_path / "searches" / "1.3+1.2.q@S2-ap-prob"
    summary = json.loads((folder / "search_summary.json").read_text())
    assert (summary["head"], summary["metric"], summary["metric/unit"]) == ("1.3+1.2.q@S2", "prob", "probability")
    (run,) = (folder / "runs").iterdir()
    config = json.loads((run / "config.json").read_text())
    assert (config["metric"]["name"], config["positions"]["kind"]) == ("prob", "roles")
    assert config["sites"] == "heads neurons q"
    assert "S2" in (run / "q.csv").read_text()


def test_clean_prompts_have_the_span_where_the_first_has_it(small):
    """An index or words are resolved in the pair's own clean prompt; others have other words there."""
    model = small("gpt2")
    by_word = search(model, PAIRS[0], "1.2@Mary:2", **ASKED)
    by_role = search(model, PAIRS[0], "1.2@S2", **ASKED)
    assert [trial.values for trial in by_word.trials] == [trial.values for trial in by_role.trials]
