"""F of sets of components against plain hooks on every layer, against AP, and against the unchanged run."""

import itertools

import pytest
import torch
from helpers.by_hand import ByHand
from helpers.checkpoints import save_beside
from helpers.opened import set_metrics
from helpers.reference import HOOKS, Reference

from igap import Baseline, PromptPair, activation_patching
from igap.components import PLACES, SITES
from igap.engine import site_sets
from igap.engine.forward import Suffix
from igap.engine.open_pairs import open_pairs
from igap.inputs.prompts import tokenize

MODELS = [("gpt2", "processed"), ("gpt2", "raw"), ("gptj", "processed"), ("ioi-mini", "processed")]
EXACT = 1e-11  # float64 sums over a few thousand terms of size 1 to 10
CORRUPTED = Baseline("corrupted")


@pytest.fixture(params=MODELS, ids=lambda m: "-".join(m), scope="module")
def model(request, small):
    return small(*request.param)


def by_hooks(reference, site, kept):
    """F with every component that is not kept taken from the corrupted run, one plain hook a layer."""
    model = reference.model

    def replace(activation, hook):
        layer = int(hook.name.split(".")[1])
        out = activation.clone()
        out[:, :, ~kept[layer]] = reference.cache["corrupted"][hook.name][:, :, ~kept[layer]]
        return out

    hooks = [(HOOKS[site].format(layer), replace) for layer in range(model.cfg.n_layers)]
    with torch.no_grad():
        return reference.metric(model.run_with_hooks(reference.tokens["clean"], fwd_hooks=hooks))


@pytest.mark.parametrize("site", SITES)
def test_a_set_is_what_plain_hooks_on_every_layer_give(model, pair, site):
    shape = activation_patching(model, pair, site).effect.shape
    kept = torch.rand(4, *shape) < torch.tensor([0.0, 0.3, 0.7, 1.0])[:, None, None]
    found = set_metrics(model, [pair], {site: kept}, baseline=CORRUPTED)
    reference = Reference(model, *pair.texts)
    expected = torch.stack([by_hooks(reference, site, one) for one in kept])
    assert expected.std() > 1e-2
    torch.testing.assert_close(found[0], expected, atol=EXACT, rtol=0)


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_a_set_of_one_is_activation_patching_in_either_direction(small, pair, direction):
    model = small("gpt2", "processed")
    ap = activation_patching(model, pair, "heads", direction=direction)
    kept = ~torch.eye(ap.effect.numel(), dtype=torch.bool).view(-1, *ap.effect.shape)
    kept = torch.cat([kept, torch.ones_like(kept[:1])])
    with open_pairs(model, [pair]) as opened:
        found = site_sets.set_metrics(opened, {"heads": kept}, baseline=CORRUPTED, direction=direction)[0]
    torch.testing.assert_close(found[:-1] - found[-1], ap.effect.flatten(), atol=EXACT, rtol=0)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox"])
def test_a_set_of_any_site_is_the_model_by_hand_with_it_replaced(tmp_path, architecture):
    ours, plain = save_beside(tmp_path, architecture)
    pair = PromptPair(
        "After John and Mary gave Mary a", "After Tom and Mary gave John a", " John", " Mary", min_gap=0.0
    )
    tokens = tokenize(ours, pair)
    hand = ByHand(plain, tokens.answer, tokens.distractor)
    ends = hand.read(tokens.corrupted)
    sites = [site for site in PLACES if (site, architecture) != ("resid_mid", "gpt_neox")]
    for site, route in itertools.product(sites, (None, "hooks")):
        width = ends[site, 0].shape[2]
        kept = torch.rand(5, 3, width) < torch.tensor([0.5, 0.5, 0.7, 0.7, 1.0])[:, None, None]

        def edit(at, layer, activation, site=site, kept=kept):
            return torch.where(kept[:, layer, None, :, None], activation, ends[at, layer]) if at == site else activation

        with open_pairs(ours, pair, sites=(site,), route=route) as opened, torch.no_grad():
            found = site_sets.set_metrics(opened, {site: kept}, baseline=CORRUPTED)
            expected = hand.f(tokens.clean.expand(5, -1), edit)
        torch.testing.assert_close(found[0], expected, atol=EXACT, rtol=0)
        assert expected.std() > 1e-3


@pytest.mark.parametrize("site", SITES)
def test_ablating_nothing_is_the_clean_run_and_ablating_one_is_activation_patching(model, pair, site):
    effect = activation_patching(model, pair, site).effect
    n = min(effect.numel(), 40)
    kept = torch.ones(n + 1, effect.numel(), dtype=torch.bool)
    kept[range(n), range(n)] = False
    found = set_metrics(model, [pair], {site: kept.view(-1, *effect.shape)}, baseline=CORRUPTED)[0]
    with torch.no_grad():
        clean = Reference(model, *pair.texts).f("clean")
    torch.testing.assert_close(found[-1], clean, atol=EXACT, rtol=0)
    torch.testing.assert_close(found[:n] - clean, effect.flatten()[:n], atol=EXACT, rtol=0)


def test_every_pair_is_ablated_by_its_own_activations_however_rows_are_batched(small, pair, monkeypatch):
    model = small()
    others = [
        ("Then Tom and Anna went to the store, Anna gave it to", "Then Tom and Anna went to the store, Tom gave it to"),
        ("After Anna and Tom went to the store, Tom gave a bottle of milk to",
         "After Anna and Tom went to the store, Anna gave a bottle of milk to"),
    ]  # fmt: skip
    pairs = [pair, *(PromptPair(*texts, " Tom", " Anna", min_gap=0.0) for texts in others), pair]
    kept = torch.rand(7, 3, 4) < 0.5
    told, batches = [], []
    together = set_metrics(
        model, pairs, {"heads": kept}, baseline=CORRUPTED, on_progress=lambda done, total: told.append((done, total))
    )

    def counted(engine, changes, n_rows, computed=Suffix.with_changes):
        values = computed(engine, changes, n_rows)
        batches.append(values.numel())
        return values

    with monkeypatch.context() as patch:
        patch.setattr(Suffix, "with_changes", counted)
        in_small_passes = set_metrics(model, pairs, {"heads": kept}, baseline=CORRUPTED, batch_size=4)
    alone = torch.cat([set_metrics(model, [one], {"heads": kept}, baseline=CORRUPTED) for one in pairs])
    torch.testing.assert_close(together, alone, atol=EXACT, rtol=0)
    torch.testing.assert_close(in_small_passes, alone, atol=EXACT, rtol=0)
    assert told[-1] == (28, 28)
    assert max(batches) == 4, "of three pairs one set at a time, of one pair four"
    assert len({round(value, 6) for value in alone[:, 0].tolist()}) == 3, "one pair comes twice"


def test_the_baseline_reaches_all_positions(small, pair):
    model = small()
    kept = torch.zeros(1, 3, 4, dtype=torch.bool)
    found = set_metrics(model, [pair], {"heads": kept}, baseline=Baseline("zero"))
    hooks = [(HOOKS["heads"].format(layer), lambda z, hook: torch.zeros_like(z)) for layer in range(3)]
    reference = Reference(model, *pair.texts)
    with torch.no_grad():
        expected = reference.metric(model.run_with_hooks(reference.tokens["clean"], fwd_hooks=hooks))
    torch.testing.assert_close(found[0, 0], expected, atol=EXACT, rtol=0)
    assert not any(model.hook_dict[HOOKS["heads"].format(layer)].fwd_hooks for layer in range(3))
