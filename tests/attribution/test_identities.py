"""The definitions and identities every method must keep, on random small models in float64 and on the embedded one."""

import itertools
from dataclasses import replace

import pytest
import torch

from igap import Baseline, PromptPair, activation_patching, attribution_patching, integrated_gradients
from igap.attribution.activation_patching import patch_components
from igap.attribution.attribution_patching import estimate_patches
from igap.attribution.integrated_gradients import along_path, integrate_path
from igap.components import SITES
from igap.engine.batching import AdaptiveBatch
from igap.engine.open_pairs import contrast

MODELS = [
    ("gpt2", "processed"),
    ("gpt2", "raw"),
    ("llama", "processed"),
    ("gpt_neox", "raw"),
    ("ioi-mini", "processed"),
]
METHODS = [activation_patching, attribution_patching, integrated_gradients]

# Captum keeps its step sizes in float32 also for float64 models: their sum is off by up to 50 roundings of 6e-8.
CAPTUM = 1e-6
# float64 sums over a few thousand terms of size 1.
EXACT = 1e-12


@pytest.fixture(params=MODELS, ids=lambda m: "-".join(m), scope="module")
def model(request, small):
    return small(*request.param)


def test_single_path_ig_is_activation_patching(model, pair):
    # transformers computes Llama's RMS norms in float32, whatever the model's type.
    rounding = 1e-5 if model.cfg.normalization_type == "RMS" else CAPTUM
    # Of the trained model heads alone: 2,048 neurons take their time.
    for site, n_steps in {"heads": 30, "neurons": 16}.items() if model.cfg.d_mlp < 100 else [("heads", 50)]:
        with contrast(model, pair, sites=(site,)) as question:
            (ap,) = patch_components(question, site)
            (single,) = integrate_path(question, site, path="single", n_steps=n_steps)
        assert ap.effect.abs().max() > 1e-3
        torch.testing.assert_close(single.effect, ap.effect, atol=rounding, rtol=0, msg=site)


