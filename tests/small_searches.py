"""Searches on the random GPT-2 in float64, whose few words make three slots of twelve options."""

from pathlib import Path

from igap.counterfactual.config import Bounds
from igap.counterfactual.objective.objective import Objective
from igap.counterfactual.session import Search
from igap.counterfactual.trials.storages import storage_of

WORDS = ["=keep", "Tom", "Anna", "cat", "dog", "John", "Mary", "After", "Then", "store", "milk", "bottle"]
SPACE = {"first": WORDS, "second": WORDS, "subject": WORDS, "place": ["=keep"], "verb": ["=keep"], "object": ["=keep"]}


def opened(
    model, pair, *, storage=None, head="1.2", space=None, seed=0, identity=None, remember=None, clean_n=1, **objective
):
    """A search of one clean prompt; in memory unless told otherwise."""
    bounds = Bounds(**{"min_clean": None, **objective.pop("bounds", {})})
    return Search(
        model, pair, head, Objective(**objective, bounds=bounds), space=space or SPACE, clean_n=clean_n, heldout_n=0,
        seed=seed, storage=storage or storage_of("memory", Path()), name="study", identity=identity or {},
        remember=remember, memory_gib=None,
    )  # fmt: skip


def candidates(search):
    """What has been tried, in order, and by whom."""
    return [one.proposal for one in search.trials.tried()]
