"""Metrics other than the logit difference, against scipy and torch's own functions on whole models' logits."""

from dataclasses import replace

import pytest
import torch
from helpers.families import FAMILIES, save
from helpers.reference import Reference
from scipy import special
from scipy.spatial import distance
from scipy.stats import entropy
from torch.nn import functional

from igap import (
    InputError,
    PromptPair,
    activation_patching,
    attribution_patching,
    compare,
    integrated_gradients,
    load_model,
    metrics,
)
from igap.engine.metrics import METRICS
from igap.engine.open_pairs import contrast, open_pairs

SCIPY = {
    "logit": lambda logits, clean, answer: logits[answer],
    "logprob": lambda logits, clean, answer: special.log_softmax(logits)[answer],
    "prob": lambda logits, clean, answer: special.softmax(logits)[answer],
    "kl": lambda logits, clean, answer: entropy(special.softmax(clean), special.softmax(logits)),
    "js": lambda logits, clean, answer: distance.jensenshannon(special.softmax(clean), special.softmax(logits)) ** 2,
}
TORCH = {
    "logprob": lambda logits, clean, answer: -functional.cross_entropy(logits, torch.tensor(answer)),
    "kl": lambda logits, clean, answer: functional.kl_div(
        logits.log_softmax(-1), clean.log_softmax(-1), reduction="sum", log_target=True
    ),
}


class Of(Reference):
    """The slow loops, of another metric."""

    def __init__(self, model, pair, of):
        super().__init__(model, pair.clean, pair.corrupted, pair.answer, pair.distractor)
        self.of = of
        with torch.no_grad():
            self.clean = model(self.tokens["clean"])[0, -1]

    def metric(self, logits):
        return torch.as_tensor(self.of(logits[0, -1], self.clean, self.answer), dtype=torch.float64)


@pytest.fixture(scope="module")
def model(checkpoint):
    return load_model(str(checkpoint("gpt2")), dtype="float64")


@pytest.mark.parametrize("metric", SCIPY)
@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_patching_equals_scipy_on_the_logits_of_hooked_models(model, pair, metric, direction):
    runs = ("clean", "corrupted") if direction == "noising" else ("corrupted", "clean")
    plain = Of(model, pair, lambda logits, *known: float(SCIPY[metric](logits.numpy(), known[0].numpy(), known[1])))
    for route in ("suffix", "hooks"):
        ap = activation_patching(model, pair, direction=direction, metric=metric, route=route)
        torch.testing.assert_close(ap.effect, plain.activation_patching("heads", *runs), atol=1e-10, rtol=0)
        with torch.no_grad():
            assert ap.gap == pytest.approx(float(plain.f("clean") - plain.f("corrupted")), abs=1e-10)
    assert (ap.metric, ap.unit) == (metric, METRICS[metric].unit)
    assert ap.unit in repr(ap)


@pytest.mark.parametrize("metric", TORCH)
def test_gradient_methods_equal_torch_on_whole_models(model, pair, metric):
    plain = Of(model, pair, TORCH[metric])
    effects, _ = plain.integrated_gradients("heads", n_steps=5)
    for route in ("suffix", "hooks"):
        ig = integrated_gradients(model, pair, n_steps=5, metric=metric, route=route)
        torch.testing.assert_close(ig.effect, effects, atol=0, rtol=1e-6)  # Captum's weights are float32
        # One node in the middle of each layer's path.
        middle = attribution_patching(model, pair, at=0.5, metric=metric, route=route)
        torch.testing.assert_close(middle.effect, plain.integrated_gradients("heads", 1)[0], atol=1e-10, rtol=0)


@pytest.mark.parametrize("metric", METRICS)
def test_ig_is_complete_for_every_metric(model, pair, metric):
    for n_steps in (64, "auto"):
        ig = integrated_gradients(model, pair, n_steps=n_steps, metric=metric)
        assert (ig.delta.abs() <= 1e-3 * ig.layer_effect.abs() + 1e-12).all()
        assert ig.layer_effect.abs().min() > 1e-9


