"""Optuna's own samplers as proposers."""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, TPESampler
from optuna.trial import TrialState, create_trial

from igap.counterfactual.history import Floats, History, Proposal
from igap.counterfactual.quiet import allow_experimental, quiet_logs
from igap.counterfactual.samplers.base import FirstOrderScores, within
from igap.counterfactual.spaces.base import Candidate, Space


class OptunaSampler(ABC):
    """One of Optuna's samplers: a study in memory that is told what has been tried.

    Words have no order, so to the sampler they are choices; the search's own study keeps their indices.
    """

    name: ClassVar[str]
    """Its name in the registry, and the source of its proposals."""

    def __init__(self, space: Space, seed: int, n_objectives: int = 1) -> None:
        """Args: the candidates; a seed, at least 0; how many numbers a trial has."""
        self._space, self._known = space, 0
        with allow_experimental(), quiet_logs():
            self._study = optuna.create_study(directions=["maximize"] * n_objectives, sampler=self.make(seed % 2**32))
        self._distributions: dict[str, BaseDistribution] = {
            slot.name: CategoricalDistribution(tuple(range(len(slot.options)))) for slot in space.slots
        }
        self._asked: dict[Candidate, optuna.Trial] = {}

    @staticmethod
    @abstractmethod
    def make(seed: int) -> BaseSampler:
        """The sampler, as Optuna has it."""

    def __call__(self, history: History, scores: FirstOrderScores, n: int, rng: np.random.Generator) -> list[Proposal]:  # noqa: ARG002
        """The next `n` that have not been tried; fewer where the sampler keeps on repeating itself."""
        for proposal, point in zip(history.proposals[self._known :], history.points[self._known :], strict=True):
            self._tell(proposal.candidate, point)
        self._known = len(history.proposals)
        taken = {*history.seen, *self._asked}
        proposals: list[Proposal] = []
        for _ in range(4 * n):
            if len(proposals) == n:
                break
            trial = self._study.ask(self._distributions)
            asked = tuple(int(trial.params[slot.name]) for slot in self._space.slots)
            candidate = within(self._space, asked, rng)
            if candidate in taken:
                self._study.tell(trial, state=TrialState.FAIL)
                continue
            if candidate == asked:
                self._asked[candidate] = trial
            else:  # what it would have asked for has too many edits; it is told of this one as a trial of its own
                self._study.tell(trial, state=TrialState.FAIL)
            taken.add(candidate)
            proposals.append(Proposal(candidate, self.name))
        return proposals

    def _tell(self, candidate: Candidate, point: Floats) -> None:
        trial = self._asked.pop(candidate, None)
        failed = bool(np.isnan(point).any())
        if trial is not None:
            self._study.tell(trial, None if failed else point.tolist(), state=TrialState.FAIL if failed else None)
        elif not failed:
            params = {slot.name: index for slot, index in zip(self._space.slots, candidate, strict=True)}
            self._study.add_trial(create_trial(values=point.tolist(), params=params, distributions=self._distributions))


class TPE(OptunaSampler):
    """Tree-structured Parzen estimators."""

    name = "tpe"

    @staticmethod
    def make(seed: int) -> BaseSampler:
        """Optuna's, with its defaults."""
        return TPESampler(seed=seed)


class NSGA2(OptunaSampler):
    """The genetic algorithm NSGA-II."""

    name = "nsga2"

    @staticmethod
    def make(seed: int) -> BaseSampler:
        """Optuna's, with a population of 20."""
        return NSGAIISampler(seed=seed, population_size=20)


class GP(OptunaSampler):
    """Gaussian processes."""

    name = "gp"

    @staticmethod
    def make(seed: int) -> BaseSampler:
        """Optuna's, with its defaults."""
        return GPSampler(seed=seed)
