"""The exam on a trained model: the truth is exact patching both ways, the estimates those of the public functions."""

import numpy as np
import pytest
import torch

from igap import InputError, activation_patching, attribution_patching, bench_model, integrated_gradients
from igap.attribution.estimators import estimators
from igap.bench import circuits
from igap.components import component_names

TOP = 6


@pytest.fixture(scope="module")
def exam(ioi_mini, pair):
    return bench_model(ioi_mini, [pair, pair], sites=["heads", "resid_pre"], top=TOP)


def flat(made):
    return dict(zip(component_names(made.site, *made.effect.shape), made.effect.flatten().tolist(), strict=True))


def test_truth_is_patching_both_ways_and_what_matters_the_largest_of_either(exam, ioi_mini, pair):
    truth, exact = exam.circuits["model"].truth, {}
    for direction in ("noising", "denoising"):
        exact[direction] = {}
        for site in ("heads", "resid_pre"):
            exact[direction] |= flat(activation_patching(ioi_mini, pair, site=site, direction=direction))
        assert truth.effects(direction) == pytest.approx(exact[direction], abs=1e-5)
    size = {name: max(abs(exact["noising"][name]), abs(exact["denoising"][name])) for name in truth.names}
    assert set(truth.matters) == set(sorted(size, key=size.get)[-TOP:])
    assert truth.gap == pytest.approx(activation_patching(ioi_mini, pair).gap, abs=1e-5)


def test_estimates_are_those_of_the_public_functions(exam, ioi_mini, pair):
    estimates = exam.estimates["model"]
    assert set(estimates) <= set(estimators())
    for name, method, options in (
        ("ig", integrated_gradients, {"n_steps": 50}),
        ("ig_zero", integrated_gradients, {"n_steps": 50, "baseline": "zero"}),
        ("atp", attribution_patching, {}),
    ):
        by_hand = flat(method(ioi_mini, pair, **options)) | flat(method(ioi_mini, pair, site="resid_pre", **options))
        assert estimates[name].effects == pytest.approx(by_hand, abs=1e-4)


def test_marks_are_those_counted_pair_by_pair(exam):
    truth = exam.circuits["model"].truth
    for name, estimate in exam.estimates["model"].items():
        marks = exam.marks("model", name)
        matters = [abs(estimate.effects[each]) for each in truth.matters]
        others = [abs(estimate.effects[each]) for each in truth.names if each not in truth.matters]
        wins = np.mean([float(a > b) + 0.5 * (a == b) for a in matters for b in others])
        assert marks.roc_area == pytest.approx(wins, abs=1e-6)
        exact = truth.effects()
        turned = {each for each in truth.matters if estimate.effects[each] * exact[each] < -1e-9}
        assert marks.wrong_sign is None or set(marks.wrong_sign) == turned
    assert exam.marks("model", "ig_zero").missed
    assert exam.marks("model", "ap").largest_error == 0
    assert set(exam.to_frame()["site"]) == {"all", "heads", "resid_pre"}


def test_what_patching_into_the_clean_run_misses_the_other_direction_shows():
    circuit = circuits()["or"]
    bench = bench_model(circuit.load(), circuit.pair, top=3)
    assert bench.circuits["model"].truth.matters == circuit.truth.matters
    assert bench.marks("model", "ap").missed == ("0.0", "0.1")
    assert bench.marks("model", "ig").missed == ()


def test_the_cost_does_not_depend_on_the_dtype(exam, small, pair):
    other = bench_model(small("ioi-mini", "processed"), pair, sites=["heads", "resid_pre"], top=TOP)
    for name, estimate in exam.estimates["model"].items():
        if name != "ap":  # whose last pass of a layer may have more rows
            assert estimate.passes == pytest.approx(other.estimates["model"][name].passes, rel=0.01)


def test_nothing_matters_where_nothing_has_an_effect(ioi_mini, pair):
    heads = bench_model(ioi_mini, pair, sites=["heads"], top=1000)
    assert 0 < len(heads.circuits["model"].truth.matters) <= 32


def test_the_model_comes_back_unchanged_and_progress_to_its_end(ioi_mini, pair):
    before, told = {name: each.clone() for name, each in ioi_mini.state_dict().items()}, []
    bench_model(ioi_mini, pair, sites=["heads"], on_progress=lambda *done: told.append(done))
    assert told[-1] == (32, 32)
    assert all(torch.equal(each, before[name]) for name, each in ioi_mini.state_dict().items())


def test_no_pair_and_no_site_are_refused(ioi_mini, pair):
    with pytest.raises(InputError, match=r"^prompts: got no pair, wanted at least one\.$"):
        bench_model(ioi_mini, [])
    with pytest.raises(InputError, match=r"^sites: got none, wanted names of heads, "):
        bench_model(ioi_mini, pair, sites=[])


def test_methods_that_the_model_does_not_have_are_left_out(small, pair):
    """Of BLOOM, whose F is not computed from its weights, those whose gradients follow rules."""
    made = bench_model(small("bloom"), pair, sites=["heads"], top=3)
    assert set(made.estimates["model"]) == set(estimators()) - {"relp", "gim"}