@pytest.mark.parametrize(
    ("family", "dtype", "bound"),
    [("Gemma 2", "float64", 1e-12), ("Cohere", "float32", 1e-6), ("Granite", "float64", 1e-12)],
)
def test_caps_and_factors_of_logits_count_on_both_routes(family, dtype, bound, pair, tmp_path):
    save(FAMILIES[family], tmp_path)
    model = load_model(str(tmp_path), processing="raw", dtype=dtype)
    words = PromptPair(pair.clean.replace(",", " ,"), pair.corrupted.replace(",", " ,"), " John", " Mary", min_gap=0.0)
    with contrast(model, words, metric="kl") as question:
        assert question.backend.route == "suffix"
    for metric in ("kl", "logit"):
        ours, whole = (activation_patching(model, words, metric=metric, route=r).effect for r in (None, "hooks"))
        torch.testing.assert_close(ours, whole, atol=bound, rtol=0)
        assert whole.abs().max() > 100 * bound


def test_the_metric_of_each_pair_is_beside_its_own_clean_prompt(model, pair):
    swapped = PromptPair(pair.corrupted, pair.clean, pair.distractor, pair.answer)
    with open_pairs(model, [pair, swapped], metric="kl") as opened:
        ((indices, both),) = opened.contrasts()
        assert indices == (0, 1)
        assert both.readout.select([1]).known.answer.ids.tolist() == [[both.pairs[1].answer]]
    for make in (activation_patching, lambda *a, **k: integrated_gradients(*a, n_steps="auto", **k)):
        together = make(model, [pair, swapped], metric="kl")
        for each, alone in zip(together.pairs, (pair, swapped), strict=True):
            torch.testing.assert_close(each.effect, make(model, alone, metric="kl").effect, atol=1e-9, rtol=0)
            assert each.gap < 0


def test_a_function_of_ones_own_is_a_metric(model, pair):
    def difference(logits, pair):
        return logits[:, pair.answer] - logits[:, pair.distractor]

    for make in (activation_patching, integrated_gradients, attribution_patching):
        own, built_in = make(model, pair, metric=difference), make(model, pair)
        torch.testing.assert_close(own.effect, built_in.effect, atol=1e-12, rtol=0)
        assert own.gap == pytest.approx(built_in.gap)
    assert (own.metric, own.unit) == ("custom difference", "F")
    mean = activation_patching(model, [pair, pair], metric=difference)
    torch.testing.assert_close(mean.effect, activation_patching(model, pair).effect, atol=1e-12, rtol=0)


DRAWS = torch.Generator().manual_seed(0)
WRONG = {
    "gives [] for 2 rows": lambda logits, pair: logits.sum(),
    "gives int for 2 rows": lambda logits, pair: 3,
    "has no gradient": lambda logits, pair: logits.argmax(-1).double(),
    "the same logits": lambda logits, pair: logits[:, 0] + torch.rand(1, generator=DRAWS),
    "other rows": lambda logits, pair: logits[:, 0] - logits.mean(),
    "ZeroDivisionError": lambda logits, pair: 1 / 0,
    "NaN or infinity": lambda logits, pair: logits[:, 0] / 0,
}


@pytest.mark.parametrize("said", WRONG)
def test_a_function_that_is_no_metric_is_refused_in_one_line(model, pair, said):
    with pytest.raises(InputError, match=r"^metric: got a function that [^\n]*, wanted [^\n]*$") as error:
        activation_patching(model, pair, metric=WRONG[said])
    assert said in str(error.value)


def test_a_gradient_that_must_be_zero_is_refused(model, pair):
    for metric in ("kl", "js"):
        with pytest.raises(InputError, match=f"^metric: got {metric} with attribution patching[^\n]*$"):
            attribution_patching(model, pair, metric=metric)
        assert attribution_patching(model, pair, metric=metric, direction="denoising").effect.abs().max() > 1e-6
    with pytest.raises(InputError, match=r"^metric: got 'entropy', wanted one of logit_diff, logit\b"):
        integrated_gradients(model, pair, metric="entropy")


