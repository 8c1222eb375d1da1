"""What is reported of an examined estimator: where, which term, how rare; and that a run shows the same."""

import json

import pytest
import torch
from helpers.small_searches import opened
from safetensors.torch import load_file
from scipy.stats import binomtest

from igap import cli
from igap.attribution.decomposition import decompose
from igap.attribution.estimators import estimators
from igap.attribution.over_pairs import attribute_pairs
from igap.cli import search
from igap.cli.compose import compose_one
from igap.components import parse_component
from igap.counterfactual.history import Proposal
from igap.counterfactual.objective.objective import Objective
from igap.counterfactual.output.errors import describe_error
from igap.counterfactual.trials.study import EvaluatedTrial
from igap.counterfactual.validation.estimator_error import explain_error, find_worst, ordinary_values
from igap.counterfactual.validation.results import BestPrompt, EstimatorError
from igap.counterfactual.validation.validate import _judge_plausibility
from igap.counterfactual.validation.verdict import verdict
from igap.engine.open_pairs import open_pairs
from igap.errors.missing import Missing
from igap.models.load import EMBEDDED
from igap.output import figures

from .test_verdict import made


def trial(value, source="random", violations=None):
    return EvaluatedTrial(Proposal((0,), source), (value,), (value,), violations or {})


@pytest.mark.parametrize("name", ["atp", "ig", "ig_zero"])
def test_the_terms_are_those_of_the_chain_that_a_run_takes_apart(small, pair, name):
    model = small("gpt2")
    session = opened(model, pair, head="all", terms=("error",), estimator=name)
    evaluator = session.cached
    best = next(each for each in session.space.candidates() if len(session.bound.changed_slots(each)) == 3)
    target, numbers = find_worst(session, evaluator, best)
    (text,) = session.bound.texts(best)
    corrupted = type(pair)(pair.clean, text, pair.answer, pair.distractor, min_gap=0.0)
    error = explain_error(session, [corrupted], target, numbers, 1.0, [])
    every = estimators()
    with open_pairs(model, corrupted, sites=("heads",)) as run:
        maps = {
            each: attribute_pairs(
                lambda contrast, advance, each=each: every[each].method.attribute(
                    contrast, "heads", every[each].config, advance
                ),
                run,
                "heads",
                baseline=every[each].baseline,
            )
            for each in {"ap", "atp", "ig", name}
        }
        chain = decompose(run, maps["ig" if name == "atp" else name], maps["ap"], baseline=every[name].baseline)
    _, layer, head = parse_component(error.component)
    apart = {term: values[layer, head].item() for term, values in chain.terms().items()}
    if name == "atp":
        apart["curvature"] += apart["quadrature"]
    assert abs(maps[name].effect - maps["ap"].effect).argmax() == layer * 4 + head
    assert error.terms == pytest.approx({term: apart[term] for term in error.terms}, abs=1e-8)
    assert sum(error.terms.values()) == pytest.approx(error.ap - error.estimate, abs=1e-12)
    assert list(error.terms)[-1] == "interaction"
    assert len(error.terms) == (3 if name == "ig_zero" else 2)
    assert error.dominant == max(error.terms, key=lambda term: abs(error.terms[term]))


def test_how_usual_the_worst_member_is_is_told_of_its_own_activation(small, pair):
    model = small(EMBEDDED)
    session, alone = opened(model, pair, head="all", terms=("error",)), opened(model, pair, head="1.2")
    for best in list(session.space.candidates())[20:22]:
        told = _judge_plausibility(session, session.bound, session.cached, best, alone.target)
        own = _judge_plausibility(alone, alone.bound, alone.cached, best, alone.target)
        whole = _judge_plausibility(session, session.bound, session.cached, best, session.target)
        assert told == own
        assert told.percentile != whole.percentile


def test_ordinary_prompts_are_the_random_ones_within_the_bounds_or_the_whole_space():
    trials = [trial(0.5), trial(3.0, "incumbent"), trial(0.25, "start"), trial(9.0, violations={"min_fluency": 1.0})]
    assert ordinary_values(trials, 100) == (0.25, 0.5)
    assert ordinary_values(trials[:3], 3) == (0.25, 0.5, 3.0)
    assert ordinary_values(trials[1:2], 100) == ()


