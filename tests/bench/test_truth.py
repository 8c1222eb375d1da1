"""The truth of every circuit: against plain Hugging Face modules with hooks, igap's patching, and its own docstring."""

import inspect
import itertools
import re

import pytest
import torch
from helpers.plain import Plain

from igap import activation_patching
from igap.bench import circuits
from igap.bench.blueprint import WORDS
from igap.bench.circuits import _MAKERS
from igap.components import parse_component
from igap.vocabulary import Direction

CIRCUITS = circuits()
DOCUMENTED = {make().name: inspect.getdoc(make) for make in _MAKERS}
BY_HAND = re.compile(r"^    (\S+) +([+-][0-9.]+)  ([+-][0-9.]+)$", re.MULTILINE)
RUNS = {"noising": ("clean", "corrupted"), "denoising": ("corrupted", "clean")}
EXACT = 1e-9


def plain(circuit):
    """The circuit's pair on plain modules, with BOS before both prompts."""
    pair = circuit.pair
    clean, corrupted = (torch.tensor([[0, *map(WORDS.index, text.split())]]) for text in (pair.clean, pair.corrupted))
    answer, distractor = (WORDS.index(text.strip()) for text in (pair.answer, pair.distractor))
    return Plain(circuit.blueprint.build().eval(), clean, corrupted, answer, distractor)


def patched(model, sets, run, other):
    """F of a run with the components of each set replaced by the other run's: a row a set, hooks on plain modules."""
    handles, ends = [], {site: model.activations(site, other) for site in ("heads", "neurons")}
    for site, of_layers in ends.items():
        for layer, (module, end) in enumerate(zip(model.projections(site), of_layers, strict=True)):
            size = end.shape[1] // model.n_heads if site == "heads" else 1
            own = [
                [index for where, at, index in map(parse_component, names) if (where, at) == (site, layer)]
                for names in sets
            ]

            def replace(_, inputs, own=own, size=size, end=end):
                changed = inputs[0].clone().view(len(own), *end.shape)
                for row, indices in zip(changed, own, strict=True):
                    for index in indices:
                        row[:, index * size : (index + 1) * size] = end[:, index * size : (index + 1) * size]
                return changed.view(inputs[0].shape)

            handles.append(module.register_forward_pre_hook(replace))
    with torch.no_grad():
        values = model.f(run, n_rows=len(sets)).tolist()
    for handle in handles:
        handle.remove()
    return values


@pytest.mark.parametrize("name", CIRCUITS)
def test_the_closed_form_is_what_plain_modules_compute_for_every_component_and_every_two_that_matter(name):
    truth, model = CIRCUITS[name].truth, plain(CIRCUITS[name])
    sets = [(), *((each,) for each in truth.names), *itertools.combinations(truth.matters, 2)]
    for direction, (run, other) in RUNS.items():
        values = patched(model, sets, run, other)
        assert truth.f(1.0 if run == "clean" else 0.0) == pytest.approx(values[0], abs=EXACT)
        for names, value in zip(sets, values, strict=True):
            assert truth.together(names, direction) == pytest.approx(value - values[0], abs=EXACT), (names, direction)


@pytest.mark.parametrize("name", CIRCUITS)
def test_activation_patching_gives_every_component_its_effect(name):
    circuit = CIRCUITS[name]
    model = circuit.load()
    for direction in Direction.__args__:
        effects = circuit.truth.effects(direction)
        maps = [activation_patching(model, circuit.pair, site, direction=direction) for site in ("heads", "neurons")]
        computed = torch.cat([each.effect.flatten() for each in maps])
        assert computed.tolist() == pytest.approx([effects[each] for each in circuit.truth.names], abs=EXACT)
        assert maps[0].gap == pytest.approx(circuit.truth.gap, abs=EXACT)


@pytest.mark.parametrize("name", CIRCUITS)
def test_the_docstring_states_the_effects_of_all_that_matters_and_of_nothing_else(name):
    truth = CIRCUITS[name].truth
    stated = {row[0]: [float(each) for each in row[1:]] for row in BY_HAND.findall(DOCUMENTED[name])}
    assert {each for each in stated if "+" not in each} == set(truth.matters)
    assert set(stated) - set(truth.matters)
    for names, effects in stated.items():
        computed = [truth.together(names.split("+"), direction) for direction in Direction.__args__]
        assert computed == pytest.approx(effects, abs=5.1e-4), names


@pytest.mark.parametrize("name", CIRCUITS)
def test_more_components_do_nothing_or_little_than_matter(name):
    truth = CIRCUITS[name].truth
    effects = {each: abs(effect) for each, effect in truth.effects().items() if each not in truth.matters}
    assert len(effects) > len(truth.matters)
    assert 0 in effects.values()
    assert 0 < max(effects.values()) < 0.1 * truth.gap


def test_gates_interact_as_their_tables_say():
    """F of (both), (one), (none) on: AND 1, 0, 0; OR 1, 1, 0; XOR 0, 1, 0."""
    interactions = {name: CIRCUITS[name].truth.interaction("0.0", "0.1") for name in ("and", "or", "xor", "linear")}
    assert interactions == pytest.approx({"and": 1, "or": -1, "xor": -2, "linear": 0})
    assert CIRCUITS["or"].truth.effect_given("0.0", "0.1") == pytest.approx(-1)


def test_the_backup_acts_only_where_the_first_is_gone():
    truth = CIRCUITS["backup"].truth
    assert truth.effects()["1.0"] == truth.effects("denoising")["1.0"] == 0
    assert truth.effect_given("1.0", "0.0") == pytest.approx(-1)
