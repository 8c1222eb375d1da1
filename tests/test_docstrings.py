"""The docstring of every public name: its sections, and its example, which runs. All examples share one model."""

import ast
import doctest
import inspect
import re
import textwrap
from dataclasses import is_dataclass

import pytest

import igap

SECTIONS = ("Args", "Returns", "Raises", "Example", "Source")


def sections(docstring):
    """The text of each section by its name."""
    parts = re.split(rf"^({'|'.join(SECTIONS)}):", docstring, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def run(docstring, name, globs):
    example = doctest.DocTestParser().get_doctest(docstring, globs, name, None, None)
    assert example.examples, "no example"
    failures = []
    doctest.DocTestRunner(verbose=False).run(example, out=failures.append, clear_globs=False)
    assert not failures, "".join(failures)
    return example.globs


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The working folder of every example."""
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(scope="module")
def package(place):
    """What the package's own example leaves: the public names it imports, `model` and `pair`, and a run on disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        names = run(igap.__doc__, "igap", {})
    return {**{name: getattr(igap, name) for name in igap.__all__}, **names}


def documented_fields(kind):
    """The fields of a dataclass with a docstring below them, which may speak for those that stand right above."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body
    waiting, documented = [], set()
    for statement in body:
        if isinstance(statement, ast.AnnAssign):
            waiting.append(statement.target.id)
        elif waiting and isinstance(statement, ast.Expr):
            documented.update(waiting)
            waiting = []
    return documented


@pytest.mark.parametrize("name", igap.__all__)
def test_the_example_of_a_public_name_runs(name, package, place, monkeypatch):
    monkeypatch.chdir(place)
    run(inspect.getdoc(getattr(igap, name)), name, dict(package))


@pytest.mark.parametrize("name", igap.metrics.__all__)
def test_the_example_of_a_metric_runs_and_its_first_line_says_its_unit(name):
    metric = getattr(igap.metrics, name)
    run(inspect.getdoc(metric), name, {})
    unit = "from 0 to 1" if name == "Prob" else "from -1 to 1" if name == "ProbDiff" else f"in {metric.unit}"
    assert unit in inspect.getdoc(metric).partition("\n")[0]


@pytest.mark.parametrize("name", [name for name in igap.__all__ if inspect.isfunction(getattr(igap, name))])
def test_a_public_function_names_its_arguments_what_it_returns_and_what_it_raises(name):
    function = getattr(igap, name)
    given = sections(inspect.getdoc(function))
    assert {"Args", "Returns", "Raises", "Example"} <= given.keys()
    named = re.findall(r"^    (\w[\w, ]*):", given["Args"], flags=re.MULTILINE)
    assert [name for line in named for name in line.split(", ")] == list(inspect.signature(function).parameters)


@pytest.mark.parametrize("name", [name for name in igap.__all__ if inspect.isclass(getattr(igap, name))])
def test_a_public_class_names_its_arguments_where_users_make_it_and_every_value_it_holds(name):
    kind = getattr(igap, name)
    given = sections(inspect.getdoc(kind))
    assert "Example" in given
    parameters = list(inspect.signature(kind).parameters)
    if "Args" in given:
        assert re.findall(r"^    (\w+):", given["Args"], flags=re.MULTILINE) == parameters
    else:
        assert is_dataclass(kind)
        assert not hasattr(kind, "__post_init__"), "users make it"
        assert parameters[-1] in documented_fields(kind), "its fields have docstrings"
    assert "Raises" in given or not hasattr(kind, "__post_init__")
