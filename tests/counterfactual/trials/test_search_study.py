"""Studies of searches: what the storage holds, that Optuna reads it as any other, and what is refused."""

import json
import sqlite3

import optuna
import optuna.cli
import pytest
import sqlalchemy
from helpers.small_searches import SPACE, opened
from matplotlib import pyplot, rc_context

from igap import PromptPair
from igap.counterfactual.history import Proposal
from igap.counterfactual.objective.objective import Objective
from igap.counterfactual.spaces.base import KEEP, Slot, Space
from igap.counterfactual.trials import study
from igap.counterfactual.trials.storages import open_storage
from igap.counterfactual.trials.study import SCHEMA, EvaluatedTrial, TrialStore
from igap.engine.activations import borrow
from igap.errors import InputError

SLOTS = (Slot("first", (KEEP, "Tom", "Anna"), (2,)), Slot("second", ("Tom", "Mary"), (4,)))
TWO = Space("slots", SLOTS)


def trial_of(*candidate, value=1.0, source="start", **more):
    return EvaluatedTrial(Proposal(candidate, source), (value,), (value, value), **more)


@pytest.fixture(params=["memory", "sqlite", "journal"])
def storage(request, tmp_path):
    return open_storage(request.param, tmp_path)


def test_trials_come_back_as_they_were_put_in(storage):
    batch = [
        EvaluatedTrial(Proposal((1, 0), "anchor", 3), (0.1,), (0.1, 1 / 3), {"min_fluency": -0.5}),
        EvaluatedTrial(
            Proposal((2, 1), "start"), (-2.0,), (1e-300, -4.0), {"min_fluency": 0.25}, "min_fluency is broken by 0.25"
        ),
        EvaluatedTrial(Proposal((0, 0), "random"), (float("nan"),), (float("inf"), 1.0), {}, "a number is not finite"),
    ]
    trials = TrialStore(storage, TWO, {"head": "1.2"})
    trials.add(batch)
    for again in (trials, TrialStore(storage, TWO, {"head": "1.2"})):
        found = again.all()
        assert found[:2] == batch[:2]
        assert str(found[2]) == str(batch[2]), "NaN equals nothing"


def test_a_word_is_stored_as_its_index_and_the_words_once_in_the_study(storage):
    trials = TrialStore(storage, TWO, {}, Objective())
    trials.add([trial_of(1, 0), trial_of(2, 1)])
    study = optuna.load_study(study_name="igap", storage=storage)
    first, second = study.get_trials()
    assert [first.params, second.params] == [{"first": 1, "second": 0}, {"first": 2, "second": 1}]
    fixed = {
        "first": optuna.distributions.IntDistribution(0, 2),
        "second": optuna.distributions.IntDistribution(0, 1),
    }
    assert first.distributions == second.distributions == fixed
    attributes = study.user_attrs
    words = {slot: attributes["lists"][hash_] for slot, hash_ in attributes["slots"].items()}
    assert words == {"first": [KEEP, "Tom", "Anna"], "second": ["Tom", "Mary"]}
    assert attributes["igap"] == {"schema": SCHEMA, "space": TWO.digest}
    assert "Tom" not in json.dumps([first.params, first.system_attrs])
    assert first.user_attrs["rule"] == "first := Tom, second := Tom"


def test_slots_that_offer_the_same_words_share_one_list(tmp_path):
    same = Space("slots", (Slot("a", ("x", "y"), (1,)), Slot("b", ("x", "y"), (2,)), Slot("c", ("y", "x"), (3,))))
    study = TrialStore(open_storage("memory", tmp_path), same, {}).study
    assert len(study.user_attrs["lists"]) == 2
    assert study.user_attrs["slots"]["a"] == study.user_attrs["slots"]["b"] != study.user_attrs["slots"]["c"]


def test_optuna_honours_the_bounds_and_0_or_less_is_within_them(storage):
    trials = TrialStore(storage, TWO, {}, Objective())
    trials.add(
        [
            trial_of(0, 0, value=9.0, violations={"max_corrupted": 0.1}),
            trial_of(0, 1, value=5.0, violations={"max_corrupted": 0.0}),
            trial_of(1, 0, value=3.0, violations={"max_corrupted": -2.0}),
            trial_of(1, 1, value=float("nan"), reason="a number is not finite"),
        ]
    )
    study = optuna.load_study(study_name="igap", storage=storage)
    assert study.best_trial.number == 1
    assert [trial.constraints for trial in study.get_trials()] == [
        {"max_corrupted": 0.1}, {"max_corrupted": 0.0}, {"max_corrupted": -2.0}, {},
    ]  # fmt: skip
    reasons = [trial.user_attrs.get("reason") for trial in study.get_trials()]
    assert reasons == ["max_corrupted is broken by 0.1", None, None, "a number is not finite"]
    assert [trial.state.name for trial in study.get_trials()] == ["COMPLETE"] * 3 + ["FAIL"]
    assert [one.is_feasible for one in trials.all()] == [False, True, True, False]


