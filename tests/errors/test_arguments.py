"""What public functions take, and how they answer to everything else."""

import contextlib
import inspect
import pydoc
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest
import torch
from helpers import handmade
from helpers.handmade import PAIR
from helpers.public_calls import RESULTS, Call, calls, hostile, public, takes
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM

import igap
from igap import InputError
from igap.errors.arguments import Count, Finite, Positive, Range, Seed, checks_arguments

EVERY = public()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="module")
def model(folder) -> TransformerBridge:
    return handmade.one_still_head(folder)


@pytest.fixture(scope="module")
def base(model, folder, written, tmp_path_factory) -> Mapping[str, Call]:
    return calls(model, folder, tmp_path_factory.mktemp("scratch"), written)


@pytest.fixture(scope="module")
def values(folder) -> Mapping[str, object]:
    return hostile(AutoModelForCausalLM.from_pretrained(folder))


def test_everything_public_has_a_call_with_a_value_for_every_parameter(base):
    assert {name: set(parameters) for name, parameters in EVERY.items()} == {
        name: set(call.arguments) for name, call in base.items()
    }, "a new public function, or parameter, needs a call in public_calls.py"


@pytest.mark.parametrize("name", EVERY)
def test_hostile_values_are_refused_in_one_line(base, folder, values, name, unchecked, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)  # a checkpoint, which an empty path would name
    monkeypatch.chdir(tmp_path)
    answers = {}
    for parameter in EVERY[name]:
        for label in values.keys() - takes(name, parameter):
            try:
                base[name].changed(**{parameter: values[label]})
                answer = "" if name in RESULTS and label != "object" else "taken"
            except InputError as error:
                known = str(error).isprintable() and ": got " in str(error) and len(str(error)) < 800
                answer = "" if known else str(error)
            except Exception as error:
                answer = f"{type(error).__name__}: {error}"
            if answer:
                answers[f"{parameter}={label}"] = answer
    assert answers == {}


def test_numpys_numbers_and_pathlibs_paths_are_taken_as_pythons_own(base, folder, unchecked):
    def given(value: object) -> object:
        if type(value) in (int, float, bool):
            return {int: np.int32, float: np.float64, bool: np.bool_}[type(value)](value)
        return Path(value) if value == str(folder) else value

    for name, call in base.items():
        if name in (*RESULTS, "run", "search", "load_model", "Comparison.outliers", "compare") or ".plot" in name:
            continue
        others = {each: given(value) for each, value in call.arguments.items()}
        if all(others[each] is value for each, value in call.arguments.items()):
            continue
        expected, found = call.changed(), call.changed(**others)
        assert repr(found) == repr(expected), name
        if isinstance(expected, igap.AttributionMap):
            assert torch.equal(found.effect, expected.effect), name
    assert type(igap.Baseline("mean", n=np.int64(3)).n) is int
    assert base["load_model"].changed(name=folder).cfg.n_layers == 2


@pytest.mark.parametrize("text", ["", "\n", "\U0001f600", "<|endoftext|>"])
def test_texts_that_no_model_knows_are_refused_where_they_meet_one(base, model, text, unchecked):
    def answer(ask: Callable[[], object]) -> None:
        with contextlib.suppress(InputError):
            ask()

    for field in ("clean", "corrupted", "answer", "distractor", "bos"):
        answer(lambda field=field: igap.activation_patching(model, replace(PAIR, **{field: text})))
    first = base["ablate"].arguments["prompts"][0]
    for field in ("text", "answer", "distractor", "bos"):
        answer(lambda field=field: base["ablate"].changed(prompts=[first, replace(first, **{field: text})]))
    answer(lambda: igap.activation_patching(model, PAIR, baseline=igap.Baseline("prompt", prompt=text)))


