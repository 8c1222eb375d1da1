"""Sampled Shapley values against a loop over orders on plain modules, and their axioms, in float64."""

import itertools

import pytest
import torch
from helpers.by_hand import ByHand
from helpers.checkpoints import save_beside

from igap import PromptPair
from igap.attribution.shapley import N_ORDERS, sample_orders
from igap.bench import circuits
from igap.engine.open_pairs import contrast, open_pairs
from igap.inputs.prompts import tokenize

EXACT = 1e-11
PAIR = PromptPair("After John and Mary gave Mary a", "After Tom and Mary gave John a", " John", " Mary", min_gap=0.0)
SAME_PASS = PromptPair("Then Anna and Tom gave Tom it", "Then John and Tom gave Anna dog", " Tom", " it", min_gap=0.0)
CASES = {
    "gpt2": ("gpt2", {"n_inner": 12}),
    "grouped": ("llama", {"intermediate_size": 12, "num_key_value_heads": 2}),
}


pytestmark = pytest.mark.usefixtures("whole_in_float64")


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A model of igap, and the same weights on plain modules."""
    architecture, settings = CASES[request.param]
    return save_beside(tmp_path_factory.mktemp(architecture), architecture, **settings)


class Game:
    """F with a set of one layer's components moved, on plain modules."""

    def __init__(self, model, plain, direction="noising"):
        tokens = tokenize(model, PAIR)
        self.hand = ByHand(plain, tokens.answer, tokens.distractor)
        self.here, there = (tokens.clean, tokens.corrupted)[:: 1 if direction == "noising" else -1]
        self.start, self.end = self.hand.read(self.here), self.hand.read(there)

    def values(self, place, sets):
        """F of each set, a row each."""
        rows = self.start[place].repeat(len(sets), 1, 1, 1)
        for row, members in zip(rows, sets, strict=True):
            row[:, list(members)] = self.end[place][0, :, list(members)]
        with torch.no_grad():
            return self.hand.given(self.here, *place, rows).tolist()

    def over(self, place, orders):
        """The mean over these orders of what each component adds."""
        effects = torch.zeros(self.start[place].shape[2], dtype=torch.float64)
        for order in orders:
            values = self.values(place, [order[:i] for i in range(len(order) + 1)])
            for component, (before, after) in zip(order, itertools.pairwise(values), strict=True):
                effects[component] += after - before
        return effects / len(orders)


def made_by(model, site, **options):
    direction, route = options.pop("direction", "noising"), options.pop("route", None)
    with contrast(model, PAIR, sites=(site,), direction=direction, route=route) as opened:
        return sample_orders(opened, site, **options)[0].effect


@pytest.mark.parametrize(("direction", "route"), [("noising", "suffix"), ("noising", "hooks"), ("denoising", "suffix")])
def test_it_is_the_mean_over_the_orders_drawn_and_their_reverses(case, direction, route):
    model, plain = case
    game, n_orders = Game(model, plain, direction), 4
    for site in ("heads", "neurons", "k", "resid_pre"):
        generator = torch.Generator().manual_seed(7)
        width = game.start[site, 0].shape[2]
        slow = []
        for layer in range(3):
            drawn = [torch.randperm(width, generator=generator).tolist() for _ in range(n_orders // 2)]
            slow.append(game.over((site, layer), [*drawn, *(order[::-1] for order in drawn)]))
        fast = made_by(model, site, n_orders=n_orders, seed=7, direction=direction, route=route)
        assert torch.stack(slow).abs().max() > 1e-2
        torch.testing.assert_close(fast, torch.stack(slow), atol=EXACT, rtol=EXACT, msg=site)


def test_with_many_orders_it_is_the_shapley_value_and_with_any_the_sum_is_exact(case):
    model, plain = case
    game = Game(model, plain)
    place = ("heads", 1)
    exact = game.over(place, list(itertools.permutations(range(4))))
    many = made_by(model, "heads", n_orders=3000)[1]
    assert (many - exact).abs().max() < 0.05 * exact.abs().max()
    assert (made_by(model, "heads", n_orders=2)[1] - exact).abs().max() > 1e-4
    nothing, everything = game.values(place, [(), range(4)])
    whole = everything - nothing
    for n_orders in (2, N_ORDERS):
        assert made_by(model, "heads", n_orders=n_orders)[1].sum().item() == pytest.approx(whole, abs=EXACT)


def test_of_several_pairs_it_is_each_ones_own_however_they_are_batched_and_another_seed_draws_others(case):
    model, _ = case
    alone = []
    for pair in (PAIR, SAME_PASS):
        with contrast(model, pair) as opened:
            alone.append(sample_orders(opened, "neurons")[0].effect)
    for batch_size in (None, 1, 5):
        with open_pairs(model, [PAIR, SAME_PASS]) as opened:
            ((_, question),) = opened.contrasts()
            for made, own in zip(sample_orders(question, "neurons", batch_size=batch_size), alone, strict=True):
                torch.testing.assert_close(made.effect, own, atol=1e-12, rtol=0)
            other = sample_orders(question, "neurons", seed=1)[0].effect
            assert (other - alone[0]).abs().max() > 1e-4


def test_gates_are_shared_in_halves_and_what_does_not_move_has_nothing():
    wanted = {"and": [-0.5, -0.5], "or": [-0.5, -0.5], "xor": [0.0, 0.0]}
    for name, effects in wanted.items():
        circuit = circuits()[name]
        with contrast(circuit.load(), circuit.pair) as opened:
            made = sample_orders(opened, "heads", n_orders=2)[0].effect
            assert made[0, :2].tolist() == pytest.approx(effects, abs=1e-9)
            still = ~opened.differs("neurons", 2)[0]
            assert still.any()
            assert (sample_orders(opened, "neurons")[0].effect[2, still] == 0).all()


def test_progress_counts_up_to_all_components(case):
    told = []
    made_by(case[0], "heads", advance=told.append, batch_size=3)
    assert told == sorted(told)
    assert len(set(told)) > 6
    assert told[-1] == 12
