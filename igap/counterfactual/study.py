"""The trials of a search as an Optuna study, and the storages that keep it.

A trial enters the storage when it is finished, with its number, as a whole: a worker that is killed leaves no trial
running for ever, whatever the storage, and loses its batch at most. A word is stored as its index in its slot; what the
indices mean is in the study's attributes once, with a hash.
"""

import hashlib
import json
import logging
import math
import os
import re
import sqlite3
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from igap.counterfactual.objectives import Objective
from igap.counterfactual.proposals import History, Proposal
from igap.counterfactual.sharing import Journal, alone
from igap.counterfactual.space import Space
from igap.errors import InputError

SCHEMA = 1
"""Of a study's attributes and its trials'."""

URL = "IGAP_STORAGE_URL"
"""The environment's variable with the URL of a PostgreSQL storage, which holds a password and is written nowhere."""

REACH = 5.0
"""Seconds that a storage has to answer."""

_LOOKS = 10
"""At tables that other workers are making."""

optuna.logging.set_verbosity(logging.WARNING)


@contextmanager
def experimental() -> Iterator[None]:
    """A block in which Optuna does not warn that something of it may change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


@dataclass(frozen=True)
class Tried:
    """A finished trial."""

    proposal: Proposal
    values: tuple[float, ...]
    """Of every term; NaN of a failed trial."""
    effects: tuple[float, ...]
    """Of the first term in each clean prompt's run, logits."""
    violations: Mapping[str, float] = field(default_factory=dict)
    """By how much each bound is broken; 0 or less is kept."""
    reason: str = ""
    """Why it failed."""

    @property
    def value(self) -> float:
        """Of the first term."""
        return self.values[0]

    @property
    def broken(self) -> tuple[str, ...]:
        """Names of the bounds that it breaks."""
        return tuple(name for name, by in self.violations.items() if by > 0)

    @property
    def counts(self) -> bool:
        """Whether it neither failed nor broke a bound."""
        return not math.isnan(self.value) and not self.broken


