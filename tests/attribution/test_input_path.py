"""IG and conductance along the inputs' path, against the model written out by hand and against Captum, in float64."""

import dataclasses
import itertools

import captum.attr
import numpy as np
import pytest
import torch
from helpers.by_hand import ByHand
from helpers.checkpoints import save_beside

from igap import PromptPair, integrated_gradients
from igap.attribution.conductance import conduct, integrate_inputs
from igap.attribution.maps import ignore
from igap.attribution.methods import METHODS
from igap.attribution.over_pairs import attribute_metrics
from igap.bench import circuits
from igap.cli.compose import compose_one
from igap.components import PLACES
from igap.engine.open_pairs import contrast, open_pairs
from igap.inputs.prompts import tokenize

EXACT = 1e-10
"""float64, sums of a few thousand terms of size 1."""
PAIR = PromptPair("After John and Mary gave Mary a", "After Tom and Mary gave John a", " John", " Mary", min_gap=0.0)
SAME_PASS = PromptPair("Then Anna and Tom gave Tom it", "Then John and Tom gave Anna dog", " Tom", " it", min_gap=0.0)
SHORTER = dataclasses.replace(PAIR, corrupted="After Anna gave Tom a", align="end")
SMOOTH = {"initializer_range": 0.12}
"""Weights so small that 60 nodes are enough."""
HOOKED = ("heads", "k", "resid_pre", "mlp_out")
CASES = {
    "gpt2": ("gpt2", {"n_inner": 12, **SMOOTH}),
    "grouped": ("llama", {"intermediate_size": 12, "num_key_value_heads": 2, **SMOOTH}),
    "parallel": ("gpt_neox", {"intermediate_size": 12, **SMOOTH}),
}


