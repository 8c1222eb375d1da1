"""Optuna, without what it says beside its exceptions."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import optuna


@contextmanager
def allow_experimental() -> Iterator[None]:
    """A block in which Optuna does not warn that something of it may change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
