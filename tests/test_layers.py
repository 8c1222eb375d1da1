"""The order of the house: a module imports from its own floor or a lower one, and never in a circle."""

import ast
import functools
import re
from pathlib import Path

import pytest

import igap
from igap.analyses.registry import ANALYSES

PACKAGE = Path(igap.__file__).parent
FLOORS = (
    "errors vocabulary", "components", "display", "config storage", "models", "inputs", "engine metrics", "attribution",
    "statistics", "plots", "analyses", "pipeline", "replication", "console", "bench", "output", "sweep",
    "counterfactual", "cli", "interactive",
)  # fmt: skip
PROGRAMS = {"igap.models.ioi_mini.train", "igap.models.ioi_mini.evaluate"}
"""Started by hand; nothing imports them."""


def modules():
    """The file of every module by its name."""
    names = {}
    for path in PACKAGE.rglob("*.py"):
        parts = ("igap", *path.relative_to(PACKAGE).with_suffix("").parts)
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports(path, known):
    """The modules of igap that a file imports, also inside its functions."""
    wanted = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            wanted |= {f"{node.module}.{alias.name}" for alias in node.names} & known or {node.module}
        elif isinstance(node, ast.Import):
            wanted |= {alias.name for alias in node.names}
    return wanted & known


KNOWN = modules()
NAMES = sorted(KNOWN.keys() - {"igap"})


@functools.cache
def graph():
    """What each module imports."""
    return {name: imports(KNOWN[name], set(KNOWN)) for name in NAMES}


def floor_of(name):
    """How high the room of a module lies."""
    (room,) = (i for i, floor in enumerate(FLOORS) if name.split(".")[1] in floor.split())
    return room


def test_every_room_has_a_floor_and_every_floor_is_there():
    rooms = {name.split(".")[1] for name in graph()}
    assert rooms == set(" ".join(FLOORS).split())


@pytest.mark.parametrize("name", [name for name in NAMES if name not in PROGRAMS])
def test_nothing_is_imported_from_above(name):
    above = {other for other in graph()[name] - {"igap"} if floor_of(other) > floor_of(name)}
    assert not above


def test_nothing_imports_what_is_started_by_hand():
    assert not PROGRAMS & set().union(*graph().values())


def test_no_import_goes_in_a_circle():
    left = {name: wanted & graph().keys() for name, wanted in graph().items()}
    while free := [name for name, wanted in left.items() if not wanted & left.keys()]:
        for name in free:
            del left[name]
    assert not left


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("igap.analyses.")])
def test_an_analysis_loads_what_draws_only_when_it_draws(name):
    if name.endswith(".plots"):
        return
    at_once = [node for node in ast.parse(KNOWN[name].read_text()).body if isinstance(node, ast.ImportFrom)]
    drawing = {node.module for node in at_once if re.search(r"\bplots\b|matplotlib|seaborn", node.module or "")}
    assert not drawing


def test_an_analysis_lies_where_its_name_says():
    for name, analysis in ANALYSES.items():
        assert f"{type(analysis).__module__}.".startswith(f"igap.analyses.{name}.")


def test_the_architecture_page_has_this_order():
    page = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text()
    block = page.partition("From the ground up:")[2].partition("`tests/test_layers.py`")[0]
    assert [line.strip().replace(",", "") for line in block.splitlines() if line.strip()] == list(FLOORS)
