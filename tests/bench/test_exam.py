"""The exam: every expected failure of a method happens, and none that is not expected."""

import math
import re

import numpy as np
import pytest
from helpers.page_outputs import ROOT, blocks, wrong_lines

from igap import InputError, activation_patching, cli, integrated_gradients, run_bench
from igap.attribution.estimators import estimators
from igap.attribution.methods import METHODS
from igap.bench import circuits
from igap.bench.exam import NOTHING

NAMES = tuple(circuits())
ROUND = 1e-5
"""Captum keeps its step sizes in float32."""


@pytest.fixture(scope="module")
def bench():
    return run_bench()


def missed(bench, circuit):
    """What each estimator misses, where it misses anything."""
    each = {name: bench.marks(circuit, name).missed for name in bench.estimates[circuit]}
    return {name: names for name, names in each.items() if names}


def test_estimators_are_the_methods_of_a_run_and_ig_with_the_zero_baseline():
    """Circuits have no prompts of the length that expected gradients draw references of."""
    assert set(METHODS) | {"ig_zero"} == {*estimators(), "expected_gradients"}


def test_each_method_misses_what_it_must_and_nothing_else(bench):
    heads = ("0.0", "0.1")
    everyone = dict.fromkeys(estimators(), ("1.0", "L0.N0"))
    assert {name: each for name in NAMES if (each := missed(bench, name))} == {
        "or": dict.fromkeys(("ap", "atp", "atp_star", "relp", "gim"), heads) | {"ig_zero": ("L1.N0",)},
        "xor": dict.fromkeys(("ig", "ig_zero", "ig_inputs", "conductance", "shapley"), heads),
        "saturation": dict.fromkeys(("atp", "atp_star", "gim"), ("0.0",)),
        "self_cancelling": dict.fromkeys([name for name in everyone if name != "atp_star"], ("0.0",)),
        "backup": everyone,
        "query": dict.fromkeys(("atp", "atp_star", "relp"), ("0.0",)),
        "induction": dict.fromkeys(("atp", "atp_star", "relp"), ("0.0",)),
    }


def test_a_method_that_misses_nothing_ranks_all_that_matters_first(bench):
    for circuit in NAMES:
        for name in bench.estimates[circuit]:
            marks = bench.marks(circuit, name)
            assert (marks.roc_area == 1) == (marks.average_precision == 1) == (marks.missed == ())


@pytest.mark.parametrize(
    ("circuit", "estimator", "component", "says", "truth"),
    [
        ("and", "ig", "0.0", -0.5, -1),
        ("or", "ig", "0.0", -0.5, 0),
        ("xor", "ig", "0.1", 0, 1),
        ("cancellation", "ig", "0.0", -10, -1.5),
        ("cancellation", "atp", "0.0", -10, -1.5),
        ("saturation", "atp", "0.0", -5 / math.cosh(5) ** 2, -math.tanh(5)),
        ("backup", "atp", "0.0", -2, -1),
        ("always_on", "ig_zero", "0.1", -4, 1),
        ("or", "ig_zero", "L1.N0", 0, -1),
        ("self_cancelling", "atp_star", "0.0", 0.5, 0),
        ("linear", "atp_star", "0.0", (1 + 1.75) / 2, -1.75),
        ("linear", "gim", "0.0", -1.75 + 0.5 / 2, -1.75),  # what goes by head 1.0's values is halved
        ("saturation", "relp", "0.0", -math.tanh(5), -math.tanh(5)),
        ("or", "conductance", "0.0", -0.5, 0),
        ("or", "shapley", "0.0", -0.5, 0),
        ("xor", "ig_inputs", "0.1", 0, 1),
        ("backup", "conductance", "0.0", -2, -1),
        ("backup", "shapley", "0.0", -1, -1),
        ("cancellation", "shapley", "0.0", (-1.5 - 10) / 2, -1.5),
    ],
)
def test_estimates_are_those_worked_by_hand(bench, circuit, estimator, component, says, truth):
    assert bench.estimates[circuit][estimator].effects[component] == pytest.approx(says, abs=ROUND)
    assert bench.circuits[circuit].truth.effects()[component] == pytest.approx(truth)


def test_atp_takes_the_clean_slope_of_the_softmax(bench):
    """Of 2 p with p = 1 / (1 + 5 e^-s) the slope in u, s = 8 u + a constant, is 16 p (1 - p)."""
    for circuit, score in (("query", 8), ("key", 2)):
        p = 1 / (1 + 5 * math.exp(-score))
        for name in ("atp", "relp"):
            assert bench.estimates[circuit][name].effects["0.0"] == pytest.approx(-16 * p * (1 - p))
    assert bench.estimates["key"]["atp"].effects["0.0"] < 3 * bench.circuits["key"].truth.effects()["0.0"]


def test_ap_is_exact_and_nothing_is_taken_for_an_effect_where_only_the_activation_moves(bench):
    for circuit in NAMES:
        assert bench.marks(circuit, "ap").largest_error < 1e-9
    assert {bench.marks("inert", name).largest_error < NOTHING for name in ("ig", "ig_zero", "ap", "atp")} == {True}
    assert abs(bench.estimates["inert"]["atp"].effects["0.1"]) < NOTHING, "though it moves by 1000"


def test_only_the_zero_baseline_turns_a_sign_and_magnitudes_have_none(bench):
    signs = {(c, e): bench.marks(c, e).wrong_sign for c in NAMES for e in bench.estimates[c]}
    assert {place for place, names in signs.items() if names} == {("always_on", "ig_zero")}
    assert signs["always_on", "ig_zero"] == ("0.1",)
    assert {names for (_, estimator), names in signs.items() if estimator == "atp_star"} == {None}