@contextmanager
def _told() -> Iterator[None]:
    """A block in which a storage's failure is an InputError."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise InputError(
            f"search.storage: got a failure while searching: {_said(error)}. What it has is kept: once it is there "
            "again, the same command goes on."
        ) from None


class Trials:
    """A study's trials: read back, and added in batches."""

    def __init__(
        self,
        storage: BaseStorage,
        space: Space,
        identity: Mapping[str, object],
        objective: Objective | None = None,
        name: str = "igap",
    ) -> None:
        """Opens or makes the study.

        Raises InputError on a study of another search, saying what differs, and on one of a newer igap.
        """
        self.space, self._storage = space, storage
        self.directions = (objective or Objective()).directions
        self._distributions: dict[str, BaseDistribution] = {
            slot.name: IntDistribution(0, max(1, len(slot.options) - 1)) for slot in space.slots
        }
        self._read: dict[int, Tried] = {}
        self.study = optuna.create_study(
            storage=storage, study_name=name, directions=self.directions, load_if_exists=True
        )
        wanted = {"schema": SCHEMA, "space": space.digest, **identity}
        with alone(storage, name):
            kept = self.study.user_attrs.get("igap")
            slots = {slot.name: _digest(slot.options) for slot in space.slots}
            if kept is None:
                if self.study.get_trials(deepcopy=False):
                    raise InputError(
                        f"search.storage: got a study {name!r} with trials that are none of igap's. Set "
                        "name=NAME for a new one."
                    )
                lists = {_digest(slot.options): list(slot.options) for slot in space.slots}
                self.study.set_user_attr("lists", lists)
                self.study.set_user_attr("slots", slots)
                self.study.set_user_attr("id", uuid.uuid4().hex[:12])
                if objective is not None:
                    with experimental():
                        self.study.set_metric_names(list(objective.terms))
                self.study.set_user_attr("igap", wanted)
        attributes = self.study.user_attrs
        self.id = str(attributes["id"])
        """Of the study, wherever it is moved to."""
        if kept is not None:
            _check_same(kept, wanted, [slot for slot in slots | attributes["slots"]
                                       if slots.get(slot) != attributes["slots"].get(slot)])  # fmt: skip

    def tried(self) -> list[Tried]:
        """All trials, in the order of their numbers. Raises InputError on a storage that has failed meanwhile."""
        with _told():
            trials = self.study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.number not in self._read and trial.state.is_finished():
                self._read[trial.number] = self._tried(trial)
        return [self._read[number] for number in sorted(self._read)]

    def history(self, tried: Sequence[Tried] | None = None) -> History:
        """What the proposals go by, of all trials or of these: of `edits`, fewer are better."""
        tried = self.tried() if tried is None else tried
        turned = np.array([-1.0 if direction == "minimize" else 1.0 for direction in self.directions])
        points = [one.values if one.counts else (math.nan,) * len(turned) for one in tried]
        array = np.array(points, dtype=np.float64).reshape(len(tried), len(turned))
        return History(self.space, tuple(one.proposal for one in tried), array * turned)

    def add(self, batch: Sequence[Tried], until: int | None = None) -> None:
        """Puts finished trials into the storage, no more than make `until` in all, and none that another worker has.

        Raises InputError on a storage that has failed meanwhile.
        """
        name = self.study.study_name
        try:
            with _told(), alone(self._storage, name):
                there = self.tried()
                seen = {one.proposal.candidate for one in there}
                new = [one for one in batch if one.proposal.candidate not in seen]
                room = None if until is None else max(0, until - len(there))
                self.study.add_trials([self._frozen(one) for one in new[:room]])
        except BaseException:  # also Ctrl-C, after which there is a report: of what the storage has
            with _told():  # anew: Optuna's cache has what was undone
                self.study = optuna.load_study(study_name=name, storage=self._storage)
            raise

    def _frozen(self, one: Tried) -> FrozenTrial:
        failed = math.isnan(one.value)
        attributes: dict[str, Any] = {
            "source": one.proposal.source,
            "lineage": one.proposal.lineage,
            "rule": self.space.rule(one.proposal.candidate),
            "effects": list(one.effects),
        }
        if failed or one.broken:
            attributes["reason"] = one.reason or "; ".join(
                f"{name} is broken by {one.violations[name]:.4g}" for name in one.broken
            )
        return create_trial(
            state=TrialState.FAIL if failed else TrialState.COMPLETE,
            values=None if failed else list(one.values),
            params={slot.name: index for slot, index in zip(self.space.slots, one.proposal.candidate, strict=True)},
            distributions=self._distributions,
            user_attrs=attributes,
            constraints=dict(one.violations) or None,
        )

    def _tried(self, trial: FrozenTrial) -> Tried:
        candidate = tuple(int(trial.params[slot.name]) for slot in self.space.slots)
        attributes = trial.user_attrs
        proposal = Proposal(candidate, attributes["source"], attributes["lineage"])
        whole = trial.state == TrialState.COMPLETE and trial.values is not None
        values = tuple(trial.values) if whole and trial.values else (math.nan,) * len(self.directions)
        return Tried(proposal, values, tuple(attributes["effects"]), trial.constraints, attributes.get("reason", ""))


def only_study(storage: BaseStorage) -> str | None:
    """The name of the one study in a storage; None where there is none, or several."""
    names = optuna.get_all_study_names(storage)
    return names[0] if len(names) == 1 else None


