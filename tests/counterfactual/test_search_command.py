"""`igap search` as a user meets it: messages, files, going on, W&B, Ctrl-C."""

import json
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
from unittest.mock import Mock

import optuna
import pandas as pd
import pytest
import sqlalchemy
from helpers.small_disk import no_file_above
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import load_file

from igap import cli
from igap.cli import launch
from igap.counterfactual import runner, workers
from igap.counterfactual.trials import dashboard, study
from igap.errors import InputError
from igap.models import cached
from igap.output import figures
from igap.output.tracking import places
from igap.storage import tables as tables_of

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_model")]

TEMPLATE = "After {first} and {second} went to the {place}, {subject} {verb} a {object} to"
SPACE = [
    'search.space.slots.first=["=keep","=N2","Tom"]',
    'search.space.slots.second=["=keep","=N1","Tom","Anna","Paul","Mark"]',
    'search.space.slots.subject=["=keep","=IO","Anna"]',
    *(f'search.space.slots.{name}=["=keep"]' for name in ("place", "verb", "object")),
]
ASKED = ["search", "head=0.4", *SPACE, "clean.n=2", "heldout.n=3", "search.control=6", "device=cpu"]
VARYING = {"seconds", "forward_equivalents", "n_from_disk"}
"""Of the summary: what it took."""


@pytest.fixture(autouse=True)
def _own_state(monkeypatch):
    monkeypatch.setattr(figures, "figures", lambda data: {})  # of the full run
    yield
    GlobalHydra.instance().clear()


