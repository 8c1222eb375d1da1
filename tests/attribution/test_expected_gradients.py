"""Expected gradients against a loop over references on plain modules, and against what igap has already, in float64."""

import dataclasses
import random
from types import SimpleNamespace

import pytest
import torch
from helpers.by_hand import ByHand
from helpers.checkpoints import save_beside

from igap import Baseline, InputError, PromptPair, activation_patching, attribution_patching
from igap.attribution.expected_gradients import METHOD, expect_gradients
from igap.attribution.over_pairs import attribute_metrics
from igap.cli.compose import compose_one
from igap.components import PLACES
from igap.engine import baselines
from igap.engine.baselines import reference_ids
from igap.engine.open_pairs import contrast, open_pairs
from igap.inputs.prompts import tokenize

EXACT = 1e-11
CASES = {
    "gpt2": ("gpt2", {"n_inner": 12}),
    "grouped": ("llama", {"intermediate_size": 12, "num_key_value_heads": 2}),
}


pytestmark = pytest.mark.usefixtures("whole_in_float64")


@pytest.fixture(autouse=True)
def _words_of_the_models(monkeypatch):
    """The generator's own prompts have words that the random models do not know."""

    def sentences(seed):
        draw = random.Random(seed).choice
        while True:
            one, two, who = (draw(["John", "Mary", "Tom", "Anna"]) for _ in range(3))
            place, thing, of = (draw(["store", "cat", "dog", "milk", "bottle"]) for _ in range(3))
            text = f"{draw(['After', 'Then'])} {one} and {two} went to the {place}, {who} gave a {thing} of {of} to"
            yield SimpleNamespace(clean=text)

    monkeypatch.setattr(baselines, "ioi_stream", sentences)


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A model of igap, and the same weights on plain modules."""
    architecture, settings = CASES[request.param]
    return save_beside(tmp_path_factory.mktemp(architecture), architecture, **settings)


@pytest.fixture(scope="module")
def other(pair):
    """Of the same lengths and first difference, so that both share a pass."""
    clean, corrupted = (text.replace("John and Mary", "Mary and John") for text in (pair.clean, pair.corrupted))
    return dataclasses.replace(pair, clean=clean, corrupted=corrupted)


def references(model, pair, n, seed):
    """The tokens of the reference prompts, one row each."""
    tokens = tokenize(model, pair)
    known = {"prepend_bos": bool(model.cfg.default_prepend_bos), "bos": tokens.bos, "n_ctx": None, "n_vocab": None}
    return torch.tensor(reference_ids(model.tokenizer, Baseline("mean", n=n, seed=seed), tokens.n_prompt, **known))


def made_by(model, pair, site, route=None, metric="logit_diff", **options):
    towards = Baseline("mean", n=options["n"], seed=options["seed"])
    with contrast(model, pair, baseline=towards, route=route, sites=(site,), metric=metric) as opened:
        return expect_gradients(opened, site, **options)[0]


def test_it_is_a_loop_over_references_each_at_its_own_point_by_site_position_and_route(case, pair):
    model, plain = case
    tokens, n, seed = tokenize(model, pair), 5, 3
    hand = ByHand(plain, tokens.answer, tokens.distractor)
    alphas = (torch.randperm(n, generator=torch.Generator().manual_seed(seed)).double() + 0.5) / n
    ends = [hand.read(row[None]) for row in references(model, pair, n, seed)]
    start = hand.read(tokens.clean)
    for site in PLACES:
        slow = []
        for place in ((site, layer) for layer in range(3)):
            steps = torch.cat([end[place] - start[place] for end in ends])
            points = (start[place] + alphas[:, None, None, None] * steps).requires_grad_()
            (slopes,) = torch.autograd.grad(hand.given(tokens.clean, *place, points).sum(), points)
            slow.append((steps * slopes).sum(-1).mean(0).detach())
        for route in ("suffix", "hooks") if site in ("heads", "resid_pre") else ("suffix",):
            made = made_by(model, pair, site, route, n=n, seed=seed, positions="each")
            late = torch.stack(slow)
            assert late.abs().max() > 1e-2
            torch.testing.assert_close(made.effect, late, atol=EXACT, rtol=EXACT, msg=f"{site} {route}")


def test_towards_one_reference_it_is_attribution_patching_at_the_middle(case, pair):
    model, _ = case
    half = attribution_patching(model, pair, baseline=Baseline("mean", n=1, seed=2), at=0.5)
    torch.testing.assert_close(made_by(model, pair, "heads", n=1, seed=2).effect, half.effect, atol=1e-12, rtol=0)


def test_its_sum_comes_near_to_the_mean_of_what_the_references_do(case, pair):
    model, _ = case
    layers = activation_patching(model, pair, "resid_post", baseline=Baseline("mean", n=1)).effect.shape[0]
    sums = made_by(model, pair, "resid_post", n=300, seed=0).effect[:, 0]
    exact = torch.zeros(layers, dtype=torch.float64)
    with contrast(model, pair, baseline=Baseline("mean", n=300), sites=("resid_post",)) as opened, torch.no_grad():
        _, cache = model.run_with_cache(references(model, pair, 300, 0))
        for layer in range(layers):
            function, start = opened.function("resid_post", layer), opened.ends("resid_post", layer)[0]
            rows = cache[f"blocks.{layer}.hook_out"][None, :, opened.first :, None]
            exact[layer] = (function(rows) - function(start[:, None])).mean()
    off = (sums - exact).abs() / exact.abs().max()
    assert off.max() < 0.5, "a sample of 300 points"
    assert off[-1] < 0.1, "nothing but a norm is left"


def test_of_several_pairs_and_metrics_it_is_each_ones_own_however_they_are_batched(case, pair, other):
    model, _ = case
    metrics = ["logit_diff", "prob"]
    for options in ({}, {"batch_size": 3}):
        with open_pairs(model, [pair, other], metric=metrics) as opened:
            together = attribute_metrics(
                lambda c, advance, options=options: expect_gradients(c, "heads", advance, n=6, **options),
                opened,
                "heads",
                baseline=Baseline("mean", n=6),
            )
        for made, metric in zip(together, metrics, strict=True):
            for part, own in zip(made.pairs, (pair, other), strict=True):
                alone = made_by(model, own, "heads", metric=metric, n=6, seed=0)
                torch.testing.assert_close(part.effect, alone.effect, atol=1e-12, rtol=0)


def test_prompts_of_a_length_that_is_not_generated_are_refused_and_denoising_has_none(case):
    model, _ = case
    short = PromptPair("John gave it to", "Mary gave it to", " John", " Mary", min_gap=0.0)
    with pytest.raises(InputError, match=r"^baseline.n: got 5, found 0 generated prompts of 4 tokens"):
        made_by(model, short, "heads", n=5, seed=0)
    assert "noising alone" in METHOD.missing(compose_one(["direction=denoising"]).config, "heads", 3)
    assert not METHOD.missing(compose_one([]).config, "heads", 3)