def test_what_is_shown_of_a_map_has_its_metric_and_unit(model, pair):
    divergence = activation_patching(model, replace(pair, min_gap=50.0), metric="kl")
    assert not divergence.has_scores
    for shown in (repr(divergence), divergence._repr_html_(), divergence.plot().figure.get_suptitle()):
        assert "heads on kl" in shown
        assert "nats" in shown
        assert "logits" not in shown
    same = compare(divergence, divergence)
    assert same.label == "effect (nats)"
    with pytest.raises(InputError, match=r"^ap is a map of logit_diff, ap of kl; compare two maps of one metric\.$"):
        compare(divergence, activation_patching(model, pair))


def test_a_metric_that_is_not_finite_on_the_way_is_refused(model, pair):
    top = model(pair.clean)[0, -1].max().item()

    def near_a_pole(logits, pair):
        return (logits.max(-1).values - 0.2 * top).log()

    with pytest.raises(InputError, match=r"^metric: got NaN or infinity from custom near_a_pole in layer \d, wanted"):
        integrated_gradients(model, pair, "resid_post", baseline="zero", metric=near_a_pole, n_steps=4)


def test_products_are_metrics_though_rows_round_them_otherwise_and_so_are_other_types(pair, checkpoint):
    model = load_model(str(checkpoint("gpt2")))
    probe = torch.randn(model.cfg.d_vocab, generator=torch.Generator().manual_seed(0))
    by_product = activation_patching(model, pair, metric=lambda logits, pair: logits @ probe)
    by_sum = activation_patching(model, pair, metric=lambda logits, pair: (logits.double() * probe).sum(-1))
    assert by_sum.effect.dtype == torch.float64
    torch.testing.assert_close(by_product.effect.double(), by_sum.effect, atol=1e-4, rtol=0)


def test_a_function_is_tried_on_every_pair(model, pair):
    def partial(logits, known):
        return {answer: logits[:, answer] for answer in [first]}[known.answer]

    with contrast(model, pair) as question:
        first = question.pairs[0].answer
    assert activation_patching(model, pair, metric=partial).effect.abs().max() > 0
    swapped = PromptPair(pair.corrupted, pair.clean, pair.distractor, pair.answer)
    with pytest.raises(InputError, match=r"^metric: got a function that raises KeyError"):
        activation_patching(model, [pair, swapped], metric=partial)


def test_divergences_in_bfloat16_models_are_taken_in_float32(checkpoint, pair):
    model = load_model(str(checkpoint("gpt2")), dtype="bfloat16")
    for metric in ("kl", "js"):
        with contrast(model, pair, metric=metric) as question:
            assert question.readout(question.clean.logits).abs().max() < 1e-6
            effects = activation_patching(model, pair, metric=metric).effect
            assert effects.dtype == torch.float32
            assert effects.min() > -1e-6


def test_scores_do_not_hang_on_where_a_metric_has_its_zero(model, pair):
    nearly_all = replace(pair, min_gap=1e-6)
    near, far = (
        activation_patching(
            model, nearly_all, metric=lambda logits, pair, shift=shift: 5 * logits[:, pair.answer] - shift
        )
        for shift in (0.0, 1000.0)
    )
    assert near.has_scores
    torch.testing.assert_close(near.score, far.score, atol=1e-9, rtol=0)


def test_a_metric_object_takes_each_token_once_and_the_logits_of_one_clean_prompt(unchecked):
    logits = torch.tensor([[1.0, 3.0, 0.5], [0.0, 0.0, 1.0]])
    for call, wanted in (
        (lambda: metrics.Prob()(logits, [1, 1]), r"^answer: got \[1, 1\], wanted .* each once"),
        (lambda: metrics.LogitDiff()(logits, 1, [0, 1]), r"^distractor: got token 1, which is an answer too"),
        (lambda: metrics.KL()(logits, torch.zeros(2)), r"^clean: got logits \[2\] beside logits \[2, 3\], wanted"),
        (lambda: metrics.JS()(logits, logits), r"^clean: got logits \[2, 3\] beside"),
    ):
        with pytest.raises(InputError, match=wanted) as refused:
            call()
        assert "\n" not in str(refused.value)