@pytest.mark.parametrize(
    ("site", "baseline"),  # that of no input is 0 for heads
    [("heads", "corrupted"), ("heads", "zero"), ("neurons", "corrupted"), ("neurons", "zero_input")],
)
def test_joint_ig_of_a_layer_sums_to_the_effect_of_replacing_the_whole_site(model, pair, site, baseline):
    # Without its site a norm's input may be nearly 0, near which F turns sharply: not in random models with biases.
    turns = baseline != "corrupted" and (model.cfg.normalization_type == "RMS" or model.cfg.d_mlp > 100)
    with contrast(model, pair, baseline=baseline, sites=(site,)) as question:
        with torch.no_grad():
            functions = [question.function(site, layer) for layer in range(question.n_layers)]
            ends = [question.ends(site, layer)[1][:, None] for layer in range(question.n_layers)]
            replaced = torch.cat([function(end)[0] for function, end in zip(functions, ends, strict=True)])
        whole = replaced - question.clean.logit_diff
        nodes = {"zero": 500, "zero_input": 250}[baseline] if turns else 40
        (few,), (many,) = (integrate_path(question, site, n_steps=n) for n in (2, nodes))
    torch.testing.assert_close(many.effect.sum(1), whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(many.layer_effect, whole, atol=EXACT * 100, rtol=0)
    torch.testing.assert_close(few.delta, few.effect.sum(1) - whole, atol=EXACT * 100, rtol=0)
    assert few.delta.abs().max() > many.delta.abs().max()


OF_A_CONTRAST = [patch_components, estimate_patches, integrate_path]
"""The same methods, of a contrast that is open."""


def test_a_component_equal_in_both_runs_scores_exactly_0(model, pair):
    """A baseline equal to the clean prompt leaves every component alone."""
    with contrast(model, pair, baseline=Baseline("prompt", prompt=pair.clean)) as question:
        for method, site in itertools.product(OF_A_CONTRAST, SITES):
            (made,) = method(question, site)
            assert torch.equal(made.effect, torch.zeros_like(made.effect)), (method.__name__, site)
            assert torch.equal(made.score, torch.zeros_like(made.score)), (method.__name__, site)


def test_batch_of_1_equals_batch_of_many(model, pair):
    site = "heads" if model.cfg.d_mlp > 100 else "neurons"  # a pass each for 2,048 neurons shows nothing more
    with contrast(model, pair, sites=(site,)) as question:
        for method, options in ((patch_components, {}), (integrate_path, {"n_steps": 8})):
            (one,), (many,) = (method(question, site, batch_size=size, **options) for size in (1, 500))
            torch.testing.assert_close(one.effect, many.effect, atol=EXACT, rtol=0, msg=method.__name__)


@pytest.mark.parametrize("site", SITES)
def test_walking_the_path_backwards_in_the_same_run_flips_every_sign(model, pair, site):
    with contrast(model, pair) as question:
        start, end = (ends[:, None] for ends in question.ends(site, 1))
        function = question.function(site, 1)
        there = along_path(function, start, end, 40, "gausslegendre", AdaptiveBatch(64))
        back = along_path(function, end, start, 40, "gausslegendre", AdaptiveBatch(64))
    assert there.abs().max() > 1e-4
    torch.testing.assert_close(there, -back, atol=CAPTUM, rtol=0)


def test_denoising_is_the_mirror_with_the_pair_swapped_and_not_noising(model, pair):
    mirrored = replace(pair, clean=pair.corrupted, corrupted=pair.clean)
    with (
        contrast(model, pair, direction="denoising") as backwards,
        contrast(model, pair) as forwards,
        contrast(model, mirrored) as swapped_forwards,
    ):
        for method in OF_A_CONTRAST:
            (denoising,), (noising,), (swapped,) = (
                method(question, "heads") for question in (backwards, forwards, swapped_forwards)
            )
            torch.testing.assert_close(denoising.effect, swapped.effect, atol=EXACT, rtol=0)
            assert denoising.gap == pytest.approx(-swapped.gap)
            assert not torch.allclose(denoising.effect, noising.effect, atol=1e-3)
            assert not torch.allclose(denoising.effect, -noising.effect, atol=1e-4)


def test_attribution_patching_is_ig_with_its_path_at_the_clean_end(model, pair):
    # The left Riemann sum of two steps looks at alpha = 0 and 1/2, one Gauss-Legendre node at 1/2 only.
    with contrast(model, pair, sites=("neurons",)) as question:
        (left,) = integrate_path(question, "neurons", n_steps=2, method="riemann_left")
        (middle,) = integrate_path(question, "neurons", n_steps=1)
        (atp,) = estimate_patches(question, "neurons")
    torch.testing.assert_close(2 * left.effect - middle.effect, atp.effect, atol=CAPTUM, rtol=0)


def test_every_interpolation_step_contributes(model, pair):
    # The notebook's gradient reached one node of 50. A mean over the path equals the mean of its single steps.
    n_steps = 7
    whole = integrated_gradients(model, pair, "heads", n_steps=n_steps, method="riemann_middle")
    with contrast(model, pair) as question:
        for layer in range(question.n_layers):
            start, end = (ends[:, None] for ends in question.ends("heads", layer))
            function = question.function("heads", layer)
            total = torch.zeros_like(start)
            for step in range(n_steps):
                point = (start + (step + 0.5) / n_steps * (end - start)).requires_grad_()
                total += torch.autograd.grad(function(point).sum(), point)[0] / n_steps
            expected = ((end - start) * total)[0, 0].sum((0, 2))
            torch.testing.assert_close(whole.effect[layer], expected, atol=CAPTUM, rtol=0)


def test_adding_a_constant_to_all_logits_changes_nothing(checkpoint, pair):
    from igap import load_model

    model = load_model(str(checkpoint("gpt2")), processing="processed", dtype="float64")
    before = [method(model, pair, "heads").effect for method in METHODS]
    with torch.no_grad():
        model.unembed.b_U.add_(5.0)
    after = [method(model, pair, "heads").effect for method in METHODS]
    for first, second in zip(before, after, strict=True):
        torch.testing.assert_close(first, second, atol=EXACT * 10, rtol=0)


def test_positions_sum_to_the_effect_and_are_0_before_the_first_difference(model, pair):
    first = -7  # "Mary" / "John" stands 7 tokens before the end
    with contrast(model, pair) as question:
        for method, site in itertools.product((estimate_patches, integrate_path), SITES):
            (each,), (plain,) = (method(question, site, positions=positions) for positions in ("each", "all"))
            assert (plain.spans, plain.together) == (None, None)
            torch.testing.assert_close(each.effect.sum(1), plain.effect, atol=EXACT, rtol=0)
            assert torch.equal(each.together, plain.effect), (method.__name__, site)
            assert torch.equal(each.effect[:, :first], torch.zeros_like(each.effect[:, :first]))
            assert (each.effect[:, first:].abs().sum((0, 2)) > 0).all(), (method.__name__, site)


def test_score_is_effect_over_gap_and_missing_below_min_gap(model, pair):
    ap = activation_patching(model, pair, "heads")
    torch.testing.assert_close(ap.score * ap.gap, ap.effect)
    assert torch.isnan(replace(ap, min_gap=abs(ap.gap) * 1.01).score).all()
    assert torch.isnan(replace(ap, gap=0.0).score).all()
    assert torch.isfinite(replace(ap, min_gap=abs(ap.gap) * 0.99).score).all()


def test_patching_every_head_of_a_model_whose_only_layer_carries_all_gives_minus_1(pair, ioi_mini):
    # Sign and unit: with noising, replacing every residual source by the corrupted run's moves F from x to x': -gap.
    with contrast(ioi_mini, pair) as question:
        assert question.gap > 0
        assert torch.equal(question.corrupted.logit_diff - question.clean.logit_diff, -question.gap)
    ap = activation_patching(ioi_mini, pair, "heads")
    strongest = ap.score.flatten()[ap.score.abs().argmax()]
    assert strongest < 0, "the most important head must push towards the corrupted answer when corrupted"


@pytest.mark.parametrize("site", SITES)
def test_the_embedded_model_keeps_the_identities_to_float32_rounding(ioi_mini, pair, site):
    ap = activation_patching(ioi_mini, pair, site)
    joint = integrated_gradients(ioi_mini, pair, site)
    # 17 positions x 512 neurons of float32 terms, F of size 10: 1e-4 logits is a thousand roundings.
    torch.testing.assert_close(joint.effect.sum(1), joint.layer_effect, atol=1e-3, rtol=0)
    if site == "heads":
        single = integrated_gradients(ioi_mini, pair, site, path="single")
        torch.testing.assert_close(single.effect, ap.effect, atol=1e-3, rtol=0)


@pytest.mark.parametrize("site", SITES)
def test_the_single_paths_delta_and_layer_effect_are_those_of_the_component_farthest_off(small, pair, site):
    ap = activation_patching(small(), pair, site)
    coarse = integrated_gradients(small(), pair, site, path="single", method="riemann_left", n_steps=2)
    error = coarse.effect - ap.effect
    worst = error.abs().argmax(1, keepdim=True)
    torch.testing.assert_close(coarse.delta, error.gather(1, worst)[:, 0], atol=CAPTUM, rtol=0)
    torch.testing.assert_close(coarse.layer_effect, ap.effect.gather(1, worst)[:, 0], atol=EXACT * 100, rtol=0)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_a_site_or_a_route_that_there_is_not_is_refused(small, pair, method, unchecked):
    with pytest.raises(ValueError, match=r"site: got 'head', wanted one of heads, .*\. Did you mean heads\?"):
        method(small(), pair, "head")
    with pytest.raises(ValueError, match=r"route: got 'block', wanted suffix or hooks or None\."):
        method(small(), pair, "heads", route="block")


@pytest.mark.parametrize("method", [activation_patching, integrated_gradients], ids=lambda m: m.__name__)
def test_a_batch_of_nothing_is_refused(small, pair, method):
    with pytest.raises(ValueError, match=r"batch_size: got 0, wanted a whole number, at least 1 and"):
        method(small(), pair, "heads", batch_size=0)


def test_quadrature_is_exact_on_polynomials_worked_by_hand():
    # F(a) = 3 a0 + a1^2 from (1, 2) to (2, 5): the path's effects are 3 and 25 - 4, with any number of Gauss nodes.
    def function(rows):
        return 3 * rows[:, :, 0, 0] + rows[:, :, 0, 1] ** 2

    start, end = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[2.0, 5.0]]]])
    for n_steps in (1, 2, 50):
        effect = along_path(function, start, end, n_steps, "gausslegendre", AdaptiveBatch(1))
        torch.testing.assert_close(effect, torch.tensor([[[[3.0, 21.0]]]]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_steps": 0}, r"n_steps: got 0, wanted a whole number, at least 1 and at most 1000000 or auto"),
        ({"method": "riemann_trapezoid"}, r"method: got 'riemann_trapezoid', wanted one of gausslegendre"),
        ({"method": "simpson"}, r"method: got 'simpson', wanted one of gausslegendre"),
        ({"path": "both"}, r"path: got 'both', wanted joint or single"),
        ({"direction": "denoising", "baseline": "zero"}, r"baseline: got zero with direction=denoising"),
        ({"direction": "up"}, r"direction: got 'up', wanted noising or denoising"),
        ({"baseline": "random"}, r"baseline: got 'random', wanted one of corrupted, zero"),
    ],
)
def test_bad_arguments_are_refused_by_their_message(small, pair, arguments, message, unchecked):
    with pytest.raises(ValueError, match=message):
        integrated_gradients(small(), pair, "heads", **arguments)


