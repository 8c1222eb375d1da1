"""How far from ordinary activations are: against scipy's distances, counted by hand."""

import numpy as np
import pytest
import torch
from helpers.searched import ABBA, PAIRS, TEMPLATE, searched
from scipy.spatial.distance import mahalanobis

from igap.components import hook_name
from igap.counterfactual.objective.evaluator import Evaluator
from igap.counterfactual.objective.typicality import MIN_PROMPTS, fit_distribution
from igap.counterfactual.spaces.template import bind_template, template_space
from igap.counterfactual.target import Target
from igap.engine.activations import borrow

KNOWN = "John Mary Tom Anna cat dog it".split()


def prompts(model, n):
    """Prompts of the template, by other names and animals, from the first to the last slot."""
    rng = np.random.default_rng(5)
    texts = []
    for _ in range(n):
        first, second, subject = rng.choice(KNOWN, 3)
        texts.append(f"After {first} and {second} went to the store, {subject} gave a bottle of milk to")
    return model.to_tokens(texts)


def activations(model, tokens, target, first):
    """By plain hooks, `[prompt, pos, d]`."""
    z = (
        model.run_with_cache(tokens)[1][hook_name(target.single[0], target.single[1])][:, first:, target.single[2]]
        .detach()
        .numpy()
    )
    return z if z.ndim == 3 else z[..., None]


def distance(z, made):
    """Mean over positions of squared Mahalanobis distances from prompts `made`, each position's own mean taken off."""
    mean = made.mean(0)
    off = (made - mean).reshape(-1, made.shape[-1])
    covariance = off.T @ off / (len(off) - 1)
    covariance = 0.9 * covariance + 0.1 * np.diag(np.diag(covariance))
    precision = np.linalg.inv(covariance)
    return np.mean([mahalanobis(a, b, precision) ** 2 for a, b in zip(z, mean, strict=True)])


@pytest.mark.parametrize("target", [Target((("heads", 1, 2),)), Target((("neurons", 2, 7),))], ids=["head", "neuron"])
@pytest.mark.parametrize(("kind", "n_pairs"), [("rules", 3), ("words", 3), ("rules", 1)])
def test_a_percentile_is_the_share_of_other_ordinary_prompts_that_are_nearer(small, kind, n_pairs, target):
    model = small("gpt2")
    bound = searched(kind, PAIRS[:n_pairs], model.tokenizer)
    every = prompts(model, 60)
    with borrow(model):
        evaluator = Evaluator(model, bound, target)
        found = fit_distribution(evaluator, every)
        candidates = [tuple(min(i, size - 1) for size in bound.space.sizes) for i in range(4)]
        tokens = bound.tokens(candidates)
        percentiles = found.percentile(evaluator, tokens)
    z = activations(model, every, target, bound.first)
    made, rest = z[::2], z[1::2]
    others = sorted(distance(one, made) for one in rest)
    # 1e-6 of the mean variance is added, so that the covariance has an inverse.
    np.testing.assert_allclose(found.distances, others, rtol=1e-4)
    assert percentiles.shape == (4, n_pairs)
    for i in range(4):
        for j in range(n_pairs):
            own = activations(model, tokens[0 if bound.shared else j, [i]], target, bound.first)[0]
            nearer = sum(each < distance(own, made) for each in others)
            assert percentiles[i, j].item() == pytest.approx(100 * nearer / 30)
    assert len(set(percentiles.flatten().tolist())) > 1


def test_ordinary_prompts_are_ordinary_from_their_first_word_on(small):
    """Slots behind the names leave the names of ordinary prompts as they are."""
    model, target = small("gpt2"), Target((("heads", 1, 2),))
    lists = {name: ["=keep"] for name in ("first", "second", "place", "verb", "object")} | {"subject": ["=keep", "Tom"]}
    bound = bind_template(
        template_space(TEMPLATE, lists, ABBA, model.tokenizer, prepend_bos=True),
        [ABBA],
        model.tokenizer,
        prepend_bos=True,
    )
    assert bound.first == 10
    every = prompts(model, MIN_PROMPTS)
    with borrow(model):
        found = fit_distribution(Evaluator(model, bound, target), every)
    z = activations(model, every, target, 10)
    np.testing.assert_allclose(found.distances, sorted(distance(one, z[::2]) for one in z[1::2]), rtol=1e-4)


def test_other_ordinary_prompts_lie_in_the_middle_and_nonsense_beyond_all(ioi_mini):
    from igap.counterfactual.spaces.template import generate_clean_prompts

    tokenizer, target = ioi_mini.tokenizer, Target((("heads", 3, 1),))
    texts = [one.clean for one in generate_clean_prompts(ABBA, TEMPLATE, 160, 1, tokenizer)]
    bound = searched("prompts", (ABBA,), tokenizer)
    with borrow(ioi_mini):
        evaluator = Evaluator(ioi_mini, bound, target)
        found = fit_distribution(evaluator, ioi_mini.to_tokens(texts[:120]))
        fresh = found.percentile(evaluator, ioi_mini.to_tokens(texts[120:])[None])
        backwards = [" ".join(reversed(text.replace(",", " ,").split())) for text in texts[120:]]
        nonsense = found.percentile(evaluator, ioi_mini.to_tokens(backwards)[None])
    assert 35 < fresh.mean() < 65, "a mean of 40 uniform draws has a standard deviation of 4.6"
    assert nonsense.min() == 100


def test_of_too_few_prompts_nothing_is_said(small):
    model = small("gpt2")
    with borrow(model):
        evaluator = Evaluator(model, searched("rules", PAIRS, model.tokenizer), Target((("heads", 1, 2),)))
        assert fit_distribution(evaluator, prompts(model, MIN_PROMPTS - 1)) is None
        assert fit_distribution(evaluator, prompts(model, MIN_PROMPTS)) is not None


def test_a_component_that_is_the_same_on_all_prompts_has_a_distance(tmp_path):
    from helpers import handmade

    model = handmade.one_still_head(tmp_path)
    with borrow(model):
        evaluator = Evaluator(model, searched("rules", PAIRS, model.tokenizer), Target((("heads", 0, 1),)))
        found = fit_distribution(evaluator, prompts(model, 30))
        percentiles = found.percentile(evaluator, evaluator.bound.tokens([(1, 1, 1, 1, 1)]))
    assert found.distances.tolist() == [0] * 15
    assert torch.equal(percentiles, torch.zeros(1, 3, dtype=torch.float64))
