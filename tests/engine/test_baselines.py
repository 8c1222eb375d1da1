"""Each baseline kind against what it says it is, by TransformerLens' own cache."""

from functools import partial

import pytest
import torch
from helpers.families import FAMILIES, save
from torch.nn import functional

from igap import PromptPair, integrated_gradients, load_model
from igap.components import SITES, hook_name
from igap.config import BaselineConfig
from igap.engine import baselines
from igap.engine.baselines import KINDS, Baseline, Request, activations, baseline_of, reference_tokens
from igap.engine.open_pairs import contrast


def made(model, pair, baseline):
    """The baseline's activations, and the request they were made for."""
    with contrast(model, pair) as question:
        request = Request(model, question.pairs, question.clean, question.corrupted.activations, baseline)
        return activations(request), request


def cached(model, text):
    with torch.no_grad():
        return model.run_with_cache(text)[1]


@pytest.mark.parametrize("site", SITES)
def test_corrupted_and_prompt_are_the_activations_on_that_prompt(small, pair, site):
    other = "After Tom and Anna went to the store, Anna gave a bottle of milk to"
    for text, baseline in ((pair.corrupted, Baseline()), (other, Baseline("prompt", prompt=other))):
        found, _ = made(small(), pair, baseline)
        cache = cached(small(), text)
        for layer, activation in enumerate(found[site]):
            assert torch.equal(activation, cache[hook_name(site, layer)])


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox", "gptj", "opt"])
def test_zero_input_is_0_for_heads_and_one_activation_at_every_position_for_neurons(small, pair, architecture):
    found = {kind: made(small(architecture, kind), pair, Baseline("zero_input"))[0] for kind in ("processed", "raw")}
    shape = made(small(architecture), pair, Baseline())[0]["neurons"][0].shape
    assert all((activation == 0).all() for activation in found["raw"]["heads"])
    for processed, raw in zip(found["processed"]["neurons"], found["raw"]["neurons"], strict=True):
        assert processed.shape == shape
        assert torch.equal(processed, processed[:, :1].expand(shape))
        # The norm's bias is folded into b_in or is not: the activation is one. TransformerLens folds in float32.
        torch.testing.assert_close(processed, raw, atol=5e-6, rtol=0)


def test_zero_input_is_the_nonlinearity_of_the_input_bias(small, pair):
    model = small("gpt2", "processed")
    found, _ = made(model, pair, Baseline("zero_input"))
    for layer, activation in enumerate(found["neurons"]):
        expected = torch.nn.functional.gelu(model.blocks[layer].mlp.b_in, approximate="tanh")
        assert expected.abs().max() > 0.01
        torch.testing.assert_close(activation, expected.expand_as(activation), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("family", "nonlinearity"),
    [("GPT-1", partial(functional.gelu, approximate="tanh")), ("OPT, norms after (350m)", functional.relu)],
)
def test_zero_input_goes_into_the_norm_of_attention_where_norms_follow_what_they_norm(
    family, nonlinearity, tmp_path, pair
):
    save(FAMILIES[family], tmp_path)
    model = load_model(tmp_path, processing="raw", dtype="float64")
    found, request = made(model, pair, Baseline("zero_input"))
    for layer, activation in enumerate(found["neurons"]):
        block = model.blocks[layer]
        with torch.no_grad():
            normed = block.ln1(torch.zeros_like(request.clean.residual[layer]))
            expected = nonlinearity(getattr(block.mlp, "in")(normed))
        torch.testing.assert_close(activation, expected.view_as(activation), atol=1e-12, rtol=0)
        assert not torch.equal(activation, request.clean.activations["neurons"][layer])


def test_zero_input_needs_a_norm_before_the_mlp(tmp_path, pair):
    save(FAMILIES["OLMo 2"], tmp_path)
    with pytest.raises(ValueError, match=r"baseline: got zero_input, but .* has no norm before its MLP whose input"):
        made(load_model(tmp_path, processing="raw"), pair, Baseline("zero_input"))


