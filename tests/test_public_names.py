import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import igap

IRREGULAR = (
    "bound broken brought built chosen done drawn driven fallen found frozen given gone held hidden kept known laid "
    "left lost made meant seen sent shown said sought spent stood taken taught thought told torn understood won written"
)
PARTICIPLE = re.compile(rf"([a-z]+ed|[a-z]+ing|{'|'.join(IRREGULAR.split())})(_(for|by|out|to|in|at|from|of|with))?")
OTHERS = {"embed", "exceed", "feed", "need", "proceed", "seed", "speed", "unembed"} | {
    "mapping", "nothing", "ranking", "reading", "rounding", "rounding_of", "setting", "setting_with", "wording",
}  # fmt: skip
"""Verbs and nouns that look like one."""
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


def test_every_public_name_is_a_function_or_a_class_also_after_every_module_was_imported():
    """A module of the same name would take its place as soon as something imports it."""
    for module in pkgutil.walk_packages(igap.__path__, "igap."):
        importlib.import_module(module.name)
    for name in igap.__all__:
        assert inspect.isfunction(getattr(igap, name)) or inspect.isclass(getattr(igap, name)), name
        assert inspect.getdoc(getattr(igap, name)), name


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(igap, "integrated_gradient")


def test_what_people_import_is_there():
    assert {
        "load_model",
        "PromptPair",
        "integrated_gradients",
        "activation_patching",
        "attribution_patching",
        "atp_star",
    } <= (set(igap.__all__))
    assert {"compare", "ablate", "Prompt", "output_curve", "Baseline", "InputError"} <= set(igap.__all__)


def test_a_function_is_named_by_what_it_does_or_gives_and_not_by_a_participle():
    """A property may be: it says how a thing is."""
    named = set[str]()
    for file in Path(igap.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, FUNCTIONS) and "property" not in " ".join(map(ast.unparse, node.decorator_list)):
                named.add(node.name.strip("_"))
    assert len(named) > 1500
    assert not {name for name in named - OTHERS if PARTICIPLE.fullmatch(name)}
