"""From numbers in several clean prompts to one a term, by hand; and why none of them is divided by the gap."""

import numpy as np
import pytest
import torch
from helpers.searched import ABBA, PAIRS, TEMPLATE, searched

from igap.counterfactual.config import Constraints
from igap.counterfactual.objective.evaluator import Evaluator
from igap.counterfactual.objective.objective import Objective, aggregate_over_pairs, signs
from igap.counterfactual.spaces.base import Space
from igap.counterfactual.spaces.template import SLOTS, bind_template, generate_clean_prompts, template_space
from igap.counterfactual.target import Target
from igap.engine.activations import borrow

MEASURED = {
    "ap": torch.tensor([[1.0, 3.0, -2.0, 6.0], [-4.0, 1.0, -1.0, -2.0]]),
    "ig": torch.tensor([[2.0, 3.5, 0.0, 5.0], [-4.0, -1.0, 1.0, -2.0]]),
    "curve": torch.tensor([[0.5, -0.5, 1.0, 1.0], [-1.0, -1.0, -1.0, 1.0]]),
    "mean_other_heads": torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 4.0, 0.0]]),
    "fluency": torch.tensor([[-1.0, -2.0, 0.0, 1.0], [0.0, -8.0, 0.0, 0.0]]),
    "corrupted": torch.tensor([[2.0, -2.0, 3.0, 1.0], [-1.0, -1.0, -1.0, -1.0]]),
    "edits": torch.tensor([[1.0, 2.0, 1.0, 2.0], [6.0, 6.0, 6.0, 6.0]], dtype=torch.float64),
    "downstream": torch.tensor([[40.0, 40.0, 20.0, 60.0], [60.0, 100.0, 60.0, 100.0]], dtype=torch.float64),
    "percentile": torch.tensor([[90.0, 100.0, 95.0, 95.0], [10.0, 20.0, 30.0, 40.0]], dtype=torch.float64),
}
"""Two candidates in four clean prompts: AP of mean 2 and -1.5."""


def values(*terms, **settings):
    return Objective(terms, **settings).values(MEASURED).tolist()


@pytest.mark.parametrize(
    ("sign", "aggregate", "expected"),
    [
        ("raise", "mean", [2, -1.5]),
        ("drop", "mean", [-2, 1.5]),
        ("abs", "mean", [2, 1.5]),
        ("raise", "min", [-2, -4]),
        ("drop", "min", [-6, -1]),
        ("abs", "min", [-2, -1]),  # in the direction of the candidate's mean, which single prompts may go against
        ("abs", "cvar", [-2, -1]),  # the worst quarter of four is one
    ],
)
def test_an_effect_has_the_sign_that_is_asked_for_and_is_aggregated_over_clean_prompts(sign, aggregate, expected):
    assert values("ap", sign=sign, aggregate=aggregate) == [[each] for each in expected]


@pytest.mark.parametrize(("n", "worst"), [(1, 1), (2, 1), (4, 1), (7, 2), (8, 2), (12, 3), (32, 8)])
def test_cvar_is_the_mean_of_the_worst_quarter(n, worst):
    row = torch.randperm(n).double()
    assert aggregate_over_pairs(row[None], "cvar").item() == pytest.approx(np.arange(worst).mean())
    assert aggregate_over_pairs(row[None], "min").item() == 0
    assert aggregate_over_pairs(row[None], "mean").item() == pytest.approx((n - 1) / 2)


def test_disagreement_is_the_size_of_the_difference_in_each_prompt():
    assert values("disagreement") == [[(1 + 0.5 + 2 + 1) / 4], [1]]
    for sign in ("drop", "raise", "abs"):
        assert values("disagreement", sign=sign, aggregate="min") == [[0.5], [0]]
    assert Objective(("disagreement",)).effects(MEASURED).tolist() == [[1, 0.5, 2, 1], [0, 2, 2, 0]]


def test_selectivity_takes_a_penalty_from_the_signed_effect_of_each_prompt():
    assert values("selectivity") == [[pytest.approx(2 - 0.25)], [1.5 - 1]]
    assert values("selectivity", penalty=2.0) == [[pytest.approx(2 - 0.5)], [1.5 - 2]]
    assert values("selectivity", penalty=0.0, sign="drop") == [[-2], [1.5]]
    assert values("selectivity", aggregate="min") == [[pytest.approx(-2.3)], [1 - 4]]
    assert torch.equal(Objective(("selectivity",)).effects(MEASURED), MEASURED["ap"])


def test_other_terms_are_means_and_have_their_own_direction():
    terms = ("curve", "ig", "fluency", "edits", "downstream")
    objective = Objective(terms, aggregate="min", sign="drop")
    assert objective.values(MEASURED).tolist() == [[-1, -5, -0.5, 1.5, 40], [-1, -1, -2, 6, 80]]
    assert objective.directions == ["maximize", "maximize", "maximize", "minimize", "minimize"]
    assert values("ig", "edits") == [[2.625, 1.5], [1.5, 6]]
    assert objective.values(MEASURED).dtype == np.float64
    assert torch.equal(objective.effects(MEASURED), MEASURED["curve"])
    assert torch.equal(Objective(("ig", "ap")).effects(MEASURED), MEASURED["ig"])


