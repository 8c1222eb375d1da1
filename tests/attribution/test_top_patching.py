"""AP of the k largest components: against AP of all, against simulated subsets, and where no estimate helps."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from igap import (
    InputError,
    PromptPair,
    activation_patching,
    atp_star,
    attribution_patching,
    bound_effects,
    compare,
    integrated_gradients,
    load_model,
)
from igap.attribution.activation_patching import patch_components
from igap.attribution.subset_bound import members_of, random_groups, upper_limits
from igap.engine.open_pairs import contrast
from igap.inputs.prompts import tokenize

K = 10
ROUNDING = 1e-5  # float32: rows of a pass are added up in another order where there are other rows


def mirrored(pair):
    return PromptPair(pair.corrupted, pair.clean, pair.distractor, pair.answer)


@pytest.fixture(scope="module")
def mini():
    return load_model()


@pytest.fixture(scope="module")
def exact(mini, pair):
    return activation_patching(mini, pair, "neurons")


@pytest.fixture(scope="module")
def made(mini, pair):
    return activation_patching(mini, pair, "neurons", top=K)


def first(effect, k=K):
    return set(effect.abs().nan_to_num(0).flatten().topk(k).indices.tolist())


def test_the_largest_effects_are_those_of_patching_everything_and_others_are_missing(exact, made):
    known = ~made.effect.isnan()
    assert 3 * K <= known.sum() < 100
    torch.testing.assert_close(made.effect[known], exact.effect[known], atol=ROUNDING, rtol=0)
    assert first(made.effect) == first(exact.effect)
    assert made.top.is_certain
    assert made.has_scores
    assert made.score.isnan().equal(~known)


def test_the_map_says_what_is_left_out_how_large_it_is_at_most_and_what_it_took(exact, made):
    top, left_out = made.top, made.effect.isnan()
    assert top.k == K
    assert top.n_left_out == left_out.sum()
    assert top.n_exact == 2048
    assert 3 * K + 200 <= top.n_passes <= 0.2 * top.n_exact
    assert top.least == pytest.approx(exact.effect.abs().flatten().topk(K).values[-1].item(), abs=ROUNDING)
    largest = exact.effect[left_out].abs().max().item()
    assert largest <= top.bound < 2 * largest
    assert f"exact effects of the {K} largest in {top.n_passes} of 2,048 passes" in str(made)
    assert "(95%): these are the largest (95%)" in repr(made)
    assert "nan" not in repr(made).lower()


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_of_several_pairs_the_largest_are_those_of_the_mean_in_either_direction(mini, pair, direction):
    pairs = [pair, mirrored(pair)]
    whole = activation_patching(mini, pairs, "neurons", direction=direction)
    found = activation_patching(mini, pairs, "neurons", top=K, direction=direction, seed=1)
    known = ~found.effect.isnan()
    assert found.top.is_certain
    assert first(found.effect) == first(whole.effect)
    torch.testing.assert_close(found.effect[known], whole.effect[known], atol=ROUNDING, rtol=0)
    for mine, other in zip(found.pairs, whole.pairs, strict=True):
        assert mine.top == found.top
        torch.testing.assert_close(mine.effect[known], other.effect[known], atol=ROUNDING, rtol=0)
    assert whole.effect[~known].abs().max() <= found.top.bound


def test_the_same_seed_gives_the_same_bound_and_another_one_another(mini, pair, made):
    again = activation_patching(mini, pair, "neurons", top=K, seed=0)
    assert again.top == made.top
    assert activation_patching(mini, pair, "neurons", top=K, seed=1).top.bound != made.top.bound


def misleading(logits, pair):
    """The logit difference, whose gradient is said to be that of another token's logit: estimates are of that."""
    difference = logits[..., pair.answers[0]] - logits[..., pair.distractors[0]]
    other = logits[..., 0]
    return difference.detach() + other - other.detach()


@pytest.mark.parametrize("seed", range(2))
def test_where_the_estimate_is_wrong_the_map_says_that_it_is_not_certain_and_the_bound_holds(mini, pair, exact, seed):
    wrong = attribution_patching(mini, pair, "neurons", metric=misleading)
    assert abs(stats.spearmanr(wrong.effect.abs().flatten(), exact.effect.abs().flatten()).statistic) < 0.95
    found = activation_patching(mini, pair, "neurons", top=K, metric=misleading, seed=seed)
    left_out = found.effect.isnan()
    assert left_out.sum() > 1000
    torch.testing.assert_close(found.effect[~left_out], exact.effect[~left_out], atol=ROUNDING, rtol=0)
    assert first(found.effect) != first(exact.effect)
    assert exact.effect[left_out].abs().max() <= found.top.bound
    assert not found.top.is_certain
    assert "NOT certain: one that was left out may be among them" in str(found)


