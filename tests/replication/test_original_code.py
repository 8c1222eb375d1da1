"""The replayed estimators are the notebook's: its call of Captum, on a batch of 50 read at row 0 or averaged."""

import pytest
import torch
from captum.attr import IntegratedGradients

from igap import activation_patching, integrated_gradients
from igap.components import SITES, hook_name
from igap.engine.activations import borrow
from igap.engine.hooks import edit_hooks
from igap.engine.open_pairs import contrast
from igap.inputs.prompts import tokenize
from igap.replication import original_code


def captum_as_in_the_notebook(model, pair, site, layer, baseline, reads):
    """Attributions `[pos, component, ...]` of a layer: the whole path as one batch, one number for all of it."""
    tokens = tokenize(model, pair)
    with contrast(model, pair, baseline=baseline) as question:
        clean, end = question.base.activations[site][layer], question.source[site][layer]
    name = hook_name(site, layer)

    def forward(x):
        with edit_hooks(model, {name: lambda _: x}):
            logits = model(tokens.clean.expand(len(x), -1))
        return reads(logits[:, -1, tokens.answer] - logits[:, -1, tokens.distractor])[None]

    with borrow(model):
        return IntegratedGradients(forward).attribute(inputs=end, baselines=clean, n_steps=50)[0]


@pytest.mark.parametrize("baseline", ["corrupted", "zero_input"])
@pytest.mark.parametrize("site", SITES)
def test_the_printed_code_gives_the_first_node_alone(small, pair, site, baseline):
    model = small("gpt2")
    found = original_code.first_node(model, pair, site, baseline)
    for layer in range(model.cfg.n_layers):
        theirs = captum_as_in_the_notebook(model, pair, site, layer, baseline, lambda values: values[0])
        summed = theirs.sum((0, 2)) if site == "heads" else theirs.sum(0)
        # Captum's nodes and weights are float32.
        torch.testing.assert_close(found.effect[layer], summed, rtol=1e-6, atol=1e-12)


def test_the_earlier_metric_gives_the_integral_over_50(small, pair):
    model = small("gpt2")
    found = original_code.mean_over_steps(integrated_gradients(model, pair, "heads"))
    theirs = captum_as_in_the_notebook(model, pair, "heads", 1, "corrupted", torch.mean)
    torch.testing.assert_close(found.effect[1], theirs.sum((0, 2)), rtol=1e-6, atol=1e-12)


def test_the_notebooks_unit_is_a_mean_over_positions_and_of_a_heads_output_over_d_model(small, pair):
    """Of `result` [pos, head, d_model], whose gradient is that of the sum of all heads, as its code has it."""
    model, layer = small("gpt2"), 1
    ours = original_code.average(original_code.first_node(model, pair, "heads", "corrupted"), 17, model.cfg.d_model)
    tokens = tokenize(model, pair)
    z = [model.run_with_cache(t)[1][hook_name("heads", layer)] for t in (tokens.clean, tokens.corrupted)]
    moved = torch.einsum("bphd,hdm->bphm", z[1] - z[0], model.blocks[layer].attn.W_O)
    leaf = torch.zeros(1, 17, model.cfg.d_model, dtype=torch.float64, requires_grad=True)
    start = z[0] + original_code.FIRST_NODE * (z[1] - z[0])
    hooks = [
        (hook_name("heads", layer), lambda z, hook: start),
        (f"blocks.{layer}.hook_attn_out", lambda x, hook: x + leaf),
    ]
    with borrow(model):
        logits = model.run_with_hooks(tokens.clean, fwd_hooks=hooks)[0, -1]
        (gradient,) = torch.autograd.grad(logits[tokens.answer] - logits[tokens.distractor], leaf)
    theirs = original_code.FIRST_WEIGHT * (moved * gradient[:, :, None]).mean((1, 3))[0]
    torch.testing.assert_close(ours.effect[layer], theirs, rtol=1e-9, atol=1e-15)


def test_the_displayed_numbers_are_the_averages_times_1e5(small, pair):
    found = original_code.first_node(small("gpt2"), pair, "heads", "corrupted")
    shown = original_code.to_displayed_unit(found, 17, 32).score
    torch.testing.assert_close(shown, original_code.average(found, 17, 32).effect * 1e5)


def test_the_padded_pair_reads_the_clean_prompt_at_a_pad(small, pair):
    model = small("gpt2")
    end = model.tokenizer.eos_token
    padded = original_code.pad_pair(pair, end, 2)
    with pytest.raises(ValueError, match="one length"):
        activation_patching(model, padded)
    tokens = model.tokenizer(padded.clean)["input_ids"]
    assert tokens[-2:] == [model.tokenizer.eos_token_id] * 2
    assert original_code.pad_pair(pair, end, -1).corrupted == pair.corrupted + end
    assert original_code.pad_pair(pair, end, -1).clean == pair.clean
