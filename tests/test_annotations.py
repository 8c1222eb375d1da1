"""Annotations are checked whenever a function of igap is called, by helpers/annotations.py."""

from collections.abc import Iterator

import numpy as np
import pytest
from beartype.roar import BeartypeCallHintParamViolation, BeartypeCallHintReturnViolation, BeartypeCallHintViolation
from helpers.annotations import checker, jaxtyped
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
    with pytest.raises(BeartypeCallHintParamViolation):
        product(np.ones((2, 3)), np.ones(2))
    with pytest.raises(BeartypeCallHintReturnViolation):
        product(np.ones((4, 3)), np.ones(3))
    assert product(np.ones((2, 4)), np.ones(4)).shape == (2,)  # the axes are those of a call


def test_types_are_checked_where_there_is_no_array():
    assert repeated("a", 2) == "aa"
    for arguments in (("a", "2"), ("a", 0)):
        with pytest.raises(BeartypeCallHintViolation):
            repeated(*arguments)


def test_a_function_within_another_is_checked_each_time_it_is_defined_and_is_that_one():
    def define(summand):
        @checked
        def added(number: int) -> int:
            return number + summand

        return added

    for summand in range(2):
        assert define(summand)(3) == 3 + summand
        with pytest.raises(BeartypeCallHintViolation):
            define(summand)("3")


def test_a_function_within_another_has_its_own_defaults_and_axes():
    def define(length):
        @checked
        def padded(
            a: Float[np.ndarray, " x"], b: "Float[np.ndarray, ' x']", n: int = length
        ) -> Float[np.ndarray, " x"]:
            return a if n == length == len(a) else b[:-1]

        return padded

    for length in (2, 3):
        assert len(define(length)(np.ones(length), np.ones(length))) == length
        with pytest.raises(BeartypeCallHintParamViolation):
            define(length)(np.ones(length), np.ones(length + 1))
        with pytest.raises(BeartypeCallHintReturnViolation):
            define(length)(np.ones(length + 1), np.ones(length + 1))


def test_arguments_of_generators_are_checked():
    @checked
    def halves(a: Float[np.ndarray, " x"], b: Float[np.ndarray, " x"]) -> Iterator[Float[np.ndarray, " x"]]:
        yield a / 2
        yield b / 2

    assert len(list(halves(np.ones(2), np.ones(2)))) == 2
    with pytest.raises(TypeCheckError):
        halves(np.ones(2), np.ones(3))


def test_igap_is_checked():
    with pytest.raises(BeartypeCallHintViolation):
        hook_name("heads", "first")


def test_nothing_is_checked_where_a_test_asks_for_what_users_have(unchecked):
    assert hook_name("heads", "first") == "blocks.first.attn.hook_z"
    assert repeated([1], 2) == [1, 1]