pytestmark = pytest.mark.usefixtures("whole_in_float64")


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A model of igap, the same weights on plain modules, and the sites that it has."""
    architecture, settings = CASES[request.param]
    model, plain = save_beside(tmp_path_factory.mktemp(architecture), architecture, **settings)
    return model, plain, [site for site in PLACES if (site, request.param) != ("resid_mid", "parallel")]


class ByPath(ByHand):
    """The model where the first block reads a point of the straight path between the inputs of two prompts."""

    def __init__(self, plain, tokens, direction="noising"):
        super().__init__(plain, tokens.answer, tokens.distractor)
        self.here, there = (tokens.clean, tokens.corrupted)[:: 1 if direction == "noising" else -1]
        self.ends = self.read(self.here), self.read(there)
        self.step = self.ends[1]["resid_pre", 0] - self.ends[0]["resid_pre", 0]

    def at(self, alphas, leaves=None):
        """F of each alpha, and the activations of every site and layer, with `leaves` added to them: a row each."""
        read = {}

        def edit(site, layer, activation):
            if (site, layer) == ("resid_pre", 0):
                activation = self.ends[0][site, layer] + alphas[:, None, None, None] * self.step
            read[site, layer] = activation
            return activation if leaves is None else activation + leaves[site, layer]

        return self.f(self.here.expand(len(alphas), -1), edit), read

    def integrals(self, n_nodes, *, moving):
        """By site and layer `[pos, component]`: a sum over Gauss-Legendre nodes of dF/da times the step or da/dalpha"""
        places = list(self.ends[0])
        nodes, weights = (torch.tensor(each) / 2 for each in np.polynomial.legendre.leggauss(n_nodes))
        alphas = nodes + 0.5
        leaves = [torch.zeros_like(self.ends[0][place]).repeat(n_nodes, 1, 1, 1).requires_grad_() for place in places]
        values, _ = self.at(alphas, dict(zip(places, leaves, strict=True)))
        slopes = torch.autograd.grad(values.sum(), leaves)
        rates = [self.ends[1][place] - self.ends[0][place] for place in places]
        if moving:  # exactly, by automatic differentiation; a row depends on its own alpha alone
            read = lambda a: tuple(self.at(a)[1].values())  # noqa: E731
            _, rates = torch.autograd.functional.jvp(read, alphas, torch.ones_like(alphas))
        return {
            place: torch.einsum("r,rpc->pc", weights, (slope * rate).sum(-1)).detach()
            for place, slope, rate in zip(places, slopes, rates, strict=True)
        }


def positions_of(method, model, pair, site, **options):
    with contrast(model, pair, sites=(site,)) as opened:
        return method(opened, site, positions="each", **options)[0]


def by_every_route(method, model, sites, direction, **options):
    """Site, route and map by position; by hooks of some sites of the clean run."""
    for route, few in (("suffix", sites), *[("hooks", HOOKED)] * (direction == "noising")):
        with contrast(model, PAIR, route=route, sites=few, direction=direction) as opened:
            for site in few:
                yield site, route, method(opened, site, positions="each", **options)[0]


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_ig_along_the_inputs_is_a_plain_loop_over_nodes_at_every_site_position_and_route(case, direction):
    model, plain, sites = case
    hand = ByPath(plain, tokenize(model, PAIR), direction)
    integrals = hand.integrals(4, moving=False)
    for site, route, fast in by_every_route(integrate_inputs, model, sites, direction, n_steps=4):
        slow = torch.stack([integrals[site, layer] for layer in range(3)])
        assert slow.abs().max() > 1e-4
        torch.testing.assert_close(fast.effect, slow, atol=EXACT, rtol=0, msg=f"{site} {route}")


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_conductance_is_the_integral_with_the_exact_derivative_at_every_site_position_and_route(case, direction):
    model, plain, sites = case
    hand = ByPath(plain, tokenize(model, PAIR), direction)
    integrals = hand.integrals(60, moving=True)
    for site, route, fast in by_every_route(conduct, model, sites, direction, n_steps=60):
        slow = torch.stack([integrals[site, layer] for layer in range(3)])
        assert slow.abs().max() > 1e-4
        torch.testing.assert_close(fast.effect, slow, atol=EXACT, rtol=0, msg=f"{site} {route}")


def test_conductance_is_captums_in_the_limit_of_many_steps(case):
    """Captum takes each gradient at one end of a step: with both ends and steps halved twice the errors cancel."""
    model, plain, _ = case
    hand = ByPath(plain, tokenize(model, PAIR))
    if hand.kind != "gpt2":
        pytest.skip("the module whose output is the neurons' activation is the nonlinearity in GPT-2")
    wte, shape = plain.transformer.wte, hand.step.shape
    texts = [wte(tokens) for tokens in (hand.here, tokenize(model, PAIR).corrupted)]

    def f(embedded):
        logits = plain(inputs_embeds=embedded).logits[:, -1]
        return logits[:, hand.answer] - logits[:, hand.distractor]

    layer = captum.attr.LayerConductance(f, plain.transformer.h[1].mlp.act)

    def trapezoid(n_steps):
        there, back = (
            layer.attribute(b, a, n_steps=n_steps, method="riemann_trapezoid") for a, b in (texts, texts[::-1])
        )
        return (there - back)[0] / 2

    table = [trapezoid(n).detach() for n in (64, 128, 256, 512)]
    for order in (4, 16, 64):
        table = [(order * fine - coarse) / (order - 1) for coarse, fine in itertools.pairwise(table)]
    ours = positions_of(conduct, model, PAIR, "neurons", n_steps=60).effect[1]
    assert shape[1] == ours.shape[0]
    torch.testing.assert_close(ours, table[0], atol=1e-8, rtol=0)


@pytest.mark.parametrize("metric", ["logit_diff", "kl"])
def test_conductance_of_the_residual_stream_sums_to_the_gap_in_every_layer(case, metric):
    model, _, sites = case
    for site in [site for site in sites if site.startswith("resid")]:
        with contrast(model, PAIR, sites=(site,), metric=metric) as opened:
            (made,) = conduct(opened, site, n_steps=60)
            (other,) = integrate_inputs(opened, site, n_steps=60)
        torch.testing.assert_close(
            made.effect[:, 0], torch.full((3,), -made.gap, dtype=torch.float64), atol=1e-8, rtol=0
        )
        if site != "resid_pre":
            assert (other.effect[:2, 0] + made.gap).abs().max() > 1e-5


def test_in_the_first_block_the_inputs_path_is_igs_own(case):
    model, _, _ = case
    own = integrated_gradients(model, PAIR, "resid_pre", n_steps=40, positions="each").effect[0]
    for method in (integrate_inputs, conduct):
        torch.testing.assert_close(
            positions_of(method, model, PAIR, "resid_pre", n_steps=40).effect[0], own, atol=1e-6, rtol=0
        )


@pytest.mark.parametrize("method", [integrate_inputs, conduct])
def test_of_several_pairs_and_metrics_it_is_each_ones_own_however_they_are_batched(case, method):
    model, plain, _ = case
    metrics = ["logit_diff", "prob"]
    alone = {}
    for metric, pair in itertools.product(metrics, (PAIR, SAME_PASS)):
        with contrast(model, pair, metric=metric) as opened:
            alone[metric, pair] = method(opened, "heads", n_steps=7)[0].effect
    batches = [{}, {"batch_size": 1}, {"batch_size": 5}, {"memory_gib": 1e-6}]
    for options in batches if plain.config.model_type == "gpt2" else batches[2:3]:
        with open_pairs(model, [PAIR, SAME_PASS], metric=metrics) as opened:
            together = attribute_metrics(
                lambda c, advance, options=options: method(c, "heads", advance, n_steps=7, **options), opened, "heads"
            )
        for made, metric in zip(together, metrics, strict=True):
            for part, pair in zip(made.pairs, (PAIR, SAME_PASS), strict=True):
                torch.testing.assert_close(part.effect, alone[metric, pair], atol=1e-12, rtol=0)


def test_of_prompts_of_two_lengths_the_path_ends_where_partners_meet(case):
    model, _, _ = case
    with contrast(model, SHORTER, sites=("resid_pre", "resid_post")) as opened:
        start, end = opened.inputs()
        f = opened.function("resid_pre", 0)
        with torch.no_grad():
            whole = (f(end[:, None, :, None]) - f(start[:, None, :, None]))[0, 0]
        assert (start[:, :2] == end[:, :2]).all() or opened.first > 0
        for site in ("resid_pre", "resid_post"):
            effect = conduct(opened, site, n_steps=80)[0].effect
            torch.testing.assert_close(effect[:, 0], whole.expand(3), atol=1e-8, rtol=0)


def test_where_a_neuron_is_switched_off_on_the_way_its_conductance_is_exact_with_few_nodes():
    """The polynomial through a kinked activation ends where the activation does."""
    circuit = circuits()["and"]
    with contrast(circuit.load(), circuit.pair) as opened:
        effect = conduct(opened, "neurons", n_steps=4)[0].effect
    assert effect[1, 0].item() == pytest.approx(circuit.truth.effects()["L1.N0"], abs=1e-9)


@pytest.mark.parametrize("name", ["ig_inputs", "conductance"])
def test_progress_counts_up_to_all_components_and_the_nodes_are_the_runs(small, pair, name):
    model, told = small(), []
    config = compose_one(["ig.n_steps=6", "batch_size=2"]).config
    with contrast(model, pair) as opened:
        made = METHODS[name].attribute(opened, "heads", config, told.append)
        method = {"ig_inputs": integrate_inputs, "conductance": conduct}[name]
        torch.testing.assert_close(made[0].effect, method(opened, "heads", ignore, n_steps=6)[0].effect)
    assert told == sorted(told)
    assert len(set(told)) > 2
    assert told[-1] == 12
