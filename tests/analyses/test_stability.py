"""How far to believe a run's top: its files and lines, and what a file of pairs can and cannot tell."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from igap import attribution_patching, pipeline
from igap.analyses.stability import factors_of, stability
from igap.attribution import AttributionMap
from igap.attribution.over_pairs import mean
from igap.cli import main
from igap.cli.compose import compose_one
from igap.components import component_names
from igap.inputs.prompts import PromptPair
from igap.inputs.sources import read_prompt_pairs
from igap.output.terminal import show

BRIEF = ("sites=heads", "explain=false", "curves.components=none", "plots=none", "tracking=disabled", "ig.n_steps=2")


def run(folder, *overrides):
    assert main(["run", f"hydra.run.dir={folder}", *BRIEF, *overrides]) == 0
    return json.loads((folder / "summary.json").read_text())


def pairs(n, **further):
    return [
        PromptPair(f"{i} then", f"{i} and", " A", " B", further={name: str(of[i]) for name, of in further.items()})
        for i in range(n)
    ]


def maps(effects, method="ap", signed=True):
    """The mean map of these effects, `[pair, component]`, in 4 layers, gap 2."""
    shape = (4, effects.shape[1] // 4)
    each = torch.tensor(effects, dtype=torch.float64)
    return mean([AttributionMap(method, "heads", of_pair.view(shape), gap=2.0, signed=signed) for of_pair in each])


def of(effects, n, **further):
    by_method = {name: maps(effects * factor, name) for name, factor in (("ig", 1.5), ("ap", 1.0))}
    return stability({"heads": by_method}, pairs(n, **further), {"heads": "score"}, seed=0)


PARTS = ("wording", "corruption", "names", "rest_of_prompt", "method", "method_by_prompt")
EFFECTS = np.arange(40, 0, -1) * (-1.0) ** np.arange(40) + np.zeros((8, 1))


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated")
    return folder, run(folder, "prompts.n=40")


def test_a_run_over_pairs_says_how_stable_its_top_is(generated, capsys):
    folder, summary = generated
    ranks = pd.read_csv(folder / "ranks.csv", dtype={"name": str}).query("method == 'ap'")
    heads = pd.read_csv(folder / "heads.csv", dtype={"name": str})
    order = heads["effect_ap"].abs().sort_values(ascending=False).index
    assert list(ranks["name"]) == list(heads["name"][order]), "in the order of the mean map"
    assert ((ranks["rank_low"] <= ranks["rank"]) & (ranks["rank"] <= ranks["rank_high"])).all()
    assert 0.8 < summary["stability/heads/ap/jaccard@10"] <= 1
    parts = {name: summary[name] for name in summary if "/variance/" in name and not name.endswith("/reason")}
    assert set(parts) == {f"stability/heads/variance/{name}" for name in PARTS}
    assert parts.pop("stability/heads/variance/names") is None, "of 40 pairs' 80 names few come twice"
    assert sum(parts.values()) == pytest.approx(1)


def test_the_expected_index_is_near_that_with_other_pairs(generated, ioi_mini):
    folder, summary = generated
    others = read_prompt_pairs(compose_one(["prompts.n=40", "prompts.seed=1"]).config.prompts, ioi_mini.tokenizer)
    effect = attribution_patching(ioi_mini, others).effect
    largest = effect.abs().flatten().argsort(descending=True)[:10].tolist()
    names = component_names("heads", *effect.shape)
    first = pd.read_csv(folder / "ranks.csv", dtype={"name": str}).query("method == 'atp'")["name"][:10]
    tops = [set(first), {names[i] for i in largest}]
    index = len(tops[0] & tops[1]) / len(tops[0] | tops[1])
    assert index == pytest.approx(summary["stability/heads/atp/jaccard@10"], abs=0.2)  # one head of ten is 0.18


def test_the_run_on_its_own_table_of_pairs_gives_the_same_split(generated, tmp_path):
    folder, summary = generated
    again = run(tmp_path, f"prompts.file={folder / 'pairs.csv'}")
    names = [name for name in summary if name.startswith("stability/")]
    assert len(names) > 10
    assert {name: again[name] for name in names} == pytest.approx({name: summary[name] for name in names})


def test_a_run_over_one_pair_has_none_of_it(tmp_path):
    summary = run(tmp_path)
    assert not [name for name in summary if "stability" in name]
    assert not (tmp_path / "ranks.csv").exists()
    assert not (tmp_path / "variance.csv").exists()


def test_a_run_over_too_few_pairs_says_how_many_it_wants(tmp_path, capsys):
    summary = run(tmp_path, "prompts.n=3")
    assert not [name for name in summary if name.startswith("stability/")]
    assert "how stable the top is over prompts: got 3 pairs, wanted 4 or more" in capsys.readouterr().out


def test_positions_and_other_metrics_have_it_too(tmp_path):
    file = tmp_path / "pairs.csv"
    names = ("John,Mary", "Mary,John", "John,Paul", "Paul,Mary")
    rows = [
        f"After {a} and {b} went to the store; {b} gave a bottle of milk to,"
        f"After {a} and {b} went to the store; {a} gave a bottle of milk to, {a}, {b}"
        for a, b in (each.split(",") for each in names)
    ]
    file.write_text("\n".join(["clean,corrupted,answer,distractor", *rows]))
    summary = run(tmp_path / "run", f"prompts.file={file}", "positions=each", "metric=prob")
    assert 0 < summary["stability/heads/ap/jaccard@10"] <= 1
    assert pd.read_csv(tmp_path / "run" / "ranks.csv")["name"].str.contains(" at ").all()


def test_pairs_that_agree_are_stable_and_differ_by_method_alone():
    made = of(EFFECTS, 8, template=[0, 0, 1, 1, 2, 2, 3, 3], corruption=[0, 1] * 4)
    first, second = made.sentences()
    assert first == (
        "heads: the top 10 by AP are stable (expected Jaccard index with 8 other pairs 1.00, chance 0.15; IG 1.00)"
    )
    assert second == (
        "heads, variance of scores over prompts and methods: wording 0%, corruption 0%, rest of prompt 0%, method "
        "100%, method by prompt 0%; names has no share of its own: all pairs have the same"
    )
    assert list(made.tables()["ranks"]["rank_low"][:3]) == [1, 2, 3]


def test_pairs_that_share_nothing_are_told_so():
    rng = np.random.default_rng(0)
    first, second = of(rng.standard_normal((8, 40)), 8).sentences()
    assert first.startswith("heads: the top 10 by AP are not stable (expected Jaccard index with 8 other pairs 0.")
    assert "take about" in first or "more pairs of this kind will not do" in first
    assert second.startswith("heads, variance of scores over prompts and methods: rest of prompt ")


def test_what_differs_by_template_is_wording():
    rng = np.random.default_rng(0)
    wording = rng.standard_normal((10, 40))
    effects = EFFECTS[:1] + np.repeat(wording, 4, axis=0) + 0.1 * rng.standard_normal((40, 40))
    by_method = {
        "ap": maps(effects),
        "ig": maps(effects, "ig"),
        "atp_star": maps(abs(effects), "atp_star", signed=False),
    }
    template = np.repeat(range(10), 4)
    made = stability({"heads": by_method}, pairs(40, template=template), {"heads": "score"}, seed=0)
    shares = made.variance["heads"].shares()
    assert shares["wording"] > 0.95
    assert shares["method"] == pytest.approx(0, abs=1e-9), "AtP*, which has no sign, is not one of them"
    assert made.variance["heads"].parts["wording"].mean() == pytest.approx(wording.var(0, ddof=1).mean() / 4, rel=0.1)


def test_a_column_that_a_row_lacks_is_no_factor():
    known = pairs(3, template=[0, 1, 1])
    assert list(factors_of([*known, *pairs(1)])) == ["names"]
    assert list(factors_of(known)) == ["wording", "names"]


def test_a_top_that_does_not_exist_has_a_reason():
    summary = of(EFFECTS[:, :8], 8).summary()
    assert summary["stability/heads/ap/jaccard@10"] is None
    assert "no more than 10 components" in summary["stability/heads/ap/jaccard@10/reason"]


def test_pairs_without_scores_are_left_out_of_the_variance_alone():
    rng = np.random.default_rng(0)
    effects, known = rng.standard_normal((12, 40)), np.arange(12) != 3
    by_method = {name: maps(effects * factor, name) for name, factor in (("ig", 1.5), ("ap", 1.0))}
    of_pairs = {
        name: mean(
            [replace(pair, gap=2.0 if is_known else 0.0) for pair, is_known in zip(each.pairs, known, strict=True)]
        )
        for name, each in by_method.items()
    }
    made = stability({"heads": of_pairs}, pairs(12), {"heads": "score"}, seed=0)
    assert made.rankings[0].n_pairs == 12
    assert list(made.rankings[1].low) == list(of(effects, 12).rankings[1].low), "they have effects, which are ranked"
    assert made.variance["heads"].total() == pytest.approx(of(effects[known], 11).variance["heads"].total())


def test_the_lines_come_last(generated, capsys):
    from rich.console import Console

    result = pipeline.run(compose_one([*BRIEF, "prompts.n=4"]).config)
    show(Console(width=300), result)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("heads", "queries", "values"))]
    assert "variance of scores" in lines[-1]
    assert "the top 10 by AP are" in lines[-2]
