import pytest
from hypothesis import given
from hypothesis import strategies as st

from igap.components import (
    IOI_CIRCUIT,
    SITES,
    Top,
    component_name,
    component_names,
    hook_name,
    locate,
    locate_set,
    parse_component,
    parse_set,
    sets_problem,
    sites_of,
)
from igap.errors import InputError


@given(st.sampled_from(SITES), st.integers(0, 200), st.integers(0, 50_000))
def test_a_components_name_reads_back(site, layer, index):
    assert parse_component(component_name(site, layer, index)) == (site, layer, index)


def test_names_are_the_fields_own():
    assert component_name("heads", 9, 6) == "9.6"
    assert component_name("neurons", 5, 1234) == "L5.N1234"
    assert component_names("heads", 2, 3) == ["0.0", "0.1", "0.2", "1.0", "1.1", "1.2"]
    assert hook_name("heads", 3) == "blocks.3.attn.hook_z"
    assert hook_name("neurons", 3) == "blocks.3.mlp.hook_post"


@pytest.mark.parametrize("name", ["9", "9.6.1", "L5N3", "head 9.6", "", "9.6 "])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match=r"wanted a head such as 9\.6 or a neuron such as L5\.N1234"):
        parse_component(name)


def test_a_component_is_found_in_a_model_that_has_it():
    shape = {"n_layers": 2, "widths": {"heads": 4, "neurons": None}, "item": "curves.components"}
    assert locate("1.3", **shape) == ("heads", 1, 3)
    assert locate("L0.N99", **shape) == ("neurons", 0, 99), "a width that is not known yet refuses nothing"
    for name, message in (
        ("1.4", r"^curves\.components: got 1\.4, but the model has 4 heads in a layer \(0 to 3\)\. Name one"),
        ("L2.N0", r"^curves\.components: got L2\.N0, but the model has 2 layers \(0 to 1\)\."),
        ("1-3", r"^curves\.components: got '1-3', wanted a head such as 9\.6 or a neuron such as L5\.N1234\.$"),
    ):
        with pytest.raises(InputError, match=message):
            locate(name, **shape)


def test_a_set_is_components_classes_or_the_first_of_a_ranking():
    assert parse_set("9.6+L5.N1234+09.9") == ("9.6", "L5.N1234", "9.9")
    assert parse_set("9.6") == ("9.6",)
    assert parse_set("ioi:negative-name-mover+0.0") == (*IOI_CIRCUIT["negative name mover"], "0.0")
    assert parse_set("top8:atp") == Top(8, "atp")
    assert sites_of(["0.1+L0.N3", "nothing"]) == ("heads", "neurons")
    assert sites_of(["top8:atp"]) == sites_of(["ioi:induction"]) == ("heads",)
    assert sites_of(["L0.N3+L1.N3"]) == ("neurons",)


def test_lists_hold_each_set_once_whatever_its_order():
    assert sets_problem(["9.6+9.9", "9.6", "top2:ap", "top3:ap"]) is None
    assert sets_problem(["9.6+9.9", "9.9+9.6"]) == "each component or set once, not '9.9+9.6' twice"
    assert sets_problem(["ioi:induction", "5.5+5.8+5.9+6.9"]).endswith("not '5.5+5.8+5.9+6.9' twice")
    assert sets_problem(["top2:ap", "top2:ap"]) == "each component or set once, not 'top2:ap' twice"
    assert sets_problem([]).startswith("at least one component")
    assert sets_problem(["9.6+9.6"]) == "each component once, not 9.6 twice"


def test_a_class_is_found_in_a_model_of_gpt2_smalls_shape_only():
    shape = {"n_layers": 12, "widths": {"heads": 12, "neurons": None}, "item": "components"}
    assert locate_set("ioi:duplicate-token", **shape) == (("heads", 0, 1), ("heads", 0, 10), ("heads", 3, 0))
    with pytest.raises(InputError, match=r"^components: got ioi:duplicate-token, heads of GPT-2 small"):
        locate_set("ioi:duplicate-token", **(shape | {"n_layers": 13}))
