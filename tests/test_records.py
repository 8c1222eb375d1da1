"""What a run leaves on disk is what it found out, and never looks more finished than it is."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from safetensors.torch import load_file

from igap import records
from igap.sites import SITES, component_names

PLOTS = ["convergence_delta", "jaccard"] + [
    f"{site}_{plot}" for site in SITES for plot in ("heatmap", "scatter", "mean_difference", "difference")
]


def test_a_run_leaves_these_files_and_no_others(written):
    found = sorted(str(path.relative_to(written)) for path in written.rglob("*") if path.is_file())
    assert found == sorted(
        ["summary.json", "attributions.safetensors", "heads.csv", "neurons.csv", *(f"plots/{n}.png" for n in PLOTS)]
    )
    for name in PLOTS:
        image = imread(written / "plots" / f"{name}.png")
        assert image.std() > 0.01, f"{name} is blank"


def test_the_summary_has_the_agreed_names_and_the_results_numbers(result, written):
    summary = json.loads((written / "summary.json").read_text())
    assert summary["gap"] == pytest.approx(result.clean_logit_diff - result.corrupted_logit_diff, abs=1e-12)
    assert summary["clean_logit_diff"] == result.clean_logit_diff
    assert summary["corrupted_logit_diff"] == result.corrupted_logit_diff
    for site in SITES:
        comparison = result.comparisons[site]
        for name in ("pearson", "spearman", "sign_agreement", "bias", "limits_low", "limits_high", "slope"):
            assert summary[f"{site}/{name}"] == getattr(comparison, name)
        assert summary[f"{site}/jaccard@10"] == comparison.jaccard_at(10)
        assert summary[f"{site}/n_outliers"] == comparison.outlier_abs.sum()
        assert summary[f"{site}/max_abs_delta"] == pytest.approx(float(result.maps[site]["ig"].delta.abs().max()))
    assert summary["seed"] == 7
    assert summary["key"] == result.config.key
    for name in ("seconds/ig", "seconds/ap", "seconds/total", "version/torch", "version/transformer-lens"):
        assert summary[name]


def test_a_number_that_is_not_defined_is_null_with_its_reason(result):
    summary = records.summarize(result)
    assert summary["heads/jaccard@30"] is None
    assert summary["heads/jaccard@30/reason"] == "k = 30 is more than the 12 components"
    assert json.dumps(summary, allow_nan=False)
    assert "heads/jaccard@10/reason" not in summary


def test_tensors_are_scores_effects_and_deltas(result, written):
    saved = load_file(written / "attributions.safetensors")
    for site in SITES:
        for method in ("ig", "ap", "atp"):
            found = result.maps[site][method]
            assert np.array_equal(saved[f"{method}.{site}"], found.score)
            assert np.array_equal(saved[f"effect.{method}.{site}"], found.effect)
            np.testing.assert_allclose(found.score * result.gap, found.effect, rtol=1e-5, atol=1e-9)
        assert np.array_equal(saved[f"delta.ig.{site}"], result.maps[site]["ig"].delta)
        assert saved[f"delta.ig.{site}"].shape == (3,)
    assert "delta.ap.heads" not in saved


def test_heads_csv_has_a_row_a_head_with_its_numbers(result, written):
    heads = pd.read_csv(written / "heads.csv", dtype={"name": str})
    assert list(heads["name"]) == component_names("heads", 3, 4)
    assert list(zip(heads["layer"], heads["head"], strict=True)) == [(i, j) for i in range(3) for j in range(4)]
    for method in ("ig", "ap", "atp"):
        np.testing.assert_allclose(heads[method], result.maps["heads"][method].score.flatten(), rtol=1e-6)
        np.testing.assert_allclose(heads[f"effect_{method}"], result.maps["heads"][method].effect.flatten(), rtol=1e-6)
    np.testing.assert_allclose(heads["difference"], heads["ap"] - heads["ig"], atol=1e-9)
    assert list(heads["outlier_abs"]) == list(result.comparisons["heads"].outlier_abs.ravel())
    assert list(heads["outlier_limits"]) == list(result.comparisons["heads"].outlier_limits.ravel())
    flagged = heads[heads["outlier_abs"]]
    by_distance = flagged.loc[flagged["difference"].abs().sort_values(ascending=False).index]
    assert records.outliers(result, "heads") == list(by_distance["name"])


def test_neurons_csv_holds_the_top_neurons_of_either_method(result, monkeypatch):
    monkeypatch.setattr(records, "TOP_NEURONS", 5)
    names = np.array(component_names("neurons", 3, 48))
    top = {
        method: set(names[np.argsort(-result.maps["neurons"][method].effect.abs().flatten().numpy())[:5]])
        for method in ("ig", "ap")
    }
    rows = records.top_neurons(result)
    assert set(rows["name"]) == top["ig"] | top["ap"]
    assert list(rows["effect_ap"].abs()) == sorted(rows["effect_ap"].abs(), reverse=True)


def test_a_failure_while_writing_leaves_no_mark_of_a_finished_run_and_keeps_the_numbers(result, tmp_path, monkeypatch):
    records.prepare(tmp_path)
    monkeypatch.setattr(records, "figures", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        records.write(result, tmp_path)
    assert (tmp_path / "attributions.safetensors").exists()
    assert (tmp_path / "heads.csv").exists()
    assert not (tmp_path / "summary.json").exists()


def test_a_finished_run_is_not_written_over(tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"output: got .*, which holds a finished run \(summary\.json\), wanted another"
    ):
        records.prepare(tmp_path)
    assert (tmp_path / "summary.json").read_text() == "{}"


def test_a_file_half_written_never_takes_the_place_of_a_whole_one(tmp_path):
    path = tmp_path / "heads.csv"
    path.write_text("whole")

    def interrupted(unfinished):
        unfinished.write_text("ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        records._atomically(path, interrupted)
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_scores_that_are_missing_are_missing_on_disk_and_effects_are_not(result, tmp_path):
    config = result.config.model_copy(update={"prompts": result.config.prompts.model_copy(update={"min_gap": 1e6})})
    maps = {
        site: {name: dataclasses.replace(found, min_gap=1e6) for name, found in by_method.items()}
        for site, by_method in result.maps.items()
    }
    records.prepare(tmp_path)
    summary = records.write(dataclasses.replace(result, config=config, maps=maps), tmp_path)
    for name in ("bias", "limits_low", "limits_high"):
        assert summary[f"neurons/{name}"] is None
        assert summary[f"neurons/{name}/reason"] == "a score needs a gap of at least prompts.min_gap"
    heads = pd.read_csv(tmp_path / "heads.csv")
    assert heads[["ig", "ap", "atp", "difference"]].isna().all(axis=None)
    assert heads["effect_ap"].notna().all()
    assert len(list((tmp_path / "plots").glob("*.png"))) == len(PLOTS)
