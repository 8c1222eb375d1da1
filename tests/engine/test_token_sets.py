"""Answer sets: means of logits and sums of probabilities, against the whole model's logits; one answer as before."""

from dataclasses import replace

import pytest
import torch
from helpers.families import FAMILIES, save
from helpers.reference import Reference

from igap import InputError, PromptPair, activation_patching, attribution_patching, integrated_gradients, load_model
from igap.engine.open_pairs import open_pairs

RIGHT, WRONG = (" John", " Tom", " Anna"), (" Mary", " cat")
OF = {
    "logit_diff": lambda logits, right, wrong: logits[right].mean() - logits[wrong].mean(),
    "logit": lambda logits, right, wrong: logits[right].mean(),
    "logprob": lambda logits, right, wrong: logits.softmax(-1)[right].sum().log(),
    "prob": lambda logits, right, wrong: logits.softmax(-1)[right].sum(),
    "prob_diff": lambda logits, right, wrong: logits.softmax(-1)[right].sum() - logits.softmax(-1)[wrong].sum(),
}


class Sets(Reference):
    """The slow loops, of a metric on sets."""

    def __init__(self, model, pair, of):
        super().__init__(model, pair.clean, pair.corrupted, " John", " Mary")
        sets = [(words,) if isinstance(words, str) else words for words in (pair.answer, pair.distractor)]
        self.ids = [[int(model.to_tokens(word, prepend_bos=False)) for word in words] for words in sets]
        self.of = of

    def metric(self, logits):
        return self.of(logits[0, -1], *self.ids)


@pytest.fixture(scope="module")
def model(checkpoint):
    return load_model(str(checkpoint("gpt2")), dtype="float64")


@pytest.fixture
def sets(pair):
    return replace(pair, answer=RIGHT, distractor=WRONG)


@pytest.mark.parametrize("metric", OF)
def test_patching_and_gradients_of_sets_equal_those_of_the_whole_models_logits(model, sets, metric):
    plain = Sets(model, sets, OF[metric])
    for route in ("suffix", "hooks"):
        for direction, runs in (("noising", ("clean", "corrupted")), ("denoising", ("corrupted", "clean"))):
            ap = activation_patching(model, sets, metric=metric, route=route, direction=direction)
            torch.testing.assert_close(ap.effect, plain.activation_patching("heads", *runs), atol=1e-10, rtol=0)
        with torch.no_grad():
            assert ap.gap == pytest.approx(float(plain.f("clean") - plain.f("corrupted")), abs=1e-10)
        ig = integrated_gradients(model, sets, n_steps=3, metric=metric, route=route)
        torch.testing.assert_close(ig.effect, plain.integrated_gradients("heads", 3)[0], atol=0, rtol=1e-6)
    assert ig.unit == {"logit_diff": "logits", "logit": "logits", "logprob": "nats"}.get(metric, "probability")


@pytest.mark.parametrize("metric", OF)
def test_pairs_whose_sets_differ_in_size_share_a_pass_and_give_what_each_gives_alone(model, pair, sets, metric):
    pairs = [pair, sets, replace(pair, answer=" Tom"), replace(sets, answer=(" Tom", " dog"))]
    with open_pairs(model, pairs, metric=metric) as opened:
        assert [indices for indices, _ in opened.contrasts()] == [(0, 1, 2, 3)]
    together = activation_patching(model, pairs, metric=metric)
    for each, found in zip(pairs, together.pairs, strict=True):
        alone = activation_patching(model, each, metric=metric)
        torch.testing.assert_close(found.effect, alone.effect, atol=1e-12, rtol=0)
        assert found.gap == pytest.approx(alone.gap, abs=1e-12)
    singles = [pair, pair, pairs[2], pair]
    plain = activation_patching(model, singles, metric=metric)
    for index in (0, 2):
        assert torch.equal(together.pairs[index].effect, plain.pairs[index].effect), (
            "what stands beside it changes no bit"
        )


def test_a_set_of_one_is_the_word_to_the_last_bit(model, pair):
    one = PromptPair(pair.clean, pair.corrupted, (" John",), [" Mary"], min_gap=0.0)
    assert one == pair
    assert one.texts == pair.texts
    with open_pairs(model, [one]) as opened:
        assert opened.tokens[0].identity["answer"] == opened.tokens[0].answer


@pytest.mark.parametrize("family", ["Gemma 2", "Granite"])
def test_caps_and_factors_of_logits_count_before_the_mean(family, pair, tmp_path):
    save(FAMILIES[family], tmp_path)
    model = load_model(str(tmp_path), processing="raw", dtype="float64")
    texts = (pair.clean.replace(",", " ,"), pair.corrupted.replace(",", " ,"))
    words = PromptPair(*texts, (" John", " Tom"), (" Mary", " Anna"), min_gap=0.0)
    plain = Sets(model, words, OF["logit_diff"])
    for route in ("suffix", "hooks"):  # without a choice, a wrong one would be set aside for the other
        effects = activation_patching(model, words, route=route).effect
        torch.testing.assert_close(effects, plain.activation_patching("heads"), atol=1e-10, rtol=0)
    assert effects.abs().max() > 1e-6


def test_a_metric_of_ones_own_sees_all_answers_and_asks_for_the_only_one_in_vain(model, sets):
    by_hand = activation_patching(model, sets, metric=lambda logits, pair: logits[:, pair.answers].mean(-1))
    torch.testing.assert_close(by_hand.effect, activation_patching(model, sets, metric="logit").effect)
    message = (
        r"^metric: got a function that raises InputError \(.*answer: got a set of 3 tokens, wanted one\. Use answers"
    )
    with pytest.raises(InputError, match=message):
        activation_patching(model, sets, metric=lambda logits, pair: logits[:, pair.answer])
    assert attribution_patching(model, sets, metric="prob_diff").effect.abs().max() > 0
