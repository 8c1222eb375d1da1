"""A map from the store is the map that was computed: every number, and what the numbers are."""

import functools

import pytest
import torch

from igap import PromptPair, activation_patching
from igap.attribution import atp_star
from igap.attribution.caching import cached_maps
from igap.cli.compose import compose_one
from igap.inputs.prompts import tokenize
from igap.storage.cache import ResultCache, use_cache


@pytest.mark.parametrize("n_pairs", [1, 2])
@pytest.mark.parametrize(("name", "method"), [("ap", activation_patching), ("atp_star", atp_star)])
def test_a_kept_map_is_the_computed_one_bit_for_bit(small, pair, tmp_path, n_pairs, name, method):
    model = small("gpt2")
    other = PromptPair(pair.corrupted, pair.clean, " Mary", " John", min_gap=0.5)
    pairs = [pair, other][:n_pairs]
    tokens = [tokenize(model, one) for one in pairs]
    asked = pairs if n_pairs > 1 else pair
    computed = method(model, asked, "neurons")
    least = [one.min_gap for one in computed.pairs or [computed]]
    calls = []

    def compute():
        calls.append(1)
        return {f"part.{name}": method(model, asked, "neurons")}

    for _ in range(2):
        with use_cache(ResultCache(tmp_path, {})):
            (found,) = cached_maps("kind", "neurons", compose_one([]).config, tokens, least, compute).values()
        assert calls == [1]
        for one, same in zip((found, *found.pairs), (computed, *computed.pairs), strict=True):
            assert torch.equal(one.effect, same.effect)
            assert one.effect.dtype == torch.float64
            assert (one.gap, one.min_gap, one.method, one.site, one.signed) == (
                same.gap, same.min_gap, same.method, same.site, same.signed,
            )  # fmt: skip
            assert torch.equal(one.score.isnan(), same.score.isnan())
            assert torch.equal(one.score.nan_to_num(), same.score.nan_to_num())


@pytest.mark.parametrize("change", ["site", "direction", "pair"])
def test_another_question_is_another_map(small, pair, tmp_path, change):
    model = small("gpt2")
    site, direction, asked = "heads", "noising", pair
    with use_cache(ResultCache(tmp_path, {})):
        for _ in range(2):
            computed = activation_patching(model, asked, site, direction=direction)
            compute = functools.partial(dict, ap=computed)
            config = compose_one([f"direction={direction}"]).config
            found = cached_maps("ap", site, config, [tokenize(model, asked)], [0.0], compute)
            assert torch.equal(found["ap"].effect, computed.effect)
            if change == "site":
                site = "neurons"
            elif change == "direction":
                direction = "denoising"
            else:
                asked = PromptPair(pair.clean, pair.corrupted, pair.distractor, pair.answer, min_gap=0.0)
