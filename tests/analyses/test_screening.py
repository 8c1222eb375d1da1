"""Distances of cheap methods from AP: by hand, against scipy, and on a finished run."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from igap import pipeline
from igap.analyses.screening import proxy_fidelities
from igap.attribution import AttributionMap
from igap.cli.compose import compose_one
from igap.components import SITES
from igap.models import cached


def maps(**effects):
    """Maps of both sites with these effects, each 40 numbers, gap 2."""
    return {
        site: {
            method: AttributionMap(
                method,
                site,
                torch.tensor(values, dtype=torch.float64).view(4, 10),
                gap=2.0,
                signed=method != "atp_star",
            )
            for method, values in effects.items()
        }
        for site in SITES
    }


def of(proxies, method, site="heads"):
    (found,) = (one for one in proxies.methods if (one.method, one.of) == (method, site))
    return {name: number for name, (number, _) in found.numbers().items()}


EXACT = np.arange(40, 0, -1) * (-1.0) ** np.arange(40)  # component 0 is first, 39 last, signs alternate


def test_a_method_that_equals_ap_misses_nothing():
    found = of(
        proxy_fidelities(maps(ig=EXACT, ap=EXACT, atp=EXACT, atp_star=np.abs(EXACT)), compose_one([]).config), "ig"
    )
    assert found == {
        "pearson": pytest.approx(1), "spearman": pytest.approx(1),
        "overlap@10": 1, "missed@10": 0, "needed@10": 10, "overlap@30": 1, "missed@30": 0, "needed@30": 30,
    }  # fmt: skip


def test_a_component_that_a_method_ranks_too_low_is_a_false_negative_with_its_price():
    """AP's third component is 25th by the method: of AP's top 10 it misses one and needs its top 25."""
    estimate = EXACT.copy()
    estimate[2] = 15.5  # between the components of 16 (place 24 without component 2) and of 15
    found = of(
        proxy_fidelities(maps(ig=estimate, ap=EXACT, atp=EXACT, atp_star=np.abs(EXACT)), compose_one([]).config), "ig"
    )
    assert (found["missed@10"], found["overlap@10"], found["needed@10"]) == (1, 0.9, 25)
    assert (found["missed@30"], found["overlap@30"], found["needed@30"]) == (0, 1, 30)


def test_the_correlations_of_the_scores_are_scipys_and_those_without_sign_of_magnitudes():
    rng = np.random.default_rng(0)
    cheap, magnitudes = EXACT + rng.normal(0, 20, 40), np.abs(EXACT + rng.normal(0, 20, 40))
    proxies = proxy_fidelities(maps(ig=EXACT, ap=EXACT, atp=cheap, atp_star=magnitudes), compose_one([]).config)
    for site in SITES:
        for method, x, y in (("atp", cheap, EXACT), ("atp_star", magnitudes, np.abs(EXACT))):
            assert of(proxies, method, site)["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic)
            assert of(proxies, method, site)["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic)


def test_components_a_method_cannot_tell_apart_count_as_found_last():
    """AP's first component has effect 0 by the method, as has the last: it has to take all 40."""
    estimate = EXACT.copy()
    estimate[[0, 39]] = 0
    found = of(
        proxy_fidelities(maps(ig=estimate, ap=EXACT, atp=EXACT, atp_star=np.abs(EXACT)), compose_one([]).config), "ig"
    )
    assert (found["missed@10"], found["needed@10"]) == (1, 40)


def test_what_is_undefined_has_a_reason():
    few, same = np.where(np.arange(40) < 12, EXACT, 0.0), np.ones(40)
    proxies = proxy_fidelities(maps(ig=same, ap=few, atp=few, atp_star=np.abs(few)), compose_one([]).config)
    summary = proxies.summary()
    assert summary["heads/ig/pearson"] is None
    assert summary["heads/ig/pearson/reason"] == "IG scores are constant"
    assert summary["heads/atp/missed@30"] is None
    assert summary["heads/atp/needed@30"] is None
    for name in ("missed@30", "needed@30", "overlap@30"):
        assert summary[f"heads/atp/{name}/reason"] == "a map has only 12 non-zero components, fewer than k = 30"
    assert summary["heads/atp/missed@10"] == 0
    assert "heads/atp/missed@10/reason" not in summary


def test_a_model_of_one_layer_has_no_atp_star_and_says_why(checkpoint, monkeypatch):
    monkeypatch.setattr(cached, "_cached_model", cached._cached_model.__wrapped__)
    overrides = ["model=hf", f"model.name={checkpoint('gpt2', n_layers=1)}", "prompts.min_gap=0", "device=cpu"]
    config = compose_one([*overrides, "ig.n_steps=2"]).config
    found = pipeline.run(config)
    assert list(found.maps["heads"]) == ["ig", "ap", "atp"]
    summary = found.findings["screening"].summary()
    assert summary["heads/atp_star/pearson"] is None
    reason = "a mean over the other layers, of which this model has none"
    assert summary["heads/atp_star/pearson/reason"] == summary["neurons/atp_star/missed@10/reason"] == reason
    assert f"heads, ATP_STAR against |AP|: {reason}" in found.findings["screening"].sentences()


def test_a_run_writes_the_table_and_says_it_in_sentences(result, written):
    table = pd.read_csv(written / "screening.csv").set_index(["of", "method"])
    assert list(table.index) == [(site, method) for site in SITES for method in ("ig", "atp", "atp_star")]
    summary = result.findings["screening"].summary()
    assert table.loc[("neurons", "atp"), "pearson"] == pytest.approx(summary["neurons/atp/pearson"])
    assert summary["heads/ig/pearson"] == pytest.approx(result.comparisons["heads"].pearson)
    line = result.findings["screening"].sentences()[4]
    assert line.startswith(f"neurons, ATP against AP: r {summary['neurons/atp/pearson']:.3f}, Spearman ")
    missed, needed = summary["neurons/atp/missed@10"], summary["neurons/atp/needed@10"]
    assert f"; misses {missed} of AP's top 10 (needs its own top {needed}), " in line
