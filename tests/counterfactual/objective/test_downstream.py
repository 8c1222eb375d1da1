"""How unusual what follows a patch is: against formulas written out, plain hooks, and a pathway made by hand."""

import numpy as np
import pytest
import torch
from helpers.searched import ABBA, PAIRS, searched
from scipy.spatial.distance import mahalanobis

from igap import PromptPair, search
from igap.bench.blueprint import ONE, Blueprint
from igap.components import hook_name
from igap.counterfactual.config import Constraints
from igap.counterfactual.objective.downstream import Downstream, fit_downstream, fit_stream
from igap.counterfactual.objective.evaluator import Evaluator
from igap.counterfactual.objective.typicality import MIN_PROMPTS, fit_distribution
from igap.counterfactual.output.flatten import flatten
from igap.counterfactual.target import Target
from igap.counterfactual.validation.results import WhatFollows
from igap.engine.activations import borrow

NAMES = ("John", "Mary", "Tom", "Anna")


def ledoit_wolf(rows):
    """The shrunk covariance, term by term as the paper has it."""
    n, d = rows.shape
    off = rows - rows.mean(0)
    sample = sum(np.outer(row, row) for row in off) / n
    m = np.trace(sample) / d
    d2 = ((sample - m * np.eye(d)) ** 2).sum() / d
    b2 = min(d2, sum(((np.outer(row, row) - sample) ** 2).sum() / d for row in off) / n**2)
    return b2 / d2 * m * np.eye(d) + (d2 - b2) / d2 * sample


