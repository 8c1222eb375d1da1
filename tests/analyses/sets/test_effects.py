"""Sets of components against the models written out by hand, and gates whose interactions are known."""

from itertools import combinations

import numpy as np
import pytest
import torch
from helpers.by_hand import ByHand
from helpers.checkpoints import save_beside
from helpers.handmade import PAIR as GATE_PAIR
from helpers.handmade import gate, two_heads

from igap import InputError, PromptPair, activation_patching, set_effects
from igap.components import parse_component
from igap.engine.component_sets import ComponentSet
from igap.engine.open_pairs import contrast
from igap.engine.positions import find_spans
from igap.inputs.prompts import tokenize
from igap.statistics.coalitions import interactions_of, members_of, shapley_values

EXACT = 1e-10
"""float64, sums of a few thousand terms of size 1."""
CAPTUM = 1e-7
"""Captum keeps the weights of its nodes in float32."""

PAIR = PromptPair("After John and Mary gave Mary a", "After Tom and Mary gave John a", " John", " Mary", min_gap=0.0)
SAME_PASS = PromptPair("Then Anna and Tom gave Tom it", "Then John and Tom gave Anna dog", " Tom", " it", min_gap=0.0)
CASES = {
    "gpt2": ("gpt2", {"n_inner": 12}),
    "grouped": ("llama", {"intermediate_size": 12, "num_key_value_heads": 2}),
    "parallel": ("gpt_neox", {"intermediate_size": 12}),
}
MIXED = "0.1+1.3+L0.N5+1.0+L2.N3"
LATE = "2.2+L1.N7+1.1+2.0"
"""The earliest layer is not the first one."""
OTHERS = "0.1.q+1.1.k+L0.attn_out+L1.mlp_out+0.0.v"
NESTED = "L1.resid_pre+0.3+L1.attn_out+1.2"
"""Heads act through what lies after them: 0.3 through L1.resid_pre, and 1.2 through L1.attn_out."""