def test_an_effect_that_is_not_a_number_stays_none():
    measurements = {"ap": torch.tensor([[1.0, float("nan")], [1.0, 2.0]])}
    found = [Objective(aggregate=how).values(measurements)[:, 0] for how in ("mean", "cvar", "min")]
    assert [np.isnan(each).tolist() for each in found] == [[True, False]] * 3


def test_only_what_terms_and_bounds_are_made_of_is_asked_for():
    assert Objective().needs == ["ap"]
    assert Objective(("ig",)).needs == ["ap", "ig"]
    assert Objective(("disagreement", "edits")).needs == ["ap", "ig"]
    assert Objective(("selectivity", "fluency")).needs == ["ap", "mean_other_heads", "fluency"]
    assert Objective(("curve",)).needs == ["ap", "curve"]
    assert Objective(constraints=Constraints(max_corrupted=1.0)).needs == ["ap", "corrupted"]
    both = Constraints(min_corrupted=1.0, min_fluency=-1.0)
    assert Objective(constraints=both).needs == ["ap", "fluency", "corrupted"]
    assert Objective(constraints=Constraints(max_percentile=99)).needs == ["ap"]


def test_a_bound_is_broken_by_how_much_the_mean_is_beyond_it():
    bounds = Constraints(min_corrupted=0.0, max_corrupted=0.5, min_fluency=-1.0, max_percentile=90, max_downstream=50)
    found = {name: each.tolist() for name, each in Objective(constraints=bounds).violations(MEASURED).items()}
    assert found == {
        "min_corrupted": [-1, 1],
        "max_corrupted": [0.5, -1.5],
        "min_fluency": [-0.5, 1],
        "max_percentile": [5, -65],
        "max_downstream": [-10, 30],
    }
    assert Objective().violations(MEASURED) == {}


def test_the_sign_of_abs_is_one_for_all_prompts():
    assert signs(MEASURED["ap"], "abs").tolist() == [[1], [-1]]
    assert signs(MEASURED["ap"], "drop").tolist() == [[-1], [-1]]
    assert signs(MEASURED["ap"], "raise").tolist() == [[1], [1]]


@pytest.mark.parametrize(
    ("sign", "aggregate"),
    [("raise", "mean"), ("drop", "mean"), ("abs", "mean"), ("raise", "min"), ("drop", "min"), ("abs", "cvar")],
)
def test_gains_are_the_objectives_own(linear, sign, aggregate):
    """In a linear model gains are exact wherever the same prompt stays the worst and the mean keeps its sign."""
    objective = Objective(sign=sign, aggregate=aggregate)
    compared = 0
    with borrow(linear):
        found = Evaluator(linear, searched("rules", PAIRS, linear.tokenizer), Target((("heads", 1, 2),)))
        space: Space = found.bound.space
        for anchor in [(1, 2, 3, 1, 1), (3, 1, 2, 0, 0)]:
            first_order_scores = objective.first_order_scores(found, anchor)
            before = found.effects([anchor])
            worst = (before * signs(before, sign)).argmin()
            for slot, gain in enumerate(first_order_scores):
                swaps = [(*anchor[:slot], option, *anchor[slot + 1 :]) for option in range(space.sizes[slot])]
                after = found.effects(swaps)
                signed = after * signs(after, sign)
                same = signs(after, sign)[:, 0] == signs(before, sign)[0, 0]
                if aggregate != "mean":
                    same &= signed.argmin(1) == worst
                change = objective.values({"ap": after})[:, 0] - objective.values({"ap": before})[0, 0]
                np.testing.assert_allclose(gain[same], change[same], atol=1e-8)
                compared += int((np.abs(change[same]) > 1e-4).sum())
    assert compared > 5


def test_a_quotient_by_the_gap_picks_a_tiny_gap_and_an_objective_in_logits_a_large_effect(ioi_mini):
    """Among 600 random corrupted prompts the largest |AP / gap| is one by next to nothing, of a small effect."""
    tokenizer = ioi_mini.tokenizer
    space = template_space(TEMPLATE, SLOTS, ABBA, tokenizer, prepend_bos=True)
    bound = bind_template(space, generate_clean_prompts(ABBA, TEMPLATE, 1, 0, tokenizer), tokenizer, prepend_bos=True)
    rng = np.random.default_rng(0)
    candidates = [tuple(int(rng.integers(size)) for size in space.sizes) for _ in range(600)]
    with borrow(ioi_mini):
        evaluator = Evaluator(ioi_mini, bound, Target((("heads", 1, 3),)))
        measurements = evaluator.numbers(bound.tokens(candidates), ["ap", "corrupted"])
    effects = measurements["ap"][:, 0].abs().numpy()
    gaps = (evaluator.clean.logit_diff - measurements["corrupted"][:, 0]).abs().numpy()
    quotients = effects / gaps
    trapped, best = int(quotients.argmax()), int(Objective().values(measurements)[:, 0].argmax())
    assert quotients[trapped] > 10
    assert gaps[trapped] < 0.05 * np.median(gaps)
    assert effects[trapped] < 0.5 * effects[best]
    assert effects[best] == effects.max()
    assert quotients[best] < 1


@pytest.mark.parametrize(("item", "known"), [("sign", "drop, raise, abs"), ("aggregate", "mean, cvar, min")])
def test_a_sign_or_an_aggregate_that_there_is_not_is_refused(item, known, unchecked):
    with pytest.raises(ValueError, match=f"^{item}: got 'median', wanted one of {known}"):
        Objective(**{item: "median"})