def test_a_model_without_a_tokenizer_weights_or_anything_is_refused(base, folder, values, unchecked):
    bare = igap.load_model(str(folder), processing="raw", dtype="float64")
    bare.tokenizer = None
    empty = igap.load_model(str(folder), processing="raw", dtype="float64")
    empty.to("meta")
    for wrong in (bare, empty, TransformerBridge.__new__(TransformerBridge), values["plain model"]):
        for call in base.values():
            if "model" in call.arguments:
                with pytest.raises(
                    InputError, match=r"^model: got .*, wanted a TransformerBridge, with its weights and"
                ):
                    call.changed(model=wrong)


def test_missing_misspelled_and_superfluous_arguments_are_pythons_own_type_errors(model, unchecked):
    with pytest.raises(TypeError, match=r"activation_patching\(\) missing 1 required positional argument: 'pair'"):
        igap.activation_patching(model)
    with pytest.raises(TypeError, match=r"got an unexpected keyword argument 'sites'"):
        igap.activation_patching(model, PAIR, sites="heads")
    with pytest.raises(TypeError, match=r"takes from 2 to 3 positional arguments but 4 were given"):
        igap.activation_patching(model, PAIR, "heads", None)
    with pytest.raises(TypeError, match="unexpected keyword argument 'text'"):
        igap.PromptPair(text="John")


def test_signatures_and_docstrings_stay_what_they_are():
    for name in EVERY:
        owner, _, method = name.partition(".")
        public = getattr(getattr(igap, owner), method) if method else getattr(igap, owner)
        assert inspect.getdoc(public)
        if not inspect.isclass(public):
            assert public.__name__ == name.rpartition(".")[2]
    assert str(inspect.signature(igap.compare)) == (
        "(ig: igap.attribution.maps.AttributionMap, ap: igap.attribution.maps.AttributionMap)"
        " -> igap.statistics.comparison.Comparison"
    )
    help_ = pydoc.plain(pydoc.render_doc(igap.integrated_gradients))
    assert "Annotated[int, at least 1 and at most 1000000]" in help_
    assert "Integrated Gradients of F along the path" in help_


def test_every_seed_that_is_taken_is_one_that_the_generators_take(base, unchecked):
    with pytest.raises(InputError, match=r"^seed: got 9223372036854775808, wanted a whole number, at least 0 and at"):
        base["search"].changed(seed=2**63)
    assert base["search"].changed(seed=2**63 - 1, sampler="tpe").trials


@pytest.mark.parametrize("identity", [{"of": object()}, {"of": {1}}])
def test_an_identity_that_storages_cannot_keep_is_refused(base, identity, unchecked):
    with pytest.raises(InputError, match=r"^identity: got .*, which is no JSON \(.*\), wanted texts and numbers"):
        base["search"].changed(identity=identity)


def test_a_gradient_where_the_model_cannot_compute_is_refused(ioi_mini, pair):
    with pytest.raises(InputError, match=r"^at: got 1e\+308, where dF/da is not finite, wanted less\. Take 0 to 1"):
        igap.attribution_patching(ioi_mini, pair, at=1e308)


# What annotations say, on functions of our own.


@checks_arguments
def asked(
    number: Positive,
    names: Sequence[str] | str = "all",
    *,
    by: Mapping[str, Sequence[Count]] | None = None,
    kind: Literal["this", "that", "other"] = "this",
    path: Path | None = None,
    steps: Count | Literal["auto"] = 50,
    exact: bool = False,
    seed: Seed = 0,
    share: Annotated[float, Range(least=0, most=1)] = 0.5,
    note: object = None,
) -> tuple[object, ...]:
    return number, names, by, kind, path, steps, exact, seed, share, note


@dataclass(frozen=True)
class Plain:
    at: Finite
    grid: Float[Tensor, "row column"]
    rows: Float[Tensor, " row"] | None = None
    inner: tuple["Plain", ...] = ()


