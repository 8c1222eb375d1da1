"""Numbers of corrupted prompts, cached under a hash of all they depend on, for later searches of the same component.

A file beside the searches holds a row for each number of each corrupted prompt. Its key is a hash of the checkpoint and
its numerics, igap's own code, the component, the clean prompts and the corrupted tokens: what another search has
computed is not computed again, and no other number can be mistaken for it.
"""

import hashlib
import json
import logging
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from igap.counterfactual.history import Floats
from igap.counterfactual.objective.downstream import Downstream
from igap.counterfactual.objective.errors import signed_errors
from igap.counterfactual.objective.evaluator import Number, Numbers
from igap.counterfactual.objective.objective import Measurements, Objective
from igap.counterfactual.objective.parts import AnyEvaluator
from igap.counterfactual.objective.typicality import Distribution
from igap.storage.versions import versions

FILE = ".evaluations.sqlite"
"""Its name in a folder of searches."""

_TABLE = "CREATE TABLE IF NOT EXISTS numbers (key BLOB PRIMARY KEY, floats BLOB) WITHOUT ROWID"
_AT_ONCE = 500
"""Keys in one query: SQLite takes a limited number."""
_WAIT = 30.0
"""Seconds for another process to finish writing."""

log = logging.getLogger("igap")


class CachedEvaluator:
    """An evaluator that looks on disk first.

    If the cache file fails, one warning is logged and evaluation continues without it.
    """

    distribution: Distribution | None = None
    """The distribution that `percentile` refers to, where a constraint needs it."""

    downstream: Downstream | None = None
    """The distributions that `downstream` refers to, where a constraint or a term needs them."""

    def __init__(self, evaluator: AnyEvaluator, file: Path | None, identity: Mapping[str, object]) -> None:
        """`identity` tells models and numerics apart, as JSON values; `file` None: no cache."""
        self.evaluator, self._file = evaluator, file
        bound, target = evaluator.bound, evaluator.target
        self.n_computed = self.n_cached = 0
        """Candidates, of all calls."""
        inputs = {
            **identity,
            "versions": versions(),
            "component": list(target.single or map(list, target.members)),
            "clean": bound.clean.tolist(),
            "answers": [[pair.answer, pair.distractor] for pair in bound.pairs],
            "route": evaluator.route,
            **({} if target.span is None else {"span": target.span, "where": _to_list(evaluator.where)}),
        }
        self._inputs_hash = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).digest()

    def numbers(
        self, tokens: Int[Tensor, "corrupted candidate pos"], names: Sequence[Number], *, remember: bool = True
    ) -> Numbers:
        """The same numbers as the evaluator's, computed only where the file does not have them.

        Without `remember` the file is left alone: hashing and storing 10^6 candidates takes longer than computing them.
        """
        compute = self.evaluator.numbers if remember else partial(self.evaluator.numbers, merge=True)
        return self._remember(tokens, names, compute, counted=bool(names), remember=remember)

    def errors(
        self,
        tokens: Int[Tensor, "corrupted candidate pos"],
        estimator: str,
        *,
        counted: bool = True,
        remember: bool = True,
    ) -> Float[Tensor, "candidate pair member"]:
        """What the estimator says of each member less its AP effect, in F's unit; see `signed_errors`.

        `counted`: whether the candidates are, which other numbers may have been asked of before.
        """
        name = f"errors/{estimator}"

        def compute(tokens: Tensor, _: object) -> dict[str, Tensor]:
            return {name: signed_errors(self.evaluator.estimates(tokens, estimator), estimator).flatten(1)}

        n = len(self.evaluator.target.members)
        flat = self._remember(tokens, [name], compute, counted=counted, n=n, remember=remember)[name]
        errors: Tensor = flat.unflatten(1, (len(self.evaluator.bound.pairs), -1))
        return errors

    def measure(
        self, tokens: Int[Tensor, "corrupted candidate pos"], objective: Objective, *, remember: bool = True
    ) -> Measurements:
        """All that the objective needs: the evaluator's numbers, `edits`, and the percentiles that it asks for."""
        needs = objective.needs
        numbers = self.numbers(tokens, needs, remember=remember)
        measurements: dict[str, Tensor] = {str(name): each for name, each in numbers.items()}
        measurements["edits"] = self.evaluator.bound.count_edits(tokens).cpu()
        if "error" in objective.terms:
            measurements["errors"] = self.errors(tokens, objective.estimator, counted=not needs, remember=remember)
        if objective.constraints.max_percentile is not None:
            assert self.distribution is not None, "a search with that bound makes it"
            measurements["percentile"] = self.distribution.percentile(self.evaluator, tokens)
        if objective.asks_downstream:
            assert self.downstream is not None, "a search that asks for it makes it"
            measurements["downstream"] = self.downstream.standardize_patched(self.evaluator, tokens)
        return measurements

    def objective_values(self, tokens: Int[Tensor, "corrupted candidate pos"], objective: Objective) -> Floats:
        """Each corrupted prompt's value of the objective's first term."""
        values: Floats = objective.values(self.measure(tokens, objective))[:, 0]
        return values

    def _remember(
        self,
        tokens: Int[Tensor, "corrupted candidate pos"],
        names: Sequence[Any],
        compute: Callable[[Tensor, Sequence[Any]], Mapping[Any, Tensor]],
        *,
        counted: bool,
        remember: bool,
        n: int = 1,
    ) -> dict[Any, Float[Tensor, "candidate number"]]:
        """These numbers, `n` a clean prompt, computed only where the file does not have them."""
        if not remember:
            self.n_computed += counted * tokens.shape[1]
            return dict(compute(tokens, names))
        rows = tokens.expand(len(self.evaluator.bound.pairs), -1, -1).transpose(0, 1).contiguous().cpu()
        hashes = [hashlib.sha256(self._inputs_hash + row.numpy().tobytes()).digest() for row in rows]
        keys = {name: [name.encode() + b" " + each for each in hashes] for name in names}
        stored = self._load([key for of_name in keys.values() for key in of_name], n)
        missing = [i for i in range(len(hashes)) if any(keys[name][i] not in stored for name in names)]
        if missing:
            computed = compute(tokens[:, missing], names)
            new = {
                keys[name][i]: row.double() for name in names for i, row in zip(missing, computed[name], strict=True)
            }
            self._save(new)
            stored |= new
        if counted:
            self.n_computed += len(missing)
            self.n_cached += len(hashes) - len(missing)
        dtype = self.evaluator.dtype
        return {name: torch.stack([stored[key] for key in keys[name]]).to(dtype) for name in names}

    def _load(self, keys: Sequence[bytes], n: int) -> dict[bytes, Float[Tensor, " number"]]:
        rows: list[tuple[bytes, bytes]] = []
        try:
            if self._file is None or not self._file.exists():
                return {}
            with closing(sqlite3.connect(self._file, timeout=_WAIT)) as connection:
                connection.execute(_TABLE)  # a file is empty at first, and stays so when its process dies then
                for start in range(0, len(keys), _AT_ONCE):
                    some = keys[start : start + _AT_ONCE]
                    marks = ",".join("?" * len(some))
                    rows += connection.execute(f"SELECT key, floats FROM numbers WHERE key IN ({marks})", some)
        except (sqlite3.Error, OSError) as error:
            self._disable(error)
            return {}
        n_bytes = 8 * n * len(self.evaluator.bound.pairs)
        return {
            key: torch.frombuffer(bytearray(floats), dtype=torch.float64)
            for key, floats in rows
            if len(floats) == n_bytes
        }

    def _save(self, new: Mapping[bytes, Tensor]) -> None:
        if self._file is None:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._file, timeout=_WAIT)) as connection, connection:
                connection.execute("PRAGMA synchronous = OFF")  # what a power cut takes is computed again
                connection.execute(_TABLE)
                rows = [(key, row.numpy().tobytes()) for key, row in new.items()]
                connection.executemany("INSERT OR REPLACE INTO numbers VALUES (?, ?)", rows)
        except (sqlite3.Error, OSError) as error:
            self._disable(error)

    def _disable(self, error: Exception) -> None:
        log.warning("%s: cannot be used (%s); computing what is needed", self._file, error)
        self._file = None


def _to_list(where: Tensor | None) -> list[list[bool]] | None:
    listed: list[list[bool]] | None = None if where is None else where.tolist()
    return listed
