"""Numbers on disk: the same ones, of the same question, or none."""

import copy
import logging
import sqlite3
from contextlib import closing
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from helpers.searched import ABBA, PAIRS, searched

from igap import search
from igap.counterfactual.config import Constraints, SpaceConfig
from igap.counterfactual.objective.cache import FILE, CachedEvaluator
from igap.counterfactual.objective.evaluator import Evaluator, Number
from igap.counterfactual.objective.objective import Objective
from igap.counterfactual.output.flatten import flatten
from igap.counterfactual.target import Target
from igap.counterfactual.trials.storages import open_storage
from igap.engine.activations import borrow
from igap.errors import InputError

NUMBERS = get_args(Number)

HEAD = Target((("heads", 1, 2),))
IDENTITY = {"model": "abc", "dtype": "float64"}


def remembering(model, file, *, kind="rules", pairs=PAIRS, target=HEAD, identity=IDENTITY, **options):
    bound = searched(kind, pairs, model.tokenizer)
    with borrow(model):
        return CachedEvaluator(Evaluator(model, bound, target, **options), file, identity)


def numbers(cached, candidates, names=NUMBERS):
    return cached.numbers(cached.evaluator.bound.tokens(candidates), names)


def some(n):
    return [(i % 4, i % 3, i % 4, i % 2, i % 3) for i in range(n)]


@pytest.fixture(params=["float64", "float32"])
def model(request, small, checkpoint):
    from igap import load_model

    return small("gpt2") if request.param == "float64" else load_model(str(checkpoint("gpt2")))


def test_what_is_on_disk_is_what_was_computed_bit_for_bit(model, tmp_path):
    file = tmp_path / "searches" / FILE
    computed = remembering(model, file)
    first = numbers(computed, some(6))
    assert (computed.n_computed, computed.n_cached) == (6, 0)
    later = remembering(model, file, batch_size=1)  # other batches would round in another way
    cost = later.evaluator.cost
    second = numbers(later, some(6)[::-1])
    assert (later.n_computed, later.n_cached, later.evaluator.cost) == (0, 6, cost)
    alone = remembering(model, None).evaluator
    plain = alone.numbers(alone.bound.tokens(some(6)), NUMBERS)
    for name in NUMBERS:
        assert torch.equal(second[name].flip(0), first[name])
        assert torch.equal(plain[name], first[name])
        assert second[name].dtype == first[name].dtype == model.W_E.dtype
        assert second[name].shape == (6, 3)


def test_only_what_is_missing_is_computed(small, tmp_path):
    file = tmp_path / FILE
    numbers(remembering(small(), file), some(3), ["ap"])
    later = remembering(small(), file)
    found = numbers(later, some(5), ["ap"])
    assert (later.n_computed, later.n_cached) == (2, 3)
    numbers(later, some(3), ["ap", "ig"])
    assert (later.n_computed, later.n_cached) == (5, 3), "IG of these was never asked for"
    numbers(later, some(3), ["ig"])
    assert (later.n_computed, later.n_cached) == (5, 6)
    torch.testing.assert_close(
        found["ap"], numbers(remembering(small(), None), some(5), ["ap"])["ap"], atol=1e-12, rtol=0
    )


def test_more_keys_than_one_question_to_sqlite_may_have_are_found(small, tmp_path):
    space = searched("words", PAIRS, small().tokenizer).space
    many = list(space.candidates())[:216]
    for found in (0, 216):
        cached = remembering(small(), tmp_path / FILE, kind="words")
        numbers(cached, many, ["ap", "fluency", "corrupted"])
        assert cached.n_cached == found


