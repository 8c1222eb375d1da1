"""The error of an estimator: of every member, prompt and span, against the public methods and plain hooks."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.reference import HOOKS, Reference
from helpers.searched import PAIRS, searched
from helpers.small_searches import opened

import igap
from igap import InputError, PromptPair
from igap.attribution.integrated_gradients import integrate_path
from igap.counterfactual.config import SearchConfig, check_terms
from igap.counterfactual.objective.cache import CachedEvaluator
from igap.counterfactual.objective.errors import find_estimator
from igap.counterfactual.objective.evaluator import Evaluator
from igap.counterfactual.objective.objective import Objective
from igap.counterfactual.objective.patch import resolve
from igap.counterfactual.samplers.registry import samplers_for
from igap.counterfactual.target import locate_target
from igap.counterfactual.trials.storages import open_storage
from igap.engine.activations import borrow
from igap.engine.open_pairs import contrast
from igap.inputs.prompts import tokenize
from igap.models.families import widths_of_model


def evaluator(model, name, n_pairs=2, **options):
    bound = searched("rules", PAIRS[:n_pairs], model.tokenizer)
    target = locate_target(name, model.cfg.n_layers, widths_of_model(model), each=True)
    with borrow(model):
        return Evaluator(model, bound, resolve(target, tokenize(model, PAIRS[0])), **options)


def some(space, n=2):
    """Candidates far apart, that with most words changed first."""
    return list(itertools.islice(space.candidates(), 1, None, max(1, space.size // 4)))[::-1][:n]


def texts(found, candidates):
    """The pair of each candidate and each clean prompt that it changes."""
    for row, candidate in enumerate(candidates):
        for column, (pair, text) in enumerate(zip(found.bound.pairs, found.bound.texts(candidate), strict=True)):
            if text != pair.clean:
                yield row, column, PromptPair(pair.clean, text, pair.answer, pair.distractor, min_gap=0.0)


@pytest.mark.parametrize(
    ("name", "estimator", "method", "options"),
    [
        ("all", "atp", igap.attribution_patching, {}),
        ("all", "atp_star", igap.atp_star, {}),
        ("0.1+2.3", "ig_zero", igap.integrated_gradients, {"baseline": "zero"}),
        ("0.1+2.3@13-15", "ig", igap.integrated_gradients, {"positions": {"span": [13, 14, 15]}}),
        ("1.2@diff", "atp", igap.attribution_patching, {"positions": "diff"}),
    ],
)
def test_errors_are_the_differences_of_two_public_maps(small, name, estimator, method, options):
    model = small("gpt2")
    found = evaluator(model, name)
    candidates = some(found.bound.space)
    numbers = found.estimates(found.bound.tokens(candidates), estimator)
    at = {"positions": options["positions"]} if "positions" in options else {}
    places = [member[1:] for member in found.target.members]
    for row, column, pair in texts(found, candidates):
        estimate, ap = method(model, pair, **options).effect, igap.activation_patching(model, pair, **at).effect
        assert ap.abs().max() > 1e-4
        for which, effect in enumerate((estimate, ap)):
            effect = effect[:, 0] if effect.ndim == 3 else effect
            expected = torch.stack([effect[place] for place in places])
            torch.testing.assert_close(numbers[row, column, which].to(expected), expected, atol=1e-10, rtol=0)


def test_of_layers_that_are_not_asked_for_nothing_is_said(small, pair):
    with contrast(small("gpt2"), pair) as moved:
        ((some,), (every,)) = (integrate_path(moved, "heads", n_steps="auto", layers=layers) for layers in ([1], None))
    assert torch.equal(some.effect[1], every.effect[1])
    assert (some.delta[1], some.n_steps[1]) == (every.delta[1], every.n_steps[1])
    for layer in (0, 2):
        assert some.effect[layer].isnan().all()
        assert some.delta[layer].isnan()
        assert (some.n_steps[layer], some.converged[layer]) == (0, False)


def test_atp_and_ap_are_those_of_plain_hooks_and_the_clean_prompt_itself_has_none(small):
    model = small("gpt2")
    found = evaluator(model, "1.2", 1)
    candidate = next(each for each in found.bound.space.candidates() if len(found.bound.changed_slots(each)) == 3)
    tokens = torch.cat([found.bound.tokens([candidate]), found.bound.clean[:1, None]], 1)
    numbers = found.estimates(tokens, "atp")[:, 0, :, 0]
    ((_, _, pair),) = texts(found, [candidate])
    plain = Reference(model, *pair.texts)
    hook = HOOKS["heads"].format(1)
    leaf = plain.cache["clean"][hook].clone().requires_grad_()
    (slope,) = torch.autograd.grad(plain.f("clean", hook, leaf), leaf)
    moved = (plain.cache["corrupted"][hook] - plain.cache["clean"][hook])[:, :, 2]
    assert numbers[0, 0].item() == pytest.approx((moved * slope[:, :, 2]).sum().item(), abs=1e-10)
    assert numbers[0, 1].item() == pytest.approx(plain.activation_patching("heads")[1, 2].item(), abs=1e-10)
    assert numbers[1].tolist() == [0, 0]
    # The corrupted run up to layer 1 of 3, and the clean one with the patch from there on: 2/3 each, of the positions
    # from the first changed one on. AtP's gradients are the clean run's.
    n_pos = tokens.shape[-1]
    assert found.cost == pytest.approx(2 * (2 / 3 + 2 / 3) * (n_pos - found.first) / n_pos)


def test_the_value_is_the_largest_error_over_members_of_the_aggregate_over_prompts():
    signed = torch.tensor([[[1.0, -2.0], [-1.0, 0.0]], [[0.0, 3.0], [0.5, -3.0]]])  # [candidate, pair, member]
    by = {aggregate: Objective(("error",), aggregate=aggregate) for aggregate in ("mean", "min")}
    assert by["mean"].values({"errors": signed}).tolist() == [[1.0], [3.0]]
    assert by["min"].values({"errors": signed}).tolist() == [[1.0], [3.0]]
    assert by["mean"].effects({"errors": signed}).tolist() == [[1.0, 1.0], [3.0, 3.0]]
    assert by["min"].worst(signed).tolist() == [0, 1]
    assert np.isnan(by["mean"].values({"errors": signed * torch.tensor([1.0, torch.nan])})).all()
    assert (by["mean"].needs, Objective(("error", "ap")).needs) == ([], ["ap"])


def test_errors_are_remembered_by_estimator(small, tmp_path):
    found = evaluator(small("gpt2"), "all", 1)
    tokens = found.bound.tokens(some(found.bound.space))
    first, again = (CachedEvaluator(found, tmp_path / "numbers.sqlite", {}) for _ in range(2))
    errors = first.measure(tokens, Objective(("error", "fluency")))["errors"]
    before = found.cost
    assert torch.equal(again.errors(tokens, "atp"), errors)
    assert (found.cost, again.n_computed, again.n_cached) == (before, 0, 2)
    assert not torch.equal(again.errors(tokens, "atp_star"), errors)
    assert (first.n_computed, again.n_computed) == (2, 2)


def test_unsigned_estimates_are_compared_with_magnitudes(small):
    found = evaluator(small("gpt2"), "all", 1)
    tokens = found.bound.tokens(some(found.bound.space))
    estimate, ap = found.estimates(tokens, "atp_star").unbind(2)
    errors = CachedEvaluator(found, None, {}).errors(tokens, "atp_star")
    assert (ap < -1e-4).any()
    torch.testing.assert_close(errors, estimate - ap.abs())


def test_scores_follow_the_worst_member_and_are_0_of_estimators_without_a_cheap_gradient(small):
    found = evaluator(small("gpt2"), "all")
    (candidate,) = some(found.bound.space, 1)
    errors = Objective(("error",))
    scores = errors.first_order_scores(found, candidate)
    signed = CachedEvaluator(found, None, {}).errors(found.bound.tokens([candidate]), "atp")
    place = int(errors.worst(signed)[0])
    weights = signed[0, :, place].sign() / 2
    expected = found.first_order_scores(candidate, weights, place, of_error=True)
    for score, by_hand in zip(scores, expected, strict=True):
        np.testing.assert_allclose(score, by_hand.numpy(), atol=1e-12)
    assert max(abs(score).max() for score in scores) > 1e-5
    zeros = Objective(("error",), estimator="ig").first_order_scores(found, candidate)
    assert [len(each) for each in zeros] == list(found.bound.space.sizes)
    assert not np.concatenate(zeros).any()


def test_without_gradient_the_samplers_that_follow_one_are_refused():
    assert samplers_for(1, gradient=False)[0] == "hybrid"
    assert samplers_for(2, gradient=False)[0] == "nsga2"
    assert set(samplers_for(1)) - set(samplers_for(1, gradient=False)) == {"gradient", "gcg", "adapt"}
    check_terms(("error",), "gradient", "atp")
    with pytest.raises(
        InputError, match=r"search.sampler: got 'gradient' for one objective, the error of ig, which has"
    ):
        check_terms(("error",), "gradient", "ig")
    with pytest.raises(InputError, match="estimator: got 'ig' with objective=ap, wanted objective=error"):
        check_terms(("ap",), "auto", "ig")
    for name in ("ap", "expected_gradients", "foo"):
        with pytest.raises(InputError, match=f"estimator: got '{name}', wanted one of ig, ig_zero, atp, atp_star"):
            find_estimator(name)
    assert "estimator" in SearchConfig.model_fields


def test_an_error_has_no_direction():
    with pytest.raises(InputError, match=r"sign: got drop with objective=error, whose value is .*, wanted"):
        Objective(("error",), sign="drop")


@pytest.mark.parametrize("estimator", ["atp", "ig_zero"])
def test_a_search_finds_a_larger_error_than_chance_and_goes_on_with_its_estimator_only(small, pair, estimator):
    asked = {"storage": open_storage("memory", Path()), "head": "all", "terms": ("error",)}
    search = opened(small("gpt2"), pair, **asked, estimator=estimator)
    search.explore(40, batch=8, control=12)
    trials = search.trials.all()
    random = [trial.value for trial in trials if trial.proposal.source in ("start", "random")]
    assert max(trial.value for trial in trials) > max(random)
    assert search.target.name == "all"
    assert search.distribution is None
    with pytest.raises(InputError, match=f"it has estimator '{estimator}', asked for 'ig'"):
        opened(small("gpt2"), pair, **asked, estimator="ig")