def storage_of(kind: str, folder: Path, address: str = "") -> BaseStorage:
    """The storage of a search. Raises InputError where it cannot be used, or does not answer within REACH seconds."""
    if kind == "memory":
        return InMemoryStorage()
    try:
        if kind == "journal":
            with experimental():
                return Journal(folder / "study.journal")
        if kind == "postgres":
            return _postgres()
        if kind == "grpc":
            return _grpc(address)
        file = folder / "study.db"
        with closing(sqlite3.connect(file, timeout=REACH, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")  # a file that another program holds is told now, not in the middle
            connection.execute("ROLLBACK")
        # Another worker may hold the file while it writes a batch.
        storage = _database(_url(file), {"connect_args": {"timeout": 60}})
    except InputError:
        raise
    except Exception as error:
        where = {"postgres": f"the server in {URL}", "grpc": address}.get(kind, str(folder))
        raise InputError(
            f"search.storage: got {kind} ({where}), which cannot be used: {_said(error)}. Start it, end the program "
            "that holds it, remove a damaged file, or use another: search/storage=journal, name=NAME."
        ) from None
    return storage


def _url(file: Path) -> str:
    """SQLAlchemy's URL of a database file of whatever name, its braces doubled for Optuna, which formats it."""
    url = sqlalchemy.URL.create("sqlite", database=str(file)).render_as_string(hide_password=False)
    return url.replace("{", "{{").replace("}", "}}")


def _postgres() -> BaseStorage:
    url = os.environ.get(URL)
    if not url:
        raise InputError(
            f"search.storage: got postgres, but {URL} is not set. "
            f"Set {URL}=postgresql+psycopg://USER:PASSWORD@HOST/DATABASE."
        )
    try:
        import psycopg  # noqa: F401 - SQLAlchemy's driver
    except ImportError:
        raise InputError(
            "search.storage: got postgres, whose package is not installed. "
            'pip install -e ".[postgres]" -c constraints.txt, or search/storage=sqlite.'
        ) from None
    return _database(url, {"connect_args": {"connect_timeout": int(REACH)}, "pool_pre_ping": True})


def _database(url: str, settings: dict[str, Any]) -> RDBStorage:
    """The storage, with its tables; where other workers make them at this moment, once they are there."""
    for _ in range(_LOOKS):
        try:
            return RDBStorage(url, engine_kwargs=settings)
        except Exception as error:
            if not re.search("already exists|unique constraint", f"{error} {error.__cause__}", re.IGNORECASE):
                raise
            time.sleep(0.2)
    return RDBStorage(url, engine_kwargs=settings)


def _grpc(address: str) -> BaseStorage:
    try:
        import grpc
    except ImportError:
        raise InputError(
            "search.storage: got grpc, whose package is not installed. "
            'pip install -e ".[grpc]" -c constraints.txt, or search/storage=sqlite.'
        ) from None
    from optuna.storages import GrpcStorageProxy

    try:
        with grpc.insecure_channel(address) as channel:
            grpc.channel_ready_future(channel).result(timeout=REACH)
    except grpc.FutureTimeoutError:
        raise InputError(
            f"search.storage: got grpc, but nothing answers at {address} within {REACH:.0f} s. Start "
            "optuna.storages.run_grpc_proxy_server there, or set search.storage.address."
        ) from None
    host, _, port = address.rpartition(":")
    with experimental():
        return GrpcStorageProxy(host=host, port=int(port))


def _said(error: Exception) -> str:
    """The first line of what went wrong, without an address that may hold a password, nor a piece of that.

    A password with @, : or / in it is cut in the wrong place, and its rest taken for a host or a port.
    """
    text = " ".join(str(error.__cause__ or error).split("(Background")[0].split())
    url = os.environ.get(URL, "")
    password = url.rpartition("@")[0].partition("://")[2].partition(":")[2]
    pieces = [url, password, unquote(password), *re.split(r"\W", unquote(password))]
    for secret in sorted((piece for piece in pieces if len(piece) > 2), key=len, reverse=True):
        text = text.replace(secret, "...")
    return text[:200]


def _digest(options: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(options)).encode()).hexdigest()[:12]


def _check_same(kept: Mapping[str, object], wanted: Mapping[str, object], slots: Sequence[str]) -> None:
    """Raises InputError where a study in a storage is not the one that is asked for; `slots` are those that differ."""
    schema = kept.get("schema")
    if not isinstance(schema, int) or schema > SCHEMA:
        raise InputError(
            f"search.storage: got a study of schema {schema}, this igap knows {SCHEMA}. Use the igap that made it, or "
            "set name=NAME for a new study."
        )
    differing = []
    for name in dict.fromkeys([*kept, *wanted]):
        has, asked = kept.get(name), wanted.get(name)
        if has == asked:
            continue
        if name == "space":
            differing.append(f"other words or rules in {', '.join(slots)}" if slots else "another template")
        elif isinstance(has, list) and isinstance(asked, list) and name == "clean prompts":
            numbers = f"{len(has)} of them, asked for {len(asked)}" if len(has) != len(asked) else "as many"
            differing.append(f"other clean prompts ({numbers})")
        else:
            differing.append(f"{name} {has!r}, asked for {asked!r}")
    if differing:
        raise InputError(
            f"search: got a study of another search: it has {'; '.join(differing)}. Set name=NAME for a new study, or "
            "ask for what it has."
        )
