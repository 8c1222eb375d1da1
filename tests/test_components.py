import pytest
from hypothesis import given
from hypothesis import strategies as st

from igap.components import SITES, component_name, component_names, hook_name, locate, parse_component
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
