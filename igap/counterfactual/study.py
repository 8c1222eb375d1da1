"""The trials of a search as an Optuna study, and Optuna's own samplers. Optuna is imported here only.

A trial enters the storage when it is finished, with its number, as a whole: a worker that is killed leaves no trial
running for ever, whatever the storage, and loses its batch at most. A word is stored as its index in its slot; what the
indices mean is in the study's attributes once, with a hash.
"""

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from igap.counterfactual.proposals import Gains, History, Proposal
from igap.counterfactual.space import Space
from igap.errors import InputError

SCHEMA = 1
"""Of a study's attributes and its trials'."""

STUDY = "igap"
"""The study's name in its storage."""

optuna.logging.set_verbosity(logging.WARNING)


@dataclass(frozen=True)
class Tried:
    """A finished trial."""

    proposal: Proposal
    value: float
    """The objective, logits; NaN of a failed one."""
    effects: tuple[float, ...]
    """In each clean prompt's run, logits."""
    reason: str = ""
    """Why it failed."""


class Trials:
    """A study's trials: read back as a History, added in batches."""

    def __init__(self, storage: BaseStorage, space: Space, identity: Mapping[str, object]) -> None:
        """Opens or makes the study.

        Raises InputError on a study of another search, saying what differs, and on one of a newer igap.
        """
        self.space = space
        self._distributions: dict[str, BaseDistribution] = {
            slot.name: CategoricalDistribution(tuple(range(len(slot.options)))) for slot in space.slots
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study = optuna.create_study(
                storage=storage, study_name=STUDY, direction="maximize", load_if_exists=True
            )
        kept, wanted = self.study.user_attrs, {"schema": SCHEMA, "space": space.digest, **identity}
        if "igap" not in kept:
            self.study.set_user_attr("slots", {slot.name: list(slot.options) for slot in space.slots})
            self.study.set_user_attr("igap", wanted)
        else:
            _check_same(kept["igap"], wanted)

    def tried(self) -> list[Tried]:
        """All trials, in the order of their numbers."""
        return [self._tried(trial) for trial in self.study.get_trials(deepcopy=False) if trial.state.is_finished()]

    def history(self) -> History:
        """What the proposals go by."""
        return history(self.space, self.tried())

    def add(self, batch: Sequence[Tried]) -> None:
        """Puts finished trials into the storage."""
        self.study.add_trials([self._frozen(one) for one in batch])

    def _frozen(self, one: Tried) -> FrozenTrial:
        failed = math.isnan(one.value)
        attributes: dict[str, Any] = {
            "source": one.proposal.source,
            "lineage": one.proposal.lineage,
            "rule": self.space.rule(one.proposal.candidate),
            "effects": list(one.effects),
        }
        if failed:
            attributes["reason"] = one.reason
        return create_trial(
            state=TrialState.FAIL if failed else TrialState.COMPLETE,
            value=None if failed else one.value,
            params={slot.name: index for slot, index in zip(self.space.slots, one.proposal.candidate, strict=True)},
            distributions=self._distributions,
            user_attrs=attributes,
        )

    def _tried(self, trial: FrozenTrial) -> Tried:
        candidate = tuple(int(trial.params[slot.name]) for slot in self.space.slots)
        attributes = trial.user_attrs
        proposal = Proposal(candidate, attributes["source"], attributes["lineage"])
        value = trial.value if trial.state == TrialState.COMPLETE and trial.value is not None else math.nan
        return Tried(proposal, value, tuple(attributes["effects"]), attributes.get("reason", ""))


def history(space: Space, tried: Sequence[Tried]) -> History:
    """What the proposals go by."""
    return History(space.sizes, tuple(one.proposal for one in tried), np.array([one.value for one in tried]))


def storage_of(kind: str, folder: Path) -> BaseStorage:
    """The storage in a search's folder. Raises InputError where it cannot be used."""
    if kind == "memory":
        return InMemoryStorage()
    try:
        if kind == "journal":
            return JournalStorage(JournalFileBackend(str(folder / "study.journal")))
        # Another worker may hold the file while it writes a batch.
        return RDBStorage(f"sqlite:///{folder / 'study.db'}", engine_kwargs={"connect_args": {"timeout": 60}})
    except Exception as error:
        raise InputError(
            f"search.storage: got {kind} in {folder}, which cannot be used ({' '.join(str(error).split())[:200]}). "
            "Remove the study's file, or set name=NAME for another folder."
        ) from error


class OptunaSampler:
    """One of Optuna's samplers as a proposer: a study in memory that is told what has been tried."""

    def __init__(self, name: str, space: Space, seed: int) -> None:
        """`tpe`, `nsga2` or `gp`."""
        self._name, self._space, self._known = name, space, 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            samplers: dict[str, BaseSampler] = {
                "tpe": optuna.samplers.TPESampler(seed=seed, constant_liar=True),
                "nsga2": optuna.samplers.NSGAIISampler(seed=seed, population_size=20),
                "gp": optuna.samplers.GPSampler(seed=seed),
            }
        self._study = optuna.create_study(direction="maximize", sampler=samplers[name])
        self._distributions: dict[str, BaseDistribution] = {
            slot.name: CategoricalDistribution(tuple(range(len(slot.options)))) for slot in space.slots
        }
        self._asked: dict[tuple[int, ...], optuna.Trial] = {}

    def __call__(self, tried: History, gains: Gains, n: int, rng: np.random.Generator) -> list[Proposal]:  # noqa: ARG002
        """The next `n` that have not been tried; fewer where the sampler keeps on repeating itself."""
        for proposal, value in zip(tried.proposals[self._known :], tried.values[self._known :], strict=True):
            self._tell(proposal, float(value))
        self._known = len(tried.proposals)
        found: list[Proposal] = []
        for _ in range(4 * n):
            if len(found) == n:
                break
            trial = self._study.ask(self._distributions)
            candidate = tuple(int(trial.params[slot.name]) for slot in self._space.slots)
            if candidate in tried.seen or candidate in self._asked:
                self._study.tell(trial, state=TrialState.FAIL)
            else:
                self._asked[candidate] = trial
                found.append(Proposal(candidate, self._name))
        return found

    def _tell(self, proposal: Proposal, value: float) -> None:
        trial = self._asked.pop(proposal.candidate, None)
        failed = math.isnan(value)
        if trial is not None:
            self._study.tell(trial, None if failed else value, state=TrialState.FAIL if failed else None)
        elif not failed:
            names = [slot.name for slot in self._space.slots]
            params = dict(zip(names, proposal.candidate, strict=True))
            self._study.add_trial(create_trial(value=value, params=params, distributions=self._distributions))


def _check_same(kept: Mapping[str, object], wanted: Mapping[str, object]) -> None:
    """Raises InputError where a study in a storage is not the one that is asked for."""
    schema = kept.get("schema")
    if not isinstance(schema, int) or schema > SCHEMA:
        raise InputError(
            f"search.storage: got a study of schema {schema}, this igap knows {SCHEMA}. Use the igap that made it, or "
            "set name=NAME for a new study."
        )
    differing = [
        f"{name} {kept.get(name)!r}, asked for {wanted.get(name)!r}"
        for name in dict.fromkeys([*kept, *wanted])
        if kept.get(name) != wanted.get(name)
    ]
    if differing:
        raise InputError(
            f"search: got a study of another search: it has {'; '.join(differing)}. Set name=NAME for a new study, or "
            "ask for what it has."
        )