@pytest.mark.parametrize(("n", "d"), [(24, 9), (40, 60)], ids=["more prompts", "more dimensions"])
def test_distances_are_mahalanobis_distances_by_the_published_shrinkage(n, d):
    rng = np.random.default_rng(0)
    streams = rng.normal(size=(2 * n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)
    new = rng.normal(size=(5, d)) @ rng.normal(size=(d, d))
    fitted = fit_stream(torch.from_numpy(streams))
    made, others = streams[::2], streams[1::2]
    precision = np.linalg.inv(ledoit_wolf(made))

    def distance(row):
        return mahalanobis(row, made.mean(0), precision) ** 2

    ordinary = sorted(map(distance, others))
    np.testing.assert_allclose(fitted.distances.sort().values, ordinary, rtol=1e-8)
    assert fitted.percentile(torch.from_numpy(others)).sort().values == pytest.approx(100 * np.arange(n) / n)
    wanted = [100 * sum(each < distance(row) for each in ordinary) / n for row in new]
    assert fitted.percentile(torch.from_numpy(new)) == pytest.approx(wanted)
    logs = np.log(list(map(distance, others)))
    spreads = [(np.log(distance(row)) - logs.mean()) / logs.std(ddof=1) for row in new]
    np.testing.assert_allclose(fitted.standardize(torch.from_numpy(new)), spreads, rtol=1e-6)
    for i, rest in ((i, np.delete(logs, i)) for i in (0, n - 1)):
        assert fitted.leave_one_out()[i].item() == pytest.approx((logs[i] - rest.mean()) / rest.std(ddof=1))


def test_an_ordinary_run_is_above_95_in_5_cases_of_100_however_many_layers():
    """Draws of 12 layers, each the one before and noise: with the largest percentile of a layer it is 3 in 10."""
    n_layers, n_prompts, n_new, d = 12, 120, 400, 6
    above, above_somewhere = [], []
    for seed in range(12):
        noise = torch.randn(
            n_prompts + n_new, n_layers, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        streams = noise.cumsum(1) ** 3  # heavy tails, and layers that go together
        fitted = Downstream(0, tuple(fit_stream(own) for own in streams[:n_prompts].unbind(1)))
        above.append((fitted.of_runs(streams[n_prompts:]) > 95).double().mean())
        above_somewhere.append((fitted.by_layer(streams[n_prompts:]).amax(1) > 95).double().mean())
    assert 0.035 < np.mean(above) < 0.065
    assert np.mean(above_somewhere) > 0.2
    assert fitted.of_runs(streams[:1] * 10) == 100


def test_roundings_of_a_stream_that_never_changes_are_no_distance():
    same = torch.full((40, 8), 3.0)
    fitted = fit_stream(same)
    assert fitted.percentile(torch.nextafter(same[0], torch.tensor(9.0))) == 0
    assert fitted.percentile(same[0] + 0.01) == 100


@pytest.mark.parametrize("hooks", [False, True], ids=["suffix", "hooks"])
@pytest.mark.parametrize(
    "target",
    [
        Target((("heads", 1, 2),)),
        Target((("neurons", 1, 7),), "S2"),
        Target((("heads", 0, 1), ("resid_post", 1, 0)), "diff"),
        Target((("resid_post", 1, 0),)),
    ],
    ids=lambda target: target.name,
)
def test_streams_are_those_of_the_whole_model_with_the_component_swapped(small, target, hooks):
    model = small("gpt2")
    bound = searched("words", PAIRS[:2], model.tokenizer)
    with borrow(model):
        evaluator = Evaluator(model, bound, target, hooks=hooks)
        assert evaluator.route == ("hooks" if hooks else "suffix")
        tokens = bound.tokens([(1, 1, 0, 0, 0, 0), (2, 2, 1, 2, 1, 1)])
        streams = evaluator.later_streams(tokens, lambda each: each)
        unpatched = evaluator.streams_of_others(bound.clean)
        noise = torch.randn(40, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        near_then_far = [fit_stream(noise + own + 100 * i) for i, own in enumerate(streams[0, 0])]
        largest = Downstream(0, tuple(near_then_far)).standardize_patched(evaluator, tokens)
    assert near_then_far[0].percentile(streams[0, 0, 0]) == 0
    assert largest[0, 0] == 100
    layers = range(min(layer for _, layer, _ in target.members), 3)
    names = [f"blocks.{layer}.hook_out" for layer in layers]
    for pair, clean in enumerate(bound.clean):
        for candidate in range(2):
            other = tokens[0, candidate]
            _, source = model.run_with_cache(other[None])
            where = {"S2": torch.arange(len(clean)) == 10, "diff": other != clean}.get(target.span, clean == clean)

            def swap(activation, hook, source=source, where=where):
                for site, layer, index in target.members:
                    if hook_name(site, layer) == hook.name:
                        if site == "resid_post":
                            activation[0, where] = source[hook.name][0, where]
                        else:
                            activation[0, where, index] = source[hook.name][0, where, index]
                return activation

            made = {}

            def note(activation, hook, made=made):
                made[hook.name] = activation[0, -1].clone()

            hooked = [(hook_name(site, layer), swap) for site, layer, _ in target.members]
            model.run_with_hooks(clean[None], fwd_hooks=[*hooked, *((name, note) for name in names)])
            wanted = torch.stack([made[name] for name in names])
            assert torch.allclose(streams[candidate, pair], wanted, atol=1e-10)
            assert (wanted - unpatched[pair]).abs().amax() > 1e-4
        _, cache = model.run_with_cache(clean[None])
        assert torch.allclose(unpatched[pair], torch.stack([cache[name][0, -1] for name in names]), atol=1e-10)


def prompt(first, second, subject):
    return f"After {first} and {second} went to the store, {subject} gave a bottle of milk to"


@pytest.fixture(scope="module")
def pathway():
    """Heads 0.0 and 0.1 read the first name, as -2 to 2, and 0.1 the second one too, as -1 to 1.

    So they never differ by more than 1. Where they differ by more than 2, neuron L1.N0 fires.
    """
    made = Blueprint(2, 3, 1)
    for name, value in zip(NAMES, (1.0, -1.0, 2.0, -2.0), strict=True):
        made.word(name, first=value, second=value / 2)
    made.head("0.0", ({"first": 1.0}, {"own": 1.0}), matches=made.look_at(2))
    made.head("0.1", ({"first": 1.0}, {"others": 1.0}), matches=made.look_at(2))
    made.head("0.2", ({"second": 1.0}, {"others": 1.0}), matches=made.look_at(4))
    made.neuron("L1.N0", {"others": 4.0, "own": -4.0, ONE: -8.0}, {"alarm": 1.0})
    made.constant(0, always=1.0)
    made.logit("John", own=1.0, alarm=1.0, always=4.0)
    return made.load()


ORDINARY = [
    prompt(first, second, subject) for first in NAMES for second in NAMES for subject in NAMES if first != second
]


def test_a_pathway_that_wakes_up_off_the_manifold_is_flagged_where_the_activation_is_ordinary(pathway):
    every = pathway.to_tokens(ORDINARY)[torch.randperm(len(ORDINARY), generator=torch.Generator().manual_seed(0))]
    corrupted = pathway.to_tokens(prompt("Anna", "Mary", "Mary"))[None]
    _, cache = pathway.run_with_cache(every)
    assert cache[hook_name("neurons", 1)].max() == 0, "no ordinary prompt wakes it"
    bound = searched("words", (ABBA,), pathway.tokenizer)
    by_target = {}
    with borrow(pathway):
        for members in ((0,), (0, 1)):
            evaluator = Evaluator(pathway, bound, Target(tuple(("heads", 0, head) for head in members)))
            effect = evaluator.numbers(corrupted, ["ap"])["ap"].item()
            own = fit_distribution(evaluator, every).percentile(evaluator, corrupted).item()
            downstream = fit_downstream(evaluator, every)
            unpatched = downstream.of_runs(evaluator.streams_of_others(bound.clean)).max()
            by_target[members] = effect, own, downstream.standardize_patched(evaluator, corrupted)[0, 0], unpatched
    effect, own, after, unpatched = by_target[0,]
    assert effect == pytest.approx(-3 + 2), "own falls by 3, and 4 x (0.5 + 2) - 8 = 2 wake up"
    assert own < 95 < after
    assert unpatched < 95
    effect, own, after, _ = by_target[0, 1]
    assert effect == pytest.approx(-3), "both move, so that they agree, and nothing wakes up"
    assert max(own, after) < 95
    assert fit_downstream(evaluator, every[: MIN_PROMPTS - 1]) is None


def test_a_search_reports_bounds_and_weighs_what_follows(pathway):
    reference = [PromptPair(text, prompt("cat", "dog", "it"), " John", " Mary", min_gap=0.0) for text in ORDINARY]
    space = {name: ["=keep"] for name in ("second", "subject", "place", "verb", "object")}
    space["first"] = ["=keep", *NAMES[1:]]
    asked = {"space": space, "until": 8, "clean_n": 1, "heldout_n": 0, "reference": reference, "sign": "drop"}
    free = search(pathway, ABBA, "0.0", **asked)
    assert free.best_value == pytest.approx(2), "Mary: own falls from 1 to -1, 1.5 below the others"
    assert free.validation.plausibility.downstream == WhatFollows(100.0, layer=0, at_layer=100.0, unpatched=100 / 24)
    assert flatten(free.validation)["best/downstream_layer"] == 0
    assert free.verdict.endswith(
        "its activation is ordinary (percentile 17), but the residual stream after it is unusual (percentile 100, "
        "farthest after layer 0; 4 without the patch)."
    )
    bounded = search(pathway, ABBA, "0.0", **asked, constraints=Constraints(max_downstream=95))
    assert [list(trial.violated) for trial in bounded.trials] == [[], ["max_downstream"], [], ["max_downstream"]]
    assert bounded.best_value == pytest.approx(-1), "Tom: own rises to 2, within what others do"
    pareto = search(pathway, ABBA, "0.0", **asked, objective=["ap", "downstream"])
    percentiles = [95 + trial.violations["max_downstream"] for trial in bounded.trials]
    assert [trial.values[1] for trial in pareto.trials] == pytest.approx(percentiles)
    assert [row.values for row in pareto.validation.front] == [
        pytest.approx((0, 100 / 24)), pytest.approx((2, 100))
    ]  # fmt: skip