def test_the_share_at_half_the_error_has_clopper_and_pearsons_bound(small, pair):
    session = opened(small("gpt2"), pair, terms=("error",), estimator="relp")
    numbers = torch.tensor([[1.0, -0.5], [2.0, 0.0]])

    def explained(values):
        return explain_error(session, [], session.target, numbers, 2.0, [trial(each) for each in values])

    error = explained([0.1, 0.5, 1.0, 1.9, 2.0, 0.2])
    assert (error.n_at_half, error.share_at_half) == (3, 0.5)
    exact = binomtest(3, 6).proportion_ci(confidence_level=0.90, method="exact")  # both tails 5%
    assert error.share_at_half_high == pytest.approx(exact.high, abs=1e-9)
    assert error.percentile == pytest.approx(100 * 5 / 6)
    assert (error.component, error.estimate, error.ap) == ("1.2", 1.5, -0.25)
    whole = explained([0.1, 0.5, 1.0] * (session.space.size // 3))
    assert whole.share_at_half == whole.share_at_half_high == pytest.approx(1 / 3)
    assert explained([1.5, 1.0]).share_at_half_high == 1
    nothing = explained([])
    assert isinstance(nothing.share_at_half, Missing)
    assert isinstance(nothing.percentile, Missing)
    assert describe_error(error, "logits") == [
        "no terms of relp's error: the chain to AP begins at atp and ig, not at relp"
    ]


ERROR = EstimatorError(
    "0.3", "atp", True, 0.25, -1.75, {"curvature": -1.5, "interaction": -0.5}, (0.5, 1.0, 1.5), 2, 2 / 3, 0.9, 100.0
)


def test_the_verdict_says_where_which_term_and_how_rare():
    found = BestPrompt(2.0, "abs", "first := Tom", 3, "incumbent", 1)
    said = verdict(made(error=ERROR, best=found), "all", Objective(("error",)))
    assert said[0] == (
        "atp is most wrong at 0.3, in the mean over 2 clean prompts: it says 0.250 logits where activation patching "
        "has -1.750, a mean |error| of 2.000 (made by hand: 0.500), most of it curvature (-1.500, 75% of the "
        "difference)."
    )
    assert said[1].startswith(
        "The error holds on 16 held-out prompts: a mean error of 1.500 logits [1.250, 1.750], 75% of"
    )
    assert said[2] == (
        "Of 3 ordinary prompts 2 have at least half that error (66.7%; in the whole space at most 90.0% (95%)), and "
        "100% a smaller one; its activation is ordinary (percentile 58)."
    )
    assert describe_error(ERROR, "logits") == [
        "AP - atp at 0.3: -2.000 logits, of which curvature -1.500, interaction -0.500"
    ]


@pytest.mark.long  # the whole way: a command, its files, and the run of its best pair
@pytest.mark.usefixtures("one_model")
def test_the_run_of_the_best_pair_shows_the_very_same_error(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "figures", lambda data: {})
    monkeypatch.setattr(search, "compose_one", lambda _: compose_one(["explain=false", "curves.components=none"]))
    few = [f"search.space.slots.{slot}=['=keep']" for slot in ("place", "verb", "object")]
    few += [f"search.space.slots.{slot}=['=keep',Tom,Anna]" for slot in ("first", "second", "subject")]
    few += ["model=hf", f"model.name={checkpoint('gpt2')}", "constraints.min_clean=null", "prompts.min_gap=0"]
    asked = ["search", "worst_prompts", "estimator=ig_zero", "search.until=12", "heldout.n=0", "device=cpu", *few,
             f"output={tmp_path}", "tracking=disabled"]  # fmt: skip
    assert cli.main(asked) == 0
    folder = tmp_path / "worst_prompts"
    summary = json.loads((folder / "search_summary.json").read_text())
    (file,) = folder.glob("runs/*/attributions.safetensors")
    maps = load_file(file)
    errors = (maps["effect.ig.heads"] - maps["effect.ap.heads"]).abs()
    _, layer, head = parse_component(summary["error/component"])
    assert errors.max() > 0.01
    assert errors[layer, head].item() == pytest.approx(summary["best/value"], abs=1e-5)
    assert errors.max().item() == pytest.approx(summary["best/value"], abs=1e-5)
    assert summary["error/estimate"] == pytest.approx(maps["effect.ig.heads"][layer, head].item(), abs=1e-5)
    assert (folder / "plots" / "ordinary.png").read_bytes()[:4] == b"\x89PNG"
    assert summary["head"] == "all"
