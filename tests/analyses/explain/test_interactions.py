"""Pairs of components replaced together: by hand, against hooks, and what they leave over."""

from dataclasses import replace

import pytest
import torch
from helpers import handmade
from helpers.checkpoints import save_checkpoint
from helpers.opened import interactions
from helpers.reference import HOOKS, Reference

from igap import InputError, PromptPair, load_model
from igap.engine.open_pairs import open_pairs

MODELS = [("gpt2", "processed"), ("llama", "raw"), ("opt", "processed")]


def slow(model, pair, site, layer, index, run="clean", source="corrupted"):
    """I(c, d) for every d, two hooked forwards each."""
    plain = Reference(model, pair.clean, pair.corrupted, pair.answer, pair.distractor)
    hook = HOOKS[site].format(layer)

    def f(*components):
        patched = plain.cache[run][hook].clone()
        for component in components:
            patched[:, :, component] = plain.cache[source][hook][:, :, component]
        return plain.f(run, hook, patched)

    with torch.no_grad():
        others, alone, unpatched = [d for d in range(plain.width(site)) if d != index], f(index), f()
        return torch.stack([f(index, d) - alone - f(d) + unpatched for d in others])


def test_two_heads_interact_as_worked_by_hand(tmp_path):
    """F = (1 + z_0 + z_1)^2: 16 clean, 9 with both replaced, 36 and 1 with one: 9 - 36 - 1 + 16. Mirrored the same."""
    model = handmade.two_heads(tmp_path)
    for head, other in (("0.0", "0.1"), ("0.1", "0.0")):
        for direction in ("noising", "denoising"):
            found = interactions(model, handmade.PAIR, head, direction=direction)
            assert (found.component, found.others) == (head, (other,))
            assert found.effect.tolist() == pytest.approx([-12])
            assert found.shares.tolist() == pytest.approx([6]), "AP - IG, 20 - 14, is all of this interaction"


@pytest.mark.parametrize("name", MODELS, ids="-".join)
@pytest.mark.parametrize(("component", "place"), [("1.2", ("heads", 1, 2)), ("L2.N5", ("neurons", 2, 5))])
def test_pairs_of_components_equal_plain_hooks(small, pair, name, component, place):
    model = small(*name)
    found = interactions(model, pair, component)
    expected = slow(model, pair, *place)
    assert expected.abs().max() > 1e-5
    torch.testing.assert_close(found.effect, expected, atol=1e-11, rtol=0)
    assert found.others[0] == ("1.0" if component == "1.2" else "L2.N0")
    mirrored = interactions(model, pair, component, direction="denoising")
    torch.testing.assert_close(mirrored.effect, slow(model, pair, *place, "corrupted", "clean"), atol=1e-11, rtol=0)


def test_small_batches_other_routes_and_several_pairs_give_the_same(small, pair):
    other = PromptPair(
        "John and Mary went to the store, Mary gave it to", "John and Mary went to the store, John gave it to",
        " John", " Mary",
    )  # fmt: skip
    one, two = (interactions(small(), each, "0.1") for each in (pair, other))
    together = interactions(small(), [pair, other], "0.1", batch_size=1, route="hooks")
    torch.testing.assert_close(together.by_pair, torch.cat([one.by_pair, two.by_pair]), atol=1e-12, rtol=0)
    torch.testing.assert_close(together.effect, (one.effect + two.effect) / 2, atol=1e-12, rtol=0)


def test_a_component_that_does_not_move_interacts_with_none_exactly(tmp_path, pair):
    model = handmade.one_still_head(tmp_path)
    still, other = (interactions(model, pair, name) for name in ("0.1", "0.0"))
    assert still.effect.tolist() == [0, 0, 0]
    assert other.others == ("0.1", "0.2", "0.3")
    assert other.effect[0] == 0
    assert (other.effect[1:].abs() > 1e-4).all()


def test_a_neuron_that_moves_in_another_pair_of_the_pass_interacts_with_none_here_exactly(tmp_path, pair):
    """ReLU neurons are dead in one pair and alive in another; float32 shows a last bit that is not masked."""
    save_checkpoint("gpt2", 2, tmp_path, activation_function="relu")
    model = load_model(str(tmp_path))
    other = replace(
        pair, clean=pair.clean.replace("store", "dog"), corrupted=pair.clean.replace("store, Mary", "dog, Tom")
    )
    with open_pairs(model, [pair, other]) as opened:
        groups = opened.contrasts()
        ((indices, question),) = groups
        moved = question.differs("neurons", 0)
    assert indices == (0, 1)
    (c,) = moved.all(0).nonzero()[0].tolist()
    only_first = (moved[0] & ~moved[1]).nonzero().flatten().tolist()
    assert only_first
    found = interactions(model, [pair, other], f"L0.N{c}")
    for name, here, there in zip(found.others, *found.by_pair.tolist(), strict=True):
        if int(name.partition("N")[2]) in only_first:
            assert here != 0
            assert there == 0
    for d in only_first:
        assert not interactions(model, [pair, other], f"L0.N{d}").by_pair[1].any()


@pytest.mark.parametrize("name", ["1.4", "3.0", "L1.N48", "9", "name mover", ""])
def test_a_component_that_the_model_does_not_have_is_refused(small, pair, name):
    with pytest.raises(InputError, match=r"^interactions: got"):
        interactions(small(), pair, name)
