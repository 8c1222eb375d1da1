"""Several pairs at once: each gets what it gets alone, whatever it shares a pass with; and their mean."""

import itertools
from dataclasses import replace

import pytest
import torch
from helpers.checkpoints import save_checkpoint

from igap import Baseline, PromptPair, activation_patching, attribution_patching, integrated_gradients, load_model
from igap.components import SITES
from igap.engine.open_pairs import open_pairs

EXACT = 1e-12


def joint_ig(model, pairs, site="heads", **options):
    """Few nodes: how many there are is the same alone and together."""
    return integrated_gradients(model, pairs, site, n_steps=6, **options)


METHODS = [activation_patching, attribution_patching, joint_ig]


@pytest.fixture(scope="module")
def pairs(pair):
    """Pairs of two lengths and three first differences, some of which share a pass, and other answers."""

    def made(clean, corrupted, answer="John", distractor="Mary"):
        return PromptPair(clean, corrupted, answer, distractor, min_gap=0.0)

    return [
        pair,
        made("John and Mary went to the store, Mary gave it to", "John and Mary went to the store, John gave it to"),
        made(pair.clean.replace("store", "dog"), pair.corrupted.replace("store", "dog"), "Tom", "Anna"),
        made(pair.clean, pair.clean.replace("milk", "cat")),
        made(pair.clean.replace("After", "Then"), pair.corrupted.replace("After", "Then"), "Mary", "John"),
    ]


@pytest.mark.parametrize(
    ("options", "method", "site"),
    [
        (options, method, SITES[(i + j) % 2])
        for i, options in enumerate([{}, {"direction": "denoising"}, {"baseline": "zero"}, {"route": "hooks"}])
        for j, method in enumerate(METHODS)
    ],
)
def test_pairs_together_are_pairs_alone_in_the_order_given(small, pairs, method, site, options):
    together = method(small(), pairs, site, **options)
    assert len(together.pairs) == len(pairs)
    for pair, found in zip(pairs, together.pairs, strict=True):
        alone = method(small(), pair, site, **options)
        assert alone.effect.abs().max() > 1e-3
        torch.testing.assert_close(found.effect, alone.effect, atol=EXACT, rtol=0)
        assert found.gap == pytest.approx(alone.gap, abs=1e-12)
        if alone.delta is not None:
            torch.testing.assert_close(found.delta, alone.delta, atol=EXACT, rtol=0)
            torch.testing.assert_close(found.layer_effect, alone.layer_effect, atol=EXACT, rtol=0)
            assert torch.equal(found.n_steps, alone.n_steps)


def test_single_paths_of_pairs_together_are_those_of_pairs_alone(small, pairs):
    for site in SITES:
        together = integrated_gradients(small(), pairs, site, path="single", n_steps=3)
        for pair, found in zip(pairs, together.pairs, strict=True):
            alone = integrated_gradients(small(), pair, site, path="single", n_steps=3)
            torch.testing.assert_close(found.effect, alone.effect, atol=EXACT, rtol=0)
            torch.testing.assert_close(found.delta, alone.delta, atol=EXACT, rtol=0)


@pytest.mark.parametrize(
    "baseline",
    [
        Baseline("prompt", prompt="After Tom and Anna went to the store , John gave a bottle of milk to"),
        Baseline("zero_input"),
    ],
    ids=lambda b: b.kind,
)
def test_a_baseline_of_one_prompt_serves_every_pair(small, pairs, baseline):
    alike = [pairs[0], pairs[2], pairs[4]]
    for site, method in [*zip(itertools.cycle(SITES), METHODS, strict=False), ("neurons", joint_ig)]:
        together = method(small(), alike, site, baseline=baseline)
        for pair, found in zip(alike, together.pairs, strict=True):
            alone = method(small(), pair, site, baseline=baseline)
            torch.testing.assert_close(found.effect, alone.effect, atol=EXACT, rtol=0)