def test_zero_is_0(small, pair):
    found, _ = made(small(), pair, Baseline("zero"))
    assert all((activation == 0).all() for site in SITES for activation in found[site])


def test_mean_is_the_mean_of_each_position_over_generated_prompts_of_the_same_length(pair):
    model = load_model(dtype="float64")
    found, request = made(model, pair, Baseline("mean", n=5, seed=3))
    prompts = reference_tokens(request)
    assert len(prompts) == 5
    assert {tokens.shape for tokens in prompts} == {request.clean.tokens.shape}
    assert len({tuple(tokens[0].tolist()) for tokens in prompts}) > 1
    caches = [cached(model, tokens) for tokens in prompts]
    for site in SITES:
        for layer, activation in enumerate(found[site]):
            mean = torch.stack([cache[hook_name(site, layer)] for cache in caches]).mean(0)
            torch.testing.assert_close(activation, mean, atol=1e-12, rtol=0)


def test_mean_depends_on_the_seed_and_on_nothing_else(ioi_mini, pair):
    def prompts(seed):
        return [
            tokens.tolist() for tokens in reference_tokens(made(ioi_mini, pair, Baseline("mean", n=4, seed=seed))[1])
        ]

    torch.manual_seed(1)
    first = prompts(0)
    torch.manual_seed(2)
    assert prompts(0) == first
    assert prompts(1) != first


def test_no_baseline_changes_the_model(ioi_mini, pair):
    hooks = sum(len(point.fwd_hooks) for point in ioi_mini.hook_dict.values())
    for kind in KINDS:
        made(ioi_mini, pair, Baseline(kind, prompt=pair.corrupted if kind == "prompt" else None, n=2))
    assert sum(len(point.fwd_hooks) for point in ioi_mini.hook_dict.values()) == hooks


def test_mean_needs_generated_prompts_of_the_clean_prompts_length(ioi_mini, monkeypatch):
    monkeypatch.setattr(baselines, "_DRAWN", 3)
    short = PromptPair("Mary gave it to", "John gave it to", "John", "Mary")
    with pytest.raises(ValueError, match=r"baseline\.n: got 100, found 0 generated prompts of 4 tokens \(without"):
        made(ioi_mini, short, Baseline("mean"))


def test_the_other_prompt_has_the_clean_prompts_length(small, pair):
    with pytest.raises(ValueError, match=r"baseline\.prompt: got 4 tokens, prompts\.clean has 16 \(without the"):
        integrated_gradients(small(), pair, baseline=Baseline("prompt", prompt="Mary gave it to"))


def test_own_reference_prompts_have_the_clean_prompts_length(ioi_mini, pair):
    with pytest.raises(ValueError, match=r"baseline\.prompts: got 'Mary gave' of 3 tokens, wanted 17 \(the token"):
        made(ioi_mini, pair, Baseline("mean", prompts=(pair.corrupted, "Mary gave")))


def test_settings_that_a_kind_does_not_use_make_no_other_baseline_of_it():
    config = BaselineConfig(prompt="another", n=7, seed=3)
    assert baseline_of(config) == Baseline()
    assert baseline_of(config, "zero") == Baseline("zero")
    assert baseline_of(config, "mean") == Baseline("mean", n=7, seed=3)
    assert baseline_of(config, "prompt") == Baseline("prompt", prompt="another")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "zeros"}, r"kind: got 'zeros', wanted one of corrupted, zero, zero_input, mean, prompt\."),
        ({"kind": "prompt"}, r"baseline\.prompt: got None with baseline=prompt; baseline=prompt needs a text"),
        ({"kind": "zero", "prompts": ("a",)}, r"baseline\.prompts: got 1 reference prompts with baseline=zero, wanted"),
        ({"kind": "zero", "prompt": "a"}, r"baseline\.prompt: got 'a' with baseline=zero; baseline=prompt needs"),
    ],
)
def test_bad_baselines_are_refused(arguments, message, unchecked):
    with pytest.raises(ValueError, match=message):
        Baseline(**arguments)