def test_a_pair_without_a_difference_is_refused_rather_than_scored(pair):
    with pytest.raises(ValueError, match=r"prompts\.corrupted: got the same text as prompts\.clean"):
        PromptPair(pair.clean, pair.clean, pair.answer, pair.distractor)


def test_a_gap_that_is_small_beside_the_clean_logit_difference_gives_no_scores(small, pair):
    """The bound is a tenth of |F(clean)| where that is above `min_gap`, and none where `min_gap` is 0."""
    model = small("ioi-mini")
    with contrast(model, pair) as question:
        clean, gap = question.clean.logit_diff.item(), question.gap.item()
    assert abs(gap) > 0.1 * abs(clean) > 0.2
    assert torch.isfinite(activation_patching(model, replace(pair, min_gap=0.1)).score).all()
    other = replace(pair, corrupted=pair.clean.replace("store", "shop"), min_gap=0.1)
    for least, scored in ((0.1, False), (1e-9, False), (0.0, True)):
        found = activation_patching(model, replace(other, min_gap=least))
        assert 0 < abs(found.gap) < 0.1 * abs(clean), "the second pair changes nothing that matters"
        assert bool(torch.isfinite(found.score).all()) == bool(torch.isfinite(found.score).any()) == scored
        assert torch.isfinite(found.effect).all()
