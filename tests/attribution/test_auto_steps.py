"""`n_steps="auto"`: enough nodes and no more, by the sum and by each component."""

from dataclasses import replace

import pytest
import torch

from igap import integrated_gradients, load_model
from igap.attribution.integrated_gradients import _double_nodes, along_path
from igap.components import SITES
from igap.engine.batching import AdaptiveBatch
from igap.engine.decoder import read
from igap.engine.forward import Suffix
from igap.engine.open_pairs import contrast
from igap.engine.rounding import rounding_of

FINE = 96
"""Nodes that leave the layers of these models off by less than 1e-6 of some logits, where the bounds are 1e-5."""


def doubled(function, bound=1e-3):
    """Effects and nodes for F of two components from (0, 0) to (1, 1), one pair, one position."""
    start, end = torch.zeros(1, 1, 1, 2, dtype=torch.float64), torch.ones(1, 1, 1, 2, dtype=torch.float64)
    tried = []

    def along(nodes, few):
        assert few == [0]
        tried.append(nodes)
        return along_path(function, start, end, nodes, "gausslegendre", AdaptiveBatch(1000))[:, 0]

    whole = (function(end) - function(start))[:, 0]
    effect, nodes, enough = _double_nodes(
        along, whole, *(torch.tensor([x], dtype=torch.float64) for x in (bound, 1e-6))
    )
    return effect[0, 0], nodes.item(), enough.item(), tried


def test_a_polynomial_that_few_nodes_integrate_exactly_needs_one_doubling_to_show_it():
    effect, nodes, enough, tried = doubled(lambda rows: (rows[..., 0] ** 5 + 2 * rows[..., 1])[:, :, 0])
    torch.testing.assert_close(effect, torch.tensor([1.0, 2.0], dtype=torch.float64), atol=1e-6, rtol=0)
    assert (nodes, enough, tried) == (6, True, [3, 6])


def test_errors_that_cancel_in_the_sum_are_not_taken_for_completeness():
    # The two components' errors are equal and opposite at any number of nodes: the delta is always 0.
    def function(rows):
        return (torch.tanh(30 * (rows[..., 0] - 0.5)) - torch.tanh(30 * (rows[..., 1] - 0.5)))[:, :, 0]

    effect, nodes, enough, _ = doubled(function)
    exact = 2 * torch.tanh(torch.tensor(15.0, dtype=torch.float64))
    torch.testing.assert_close(effect, torch.stack([exact, -exact]), atol=1e-3, rtol=0)
    assert nodes > 24
    assert enough


def test_a_jump_ends_where_more_nodes_change_nothing():
    # The derivative of a step is 0 wherever a node falls: no number of nodes is enough.
    _, _, enough, tried = doubled(lambda rows: (rows[..., 0] + (rows[..., 1] > 0.3))[:, :, 0])
    assert tried == [3, 6, 12]
    assert not enough


def test_rounding_that_no_node_mends_ends_it():
    # Beside 4096 float32 has steps of 2^-11: half of the first component's way is lost, its gradient is not.
    def function(rows):
        return ((2.0**-12 * rows[..., 0] + 4096).float() - 4096 + rows[..., 1])[:, :, 0].double()

    effect, _, enough, tried = doubled(function, bound=1e-5)
    torch.testing.assert_close(effect, torch.tensor([2.0**-12, 1.0], dtype=torch.float64), atol=1e-6, rtol=0)
    assert tried == [3, 6, 12]
    assert not enough


def test_only_the_pairs_that_are_not_yet_enough_get_more_nodes():
    tried = []

    def along(nodes, few):
        tried.append((nodes, few))
        # Pair 0 is exact at once, of pair 1 the error halves, of pair 2 it stays and nothing moves.
        errors = torch.tensor([0.0, 1 / nodes, 0.5])[few]
        return (1 + errors)[:, None, None]

    bound, rounding = torch.full((3,), 0.03), torch.full((3,), 1e-6)
    effect, nodes, enough = _double_nodes(along, torch.ones(3), bound, rounding)
    assert tried == [(3, [0, 1, 2]), (6, [0, 1, 2]), (12, [1, 2]), (24, [1]), (48, [1])]
    assert nodes.tolist() == [6, 48, 12]
    assert enough.tolist() == [True, True, False]
    torch.testing.assert_close(effect[:, 0, 0], torch.tensor([1.0, 1 + 1 / 48, 1.5]))


