"""Help: every command, group, option and key that there is, each with its meaning and its default."""

import re

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf

from igap import cli
from igap.analyses.base import settings_of
from igap.analyses.registry import ANALYSES
from igap.cli import compose, settings
from igap.cli.commands import igap
from igap.cli.overrides import expand
from igap.config import RunConfig, keys
from igap.counterfactual.config import SearchConfig

CONFIGS = {"config": RunConfig, "search": SearchConfig}
SUMMED_UP = {"search.space.slots"}
"""Mappings that are one row of help."""


@pytest.fixture(autouse=True)
def _no_hydra_left():
    yield
    GlobalHydra.instance().clear()


def help_of(capsys, *command):
    """The help as one paragraph, however it was wrapped."""
    assert cli.main([*command, "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return " ".join(out.split())


@pytest.mark.parametrize("config", CONFIGS)
def test_every_key_has_a_meaning_and_there_is_no_other(config):
    known = {key.name: key for key in settings.config_keys(config)}
    own = {f"analyses.{name}.{key}" for name, each in ANALYSES.items() if each.settings for key in keys(each.settings)}
    assert set(known) == {*keys(CONFIGS[config]), *(own if config == "config" else ())}
    assert [name for name, key in known.items() if not key.meaning] == []


def test_the_defaults_of_an_analysis_are_those_of_its_schema():
    for name in (name for name, each in ANALYSES.items() if each.settings):
        config = compose.compose_one([f"analyses={name}"]).config
        assert settings_of(config, name, ANALYSES[name].settings) == ANALYSES[name].settings()


@pytest.mark.parametrize("config", CONFIGS)
def test_the_defaults_are_those_that_hydra_composes(config):
    with compose.open_hydra() as hydra:
        composed = OmegaConf.to_container(hydra.compose_config(config, [], RunMode.RUN), resolve=False)
    for key in settings.config_keys(config):
        if key.option is None and key.name not in SUMMED_UP:
            found = composed
            for name in key.name.split("."):
                found = found[name]
            assert OmegaConf.to_container(OmegaConf.create(f"x: {key.default}"), resolve=False) == {"x": found}, key


@pytest.mark.parametrize("config", CONFIGS)
def test_every_option_that_is_listed_can_be_composed_and_has_a_meaning(config):
    for group in settings.group_defaults(config):
        groups = {group: settings.options(group)}
        for option in groups[group]:
            assert settings.option_meaning(group, option), f"{group}={option}"
            with compose.open_hydra() as hydra:
                assert expand(
                    OverridesParser.create(hydra.config_loader),
                    [f"{group}={option}"],
                    groups,
                    CONFIGS[config],
                    multirun=False,
                ) == [[f"{group}={option}"]]


@pytest.mark.parametrize(("command", "config"), [("run", "config"), ("search", "search")])
def test_help_lists_groups_keys_with_default_and_meaning_and_examples(command, config, capsys):
    text = help_of(capsys, command)
    for key in settings.config_keys(config):
        assert f"{key.name}=" in text
        assert key.meaning.split()[0] in text
    for group in settings.group_defaults(config):
        for option in settings.options(group) if len(settings.options(group)) > 1 else ():
            assert f" {group}={option} " in text
    for expected in ("seed=0", "hydra/launcher=joblib", "Examples: igap"):
        assert expected in text
    assert f"{group}=base " not in text


def test_run_help_says_what_a_key_means_beside_its_default(capsys):
    text = help_of(capsys, "run")
    assert "ig.n_steps=50 quadrature nodes, one forward and one backward pass each" in text
    assert "baseline=zero activation 0" in text
    assert "baseline=corrupted the site's activation on the corrupted prompt (default)" in text
    assert "search/" not in text, "igap run refuses it"
    assert "base " not in re.sub("baseline", "", text)


def test_every_command_has_an_example_and_says_what_each_option_means(capsys):
    for name, command in igap.commands.items():
        text = help_of(capsys, name)
        assert re.search(rf"Examples: igap (check|{name})", text), name
        for param in command.params:
            if param.param_type_name == "option":
                assert param.help, f"{name} {param.name}"
        assert "Exit codes: 0 done" in text


def test_sweeps_and_searches_are_listed_with_what_they_do(capsys):
    text = help_of(capsys, "sweep")
    assert "baselines what each baseline kind, integrated by each quadrature method," in text
    assert "search_mini" not in text
    assert "search_mini a head of the embedded model" in help_of(capsys, "search")


def test_help_of_a_command_is_shown_with_exit_code_2_where_it_is_given_nothing(capsys):
    for name in ("sweep", "search", "status", "compare", "sync", "verify", "workspace", "store"):
        assert cli.main([name]) == 2
        text = capsys.readouterr().out
        assert cli.main([name, "-h"]) == 0
        assert capsys.readouterr().out == text


def test_igap_alone_and_igap_help_are_its_help(capsys):
    assert cli.main([]) == cli.main(["help"]) == cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert out == 3 * out[: len(out) // 3]
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"igap \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("# head\na: 1  # one\n", {"a": ("1", "one")}),
        ("a: ' #1'  # one # two\n", {"a": ("' #1'", "one # two")}),
        ("x: 1\n# several\n# lines\na: null\n", {"x": ("1", ""), "a": ("null", "several lines")}),
        ("g:\n  # above\n  a:\n  b: [1, 2]  # list\n", {"g.a": ("null", "above"), "g.b": ("[1, 2]", "list")}),
        ("g:  # whole\n  a: 1\n", {"g": ("{...}", "whole")}),
        ("defaults: [base, _self_]\nn: é 木  # 🙂\n", {"n": ("é 木", "🙂")}),
    ],
)
def test_a_comment_belongs_to_the_key_that_it_follows_or_stands_above(text, entries, tmp_path):
    (tmp_path / "x.yaml").write_text(text)
    assert settings._parse(tmp_path / "x.yaml")[1] == entries
