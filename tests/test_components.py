import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igap.components import (
    IOI_CIRCUIT,
    PLACES,
    SITES,
    Top,
    component_name,
    component_names,
    hook_name,
    is_component,
    locate,
    locate_set,
    parse_component,
    parse_set,
    sets_problem,
    sites_of,
    widths_of,
)
from igap.errors import InputError


@given(st.sampled_from(tuple(PLACES)), st.integers(0, 200), st.integers(0, 50_000))
def test_a_components_name_reads_back(site, layer, index):
    index = 0 if PLACES[site].is_vector else index
    assert parse_component(component_name(site, layer, index)) == (site, layer, index)


def test_names_are_the_fields_own():
    assert component_name("heads", 9, 6) == "9.6"
    assert component_name("neurons", 5, 1234) == "L5.N1234"
    assert component_names("heads", 2, 3) == ["0.0", "0.1", "0.2", "1.0", "1.1", "1.2"]
    for name, place in (
        ("9.6.q", ("q", 9, 6)),
        ("9.1.k", ("k", 9, 1)),
        ("9.1.v", ("v", 9, 1)),
        ("L5.resid_pre", ("resid_pre", 5, 0)),
        ("L5.attn_out", ("attn_out", 5, 0)),
    ):
        assert component_name(*place) == name
        assert parse_component(name) == place
    assert hook_name("heads", 3) == "blocks.3.attn.hook_z"
    assert hook_name("neurons", 3) == "blocks.3.mlp.hook_post"


@pytest.mark.parametrize(
    "name", ["9", "9.6.1", "L5N3", "head 9.6", "", "9.6 ", "9.6.z", "9.6.heads", "L5.q", "5.resid_pre", "L5.N3.q"]
)
def test_other_names_are_refused(name):
    with pytest.raises(
        ValueError, match=r"wanted a head such as 9\.6 or a neuron such as L5\.N1234 or one of another site"
    ):
        parse_component(name)
    assert not is_component(name)


def test_a_component_is_found_in_a_model_that_has_it():
    shape = {"n_layers": 2, "widths": widths_of(4, 2, None), "item": "curves.components"}
    assert locate("1.3", **shape) == ("heads", 1, 3)
    assert locate("L0.N99", **shape) == ("neurons", 0, 99), "a width that is not known yet refuses nothing"
    assert locate("1.3.q", **shape) == ("q", 1, 3)
    assert locate("1.1.v", **shape) == ("v", 1, 1)
    assert locate("L1.mlp_out", **shape) == ("mlp_out", 1, 0)
    for name, message in (
        ("1.4", r"^curves\.components: got 1\.4, but the model has 4 heads in a layer \(0 to 3\)\. Name one"),
        ("L2.N0", r"^curves\.components: got L2\.N0, but the model has 2 layers \(0 to 1\)\."),
        ("1.4.q", r"^curves\.components: got 1\.4\.q, but the model has 4 heads in a layer \(0 to 3\)\."),
        ("1.2.k", r"^curves\.components: got 1\.2\.k, but the model has 2 key-value heads in a layer \(0 to 1\)\."),
        ("L2.resid_mid", r"^curves\.components: got L2\.resid_mid, but the model has 2 layers \(0 to 1\)\."),
        (
            "1-3",
            r"^curves\.components: got '1-3', wanted a head such as 9\.6 or .* such as 9\.6\.q or L5\.resid_pre\.$",
        ),
    ):
        with pytest.raises(InputError, match=message):
            locate(name, **shape)


def test_what_takes_some_sites_refuses_the_others_and_says_which_it_takes():
    shape = {"n_layers": 2, "widths": widths_of(4, 2, None), "item": "head"}
    only = r"^head: got '{}', wanted a head such as 9\.6 or a neuron such as L5\.N1234\.$"
    for name in ("1.3.q", "L1.resid_pre"):
        with pytest.raises(InputError, match=only.format(re.escape(name))):
            locate(name, **shape, sites=SITES)
        with pytest.raises(InputError, match=only.format(re.escape(name))):
            locate_set(f"0.1+{name}", **shape, sites=SITES)
    assert locate_set("0.1+L1.N9", **shape, sites=SITES) == (("heads", 0, 1), ("neurons", 1, 9))
    with pytest.raises(InputError, match=r"^interactions: got 'L1.N9', wanted a head such as 9\.6\.$"):
        locate("L1.N9", **(shape | {"item": "interactions"}), sites=("heads",))


def test_a_set_is_components_classes_or_the_first_of_a_ranking():
    assert parse_set("9.6+L5.N1234+09.9") == ("9.6", "L5.N1234", "9.9")
    assert parse_set("9.6") == ("9.6",)
    assert parse_set("09.6.q+L05.mlp_out+9.6") == ("9.6.q", "L5.mlp_out", "9.6")
    assert parse_set("ioi:negative-name-mover+0.0") == (*IOI_CIRCUIT["negative name mover"], "0.0")
    assert parse_set("top8:atp") == Top(8, "atp")
    assert sites_of(["0.1+L0.N3", "nothing"]) == ("heads", "neurons")
    assert sites_of(["top8:atp"]) == sites_of(["ioi:induction"]) == ("heads",)
    assert sites_of(["L0.N3+L1.mlp_out", "1.2.v+0.1.q"]) == ("neurons", "q", "v", "mlp_out")
    assert sites_of(["L0.N3+L1.N3"]) == ("neurons",)


def test_lists_hold_each_set_once_whatever_its_order():
    assert sets_problem(["9.6+9.9", "9.6", "top2:ap", "top3:ap"]) is None
    assert sets_problem(["9.6+9.9", "9.9+9.6"]) == "each component or set once, not '9.9+9.6' twice"
    assert sets_problem(["ioi:induction", "5.5+5.8+5.9+6.9"]).endswith("not '5.5+5.8+5.9+6.9' twice")
    assert sets_problem(["top2:ap", "top2:ap"]) == "each component or set once, not 'top2:ap' twice"
    assert sets_problem([]).startswith("at least one component")
    assert sets_problem(["9.6+9.6.q", "9.6.q", "L9.resid_pre"]) is None
    assert sets_problem(["L9.resid_pre+L09.resid_pre"]) == "each component once, not L9.resid_pre twice"
    assert sets_problem(["9.6+9.6"]) == "each component once, not 9.6 twice"


def test_a_class_is_found_in_a_model_of_gpt2_smalls_shape_only():
    shape = {"n_layers": 12, "widths": widths_of(12, 12, None), "item": "components"}
    assert locate_set("ioi:duplicate-token", **shape) == (("heads", 0, 1), ("heads", 0, 10), ("heads", 3, 0))
    with pytest.raises(InputError, match=r"^components: got ioi:duplicate-token, heads of GPT-2 small"):
        locate_set("ioi:duplicate-token", **(shape | {"n_layers": 13}))
