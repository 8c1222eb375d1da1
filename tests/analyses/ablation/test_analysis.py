"""The run's ablations: which components, what is said of them, and the correlations, against scipy."""

import cProfile
import dataclasses
import pstats

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from igap import pipeline
from igap.analyses.ablation import analysis
from igap.analyses.ablation.by_kind import AGAINST
from igap.analyses.registry import ANALYSES
from igap.cli.compose import compose_one
from igap.errors import InputError
from igap.models import cached


def run(checkpoint, *overrides):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cached, "_cached_model", cached._cached_model.__wrapped__)
        quiet = ["curves.components=none", "explain=false", "prompts.min_gap=0", "device=cpu"]
        name = f"model.name={checkpoint('gpt2')}"
        config = compose_one(["model=hf", name, *quiet, *overrides]).config
        return pipeline.run(config)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """The random model knows four names only: prompts of its own."""
    file = tmp_path_factory.mktemp("prompts") / "own.csv"
    names = ("John", "Mary", "Tom", "Anna")
    rows = [f"{a} and {b} went to the store , {b} gave it to, {a}, {b}" for a in names for b in names if a != b]
    rows = [row.replace(" , ", " and ") for row in rows]
    file.write_text("prompt,answer,distractor\n" + "\n".join(rows) + "\n")
    return file


@pytest.fixture(scope="module")
def found(checkpoint, prompts):
    return run(
        checkpoint, "ablation=zero", "ablation.also=[mean]", "ablation.components=top", "ablation.top=5",
        f"ablation.file={prompts}", "ablation.reference_n=12", "ablation.controls=2", "ablation.generate=true",
    )  # fmt: skip


def test_the_top_components_are_those_with_the_largest_effect(found):
    study = found.findings["ablation"]
    effect = found.maps["heads"]["ap"].effect
    order = effect.abs().flatten().argsort(descending=True)[:5]
    names = [f"{int(i) // 4}.{int(i) % 4}" for i in order]
    assert [one.name for one in study.kinds["zero"].single] == names
    assert list(study.kinds) == ["zero", "mean"]
    assert [one.name for one in study.kinds["mean"].single] == names
    ap = found.maps["heads"]["ap"].score.flatten()[order].double().numpy()
    ig = found.maps["heads"]["ig"].score.flatten()[order].double().numpy()
    np.testing.assert_allclose(study.scores["ap"], ap)
    np.testing.assert_allclose(study.scores["ig"], ig)
    np.testing.assert_allclose(study.scores["ap - ig"], ap - ig)


def test_the_correlations_are_scipys(found):
    study, summary = found.findings["ablation"], found.findings["ablation"].summary()
    # Changes of a random model in shares are few and equal: logit differences stand in for them here.
    singles = tuple(dataclasses.replace(one, change=one.logit_diff_change) for one in study.kinds["zero"].single)
    kinds = {"zero": dataclasses.replace(study.kinds["zero"], single=singles)}
    moved = dataclasses.replace(study, kinds=kinds)
    summary = moved.summary()
    for against in AGAINST:
        expected = stats.pearsonr(study.scores[against], [one.change for one in singles])
        assert summary[f"ablation/zero/pearson/{against}"] == pytest.approx(expected.statistic)
        interval = expected.confidence_interval()
        assert summary[f"ablation/zero/pearson_low/{against}"] == pytest.approx(interval.low)
        assert summary[f"ablation/zero/pearson_high/{against}"] == pytest.approx(interval.high)
        rho = stats.spearmanr(study.scores[against], [one.change for one in singles]).statistic
        assert summary[f"ablation/zero/spearman/{against}"] == pytest.approx(rho)
    assert summary["ablation/n_components"] == 5
    line = next(line for line in moved.sentences() if "r of the change" in line)
    assert line.endswith("(n = 5; 5 points prove nothing)")
    assert f"AP {summary['ablation/zero/pearson/ap']:+.2f} [" in line


def test_a_change_that_is_the_same_everywhere_has_no_correlation_and_a_reason(found):
    study = found.findings["ablation"]
    singles = tuple(dataclasses.replace(one, change=0.0) for one in study.kinds["zero"].single)
    flat = dataclasses.replace(study, kinds={"zero": dataclasses.replace(study.kinds["zero"], single=singles)})
    assert flat.summary()["ablation/zero/pearson/ap"] is None
    assert flat.summary()["ablation/zero/pearson/ap/reason"] == "change scores are constant"
    assert "AP undefined, AP - IG undefined (n = 5" in flat.sentences()[-1]


