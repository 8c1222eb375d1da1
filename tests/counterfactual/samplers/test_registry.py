"""The samplers by name: each is where its line says, and a line is all that a new one needs, as sampler.md says."""

import itertools
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from helpers.searched import ABBA
from hydra.core.global_hydra import GlobalHydra

from igap import InputError, cli, search
from igap.counterfactual.config import check_terms
from igap.counterfactual.history import History, Proposal
from igap.counterfactual.samplers.base import FirstOrderScores, unseen
from igap.counterfactual.samplers.registry import SAMPLERS, SamplerEntry, make_sampler, samplers_for
from igap.counterfactual.spaces.base import KEEP, Slot, Space

PAGE = (Path(__file__).parents[3] / "docs" / "extending" / "sampler.md").read_text()
SPACE = Space("slots", (Slot("first", (KEEP, "Tom"), (1,)),))


def tiny(history, scores, n, rng):
    """All candidates in order, but the first."""
    return unseen(itertools.islice(history.space.candidates(), 1, None), n, set(history.seen), "tiny")


class Remembering:
    """A sampler that is made for each search."""

    def __init__(self, space, seed, n_objectives):
        self.made_for = (space, seed, n_objectives)

    def __call__(self, history, scores, n, rng):
        return []


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(SAMPLERS, "tiny", SamplerEntry(f"{__name__}:tiny", random_trials=False))


def test_the_pages_function_and_line_make_a_value_of_the_config_and_are_named_in_the_results(tmp_path, monkeypatch):
    function, line = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    module = ModuleType("igap.counterfactual.samplers.every_other")
    names = {"History": History, "Proposal": Proposal, "FirstOrderScores": FirstOrderScores, "np": np}
    module.__dict__.update(names | {"unseen": unseen, "itertools": itertools})
    exec(function, module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for name, entry in eval(f"{{{line}}}").items():
        monkeypatch.setitem(SAMPLERS, name, entry)
    asked = ["search", "head=1.2", "search.sampler=every_other", "search.until=20", "clean.n=1", "heldout.n=0"]
    asked += ["tracking=disabled", "full_run=false", "device=cpu", f"output={tmp_path}", "name=own"]
    assert cli.main(asked) == 0
    GlobalHydra.instance().clear()
    assert json.loads((tmp_path / "own" / "search_summary.json").read_text())["sampler"] == "every_other"
    trials = pd.read_csv(tmp_path / "own" / "trials.csv")
    assert trials["source"].tolist() == ["every_other"] * 20, "no random start and no control"


def test_a_name_without_a_line_is_refused_with_all_that_have_one(registered, small, capsys):
    assert cli.main(["check", "search", "head=1.2", "search.sampler=tinny"]) == 2
    GlobalHydra.instance().clear()
    assert "search.sampler: got 'tinny', wanted one of auto, hybrid, " in (said := capsys.readouterr().err)
    assert ", brute, tiny. Did you mean tiny?" in said
    with pytest.raises(InputError, match=r"^sampler: got 'tinny', wanted a text, one of auto, hybrid, .*, tiny\."):
        search(small(), ABBA, "1.2", sampler="tinny")


def test_a_pareto_study_takes_those_that_serve_several_objectives(registered):
    with pytest.raises(InputError, match=r"'tiny' for several objectives, wanted one of auto, epo, nsga2, tpe, random"):
        check_terms(("ap", "edits"), "tiny")
    check_terms(("ap",), "tiny")
    assert (samplers_for(1)[0], samplers_for(2)[0]) == ("hybrid", "epo"), "what auto takes"
    assert "epo" not in samplers_for(1)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_every_sampler_is_where_its_line_says(name):
    assert callable(make_sampler(name, SPACE, 0, 1))


def test_a_class_is_made_for_each_search(monkeypatch):
    monkeypatch.setitem(SAMPLERS, "class", SamplerEntry(f"{__name__}:Remembering"))
    assert make_sampler("class", SPACE, 7, 2).made_for == (SPACE, 7, 2)
