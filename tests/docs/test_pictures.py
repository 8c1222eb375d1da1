"""The programs that draw the pictures of the pages."""

import re
import runpy

import pytest
from helpers.page_outputs import ROOT

from igap import PromptPair

PROGRAMS = sorted((ROOT / "docs" / "pictures").glob("*.py"))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_a_program_loads(program):
    assert runpy.run_path(str(program), run_name="loaded")["__doc__"]


def test_the_picture_of_the_idea_has_the_numbers_that_the_readme_says():
    draw = runpy.run_path(str(ROOT / "docs" / "pictures" / "idea.py"), run_name="loaded")["draw"]
    text = "After John and Mary went to the store, {} gave a bottle of milk to"
    fig = draw(PromptPair(text.format("Mary"), text.format("John"), " John", " Mary", min_gap=0.0))
    shown = " ".join(text.get_text() for ax in fig.axes for text in ax.texts)
    before, after = re.search(r"falls from ([0-9.]+) to ([0-9.]+)\]", (ROOT / "README.md").read_text()).groups()
    assert f"+{before}" in shown
    assert f"+{after}" in shown
