import importlib
import inspect
import pkgutil

import igap


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
