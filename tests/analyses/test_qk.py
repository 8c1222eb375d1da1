"""The analysis of queries, keys and values: its table, numbers and sentences, and the reason where there are none."""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.checkpoints import save_checkpoint
from helpers.opened import follow

from igap import PromptPair, compare, load_model
from igap.analyses import qk
from igap.attribution.qk_patching import qk_patching
from igap.components import component_names
from igap.storage.cache import ResultCache, use_cache


def test_a_run_writes_a_row_a_head_and_node_with_scores_and_effects(result, written):
    table = pd.read_csv(written / "qk.csv", dtype={"name": str})
    assert list(table["name"]) == 3 * component_names("heads", 3, 4)
    assert list(table["node"]) == ["q"] * 12 + ["k"] * 12 + ["v"] * 12
    found = result.findings["qk"]
    for node in ("q", "k", "v"):
        rows = table[table["node"] == node]
        for method, one in found.maps[node].items():
            np.testing.assert_allclose(rows[method], one.score.flatten(), rtol=1e-6)
            np.testing.assert_allclose(rows[f"effect_{method}"], one.effect.flatten(), rtol=1e-6)
    assert (table[["atp_star", "effect_atp_star"]] >= 0).all(axis=None)
    assert (table["ap"] < 0).any()


def test_the_summary_says_how_far_each_cheap_method_is_from_ap(result):
    found = result.findings["qk"]
    summary = found.summary()
    for node, kind in (("q", "queries"), ("k", "keys"), ("v", "values")):
        for method in ("atp", "atp_qk", "atp_star"):
            comparison = compare(found.maps[node][method], found.maps[node]["ap"])
            assert summary[f"{kind}/{method}/pearson"] == comparison.pearson
            assert f"{kind}/{method}/missed@10" in summary
    assert [line.split(":")[0] for line in found.sentences()] == [
        "queries, ATP against AP", "queries, ATP_QK against AP", "queries, ATP_STAR against |AP|",
        "keys, ATP against AP", "keys, ATP_QK against AP", "keys, ATP_STAR against |AP|",
        "values, ATP against AP", "values, ATP_QK against AP", "values, ATP_STAR against |AP|",
    ]  # fmt: skip


def test_heads_that_share_keys_have_one_row_a_key_value_head(result, tmp_path):
    save_checkpoint("llama", 2, tmp_path, num_key_value_heads=2)
    model = load_model(str(tmp_path))
    found = follow("qk", result.config, model, result.pairs, result.maps, result.comparisons)
    table = found.tables()["qk"]
    assert list(table["node"]) == ["q"] * 8 + ["k"] * 4 + ["v"] * 4
    assert list(table["name"][8:12]) == component_names("heads", 2, 2)


def test_jobs_of_a_sweep_share_the_maps_bit_for_bit(result, small, tmp_path, monkeypatch):
    compared = result.config, small(), result.pairs, result.maps, result.comparisons
    calls = []
    monkeypatch.setattr(qk, "qk_patching", lambda *given, **asked: calls.append(1) or qk_patching(*given, **asked))
    with use_cache(ResultCache(tmp_path, {})):
        first, again = (follow("qk", *compared) for _ in range(2))
    assert calls == [1]
    for node, by_method in first.maps.items():
        for method, one in by_method.items():
            same = again.maps[node][method]
            assert torch.equal(one.effect, same.effect)
            assert (
                (one.method, one.gap, one.signed)
                == (same.method, same.gap, same.signed)
                == (method, one.gap, method != "atp_star")
            )


def test_pairs_of_two_lengths_have_no_table_and_say_why(result, small):
    pair = PromptPair(
        "John and Mary went to the store, Mary gave it to",
        "After John and Mary went to the store, John gave it to", " John", " Mary", min_gap=0.0, align="end",
    )  # fmt: skip
    found = follow("qk", result.config, small(), (pair,), result.maps, result.comparisons)
    reason = "prompts of different lengths have no query for every query"
    assert found.summary() == {"qk": None, "qk/reason": reason}
    assert found.tables() == {}
    assert found.sentences() == (f"queries, keys and values: not patched, {reason}",)


def test_a_model_of_one_layer_has_every_method_but_atp_star(result, checkpoint):
    model = load_model(str(checkpoint("gpt2", n_layers=1)))
    config = result.config
    found = follow("qk", config, model, result.pairs, result.maps, result.comparisons)
    assert list(found.maps["q"]) == ["ap", "atp", "atp_qk"]
    assert "queries/atp_star/pearson" not in found.summary()


def test_settings_and_several_pairs_reach_the_methods(many, checkpoint):
    model = load_model(str(checkpoint("gpt2")))
    compared = model, many.pairs, many.maps, many.comparisons
    told = []
    found = follow("qk", many.config, *compared, lambda done, total: told.append((done, total)))
    mirrored = follow("qk", many.config.model_copy(update={"direction": "denoising"}), *compared)
    assert len(found.maps["q"]["ap"].pairs) == 5
    assert told[-1] == (5, 5)
    assert (found.maps["q"]["ap"].effect - mirrored.maps["q"]["ap"].effect).abs().max() > 1e-3
    np.testing.assert_allclose(found.tables()["qk"]["ap"][:12], many.findings["qk"].maps["q"]["ap"].score.flatten())
    assert found.tables()["qk"]["ap"].isna().sum() == 0, "the pair with a small gap is left out"
    assert found.maps["k"]["atp"].pairs[2].score.isnan().all()
    assert summary_differs(found, mirrored)


def summary_differs(one, other):
    return one.summary()["queries/atp/pearson"] != pytest.approx(other.summary()["queries/atp/pearson"])
