import pytest
from hypothesis import given
from hypothesis import strategies as st

from igap.sites import SITES, component_name, component_names, hook_name, parse_component


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
