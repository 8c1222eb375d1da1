"""The analysis `sets` of a run: its numbers, tables, lines and bars, and what it refuses before the model loads."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.opened import follow

from igap import cli, set_effects
from igap.analyses.sets.analysis import Sets, SetsAnalysis
from igap.analyses.sets.plots import set_bars
from igap.cli.compose import compose_one
from igap.errors import InputError
from igap.models.load import read_header
from igap.storage import typed_file

SETS = "0.1+1.2+L2.N3 top2:ig 2.0"


@pytest.fixture(scope="module")
def sets(small, result):
    """What the analysis finds on the notebook's pair, and the set as the public function has it."""
    model = small()
    config = compose_one(["analyses=sets", f"analyses.sets.components='{SETS}'", "analyses.sets.n_steps=3"]).config
    return follow("sets", config, model, result.pairs, result.maps, result.comparisons)


def test_it_is_the_public_function_on_each_set(sets, small, result):
    first, second, third = sets.by_name.values()
    ours = set_effects(small(), list(result.pairs), "0.1+1.2+L2.N3", n_steps=3)
    assert (first.by_pair == ours.by_pair).all()
    assert (first.ig == ours.ig).all()
    strongest = result.maps["heads"]["ig"].effect.abs().flatten().topk(2).indices.tolist()
    assert second.members == tuple(f"{i // 4}.{i % 4}" for i in strongest)
    assert third.members == ("2.0",)


def test_numbers_and_tables_say_what_the_sets_do(sets):
    summary, tables = sets.summary(), sets.tables()
    first = next(iter(sets.by_name.values()))
    name = "sets/0.1+1.2+L2.N3"
    assert summary[f"{name}/members"] == "0.1 1.2 L2.N3"
    assert summary[f"{name}/effect"] == first.effect
    assert summary[f"{name}/interaction"] == pytest.approx(first.effect - first.alone.sum())
    largest = max(first.interactions[[len(subset) > 1 for subset in first.subsets]], key=abs)
    assert summary[f"{name}/largest_interaction"] == largest
    assert summary[f"{name}/largest_interaction/of"] == first.subset_frame()["interaction"].eq(largest).idxmax()
    assert summary["sets/2.0/largest_interaction"] is None
    assert summary["sets/2.0/largest_interaction/reason"] == "the set has one component"
    assert tables["sets"].groupby("set", sort=False).size().to_dict() == {"0.1+1.2+L2.N3": 7, "top2:ig": 3, "2.0": 1}
    assert tables["set_members"]["name"].tolist()[:3] == ["0.1", "1.2", "L2.N3"]
    said = sets.sentences()
    assert said[0].startswith(f"0.1+1.2+L2.N3 moved together: {first.effect:+.3f} logits, alone ")
    assert any(line.startswith("top2:ig: ") for line in said)


def test_the_finding_reads_back_from_a_file(sets):
    tensors: dict[str, torch.Tensor] = {}
    tree = json.loads(json.dumps(typed_file.encode(sets, tensors)))
    again = typed_file.decode(Sets, tree, tensors, "sets")
    assert again.summary() == sets.summary()
    pd.testing.assert_frame_equal(again.tables()["sets"], sets.tables()["sets"])


def test_bars_are_as_high_as_the_numbers(sets):
    (figure,) = SetsAnalysis().figures(sets, "title").values()
    first = next(iter(sets.by_name.values()))
    members, interactions = figure.axes[:2]
    order = np.argsort(-np.abs(first.shapley))
    frame = first.to_frame().iloc[order]
    assert [label.get_text() for label in members.get_xticklabels()] == frame.index.tolist()
    heights = [bar.get_height() for bar in members.patches]
    assert heights == pytest.approx(np.concatenate([frame[c] for c in ("alone", "shapley", "ig", "last")]))
    widths = [bar.get_width() for bar in interactions.patches]
    several = first.subset_frame().query("size > 1")["interaction"]
    assert widths == pytest.approx(several[several.abs().sort_values(ascending=False).index])
    legend = [text.get_text() for text in figure.legends[0].texts]
    assert legend == ["alone", "Shapley value", "IG of the set", "after all others"]


def test_of_many_members_the_first_are_drawn_with_their_intervals(small, pair):
    names = [f"{layer}.{head}" for layer in range(3) for head in range(4)] + ["L0.N1"]
    effects = set_effects(small(), pair, names, n_orders=4, n_steps=1)
    members, interactions = set_bars({"all": effects}).axes
    assert len(members.get_xticklabels()) == len(interactions.patches) == 12
    assert members.get_title().startswith("all, 12 of 13 members: together ")
    shown = effects.to_frame().loc[[label.get_text() for label in members.get_xticklabels()]]
    (bars,) = members.collections
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    assert ends == pytest.approx(shown[["shapley_low", "shapley_high"]].to_numpy())


@pytest.mark.parametrize(
    ("components", "more", "message"),
    [
        ("0.1+0.1", [], r"wanted each component once, not 0\.1 twice\. Try analyses\.sets\.components=top4:ap\."),
        ("0.1 00.1", [], r"wanted each component or set once, not '00\.1' twice"),
        ("", [], r"got '', wanted at least one component such as 9\.6, or set such as 9\.6\+9\.9"),
        ("0.1+2", [], r"'2' is none of these"),
        ("0.8", [], r"got 0\.8, but the model has 8 heads in a layer \(0 to 7\)"),
        ("0.1+L9.N1", [], r"got L9\.N1, but the model has 4 layers"),
        ("top33:ap", [], r"got top33:ap, but the model has 32 heads\. Use fewer\."),
        ("top3:kl", [], r"got 'top3:kl', wanted topK:METHOD alone, K from 1 to 64 and METHOD of ig, ap, atp\."),
        ("ioi:name", [], r"wanted one of ioi:name-mover, .* for 'ioi:name'"),
        ("ioi:induction", [], r"got ioi:induction, heads of GPT-2 small"),
        ("0.1+L0.N1", ["sites=heads"], r"got 0\.1\+L0\.N1 with sites=heads, wanted neurons among the sites"),
        ("top2:ap", ["sites=neurons"], r"got top2:ap with sites=neurons, wanted heads among the sites"),
    ],
)
def test_bad_sets_are_one_line_and_exit_code_2_before_the_model_loads(components, more, message, capsys, tmp_path):
    asked = ["analyses=sets", f"analyses.sets.components='{components}'", "tracking=disabled", *more]
    assert cli.main(["run", *asked, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("igap: analyses.sets.components: ")
    assert re.search(message, line), line


def test_a_class_of_the_circuit_needs_a_run_that_has_it(tmp_path):
    header = replace(read_header("ioi-mini"), n_layers=12, n_heads=12)
    config = compose_one(["analyses=sets", "analyses.sets.components=ioi:S-inhibition"]).config
    with pytest.raises(InputError, match=r"got ioi:S-inhibition, a class of the IOI circuit, with model\.circuit=null"):
        SetsAnalysis().check(config, header)
    config = compose_one(["analyses=sets", "analyses.sets.components=ioi:S-inhibition", "model.circuit=ioi"]).config
    assert SetsAnalysis().check(config, header) == {}
