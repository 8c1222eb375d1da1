"""Optuna, SQLAlchemy and psycopg, without what they print beside their exceptions."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import optuna

# An error in a storage is an exception, which the command tells in one line; their logs add tracebacks to it.
_LEVELS = {
    "optuna": logging.WARNING,
    "optuna.storages": logging.ERROR,
    "psycopg": logging.ERROR,
    "sqlalchemy.pool": logging.CRITICAL + 1,
}


@contextmanager
def quiet_logs() -> Iterator[None]:
    """Silence the libraries' logs in the block; afterwards the levels are as the user had set them."""
    loggers = {logging.getLogger(name): level for name, level in _LEVELS.items()}
    # Not twice: a level that is set empties what every logger of the process remembers, which takes a millisecond.
    before = {logger: logger.level for logger, level in loggers.items() if logger.level < level}
    for logger in before:
        logger.setLevel(loggers[logger])
    try:
        yield
    finally:
        for logger, level in before.items():
            logger.setLevel(level)


@contextmanager
def allow_experimental() -> Iterator[None]:
    """Silence Optuna's warnings, in the block, that something of it may change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