def test_of_two_terms_edits_are_fewer_the_better(tmp_path):
    trials = TrialStore(open_storage("memory", tmp_path), TWO, {}, Objective(("ap", "edits")))
    trials.add(
        [
            EvaluatedTrial(Proposal((1, 0), "start"), (2.0, 3.0), (2.0,)),
            EvaluatedTrial(Proposal((2, 0), "start"), (1.0, 4.0), (1.0,)),
        ]
    )
    assert trials.history().points.tolist() == [[2.0, -3.0], [1.0, -4.0]]
    assert [trial.number for trial in trials.study.best_trials] == [0]
    assert trials.study.metric_names == ["ap", "edits"]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize(
    ("objective", "sides"),
    [
        (Objective(), [1.0, -1.0, -1.0]),
        (Objective(("selectivity",)), None),
        (Objective(sign="drop"), None),
        (Objective(("disagreement",)), None),
        (Objective(("error",)), None),
    ],
)
def test_samplers_are_told_the_sign_of_an_effect_whose_size_is_searched(storage, objective, sides):
    trials = TrialStore(storage, TWO, {}, objective)
    for candidate, effects in (((0, 0), (1.0, -0.5)), ((0, 1), (0.5, -1.0)), ((1, 0), (-1.0, -1.0))):
        trials.add([EvaluatedTrial(Proposal(candidate, "start"), (abs(sum(effects)),), effects)])
    for history in (trials.history(), trials.history(trials.all())):
        assert (history.sides if sides is None else list(history.sides)) == sides
        assert list(history.signed) == [0.5, *((0.5, 2.0) if sides is None else (-0.5, -2.0))]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")  # its command line