pytestmark = pytest.mark.usefixtures("whole_in_float64")


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A model of igap, and the same weights on plain modules."""
    architecture, settings = CASES[request.param]
    return save_beside(tmp_path_factory.mktemp(request.param), architecture, **settings)


class Game:
    """F of a pair with members held at activations, one forward pass of the model by hand at a time."""

    def __init__(self, model, plain, pair, text, direction="noising", where=None, zero=False):
        tokens = tokenize(model, pair)
        self.hand = ByHand(plain, tokens.answer, tokens.distractor)
        self.here, there = (tokens.clean, tokens.corrupted)[:: 1 if direction == "noising" else -1]
        self.start, self.end = self.hand.read(self.here), self.hand.read(there)
        if zero:
            self.end = {place: torch.zeros_like(activation) for place, activation in self.end.items()}
        self.where = list(range(self.here.shape[1])) if where is None else where
        self.members = [parse_component(name) for name in text.split("+")]

    def f(self, held):
        """F with members, by their places, held at `[pos, d]`, at the positions asked for."""

        def edit(site, layer, activation):
            activation = activation.clone()
            for member, value in held.items():
                if self.members[member][:2] == (site, layer):
                    activation[0, self.where, self.members[member][2]] = value[self.where]
            return activation

        return self.hand.f(self.here, edit)[0]

    def at(self, run, member):
        site, layer, index = self.members[member]
        return run[site, layer][0, :, index]

    def effect(self, subset):
        with torch.no_grad():
            return float(self.f({member: self.at(self.end, member) for member in subset}) - self.f({}))

    def integrated(self, n_steps):
        """IG of each member: a loop over Gauss-Legendre nodes."""
        everyone = range(len(self.members))
        starts, ends = ([self.at(run, member) for member in everyone] for run in (self.start, self.end))
        parts = np.zeros(len(self.members))
        for node, weight in zip(*np.polynomial.legendre.leggauss(n_steps), strict=True):
            leaves = [
                (start + (node + 1) / 2 * (end - start)).requires_grad_()
                for start, end in zip(starts, ends, strict=True)
            ]
            gradients = torch.autograd.grad(self.f(dict(enumerate(leaves))), leaves)
            for member, (start, end, gradient) in enumerate(zip(starts, ends, gradients, strict=True)):
                parts[member] += weight / 2 * float(((end - start) * gradient)[self.where].sum())
        return parts


@pytest.mark.parametrize("text", [MIXED, LATE, OTHERS, NESTED])
@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_every_subset_is_one_forward_with_its_members_held_and_ig_a_loop_over_nodes(case, text, direction):
    model, plain = case
    pairs = [PAIR, SAME_PASS] if direction == "noising" else [PAIR]
    ours = set_effects(model, pairs, text, direction=direction, n_steps=4, batch_size=7)
    assert ours.members == tuple(text.split("+"))
    n = len(ours.members)
    assert len(ours.subsets) == 2**n
    for pair, effects, parts in zip(pairs, ours.by_pair, ours.ig_by_pair, strict=True):
        game = Game(model, plain, pair, text, direction)
        expected = [game.effect(subset) for subset in ours.subsets]
        assert effects == pytest.approx(expected, abs=EXACT)
        assert parts == pytest.approx(game.integrated(4), abs=CAPTUM, rel=CAPTUM)
        assert min(abs(effect) for effect in expected[1:]) > 1e-5
    assert abs(ours.interactions[-1]) > 1e-6


def test_what_acts_through_a_member_that_is_moved_does_nothing_more(case):
    model, _ = case
    for route in (None, "hooks"):
        ours = set_effects(model, PAIR, "1.2+L1.attn_out+1.3.q", n_steps=3, route=route)
        by_subset = dict(zip(ours.subsets, ours.by_pair[0], strict=True))
        assert by_subset[0, 1] == pytest.approx(by_subset[1,], abs=EXACT)
        assert by_subset[0, 1, 2] == pytest.approx(by_subset[1,], abs=EXACT)
        assert abs(by_subset[0,]) > 1e-3
        assert ours.ig[0] == ours.ig[2] == pytest.approx(0, abs=EXACT)


def test_by_hooks_positions_and_baseline_are_the_same_forwards(case):
    model, plain = case
    positions = {"middle": [3, 5]}
    for options, how in (
        ({"route": "hooks"}, {}),
        ({"positions": positions}, {"where": [3, 5]}),
        ({"positions": positions, "route": "hooks"}, {"where": [3, 5]}),
        ({"baseline": "zero"}, {"zero": True}),
    ):
        ours = set_effects(model, PAIR, MIXED, n_steps=3, **options)
        game = Game(model, plain, PAIR, MIXED, **how)
        for place in (1, 6, 13, 31):
            assert ours.by_pair[0, place] == pytest.approx(game.effect(ours.subsets[place]), abs=EXACT)
        assert ours.ig == pytest.approx(game.integrated(3), abs=CAPTUM, rel=CAPTUM)
        assert abs(ours.effect) > 1e-3
    assert ours.positions == "all"
    # Of these positions a stream, too, leaves something to move.
    middle = "L1.resid_post+2.1.v+L2.attn_out" + ("" if plain.config.model_type == "gpt_neox" else "+L1.resid_mid")
    for route in (None, "hooks"):
        ours = set_effects(model, PAIR, middle, positions=positions, n_steps=3, route=route)
        game = Game(model, plain, PAIR, middle, where=[3, 5])
        assert ours.by_pair[0] == pytest.approx([game.effect(subset) for subset in ours.subsets], abs=EXACT)
        assert ours.ig == pytest.approx(game.integrated(3), abs=CAPTUM, rel=CAPTUM)


def test_members_alone_are_activation_patching_for_every_metric(small, pair):
    model = small()
    for metric in ("prob", "kl"):
        ours = set_effects(model, pair, "0.1+2.3+1.0", metric=metric, n_steps=2)
        ap = activation_patching(model, pair, metric=metric)
        assert ours.alone == pytest.approx([float(ap.effect[at]) for at in ((0, 1), (2, 3), (1, 0))], abs=EXACT)
        assert (ours.metric, ours.unit) == (metric, ap.unit)
        assert (ours.reading(ours.name) == "undefined") == (metric == "kl")
    denoised = set_effects(model, pair, "0.1+2.3", metric="kl", direction="denoising", n_steps=1)
    assert denoised.reading(denoised.name) != "undefined", "the corrupted run is not the one that F is least in"


def test_parts_of_ig_sum_to_the_effect_of_the_set(small, pair):
    ours = set_effects(small(), pair, "0.1+2.3+1.0+L1.N4", n_steps=64)
    assert ours.ig.sum() == pytest.approx(ours.effect, abs=1e-6 * abs(ours.effect) + CAPTUM)
    assert ours.delta == pytest.approx(ours.ig.sum() - ours.effect)
    assert abs(ours.delta) < 1e-3 * abs(ours.effect)
    rough = set_effects(small(), pair, "0.1+2.3+1.0+L1.N4", n_steps=1)
    assert abs(rough.delta) > 10 * abs(ours.delta), "one node is not enough"


@pytest.mark.parametrize(
    ("kind", "direction", "alone", "together", "interaction", "reading"),
    [
        ("and", "noising", -1, -1, 1, "synergy"),
        ("and", "denoising", 0, 1, 1, "synergy"),
        ("or", "noising", 0, -1, -1, "redundancy"),
        ("or", "denoising", 1, 1, -1, "redundancy"),
    ],
)
def test_gates_are_read_the_same_way_in_both_directions(
    tmp_path, kind, direction, alone, together, interaction, reading
):
    model = gate(tmp_path, kind)
    ours = set_effects(model, GATE_PAIR, "0.0+0.1", direction=direction)
    assert ours.alone == pytest.approx([alone, alone], abs=1e-9)
    assert ours.effect == pytest.approx(together, abs=1e-9)
    assert ours.pairwise == pytest.approx(np.array([[0, interaction], [interaction, 0]]), abs=1e-9)
    assert ours.last == pytest.approx([together - alone] * 2, abs=1e-9)
    assert ours.shapley == pytest.approx([together / 2] * 2, abs=1e-9)
    assert ours.ig == pytest.approx([together / 2] * 2, abs=1e-6)
    assert ours.reading("0.0+0.1") == ours.reading("0.1+0.0") == reading
    said = " ".join(ours.sentences())
    assert f"largest interaction: 0.0+0.1 {interaction:+.3f}: {reading}" in said


def test_heads_that_pull_in_different_directions_have_no_such_reading(tmp_path):
    """F = max(0, 1 + z_0 + z_1)^2: 16, with z_0 moved 36, with z_1 moved 1, with both 9."""
    ours = set_effects(two_heads(tmp_path), GATE_PAIR, "0.1+0.0")
    rounding = 1e-7  # the norms' epsilon, beside which what they norm is nearly nothing
    assert ours.effects == pytest.approx([0, -15, 20, -7], abs=rounding)
    assert ours.interactions == pytest.approx([0, -15, 20, -12], abs=rounding)
    assert ours.shapley == pytest.approx([-21, 14], abs=rounding)
    assert ours.reading("0.0+0.1") == "mixed"
    assert ours.reading("0.0") == "additive"


def test_only_a_subset_that_was_moved_has_a_reading(small, pair):
    ours = set_effects(small(), pair, "0.0+0.1+1.2", n_steps=1)
    assert ours.reading("1.2+0.0+0.1") == ours.reading(ours.name)
    for subset in ("0.0+2.2", "0.0+0.0", "", "0.0+"):
        with pytest.raises(InputError, match=r"^subset: got .*, wanted members of 0\.0\+0\.1\+1\.2 joined by \+"):
            ours.reading(subset)


def test_sampled_values_are_near_the_exact_ones_sum_to_the_effect_and_come_from_the_seed(small, pair):
    model, names = small(), "0.0+0.1+1.2+1.3+2.0+2.1+L0.N3+L1.N8+L2.N1"
    members = [parse_component(name) for name in names.split("+")]
    with contrast(model, pair) as question, torch.no_grad():
        values = ComponentSet(question, tuple(members)).patch(torch.from_numpy(members_of(np.arange(512), 9)))
        exact = (values - values[:, :1])[0].numpy()
    ours = set_effects(model, pair, names, n_orders=300, n_steps=2)
    assert ours.effect == pytest.approx(exact[-1], abs=EXACT)
    assert [len(subset) for subset in ours.subsets] == [0, *[1] * 9, *[2] * 36, *[8] * 9, 9]
    for subset, effect in zip(ours.subsets, ours.effects, strict=True):
        assert effect == pytest.approx(exact[sum(1 << member for member in subset)], abs=EXACT)
    interactions = interactions_of(exact)
    for one, other in combinations(range(9), 2):
        assert ours.pairwise[one, other] == pytest.approx(interactions[(1 << one) + (1 << other)], abs=EXACT)
    assert np.isnan(ours.interactions[-1])
    shapley = shapley_values(interactions)
    assert ours.shapley.sum() == pytest.approx(exact[-1], abs=EXACT)
    low, high = ours.shapley_interval
    assert ((low <= shapley) & (shapley <= high)).sum() >= 7, "95% each, of nine"
    assert (abs(ours.shapley - shapley) <= high - low).all()
    assert (high - low > 0).all()
    again, others = (set_effects(model, pair, names, n_orders=20, n_steps=1, seed=seed) for seed in (0, 1))
    assert (again.shapley == set_effects(model, pair, names, n_orders=20, n_steps=1).shapley).all()
    assert (again.shapley != others.shapley).any()


def test_several_pairs_have_means_and_intervals_over_pairs(small, pair):
    other = PromptPair("Then Tom and Anna went to the store, Anna gave it to",
                       "Then Tom and Anna went to the store, Tom gave it to", " Tom", " Anna", min_gap=0.0)  # fmt: skip
    model, told = small(), []
    both = set_effects(
        model, [pair, other], "0.1+1.2", n_steps=2, on_progress=lambda done, total: told.append((done, total))
    )
    apart = [set_effects(model, each, "0.1+1.2", n_steps=2) for each in (pair, other)]
    assert both.by_pair == pytest.approx(np.stack([each.by_pair[0] for each in apart]), abs=EXACT)
    assert both.effect == pytest.approx(np.mean([each.effect for each in apart]), abs=EXACT)
    assert both.gaps == pytest.approx([each.gaps[0] for each in apart], abs=EXACT)
    assert told[-1] == (8, 8)
    frame = both.subset_frame()
    ends = sorted(each.pairwise[0, 1] for each in apart)
    assert frame.loc["0.1+1.2", ["interaction_low", "interaction_high"]].tolist() == pytest.approx(ends)
    assert frame.index.tolist() == ["0.1", "1.2", "0.1+1.2"]
    assert {"shapley_low", "shapley_high"} <= set(both.to_frame())
    assert "shapley_low" not in apart[0].to_frame()


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ("0.1+0.1", r"components: got '0\.1\+0\.1', wanted each component once, not 0\.1 twice\."),
        ("0.1+00.1", r"not 0\.1 twice"),
        ("", r"components: got '', wanted a head such as 9\.6"),
        ("0.1+", r"; '' is none of these\."),
        ([], r"components: got '', wanted"),
        ("0.9", r"components: got 0\.9, but the model has 4 heads in a layer"),
        ("0.1+L7.N1", r"components: got L7\.N1, but the model has 3 layers"),
        ("ioi:name-movers", r"wanted one of ioi:name-mover, ioi:negative-name-mover, .* for 'ioi:name-movers'\."),
        ("ioi:name-mover", r"got ioi:name-mover, heads of GPT-2 small \(12 layers, 12 heads\), with a model of 3 "),
        ("top3:ap", r"components: got top3:ap, a ranking that only a run has\. Name components"),
        ("top3:atp_star", r"wanted topK:METHOD alone, K from 1 to 64 and METHOD of ig, ap, atp\."),
        ("top65:ap", r"wanted topK:METHOD alone, K from 1 to 64"),
        ("top3:ap+0.1", r"wanted topK:METHOD alone"),
        ("+".join(f"L0.N{i}" for i in range(65)), r"wanted a set of at most 64 components, not 65\."),
    ],
)
def test_what_is_no_set_of_the_model_is_refused_in_one_line(small, pair, components, message):
    with pytest.raises(InputError, match=message) as refused:
        set_effects(small(), pair, components)
    assert "\n" not in str(refused.value)


def test_positions_that_are_not_moved_together_are_refused(small, pair):
    for positions, got in (("each", "each"), ("roles", "roles"), ({"a": [3], "b": [4]}, "2 spans")):
        with pytest.raises(InputError, match=f"positions: got {got}, wanted positions that are moved together"):
            set_effects(small(), pair, "0.1", positions=positions)
    model = small()
    with contrast(model, pair) as question:
        (mask,) = find_spans("last", question.pairs, "noising").masks
    assert mask[0].nonzero().flatten().tolist() == [mask.shape[1] - 1]
    assert set_effects(model, pair, "0.1", positions="last", n_steps=1).positions == "last"