def search(*overrides, where):
    here = os.getcwd()
    os.chdir(where)
    try:
        return cli.main([*ASKED, *overrides])
    finally:
        os.chdir(here)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of a search that is finished and logged offline."""
    where = tmp_path_factory.mktemp("searched")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "figures", lambda data: {})
        assert search("search.until=20", "name=one", where=where) == 0
    return where / "searches" / "one"


QUIET = ["tracking=disabled", "full_run=false"]
LIGHT = [*QUIET, "clean.n=1", "heldout.n=0", "search.control=1"]


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    """A folder with a search that is finished, without W&B and without a run: searches/0.4-ap."""
    where = tmp_path_factory.mktemp("quiet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "figures", lambda data: {})
        assert search("search.until=18", *QUIET, where=where) == 0
    return where


def summary_of(folder):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads((folder / "search_summary.json").read_text(), parse_constant=refuse)


BAD = [
    (["head=4.0"], "head: got 4.0, but the model has 4 layers (0 to 3)."),
    (["head=1.8"], "head: got 1.8, but the model has 8 heads in a layer (0 to 7)."),
    (["head=L0.N512"], "head: got L0.N512, but the model has 512 neurons in a layer (0 to 511)."),
    (["head=abc"], "head: got 'abc', wanted a head such as 9.6 or a neuron such as L5.N1234 or one of another site s"),
    (["head="], "head: got '', wanted a head such as 9.6"),
    (["head=1.2,x"], "head: got '1.2,x', wanted a head such as 9.6"),
    (["head=all,1.2"], "head: got 'all,1.2', wanted a head such as 9.6"),
    (["head='0.6@END@S2'"], "head: got 0.6@END@S2, wanted one span after one @, as in 0.6@END. Correct it."),
    (["head='0.6@-1'"], "head: got 0.6@-1, wanted a position from 0 to 16, or last: they are counted from"),
    (["head=1.8.q"], "head: got 1.8.q, but the model has 8 heads in a layer (0 to 7)."),
    (["head=1.2+1.2"], "head: got '1.2+1.2', wanted each component once, not 1.2 twice"),
    (["head=top3:ap"], "head: got 'top3:ap', wanted a head such as 9.6"),
    (["head=ioi:name-mover"], "head: got ioi:name-mover, heads of GPT-2 small (12 layers, 12 heads), with a model of"),
    (["head=1.2@each"], "head: got '1.2@each', wanted a span after @, a role of a generated prompt (IO, S1, S1+1, S2,"),
    (["head=1.2@Mary"], "head: got 1.2@Mary, which the clean prompt has 2 times"),
    (["head=1.2@zebra"], "head: got 1.2@zebra, wanted words of the clean prompt, wh"),
    (["head=1.2@17"], "head: got 1.2@17, wanted one or more positions of the clean prompt"),
    (["head=1.2@0"], "head: got 1.2@0, position 0, which no prompt of the space changes: they differ from 2 on. Take"),
    (["head=3.2@S2"], "head: got 3.2@S2, of the last layer, where position 16 alone is read, wanted that among its"),
    (["head=1.2+1.3", "objective=selectivity"], "objective: got selectivity of 1.2+1.3, wanted it of one component"),
    (["head=L1.resid_pre", "objective=disagreement"], "objective: got disagreement of L1.resid_pre, whose IG is its"),
    (["head=1.2@diff", "constraints.max_percentile=90"], "constraints.max_percentile: got 90 with 1.2@diff, whose po"),
    (["head=1.2", "metric=kl", "sign=drop"], "sign: got drop with metric=kl, which is least on the clean prompt"),
    (["head=1.2", "metric=js", "objective=selectivity"], "metric: got js with selectivity, but it is least on the cl"),
    (["head=1.2", "metric=custom"], "metric.function: got nothing with metric=custom, wanted a function of logits"),
    (["head=1.2", "metric=custom", "metric.function=nowhere:f"], "metric.function: got nowhere:f, which cannot be im"),
    (["head=1.2", "metric=nll"], "metric: got 'nll', wanted one of custom, js, kl, logit, logit_diff, logprob, prob,"),
    (["search.until=5"], "head: got nothing, wanted a value. Add head=9.6."),
    (["baselines"], "search: got 'baselines', which is a sweep, wanted a search. Use igap sweep baselines."),
    (["serch_mini"], "search: got 'serch_mini', wanted one of atlas, capital_country, gendered_pronoun, greater_than, "
                     "head_scan, results_search, search_9_6, search_mini, subject_verb, worst_prompts, or KEY=VALUE."),
    (["head=1.2", "--fast"], "option: got '--fast', which igap search does not have, wanted KEY=VALUE"),
    (["head=1.2", "objectiv=ap"], "objectiv: got a key that no search has (in 'objectiv=ap'). Did you mean objective?"),
    (["head=1.2", "search.untl=3"], "search.untl: got a key that no search has (in 'search.untl=3'). Did you mean sea"),
    (["head=1.2", "~head"], "head: got a deletion ('~head'); a search needs every key."),
    (["head=1.2", "search/space=nope"], "search/space: got 'nope', wanted one of prompts, relational, slots,"),
    (["head=1.2", f"search.space.template={TEMPLATE.replace('object', 'thing')}"],
     "search.space.slots.thing: got a slot without a list, wanted lists for exactly first, second, place, subject, "
     "verb, thing. Add '+search.space.slots.thing=[\"=keep\"]' to keep it as it is."),
    (["head=1.2", "+search.space.slots.thing=[milk]"],
     "search.space.slots.thing: got a list without a slot in the template, wanted lists for exactly first, second, "
     "place, subject, verb, object. Take it out: '~search.space.slots.thing'."),
    (["head=1.2", "search.space.slots.verb=[gave,zzyzx,qwq]"],
     "search.space.slots.verb: got 'zzyzx' (unknown), 'qwq' (unknown), wanted words of 1 known token"),
    (["head=1.2", "search.space.slots.verb=gave"], "search.space.slots.verb: got 'gave', wanted a list, [A,B]."),
    (["head=1.2", "search.space.slots.verb=[]"], "search.space.slots.verb: got no word that fits"),
    (["head=1.2", *SPACE[3:], *(f'search.space.slots.{n}=["=keep"]' for n in ("first", "second", "subject")),
      "search.space.slots.verb=[sold]"], "search.space: got 1 candidate, wanted at least two. Offer more words."),
    (["head=1.2", "search.until=0"], "search.until: got 0, wanted at least 1. Try search.until=300."),
    (["head=1.2", "search.until=ten"], "search.until: got 'ten', wanted a whole number."),
    (["head=1.2", "search.workers=2", "search/storage=memory"],
     "search.storage: got memory, which several workers cannot share. Use search/storage=sqlite, or journal."),
    (["-m", "head=1.2", "search.worker=0,1", "search/storage=memory"], "search.storage: got memory, which several"),
    (["-m", "head=1.2", "objective=ap,ig", "name=x"],
     "name: got one folder (searches/x) for two searches that differ. Write several heads as one (head=0.6,1.2), "),
    (["head=1.2", "objective=ap,ig"], "objective: got 2 values (ap, ig), wanted one. Add -m to run each of them"),
    (["head=1.2", "seed=0,1"], "seed: got 2 values (0, 1), wanted one. Add -m"),
    (["head=1.2", "objective=fluency"], "objective: got fluency, which says nothing of the head. Put ap, ig,"),
    (["head=1.2", "objective=[ap,ap]"], "objective: got ap, ap, one of them twice."),
    (["head=1.2", "objective=[edits,ap]"], "objective: got edits, ap, whose first says nothing of the head; the best "
     "prompt is the best by the first. Write objective=[ap,edits]."),
    (["head=1.2", "constraints.min_corrupted=5", "constraints.max_corrupted=1"],
     "constraints.min_corrupted: got 5, above constraints.max_corrupted=1; nothing is between them. Swap them."),
    (["head=1.2", "search.storage=journal"],
     "search.storage: got 'journal', wanted settings of this group. Choose an option of it: search/storage=journal."),
    (["head=1.2", "seed=-1"], "seed: got -1, wanted at least 0. Try seed=0."),
    (["head=1.2", "search.space.positions=[2]"],
     "search.space.positions: got a value, but the chosen option of search/space has no such key. Choose one that has: "
     "search/space=substitute."),
    (["head=1.2", "ig.path=single"], "ig.path: got single, but on a path of its own a component's IG is its AP: use "),
    (["head=1.2", "hydra/launcher=joblib"], "hydra/launcher: got one, but it starts workers only, and no study has"),
    (["-m", "head=1.2", "search.worker=0,1", "hydra/launcher=nonsense"], "hydra: In 'hydra/config': Could not find"),
    (["head=1.2", "prompts.distractor=' Tom'"], "clean.n: got 40 clean prompts (heldout.n counted), whose others ask"),
    (["head=1.2", "clean.n=501"], "clean.n: got 501, wanted at most 500."),
    (["head=1.2", "objective=error", "estimator=foo"], "estimator: got 'foo', wanted one of ig, ig_zero, atp,"),
    (["head=1.2", "estimator=ig"], "estimator: got 'ig' with objective=ap, wanted objective=error"),
    (["head=9.9", "objective=error"], "head: got 9.9, but the model has 4 layers (0 to 3)."),
    (["head=1.2", "objective=foo"], "objective: got 'foo', wanted one of 'ap', 'ig', 'disagreement', 'selectivity', "),
    (["head=1.2", "objective=[]"], "objective: got (), wanted at least one entry. Try objective=[ap]."),
    (["head=1.2", "search.sampler=epo"], "search.sampler: got 'epo' for one objective, wanted one of auto, hybrid, "),
    (["head=1.2", "objective=[ap,fluency]", "search.sampler=hybrid"],
     "search.sampler: got 'hybrid' for several objectives, wanted one of auto, epo, nsga2, tpe, random, brute."),
    (["head=1.2", "search.sampler=brute"],
     "search.sampler: got brute for 2.541e+11 candidates, wanted at most 1e+07: at 5,000 a second, the "
     "pace of a small model, these take 588 days. Offer fewer words"),
    (["head=1.2", "search/space=prompts"],
     "search.space.prompts: got no prompt, wanted one of the two: search.space.file=FILE with one prompt a line"),
    (["head=1.2", "search/space=prompts", "search.space.file=no, such.txt"],
     "search.space.file: got no, such.txt, which cannot be read ("),
    (["head=1.2", "search/space=substitute", "search.space.vocabulary=[]"],
     "search.space.vocabulary: got (), wanted at least one entry. Try search.space.vocabulary=[words]."),
    (["head=1.2", "search/space=substitute", "search.space.positions=[40]"],
     "search.space.positions: got position 40, which is no whole word, wanted some of 1 'After', 2 'John'"),
    (["head=1.2", "search/storage=grpc", "search.storage.address=foo"],
     "search.storage.address: got 'foo', wanted HOST:PORT."),
    (["head=1.2", "name=../x"], "name: got '../x', wanted a folder's name (letters, digits, dots, dashes)."),
    (["head=1.2", "prompts=generated"], "prompts: got several pairs, wanted the one pair that the search starts from"),
    (["head=1.2", "constraints.max_percentile=101"], "constraints.max_percentile: got 101, wanted at most 100"),
]  # fmt: skip


# xdist takes what follows an @ in a name for a group.
@pytest.mark.parametrize(
    ("overrides", "message"), BAD, ids=lambda v: " ".join(v).replace("@", " at ") if isinstance(v, list) else ""
)
def test_bad_input_is_one_line_and_exit_code_2_before_the_model_loads(
    overrides, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cached, "cached_model", None)
    assert cli.main(["search", *overrides]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"igap: {message}")
    assert err.count("\n") == 1
    assert out == ""
    assert not list(tmp_path.iterdir())


def test_a_storage_without_its_url_is_refused_before_the_model_loads(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IGAP_STORAGE_URL", raising=False)
    monkeypatch.setattr(cached, "cached_model", None)
    assert cli.main(["search", "head=1.2", "search/storage=postgres"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("igap: search.storage: got postgres, but IGAP_STORAGE_URL is not set.")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["constraints.min_clean=50"], "constraints.min_clean: got 50.0, but the logit difference after prompts.clea"),
        (["constraints.max_corrupted=-100", "search.until=10"],
         "search.space: none of 10 trials has a value within the bounds: constraints.max_corrupted removed 10. Loosen"),
    ],
)  # fmt: skip
def test_what_only_the_model_can_tell_is_one_line_and_exit_code_2(overrides, message, tmp_path, capsys):
    assert search(*overrides, *LIGHT, where=tmp_path) == 2
    *stages, told = capsys.readouterr().err.splitlines()  # a log file hears of each stage
    assert told.startswith(f"igap: {message}")
    assert stages == ["load model", "search", "validate"][: len(stages)]
    assert not list(tmp_path.rglob("search_summary.json"))
    assert bool(list(tmp_path.rglob("study.*"))) == ("search.until=10" in overrides), "there are trials, or no study"


def test_a_template_of_ones_own_is_given_with_its_lists_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    template = "After {first} and {second} went to the store, {subject} {verb} it to"
    texts = [f"prompts.{name}={template.format(first='John', second='Mary', subject=who, verb='gave')}"
             for name, who in (("clean", "Mary"), ("corrupted", "John"))]  # fmt: skip
    texts += ["prompts.answer= John", "prompts.distractor= Mary"]
    without = ["~search.space.slots.place", "~search.space.slots.object"]
    one = ["clean.n=1", "heldout.n=0"]
    assert cli.main(["check", "search", "head=1.2", f"search.space.template={template}", *texts, *without, *one]) == 0
    assert "1.2: ap, " in capsys.readouterr().out


def test_a_heads_name_is_one_whatever_it_is_written_as(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["check", "search", "head=01.2,1.2"]) == 0
    assert capsys.readouterr().out.endswith("in searches/1.2-ap\n")


@pytest.mark.parametrize("position", [8, 16])
def test_positions_count_the_bos_token_also_before_the_model_loads(position, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = "search.space.vocabulary=[zoo,cafe]"
    asked = ["head=1.2", "search/space=substitute", f"search.space.positions=[{position}]", words]
    assert cli.main(["check", "search", *asked]) == 0
    assert "1.2: ap, 3 candidates" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["objective=curve"], "the best of 2 candidates each)"),
        (
            ["objective=ig", "constraints.min_fluency=-1"],
            "the best of 2 candidates each; objective=ig and constraints.min_fluency: a run of its own for each)",
        ),
        (["objective=error"], "the best of 2 candidates each; objective=error: a run of its own for each)"),
    ],
)
def test_the_plan_says_what_shared_beginnings_do_not_serve(asked, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    space = ["search/space=substitute", "search.space.positions=[8]", "search.space.vocabulary=[zoo,cafe]"]
    assert cli.main(["check", "search", "head=1.2", *space, "search.sampler=brute", "search.until=2", *asked]) == 0
    assert said in capsys.readouterr().out


def test_help_and_check_say_what_there_is_and_compute_nothing(no_key, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cached, "cached_model", None)
    assert cli.main(["search", "--help"]) == 0
    text = capsys.readouterr().out
    for word in (
        "search_mini",
        "search_9_6",
        "head_scan",
        "search.until=300",
        "Exit codes",
        "constraints.min_clean=0.0",
        "objective=ap",
    ):
        assert word in text
    assert cli.main(["search"]) == 2
    capsys.readouterr()
    assert cli.main(["check", "search", "head=9.9"]) == 2
    assert capsys.readouterr().err.startswith("igap: head: got 9.9, but the model has 4 layers (0 to 3).")
    assert cli.main(["check", "search", "head=1.2", "tracking=online"]) == 2, "no key: as the search itself"
    assert capsys.readouterr().err.startswith("igap: tracking: got online, but W&B has no key for this machine.")
    assert cli.main(["check", "search", "search_mini"]) == 0
    line = capsys.readouterr().out
    assert line.startswith("1.2: ap, 2.541e+11 candidates, 200 trials (")
    assert line.endswith("4 clean prompts, 16 held out, in searches/search_mini\n")
    assert cli.main(["check", "search", "head_scan"]) == 0
    assert capsys.readouterr().out.count("\n") == 32
    assert not list(tmp_path.iterdir())


def test_a_search_leaves_its_files_and_the_summary_last_as_finite_json(done):
    names = {str(path.relative_to(done)) for path in done.rglob("*") if path.is_file()}
    tables = {"trials", "top", "single_edits", "ladder", "slots", "heads"}
    pictures = {f"plots/{name}.png" for name in ("history", "heads", "curves", "single_edits")}
    assert {*(f"{name}.csv" for name in tables), *pictures, "config.json", "study.db", "search_summary.json"} <= names
    last = (done / "search_summary.json").stat().st_mtime_ns
    assert all((done / name).stat().st_mtime_ns <= last for name in (*(f"{t}.csv" for t in tables), *pictures))
    summary = summary_of(done)
    trials = tables_of.read_csv(done / "trials.csv")
    assert (summary["n_trials"], summary["n_clean"], summary["heldout/n"]) == (len(trials), 2, 3) == (20, 2, 3)
    assert trials["ap"].max() == pytest.approx(summary["best/value"], rel=1e-5)
    assert (trials["ap"] - trials[["effect/0", "effect/1"]].mean(axis=1).abs()).abs().max() < 1e-6
    best = trials.iloc[summary["best/trial"]]
    rule = ", ".join(f"{n} := {best[f'slot/{n}'].lstrip('=')}" for n in ("first", "second", "subject")
                     if best[f"slot/{n}"] != "=keep")  # fmt: skip
    assert rule == summary["best/rule"]
    assert pd.read_csv(done / "top.csv").iloc[0]["corrupted"] == summary["best/corrupted"]


def test_the_best_pair_has_its_run_which_is_that_of_igap_run(done, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    summary = summary_of(done)
    texts = [f"prompts.clean={summary['best/clean']}", f"prompts.corrupted={summary['best/corrupted']}",
             f"prompts.answer={summary['answer']}", f"prompts.distractor={summary['distractor']}"]  # fmt: skip
    assert cli.main(["run", *texts, "tracking=disabled", "device=cpu"]) == 0
    (plain,) = tmp_path.glob("runs/*")
    (run,) = done.glob("runs/*")
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (run, plain))
    assert run.name == ours["key"] == theirs["key"]
    for one, other in zip(*(load_file(f / "attributions.safetensors").items() for f in (run, plain)), strict=True):
        assert one[0] == other[0]
        assert one[1].equal(other[1])


def test_the_same_command_computes_nothing_new_and_a_higher_target_goes_on(done, tmp_path, capsys):
    folder = shutil.copytree(done, tmp_path / "searches" / "one", symlinks=True)
    shutil.copy(done.parent / ".evaluations.sqlite", folder.parent)
    (run,) = folder.glob("runs/*/summary.json")
    before, trials, written = summary_of(folder), (folder / "trials.csv").read_bytes(), run.stat().st_mtime_ns
    assert search("search.until=20", "name=one", where=tmp_path) == 0
    after = summary_of(folder)
    assert {k: v for k, v in after.items() if k not in VARYING} == {k: v for k, v in before.items() if k not in VARYING}
    assert (folder / "trials.csv").read_bytes() == trials
    assert run.stat().st_mtime_ns == written
    assert search("search.until=26", "name=one", where=tmp_path) == 0
    more = summary_of(folder)
    assert more["n_trials"] == 26
    assert (folder / "trials.csv").read_bytes().startswith(trials)
    assert more["key"] == before["key"], "it is one study, and one run of W&B"
    assert len(list(folder.glob("wandb/offline-run-*"))) == 1


def inspect(place, *options):
    command = [sys.executable, "-m", "wandb", "leet", "inspect", str(place), "--json", *options]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.usefixtures("forks")
def test_wandb_has_the_summary_a_step_a_trial_tables_and_pictures(done):
    place = done / places.find_logged_run(done).place
    read = json.loads(inspect(place, "--summary"))
    for name, value in summary_of(done).items():
        if isinstance(value, float):
            value = pytest.approx(value, rel=1e-12)
        assert read["summary"].get(name, "absent") == ("absent" if value is None else value), name
    assert (read["name"], read["state"]) == ("one", "finished")
    text = inspect(place)
    for path in (*done.glob("plots/*.png"), *done.glob("*.csv")):
        assert f"{'plots' if path.suffix == '.png' else 'tables'}/{path.stem}" in text
    assert '"job_type":"search"' in text
    steps = [line for line in text.splitlines() if '"trial"' in line and '"history"' in line]
    assert len(steps) == 20


def test_a_disk_too_small_for_a_search_costs_no_certificate_and_a_figure_itself_only(
    tmp_path, monkeypatch, capsys, caplog
):
    monkeypatch.chdir(tmp_path)
    write, asked = runner.write, ("search.until=4", *LIGHT)

    def on_a_small_disk(*given):
        with no_file_above(200):
            return write(*given)

    monkeypatch.setattr(runner, "write", on_a_small_disk)
    assert search(*asked, where=tmp_path) == 1
    said = capsys.readouterr()
    assert "trials.csv cannot be written or read (File too large)" in caplog.text
    assert "Traceback" not in said.err + caplog.text
    assert "by hand" in said.out
    assert not list(tmp_path.rglob("search_summary.json"))
    monkeypatch.setattr(runner, "write", write)
    monkeypatch.setattr("igap.counterfactual.output.write.search_heads", lambda *_: 1 / 0)
    assert search(*asked, where=tmp_path) == 1
    (summary,) = tmp_path.rglob("search_summary.json")
    assert json.loads(summary.read_text())["failed"] == "plots/heads"
    assert "plots/heads: ZeroDivisionError: division by zero" in caplog.text


def test_disabled_tracking_writes_nothing_of_wandb(quiet):
    assert (quiet / "searches" / "0.4-ap" / "search_summary.json").exists()
    assert not list(quiet.rglob("wandb"))


def test_a_study_goes_on_where_it_was_moved_to(quiet, tmp_path):
    shutil.copytree(quiet / "searches", tmp_path / "searches")
    (tmp_path / "searches" / "0.4-ap").rename(tmp_path / "searches" / "kept")
    before = summary_of(tmp_path / "searches" / "kept")
    assert search("search.until=20", "name=kept", *QUIET, where=tmp_path) == 0
    after = summary_of(tmp_path / "searches" / "kept")
    assert (before["n_trials"], after["n_trials"]) == (18, 20)
    assert after["key"] == before["key"]


def test_two_searches_of_one_question_are_two_runs_of_wandb_and_say_what_they_used(quiet, tmp_path):
    assert search("search.until=108", *QUIET, where=tmp_path) == 0
    found = [summary_of(where / "searches" / "0.4-ap") for where in (quiet, tmp_path)]
    assert found[0]["key"] != found[1]["key"]
    assert [one["sampler"] for one in found] == ["hybrid", "brute"]
    assert [one["n_from_disk"] for one in found] == [0, 0]


def test_searches_of_two_questions_are_no_scan(tmp_path):
    assert search("-m", "objective=ap,curve", "search.until=4", *LIGHT, where=tmp_path) == 0
    assert sorted(path.name for path in (tmp_path / "searches").iterdir() if path.name[0] != ".") == [
        "0.4-ap", "0.4-curve",
    ]  # fmt: skip


def test_ctrl_c_in_a_scan_keeps_the_heads_that_are_done_and_shows_them_whatever_is_not_written(
    tmp_path, monkeypatch, capsys, caplog
):
    one = runner._run_study

    def interrupted(study, *arguments, **options):
        if study.config.head == "2.3":
            raise KeyboardInterrupt
        return one(study, *arguments, **options)

    monkeypatch.setattr(runner, "_run_study", interrupted)
    monkeypatch.setattr("igap.counterfactual.output.scan.search_scan", lambda *_: 1 / 0)
    assert search("head=0.4,1.2,2.3,3.1", "search.until=4", *LIGHT, where=tmp_path) == 130
    assert pd.read_csv(tmp_path / "searches" / "heads-ap" / "scan.csv", dtype=str)["name"].tolist() == ["0.4", "1.2"]
    assert "scan: ZeroDivisionError: division by zero" in caplog.text
    shown = capsys.readouterr().out
    assert "What each component reaches" in shown
    assert "scan.csv" not in shown


def test_a_storage_that_fails_in_the_middle_is_exit_code_1_and_costs_its_head_only(
    tmp_path, monkeypatch, capsys, caplog
):
    add = study.add_trials

    def fails(storage, of, trials, n_before):
        if n_before and "0.4" in str(storage.url):
            cause = sqlite3.OperationalError("the server closed the connection")
            raise sqlalchemy.exc.OperationalError("INSERT", {}, cause)
        add(storage, of, trials, n_before)

    monkeypatch.setattr(study, "add_trials", fails)
    told = "search.storage: got a failure while searching: (sqlite3.OperationalError) the server closed the connection"
    assert search("search.until=6", "search.batch=2", *LIGHT, where=tmp_path) == 1
    assert f"igap: {told}" in capsys.readouterr().err
    assert search("head=0.4,1.2", "search.until=6", "search.batch=2", *LIGHT, where=tmp_path) == 1
    assert f"0.4: {told}" in caplog.text
    assert summary_of(tmp_path / "searches" / "heads-ap" / "1.2-ap")["n_trials"] == 6


def test_a_storage_that_went_away_while_a_launchers_workers_searched_is_exit_code_1(tmp_path, monkeypatch, capfd):
    def refuses(*arguments, **options):
        raise InputError("search.storage: got grpc, but nothing answers.")

    monkeypatch.setattr(runner, "check_storage", refuses)
    for error, code in ((OSError("the server closed the connection"), 1), (InputError("head: got x."), 2)):
        monkeypatch.setattr(workers, "run_worker", Mock(side_effect=error))
        assert search("-m", "search.worker=range(2)", *LIGHT, where=tmp_path) == code
        assert capfd.readouterr().err.count("igap: search.storage: got grpc, but nothing answers.") == 1


def test_a_best_pair_that_no_run_takes_costs_its_run_only(tmp_path, monkeypatch, caplog):
    def refuses(config):
        raise InputError("prompts.corrupted: got what no run takes.")

    monkeypatch.setattr(runner.pipeline, "check", refuses)
    assert search(*LIGHT, "search.until=4", "full_run=true", where=tmp_path) == 1
    assert "failed: prompts.corrupted: got what no run takes." in caplog.text
    assert summary_of(tmp_path / "searches" / "0.4-ap")["n_trials"] == 4


def test_ctrl_c_on_a_launchers_workers_ends_with_the_report_of_what_there_is(quiet, tmp_path, monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    asked = ["-m", "search.worker=range(2)", *QUIET, "name=one"]
    monkeypatch.setattr(launch, "one_round", interrupted)
    assert search(*asked, "search.until=20", where=tmp_path) == 130, "nothing there yet"
    told = "igap: interrupted; a search without search_summary.json is not finished.\n"
    assert capsys.readouterr().err.endswith(told)
    assert not list(tmp_path.rglob("search_summary.json"))
    shutil.rmtree(tmp_path / "searches", ignore_errors=True)
    shutil.copytree(quiet / "searches" / "0.4-ap", tmp_path / "searches" / "one")
    assert search(*asked, "search.until=20", where=tmp_path) == 130
    assert "interrupted at 18 trials; the same command goes on" in capsys.readouterr().out
    assert summary_of(tmp_path / "searches" / "one")["interrupted"] == 1


def test_workers_that_fail_are_told_and_their_part_is_done(tmp_path, monkeypatch, capfd):
    def fails(*arguments):
        raise RuntimeError("no such card")

    monkeypatch.setattr(workers, "run_worker", fails)
    assert search("-m", "search.worker=range(2)", "search.until=6", *LIGHT, "name=one", where=tmp_path) == 0
    told = capfd.readouterr().err
    assert told.count("a process failed: RuntimeError: no such card") == 2
    assert "Error executing job" not in told
    assert summary_of(tmp_path / "searches" / "one")["n_trials"] == 6


def test_a_study_has_its_report_as_a_note_and_its_pictures_where_they_are_asked_for(
    quiet, tmp_path, monkeypatch, capsys
):
    shutil.copytree(quiet, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "searches" / "0.4-ap"

    def read():
        study = optuna.load_study(study_name=None, storage=f"sqlite:///{folder}/study.db")
        attributes = study._storage.get_study_system_attrs(study._study_id)
        names = sorted(
            (name for name in attributes if "note_str" in name), key=lambda name: int(name.rpartition(":")[2])
        )
        pictures = {each.filename for each in optuna.artifacts.get_all_artifact_meta(study)}
        return "".join(attributes[name] for name in names), pictures

    plain, pictures = read()
    summary = json.loads((folder / "search_summary.json").read_text())
    for text in ("best/clean", "best/corrupted", "best/rule"):
        assert str(summary[text]) in plain
    assert f"| ap | {summary['best/value']:.3f} | {summary['by_hand/value']:.3f} |" in plain
    assert f"| ap on 3 held-out prompts | {summary['heldout/value']:.3f} | {summary['heldout/by_hand']:.3f} |" in plain
    assert f"| ap, best of {summary['random/n']} at random | {summary['random/best']:.3f} |" in plain
    assert all(f"- {line[:30]}" in plain for line in summary["verdict"].split(". ")[:1])
    assert f"\nigap {shlex.join([*ASKED, 'search.until=18', *QUIET])}\n" in plain
    assert not pictures
    assert not (folder / "artifacts").exists()
    with monkeypatch.context() as patch:
        patch.setattr(dashboard.importlib.util, "find_spec", lambda name: True)
        assert search("search.until=18", *QUIET, "search.dashboard=true", where=tmp_path) == 0
    printed = capsys.readouterr().out
    opens = "optuna-dashboard sqlite:///searches/0.4-ap/study.db --artifact-dir searches/0.4-ap/artifacts"
    assert f"in Optuna Dashboard: {opens}" in printed
    assert "  artifacts/" not in printed
    shown, pictures = read()
    assert pictures == {file.name for file in (folder / "plots").glob("*.png")}
    assert [line.partition("(")[0] for line in shown.splitlines() if line.startswith("!")] == ["![heads]", "![history]"]
    assert shown.startswith(plain.partition("\n```\nigap")[0])