def test_optunas_own_tools_read_the_study_of_a_search(small, pair, tmp_path, monkeypatch, capsys):
    model = small("gpt2")
    with borrow(model):
        search = opened(model, pair, storage=open_storage("sqlite", tmp_path))
        search.explore(60)
    study = optuna.load_study(study_name="study", storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert study.best_trial.value == max(one.value for one in search.trials.all())
    importance = optuna.importance.get_param_importances(study)
    assert set(importance) == {"first", "second", "subject"}
    assert sum(importance.values()) == pytest.approx(1)
    assert len(study.trials_dataframe()) == 60
    said = {}
    for command in ("best-trial", "trials"):
        place = ["--storage", f"sqlite:///{tmp_path / 'study.db'}", "--study-name", "study", "-f", "json"]
        monkeypatch.setattr("sys.argv", ["optuna", command, *place])
        optuna.cli.main()
        said[command] = json.loads(capsys.readouterr().out)
    assert said["best-trial"]["number"] == study.best_trial.number
    assert said["best-trial"]["params"] == study.best_params
    assert [trial["number"] for trial in said["trials"]] == list(range(60))
    plots = optuna.visualization.matplotlib
    with rc_context():  # Optuna sets a style for the whole process
        for plot in (
            plots.plot_optimization_history,
            plots.plot_param_importances,
            plots.plot_slice,
            plots.plot_contour,
        ):
            assert plot(study) is not None
    pyplot.close("all")
    study.sampler = optuna.samplers.TPESampler(seed=0)
    asked = study.ask({slot.name: optuna.distributions.IntDistribution(0, 11) for slot in search.space.slots})
    assert set(asked.params) == {"first", "second", "subject"}, "and go on with it"


def test_a_batch_is_cut_at_the_total_and_leaves_out_what_another_worker_has_added(storage):
    mine, other = (TrialStore(storage, TWO, {}) for _ in range(2))
    mine.all()
    other.add([trial_of(0, 0, source="other"), trial_of(0, 1, source="other")])
    mine.add([trial_of(0, 1), trial_of(1, 0), trial_of(1, 1), trial_of(2, 0)], until=4)
    found = [(one.proposal.candidate, one.proposal.source) for one in mine.all()]
    assert found == [((0, 0), "other"), ((0, 1), "other"), ((1, 0), "start"), ((1, 1), "start")]
    mine.add([trial_of(2, 1)], until=4)
    assert len(other.all()) == 4


def test_a_batch_is_in_a_database_as_a_whole_or_not_at_all(tmp_path):
    storage = open_storage("sqlite", tmp_path)
    trials = TrialStore(storage, TWO, {})

    def die(connection, cursor, statement, *_):
        if statement.startswith("INSERT INTO trial_params"):
            raise KeyboardInterrupt

    sqlalchemy.event.listen(storage.engine, "before_cursor_execute", die)
    with pytest.raises(KeyboardInterrupt):
        trials.add([trial_of(0, 0), trial_of(0, 1), trial_of(1, 0)])
    sqlalchemy.event.remove(storage.engine, "before_cursor_execute", die)
    assert trials.all() == TrialStore(open_storage("sqlite", tmp_path), TWO, {}).all() == []
    trials.add([trial_of(1, 1)])
    assert trials.all() == TrialStore(open_storage("sqlite", tmp_path), TWO, {}).all() == [trial_of(1, 1)]


DIFFERENCES = {
    "space": ({"space": {**SPACE, "first": SPACE["first"][:5]}}, "it has other words or rules in first."),
    "template": ({"space": {**SPACE, "place": ["=keep", "store"]}}, "it has other words or rules in place."),
    "pair": ({"pair": "Tom"}, "it has other clean prompts (as many)."),
    "more prompts": ({"clean_n": 2}, "it has other clean prompts (1 of them, asked for 2)."),
    "model": ({"identity": {"model": "b"}}, "it has model 'a', asked for 'b'"),
    "head": ({"head": "0.1"}, "it has head '1.2', asked for '0.1'"),
    "objective": ({"terms": ("curve",)}, "it has objective ['ap'], asked for ['curve']"),
    "sign": ({"sign": "drop"}, "it has sign 'abs', asked for 'drop'"),
    "aggregate": ({"aggregate": "min"}, "it has aggregate 'mean', asked for 'min'"),
    "seed": ({"seed": 1}, "it has seed 0, asked for 1"),
    "bound": ({"constraints": {"max_corrupted": 1.0}}, "it has constraints {'min_clean': None,"),
}


@pytest.mark.parametrize("what", DIFFERENCES)
def test_a_study_of_another_search_is_refused_with_what_differs(small, pair, tmp_path, what):
    model = small("gpt2")
    changes, said = DIFFERENCES[what]
    changes = {"identity": {"model": "a"}, **changes}
    other = changes.pop("pair", None)
    texts = [text.replace("John", other) if other else text for text in pair.texts]
    asked = PromptPair(*texts, min_gap=0.0)
    with borrow(model):
        storage = open_storage("memory", tmp_path)
        opened(model, pair, storage=storage, identity={"model": "a"})
        with pytest.raises(InputError) as refused:
            opened(model, asked, storage=storage, **changes)
        assert str(refused.value).startswith("search: got a study of another search: it has ")
        assert said in str(refused.value)
        assert "Set name=NAME for a new study" in str(refused.value)
        assert ";" not in str(refused.value), "and nothing else"


def test_a_study_that_is_none_of_igaps_is_refused_where_it_has_trials(tmp_path):
    storage = open_storage("memory", tmp_path)
    optuna.create_study(storage=storage, study_name="igap", direction="maximize")
    TrialStore(storage, TWO, {})
    foreign = optuna.create_study(storage=storage, study_name="foreign", direction="maximize")
    foreign.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(InputError, match=r"search\.storage: got a study 'foreign' with trials that are none of igap's"):
        TrialStore(storage, TWO, {}, name="foreign")


def test_a_study_has_one_id_for_ever_and_no_other_has_it(storage):
    found = [TrialStore(storage, TWO, {}, name=name).id for name in ("a", "a", "b")]
    assert found[0] == found[1] != found[2]
    assert len(found[0]) == 12


def test_a_storage_that_fails_in_the_middle_is_told_as_no_fault_of_the_input_and_keeps_what_it_has(
    tmp_path, monkeypatch
):
    storage = open_storage("sqlite", tmp_path)
    trials, unread = (TrialStore(storage, TWO, {}) for _ in range(2))
    trials.add([trial_of(0, 0)])

    def fail(connection, cursor, statement, *_):
        if " trials" in statement:
            raise sqlalchemy.exc.OperationalError("SELECT", {}, sqlite3.OperationalError("database is locked"))

    sqlalchemy.event.listen(storage.engine, "before_cursor_execute", fail)
    for of, error, what in ((trials, OSError, "failure while searching"), (unread, InputError, "study that cannot")):
        for use in (of.all, lambda of=of: of.add([trial_of(0, 1)])):
            with pytest.raises(error, match=rf"^search\.storage: got a {what}.*: .*database is locked"):
                use()
    sqlalchemy.event.remove(storage.engine, "before_cursor_execute", fail)
    with monkeypatch.context() as once:  # and answers again when the study is loaded anew
        once.setattr(study, "read_trials", lambda *_: 1 / 0)
        with pytest.raises(OSError, match="got a failure while searching: ZeroDivisionError") as told:
            trials.add([trial_of(0, 1)])
    assert str(told.value).count("search.storage") == str(told.value).count("What it has is kept") == 1
    unread.expect(2)
    sqlalchemy.event.listen(storage.engine, "before_cursor_execute", fail)
    with pytest.raises(OSError, match="database is locked"):
        unread.all()
    sqlalchemy.event.remove(storage.engine, "before_cursor_execute", fail)
    trials.add([trial_of(1, 1)])
    assert [one.proposal.candidate for one in trials.all()] == [(0, 0), (1, 1)]


@pytest.mark.parametrize("schema", [SCHEMA + 1, None, "2"])
def test_a_study_of_a_newer_schema_is_refused(tmp_path, schema):
    storage = open_storage("memory", tmp_path)
    study = TrialStore(storage, TWO, {}).study
    study.set_user_attr("igap", {**study.user_attrs["igap"], "schema": schema})
    with pytest.raises(InputError, match=f"got a study of schema {schema}, this igap knows {SCHEMA}"):
        TrialStore(storage, TWO, {})
