"""One search for all heads: what it says is AP, planted heads are found; a picture of many heads leaves some out."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from helpers.lost_interrupts import in_a_callback, work
from helpers.small_searches import opened

import igap
from igap import InputError, PromptPair
from igap.cli import main
from igap.counterfactual.atlas.atlas import BY_HAND
from igap.counterfactual.atlas.plots import draw_atlas
from igap.counterfactual.atlas.shared import Scores, _Pool, open_trials, search_together
from igap.counterfactual.config import SpaceConfig
from igap.counterfactual.objective.evaluator import Evaluator
from igap.counterfactual.objective.members import MembersEvaluator
from igap.counterfactual.target import Target
from igap.counterfactual.trials.storages import open_storage
from igap.engine.activations import borrow
from igap.storage.studies import read_status

from .test_atlas import PAIR, SLOTS, planted_model

ALL = Target(tuple(("heads", layer, head) for layer in range(3) for head in range(4)))


@pytest.fixture(scope="module")
def shared(small, pair):
    """All 12 heads of a small model, by 40 prompts; beside it the session."""
    model = small("gpt2")
    with borrow(model):
        session = opened(model, pair, clean_n=2, heldout_n=2)
        yield session, search_together(session, ALL, 40, "hybrid", 8, 16)


def effects(session, bound, texts):
    """AP of every head by the public function, a mean over the clean prompts."""
    each = [
        np.zeros(len(ALL.members))
        if text == pair.clean
        else igap.activation_patching(
            session.model, PromptPair(pair.clean, text, pair.answer, pair.distractor, min_gap=0.0)
        ).effect.flatten().numpy()
        for pair, text in zip(bound.pairs, texts, strict=True)
    ]  # fmt: skip
    return np.mean(each, 0)


def test_the_matrix_is_activation_patching_and_every_head_has_its_best_prompt(shared):
    session, made = shared
    by_hand = effects(session, session.bound, [pair.corrupted for pair in session.bound.pairs])
    np.testing.assert_allclose(made.effects[:, 0], by_hand, atol=1e-10)
    bounds = session.bound.unshare(), session.heldout.unshare()
    for column, candidate in enumerate(made.candidates[1:], start=1):
        for matrix, bound in zip((made.effects, made.heldout), bounds, strict=True):
            expected = effects(session, bound, bound.texts(candidate))
            np.testing.assert_allclose(matrix[:, column], expected, atol=1e-10)
    by_rule = {session.space.rule(each): each for each in session.space.candidates()}
    for head in (0, 7):
        own = effects(session, session.bound, session.bound.texts(by_rule[made.rules[head]]))
        assert made.alone[head] == pytest.approx(own[head], abs=1e-10)
    assert (np.abs(made.largest) >= np.maximum(made.sizes.max(1), np.abs(made.alone)) - 1e-12).all()
    few = list(made.cover.chosen)
    assert made.cover.shares[-1] == pytest.approx(made.sizes[:, few].max(1).sum() / np.abs(made.largest).sum())
    assert made.cover.shares[-1] >= 0.95
    assert made.n_tried == 40
    frame = made.head_frame().set_index("name")
    matrix = pd.DataFrame(made.effects, made.heads, made.prompts)
    assert (frame.effect_best == [matrix.loc[name, prompt] for name, prompt in frame.prompt.items()]).all()
    assert (frame.effect_best.abs() < np.abs(made.largest)).any(), "another prompt shows a head more"


def test_what_is_tried_for_a_head_makes_it_larger_than_chance(shared):
    """112 prompts, of which 16 are drawn at random: each of the 12 heads has had its turn."""
    session, _ = shared
    made, drawn = (search_together(session, ALL, 112, sampler, 8, 16) for sampler in ("hybrid", "random"))
    assert np.abs(made.alone).sum() > 1.02 * np.abs(drawn.alone).sum()


def test_heads_named_in_another_order_go_on_with_the_same_columns(shared):
    session, made = shared
    backwards = Target(ALL.members[::-1])
    trials = open_trials(session, backwards, open_storage("memory", Path()))
    assert trials.study.user_attrs["igap"]["head"] == "all"
    search_together(session, ALL, 24, "hybrid", 8, 16, trials=trials)
    again = search_together(session, backwards, 40, "hybrid", 8, 16, trials=trials)
    assert again.heads == made.heads
    np.testing.assert_array_equal(again.effects, made.effects)
    np.testing.assert_array_equal(again.alone, made.alone)


def test_the_sampler_is_told_the_sign_of_the_head_whose_turn_it_is(shared):
    session, _ = shared
    trials = open_trials(session, ALL, open_storage("memory", Path()))
    search_together(session, ALL, 24, "random", 8, 16, trials=trials)
    pool = _Pool(session, ALL, trials)
    for head in (0, 7):
        effects = np.array([trial.effects[head] for trial in trials.all()])
        np.testing.assert_array_equal(pool._history(head).signed, effects)
        assert effects.min() < 0 < effects.max()


def test_the_sampler_is_told_the_scores_of_the_head_whose_turn_it_is(shared):
    session, made = shared
    candidate, place = made.candidates[1], 6
    bound, member = session.bound, ALL.members[place]
    together = MembersEvaluator(session.model, bound, ALL)
    alone = Evaluator(session.model, bound, Target((member,)))
    sign = together.estimates_of_all(bound.tokens([candidate]))[0, :, place].mean().sign()
    expected = alone.first_order_scores(candidate, sign / 2 * torch.ones(2))
    for scores, wanted in zip(Scores(together, place)(candidate), expected, strict=True):
        np.testing.assert_allclose(scores, wanted.numpy(), atol=1e-10)
    assert max(abs(wanted).max() for wanted in expected) > 1e-5


def test_planted_heads_are_shown_by_the_words_they_were_planted_for():
    model = planted_model()
    space = SpaceConfig(kind="slots", template="After {who} gave a {thing} to", slots=SLOTS)
    with borrow(model):
        session = opened(model, PAIR, head="0.0", space=space)
        heads = [Target(tuple(("heads", 0, head) for head in some)) for some in (range(4), (3,))]
        made = search_together(session, heads[0], 9, "hybrid", 4, 4)
        with pytest.raises(InputError, match="head: got heads that no prompt tried moves"):
            search_together(session, heads[1], 9, "hybrid", 4, 4)
    assert made.alone.tolist() == pytest.approx([-4.0, -1.5, -3.0, 0.0], abs=1e-6)
    for head, words in enumerate(("who := Mary", "thing := cat", "who := Tom")):
        assert words in made.rules[head]
    assert made.prompts[0] == BY_HAND
    assert made.cover.shares[-1] >= 0.95


def test_of_many_heads_and_prompts_the_picture_has_those_that_show_most(shared):
    rng, n = np.random.default_rng(0), 90
    sizes = rng.normal(size=(n, n)) * np.arange(1, n + 1)[:, None]
    many = replace(
        shared[1], heads=tuple(f"0.{i}" for i in range(n)), prompts=(BY_HAND, *(f"0.{i}" for i in range(n - 1))),
        effects=sizes, candidates=(None, *[shared[1].candidates[1]] * (n - 1)), alone=None, heldout=None,
    )  # fmt: skip
    axes = draw_atlas(many, title="a model").axes[0]
    said = many.sentences()[1:]
    rest = many.cover.shares[-1] - many.cover.shares[5]
    assert said[6] == f"  and {len(many.cover.chosen) - 6} more, which add {rest:.1%}"
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert len(names) == len(axes.get_yticklabels()) == 60
    assert {f"* {many.prompts[prompt]}" for prompt in many.cover.chosen} <= {*names}
    assert names[0].removeprefix("* ") == BY_HAND
    assert "60 of 90 heads, 60 of 90 prompts" in axes.figure.get_suptitle() + axes.get_title()


def test_the_command_writes_an_atlas_and_no_searches(tmp_path, capsys):
    asked = ["search", "atlas", "head=0.3@END,1.2@END", "atlas=shared", "search.until=12", "search.control=4"]
    brief = ["clean.n=2", "heldout.n=2", f"output={tmp_path}", "tracking=disabled", "search/space=words"]
    assert main([*asked, *brief]) == 0
    printed = capsys.readouterr().out
    assert "12 prompts tried for 2 heads; this time " in printed
    assert [each.name for each in (tmp_path / "atlas").iterdir()] == ["atlas"]
    heads = pd.read_csv(tmp_path / "atlas" / "atlas" / "heads.csv", dtype={"name": str})
    assert heads["name"].tolist() == ["0.3", "1.2"]
    summary = json.loads((tmp_path / "atlas" / "atlas" / "atlas_summary.json").read_text())
    assert summary["atlas/n_heads"] == 2
    assert summary["atlas/share"] >= 0.95
    assert summary["atlas/n_tried"] == 12
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path}/atlas/atlas/study.db")
    assert summary["key"] == study.user_attrs["id"]
    note = study._storage.get_study_system_attrs(study._study_id)["dashboard:note_str:0"]
    assert note.startswith("# Atlas of 2 heads: 12 prompts tried\n")
    assert f"\nigap {shlex.join([*asked, *brief])}\n" in note
    status = read_status(tmp_path / "atlas" / "atlas")
    assert (status.n_trials, status.until, status.reported, status.is_done) == (12, 12, 12, True)

    page = tmp_path / "atlas" / "atlas" / "atlas.html"
    page.unlink()
    assert main([*asked, *brief]) == 0
    assert "12 prompts were tried for 2 heads before" in capsys.readouterr().out
    assert not page.exists(), "nothing is computed anew"
    assert main([*asked, *brief, "search.until=14"]) == 0
    assert "14 prompts tried for 2 heads; this time " in capsys.readouterr().out
    assert page.exists()
    for other, reason in (
        ("seed=1", "search: got a study of another search: it has .*seed 0, asked for 1"),
        ("atlas=true", "name: got one whose folder .*atlas/atlas has the atlas of another search"),
        ("search/storage=memory", "name: got one whose folder .*atlas/atlas has the atlas of another search"),
    ):
        before = page.read_bytes()
        assert main([*asked, *brief, other]) == 2
        assert re.search(reason, capsys.readouterr().err)
        assert page.read_bytes() == before


@pytest.mark.parametrize(("kind", "end"), [("sqlite", RuntimeError), ("journal", KeyboardInterrupt)])
def test_a_search_that_was_ended_goes_on_as_if_it_had_not_been(shared, tmp_path, kind, end):
    session, made = shared

    def stop(now):
        if now.n >= 24:
            raise end

    trials = open_trials(session, ALL, open_storage(kind, tmp_path))
    if end is KeyboardInterrupt:
        part = search_together(session, ALL, 40, "hybrid", 8, 16, stop, trials=trials)
        assert (part.interrupted, part.n_tried) == (True, 24)
    else:
        with pytest.raises(RuntimeError):
            search_together(session, ALL, 40, "hybrid", 8, 16, stop, trials=trials)
    again = open_trials(session, ALL, open_storage(kind, tmp_path))
    whole = search_together(session, ALL, 40, "hybrid", 8, 16, trials=again)
    assert not whole.interrupted
    assert (whole.candidates, whole.rules, whole.n_tried) == (made.candidates, made.rules, made.n_tried)
    np.testing.assert_array_equal(whole.effects, made.effects)
    np.testing.assert_array_equal(whole.alone, made.alone)


def test_ctrl_c_that_falls_into_a_callback_ends_it(shared, monkeypatch):
    session, _ = shared
    monkeypatch.setattr(_Pool, "explore", lambda *asked: work(in_a_callback))
    with pytest.raises(KeyboardInterrupt):
        search_together(session, ALL, 40, "hybrid", 8, 16)


def test_a_trial_has_the_estimates_of_all_heads_and_the_one_it_was_proposed_for(shared):
    session, _ = shared
    trials = open_trials(session, ALL, open_storage("memory", Path()))
    search_together(session, ALL, 24, "hybrid", 4, 8, trials=trials)
    pool, head = _Pool(session, ALL, trials), trials.all()[-1].sought
    known = pool._history([f"{layer}.{head}" for _, layer, head in ALL.members].index(head))
    assert {proposal.source for proposal in known.proposals[:-4]} == {"random"}, "proposed for another head"
    assert "random" not in {proposal.source for proposal in known.proposals[-4:]}
    evaluator = MembersEvaluator(session.model, session.bound, ALL)
    names = [f"{layer}.{head}" for _, layer, head in ALL.members]
    order = [names[place] for place in np.random.default_rng(session.seed).permutation(12)]
    for number, trial in enumerate(trials.all()):
        tokens = session.bound.tokens([trial.proposal.candidate])
        wanted = evaluator.estimates_of_all(tokens).double().mean(1)[0].numpy()
        np.testing.assert_allclose(trial.effects, wanted, atol=1e-12)
        assert trial.value == pytest.approx(np.abs(wanted).sum())
        assert trial.sought == ("" if number < 8 else order[(number - 8) // 4])


def test_what_will_be_done_is_one_line(tmp_path, capsys):
    asked = ["search", "atlas", "atlas=shared", "clean.n=2", f"output={tmp_path}"]
    assert main(["check", *asked]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("atlas of 32 heads by one search: AtP of each, ")
    assert line.endswith(f"120 prompts (auto), 2 clean prompts, 16 held out, in {tmp_path}/atlas/atlas")
    assert not list(tmp_path.iterdir())
