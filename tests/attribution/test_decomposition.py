"""The chain from AtP to AP: worked by hand, zero in a linear model, and against a plain loop."""

import pytest
import torch
from helpers import handmade
from helpers.opened import decompose
from helpers.reference import HOOKS, Reference

from igap import activation_patching, attribution_patching, integrated_gradients
from igap.attribution.decomposition import BETWEEN, POINTS, TERMS

# Captum keeps its step sizes in float32: their sum is off by up to 50 roundings of 6e-8.
CAPTUM = 1e-6


@pytest.fixture(scope="module")
def two_heads(tmp_path_factory):
    return handmade.two_heads(tmp_path_factory.mktemp("two_heads"))


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    return handmade.linear(tmp_path_factory.mktemp("linear"))


def chain(model, pair, *, site="heads", n_steps=50, **options):
    direction, baseline = options.get("direction", "noising"), options.get("baseline", "corrupted")
    path = options.get("path", "joint")
    ig = integrated_gradients(model, pair, site, baseline=baseline, direction=direction, path=path, n_steps=n_steps)
    return decompose(model, pair, ig, activation_patching(model, pair, site, direction=direction), **options)


def effects(found):
    return {name: found.points[name].effect[0].tolist() for name in POINTS}


def near(expected):
    return {name: pytest.approx(value, abs=CAPTUM * 100) for name, value in expected.items()}


def test_two_heads_whose_product_is_in_f_have_the_terms_worked_by_hand(two_heads):
    """F = s^2 with s = 1 + z_0 + z_1: s = 4 clean (z = 1, 2), s = 3 corrupted (z = 3, -1); z moves by (2, -3).

    AtP: 2 s = 8 at the start. IG, joint: s falls from 4 to 3, 2 s is 7 in the mean. AP: 6^2 - 16 and 1^2 - 16.
    Mirrored AP: minus (1^2 - 9) and minus (6^2 - 9). The interaction is minus the product of the moves, 6.
    """
    found = chain(two_heads, handmade.PAIR)
    assert found.points["ap"].gap == pytest.approx(16 - 9)
    assert effects(found) == near(
        {
            "atp": [16, -24],
            "ig": [14, -21],
            "ig_converged": [14, -21],
            "ig_corrupted": [14, -21],
            "ap": [20, -15],
            "ap_mirrored": [8, -27],
        }
    )
    terms = {name: term[0].tolist() for name, term in found.terms().items()}
    assert terms == near(
        {"curvature": [-2, 3], "quadrature": [0, 0], "baseline": [0, 0], "interaction": [6, 6], "direction": [-12, -12]}
    )
    scores = found.terms("score")
    assert scores["interaction"][0].tolist() == pytest.approx([6 / 7, 6 / 7], abs=CAPTUM)
    assert found.dominant().tolist() == [[BETWEEN.index("interaction")] * 2]
    assert found.converged.tolist() == [True]


def test_the_zero_baselines_terms_are_those_worked_by_hand(two_heads):
    """z moves by (-1, -2) to s = 1. AtP: times 8. IG: 2 s is 5 in the mean. IG with one left Riemann node of two is at
    s = 4 and 2.5: 2 s is 6.5."""
    found = chain(two_heads, handmade.PAIR, baseline="zero")
    terms = {name: term[0].tolist() for name, term in found.terms().items()}
    assert effects(found)["atp"] == pytest.approx([-8, -16])
    assert terms == near(
        {"curvature": [3, 6], "quadrature": [0, 0], "baseline": [19, -11], "interaction": [6, 6],
         "direction": [-12, -12]}
    )  # fmt: skip
    assert found.dominant().tolist() == [[BETWEEN.index("baseline")] * 2]
    ig = integrated_gradients(two_heads, handmade.PAIR, baseline="zero", n_steps=2, method="riemann_left")
    rough = decompose(two_heads, handmade.PAIR, ig, found.points["ap"], baseline="zero", atp=found.points["atp"])
    terms = {name: term[0].tolist() for name, term in rough.terms().items()}
    assert rough.points["atp"] is found.points["atp"]
    assert (terms["curvature"], terms["quadrature"]) == (pytest.approx([1.5, 3]), pytest.approx([1.5, 3], abs=1e-4))


def test_denoising_is_the_same_chain_from_the_other_end(two_heads):
    """Around s = 3, z moves by (-2, 3): 2 s is 6, 7 in the mean; AP 1 - 9, 36 - 9; mirrored -(36 - 16), -(1 - 16)."""
    found = chain(two_heads, handmade.PAIR, direction="denoising")
    expected = {
        "atp": [-12, 18],
        "ig": [-14, 21],
        "ig_converged": [-14, 21],
        "ig_corrupted": [-14, 21],
        "ap": [-8, 27],
        "ap_mirrored": [-20, 15],
    }
    assert effects(found) == near(expected)


