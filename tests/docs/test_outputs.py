"""What the pages say that igap prints is what it prints."""

import re
from pathlib import Path

import pytest

from igap import cli
from igap.components import PLACES

ROOT = Path(__file__).parents[2]
PAGES = {
    ("run", "plots=none"): ("README.md", "docs/quick-start.md", "docs/tutorials/first-run.md"),
    ("search", "search_mini", "full_run=false"): ("docs/tutorials/search.md",),
}
"""By command, the pages whose blocks of output are all of that command."""


def lines(text: str) -> set[str]:
    """The lines of a text; each loses its margins, the time in the name of a run, and the folder it lies in."""
    text = re.sub(r"\S*/?((runs|searches)/)", r"\1", text)
    text = re.sub(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d+", "TIME", text)
    return {line.strip() for line in text.splitlines()}


def blocks(page: str, language: str = "") -> str:
    """The lines of a page's blocks in a language."""
    pairs = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    return "".join(text for each, text in pairs if each == language)


def shown(page: str) -> set[str]:
    """The lines of a page's blocks without a language; three dots stand for lines, or for the rest of one."""
    return lines(blocks(page)) - {"...", ""}


@pytest.mark.parametrize("command", PAGES, ids=lambda command: command[0])
def test_every_line_of_output_on_a_page_is_one_that_the_command_prints_and_its_python_runs_after_it(
    command, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    assert cli.main([*command, "device=cpu", "tracking=disabled"]) == 0
    printed = lines(capsys.readouterr().out)
    for page in PAGES[command]:
        wanted = shown(page)
        assert len(wanted) > 5
        wrong = {line for line in wanted if not any(line == each or _begins(line, each) for each in printed)}
        assert not wrong, page
        if page != "README.md":  # its Python makes a run of its own: tests/test_readme.py
            exec(compile(blocks(page, "python"), page, "exec"), {})


def _begins(line: str, printed: str) -> bool:
    start, dots, _ = line.partition("(...)")
    return bool(dots) and printed.startswith(start)


@pytest.mark.parametrize("name", ["positions", "metrics"])
def test_every_line_of_output_on_a_page_is_one_that_its_python_prints(name, capsys):
    page = f"docs/how-to/{name}.md"
    exec(compile(blocks(page, "python"), page, "exec"), {})
    printed = lines(capsys.readouterr().out)
    wanted = shown(page)
    assert len(wanted) == 6
    assert not {line for line in wanted if not any(line == each or _begins(line, each) for each in printed)}


def test_the_page_of_metrics_has_every_metric_with_its_unit():
    page = (ROOT / "docs/how-to/metrics.md").read_text()
    rows = re.findall(r"^\| `(\w+)`.* \| (\w+) \|$", page, flags=re.MULTILINE)
    assert rows == [(name, metric.unit) for name, metric in METRICS.items()]


def test_the_page_of_positions_has_every_site_with_its_hook():
    rows = re.findall(
        r"^\| `(\w+)` \| `([\w.]+)` \|", (ROOT / "docs/how-to/positions.md").read_text(), flags=re.MULTILINE
    )
    assert rows == [(site, place.hook) for site, place in PLACES.items()]