def test_a_tolerance_counts_from_the_smallest_of_the_largest_on(mini, pair):
    strict = activation_patching(mini, pair, "neurons", top=K, metric=misleading)
    short = strict.top.bound - strict.top.least
    for tolerance, is_certain in ((0.9 * short, False), (1.1 * short, True)):
        loose = activation_patching(mini, pair, "neurons", top=K, metric=misleading, tolerance=tolerance)
        assert loose.top == replace(strict.top, tolerance=tolerance)
        assert loose.top.is_certain == is_certain


def test_few_components_are_all_patched(mini, pair):
    found, whole = activation_patching(mini, pair, "heads", top=5), activation_patching(mini, pair, "heads")
    assert found.effect.equal(whole.effect)
    assert (found.top.bound, found.top.n_left_out, found.top.n_passes) == (0, 0, 32)
    assert found.top.is_certain
    assert "all components were patched" in str(found.top)


def test_of_chosen_components_alone_the_effects_are_exact_and_others_missing_unless_they_do_not_move(small, pair):
    model = small("gpt2", "processed")
    whole = activation_patching(model, pair, "neurons").effect
    chosen = torch.rand(whole.shape) < 0.2
    with contrast(model, pair, sites=("neurons",)) as question:
        (some,) = patch_components(question, "neurons", chosen=chosen)
        assert some.effect[chosen].allclose(whole[chosen], atol=1e-12, rtol=0)
        assert some.effect[~chosen & (whole != 0)].isnan().all()
        start = torch.zeros_like(question.base.tokens, dtype=torch.bool)
        start[:, 0] = True  # which is the same token in both prompts: nothing moves there
        (still,) = patch_components(question.at(start), "neurons", chosen=chosen)
    assert still.effect.equal(torch.zeros_like(whole))


def test_a_comparison_is_over_what_was_patched(mini, pair, made, exact):
    ig = integrated_gradients(mini, pair, "neurons", n_steps=5)
    found, known = compare(ig, made), ~made.effect.isnan().numpy()
    x, y = ig.score.numpy()[known], made.score.numpy()[known]
    assert found.n == known.sum()
    assert found.pearson == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-6)
    assert found.spearman == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-6)
    assert np.isnan(found.difference).tolist() == (~known).tolist()
    np.testing.assert_allclose(found.difference[known], y - x, atol=1e-7)
    assert not found.outlier_abs[~known].any()
    large = np.abs(y - x) > 1.96 * np.abs(y - x).std()
    assert found.outlier_abs[known].tolist() == large.tolist()
    assert f", the {found.n} patched" in repr(found)
    assert compare(ig, exact).n == 2048


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"top": 0}, r"top: got 0, wanted .*at least 1"),
        ({"top": 2.5}, r"top: got 2\.5, wanted "),
        ({"top": 5000}, r"top: got 5000, but neurons has 2048 components, wanted fewer\. Leave top out"),
        ({"top": 3, "tolerance": -1.0}, r"tolerance: got -1\.0, wanted .*at least 0"),
        ({"tolerance": 0.1}, r"tolerance: got 0\.1 without top, wanted both\. Say how many: top=100\."),
        ({"top": 3, "positions": "each"}, r"top: got 3 with positions, wanted all positions at once\."),
        ({"top": 3, "site": "resid_pre"}, r"top: got 3 with site=resid_pre, wanted a site of several components"),
        ({"top": 3, "metric": ["prob", "logit"]}, r"top: got 3 with 2 metrics, wanted one: .*\."),
        ({"top": 3, "metric": "kl"}, r"metric: got kl"),
    ],
)
def test_what_has_no_largest_components_is_refused_in_one_line(mini, pair, asked, message):
    with pytest.raises(InputError, match=message) as refused:
        activation_patching(mini, pair, **{"site": "neurons", **asked})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("where", ["of one neuron", "of a group"])
def test_a_metric_that_is_no_number_somewhere_is_refused_and_nothing_counts_as_left_out(mini, pair, exact, where):
    """It is none at one value only, which is not seen before the work: that of the largest effect, or of a group."""
    seen = []

    def difference(logits, pair):
        return logits[..., pair.answers[0]] - logits[..., pair.distractors[0]]

    def recorded(logits, pair):
        seen.extend(difference(logits, pair).flatten().tolist())
        return difference(logits, pair)

    activation_patching(mini, pair, "neurons", top=K, metric=recorded)
    clean = difference(mini(pair.clean)[0, -1], tokenize(mini, pair)).item()
    alone = clean + exact.effect.flatten()
    largest = alone[exact.effect.abs().argmax()].item()
    together = max(seen, key=lambda value: (alone - value).abs().min() * (clean - 1 < value < clean - 0.01))
    bad = largest if where == "of one neuron" else together

    def broken(logits, pair):
        values = difference(logits, pair)
        return values.where((values - bad).abs() > 1e-4, torch.nan)

    with pytest.raises(InputError, match=r"^metric: got NaN or infinity from custom") as refused:
        activation_patching(mini, pair, "neurons", top=K, metric=broken)
    assert ("together" in str(refused.value)) == (where == "of a group")


