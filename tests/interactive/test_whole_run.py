"""Whole runs from Python: the files of a command, its refusals, and nothing of the process changed."""

import asyncio
import json
import logging
import os
import sys

import pytest

import igap
from igap import InputError
from igap.cli import main

QUICK = ("sites=heads", "plots=none", "explain=false", "curves.components=none", "tracking=disabled", "ig.n_steps=5")


def small(checkpoint):
    return (*QUICK, "model=hf", f"model.name={checkpoint('gpt2')}", "prompts.min_gap=0", "device=cpu")


def test_a_run_from_python_writes_what_the_command_writes(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = small(checkpoint)
    run = igap.run(*arguments, folder="python")
    assert capsys.readouterr().out == "", "what it found is not printed"
    assert main(["run", *arguments, "hydra.run.dir=command"]) == 0
    files = [
        {str(path.relative_to(tmp_path / name)) for path in (tmp_path / name).rglob("*") if path.is_file()}
        for name in ("python", "command")
    ]
    assert files[0] == files[1]
    for name in ("attributions.safetensors", "heads.csv", "config.json", ".hydra/config.yaml"):
        assert (tmp_path / "python" / name).read_bytes() == (tmp_path / "command" / name).read_bytes(), name
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("python", "command")]
    first, second = ({k: v for k, v in each.items() if not k.startswith("seconds/")} for each in summaries)
    assert first == second
    assert run.folder == tmp_path / "python"
    assert run.summary == summaries[0]


def test_nothing_of_the_process_is_taken_over(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["notebook", "--flag"])
    root, own = logging.getLogger(), logging.getLogger("igap")

    def state():
        levels = [(each.level, each.propagate, each.disabled, list(each.handlers)) for each in (root, own)]
        return os.getcwd(), list(sys.argv), dict(os.environ), levels

    before = state()
    first, second = (igap.run(*small(checkpoint)) for _ in range(2))
    assert state() == before
    assert first.folder != second.folder
    assert first.folder.parent == second.folder.parent == tmp_path / "runs"
    with pytest.raises(InputError):
        igap.run("bogus=1")
    assert state() == before


def test_it_runs_within_a_running_event_loop_and_beside_a_hydra_of_the_users_own(checkpoint, tmp_path, monkeypatch):
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    monkeypatch.chdir(tmp_path)

    async def cell():
        return igap.run(*small(checkpoint), folder="loop")

    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        theirs = GlobalHydra.instance().hydra
        assert asyncio.run(cell()).summary["n_pairs"] == 1
        assert type(GlobalHydra.instance().hydra) is type(theirs)
        assert GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (("bogus=1",), "bogus: got a key that no run has"),
        (("baseline=zer",), "baseline: got 'zer', wanted one of "),
        (("baseline=zero,mean",), "baseline: got 2 values (zero, mean), wanted one."),
        (("ig.n_steps=0",), "ig.n_steps: got 0, wanted a whole number from 1 to "),
        (("hello",), "overrides: got 'hello', wanted KEY=VALUE."),
        ((5,), "overrides: got 5, wanted KEY=VALUE. Try baseline=zero."),
        ((["a=1"],), "overrides: got ['a=1'], wanted KEY=VALUE. Write igap.run(*overrides)."),
        (("prompts.clean=a b",), "prompts.clean: got 'a b', and from the preset prompts.corrupted='After "),
    ],
)
def test_what_the_command_line_refuses_is_refused_with_its_line_and_leaves_no_folder(
    overrides, line, tmp_path, monkeypatch, unchecked
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as refused:
        igap.run(*overrides)
    assert str(refused.value).startswith(line)
    assert str(refused.value).isprintable()
    assert not list(tmp_path.iterdir())


def test_a_folder_with_a_finished_run_is_refused_and_stays_as_it_is(written, checkpoint):
    before = (written / "summary.json").read_bytes()
    with pytest.raises(InputError, match="which holds a finished run"):
        igap.run(*small(checkpoint), folder=written)
    assert (written / "summary.json").read_bytes() == before


def test_what_is_refused_while_it_runs_is_raised_as_it_is_and_no_line_of_hydras_is_written(
    checkpoint, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "refused").mkdir()
    (tmp_path / "refused" / "plots").write_text("no folder")
    with pytest.raises(InputError, match=r"^output: got \S+/refused/plots, wanted a folder that can be written to"):
        igap.run(*small(checkpoint), folder="refused")
    assert "Error executing job" not in capfd.readouterr().err
