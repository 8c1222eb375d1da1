"""The trials of a search as an Optuna study.

A trial enters the storage when it is finished, with its number, as a whole: a worker that is killed leaves no trial
running for ever, whatever the storage, and loses its batch at most. A word is stored as its index in its slot; what the
indices mean is in the study's attributes once, with a hash.
"""

import hashlib
import json
import math
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from igap.counterfactual.history import History, Proposal
from igap.counterfactual.objective.objective import Objective
from igap.counterfactual.quiet import allow_experimental
from igap.counterfactual.spaces.base import Candidate, Space
from igap.counterfactual.trials.bulk import add_trials, read_trials
from igap.counterfactual.trials.chunks import Chunk
from igap.counterfactual.trials.locking import exclusive
from igap.counterfactual.trials.storages import one_line_errors
from igap.errors import InputError
from igap.storage.studies import UNTIL

SCHEMA = 1
"""Version of the attributes of a study and of its trials."""

_SEARCHING = ("a failure while searching", "What it has is kept: once it is there again, the same command goes on.")
_READING = ("a study that cannot be read", "Restore it from a copy, or set name=NAME for a new one.")
"""What went wrong, and the remedy, of an error of the storage at that time."""


@dataclass(frozen=True, slots=True)
class EvaluatedTrial:
    """A finished trial."""

    proposal: Proposal
    values: tuple[float, ...]
    """A number a term; NaN if the trial failed."""
    effects: tuple[float, ...]
    """The first term's effect in each clean prompt's run; of a search for several components AtP of each; F's unit."""
    violations: Mapping[str, float] = field(default_factory=dict)
    """By how much each constraint is violated; 0 or less: it is satisfied."""
    reason: str = ""
    """Why it failed."""
    chunk: Chunk | None = None
    """The candidates that it is the best of; None: it stands for itself alone."""
    sought: str = ""
    """Of a search for several components: the one that it was proposed for."""

    @property
    def subject(self) -> Candidate | tuple[str, int, int]:
        """What it has tried, which no other trial of the study tries again: its candidate, or a chunk of them."""
        return ("chunk", self.chunk.index, self.chunk.of) if self.chunk else self.proposal.candidate

    @property
    def value(self) -> float:
        """The value of the first term."""
        return self.values[0]

    @property
    def violated(self) -> tuple[str, ...]:
        """Names of the constraints that it violates."""
        return tuple(name for name, by in self.violations.items() if by > 0)

    @property
    def is_failed(self) -> bool:
        """True if it has no value."""
        return math.isnan(self.value)

    @property
    def is_feasible(self) -> bool:
        """True if the trial succeeded and satisfies every constraint."""
        return not self.is_failed and not self.violated


class _Read:
    """Trials that have been read, with what each batch asks of all of them; kept, for 100,000 take long to go over."""

    def __init__(self, space: Space, signs: Sequence[float], *, has_sides: bool) -> None:
        self._space, self._signs, self._has_sides = space, np.array(signs), has_sides
        self.last: FrozenTrial | None = None
        """The last of them, as Optuna has it."""
        self.trials: list[EvaluatedTrial] = []
        self.subjects: set[Candidate | tuple[str, int, int]] = set()
        self.sources: Counter[str] = Counter()
        self._proposals: list[Proposal] = []
        self._candidates: set[Candidate] = set()
        self._points, self._sides = np.empty((64, len(signs))), np.empty(64)

    def extend(self, trials: Sequence[EvaluatedTrial], last: FrozenTrial | None = None) -> None:
        """Take in the trials that come next."""
        n, proposals = len(self.trials), [trial.proposal for trial in trials]
        while len(self._points) < n + len(trials):
            self._points = np.concatenate([self._points, np.empty_like(self._points)])
            self._sides = np.concatenate([self._sides, np.empty_like(self._sides)])
        for i, trial in enumerate(trials, start=n):
            self._points[i] = trial.values * self._signs if trial.is_feasible else math.nan
            self._sides[i] = -1.0 if sum(trial.effects) < 0 else 1.0
        self.trials += trials
        self._proposals += proposals
        self.subjects.update(trial.subject for trial in trials)
        self.sources.update(proposal.source for proposal in proposals)
        self._candidates.update(proposal.candidate for proposal in proposals)
        self.last = last or self.last

    def history(self) -> History:
        """The history of them, which does not change when others follow."""
        points, sides = self._points[: len(self.trials)], self._sides[: len(self.trials)]
        points.flags.writeable = sides.flags.writeable = False
        return History(
            self._space,
            tuple(self._proposals),
            points,
            sides if self._has_sides else None,
            frozenset(self._candidates),
        )


