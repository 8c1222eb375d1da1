"""CPR, CMD and graph files of MIB's circuit track: against numbers of its public evaluator, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.opened import run_context

from igap import PromptPair, activation_patching, attribution_patching, load_model, pipeline
from igap.analyses.faithfulness.rankings import SHARES
from igap.analyses.mib import SITES, Curve, kept_nodes, measure_mib
from igap.cli import main
from igap.cli.compose import compose_one
from igap.components import parse_set
from igap.errors import InputError
from igap.inputs.mib import MibGraph, node_names, place_of, read_graph

HELPERS = Path(__file__).parents[1] / "helpers"
PUBLISHED = json.loads((HELPERS / "mib_evaluator.json").read_text())
NODES = node_names(4, 8)
BRIEF = ("explain=false", "curves.components=none", "plots=none", "tracking=disabled", "ig.n_steps=2")
ASKED = ("analyses=mib", "sites=[heads,mlp_out,resid_pre]")


def graph(scores=None, kept=NODES, **fields):
    shape = {"n_layers": 4, "n_heads": 8, "d_model": 128, "parallel": False, "edges": {}, **fields}
    return MibGraph(in_graph={node: node in kept for node in NODES}, scores=scores or {}, **shape)


@pytest.fixture(scope="module")
def context():
    """A run in float64 of the pairs that the evaluator had."""
    model = load_model(dtype="float64", processing="raw")  # folded weights are rounded to float32
    pairs = [PromptPair(*texts) for texts in PUBLISHED["pairs"]]
    methods = {"ap": activation_patching, "atp": attribution_patching}
    maps = {site: {name: method(model, pairs, site) for name, method in methods.items()} for site in SITES}
    with run_context(compose_one([*ASKED]).config, model, pairs, maps, {}) as opened:
        yield opened


@pytest.mark.parametrize("case", PUBLISHED["cases"])
def test_the_numbers_are_those_of_the_public_evaluator(context, case):
    published = PUBLISHED["cases"][case]
    made = measure_mib(context, graph(published["scores"]))
    assert made.full == pytest.approx(PUBLISHED["full"], abs=1e-9)
    assert made.corrupted == pytest.approx(PUBLISHED["corrupted"], abs=1e-9)
    for curve in made.curves:
        if curve.method == "graph":
            theirs = published[curve.ranking]
            assert curve.faithfulness == pytest.approx(theirs["faithfulnesses"], abs=1e-9)
            assert curve.cpr == pytest.approx(theirs["area_under"], abs=1e-9)
            assert curve.cmd == pytest.approx(theirs["area_from_1"], abs=1e-9)
    assert sum(curve.method == "graph" for curve in made.curves) == 2


def test_the_runs_own_ranking_is_that_of_the_scores_that_the_evaluator_had(context):
    published = PUBLISHED["cases"]["ap"]
    made = measure_mib(context)
    # A run of folded weights wrote those scores, which float32 rounds.
    assert dict(made.graphs["ap"].scores) == pytest.approx(published["scores"], abs=1e-6)
    (signed,) = (curve for curve in made.curves if (curve.method, curve.ranking) == ("ap", "signed"))
    assert signed.cpr == pytest.approx(published["signed"]["area_under"], abs=1e-9)
    assert made.circuit == ()


def test_areas_begin_at_the_first_share():
    whole = Curve("ap", "signed", (1,) * 10, (1.0,) * 10)
    assert whole.cpr == pytest.approx(0.999)
    assert whole.cmd == 0
    assert Curve("ap", "signed", (1,) * 10, (2.0,) * 10).cmd == pytest.approx(0.999)
    assert (SHARES[0], SHARES[-1], len(SHARES)) == (0.001, 1.0, 10)


def test_a_circuit_keeps_what_has_no_score_and_the_largest():
    scores = np.array([0.5, np.nan, -2.0, 0.5, 1.0])
    assert kept_nodes(scores, 2, absolute=False).tolist() == [True, True, False, False, True]
    assert kept_nodes(scores, 2, absolute=True).tolist() == [False, True, True, False, True]
    assert kept_nodes(scores, 4, absolute=False).all()
    assert kept_nodes(scores, 0, absolute=True).tolist() == [False, True, False, False, False]


def test_a_graph_without_scores_is_measured_as_a_circuit_and_searched_for(context):
    kept = ("input", "m0", "a0.h3", "a3.h1", "a3.h3", "a3.h5", "a3.h6")
    made = measure_mib(context, graph(kept=kept))
    assert made.circuit == ("L0.resid_pre", "0.3", "L0.mlp_out", "3.1", "3.3", "3.5", "3.6")
    assert len(parse_set("+".join(made.circuit))) == 7, "a set that analyses.sets.components takes"
    scored = measure_mib(context, graph({node: float(node in kept) for node in NODES}))
    (curve,) = (curve for curve in scored.curves if (curve.method, curve.ranking) == ("graph", "signed"))
    assert curve.sizes[7] == 7
    assert made.circuit_faithfulness == pytest.approx(curve.faithfulness[7], abs=1e-12)
    ap = next(each for each in made.recovery if each.method == "ap")
    assert 0.5 < ap.average_precision <= 1
    assert f"the graph's circuit of 7 of 37 nodes, faithfulness {made.circuit_faithfulness:.3f}" in made.sentences()[-1]


def test_a_graph_of_eap_ig_is_read_and_written_back_with_its_edges():
    file = HELPERS / "mib_graph.json"
    read = read_graph(str(file), item="graph", n_layers=2, n_heads=2)
    assert [node for node, kept in read.in_graph.items() if kept] == ["input", "a0.h0", "m0"]
    assert read.scores == {}
    assert read.edges["input->a0.h0<q>"] == {"score": pytest.approx(-1.12583983), "in_graph": True}
    assert json.loads(read.to_text()) == json.loads(file.read_text())


def test_nodes_are_in_the_order_of_the_forward_pass():
    assert node_names(2, 2) == ["input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1"]
    assert [place_of(node) for node in ("input", "a12.h3", "m7")] == [
        ("resid_pre", 0, 0), ("heads", 12, 3), ("mlp_out", 7, 0),
    ]  # fmt: skip


def test_a_run_writes_graphs_that_another_reads(tmp_path, capsys):
    assert main(["run", f"hydra.run.dir={tmp_path / 'a'}", *BRIEF, *ASKED]) == 0
    assert "MIB, whole model, 37 nodes, CPR by signed scores (larger is better): " in capsys.readouterr().out
    file = tmp_path / "a" / "mib_ap.json"
    heads = pd.read_csv(tmp_path / "a" / "heads.csv")
    read = read_graph(str(file), item="graph", n_layers=4, n_heads=8)
    assert [read.scores[f"a{h.layer}.h{h.head}"] for h in heads.itertuples()] == pytest.approx(
        list(-heads["effect_ap"])
    )
    assert not (tmp_path / "a" / "mib_atp_star.json").exists(), "it has no sign, and no map of MLPs"
    assert main(["run", f"hydra.run.dir={tmp_path / 'b'}", *BRIEF, *ASKED, f"analyses.mib.graph={file}"]) == 0
    first, second = (json.loads((tmp_path / name / "summary.json").read_text()) for name in "ab")
    assert second["mib/graph/signed/cpr"] == pytest.approx(first["mib/ap/signed/cpr"], abs=1e-6)
    assert first["key"] != second["key"]
    table = pd.read_csv(tmp_path / "b" / "mib.csv")
    assert set(table["method"]) == {"ig", "ap", "atp", "graph"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("analyses=mib",), "sites: got both with analyses=mib, wanted resid_pre, mlp_out too"),
        ((*ASKED, "direction=denoising"), "direction: got denoising with analyses=mib, wanted noising"),
        ((*ASKED, "baseline=zero"), "baseline: got zero with analyses=mib, wanted corrupted"),
        ((*ASKED, "metric=prob"), "mib: got it together with metric=prob"),
        ((*ASKED, "analyses.mib.graph=none.json"), "analyses.mib.graph: got none.json, which is no graph of MIB's"),
    ],
)
def test_what_mib_does_not_have_is_refused(overrides, message, capsys):
    assert main(["run", *BRIEF, *overrides]) == 2
    assert message in capsys.readouterr().err


def tree(**changed):
    whole = json.loads(graph({"m0": 1.0}).to_text())
    for name, value in changed.items():
        place, (*path, last) = whole, name.split("__")
        for step in path:
            place = place[step.replace("_", ".")]
        place[last.replace("_h", ".h")] = value
    return whole


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1], "it is [1], wanted names and values"),
        ({"cfg": {}, "nodes": {}}, "edges is None, wanted names and values"),
        (tree(cfg={"n_layers": 2.5, "n_heads": 8, "d_model": 3}), "cfg has n_layers, n_heads, d_model [2.5, 8, 3]"),
        (tree(nodes__a9_h0={"in_graph": True}), "got node 'a9.h0', wanted input, a5.h1, m5 or logits of its 4 layers"),
        (tree(nodes={}), "it has no node input"),
        (tree(nodes__m0={"in_graph": 1}), "m0 has in_graph 1, wanted true or false"),
        (tree(nodes__m0={"in_graph": True, "score": "x"}), "m0 has score 'x', wanted a number"),
        (tree(nodes__m0={"in_graph": True, "score": True}), "m0 has score True, wanted a number"),
        (tree(nodes__m0={"in_graph": True, "neurons": [True]}), "m0 has neurons, single dimensions"),
        (tree(cfg={"n_layers": 3, "n_heads": 8, "d_model": 3}), "got node "),
    ],
)
def test_a_file_that_is_no_graph_is_refused_with_the_reason(content, reason, tmp_path):
    file = tmp_path / "graph.json"
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"analyses\.mib\.graph: got ") as caught:
        read_graph(str(file), item="analyses.mib.graph", n_layers=4, n_heads=8)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_graph_of_another_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="a graph of 2 layers with 2 heads each, with a model of 4 layers and 8 heads"):
        read_graph(str(HELPERS / "mib_graph.json"), item="graph", n_layers=4, n_heads=8)


def test_the_runs_key_depends_on_what_the_graph_holds(tmp_path):
    file = tmp_path / "graph.json"
    config = compose_one([*ASKED, f"analyses.mib.graph={file}"]).config
    keys = []
    for score in (1.0, 1.0, 2.0):
        file.write_text(graph({"m0": score}).to_text())
        keys.append(pipeline.check(config).key)
    assert keys[0] == keys[1] != keys[2]


def test_a_graph_of_edges_alone_is_refused(tmp_path, capsys):
    file = tmp_path / "graph.json"
    for kept in (NODES, ()):
        file.write_text(graph(kept=kept, edges={"input->m0": {"score": 1.0, "in_graph": True}}).to_text())
        assert main(["run", *BRIEF, *ASKED, f"analyses.mib.graph={file}"]) == 2
        assert "whose nodes have no scores and make no circuit" in capsys.readouterr().err


def test_a_score_that_is_nan_is_none(tmp_path):
    file = tmp_path / "graph.json"
    file.write_text(graph({"m0": 1.5, "m1": 2.5}).to_text().replace("2.5", "NaN"))
    assert read_graph(str(file), item="graph", n_layers=4, n_heads=8).scores == {"m0": 1.5}


def test_prompts_of_two_lengths_are_refused():
    texts = {
        "clean": "After John and Mary went to the store, Mary gave a bottle of milk to",
        "corrupted": "After John and Mary went to the store, John quietly gave a bottle of milk to",
        "answer": " John",
        "distractor": " Mary",
    }
    prompts = [f'prompts.{name}="{text}"' for name, text in texts.items()]
    result = pipeline.run(compose_one([*BRIEF, *ASKED, *prompts, "prompts.align=end"]).config)
    assert "prompts.corrupted: got another number of tokens than clean has" in result.failures["mib"].reason


def test_where_the_prompts_differ_by_too_little_there_is_a_reason_and_no_area(context):
    config = compose_one([*ASKED, "prompts.min_gap=100"]).config
    made = measure_mib(type(context)(config, context.opened, context.maps, {}))
    assert made.curves == ()
    assert made.summary()["mib/cpr"] is None
    assert "too near to divide by" in made.sentences()[0]
    assert torch.isfinite(torch.tensor(list(made.graphs["ap"].scores.values()))).all()