Made = checks_arguments(Plain)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"number": 0}, "number: got 0, wanted a number, above 0. help(igap.asked) says what it is."),
        ({"number": float("nan")}, "number: got nan, wanted a number, above 0."),
        ({"number": 10**400}, "number: got 1000000000"),
        ({"number": 10**5000}, "number: got a value of type int, wanted a number, above 0."),
        ({"number": True}, "number: got True, wanted a number"),
        ({"names": ["a", 5]}, "names[1]: got 5, wanted a text. Try names='all'."),
        ({"names": b"ab"}, "names: got b'ab', wanted a list, each entry a text or a text."),
        ({"names": "\ud800"}, r"names: got '\ud800', wanted a text without NUL and lone surrogates. Try"),
        ({"names": ["a\0"]}, r"names[0]: got 'a\x00', wanted a text without NUL and lone surrogates."),
        ({"by": {"x": [1, 0]}}, "by['x'][1]: got 0, wanted a whole number, at least 1 and at most 1000000. Leave it"),
        ({"by": {5: []}}, "by, a key: got 5, wanted a text. Leave it out."),
        ({"by": []}, "by: got [], wanted a mapping from a text to a list, each entry a whole number, at least 1 and"),
        ({"kind": "these"}, "kind: got 'these', wanted one of this, that, other. Did you mean this?"),
        ({"path": 5}, "path: got 5, wanted a path or None. Leave it out."),
        ({"path": ""}, "path: got '', wanted a text that is not empty. Leave it out."),
        ({"path": "a\0b"}, r"path: got 'a\x00b', wanted a path or None."),
        ({"steps": 1.0}, "steps: got 1.0, wanted a whole number, at least 1 and at most 1000000 or auto. Try steps=5"),
        ({"exact": 1}, "exact: got 1, wanted True or False. Try exact=False."),
        ({"seed": -1}, "seed: got -1, wanted a whole number, at least 0 and at most 9223372036854775807."),
        ({"share": 1.01}, "share: got 1.01, wanted a number, at least 0 and at most 1. Try share=0.5."),
        ({"kind": "x" * 1000}, f"kind: got '{'x' * 149}...{'x' * 29}', wanted one of"),
        ({"kind": np.zeros((2, 3))}, "kind: got ndarray of shape (2, 3) and type float64, wanted one of"),
    ],
)  # fmt: skip
def test_a_refusal_says_where_what_was_got_what_is_wanted_and_what_to_do(arguments, message):
    with pytest.raises(InputError) as refused:
        asked(**{"number": 1.0, **arguments})
    assert str(refused.value).startswith(message)
    assert str(refused.value).isprintable()


def test_what_is_taken_comes_in_as_pythons_own():
    taken = asked(
        np.float32(0.5), np.array(["a", "b"]), by={"x": np.array([1, 2])}, path="here", steps=np.int8(3),
        exact=np.bool_(True), share=1, note=...,
    )  # fmt: skip
    assert taken == (0.5, ["a", "b"], {"x": [1, 2]}, "this", Path("here"), 3, True, 0, 1.0, ...)
    assert [type(taken[place]) for place in (0, 5, 6, 8)] == [float, int, bool, float]


def test_a_dataclass_checks_its_fields_and_the_lengths_that_its_arrays_share(unchecked):
    grid = torch.zeros(2, 3)
    made = Made(at=np.int64(1), grid=grid, rows=torch.zeros(2), inner=[Made(0.0, torch.zeros(5, 5))])
    assert (type(made.at), type(made.inner)) == (float, tuple)
    with pytest.raises(InputError, match=r"^rows: got Tensor of shape \(3,\) and type torch.float32, wanted a Float"):
        Made(0.0, grid, torch.zeros(3))
    with pytest.raises(
        InputError, match=r"^at: got inf, wanted a number, finite\. help\(igap\.Plain\) says what it is"
    ):
        Made(float("inf"), grid)
    with pytest.raises(InputError, match=r"^inner\[0\]: got 5, wanted a Plain\."):
        Made(0.0, grid, inner=(5,))
