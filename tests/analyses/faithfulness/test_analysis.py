"""Curves and areas worked by hand, on an additive model, and of whole runs."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from helpers.opened import follow

from igap import Baseline, load_model, pipeline
from igap.analyses.faithfulness.curves import Faithfulness, curves_of
from igap.analyses.faithfulness.rankings import sets
from igap.cli.compose import compose_one
from igap.components import hook_name
from igap.engine.hooks import edit_hooks, metric
from igap.engine.open_pairs import contrast
from igap.models import cached
from igap.output import disk


def placed(*orders):
    """Places from orders (components from the first to the last)."""
    return np.argsort(np.array(orders), axis=1)


def additive(weights, orders, *, pairs=1, offset=0.0, sizes=None, magnitude=None):
    """The sweep of a model whose F is `offset` and the weights of what is kept, ranked by these orders."""
    weights = np.array(weights, dtype=np.float64)
    sizes = sizes or tuple(range(len(weights) + 1))
    rankings = {
        **{(name, "contribution"): placed(order) for name, order in orders.items()},
        **{(name, "magnitude"): placed((magnitude or orders)[name]) for name in orders},
        ("random", "contribution"): placed(*itertools.permutations(range(len(weights)))),
        ("random", "magnitude"): placed(*itertools.permutations(range(len(weights)))),
    }
    kept, index = sets(rankings, sizes)
    values = np.repeat((kept @ weights + offset)[None], pairs, axis=0)
    return curves_of(values, index, site="heads", ablation="corrupted", sizes=sizes, min_gap=0.1, seed=0)


def points(sweep, method, kind, ranking="contribution"):
    (curve,) = (c for c in sweep.curves if (c.method, c.kind, c.ranking) == (method, kind, ranking))
    return curve.faithfulness.value.tolist()


def area(sweep, name, method="ap"):
    return sweep.areas(name)[method].value[0]


def test_curves_and_areas_of_two_components_are_as_worked_by_hand():
    """F is -1 with nothing and 4 with both; the first brings 4 of the 5: f = 0, 0.8, 1 at shares 0, 0.5, 1."""
    sweep = additive([1, 4], {"ap": [1, 0]}, offset=-1.0)
    assert (sweep.empty, sweep.full) == (-1, 4)
    assert points(sweep, "ap", "insertion") == [0, 0.8, 1]
    assert points(sweep, "ap", "deletion") == pytest.approx([1, 0.2, 0], abs=1e-15)
    assert area(sweep, "cpr") == pytest.approx(0.5 * (0 + 0.8) / 2 + 0.5 * (0.8 + 1) / 2)
    assert area(sweep, "cmd") == pytest.approx(0.5 * (1 + 0.2) / 2 + 0.5 * (0.2 + 0) / 2)
    assert area(sweep, "deletion") == pytest.approx(0.5 * (1 + 0.2) / 2 + 0.5 * (0.2 + 0) / 2)


def test_what_works_against_the_answer_lifts_cpr_above_cmds_complement():
    """3 and -1: f is 1.5 with the first alone. By magnitude too; the distance from 1 counts either way."""
    sweep = additive([3, -1], {"ap": [0, 1]})
    assert points(sweep, "ap", "insertion") == [0, 1.5, 1]
    assert area(sweep, "cpr") == pytest.approx(0.5 * 1.5 / 2 + 0.5 * 2.5 / 2)
    assert area(sweep, "cmd") == pytest.approx(0.5 * (1 + 0.5) / 2 + 0.5 * (0.5 + 0) / 2)


def test_cpr_goes_by_contribution_and_cmd_by_magnitude():
    sweep = additive([2, -3], {"ap": [0, 1]}, magnitude={"ap": [1, 0]})
    assert points(sweep, "ap", "insertion", "contribution") == [0, -2, 1]
    assert points(sweep, "ap", "insertion", "magnitude") == [0, 3, 1]
    assert area(sweep, "cpr") == pytest.approx(0.5 * -2 / 2 + 0.5 * -1 / 2)
    assert area(sweep, "cmd") == pytest.approx(0.5 * (1 + 2) / 2 + 0.5 * (2 + 0) / 2)


def test_on_an_additive_model_no_ranking_beats_that_by_single_effects():
    weights = [1.0, -2.0, 5.0, 0.5]
    by_effect = list(np.argsort(weights)[::-1])
    every = {order: additive(weights, {"ap": list(order)}) for order in itertools.permutations(range(4))}
    best = every[tuple(by_effect)]
    assert area(best, "cpr") == max(area(sweep, "cpr") for sweep in every.values())
    assert area(best, "deletion") == min(area(sweep, "deletion") for sweep in every.values())


def test_random_is_the_mean_over_rankings_and_the_band_that_holds_95_percent():
    """Of all 24 rankings of an additive model the mean curve is the straight line."""
    sweep = additive([1, 2, 3, 4], {"ap": [3, 2, 1, 0]})
    assert points(sweep, "random", "insertion") == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    every = [
        np.trapezoid(np.cumsum([0, *(np.array([1, 2, 3, 4]) / 10)[list(order)]]), dx=0.25)
        for order in itertools.permutations(range(4))
    ]
    found = sweep.areas("cpr")["random"]
    assert found.value[0] == pytest.approx(np.mean(every))
    assert (found.low[0], found.high[0]) == tuple(pytest.approx(end) for end in np.quantile(every, [0.025, 0.975]))


def test_of_several_pairs_the_means_are_divided_and_the_interval_is_of_pairs():
    """Pairs in which the first component brings 1 of 4 and 3 of 3: (1 + 3) / (4 + 3), not (1/4 + 3/3) / 2."""
    kept, index = sets({("ap", "contribution"): placed([0, 1]), ("random", "contribution"): placed([0, 1])}, (0, 1, 2))
    values = np.stack([kept @ [1.0, 3.0], kept @ [3.0, 0.0]])
    sweep = curves_of(values, index, site="heads", ablation="corrupted", sizes=(0, 1, 2), min_gap=0.1, seed=0)
    assert points(sweep, "ap", "insertion") == pytest.approx([0, 4 / 7, 1])
    found = sweep.areas("cpr")["ap"]
    # Half of the samples are of one pair twice: the ends are the areas of the pairs, f = 1/4 and 1.
    assert (found.low[0], found.high[0]) == (pytest.approx(0.25 / 2 + 1 / 4), pytest.approx(1 / 2 + 1 / 4))
    same = curves_of(
        values[:1].repeat(3, 0), index, site="heads", ablation="corrupted", sizes=(0, 1, 2), min_gap=0.0, seed=0
    )
    assert same.areas("cpr")["ap"].low == pytest.approx(same.areas("cpr")["ap"].value)
    assert np.isnan(additive([1, 2], {"ap": [0, 1]}).areas("cpr")["ap"].low).all()


def test_a_clean_run_that_ablation_leaves_as_it_is_has_no_faithfulness_and_says_why():
    sweep = additive([0.3, -0.25], {"ap": [0, 1]}, offset=2)
    finding = Faithfulness((sweep,))
    assert sweep.curves == ()
    summary = finding.summary()
    assert summary["faithfulness/heads/corrupted/full"] == pytest.approx(2.05)
    assert summary["faithfulness/heads/corrupted/cpr"] is None
    reason = summary["faithfulness/heads/corrupted/cpr/reason"]
    assert reason.startswith("not defined, F(clean) is 2.05 and F(all ablated) 2;")
    assert "at least prompts.min_gap=0.1" in reason
    assert finding.tables() == {}
    assert finding.sentences() == (f"faithfulness, heads ablated by the corrupted activation: {reason}",)


def test_sentences_name_the_best_and_weigh_its_lead_against_random_rankings():
    orders = {"ap": [3, 2, 1, 0], "ig": [3, 1, 2, 0], "atp": [0, 1, 2, 3]}
    cpr, cmd = Faithfulness((additive([1, 2, 3, 4], orders),)).sentences()
    assert cpr.startswith(
        "faithfulness, heads ablated by the corrupted activation, CPR (larger is better): ap 0.625, ig 0.600, "
        "atp 0.375; random 0.500 [95%: 0.3"
    )
    assert "ap is ahead of ig by 0.025, not more than random rankings differ (0." in cpr
    assert "CMD (smaller is better): ap 0.375, ig 0.400, atp 0.625;" in cmd
    (cpr, _) = Faithfulness((additive([0, 0, 0, 9], {"ap": [3, 2, 1, 0], "ig": [0, 1, 2, 3]}),)).sentences()
    assert "ap is ahead of ig by 0.750, not more than random rankings differ (0.750)" in cpr


@pytest.fixture(scope="module")
def run_with(checkpoint):
    def run(*overrides, model=None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cached, "_cached_model", cached._cached_model.__wrapped__)
            named = model or ["model=hf", f"model.name={checkpoint('gpt2')}"]
            fixed = ["prompts.min_gap=0", "device=cpu", "ig.n_steps=3", "sites=heads", "plots=none"]
            fixed += ["explain=false", "curves.components=none"]
            config = compose_one([*named, *fixed, *overrides]).config
            return pipeline.run(config)

    return run


def test_a_run_writes_curves_areas_and_what_it_could_not_do(run_with, tmp_path):
    result = run_with("faithfulness=heads")
    disk.prepare(tmp_path)
    disk.write(result, tmp_path)
    table = pd.read_csv(tmp_path / "faithfulness.csv")
    assert set(table["ablation"]) == {"corrupted"}
    assert set(table["method"]) == {"ap", "ig", "atp", "atp_star", "random"}
    ends = table[table["k"].isin([0, 12])]
    assert set(ends["faithfulness"]) == {0.0, 1.0}
    assert (ends["faithfulness"] == (ends["k"] == 12) ^ (ends["curve"] == "deletion")).all()
    summary = json.loads((tmp_path / "summary.json").read_text())
    ap = table[(table["method"] == "ap") & (table["curve"] == "insertion") & (table["ranking"] == "contribution")]
    assert summary["faithfulness/heads/corrupted/ap/cpr"] == pytest.approx(
        np.trapezoid(ap["faithfulness"], ap["share"])
    )
    assert summary["faithfulness/heads/corrupted/full"] == pytest.approx(result.clean_logit_diff, abs=1e-5)
    reason = summary["faithfulness/heads/mean/cpr/reason"]
    assert reason.startswith("baseline=mean: the tokenizer does not know"), "the generator's words"
    assert "faithfulness/heads/mean/ap/cpr" not in summary


def test_one_deleted_by_ap_is_its_largest_effect(run_with):
    result = run_with("faithfulness=heads", "model.dtype=float64")
    sweep = result.findings["faithfulness"].groups[0]
    deletion = points(sweep, "ap", "deletion", "magnitude")
    effect = result.maps["heads"]["ap"].effect.flatten()
    largest = effect[effect.abs().argmax()].item()
    assert (deletion[sweep.sizes.index(1)] - 1) * (sweep.full - sweep.empty) == pytest.approx(largest, abs=1e-11)


def test_the_mean_of_generated_prompts_is_the_other_ablation(run_with):
    result = run_with("faithfulness=heads", "baseline=mean", "baseline.n=5", model=["model=ioi-mini"])
    corrupted, mean = result.findings["faithfulness"].groups
    assert (corrupted.ablation, mean.ablation, mean.reason) == ("corrupted", "mean", "")
    assert corrupted.full == pytest.approx(mean.full, abs=1e-5)
    assert abs(corrupted.empty - mean.empty) > 0.01

    with contrast(load_model(), result.pairs[0], baseline=Baseline("mean", n=5)) as question:
        given = {hook_name("heads", layer): lambda z, a=a: a for layer, a in enumerate(question.source["heads"])}
        with edit_hooks(question.model, given):
            value = metric(question.model, question.clean.tokens[:, None], question.readout)
    assert mean.empty == pytest.approx(value.item(), abs=1e-4)


def test_both_sites_of_several_pairs_have_intervals_and_the_same_seed_the_same_numbers(many, small):
    told = []

    def found(**settings):
        config = many.config.model_copy(update={"faithfulness": "both", **settings})
        tell = lambda done, total: told.append((done, total))  # noqa: E731
        return follow("faithfulness", config, small(), many.pairs, many.maps, many.comparisons, tell)

    first = found()
    assert told == sorted(told)
    assert told[-1] == (told[0][1], told[0][1])
    again, other = found(), found(seed=1)
    assert [sweep.site for sweep in first.groups] == ["heads", "heads", "neurons", "neurons"]
    summary = first.summary()
    assert summary == again.summary()
    start = "faithfulness/heads/corrupted/ap/cpr"
    assert summary[f"{start}_low"] < summary[start] < summary[f"{start}_high"]
    same = [name for name in summary if summary[name] == other.summary()[name]]
    assert [name for name in summary if name not in same and "/random/" not in name] == []
    assert [name for name in same if "/random/" in name] == []


def test_a_key_holds_what_the_curves_depend_on_and_only_when_there_are_some():
    def key(*overrides):
        config = compose_one(list(overrides)).config
        return config.key_of([("a", "b", "c", "d")], {})

    assert key() == key("seed=1") != key("faithfulness=heads")
    assert len({key("faithfulness=heads", other) for other in ("seed=0", "seed=1", "baseline.n=7")}) == 3


def test_it_is_left_out_unless_it_is_asked_for(result):
    assert "faithfulness" not in result.findings
