"""The site, built: without a warning or a network; links lead somewhere; every key and every public name is there."""

import importlib.util
import os
import re
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from helpers.forked import Forked

import igap
from igap import PromptPair, attribution_patching
from igap.analyses.registry import ANALYSES
from igap.config import RunConfig, keys
from igap.counterfactual.config import SearchConfig
from igap.inputs.files import read_pairs

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")


class Page(HTMLParser):
    """The ids of a page, what it links to, and what a browser loads for it."""

    def __init__(self, file):
        super().__init__()
        self.ids, self.links, self.loaded = set(), [], []
        self.feed(file.read_text())

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") != "canonical":
            self.loaded.append(given["href"])
        self.loaded += [given["src"]] if given.get("src") else []


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder that mkdocs builds; a warning stops it."""
    folder = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    given = {"cwd": ROOT, "env": {**os.environ, "NO_MKDOCS_2_WARNING": "1"}, "capture_output": True, "text": True}
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(subprocess, "Popen", Forked)  # half of a build is the import of igap, for the pages made of it
        warnings.simplefilter("default")  # of Python's; mkdocs counts its own
        done = subprocess.run(command, **given, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    """Every page of the site by its path."""
    return {str(file.relative_to(site)): Page(file) for file in site.rglob("*.html")}


def test_every_link_of_the_site_leads_to_a_page_and_a_heading(site, pages):
    broken = []
    for name, page in pages.items():
        if name == "404.html":  # which does not know where it will be shown from
            continue
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (site / name).parent / unquote(parts.path) if parts.path else site / name
            target = target / "index.html" if target.is_dir() else target
            path = os.path.relpath(target, site)
            if not target.is_file() or (parts.fragment and path in pages and parts.fragment not in pages[path].ids):
                broken.append(f"{name}: {link}")
    assert not broken


def test_a_browser_loads_nothing_from_a_network(site, pages):
    assert not [url for page in pages.values() for url in page.loaded if urlsplit(url).netloc]
    styles = [file.read_text() for file in site.rglob("*.css")]
    assert styles
    assert not [url for text in styles for url in re.findall(r"(?:url\(|@import )[\"']?(https?:[^\"')]+)", text)]


@pytest.mark.parametrize("name", TOP)
def test_every_link_of_the_files_at_the_top_leads_to_a_file_and_a_heading(name, pages):
    for path, _, anchor in re.findall(r"\]\(([^)#]*)(#([^)]+))?\)", (ROOT / name).read_text()):
        assert (ROOT / path).is_file(), path
        if anchor:
            assert anchor in pages[path.removeprefix("docs/").replace(".md", ".html")].ids


def test_a_notebook_becomes_a_page_with_its_texts_its_code_and_what_that_gave():
    spec = importlib.util.spec_from_file_location("site_hooks", DOCS / "site_hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    data = {"text/plain": ["<Figure>"]}
    outputs = [
        {"output_type": "stream", "text": ["one\n", "two\n"]},
        {"output_type": "execute_result", "data": {**data, "text/html": ["<table>\n", "\n", "</table>"]}},
        {"output_type": "display_data", "data": {**data, "image/png": "iVBO\n"}},
        {"output_type": "execute_result", "data": data},
    ]
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        {"cell_type": "code", "source": ["x = 1"], "outputs": outputs},
    ]
    assert hooks.notebook_page({"cells": cells}).split("\n\n") == [
        "# Title\ntext",
        "```python\nx = 1\n```",
        "```\none\ntwo\n```",
        "<div><table>\n</table></div>",
        "![<Figure>](data:image/png;base64,iVBO)",
        "```\n<Figure>\n```",
    ]


def test_files_that_the_code_and_the_tests_name_exist():
    sources = [file for folder in ("igap", "conf", "sweeps", "tests") for file in (ROOT / folder).rglob("*.*")]
    texts = [file.read_text() for file in sources if file.suffix in (".py", ".yaml", ".md")]
    named = {path for text in texts for path in re.findall(r"\bdocs/[\w/-]+\.(?:md|py|ipynb)\b", text)}
    assert {"docs/results.py", "docs/extending/analysis.md"} <= named
    assert not [path for path in named if not (ROOT / path).is_file()]


def test_every_key_is_there_with_its_type_and_its_meaning(site):
    page = (site / "reference" / "keys.html").read_text()
    run, search = re.split(r'<h2 id="keys-of-a-search"', page)
    for schema, text in ((RunConfig, run), (SearchConfig, search)):
        rows = re.findall(
            r"<tr>\s*<td><code>([\w.]+)</code></td>\s*<td>(.*?)</td>\s*<td>.*?</td>\s*<td>(.*?)</td>", text
        )
        known = keys(schema)
        if schema is RunConfig:  # and those of analyses that check their own
            settings = {name: analysis.settings for name, analysis in ANALYSES.items() if analysis.settings}
            known += [f"analyses.{name}.{key}" for name, own in settings.items() for key in keys(own)]
        assert sorted(name for name, kind, meaning in rows if kind and meaning) == sorted(known)


def test_every_public_name_is_on_a_page_of_the_api(pages):
    ids = set().union(*(page.ids for name, page in pages.items() if name.startswith("reference/api/")))
    assert not [name for name in igap.__all__ if f"igap.{name}" not in ids]


def test_the_folders_of_the_architecture_exist():
    named = re.findall(r"`((?:conf|sweeps|igap|tests|\.ci)/[\w./]*)`", (DOCS / "architecture.md").read_text())
    assert len(named) > 10
    assert not [path for path in named if not (ROOT / path).exists()]


def test_the_file_of_pairs_is_one_and_the_embedded_model_tells_them_apart(ioi_mini, tmp_path):
    page = (DOCS / "how-to" / "prompts.md").read_text()
    (lines,) = re.findall(r"```\w*\n(clean,corrupted.*?)```", page, flags=re.DOTALL)
    (tmp_path / "pairs.csv").write_text(lines)
    (pair,) = (PromptPair(**row) for row in read_pairs(str(tmp_path / "pairs.csv")).values())
    assert attribution_patching(ioi_mini, pair).gap > 5


def test_beside_every_picture_stands_the_command_that_draws_it():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    shown = {page: re.findall(r"!\[[^]]*\]\(\S*?(\w+/\w+\.png)\)", page.read_text()) for page in pages}
    assert sum(map(len, shown.values())) > 4
    for page, pictures in shown.items():
        commands = re.findall(r"python\s+(docs/\S+\.py)", page.read_text())
        assert all((ROOT / command).is_file() for command in commands)
        drawn = {name for command in commands for name in re.findall(r"\w+", (ROOT / command).read_text())}
        assert {Path(picture).stem for picture in pictures} <= drawn, page
