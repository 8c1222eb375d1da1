"""Annotations are checked in the first calls of a function of igap in each test, by helpers/annotations.py."""

from dataclasses import dataclass

import numpy as np
import pytest
from beartype.roar import BeartypeCallHintViolation
from helpers.annotations import DEFINITIONS, ENOUGH, checker, jaxtyped, restart
from jaxtyping import Float, TypeCheckError

from igap.components import hook_name

checked = jaxtyped(typechecker=checker)


@checked
def product(a: Float[np.ndarray, "x y"], b: Float[np.ndarray, " y"]) -> Float[np.ndarray, " x"]:
    return a @ b if len(a) == 2 else b


@checked
def repeated(text: str, times: int) -> str:
    return text * times if times else times


def test_an_axis_has_one_length_in_all_arguments_and_what_is_returned():
    assert product(np.ones((2, 3)), np.ones(3)).shape == (2,)
    with pytest.raises(TypeCheckError, match="parameters of"):
        product(np.ones((2, 3)), np.ones(2))
    restart()
    with pytest.raises(TypeCheckError, match="return value"):
        product(np.ones((4, 3)), np.ones(3))


def test_types_are_checked_where_there_is_no_array():
    assert repeated("a", 2) == "aa"
    for arguments in (("a", "2"), ("a", 0)):
        restart()
        with pytest.raises(BeartypeCallHintViolation):
            repeated(*arguments)


def test_a_function_within_another_is_checked_the_first_times_it_is_defined_and_is_that_one():
    def define(summand):
        @checked
        def added(number: int) -> int:
            return number + summand

        return added

    added = define(1)
    assert added(3) == 4
    with pytest.raises(TypeCheckError):
        added("3")
    restart()
    for summand in range(DEFINITIONS):
        define(summand)
    with pytest.raises(TypeError, match="concatenate"):
        define(1)("3")
    restart()
    with pytest.raises(TypeCheckError):
        define(1)("3")


def test_the_first_calls_in_a_test_are_checked_and_those_of_the_next_test_again():
    for _ in range(ENOUGH):
        repeated("a", 1)
    assert repeated("a", 0) == 0
    restart()
    with pytest.raises(BeartypeCallHintViolation):
        repeated("a", 0)


def test_what_a_dataclass_is_made_of_is_checked():
    @checked
    @dataclass
    class Pair:
        first: Float[np.ndarray, " x"]
        second: Float[np.ndarray, " x"]

    Pair(np.ones(2), np.ones(2))
    with pytest.raises(TypeCheckError):
        Pair(np.ones(2), np.ones(3))


def test_igap_is_checked():
    with pytest.raises(BeartypeCallHintViolation):
        hook_name("heads", "first")


def test_nothing_is_checked_where_a_test_asks_for_what_users_have(unchecked):
    assert hook_name("heads", "first") == "blocks.first.attn.hook_z"
    assert repeated([1], 2) == [1, 1]
