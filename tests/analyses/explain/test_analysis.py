"""What a run says about why its heads disagree: sentences, table, summary, on a model worked by hand and on runs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import handmade
from helpers.opened import decompose, follow, interactions, run_context

from igap import activation_patching, attribution_patching, integrated_gradients
from igap.analyses.base import Finding
from igap.analyses.curves.analysis import select_components
from igap.analyses.explain.explanation import Explanation
from igap.attribution.decomposition import BETWEEN, TERMS
from igap.cli.compose import compose_one
from igap.statistics.comparison import compare


def by_hand(folder, baseline):
    """The explanation of the two heads of `handmade.two_heads`, both of them outliers."""
    model, pair = handmade.two_heads(folder), handmade.PAIR
    ig, ap = integrated_gradients(model, pair, baseline=baseline), activation_patching(model, pair)
    chain = decompose(model, pair, ig, ap, baseline=baseline)
    return Explanation(chain, "score", ("0.1", "0.0"), interactions(model, pair, "0.1"))


def compared(model, pairs, *overrides):
    """A run of these pairs up to its comparison."""
    config = compose_one(["prompts.min_gap=0", *overrides]).config
    asked = pairs if len(pairs) > 1 else pairs[0]
    maps = {}
    for site in ("heads", "neurons"):
        options = {"direction": config.direction}
        maps[site] = {
            "ig": integrated_gradients(
                model, asked, site, baseline=config.baseline.kind, path=config.ig.path, n_steps=9, **options
            ),
            "ap": activation_patching(model, asked, site, **options),
            "atp": attribution_patching(model, asked, site, **options),
        }
    comparisons = {site: compare(maps[site]["ig"], maps[site]["ap"]) for site in maps}
    return config, model, tuple(pairs), maps, comparisons


@pytest.fixture(scope="module")
def embedded(small, pair):
    """A run of the pair on the embedded model."""
    return compared(small("ioi-mini"), [pair])


def test_the_sentences_of_the_two_heads_are_those_worked_by_hand(tmp_path):
    """Gap 7. Zero baseline: IG -5 and -10, AP 20 and -15. Of 25, 19 are baseline; of -5, -11 baseline and 6 not."""
    found = by_hand(tmp_path, "zero")
    assert found.sentences() == (
        "0.1: AP -2.143, IG -1.429; the difference of -0.714 is 220% baseline (-1.571), -120% "
        "interaction with the rest of its layer (+0.857)",
        "0.0: AP +2.857, IG -0.714; the difference of +3.571 is 76% baseline (+2.714), 24% "
        "interaction with the rest of its layer (+0.857)",
        "interaction in AP - IG of 0.1, +6.000 logits (-I/2 with each of its layer): 0.0 +6.000; of higher order "
        "+0.000",
    )


def test_summary_and_tables_hold_every_point_and_term(tmp_path):
    found = by_hand(tmp_path, "corrupted")
    assert isinstance(found, Finding)
    summary = found.summary()
    assert summary["explain/interaction/mean_abs"] == pytest.approx(6)
    assert summary["explain/curvature/mean_abs"] == pytest.approx(2.5)
    assert summary["explain/dominant"] == "0.1:interaction 0.0:interaction"
    assert summary["explain/unconverged_layers"] == ""
    table = found.tables()["explanation"].set_index("name")
    assert table.loc["0.0", ["effect_atp", "effect_ig", "effect_ap", "effect_ap_mirrored"]].tolist() == pytest.approx(
        [16, 14, 20, 8]
    )
    assert table.loc["0.1", [f"effect_{name}" for name in TERMS]].tolist() == pytest.approx([3, 0, 0, 6, -12], abs=1e-4)
    for name in ("ap", *TERMS):
        np.testing.assert_allclose(table[name], table[f"effect_{name}"] / 7, atol=1e-12)
    assert table["converged"].all()
    parts = found.tables()["interactions"].set_index("part")
    assert parts["effect_share"].tolist() == pytest.approx([6, 0, 6], abs=1e-4)
    assert parts.loc["0.0", "interaction"] == pytest.approx(-12)


def test_a_run_explains_its_outliers_farthest_first_and_splits_the_one_that_interacts_most(embedded, small, pair):
    state = embedded
    found = follow("explain", *state)
    assert found.chain.points["ig"] is state[3]["heads"]["ig"]
    assert found.chain.points["atp"] is state[3]["heads"]["atp"]
    assert found.unit == "score"
    difference = state[4]["heads"].difference
    assert list(found.outliers) == state[4]["heads"].outliers("heads")
    told = found.of_outliers(100)
    assert list(told) == list(found.outliers)
    for name, values in told.items():
        layer, head = map(int, name.split("."))
        assert sum(values[term] for term in BETWEEN) == pytest.approx(difference[layer, head], abs=1e-12)
    size = {name: abs(values["interaction"]) for name, values in told.items()}
    assert found.split.component == max(size, key=size.get)
    shares = found.split.shares.sum().item()
    assert shares + found.higher_order == pytest.approx(found.interaction, abs=1e-12)
    config = compose_one(["prompts.min_gap=0", "interactions='1.2'"]).config
    asked = follow("explain", config, *state[1:])
    assert asked.split.component == "1.2"
    torch.testing.assert_close(asked.split.by_pair, interactions(small("ioi-mini"), pair, "1.2").by_pair)


def test_the_naive_ig_is_of_the_runs_baseline_and_the_path_and_direction_are_its_own(small, pair):
    found = follow("explain", *compared(small(), [pair], "baseline=zero"))
    naive = attribution_patching(small(), pair, baseline="zero")
    torch.testing.assert_close(found.chain.points["atp"].effect, naive.effect)
    single = follow("explain", *compared(small(), [pair], "ig.path=single"))
    assert single.split is None
    assert (single.chain.terms()["interaction"] == 0).all()
    mirrored = follow("explain", *compared(small(), [pair], "direction=denoising"))
    assert torch.equal(mirrored.chain.points["ap_mirrored"].effect, -activation_patching(small(), pair).effect)


def test_where_the_reference_does_not_converge_the_sentence_names_the_layers(small, pair):
    found = follow("explain", *compared(small("opt"), [pair]))
    layers = [layer for layer, fine in enumerate(found.chain.converged.tolist()) if not fine]
    assert layers
    named = ", ".join(map(str, layers))
    assert found.summary()["explain/unconverged_layers"] == " ".join(map(str, layers))
    assert f"{named} the most nodes leave IG off by more than 0.0001 of the gap" in found.sentences()[-1]
    table = found.tables()["explanation"]
    assert sorted(set(table.loc[~table["converged"], "layer"])) == layers


def test_heads_worth_a_curve_are_outliers_two_that_agree_and_two_null(embedded):
    state = embedded
    with run_context(*state) as context:
        chosen, left_out = select_components(context)
    outliers = state[4]["heads"].outliers("heads")
    assert [name for name, role in chosen.items() if role == "outlier"] == outliers[:8]
    assert left_out == max(0, len(outliers) - 8)
    ig, ap = (state[3]["heads"][name].score.numpy() for name in ("ig", "ap"))
    rest = {f"{i}.{j}": (ig[i, j], ap[i, j]) for i in range(4) for j in range(8) if f"{i}.{j}" not in outliers}
    null = sorted(rest, key=lambda name: max(map(abs, rest[name])))[:2]
    assert [name for name, role in chosen.items() if role == "null"] == null
    agreeing = [name for name, role in chosen.items() if role == "agreeing"]
    assert len(agreeing) == 2
    by_size = sorted(rest, key=lambda name: -min(map(abs, rest[name])))
    for name in agreeing:
        x, y = rest[name]
        assert by_size.index(name) < 5
        assert abs(x - y) < 0.2 * min(abs(x), abs(y))


def test_without_scores_sentences_are_in_logits(small, pair):
    found = follow("explain", *compared(small("ioi-mini"), [replace(pair, min_gap=1e6)]))
    assert found.unit == "logits"
    name = found.outliers[0]
    layer, head = map(int, name.split("."))
    ap = float(found.chain.points["ap"].effect[layer, head])
    assert found.sentences()[0].startswith(f"{name}: AP {ap:+.3f}, IG ")
    assert " logits; the difference of " in found.sentences()[0]
    table = found.tables()["explanation"]
    assert table[["ap", "interaction"]].isna().all(axis=None)
    assert table[["effect_ap", "effect_interaction"]].notna().all(axis=None)
