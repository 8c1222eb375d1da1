"""What a run leaves on disk is what it found out, and never looks more finished than it is."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.small_disk import no_file_above
from helpers.small_gaps import without_scores
from matplotlib.image import imread
from safetensors.torch import load_file

from igap import plots
from igap.analyses.ablation.by_kind import AGAINST, AblationsByKind
from igap.components import SITES, component_names
from igap.errors.failures import Failure
from igap.inputs.prompts import encode_pair
from igap.models.load import read_header
from igap.output import disk, figures, run_tables
from igap.statistics.bootstrap import mean_intervals
from igap.storage.finished import failures_of

PLOTS = ["convergence_delta", "jaccard", "explanation", "interactions", "output_curves"] + [
    f"{site}_{plot}" for site in SITES for plot in ("heatmap", "scatter", "mean_difference", "difference")
]

TABLES = [
    "heads",
    "neurons",
    "screening",
    "qk",
    "explanation",
    "interactions",
    "curves",
    "curves_components",
    "curves_extrema",
]


def test_a_run_leaves_these_files_and_no_others(written):
    found = sorted(str(path.relative_to(written)) for path in written.rglob("*") if path.is_file())
    assert found == sorted(
        [
            "summary.json",
            "config.json",
            "attributions.safetensors",
            "record.safetensors",
            *(f"{name}.csv" for name in TABLES),
            *(f"plots/{name}.png" for name in PLOTS),
        ]
    )
    for name in PLOTS:
        image = imread(written / "plots" / f"{name}.png")
        assert image.std() > 0.01, f"{name} is blank"


def test_several_pairs_leave_what_they_vary_in_more(written, many_written):
    names = [sorted(str(p.relative_to(f)) for p in f.rglob("*") if p.is_file()) for f in (written, many_written)]
    assert sorted([*names[0], "pairs.csv", "ranks.csv", "variance.csv"]) == names[1]


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
    assert summary["key"] == result.key
    for name in ("seconds/ig", "seconds/ap", "seconds/total", "version/torch", "version/transformer-lens"):
        assert summary[name]


def test_a_number_that_is_not_defined_is_null_with_its_reason(result):
    summary = disk.summarize(result)
    assert summary["heads/jaccard@30"] is None
    assert summary["heads/jaccard@30/reason"] == "k = 30 is more than the 12 components"
    assert json.dumps(summary, allow_nan=False)
    assert "heads/jaccard@10/reason" not in summary


def test_tensors_are_scores_effects_and_deltas(result, written):
    saved = load_file(written / "attributions.safetensors")
    for site in SITES:
        for method, gap in (("ig", result.gap), ("ap", result.gap), ("atp", result.gap), ("atp_star", abs(result.gap))):
            found = result.maps[site][method]
            assert np.array_equal(saved[f"{method}.{site}"], found.score)
            assert np.array_equal(saved[f"effect.{method}.{site}"], found.effect)
            np.testing.assert_allclose(found.score * gap, found.effect, rtol=1e-5, atol=1e-9)
        assert np.array_equal(saved[f"delta.ig.{site}"], result.maps[site]["ig"].delta)
        assert saved[f"delta.ig.{site}"].shape == (3,)
    assert "delta.ap.heads" not in saved


def test_heads_csv_has_a_row_a_head_with_its_numbers(result, written):
    heads = pd.read_csv(written / "heads.csv", dtype={"name": str})
    assert list(heads["name"]) == component_names("heads", 3, 4)
    assert list(zip(heads["layer"], heads["head"], strict=True)) == [(i, j) for i in range(3) for j in range(4)]
    for method in ("ig", "ap", "atp", "atp_star"):
        np.testing.assert_allclose(heads[method], result.maps["heads"][method].score.flatten(), rtol=1e-6)
        np.testing.assert_allclose(heads[f"effect_{method}"], result.maps["heads"][method].effect.flatten(), rtol=1e-6)
    np.testing.assert_allclose(heads["difference"], heads["ap"] - heads["ig"], atol=1e-9)
    assert list(heads["outlier_abs"]) == list(result.comparisons["heads"].outlier_abs.ravel())
    assert list(heads["outlier_limits"]) == list(result.comparisons["heads"].outlier_limits.ravel())
    flagged = heads[heads["outlier_abs"]]
    by_distance = flagged.loc[flagged["difference"].abs().sort_values(ascending=False).index]
    assert result.comparisons["heads"].outliers("heads") == list(by_distance["name"])


def test_neurons_csv_holds_the_top_neurons_of_either_method_and_then_every_other_outlier(result, monkeypatch):
    monkeypatch.setattr(run_tables, "TOP_NEURONS", 5)
    names = np.array(component_names("neurons", 3, 48))
    top = {
        name
        for method in ("ig", "ap")
        for name in names[np.argsort(-result.maps["neurons"][method].effect.abs().flatten().numpy())[:5]]
    }
    rows = run_tables.top_neurons(result)
    first, others = rows[: len(top)], rows[len(top) :]
    assert set(first["name"]) == top
    assert list(first["effect_ap"].abs()) == sorted(first["effect_ap"].abs(), reverse=True)
    farthest_first = [name for name in result.comparisons["neurons"].outliers("neurons") if name not in top]
    assert list(others["name"]) == farthest_first
    assert len(farthest_first) > 1

    monkeypatch.setattr(run_tables, "MOST_OUTLIERS", 1)
    assert list(run_tables.top_neurons(result)["name"]) == [*first["name"], farthest_first[0]]


def test_a_failure_while_writing_leaves_no_mark_of_a_finished_run_and_keeps_the_numbers(result, tmp_path, monkeypatch):
    disk.prepare(tmp_path)
    monkeypatch.setattr(disk, "alignment_table", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        disk.write(result, tmp_path)
    assert (tmp_path / "attributions.safetensors").exists()
    assert (tmp_path / "heads.csv").exists()
    assert not (tmp_path / "summary.json").exists()


def test_no_file_that_does_not_fit_is_there_in_part_and_the_error_names_it(result, written, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "figures", lambda _: {})
    sizes = {path.name: path.stat().st_size for path in written.iterdir() if path.is_file()}
    assert {"attributions.safetensors", "heads.csv", "curves.csv", "config.json", "summary.json"} <= sizes.keys()
    for limit in {size // 2 for size in sizes.values()}:
        folder = tmp_path / str(limit)
        disk.prepare(folder)
        with no_file_above(limit), pytest.raises(OSError, match="File too large") as refused:
            disk.write(result, folder)
        assert sizes[Path(refused.value.filename).name] > limit
        assert not (folder / "summary.json").exists()
        for path in folder.iterdir():
            assert path.name == "plots" or path.stat().st_size == sizes[path.name] <= limit


def with_plots(result, *names):
    """The result of a run that was asked for these figures."""
    return dataclasses.replace(result, config=result.config.model_copy(update={"plots": " ".join(names)}))


def test_figures_that_do_not_fit_cost_themselves_only(result, written, tmp_path):
    asked = ("jaccard", "convergence_delta", "heads_heatmap", "heads_scatter")
    sizes = {name: (written / "plots" / f"{name}.png").stat().st_size for name in asked}
    limit = sorted(sizes.values())[len(sizes) // 2]
    disk.prepare(tmp_path)
    with no_file_above(limit):
        summary = disk.write(with_plots(result, *asked), tmp_path)
    too_large = {f"plots/{name}" for name, size in sizes.items() if size > limit}
    failures = failures_of(summary)
    assert failures.keys() == too_large != set()
    for name, reason in failures.items():
        assert reason == f"{tmp_path / name}.png cannot be written or read (File too large)"
    assert {f"plots/{path.stem}" for path in (tmp_path / "plots").iterdir()} == {
        f"plots/{n}" for n in sizes
    } - too_large


def test_a_figure_that_cannot_be_drawn_costs_itself_only_and_its_story_is_kept(result, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "scatter", lambda *_, **__: 1 / 0)
    monkeypatch.setattr("igap.analyses.curves.plots.output_curves", lambda *_, **__: 1 / 0)
    disk.prepare(tmp_path)
    failing = ("heads_scatter", "neurons_scatter", "curves")
    summary = disk.write(with_plots(result, *failing, "heads_difference", "jaccard"), tmp_path)
    assert summary["failed"] == "plots/heads_scatter plots/neurons_scatter plots/curves"
    assert summary["plots/curves/reason"] == "ZeroDivisionError: division by zero"
    assert summary["plots/curves"] is None
    assert {path.stem for path in (tmp_path / "plots").glob("*.png")} == {"heads_difference", "jaccard"}
    assert "in <lambda>" in (tmp_path / "failure.log").read_text()


def test_a_follow_up_that_failed_is_named_in_the_summary_with_its_reason(result, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "figures", lambda _: {})
    findings = {name: finding for name, finding in result.findings.items() if name != "curves"}
    failed = dataclasses.replace(result, findings=findings, failures={"curves": Failure("a flat tyre", "the story")})
    disk.prepare(tmp_path)
    summary = disk.write(failed, tmp_path)
    assert (summary["failed"], summary["curves"], summary["curves/reason"]) == ("curves", None, "a flat tyre")
    assert failures_of(json.loads((tmp_path / "summary.json").read_text())) == {"curves": "a flat tyre"}
    assert (tmp_path / "failure.log").read_text() == "curves: the story"
    assert not (tmp_path / "curves.csv").exists()
    assert (tmp_path / "heads.csv").exists()


def test_a_run_in_which_nothing_failed_says_nothing_of_it(result, written):
    assert "failed" not in disk.summarize(result)
    assert not (written / "failure.log").exists()


def test_a_number_of_a_finding_that_is_not_finite_is_missing_with_a_reason(result):
    class Wild:
        def summary(self):
            return {"wild/number": float("inf"), "wild/other": 1.5}

        def tables(self):
            return {}

        def sentences(self):
            return ()

    summary = disk.summarize(dataclasses.replace(result, findings={"wild": Wild()}))
    assert (summary["wild/number"], summary["wild/number/reason"], summary["wild/other"]) == (None, "not finite", 1.5)


def test_a_table_of_nothing_is_no_file(result, tmp_path):
    """An empty file is no table for any reader: W&B would refuse the whole run."""
    nothing = AblationsByKind({}, dict.fromkeys(AGAINST, ()), "score", "processed")
    disk.write_numbers(dataclasses.replace(result, findings={"ablation": nothing}), tmp_path, {})
    assert {path.name for path in tmp_path.glob("*.csv")} == {"heads.csv", "neurons.csv"}


def test_a_finished_run_is_not_written_over(tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"output: got .*, which holds a finished run \(summary\.json\), wanted another"
    ):
        disk.prepare(tmp_path)
    assert (tmp_path / "summary.json").read_text() == "{}"


def test_scores_that_are_missing_are_missing_on_disk_and_effects_are_not(result, tmp_path):
    disk.prepare(tmp_path)
    summary = disk.write(without_scores(result), tmp_path)
    for name in ("bias", "limits_low", "limits_high"):
        assert summary[f"neurons/{name}"] is None
        assert (
            summary[f"neurons/{name}/reason"]
            == "a score needs a gap of at least prompts.min_gap and a tenth of |F(clean)|"
        )
    heads = pd.read_csv(tmp_path / "heads.csv")
    assert heads[["ig", "ap", "atp", "atp_star", "difference"]].isna().all(axis=None)
    assert heads["effect_ap"].notna().all()
    assert len(list((tmp_path / "plots").glob("*.png"))) == len(PLOTS)


def test_the_summary_of_several_pairs_has_means_and_no_single_pairs_text(many, many_written, result, pair_file):
    summary = json.loads((many_written / "summary.json").read_text())
    assert summary["n_pairs"] == 5
    assert summary["n_unscored"] == 1
    assert summary["heads/bias"] == many.comparisons["heads"].bias, "four pairs have scores"
    assert summary["key"] == many.key != result.key
    for name, values in {
        "clean_logit_diff": many.clean_logit_diffs,
        "corrupted_logit_diff": many.corrupted_logit_diffs,
        "gap": many.gaps,
    }.items():
        assert summary[name] == pytest.approx(np.mean(values))
    assert (summary["gap_min"], summary["gap_max"]) == (min(many.gaps), max(many.gaps))
    assert summary["gap_sd"] == pytest.approx(np.std(many.gaps, ddof=1))
    assert summary["gap_min"] <= summary["gap_low"] < summary["gap"] < summary["gap_high"] <= summary["gap_max"]
    assert summary["prompts/file"] == str(pair_file)
    assert summary["prompts/seed"] == 0
    assert "prompts/n" not in summary
    single = {"prompts/clean", "prompts/corrupted", "prompts/answer", "prompts/distractor", "n_tokens"}
    assert not {*single, "first_difference"} & set(summary)
    assert not [name for name, value in summary.items() if isinstance(value, str) and many.pairs[0].clean in value]
    one = disk.summarize(result)
    assert one["n_pairs"] == 1
    assert single <= set(one)
    assert not {"prompts/file", "prompts/seed", "gap_sd", "n_unscored", "heads/pearson_pairs_mean"} & set(one)


def test_generated_pairs_are_named_by_their_number_and_seed(many):
    prompts = many.config.prompts.model_copy(update={"file": None, "n": 5, "seed": 2})
    config = many.config.model_copy(update={"prompts": prompts})
    summary = disk.summarize(dataclasses.replace(many, config=config))
    assert {name: summary[name] for name in summary if name.startswith("prompts/")} == {
        "prompts/n": 5,
        "prompts/seed": 2,
        "prompts/align": "error",
        "prompts/bos": "<|endoftext|>",
        "prompts/n_unmatched": 0,
    }


def test_the_agreement_of_single_pairs_is_averaged_with_its_interval(many, many_written):
    summary, pairs = json.loads((many_written / "summary.json").read_text()), pd.read_csv(many_written / "pairs.csv")
    for site in SITES:
        found = [
            np.corrcoef(ig.effect.flatten(), ap.effect.flatten())[0, 1]
            for ig, ap in zip(many.maps[site]["ig"].pairs, many.maps[site]["ap"].pairs, strict=True)
        ]
        np.testing.assert_allclose(pairs[f"pearson_{site}"], found, atol=1e-5)
        name = f"{site}/pearson_pairs_mean"
        assert summary[name] == pytest.approx(np.mean(found), abs=1e-5)
        expected = mean_intervals(np.array(found)[:, None], seed=0)
        assert summary[f"{name}_low"] == pytest.approx(expected.low[0], abs=1e-5)
        assert summary[f"{name}_high"] == pytest.approx(expected.high[0], abs=1e-5)


def test_pairs_whose_agreement_is_undefined_are_left_out_and_none_is_a_reason(many):
    r = {site: np.array([np.nan, 0.5, np.nan, 0.7, np.nan]) for site in SITES}
    summary = disk.summarize(dataclasses.replace(many, spread=dataclasses.replace(many.spread, pearson=r)))
    assert summary["heads/pearson_pairs_mean"] == pytest.approx(0.6)
    assert summary["heads/pearson_pairs_mean_low"] == pytest.approx(0.5)
    r = {site: np.array([0.5, *[np.nan] * 4]) for site in SITES}
    summary = disk.summarize(dataclasses.replace(many, spread=dataclasses.replace(many.spread, pearson=r)))
    assert summary["heads/pearson_pairs_mean"] == 0.5
    assert summary["heads/pearson_pairs_mean_high"] is None
    assert summary["heads/pearson_pairs_mean_high/reason"] == "r is defined for 1 of 5 pairs"


def test_pairs_csv_has_a_row_a_pair_in_the_files_order(many, many_written, pair_file):
    pairs = pd.read_csv(many_written / "pairs.csv")
    given = pd.read_csv(pair_file)
    assert list(pairs.columns) == [
        "index", *given.columns, "n_tokens", "n_tokens_corrupted", "first_difference", "clean_logit_diff",
        "corrupted_logit_diff", "gap", "pearson_heads", "pearson_neurons",
    ]  # fmt: skip
    assert list(pairs["index"]) == list(range(5))
    pd.testing.assert_frame_equal(pairs[given.columns], given)
    assert list(pairs["n_tokens"]) == [17, 17, 13, 17, 17]
    assert list(pairs["first_difference"]) == [10, 10, 9, 10, 2]
    np.testing.assert_allclose(pairs["gap"], [one.gap for one in many.maps["heads"]["ap"].pairs], rtol=1e-6)
    np.testing.assert_allclose(pairs["clean_logit_diff"] - pairs["corrupted_logit_diff"], pairs["gap"], rtol=1e-6)


def test_tensors_of_several_pairs_are_means_every_pair_and_the_ends_of_the_intervals(many, many_written):
    saved = load_file(many_written / "attributions.safetensors")
    for site, width in (("heads", 4), ("neurons", 48)):
        for method in ("ig", "ap", "atp", "atp_star"):
            found, name = many.maps[site][method], f"{method}.{site}"
            scores, effects = saved[f"pairs.{name}"], saved[f"pairs.effect.{name}"]
            assert scores.shape == effects.shape == (5, 3, width)
            for index, one in enumerate(found.pairs):
                assert np.array_equal(scores[index], one.score, equal_nan=True)
                assert np.array_equal(effects[index], one.effect)
            assert scores[2].isnan().all(), "the pair with the small gap"
            scores = scores[[0, 1, 3, 4]]
            np.testing.assert_allclose(saved[name], scores.mean(0), rtol=1e-5, atol=1e-8)
            np.testing.assert_allclose(saved[f"effect.{name}"], effects.mean(0), rtol=1e-5, atol=1e-7)
            expected = mean_intervals(scores.double().flatten(1).numpy(), seed=0)
            np.testing.assert_allclose(saved[f"low.{name}"].flatten(), expected.low, rtol=1e-6)
            np.testing.assert_allclose(saved[f"high.{name}"].flatten(), expected.high, rtol=1e-6)
            assert (saved[f"low.{name}"] <= saved[name] + 1e-6).all()
            assert (saved[name] <= saved[f"high.{name}"] + 1e-6).all()
            assert (saved[f"high.{name}"] > saved[f"low.{name}"]).float().mean() > 0.9


def test_one_pair_has_no_tensors_and_columns_of_several(result, written):
    saved = load_file(written / "attributions.safetensors")
    assert not [name for name in saved if name.startswith(("pairs.", "low.", "high."))]
    assert not [name for name in run_tables.table(result, "heads").columns if name.endswith(("_low", "_high"))]


@pytest.mark.parametrize("site", SITES)
def test_tables_of_several_pairs_hold_the_intervals_of_ig_and_ap(many, many_written, site):
    rows = pd.read_csv(many_written / f"{site}.csv", dtype={"name": str}).set_index("name")
    saved = load_file(many_written / "attributions.safetensors")
    names = component_names(site, *many.maps[site]["ig"].effect.shape)
    for method in ("ig", "ap"):
        for end in ("low", "high"):
            expected = pd.Series(saved[f"{end}.{method}.{site}"].flatten().double().numpy(), index=names)
            np.testing.assert_allclose(rows[f"{method}_{end}"], expected[rows.index], rtol=1e-6)


def test_the_alignment_is_saved_and_counted_where_positions_are_not_matched_one_to_one(result, written):
    assert not (written / "alignment.csv").exists()
    assert not run_tables.alignment_table(result).size
    (pair,) = result.pairs
    second = dataclasses.replace(
        pair, corrupted="After the cat and the dog went to the store, Mary gave a bottle of milk to", align="diff"
    )
    known = {"prepend_bos": True, "n_ctx": None, "n_vocab": None}
    tokenizer = read_header(result.config.model.name).tokenizer
    aligned = dataclasses.replace(result, pairs=(second,), tokens=(encode_pair(second, tokenizer, **known),))
    table = run_tables.alignment_table(aligned)
    assert table["clean_token"].tolist()[:9] == ["<|endoftext|>", "After", "John", "", "", "and", "Mary", "", ""]
    assert table["corrupted_token"].tolist()[:9] == [
        "<|endoftext|>",
        "After",
        "",
        "the",
        "cat",
        "and",
        "",
        "the",
        "dog",
    ]
    assert table["clean_position"].dropna().tolist() == list(range(17))
    assert table["corrupted_position"].dropna().tolist() == list(range(19))
    summary = disk.summarize(aligned)
    assert (summary["prompts/n_unmatched"], summary["n_tokens"], summary["n_tokens_corrupted"]) == (6, 17, 19)