def test_one_metric_in_a_list_gives_a_dictionary_as_without_top(mini, pair, made):
    by_name = activation_patching(mini, pair, "neurons", top=K, metric=["logit_diff"])
    torch.testing.assert_close(by_name["logit_diff"].effect, made.effect, equal_nan=True)


def test_every_component_is_in_as_many_subsets_as_every_other_once_a_partition():
    groups, n_groups = random_groups(2000, 600, torch.Generator().manual_seed(0))
    members = members_of(groups, n_groups)
    assert members.shape == (2, 250, 2000)  # 2000 // 8 groups
    assert (members.sum(1) == 1).all()
    assert members.sum(2).unique().tolist() == [8]
    assert not groups[0].equal(groups[1])
    assert random_groups(10_000, 1, torch.Generator().manual_seed(0))[1] == 256
    uneven = members_of(*random_groups(1003, 1, torch.Generator().manual_seed(0)))
    assert set(uneven.sum(2).flatten().tolist()) == {8, 9}


@pytest.mark.parametrize("n_subsets", [256, 1024])
def test_a_components_limit_is_below_its_effect_as_often_as_the_doubt_says_and_no_more(n_subsets):
    generator = torch.Generator().manual_seed(0)
    n, doubt, draws = 2048, 0.1, 250
    misses, margins = [], []
    for _ in range(draws):
        effect = torch.randn(n, generator=generator, dtype=torch.float64)
        effect[0] = 40.0  # whose sign no noise turns
        estimate = effect + 0.3 * torch.randn(n, generator=generator, dtype=torch.float64)
        groups, n_groups = random_groups(n, n_subsets, generator)
        changes = members_of(groups, n_groups).double() @ effect
        changes += torch.randn(changes.shape, generator=generator, dtype=torch.float64)  # interactions
        limits = upper_limits(changes, groups, estimate, doubt)
        misses.append(float(limits[0] < 40))
        margins.append(float(limits[0]) - 40)
        assert limits.max() >= effect.abs().max() or misses[-1]
    # Four standard deviations of a share of 250 draws.
    assert np.mean(misses) == pytest.approx(doubt, abs=4 * (doubt * (1 - doubt) / draws) ** 0.5)
    # 1.28 standard errors: of a residual of SD (8 * 0.09 + 1) ** 0.5, n_subsets / 256 times.
    expected = 1.28 * (8 * 0.09 + 1) ** 0.5 / (n_subsets / 256) ** 0.5
    assert np.mean(margins) == pytest.approx(expected, rel=0.15)


def test_the_diagnostic_bounds_what_lies_outside_a_ranking_whatever_ranks(mini, pair, exact):
    star = atp_star(mini, pair, "neurons")
    for ranking in (attribution_patching(mini, pair, "neurons"), star):
        order = ranking.effect.abs().flatten().argsort(descending=True, stable=True)
        outside = exact.effect.flatten()[order[20:]].abs().max()
        for seed in range(2):
            found = bound_effects(mini, pair, ranking, 20, seed=seed)
            assert outside <= found.bound < 2.5 * outside
            assert found.bound == found.limits.nan_to_num(0).max()
            assert set(found.limits.isnan().flatten().nonzero().flatten().tolist()) == set(order[:20].tolist())
            assert 200 <= found.n_subsets <= 300
    sure = bound_effects(mini, pair, star, 20, confidence=0.999)
    assert sure.bound > bound_effects(mini, pair, star, 20).bound


def test_the_diagnostic_refuses_a_ranking_of_something_else(mini, pair, exact):
    with pytest.raises(InputError, match=re.escape("ranking: got a map [4, 512] with top=2048, wanted one [4, 512]")):
        bound_effects(mini, pair, exact, 2048)
    by_position = activation_patching(mini, pair, "heads", positions="each")
    with pytest.raises(InputError, match=r"ranking: got a map \[4, 17, 8\] with top=2, wanted one \[4, 8\]"):
        bound_effects(mini, pair, by_position, 2)
    with pytest.raises(InputError, match=r"top: got 2 with site=resid_pre, wanted a site of several"):
        bound_effects(mini, pair, activation_patching(mini, pair, "resid_pre"), 2)