def test_pairs_of_one_length_and_one_first_difference_share_a_pass(small, pairs):
    with open_pairs(small(), pairs) as opened:
        assert [indices for indices, _ in opened.contrasts()] == [(0, 2, 4), (1,), (3,)]


def test_many_alike_pairs_are_cut_into_passes(small, pair):
    with open_pairs(small(), [pair] * 130) as opened:
        assert [len(indices) for indices, _ in opened.contrasts()] == [64, 64, 2]


def test_the_mean_is_that_of_the_pairs_and_scores_leave_out_pairs_without_one(small, pairs):
    gaps = [abs(activation_patching(small(), pair).gap) for pair in pairs]
    least = sorted(gaps)[1] * 0.999  # above one pair's gap
    found = activation_patching(small(), [replace(pair, min_gap=least) for pair in pairs])
    torch.testing.assert_close(found.effect, torch.stack([one.effect for one in found.pairs]).mean(0))
    assert found.gap == pytest.approx(sum(one.gap for one in found.pairs) / 5)
    there = [one.effect / one.gap for one in found.pairs if abs(one.gap) >= least]
    assert len(there) == 4
    torch.testing.assert_close(found.score, torch.stack(there).mean(0))


def test_the_means_delta_is_the_pairs_farthest_from_0_and_its_incomplete_layers_are_all_of_theirs(small, pairs):
    found = integrated_gradients(small(), pairs, "neurons", method="riemann_left", n_steps=3)
    deltas = torch.stack([one.delta for one in found.pairs])
    assert torch.equal(found.delta.abs(), deltas.abs().amax(0))
    for layer, worst in enumerate(deltas.abs().argmax(0).tolist()):
        assert found.delta[layer] == deltas[worst, layer]
        assert found.layer_effect[layer] == found.pairs[worst].layer_effect[layer]
    for tolerance in (1e-3, 0.1, 0.3):
        expected = {layer for one in found.pairs for layer in one.incomplete_layers(tolerance)}
        assert set(found.incomplete_layers(tolerance)) == expected


@pytest.mark.parametrize("method", [activation_patching, joint_ig], ids=lambda m: m.__name__)
def test_the_rows_of_a_pass_change_nothing(small, pairs, method):
    for site in SITES:
        expected = method(small(), pairs, site)
        for batch_size in (1, 7, 1000) if site == "heads" else (7,):
            found = method(small(), pairs, site, batch_size=batch_size)
            torch.testing.assert_close(found.effect, expected.effect, atol=EXACT, rtol=0)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_a_component_that_moves_in_another_pair_only_is_exactly_0(tmp_path, pairs, method):
    # Under a ReLU some neurons are 0 at every position in both runs of one pair, and not in those of another.
    save_checkpoint("gpt2", 3, tmp_path, activation_function="relu")
    model = load_model(str(tmp_path), dtype="float64")
    alike = [pairs[0], pairs[2], pairs[4]]
    with open_pairs(model, alike) as opened:
        ((_, question),) = opened.contrasts()
        moved = torch.stack([question.differs("neurons", layer) for layer in range(3)], 1)
    mixed = moved.any(0) & ~moved.all(0)
    assert mixed.any()
    for one, its in zip(method(model, alike, "neurons").pairs, moved, strict=True):
        assert torch.equal(one.effect[~its], torch.zeros_like(one.effect[~its]))
        assert (one.effect[:-1][its[:-1]] != 0).float().mean() > 0.9  # the last layer acts at the last position only


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_progress_counts_the_components_of_all_pairs(small, pairs, method):
    told = []
    method(small(), pairs, "heads", on_progress=lambda done, total: told.append((done, total)))
    assert {total for _, total in told} == {5 * 3 * 4}
    done = [done for done, _ in told]
    assert done == sorted(done)
    assert done[-1] == 5 * 3 * 4


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_no_pair_is_refused(small, method):
    with pytest.raises(ValueError, match=r"prompts: got no pair, wanted at least one\."):
        method(small(), [])