def test_atp_star_ranks_no_worse_than_atp(bench):
    for circuit in NAMES:
        assert bench.marks(circuit, "atp_star").roc_area >= bench.marks(circuit, "atp").roc_area


def test_estimates_are_those_of_the_public_functions(bench):
    model, pair = circuits()["cancellation"].load(), circuits()["cancellation"].pair
    for site in ("heads", "neurons"):
        ap, zero = activation_patching(model, pair, site), integrated_gradients(model, pair, site, baseline="zero")
        for name, attribution in (("ap", ap), ("ig_zero", zero)):
            effects = bench.estimates["cancellation"][name].effects
            own = [effects[each] for each in effects if each.startswith("L") == (site == "neurons")]
            assert own == attribution.effect.flatten().tolist()


def test_marks_of_a_site_are_those_of_its_components(bench):
    of = {part: bench.marks("or", "ap", part) for part in bench.parts("or")}
    assert {part: (each.n, each.k) for part, each in of.items()} == {
        "all": (24, 3), "heads": (12, 2), "neurons": (12, 1),
    }  # fmt: skip
    assert (of["heads"].missed, of["neurons"].missed) == (("0.0", "0.1"), ())
    assert of["neurons"].roc_area == 1
    assert math.isnan(bench.marks("inert", "ap", "neurons").roc_area)
    assert of["all"].passes == pytest.approx(of["heads"].passes + of["neurons"].passes)


def test_costs_follow_passes(bench):
    """AtP is one pass forward and backward through a part of the model, IG 50 of them a layer and site."""
    costs = {name: bench.marks("linear", name).passes for name in estimators()}
    assert 1 < costs["atp"] < 2 * 3
    assert costs["atp"] < costs["atp_star"] < 2 * costs["atp"]
    assert 50 < costs["ig"] < 2 * 3 * 50 * 3
    assert costs["ig"] == costs["ig_zero"]
    # One pass with rules; one of the whole model a node, and two more for the ends of the way; ten orders.
    assert all(costs["atp"] < costs[name] < 1.5 * costs["atp"] for name in ("relp", "gim"))
    assert 2 * 50 < costs["ig_inputs"] < 2 * 3 * 50
    assert 52 / 50 < costs["conductance"] / costs["ig_inputs"] < 1.5
    assert 5 * costs["ap"] < costs["shapley"] < 2 * 10 * costs["ap"]


def test_the_table_has_a_row_a_circuit_estimator_and_site(bench):
    frame = bench.to_frame()
    assert len(frame) == len(NAMES) * len(estimators()) * 3
    row = frame.set_index(["circuit", "estimator", "site"]).loc["or", "ap", "all"]
    assert (row.missed, row.n_missed, row.n_wrong_sign) == ("0.0 0.1", 2, 0)
    assert np.isclose(row.roc_area, bench.marks("or", "ap").roc_area)


def test_a_verdict_says_who_misses_what_and_else_whose_number_is_farthest(bench):
    assert bench.verdict("xor") == "ig, ig_zero, ig_inputs, conductance, shapley miss 0.0, 0.1"
    assert bench.verdict("self_cancelling") == "all but atp_star miss 0.0"
    assert bench.verdict("backup") == "all miss 1.0, L0.N0"
    assert bench.verdict("always_on") == "ig_zero turns 0.1"
    assert bench.verdict("key") == "all find what matters; farthest: atp 0.0 -3.85, true -1.19"
    assert bench.verdict("and") == "all find what matters; farthest: ig 0.0 -0.50, true -1.00"
    assert bench.verdict("inert") == "all find what matters"
    assert "  saturation: atp, atp_star, gim miss 0.0" in repr(bench).splitlines()


def test_progress_comes_to_its_end_and_the_same_exam_has_the_same_numbers(bench):
    calls = []
    again = run_bench(["or", "and"], on_progress=lambda *at: calls.append(at))
    assert list(again.circuits) == ["and", "or"]
    n = 2 * len(estimators())
    assert calls == sorted(calls)
    assert set(calls) == {(i, n) for i in range(n + 1)}
    assert again.estimates["or"] == bench.estimates["or"]


@pytest.mark.parametrize(("names", "got"), [(["orr"], "'orr', .* Did you mean or?"), ([], "none")])
def test_unknown_circuits_are_refused(names, got):
    with pytest.raises(InputError, match=f"^circuits: got {got}"):
        run_bench(names)


def test_the_page_of_the_exam_shows_what_it_prints_and_has_a_part_and_a_picture_of_every_circuit(
    bench, tmp_path, monkeypatch, capsys
):
    """Of the exam that the other tests look at too; test_command.py holds one by the command, and draws."""
    page = (ROOT / "docs/bench.md").read_text()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setattr("igap.bench.command.run_bench", lambda names, on_progress: bench)
    monkeypatch.setattr("igap.bench.plots.effects_bars", lambda bench, circuit: None)
    monkeypatch.setattr("igap.plots.canvas.write_png", lambda figure, path: path.touch())
    assert cli.main(["bench"]) == cli.main(["bench", "run", "sites=heads"]) == 0
    assert not wrong_lines("docs/bench.md", capsys.readouterr().out)
    parts = re.findall(r"^### (\w+)\n\n(.*?)\n\n!\[[^]]*\]\(([^)]*)\)$", page, flags=re.MULTILINE | re.DOTALL)
    assert [name for name, _, _ in parts] == list(circuits())
    for name, text, picture in parts:
        assert " ".join(text.split()).startswith(f"{circuits()[name].meaning} {circuits()[name].lesson}")
        assert (ROOT / "docs" / picture).is_file()
    exec(compile(blocks("docs/bench.md", "python"), "docs/bench.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed == ["('0.0', '0.1', '1.0', 'L0.N0')", "0.0 -1.0", "('1.0', 'L0.N0')"]