class TrialStore:
    """The trials of a study, read back and added in batches."""

    def __init__(
        self,
        storage: BaseStorage,
        space: Space,
        identity: Mapping[str, object],
        objective: Objective | None = None,
        name: str = "igap",
    ) -> None:
        """Open the study, or make it.

        Raises InputError on a study of another search, saying what differs, and on one of a newer igap.
        """
        self.space = space
        self.storage = storage
        """As it was given, not as Optuna wraps it."""
        self.directions = (objective or Objective()).directions
        self._distributions: dict[str, BaseDistribution] = {
            slot.name: IntDistribution(0, max(1, len(slot.options) - 1)) for slot in space.slots
        }
        self._signs = [-1.0 if direction == "minimize" else 1.0 for direction in self.directions]
        self._has_sides = objective is not None and objective.is_size
        self._read, self._later = self._nothing_read(), list[EvaluatedTrial]()
        self._n_stored = 0
        self._in_use = False
        """Whether the storage has been read or written once: from then on a failure is not the input's."""
        # As the storage gives it back: tuples are lists there.
        wanted = json.loads(json.dumps({"schema": SCHEMA, "space": space.digest, **identity}))
        with one_line_errors(*_READING):
            if name in optuna.get_all_study_names(storage):
                self.study = optuna.load_study(study_name=name, storage=storage)
            else:
                self.study = optuna.create_study(
                    storage=storage, study_name=name, directions=self.directions, load_if_exists=True
                )
            with exclusive(storage, name):
                kept = self._stored_identity(wanted, objective)
            attributes = self.study.user_attrs
            self.id = str(attributes["id"])
            """The study's own, wherever its storage is moved to."""
            slots = _slots(space)
            if kept is not None:
                _check_identity(kept, wanted, [slot for slot in slots | attributes["slots"]
                                           if slots.get(slot) != attributes["slots"].get(slot)])  # fmt: skip

    def _stored_identity(
        self, wanted: Mapping[str, object], objective: Objective | None
    ) -> Mapping[str, object] | None:
        """The identity that the study was made with; None where it is made now, with `wanted`."""
        kept: Mapping[str, object] | None = self.study.user_attrs.get("igap")
        if kept is not None:
            return kept
        name = self.study.study_name
        if self.study.get_trials(deepcopy=False):
            raise InputError(
                f"search.storage: got a study {name!r} with trials that are none of igap's. "
                "Set name=NAME for a new one."
            )
        lists = {_digest(slot.options): list(slot.options) for slot in self.space.slots}
        self.study.set_user_attr("lists", lists)
        self.study.set_user_attr("slots", _slots(self.space))
        self.study.set_user_attr("id", uuid.uuid4().hex[:12])
        if objective is not None:
            with allow_experimental():
                self.study.set_metric_names(list(objective.terms))
        self.study.set_user_attr("igap", dict(wanted))
        return None

    def all(self) -> list[EvaluatedTrial]:
        """All trials, in the order of their numbers. Raises OSError on a storage that has failed meanwhile."""
        self._read_new()
        return [*self._read.trials, *self._later]

    def _read_new(self) -> None:
        """Read the trials that have come; one that another program is running is looked at again, with all behind."""
        with self._failing_in_one_line():
            rows = read_trials(self.storage, self.study, self._read.last)
        with one_line_errors(*_READING):
            self._n_stored = int(rows[-1].number) + 1 if rows else self._n_stored
            n = next((i for i, trial in enumerate(rows) if not trial.state.is_finished()), len(rows))
            self._later = [self._from_optuna(trial) for trial in rows[n:] if trial.state.is_finished()]
            self._read.extend([self._from_optuna(trial) for trial in rows[:n]], rows[n - 1] if n else None)
        self._in_use = True

    def _failing_in_one_line(self) -> AbstractContextManager[None]:
        return one_line_errors(*(_SEARCHING if self._in_use else _READING), in_use=self._in_use)

    def history(self, trials: Sequence[EvaluatedTrial] | None = None) -> History:
        """The history that samplers learn from, of all trials or of these; terms to minimise are negated."""
        if trials is None:
            self._read_new()
            if not self._later:
                return self._read.history()
            trials = [*self._read.trials, *self._later]
        read = self._nothing_read()
        read.extend(trials)
        return read.history()

    def _nothing_read(self) -> _Read:
        return _Read(self.space, self._signs, has_sides=self._has_sides)

    def count(self, *sources: str) -> int:
        """How many trials, of those that have been read, come from these sources."""
        later = sum(trial.proposal.source in sources for trial in self._later)
        return later + sum(self._read.sources[source] for source in sources)

    def expect(self, until: int) -> None:
        """Write how many trials the study is to have, which `igap status` says; raises as `add` does."""
        with self._failing_in_one_line(), exclusive(self.storage, self.study.study_name):
            if self.study.user_attrs.get(UNTIL) != until:
                self.study.set_user_attr(UNTIL, until)
        self._in_use = True

    def add(self, batch: Sequence[EvaluatedTrial], until: int | None = None) -> None:
        """Put finished trials into the storage, at most up to `until` in all, and none that another worker has made.

        Raises OSError on a storage that has failed meanwhile.
        """
        name = self.study.study_name
        try:
            with self._failing_in_one_line(), exclusive(self.storage, name):
                self._read_new()
                read, later = self._read, {trial.subject for trial in self._later}
                new = [trial for trial in batch if trial.subject not in read.subjects and trial.subject not in later]
                room = None if until is None else max(0, until - len(read.trials) - len(self._later))
                add_trials(self.storage, self.study, [self._to_optuna(trial) for trial in new[:room]], self._n_stored)
        except BaseException:  # also Ctrl-C, after which there is a report: of what the storage has
            with self._failing_in_one_line():  # anew: Optuna's cache has what was undone
                self.study = optuna.load_study(study_name=name, storage=self.storage)
            raise

    def _to_optuna(self, trial: EvaluatedTrial) -> FrozenTrial:
        failed = trial.is_failed
        attributes: dict[str, Any] = {
            "source": trial.proposal.source,
            "lineage": trial.proposal.lineage,
            "rule": self.space.rule(trial.proposal.candidate),
            "effects": list(trial.effects),
            **({"chunk": trial.chunk.as_list()} if trial.chunk else {}),
            **({"sought": trial.sought} if trial.sought else {}),
        }
        if failed or trial.violated:
            attributes["reason"] = trial.reason or "; ".join(
                f"{name} is broken by {trial.violations[name]:.4g}" for name in trial.violated
            )
        return create_trial(
            state=TrialState.FAIL if failed else TrialState.COMPLETE,
            values=None if failed else list(trial.values),
            params={slot.name: index for slot, index in zip(self.space.slots, trial.proposal.candidate, strict=True)},
            distributions=self._distributions,
            user_attrs=attributes,
            constraints=dict(trial.violations) or None,
        )

    def _from_optuna(self, trial: FrozenTrial) -> EvaluatedTrial:
        """The trial as it was put in. Raises an exception of any kind on one that was not put in by igap."""
        params, effects = trial.params, trial.user_attrs["effects"]
        candidate = tuple([int(params[slot.name]) for slot in self.space.slots])
        for slot, index in zip(self.space.slots, candidate, strict=True):
            if not 0 <= index < len(slot.options):
                raise ValueError(f"trial {trial.number} has option {index} of {len(slot.options)} in slot {slot.name}")
        attributes = trial.user_attrs
        proposal = Proposal(candidate, str(attributes["source"]), int(attributes["lineage"]))
        values = tuple(trial.values or ())
        if trial.state != TrialState.COMPLETE:
            values = (math.nan,) * len(self.directions)
        elif len(values) != len(self.directions) or not all(map(math.isfinite, values)):
            raise ValueError(f"trial {trial.number} has the values {values}, wanted {len(self.directions)} numbers")
        chunk = Chunk(*map(int, attributes["chunk"])) if "chunk" in attributes else None
        reason, sought = attributes.get("reason", ""), str(attributes.get("sought", ""))
        return EvaluatedTrial(proposal, values, tuple(map(float, effects)), trial.constraints, reason, chunk, sought)


def _slots(space: Space) -> dict[str, str]:
    return {slot.name: _digest(slot.options) for slot in space.slots}


def _digest(options: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(options)).encode()).hexdigest()[:12]


def _check_identity(kept: Mapping[str, object], wanted: Mapping[str, object], slots: Sequence[str]) -> None:
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
