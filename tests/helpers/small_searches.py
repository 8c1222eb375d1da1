"""Searches on the random GPT-2 in float64, whose few words make three slots of twelve options."""

import sqlite3
from contextlib import closing
from pathlib import Path

from igap.counterfactual.config import Constraints
from igap.counterfactual.objective.objective import Objective
from igap.counterfactual.session import SearchSession
from igap.counterfactual.trials.storages import open_storage

WORDS = ["=keep", "Tom", "Anna", "cat", "dog", "John", "Mary", "After", "Then", "store", "milk", "bottle"]
SPACE = {"first": WORDS, "second": WORDS, "subject": WORDS, "place": ["=keep"], "verb": ["=keep"], "object": ["=keep"]}


def opened(
    model,
    pair,
    *,
    storage=None,
    head="1.2",
    space=None,
    seed=0,
    identity=None,
    remember=None,
    clean_n=1,
    heldout_n=0,
    **objective,
):
    """A search of one clean prompt; in memory unless told otherwise."""
    constraints = Constraints(**{"min_clean": None, **objective.pop("constraints", {})})
    return SearchSession(
        model, pair, head, Objective(**objective, constraints=constraints), space=space or SPACE, clean_n=clean_n,
        heldout_n=heldout_n, seed=seed, storage=storage or open_storage("memory", Path()), name="study",
        identity=identity or {}, remember=remember, memory_gib=None,
    )  # fmt: skip


def candidates(search):
    """What has been tried, in order, and by whom."""
    return [trial.proposal for trial in search.trials.all()]


def n_trials(file):
    """The trials in the file of a sqlite study, also while others write it."""
    if not file.exists():
        return 0
    try:
        with closing(sqlite3.connect(file)) as connection:
            return connection.execute("SELECT count(*) FROM trials").fetchone()[0]
    except sqlite3.OperationalError:
        return 0