OTHERS = {
    "model": {"identity": {**IDENTITY, "model": "abd"}},
    "numerics": {"identity": {**IDENTITY, "dtype": "float32"}},
    "head": {"target": Target((("heads", 1, 3),))},
    "layer": {"target": Target((("heads", 2, 2),))},
    "site": {"target": Target((("neurons", 1, 2),))},
    "clean prompts": {"pairs": PAIRS[::-1]},
    "answer": {"pairs": (replace(PAIRS[0], answer=" Tom"), *PAIRS[1:])},
    "distractor": {"pairs": (replace(PAIRS[0], distractor=" Tom"), *PAIRS[1:])},
    "route": {"hooks": True},
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_question_is_never_taken_for_this_one(small, tmp_path, what):
    file = tmp_path / FILE
    numbers(remembering(small(), file, kind="prompts"), [(0,), (1,)], ["ap"])
    same = remembering(small(), file, kind="prompts")
    numbers(same, [(0,), (1,)], ["ap"])
    assert same.n_cached == 2
    other = remembering(small(), file, kind="prompts", **OTHERS[what])
    numbers(other, [(0,), (1,)], ["ap"])
    assert (other.n_computed, other.n_cached) == (2, 0)


def test_the_code_is_part_of_the_question(small, tmp_path, monkeypatch):
    from igap.counterfactual.objective import cache as module

    numbers(remembering(small(), tmp_path / FILE), some(2), ["ap"])
    monkeypatch.setattr(module, "versions", lambda: {"source": "another"})
    other = remembering(small(), tmp_path / FILE)
    numbers(other, some(2), ["ap"])
    assert other.n_cached == 0


def test_spaces_share_the_numbers_of_the_prompts_they_share(small, tmp_path):
    """A corrupted prompt is known by its tokens, however many clean prompts share it and whatever offered it."""
    words, listed = (remembering(small(), tmp_path / FILE, kind=kind) for kind in ("words", "prompts"))
    bound = listed.evaluator.bound
    ((text, *_),) = [bound.texts((3,))]
    (candidate,) = [
        one for one in words.evaluator.bound.space.candidates() if words.evaluator.bound.texts(one)[0] == text
    ]
    first = numbers(words, [candidate], ["ap"])["ap"]
    unshared = remembering(small(), tmp_path / FILE, kind="prompts")
    tokens = bound.tokens([(3,)]).expand(3, -1, -1)
    for cached, rows in ((listed, bound.tokens([(3,)])), (unshared, tokens)):
        assert torch.equal(cached.numbers(rows, ["ap"])["ap"], first)
        assert cached.n_cached == 1


def corrupt(file):
    file.write_bytes(b"no database, but long enough to be looked at" * 100)


def other_table(file):
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE TABLE numbers (something TEXT)")


@pytest.mark.parametrize("spoil", [corrupt, other_table, lambda file: file.mkdir()], ids=["bytes", "table", "folder"])
def test_a_file_that_cannot_be_used_is_said_once_and_costs_nothing_else(small, tmp_path, caplog, spoil):
    file = tmp_path / FILE
    spoil(file)
    before = None if file.is_dir() else file.read_bytes()
    cached = remembering(small(), file)
    with caplog.at_level(logging.WARNING, logger="igap"):
        found = [numbers(cached, some(3), ["ap"])["ap"] for _ in range(3)]
    (record,) = caplog.records
    assert record.message.startswith(f"{file}: cannot be used (")
    assert record.message.endswith("; computing what is needed")
    expected = numbers(remembering(small(), None), some(3), ["ap"])["ap"]
    assert all(torch.equal(each, expected) for each in found)
    assert before is None or file.read_bytes() == before


def test_a_place_that_cannot_be_written_is_said_once(small, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    cached = remembering(small(), tmp_path / "file" / FILE)
    with caplog.at_level(logging.WARNING, logger="igap"):
        for _ in range(2):
            numbers(cached, some(2), ["ap"])
    assert len(caplog.records) == 1


def test_an_empty_file_which_a_process_left_before_it_wrote_is_used(small, tmp_path, caplog):
    (tmp_path / FILE).touch()
    for found in (0, 2):
        cached = remembering(small(), tmp_path / FILE)
        numbers(cached, some(2), ["ap"])
        assert cached.n_cached == found
    assert not caplog.records


def test_a_row_of_another_length_is_not_believed(small, tmp_path):
    file = tmp_path / FILE
    first = numbers(remembering(small(), file), some(2), ["ap"])["ap"]
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE numbers SET floats = ?", (b"12345678",))
    later = remembering(small(), file)
    assert torch.equal(numbers(later, some(2), ["ap"])["ap"], first)
    assert later.n_cached == 0


def test_measured_is_all_that_the_objective_is_made_of(small, tmp_path):
    cached = remembering(small(), tmp_path / FILE)
    objective = Objective(("selectivity", "edits"), constraints=Constraints(min_fluency=-3.0))
    tokens = cached.evaluator.bound.tokens(some(4))
    measurements = cached.measure(tokens, objective)
    assert set(measurements) == {"ap", "mean_other_heads", "fluency", "edits"}
    assert torch.equal(measurements["edits"], cached.evaluator.bound.count_edits(tokens))
    np.testing.assert_array_equal(cached.objective_values(tokens, objective), objective.values(measurements)[:, 0])


def test_a_second_search_of_the_same_question_computes_nothing_again(small, tmp_path):
    space = SpaceConfig(
        template="After {first} and {second} went to the store, {subject} gave a bottle of milk to",
        slots={"first": ("=keep", "Tom", "cat"), "second": ("=keep", "=N1", "dog"), "subject": ("=keep", "=IO", "Tom")},
    )

    def once(**settings):
        return search(
            small(), ABBA, "1.2", space=space, until=20, clean_n=1, heldout_n=0,
            constraints=Constraints(min_clean=None), remember=tmp_path / FILE, identity=IDENTITY, **settings,
        )  # fmt: skip

    first, second, other = once(), once(), once(objective="ig")
    assert first.n_cached < second.n_cached
    assert second.n_cached >= 20
    assert second.trials == first.trials
    assert flatten(second.validation) == flatten(first.validation)
    assert second.cost < first.cost / 2
    assert [one.values for one in other.trials] != [one.values for one in first.trials]


def test_a_model_whose_weights_have_changed_is_another_to_a_file_and_to_a_storage(small, pair, tmp_path):
    model = copy.deepcopy(small("gpt2"))
    space = {"first": ["=keep", "Tom", "Anna"]} | {
        n: ["=keep"] for n in ("second", "subject", "place", "verb", "object")
    }
    asked = {"space": space, "constraints": Constraints(min_clean=None), "clean_n": 1, "heldout_n": 0, "until": 3}
    storage = open_storage("memory", tmp_path)
    first = search(model, pair, "1.2", **asked, remember=tmp_path / FILE, storage=storage)
    again = search(model, pair, "1.2", **asked, remember=tmp_path / FILE, storage=storage)
    assert [one.value for one in again.trials] == [one.value for one in first.trials]
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.25)
    other = search(model, pair, "1.2", **asked, remember=tmp_path / FILE)
    assert (
        [one.value for one in other.trials]
        == [one.value for one in search(model, pair, "1.2", **asked).trials]
        != [one.value for one in first.trials]
    )
    with pytest.raises(InputError, match=r"it has weights '\w+', asked for '\w+'\."):
        search(model, pair, "1.2", **asked, storage=storage)
