"""The analysis: what it finds on a run, its files and its picture, and what it refuses before the model loads."""

import json

import numpy as np
import pandas as pd
import pytest
from helpers.checkpoints import save_checkpoint
from helpers.opened import follow

from igap import edge_effects
from igap.analyses.edges.effects import SENDERS, circuit_values
from igap.analyses.edges.plots import draw_circuit
from igap.analyses.registry import ANALYSES
from igap.cli.compose import compose_one
from igap.engine.open_pairs import open_pairs
from igap.pipeline import check


@pytest.fixture(scope="module")
def found(many, small):
    """The edges of two pairs, three of whose readers are patched exactly."""
    asked = {"methods": ["atp", "ig_inputs"], "readers": ["logits", "1.0.q", "0.1.v"], "n_edges": 12, "n_steps": 8}
    config = many.config.model_copy(update={"analyses": {"edges": asked}})
    return follow("edges", config, small(), many.pairs[:2], many.maps, many.comparisons)


def test_a_run_finds_what_the_function_finds(found, many, small):
    frame = found.tables()["edges"]
    for method, options in (
        ("atp", {}),
        ("ig_inputs", {"n_steps": 8}),
        ("ap", {"readers": ["logits", "1.0.q", "0.1.v"]}),
    ):
        expected = edge_effects(small(), many.pairs[:2], method, **options).to_frame()
        own = frame[["sender", "reader", f"effect_{method}"]].dropna().rename(columns={f"effect_{method}": "effect"})
        keys = ["sender", "reader"]
        pd.testing.assert_frame_equal(
            own.sort_values(keys, ignore_index=True), expected.sort_values(keys, ignore_index=True), atol=1e-6
        )
    assert (frame["effect_atp"].abs().diff().dropna() <= 0).all()


def test_its_numbers_are_those_of_its_tables(found, many, small):
    summary, frame = found.summary(), found.tables()["edges"]
    first = frame.loc[frame["effect_ig_inputs"].abs().idxmax()]
    assert summary["edges/n"] == len(frame)
    assert summary["edges/ig_inputs/first"] == f"{first['sender']}->{first['reader']}"
    assert summary["edges/ig_inputs/first/effect"] == first["effect_ig_inputs"]
    both = frame.dropna()
    assert 3 < len(both) < len(frame)
    assert summary["edges/atp/pearson_ap"] == pytest.approx(np.corrcoef(both["effect_atp"], both["effect_ap"])[0, 1])
    graph = json.loads(found.texts()["edges_atp.json"])["edges"]
    assert len(graph) == len(frame)
    assert summary["edges/atp/circuit/n"] == sum(edge["in_graph"] for edge in graph.values()) > 0
    value = summary["edges/atp/circuit/faithfulness"]
    said = found.sentences()
    assert said[1].startswith(
        f"greedy circuit of {summary['edges/atp/circuit/n']} edges by atp: faithfulness {value:.3f}"
    )
    masks = [effects.circuit(12) for effects in found.maps.values()]
    each = []
    for pair in many.pairs[:2]:
        with open_pairs(small(), pair, sites=SENDERS) as opened:
            each.append(circuit_values(opened, masks))
    of_circuit, full, corrupted = np.mean(
        [(of_pair.circuits[0], of_pair.full, of_pair.corrupted) for of_pair in each], 0
    )
    assert value == pytest.approx((of_circuit - corrupted) / (full - corrupted), abs=1e-5)
    assert said[-1].startswith("largest of ")
    assert "by ap" in said[-1]


def test_the_picture_has_a_line_an_edge_of_the_circuit(found):
    (figure,) = ANALYSES["edges"].figures(found, "a model").values()
    (ax,) = figure.axes
    arrows = [text for text in ax.texts if not text.get_text()]
    names = {text.get_text() for text in ax.texts if text.get_text()}
    assert len(arrows) == found.summary()["edges/atp/circuit/n"]
    assert {"input", "logits"} <= names
    assert "no edge has a way" in draw_circuit(found.maps["atp"], 1).axes[0].texts[0].get_text()


def test_where_f_does_not_change_there_is_no_faithfulness(many, small):
    config = many.config.model_copy(update={"analyses": {"edges": {"methods": ["atp"]}}})
    config = config.model_copy(update={"prompts": config.prompts.model_copy(update={"min_gap": 1000.0})})
    summary = follow("edges", config, small(), many.pairs[:1], many.maps, many.comparisons).summary()
    assert summary["edges/atp/circuit/faithfulness"] is None
    assert summary["edges/atp/circuit/faithfulness/reason"].startswith("not defined, F(clean) is ")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["analyses.edges.readers=[9.0.q]"], r"analyses\.edges\.readers: got 9\.0\.q, but the model has 4 layers"),
        (["analyses.edges.readers=[logit]"], r"analyses\.edges\.readers: got 'logit', wanted"),
        (["analyses.edges.methods=[]"], r"analyses\.edges\.methods: got \(\), wanted at least one entry"),
        (["analyses.edges.methods=[eap]"], r"analyses\.edges\.methods.*: got 'eap', wanted"),
        (
            ["positions=each"],
            r"edges: got it together with metric=logit_diff positions=each, but it is of all positions",
        ),
        (["metric=kl"], r"analyses\.edges\.methods: got atp with metric=kl, but it is to first order, and kl is least"),
        (["model.dtype=bfloat16"], r"analyses: got edges of model\.name=ioi-mini, .*bfloat16 rounds too much"),
    ],
)
def test_what_it_cannot_do_is_refused_before_the_model_loads(overrides, message):
    with pytest.raises(ValueError, match=message):
        check(compose_one(["analyses=edges", *overrides]).config)


def test_a_model_that_the_engine_has_no_form_for_is_refused_before_it_loads(tmp_path):
    save_checkpoint("gptj", 1, tmp_path)
    with pytest.raises(ValueError, match="the engine has no form for GPTJForCausalLM"):
        check(compose_one(["analyses=edges", "model=hf", f"model.name={tmp_path}", "sites=heads"]).config)
