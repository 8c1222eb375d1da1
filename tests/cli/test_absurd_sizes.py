"""Grids, numbers and names beyond all measure: one line and exit code 2, before a model loads or memory fills."""

import functools

import pytest
from helpers import hostile_values
from hydra.core.global_hydra import GlobalHydra

from igap import cli
from igap.cli import compose, overrides
from igap.cli.compose import compose_one, compose_searches
from igap.config import RunConfig, keys, validate_settings
from igap.counterfactual.config import SearchConfig
from igap.errors import InputError
from igap.models import cached
from igap.pipeline import prepare


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cached, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    yield
    GlobalHydra.instance().clear()


def refused(arguments, capsys):
    """What the command says, once it is seen to be one short line."""
    code = cli.main(arguments)
    said = capsys.readouterr()
    assert (code, said.out) == (2, ""), said
    assert said.err.startswith("igap: ")
    assert said.err.count("\n") == 1, said.err
    assert len(said.err) < 1000
    return said.err


@pytest.mark.parametrize("override", hostile_values.GRID_OVERRIDES, ids=lambda override: override[:40])
def test_a_grid_that_cannot_be_is_one_line(override, capsys):
    refused(["check", "-m", override], capsys)


def test_a_grid_where_one_run_is_wanted_is_one_line(capsys):
    for override in ("seed=range(1,100000000)", "seed=glob(*)", "seed=interval(0,1)", "baseline=glob(*)"):
        refused(["run", override], capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        ["search", "-m", "head=1.2", "search.worker=range(1,100000000)"],
        ["check", "search", "-m", "head=1.2", "seed=range(1,100000000)"],
        ["sweep", "baselines", "seed=range(1,100000000)"],
        ["check", "-m", "seed=range(1000)", "ig.n_steps=range(1,1000)"],
    ],
)
def test_too_many_jobs_are_told_before_any_is_composed(arguments, capsys, monkeypatch):
    monkeypatch.setattr(compose, "checked_config", lambda *_: pytest.fail("a job was composed"))
    assert f"wanted at most {overrides._MOST_JOBS}" in refused(arguments, capsys)


LISTS = ("search.space.slots", "search.space.prompts", "search.space.vocabulary", "search.space.positions")
PROMPTS = ("clean", "corrupted", "answer", "distractor", "prompt", "template", "bos")
"""Texts that the model's context bounds."""


@pytest.mark.parametrize("schema", [RunConfig, SearchConfig])
def test_a_number_or_a_name_beyond_all_measure_is_refused_in_every_key(schema):
    composed = compose_one([]).config if schema is RunConfig else compose_searches(["head='1.2'"])[0]
    for key in keys(schema):
        *groups, name = key.split(".")
        # Components of no ablation nobody reads; pictures' names are known where they are drawn.
        if key in LISTS or name in PROMPTS or key in ("ablation.components", "plots"):
            continue
        for absurd in (10**400, float("1e308"), "9" * 5000, "a b " * 1000):
            values = composed.model_dump()
            functools.reduce(dict.__getitem__, groups, values)[name] = absurd
            free = name in ("penalty", "min_gap") or groups[:1] == ["constraints"]
            if free and absurd == 1e308:
                continue
            with pytest.raises(InputError) as told:
                validate_settings(schema, values)
            assert str(told.value).startswith(f"{key}: got "), key
            assert "\n" not in str(told.value)
            assert len(str(told.value)) < 900, key


@pytest.mark.parametrize("key", ["output", "sweep", "prompts.file", "ablation.file", "model.name"])
def test_a_name_that_no_file_system_takes_is_refused_in_one_line(key, capsys):
    for name in ("x" * 300, "x" * 5000, "a/" * 2000, "é" * 200):
        if not (key == "sweep" and "/" in name):
            assert "wanted a path of at most" in refused(["check", "ablation=zero", f"{key}={name}"], capsys)


def test_pairs_that_memory_does_not_hold_are_refused_before_they_are_tokenised(capsys, monkeypatch):
    monkeypatch.setattr(prepare, "machine_bytes", lambda: 2**20)
    assert "prompts: got 50 pairs, whose maps of 2080 components take" in refused(["check", "prompts.n=50"], capsys)


def test_more_processes_than_a_machine_is_for_are_refused(capsys, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert "wanted at most 8, four a core" in refused(["check", "search", "head=1.2", "search.workers=9"], capsys)
    launcher = ["check", "-m", "seed=1,2", "hydra/launcher=joblib"]
    assert "from 1 to 8, four a core" in refused([*launcher, "hydra.launcher.n_jobs=1000000000"], capsys)


@pytest.mark.parametrize("setting", ["cpus_per_task=-3", "timeout_min=abc", "nodes=0", "tasks_per_node=0", "mem_gb=x"])
def test_settings_that_a_launcher_does_not_take_are_refused_before_it_starts(setting, capsys):
    said = refused(["check", "-m", "seed=1,2", "hydra/launcher=submitit_local", f"hydra.launcher.{setting}"], capsys)
    assert f"hydra.launcher.{setting.partition('=')[0]}: got" in said


def test_a_long_list_is_refused_by_its_length(capsys):
    for override in (
        f"curves.alphas=[{','.join(map(str, range(10_000)))}]",
        "ablation.also=[" + "zero," * 10_000 + "]",
    ):
        assert "wanted at most 10000 outside quotes" in refused(["check", override], capsys)


def test_of_a_list_with_many_wrong_entries_the_first_is_told(capsys):
    assert "ablation.also: got 'no', wanted" in refused(["check", f"ablation.also=[{'no,' * 500}no]"], capsys)