def test_the_table_has_a_row_a_set_of_components_and_kind(found):
    table = found.findings["ablation"].tables()["ablation"]
    zero = table[table["kind"] == "zero"].set_index("name")
    study = found.findings["ablation"].kinds["zero"]
    assert list(zero.index) == ["none", *(one.name for one in study.single), "all", "control 1", "control 2"]
    assert zero.loc["none", "share"] == study.accuracy
    assert zero.loc["all", "change"] == study.together.change
    assert zero.loc["all", "components"].split() == [one.name for one in study.single]
    assert zero["generated"].notna().all()
    assert pd.isna(zero.loc["all", "ap"])
    assert zero.loc[study.single[2].name, "ap - ig"] == found.findings["ablation"].scores["ap - ig"][2]


def test_the_prompts_are_generated_and_tokenised_for_the_first_job_of_a_sweep_only():
    calls = []
    for steps in (3, 4):
        config = compose_one(["ablation=zero", "ablation.seed=11", f"ig.n_steps={steps}"]).config
        profile = cProfile.Profile()
        profile.runcall(pipeline.check, config)
        calls.append(pstats.Stats(profile).total_calls)
    assert calls[1] < calls[0] / 5


def test_a_number_that_was_not_measured_is_missing_with_its_reason(found):
    study = found.findings["ablation"]
    bare = dataclasses.replace(study.kinds["zero"], logit_diff=None, generated=None)
    for kinds, reasons in (
        (study.kinds, {}),
        ({"zero": bare}, {"logit_diff": "the prompts have no distractor", "generated": "ablation.generate=false"}),
    ):
        summary = dataclasses.replace(study, kinds=kinds).summary()
        assert {name: summary.get(f"ablation/zero/{name}/reason") for name in reasons} == reasons
        missing = [name for name, value in summary.items() if value is None]
        assert all(summary[f"{name}/reason"] for name in missing)
        assert all(summary[name.removesuffix("/reason")] is None for name in summary if name.endswith("/reason"))


def test_a_change_is_in_percentage_points_and_one_prompt_has_no_interval(found):
    study = found.findings["ablation"]
    singles = [dataclasses.replace(one, change_low=np.nan, change_high=np.nan) for one in study.kinds["zero"].single]
    singles[0] = dataclasses.replace(singles[0], change=-0.125)
    kinds = {"zero": dataclasses.replace(study.kinds["zero"], single=tuple(singles))}
    lines = [line for line in dataclasses.replace(study, kinds=kinds).sentences() if line.startswith("  without ")]
    for one, line in zip(singles, lines, strict=False):
        interval = f"[{one.logit_diff_low:+.3f}, {one.logit_diff_high:+.3f}]"
        assert line == (
            f"  without {one.name}: {100 * one.change:+.1f} points, McNemar p {one.p:.2g}; "
            f"logit difference {one.logit_diff_change:+.3f} {interval}"
        )


def test_the_terminal_says_kind_weights_and_controls(found):
    text = "\n".join(found.findings["ablation"].sentences())
    assert "zero ablation, 12 prompts, processed weights:" in text
    assert "mean ablation, 12 prompts, processed weights:" in text
    assert "without as many random others, 2 times:" in text


def test_bars_stand_at_the_shares_and_the_line_at_the_whole_model(found):
    # A random model is never right: numbers of its own for every bar.
    given = found.findings["ablation"]
    numbers = [0.1 * (i + 1) for i in range(5)]
    singles = tuple(
        dataclasses.replace(one, accuracy=share, change=share - 0.8, change_low=share - 0.9, change_high=share - 0.7)
        for one, share in zip(given.kinds["mean"].single, numbers, strict=True)
    )
    study = dataclasses.replace(given.kinds["mean"], single=singles, accuracy=0.8)
    drawn = ANALYSES["ablation"].figures(dataclasses.replace(given, kinds={"mean": study}), "")
    (ax,) = drawn["ablation_mean"].axes
    assert [bar.get_height() for bar in ax.patches] == [one.accuracy for one in (*study.single, study.together)]
    assert [label.get_text() for label in ax.get_xticklabels()][:6] == [*(one.name for one in study.single), "all"]
    assert any(line.get_ydata()[0] == study.accuracy for line in ax.lines if line.get_linestyle() == "--")
    for ax, against in zip(drawn["ablation_mean_scatter"].axes, AGAINST, strict=True):
        points = ax.containers[0][0].get_xydata()
        np.testing.assert_allclose(points[:, 0], found.findings["ablation"].scores[against])
        np.testing.assert_allclose(points[:, 1], [-70, -60, -50, -40, -30])
        assert "n = 5, proves nothing" in ax.get_title()


def test_named_components_are_ablated_as_named_also_when_the_name_looks_like_a_number(checkpoint, prompts):
    found = run(checkpoint, "ablation=resample", "ablation.components='1.0'", f"ablation.file={prompts}")
    (one,) = found.findings["ablation"].kinds["resample"].single
    assert one.name == "1.0"
    found = run(checkpoint, "ablation=zero", "ablation.components='0.3 L1.N20'", f"ablation.file={prompts}")
    study = found.findings["ablation"]
    assert [one.name for one in study.kinds["zero"].single] == ["0.3", "L1.N20"]
    assert study.scores["ap"][1] == pytest.approx(float(found.maps["neurons"]["ap"].score[1, 20]))