@pytest.mark.parametrize("site", ["heads", "neurons"])
@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_a_linear_model_has_only_zeros(linear, pair, site, direction):
    found = chain(linear, pair, site=site, direction=direction)
    assert all((found.points[name].effect.abs().amax(1) > 1e-2).all() for name in POINTS)
    for name, term in found.terms().items():
        assert term.abs().max() < CAPTUM, name


def test_a_linear_model_with_the_zero_baseline_has_a_baseline_term_only(linear, pair):
    found = chain(linear, pair, baseline="zero")
    terms = found.terms()
    assert (terms.pop("baseline").abs().amax(1) > 1e-2).all()
    for name, term in terms.items():
        assert term.abs().max() < CAPTUM, name


@pytest.mark.parametrize(
    ("architecture", "baseline"), [("gpt2", "corrupted"), ("gpt2", "zero"), ("llama", "corrupted")]
)
def test_every_point_is_that_of_a_plain_loop_and_the_terms_sum_to_the_whole_difference(
    small, pair, architecture, baseline
):
    model = small(architecture)
    plain = Reference(model, pair.clean, pair.corrupted, pair.answer, pair.distractor)
    hooks = [HOOKS["heads"].format(layer) for layer in range(model.cfg.n_layers)]
    ends = None if baseline == "corrupted" else {hook: torch.zeros_like(plain.cache["clean"][hook]) for hook in hooks}
    found = chain(model, pair, baseline=baseline, n_steps=2)
    to_corrupted = plain.integrated_gradients("heads", 40)[0]  # 60 nodes leave its sums off by 3e-7 of some logits
    expected = {
        "ig": plain.integrated_gradients("heads", 2, ends)[0],
        "ig_converged": to_corrupted if ends is None else plain.integrated_gradients("heads", 40, ends)[0],
        "ig_corrupted": to_corrupted,
        "ap": plain.activation_patching("heads"),
        "ap_mirrored": -plain.activation_patching("heads", "corrupted", "clean"),
    }
    bound = 1e-4 * abs(found.points["ap"].gap)
    for name, effect in expected.items():
        exact = 1e-5 if model.cfg.normalization_type == "RMS" else CAPTUM  # transformers' RMS norm is float32
        torch.testing.assert_close(
            found.points[name].effect, effect, atol=bound if "_c" in name else exact, rtol=0, msg=name
        )
    naive = attribution_patching(model, pair, "heads", baseline=baseline).effect
    terms = found.terms()
    scale = max(point.effect.abs().max() for point in found.points.values())
    total = expected["ap_mirrored"] - naive
    torch.testing.assert_close(sum(terms.values()), total, atol=1e-12 * float(scale), rtol=0)
    between = expected["ap"] - found.points["ig"].effect
    torch.testing.assert_close(sum(terms[name] for name in BETWEEN), between, atol=1e-12 * float(scale), rtol=0)
    assert (terms["baseline"] == 0).all() == (baseline == "corrupted")
    assert terms["interaction"].abs().max() > 1e-3


def test_on_the_single_path_the_integral_is_activation_patching_and_nothing_interacts(small, pair):
    for baseline in ("corrupted", "zero"):
        found = chain(small(), pair, baseline=baseline, path="single")
        terms = found.terms()
        assert (terms["interaction"] == 0).all()
        assert terms["quadrature"].abs().max() < CAPTUM
        assert (terms["baseline"] == 0).all() == (baseline == "corrupted")
        exact = activation_patching(small(), pair, baseline=baseline).effect
        assert torch.equal(found.points["ig_converged"].effect, exact)
        assert found.converged.all()


def test_a_head_that_does_not_move_has_no_term_and_none_that_dominates(tmp_path, pair):
    found = chain(handmade.one_still_head(tmp_path), pair, baseline="zero")
    assert all(term[0, 1] == 0 for term in found.terms().values())
    assert found.dominant()[0, 1] == -1
    assert (found.dominant()[0, [0, 2, 3]] >= 0).all()


def test_of_several_pairs_terms_are_means_and_scores_means_of_scores(small, pair):
    from dataclasses import replace

    other = replace(pair, answer=" Tom", distractor=" Anna")
    pairs = [pair, other]
    together = chain(small(), pairs, baseline="zero", n_steps=3)
    alone = [chain(small(), one, baseline="zero", n_steps=3) for one in pairs]
    assert alone[0].points["ap"].gap != pytest.approx(alone[1].points["ap"].gap, rel=0.1)
    for kind in ("effect", "score"):
        for name in TERMS:
            mean = sum(one.terms(kind)[name] for one in alone) / 2
            # Of pairs that share a pass the nodes are those that the last one needs.
            torch.testing.assert_close(together.terms(kind)[name], mean, atol=1e-6, rtol=0)


def test_a_reference_that_does_not_converge_is_said(small, pair):
    found = chain(small("opt"), pair, n_steps=5)
    for name in ("ig_converged", "ig_corrupted"):
        assert not found.points[name].converged.all()
    assert torch.equal(found.converged, found.points["ig_corrupted"].converged)
