"""Several heads searched: what each reaches, and what every head does in the prompts that were found for another."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from igap.counterfactual.output.flatten import flatten
from igap.counterfactual.output.plots import search_matrix, search_scan
from igap.counterfactual.search import SearchResult
from igap.plots import write_png
from igap.storage.atomic import write_atomically, write_text
from igap.storage.tables import write_csv as write_table

Results = Sequence[tuple[str, SearchResult]]
"""Each component's name and its search, in the order of the command."""

_COLUMNS = (
    "by_hand/ap", "best/ap", "best/value", "random/best", "heldout/value", "deletion/ap", "deletion/writes_in",
    "by_hand/rank", "best/rank", "best/rule",
)  # fmt: skip


def write(results: Results, folder: Path) -> None:
    """`scan.csv`, `matrix.csv` and their pictures in the folder of the searches. Raises OSError."""
    frames = {"scan": table(results), "matrix": matrix(results)}
    for name, rows in frames.items():
        write_atomically(folder / f"{name}.csv", partial(write_table, frame=rows, index=name == "matrix"))
    (folder / "plots").mkdir(exist_ok=True)
    unit = results[0][1].objective.unit
    pictures = {"matrix": search_matrix(frames["matrix"], unit)}
    heads = _heads(results)
    if any(name in heads for name, _ in results):
        pictures["scan"] = search_scan(
            frames["scan"].assign(name=frames["scan"]["name"].map(heads)), [*heads.values()], unit
        )
    for name, figure in pictures.items():
        write_atomically(folder / "plots" / f"{name}.png", partial(write_png, figure))
    write_text(folder / "scan.json", json.dumps([name for name, _ in results]) + "\n")


def table(results: Results) -> pd.DataFrame:
    """A row a component: the effect with the pair made by hand, what the search reached, how far to believe it."""
    rows = []
    for name, result in results:
        summary = flatten(result.validation)
        numbers = {column: summary.get(column) for column in _COLUMNS}
        rows.append({"name": name, **numbers, "corrupted": result.best.corrupted})
    return pd.DataFrame(rows)


def matrix(results: Results) -> pd.DataFrame:
    """The AP effect, in F's unit, of each searched head (row) in the best prompts found for each component (column).

    Effects are those at the span of the search; heads that were searched at several spans have none that compare.
    """
    columns = {name: {head.name: head.best for head in result.validation.heads} for name, result in results}
    heads = _heads(results)
    names = [name for name in columns if name in heads]
    values = np.array([[columns[column][heads[head]] for column in columns] for head in names], dtype=np.float64)
    return pd.DataFrame(
        values.reshape(len(names), len(columns)), index=pd.Index(names, name="head"), columns=list(columns)
    )


def _heads(results: Results) -> dict[str, str]:
    """The model's heads by the names that targets have, at the span of all searches; none where spans differ."""
    spans = {name.partition("@")[1:] for name, _ in results}
    if len(spans) > 1:
        return {}
    ((at, span),) = spans
    return {head.name + at + span: head.name for head in results[0][1].validation.heads}
