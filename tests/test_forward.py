import pytest
import torch

from igap import load_model
from igap.contrast import contrast
from igap.forward import choose_route, replaced, rows_a_batch
from igap.sites import SITES


@pytest.mark.parametrize(
    ("architecture", "route"), [("gpt2", "blocks"), ("llama", "hooks"), ("gpt_neox", "hooks"), ("opt", "hooks")]
)
def test_the_route_is_the_faster_one_that_is_right(small, pair, architecture, route):
    with contrast(small(architecture), pair) as question:
        assert question.route == route


def test_a_block_whose_attention_needs_its_mask_from_outside_is_not_called_directly(checkpoint, pair):
    # With two blocks only the first one's attention shows it: the last position of the second sees all others anyway.
    with contrast(load_model(str(checkpoint("opt", 2)), dtype="float64"), pair) as question:
        assert question.route == "hooks"


def test_bfloat16_whose_rounding_hides_a_wrong_route_goes_the_plain_way(checkpoint, pair):
    with contrast(load_model(str(checkpoint("gpt2")), dtype="bfloat16"), pair) as question:
        assert question.route == "hooks"


def test_blocks_that_do_not_give_what_the_model_gives_are_not_used(small, pair):
    model = small("gpt2")
    with contrast(model, pair) as question:
        # As in models that cap their logits: something follows the blocks that `blocks` does not know.
        handle = model.unembed.hook_out.add_hook(lambda logits, hook: 3 * torch.tanh(logits / 3))
        try:
            assert choose_route(model, question.pair, question.clean, question.corrupted) == "hooks"
        finally:
            handle.hook.remove()
            model.unembed.hook_out.fwd_hooks.remove(handle)


@pytest.mark.parametrize("route", ["blocks", "hooks"])
@pytest.mark.parametrize("site", SITES)
def test_rows_are_independent_and_ordered(small, pair, site, route):
    with contrast(small("gpt2"), pair, route=route) as question, torch.no_grad():
        start, end = question.ends(site, 1)
        rows = torch.cat([start, end, (start + end) / 2])
        together = question.function(site, 1)(rows)
        alone = torch.cat([question.function(site, 1)(row[None]) for row in rows])
    assert together.shape == (3,)
    torch.testing.assert_close(together, alone, atol=1e-13, rtol=0)
    assert together[0].item() == pytest.approx(question.clean.logit_diff, abs=1e-12)
    assert len(set(together.tolist())) == 3


@pytest.mark.parametrize("site", SITES)
def test_gradients_are_those_of_finite_differences(small, pair, site):
    with contrast(small("gpt2"), pair) as question:
        start, end = question.ends(site, 0)
        function = question.function(site, 0)
        leaf = start.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(leaf).sum(), leaf)
        step = 1e-5 * (end - start)
        with torch.no_grad():
            slope = (function(start + step) - function(start - step)) / 2e-5
    assert ((end - start) * gradient).sum().item() == pytest.approx(slope.item(), rel=1e-6)


def test_a_replaced_hook_is_gone_after_an_error_and_others_stay(small):
    point = small("gpt2").hook_dict["blocks.0.attn.hook_z"]
    mine = point.add_hook(lambda activation, hook: None)
    try:
        with pytest.raises(KeyError), replaced(point, torch.zeros(1)):
            assert len(point.fwd_hooks) == 2
            raise KeyError
        assert point.fwd_hooks == [mine]
        assert len(point._forward_hooks) == 1
    finally:
        mine.hook.remove()
        point.fwd_hooks.remove(mine)


def test_a_batch_is_never_empty():
    assert rows_a_batch(17) == 240
    assert rows_a_batch(100_000) == 1