def test_a_kink_ends_at_the_most_nodes():
    # Its error falls with the nodes, and never fast enough: 1e-5 is asked for, beyond rounding.
    _, _, enough, tried = doubled(lambda rows: (100 * rows[..., 0] + (rows[..., 1] - 0.3).relu())[:, :, 0], bound=1e-8)
    assert tried == [3 * 2**k for k in range(9)]
    assert not enough


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "ioi-mini"])
@pytest.mark.parametrize("site", SITES)
def test_every_layer_is_complete_to_the_tolerance_and_near_a_fine_quadrature(small, pair, architecture, site):
    model = small(architecture)
    fine = integrated_gradients(model, pair, site, n_steps=FINE)
    for tolerance in (1e-2, 1e-5):
        found = integrated_gradients(model, pair, site, n_steps="auto", tolerance=tolerance)
        bound = (tolerance * found.layer_effect.abs()).clamp(min=1.2e-5 * max(1, abs(found.gap)))
        assert (found.delta.abs() <= bound).all()
        assert ((found.effect - fine.effect).abs().amax(1) <= bound).all()
        assert {int(n) for n in found.n_steps} <= {3 * 2**k for k in range(1, 9)}


def test_a_smaller_tolerance_takes_more_nodes_and_only_where_they_are_needed(small, pair):
    rough, fine = (
        integrated_gradients(small("ioi-mini"), pair, "heads", n_steps="auto", tolerance=t).n_steps for t in (0.1, 1e-6)
    )
    assert (fine >= rough).all()
    assert (fine > rough).any()
    assert len(set(fine.tolist())) > 1


@pytest.mark.parametrize("architecture", ["llama", "ioi-mini"])
def test_a_tolerance_of_the_gap_is_met_by_every_layer_whatever_its_own_effect(small, pair, architecture):
    model = small(architecture)
    fine = integrated_gradients(model, pair, "heads", n_steps=FINE)
    found = integrated_gradients(model, pair, "heads", n_steps="auto", tolerance=1e-2, tolerance_of="gap")
    bound = 1e-2 * abs(found.gap)
    assert found.converged.all()
    assert (found.delta.abs() <= bound).all()
    assert ((found.effect - fine.effect).abs() <= bound).all()
    if architecture == "llama":  # its layers have four times the effect of the gap
        of_layer = integrated_gradients(model, pair, "heads", n_steps="auto", tolerance=1e-2, tolerance_of="layer")
        assert (found.n_steps > of_layer.n_steps).any()


@pytest.mark.parametrize("site", SITES)
def test_the_rounding_measured_bounds_that_of_float32_and_is_no_more_than_some_of_it(pair, site):
    """Against the same weights and activations in float64."""
    single, double = (load_model(dtype=dtype) for dtype in ("float32", "float64"))
    with contrast(single, pair) as question, torch.no_grad():
        run = question.base
        exact = Suffix(
            read(double),
            question.readout,
            replace(
                run,
                residual=tuple(stream.double() for stream in run.residual),
                activations={of: tuple(a.double() for a in layers) for of, layers in run.activations.items()},
            ),
            question.first,
        )
        bound = rounding_of(question, site, AdaptiveBatch(3))[0]
        for layer in range(question.n_layers):
            ends = torch.stack(question.ends(site, layer), 1)
            ours, theirs = question.function(site, layer)(ends), exact.function(site, layer)(ends.double())
            error = ((ours[:, 1] - ours[:, 0]) - (theirs[:, 1] - theirs[:, 0])).abs()
            assert error <= bound[layer]
    assert (bound.diff() <= 0).all()
    assert bound[0] <= 1e-4  # 10 logits, which a float32 has to 1e-6, after 4 blocks


def test_layers_that_the_most_nodes_do_not_integrate_are_marked(small, pair):
    """ReLU's kinks: of OPT's first layer 768 nodes are not enough, of the others 192 are."""
    options = {"n_steps": "auto", "tolerance": 1e-2, "tolerance_of": "gap"}
    other = replace(pair, clean=pair.clean.replace("After", "milk"), corrupted=pair.corrupted.replace("After", "milk"))
    found = integrated_gradients(small("opt"), [pair, other], "heads", **options)
    alone = integrated_gradients(small("opt"), pair, "heads", **options)
    assert alone.n_steps.tolist() == [768, 192, 192]
    assert alone.converged.tolist() == [False, True, True]
    assert torch.equal(found.pairs[0].converged, alone.converged)
    assert torch.equal(found.pairs[0].n_steps, alone.n_steps)
    assert (found.pairs[1].n_steps < alone.n_steps).any(), "each pair has its own nodes, and its own effects with them"
    torch.testing.assert_close(found.pairs[0].effect, alone.effect, atol=1e-10, rtol=0)
    assert found.pairs[1].converged.all(), "its gap, and so its bound, is ten times as large"
    assert torch.equal(found.converged, found.pairs[0].converged)
    assert integrated_gradients(small("opt"), pair, "heads").converged is None


def test_bfloat16_ends_where_its_rounding_hides_the_nodes(pair):
    found = integrated_gradients(
        load_model(dtype="bfloat16"), pair, "heads", n_steps="auto", tolerance=1e-4, tolerance_of="gap"
    )
    assert not found.converged.any()
    assert found.n_steps.tolist() == [48] * 4
