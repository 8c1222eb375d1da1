"""The reference of the site: every name that is written stands there, and every name that stands there is written."""

import json
import re
from pathlib import Path

import pytest
import torch

from igap.attribution import methods
from igap.cli import main
from igap.components import PLACES, SITES
from igap.counterfactual.validation import optimality
from igap.inputs.mib import MibGraph, node_names
from igap.output import figures
from igap.output.dashboard.page import IN_UNIT

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "summary.md"
METHODS = "|".join([*methods.METHODS, "atp_qk", "random"])
WORDS = {
    "SITE": "|".join(PLACES),
    "NODE": "queries|keys|values",
    "METHOD": METHODS,
    "KIND": "zero|mean|mean_positional|resample",
    "OTHER": "ig|ap|ap - ig",
    "RANKING": "signed|absolute",
    "PART": "wording|corruption|names|rest_of_prompt|method|method_by_prompt",
    "TERM": "curvature|quadrature|baseline|interaction|direction",
    "BY": "corrupted|mean",
    "K": r"\d+",
    "N": r"\d+",
    "SET": "[^/]+",
    "CLASS": "[A-Za-z][A-Za-z -]+",
    "STAGE": "[^/]+",
    "PACKAGE": "[^/]+",
    "SLOT": "[^/]+",
    "CONSTRAINT": "[^/]+",
    "OBJECTIVE": "ap|ig|disagreement|selectivity|curve|error|fluency|edits",
    "POINT": r"\w+",
    "I": r"\d+",
}


def pattern(name):
    """The regular expression of a name as the pages write it."""
    text = re.escape(name).replace(re.escape("[_low, _high]"), "(_low|_high)?")
    return re.compile(re.sub("[A-Z]+", lambda word: f"({WORDS[word[0]]})", text))


