"""The W&B workspace and the W&B sweeps: built and checked with W&B's own code, without a server."""

import itertools
import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from igap import cli
from igap.cli import commands
from igap.cli.compose import compose_one
from igap.errors import InputError
from igap.output.tracking import workspace
from igap.storage.finished import flatten

SWEEPS = Path(__file__).parents[3] / "sweeps" / "wandb"


def test_the_workspace_shows_numbers_and_plots_that_runs_have(written, result, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert workspace.write_workspace("team/igap") == 0
    assert capsys.readouterr().out == "written to workspace.json\n"
    definition = json.loads(Path("workspace.json").read_text())
    assert (definition["entity"], definition["project"]) == ("team", "igap")
    sections = definition["spec"]["section"]["panelBankConfig"]["sections"]
    panels = [panel for section in sections for panel in section["panels"]]
    summary = json.loads((written / "summary.json").read_text())
    charts = [panel["config"] for panel in panels if panel["viewType"] == "Bar Chart"]
    bars = [chart["metrics"] for chart in charts]
    assert set(itertools.chain(*bars)) <= set(summary)
    assert len(bars) == 10
    said = [(chart["chartTitle"], chart["groupAgg"], chart["groupArea"]) for chart in charts]
    assert said == [(f"{name}, mean over the runs of a baseline", "mean", "minmax") for (name,) in bars]
    settings = dict(flatten(result.config.model_dump(mode="json")))
    assert {panel["config"]["groupBy"] for panel in panels if "groupBy" in panel["config"]} == {"baseline.value.kind"}
    assert {"baseline.kind", "ig.n_steps"} <= set(settings)
    text = json.dumps(panels)
    for name in workspace.AGAINST_STEPS:
        assert f"summary:{name}" in text
        assert name in summary
    for name in workspace.PLOTS:
        assert name in text
        assert (written / f"{name}.png").exists()


def test_without_the_extra_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(workspace.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[workspace\]' -c constraints\.txt"):
        workspace.write_workspace("team/igap")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["team"], "project: got team, wanted one ENTITY/PROJECT."),
        (["/igap"], "project: got /igap, wanted one ENTITY/PROJECT."),
        (["a/b", "c/d"], "igap workspace: got unexpected extra argument (c/d), wanted [OPTIONS] ENTITY/PROJECT."),
        (["--upload"], "project: got nothing, wanted ENTITY/PROJECT."),
        (["a/b", "--nope"], "option: got '--nope', which igap workspace does not have, wanted ENTITY/PROJECT or one"),
        (["a/b", "outptu=x"], "option: got 'outptu=x', which igap workspace does not have, wanted ENTITY/PROJECT or "
                              "one of output, --upload, --help. Did you mean output?"),
        (["a/b", "output="], "output: got nothing, wanted a value. igap workspace --help shows what it takes."),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_writes_nothing(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["workspace", *arguments]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"igap: {message}")
    assert err.count("\n") == 1
    assert out == ""
    assert not list(tmp_path.iterdir())


def test_an_upload_needs_a_key(no_key, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="--upload: W&B has no key"):
        workspace.write_workspace("team/igap", upload=True)
    assert Path("workspace.json").exists()


def test_there_are_sweep_files_for_both_methods():
    assert {path.stem for path in SWEEPS.glob("*.yaml")} == {"grid", "random"}


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_command_an_agent_makes_of_a_sweep_file_is_a_run(path):
    """The agent's own code makes the command line; `igap run` takes it."""
    sweep = OmegaConf.to_container(OmegaConf.load(path))
    assert sweep["method"] == path.stem
    values = {
        name: one.get("values", [one["value"]] if "value" in one else [one.get("min"), one.get("max")])
        for name, one in sweep["parameters"].items()
    }
    command = create_sweep_command(sweep["command"])
    assert command[:2] == ["igap", "run"]
    assert command[1] in commands.igap.commands
    for chosen in itertools.product(*values.values()):
        arguments = {name: {"value": value} for name, value in zip(values, chosen, strict=True)}
        overrides = create_sweep_command_args({"args": arguments})["args_no_hyphens"]
        assert command[2] == "${args_no_hyphens}"
        settings = dict(flatten(compose_one(overrides).config.model_dump(mode="json")))
        for name, value in zip(values, chosen, strict=True):
            key = {"baseline": "baseline.kind", "tracking": "tracking.mode"}.get(name, name)
            if name != "prompts":
                assert settings[key] == value
