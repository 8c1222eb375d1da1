"""Shell completion by the protocol that click's scripts speak, and in a bash."""

import os
import shutil
import subprocess
import sys

import pytest

from igap import cli


@pytest.fixture
def complete(monkeypatch, capsys):
    """What is offered for the last of these words, in bash or in another shell."""

    def ask(*words, shell="bash"):
        monkeypatch.setenv("_IGAP_COMPLETE", f"{shell}_complete")
        monkeypatch.setenv("COMP_WORDS", " ".join(("igap", *words)))
        monkeypatch.setenv("COMP_CWORD", str(len(words)) if shell != "fish" else words[-1])
        assert cli.main([]) == 0
        out = capsys.readouterr().out
        if shell == "zsh":
            return out.splitlines()[1::3]
        return [line.partition(",")[2].partition("\t")[0].rstrip() for line in out.splitlines() if line]

    return ask


def test_commands_and_options(complete):
    assert complete("s") == ["sweep", "search", "status", "sync", "store"]
    assert complete("status", "--w") == ["--watch"]
    assert complete("run", "--cfg", "h") == ["hydra"]
    assert complete("check", "s") == ["sweep", "search"]


def test_names_of_sweeps_and_searches(complete):
    assert complete("sweep", "base") == ["baselines"]
    assert complete("check", "sweep", "base") == ["baselines"]
    assert complete("search", "search_") == ["search_9_6", "search_mini"]


def test_groups_and_keys_of_a_run_and_of_a_search(complete):
    assert complete("run", "ig.") == ["ig.n_steps=", "ig.tolerance=", "ig.method=", "ig.path="]
    names = ["baseline", "baseline.kind", "baseline.prompt", "baseline.n", "baseline.seed"]
    assert complete("run", "basel") == [f"{name}=" for name in names]
    assert complete("run", "search") == []
    assert "search/space=" in complete("search", "sear")
    assert "constraints.min_clean=" in complete("search", "search_mini", "constr")
    assert complete("sweep", "baselines", "hydra") == ["hydra/launcher="]


@pytest.mark.parametrize("command", [["run"], ["sweep", "baselines"], ["check", "run"]])
def test_values_in_bash_which_takes_key_and_value_apart(complete, command):
    assert complete(*command, "baseline", "=", "z") == ["zero", "zero_input"]
    assert complete(*command, "ig.method", "=") == ["gausslegendre", "riemann_left", "riemann_middle", "riemann_right"]
    assert complete(*command, "explain", "=", "t") == ["true"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_values_in_shells_that_keep_them_together(complete, shell):
    assert complete("run", "baseline=z", shell=shell) == ["baseline=zero", "baseline=zero_input"]
    assert complete("search", "search/storage=j", shell=shell) == ["search/storage=journal"]


def test_base_is_no_option(complete):
    assert "base" not in complete("run", "baseline", "=")


def test_what_makes_no_sense_is_completed_by_nothing(complete):
    assert complete("walk", "a") == []
    assert complete("run", "nonsense", "=", "x") == []
    assert complete("run", "--nope", "x") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(shell, monkeypatch, capsys):
    monkeypatch.setenv("_IGAP_COMPLETE", f"{shell}_source")
    assert cli.main([]) == 0
    assert "_IGAP_COMPLETE" in capsys.readouterr().out


def test_completion_imports_nothing_heavy():
    code = (
        "import sys, igap.cli; rc = igap.cli.main([]); "
        "heavy = {'torch', 'transformers', 'wandb', 'optuna', 'hydra', 'matplotlib'} & set(sys.modules); "
        "sys.exit(rc or ','.join(heavy) or 0)"
    )
    asked = {"_IGAP_COMPLETE": "bash_complete", "COMP_WORDS": "igap run ig.method = r", "COMP_CWORD": "4"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "plain,riemann_left" in done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
def test_a_bash_completes_words_and_sets_no_space_after_an_equals_sign(tmp_path):
    (tmp_path / "igap").write_text(f'#!/bin/sh\nexec {sys.executable} -m igap.cli "$@"\n')
    (tmp_path / "igap").chmod(0o755)
    script = """
        eval "$(_IGAP_COMPLETE=bash_source igap)"
        COMP_WORDS=(igap run ig.n) COMP_CWORD=2; _igap_completion igap; printf '[%s]' "${COMPREPLY[@]}"
        COMPREPLY=(); COMP_WORDS=(igap run baseline = m) COMP_CWORD=4; _igap_completion igap
        printf '[%s]' "${COMPREPLY[@]}"; complete -p igap
    """
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "[ig.n_steps=][mean ]complete -o nosort -o nospace -F _igap_completion igap\n", done.stderr