def patterns(kind):
    """The regular expression of each name of the page, by the name as it stands there; `kind` is run or search."""
    sections = re.findall(rf"^## A {kind}: .*?(?=^## |\Z)", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| (`.*?) \|", "\n".join(sections), flags=re.MULTILINE)
    return {name: pattern(name) for row in rows for name in re.findall(r"`([^`]+)`", row)}


def compare(kind, written):
    """Names written without a row, and rows that nothing written matches."""
    known = patterns(kind)
    bare = {name.removesuffix("/reason") if name != "route/reason" else name for name in written}
    unknown = {name for name in bare if not any(pattern.fullmatch(name) for pattern in known.values())}
    unused = {name for name, pattern in known.items() if not any(map(pattern.fullmatch, bare))}
    return unknown, unused


def check_columns(folder):
    """Every column of every table stands in the row of its file."""
    sections = (PAGE.parent / "files.md").read_text().partition("## A search")[::2]
    sites = "|".join(set(PLACES) - set(SITES))
    for path in folder.rglob("*.csv"):
        section = sections[(path.parent / "trials.csv").exists()]
        name = re.sub(rf"^({sites})(?=\.|_)|^({'|'.join(SITES)})(?=_)", "SITE", path.name)
        (row,) = re.findall(rf"^\| `{name}`(.*)$", section, flags=re.MULTILINE)
        known = [pattern(name) for name in re.findall("`([^`]+)`", row)]
        for column in path.read_text().splitlines()[0].split(","):
            assert any(each.fullmatch(column) for each in known), (path.name, column)


def of_run(folder, *overrides):
    """The names in summary.json of a run."""
    assert main(["run", f"hydra.run.dir={folder}", "tracking=disabled", "plots=none", *overrides]) == 0
    return set(json.loads((folder / "summary.json").read_text()))


def test_the_page_of_comparisons_knows_which_numbers_are_in_the_unit_of_f():
    """Those of the reference whose unit is F's; `logit_diff` is in logits whatever F is."""
    section = "\n".join(re.findall(r"^## A run: .*?(?=^## |\Z)", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL))
    of_f = re.findall(r"^\| (`.*?) \|.*\| (?:logits|F's) \|$", section, flags=re.MULTILINE)
    others = re.findall(r"^\| (`.*?) \|.*\| (?:none|\[0, 1\]|s|)\s*\|$", section, flags=re.MULTILINE)
    words = ("patched", "dominant", "unconverged_layers", "/of", "/first", "/last")

    def names(rows):
        every = [name.replace("[_low, _high]", end) for row in rows for name in re.findall("`([^`]+)`", row)
                 for end in ("", "_low")]  # fmt: skip
        return {name for name in every if not name.endswith(words) and not re.search("logit_diff|^metric", name)}

    assert [name for name in names(of_f) if not IN_UNIT.fullmatch(name)] == []
    assert [name for name in names(others) if IN_UNIT.fullmatch(name)] == []
    assert len(names(of_f)) > 20
    assert len(names(others)) > 40


@pytest.mark.long
@pytest.mark.usefixtures("one_model")
def test_every_name_of_a_run_stands_there_and_no_other(tmp_path):
    from igap.analyses.circuit.recovery import recover
    from igap.attribution import AttributionMap

    brief = ("ig.n_steps=2", "explain=false")
    written = of_run(
        tmp_path / "one",
        "ig.n_steps=2",
        "ablation=zero",
        "ablation.n=8",
        "ablation.controls=1",
        "faithfulness=heads",
        "baseline=mean",
        "baseline.n=2",
        "analyses=[both_directions,self_repair,direct_effect,edges,sets]",
        "analyses.edges.readers=[logits]",
        "analyses.sets.components='0.1+1.2 top2:ig'",
    )
    written |= of_run(tmp_path / "many", "prompts.n=4", "sites=heads", "analyses=sets", *brief)
    written |= of_run(
        tmp_path / "each",
        "metric=logprob",
        "prompts.answer= John and Mary",
        "positions=each",
        "analyses=[both_directions,self_repair,direct_effect]",
        "sites=heads,k,resid_pre",
        "explain=heads,resid_pre",
        "ig.n_steps=2",
    )
    written |= of_run(tmp_path / "top", "ap.top=5", "sites=neurons", *brief)
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(
        "clean,corrupted,answer,distractor\n"
        '"After John and Mary went to the store, Mary gave a bottle of milk to",'
        '"After John and Mary went to the store, John gave a bottle of milk to", John, Mary\n'
    )
    written |= of_run(tmp_path / "file", f"prompts.file={pairs}", "prompts.skip_invalid=true", "sites=heads", *brief)
    nodes = dict.fromkeys(node_names(4, 8), True)
    graph = MibGraph(4, 8, 128, parallel=False, in_graph=nodes | {"m1": False}, scores={"m0": 1.0}, edges={})
    (tmp_path / "graph.json").write_text(graph.to_text())
    asked = ("analyses=mib", "sites=[heads,mlp_out,resid_pre]", f"analyses.mib.graph={tmp_path / 'graph.json'}")
    written |= of_run(tmp_path / "mib", *asked, *brief)
    ablated = ("ablation=zero", "ablation.components='0.1'", "ablation.n=4", "ablation.controls=0")
    written |= of_run(tmp_path / "ablated", "metric=prob", "positions=last", "sites=heads", *ablated, *brief)
    written |= set(recover([AttributionMap("ap", "heads", torch.rand(12, 12), gap=1.0)]).summary())
    check_columns(tmp_path)
    unknown, unused = compare("run", written)
    assert not unknown
    # Where something is missing or failed, and of the notebook's study, which takes too long here.
    assert unused == {"failed", "qk", "mib/cpr", "notebook/n_compared", "notebook/n_agree", "notebook/differ"} | {
        f"faithfulness/SITE/BY/{area}" for area in ("cpr", "cmd", "deletion")
    }


@pytest.mark.long
@pytest.mark.usefixtures("one_model", "small_searches")
def test_every_name_of_a_search_stands_there_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "figures", lambda data: {})  # of the full run
    few = [f"search.space.slots.{slot}=['=keep']" for slot in ("first", "place", "verb", "object")]
    few += ["search.space.slots.second=['=keep',Tom]", "search.space.slots.subject=['=keep','=IO',Tom,Anna,Paul]"]
    budget = ("search.until=8", "clean.n=1", "heldout.n=2", "search.control=2", "metric=prob", *few)
    assert main(["search", "head=1.2", *budget, f"output={tmp_path}", "tracking=disabled", "full_run=false"]) == 0
    asked = ["objective=error", "estimator=ig_zero", "full_run=false"]
    assert main(["search", "head=1.2", *asked, *budget, f"output={tmp_path}", "tracking=disabled"]) == 0
    whole = ("search/space=relational", "search.sampler=brute", "full_run=false")
    assert main(["search", "head=1.3@S2", *budget, *whole, f"output={tmp_path}", "tracking=disabled"]) == 0
    monkeypatch.setattr(optimality, "MOVES", 1)
    bounded = ("search/space=relational", "full_run=false", "optimality=9000")
    assert main(["search", "head=1.4", *budget, *bounded, f"output={tmp_path}", "tracking=disabled"]) == 0
    written = set()
    for summary in Path(tmp_path).rglob("search_summary.json"):
        check_columns(summary.parent)
        written |= set(json.loads(summary.read_text()))
    unknown, unused = compare("search", written)
    assert not unknown
    assert unused == {"failed", "error/terms"}  # of an estimator that the chain does not begin at


def test_messages_are_those_of_the_sources(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    pytest.importorskip("mkdocs")
    from message_hook import messages_page

    page = messages_page()
    assert "- ig.n\\_steps: got auto with ig.path=single, wanted a number there. Try ig.n\\_steps=50." in page
    assert "- index: got *index*, wanted one of *names* components. Try index=0." in page
    said = sum(path.read_text().count("raise InputError(") for path in (ROOT / "igap").rglob("*.py"))
    assert len(re.findall("^- ", page, flags=re.MULTILINE)) > 0.8 * said