def test_a_set_has_a_row_and_no_score_and_is_left_out_of_correlations(checkpoint, prompts):
    asked = ["ablation=zero", "sites=heads", f"ablation.file={prompts}", "ablation.controls=0", "ig.n_steps=2"]
    found = run(checkpoint, *asked, "ablation.components=0.1 0.1+1.2 1.3 top2:ap 2.2")
    study = found.findings["ablation"]
    top = "+".join(f"{int(i) // 4}.{int(i) % 4}" for i in found.maps["heads"]["ap"].effect.abs().flatten().topk(2)[1])
    assert [one.name for one in study.kinds["zero"].single] == ["0.1", "0.1+1.2", "1.3", top, "2.2"]
    assert study.components("zero") == [0, 2, 4]
    score, change = ([of[i] for i in (0, 2, 4)] for of in (study.scores["ap"], found_changes(study)))
    relation = study.relation("zero", "ap")
    assert relation.n == 3
    assert relation.difference[0] == pytest.approx(np.subtract(change, score))
    table = study.tables()["ablation"].set_index("name")
    assert table.loc[["0.1+1.2", top], "ap"].isna().all()
    assert table.loc[["0.1", "1.3", "2.2"], "ap"].notna().all()
    _, scatter = ANALYSES["ablation"].figures(study, "title").values()
    assert len(scatter.axes[0].texts) == 3
    assert study.summary()["ablation/zero/0.1+1.2/change"] == found_changes(study)[1]
    assert any("(n = 3; 3 points prove nothing)" in line for line in study.sentences())


def test_sets_alone_have_no_correlation_and_the_reason(checkpoint, prompts):
    asked = ["ablation=zero", "sites=heads", f"ablation.file={prompts}", "ablation.controls=0", "ig.n_steps=2"]
    study = run(checkpoint, *asked, "ablation.components=0.1+1.2").findings["ablation"]
    summary = study.summary()
    assert summary["ablation/zero/pearson/ap"] is None
    assert summary["ablation/zero/pearson/ap/reason"] == "only sets were ablated"
    assert not any("r of the change" in line for line in study.sentences())
    _, scatter = ANALYSES["ablation"].figures(study, "title").values()
    assert "only sets were ablated" in scatter.axes[0].texts[0].get_text()


def found_changes(study):
    return [each.change for each in study.kinds["zero"].single]


def test_the_default_is_the_outliers_and_none_of_them_is_said(found, checkpoint, prompts):
    default = run(checkpoint, "ablation=zero", f"ablation.file={prompts}", "ablation.controls=0")
    outlying = {f"{layer}.{head}" for layer, head in np.argwhere(default.comparisons["heads"].outlier_abs)}
    assert {one.name for one in default.findings["ablation"].kinds["zero"].single} == outlying
    assert outlying
    study = dataclasses.replace(default.findings["ablation"], kinds={}, scores=dict.fromkeys(AGAINST, ()))
    assert study.sentences() == (
        "ablation: nothing to ablate, because no head is an outlier; ablation.components names others",
    )
    assert study.summary() == {"ablation/n_components": 0}
    assert run(checkpoint).findings.keys() & {"ablation"} == set()


def test_jobs_with_the_same_prompts_tokenise_them_once_and_changed_ones_are_checked_anew(tmp_path):
    file = tmp_path / "own.csv"
    names = ("John", "Mary"), ("Mary", "John"), ("John", "Tom"), ("Tom", "John")
    rows = [f'"Then {a} and {b} went to the store, {b} gave a ring to"," {a}"," {b}"' for a, b in names]

    def write(rows):
        file.write_text("\n".join(["prompt,answer,distractor", *rows]) + "\n")

    def key(component):
        given = ["ablation=zero", f"ablation.file={file}", f"ablation.components='{component}'"]
        return pipeline.check(compose_one(given).config).key

    def tokenisations():
        return analysis._token_lengths.cache_info().misses

    write(rows)
    before = tokenisations()
    keys = {key("0.0"), key("0.1"), key("1.0")}
    assert (len(keys), tokenisations() - before) == (3, 1)
    with pytest.raises(InputError, match=r"ablation\.components"):
        key("9.9")
    write(rows[:3])
    assert key("0.0") not in keys
    assert tokenisations() - before == 2
    write([*rows[:3], rows[3].replace("ring", "zyxwv")])
    with pytest.raises(InputError, match=r"own\.csv, row 4 \(line 5\): the tokenizer does not know 'zyxwv'"):
        key("0.0")
