"""GradDrop against a slow loop that holds each layer's output in turn, and its identities, in float64."""

import pytest
import torch
from helpers.reference import HOOKS, Reference
from scipy import optimize

from igap import Baseline, InputError, PromptPair, atp_star, attribution_patching, load_model
from igap.components import PLACES, SITES
from igap.engine.hooks import WRITERS

# float64 sums over a few hundred terms of size 1; transformers computes Llama's RMS norms in float32.
MODELS = [("gpt2", "processed", 1e-12), ("gpt2", "raw", 1e-12), ("llama", "processed", 1e-5), ("gptj", "raw", 1e-12)]


@pytest.fixture(params=MODELS, ids=lambda m: "-".join(m[:2]))
def case(request, small):
    architecture, processing, tolerance = request.param
    return small(architecture, processing), tolerance


@pytest.fixture
def other():
    """Another pair that shares a pass with `pair`: its length and its first difference are the same."""
    return PromptPair(
        clean="After Anna and Tom went to the store, Tom gave a bottle of milk to",
        corrupted="After Anna and Tom went to the store, Anna gave a bottle of milk to",
        answer=" Anna",
        distractor=" Tom",
        min_gap=0.0,
    )


@pytest.mark.parametrize("site", SITES)
def test_it_is_the_mean_magnitude_over_layers_whose_output_is_held(case, pair, site):
    model, tolerance = case
    found = atp_star(model, pair, site)
    slow = Reference(model, *pair.texts).grad_drop(site)
    assert slow.abs().max() > 1e-2
    torch.testing.assert_close(found.effect, slow, atol=tolerance, rtol=tolerance)
    assert not found.signed


def test_denoising_moves_the_corrupted_run(small, pair):
    model = small()
    found = atp_star(model, pair, direction="denoising")
    slow = Reference(model, *pair.texts).grad_drop("heads", run="corrupted", source="clean")
    torch.testing.assert_close(found.effect, slow, atol=1e-12, rtol=0)


@pytest.mark.parametrize("site", SITES)
def test_in_the_last_layer_it_is_the_magnitude_of_attribution_patching_and_elsewhere_not(case, pair, site):
    model, tolerance = case
    star, plain = (method(model, pair, site).effect for method in (atp_star, attribution_patching))
    torch.testing.assert_close(star[-1], plain[-1].abs(), atol=tolerance, rtol=tolerance)
    assert (star[0] - plain[0].abs()).abs().max() > 1e-2


@pytest.mark.parametrize("site", SITES)
def test_where_no_later_layer_writes_it_is_the_magnitude_of_attribution_patching(checkpoint, pair, site):
    model = load_model(str(checkpoint("gpt2")), dtype="float64")
    with torch.no_grad():
        for block in model.blocks[1:]:
            for writer in (block.attn.o, block.mlp.out):
                writer.original_component.weight.zero_()
    star, plain = (method(model, pair, site).effect for method in (atp_star, attribution_patching))
    assert plain[0].abs().min() > 0
    torch.testing.assert_close(star[0], plain[0].abs(), atol=1e-12, rtol=0)


def test_a_head_whose_paths_cancel_to_0_is_found(checkpoint, pair):
    """An MLP is scaled so that what head 0.0 does through it undoes, to first order, what it does around it."""
    model = load_model(str(checkpoint("gpt2")), dtype="float64")
    weight = model.blocks[1].mlp.out.original_component.weight
    as_made = weight.clone()

    def plain(scale):
        with torch.no_grad():
            weight.copy_(scale * as_made)
        return attribution_patching(model, pair).effect[0, 0].item()

    scale = optimize.brentq(plain, 1, 2)
    assert abs(plain(scale)) < 1e-9
    assert atp_star(model, pair).effect[0, 0] > 0.01


@pytest.mark.parametrize("site", SITES)
def test_of_several_pairs_it_is_the_mean_of_their_magnitudes_however_they_are_batched(small, pair, other, site):
    model = small()
    together, alone = (atp_star(model, [pair, other, pair], site, batch_size=size) for size in (100, 1))
    each = [atp_star(model, one, site).effect for one in (pair, other, pair)]
    torch.testing.assert_close(together.effect, torch.stack(each).mean(0), atol=1e-12, rtol=0)
    torch.testing.assert_close(together.effect, alone.effect, atol=1e-12, rtol=0)
    assert not together.signed


def test_scores_are_magnitudes_also_when_the_gap_is_negative(small, pair):
    model = small()
    swapped = PromptPair(pair.clean, pair.corrupted, pair.distractor, pair.answer, min_gap=0.0)
    gaps = [atp_star(model, one) for one in (pair, swapped)]
    assert {one.gap > 0 for one in gaps} == {True, False}
    for one in gaps:
        torch.testing.assert_close(one.score, one.effect / abs(one.gap))
        assert (one.score >= 0).all()


def test_components_that_do_not_move_score_exactly_0(small, pair):
    found = atp_star(small(), pair, baseline=Baseline("prompt", prompt=pair.clean))
    assert torch.equal(found.effect, torch.zeros_like(found.effect))


def test_progress_counts_the_components_of_all_pairs(small, pair):
    told = []
    atp_star(small(), [pair, pair], on_progress=lambda done, total: told.append((done, total)))
    done = [now for now, _ in told]
    assert done == sorted(done)
    assert len(set(done)) > 3  # the layers
    assert told[-1] == (24, 24)


def test_the_model_comes_back_without_hooks_and_with_its_flags(small, pair):
    model = small()
    before = [p.requires_grad for p in model.parameters()]
    logits = model(model.to_tokens(pair.clean))
    atp_star(model, pair)
    names = [*(HOOKS[site].format(1) for site in SITES), *(f"blocks.1.{writer}" for writer in WRITERS)]
    assert not any(model.hook_dict[name].fwd_hooks for name in names)
    assert [p.requires_grad for p in model.parameters()] == before
    assert torch.equal(model(model.to_tokens(pair.clean)), logits)


def test_a_model_of_one_layer_is_refused(checkpoint, pair):
    model = load_model(str(checkpoint("gpt2", n_layers=1)))
    with pytest.raises(InputError, match=r"atp_star with a model of 1 layer, wanted at least 2"):
        atp_star(model, pair)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_values_are_as_right_as_heads(small, pair, architecture, monkeypatch):
    model = small(architecture)
    monkeypatch.setitem(HOOKS, "heads", "blocks.{}.attn.hook_v")  # the reference has key-value heads in its columns
    slow = Reference(model, *pair.texts).grad_drop("heads")
    torch.testing.assert_close(atp_star(model, pair, "v").effect, slow, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("site", sorted(set(PLACES) - {"heads", "neurons", "v"}))
def test_a_site_of_which_there_is_no_grad_drop_is_refused(small, pair, site):
    with pytest.raises(InputError, match=rf"^site: got {site} with atp_star, wanted heads, neurons or v, .* Use attri"):
        atp_star(small(), pair, site)
