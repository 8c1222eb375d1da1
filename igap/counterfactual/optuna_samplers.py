"""Optuna's own samplers as proposers."""

from collections.abc import Callable

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, TPESampler
from optuna.trial import TrialState, create_trial

from igap.counterfactual.proposals import Floats, Gains, History, Proposal, within
from igap.counterfactual.space import Candidate, Space
from igap.counterfactual.storages import experimental

SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed),
    "nsga2": lambda seed: NSGAIISampler(seed=seed, population_size=20),
    "gp": lambda seed: GPSampler(seed=seed),
}


class OptunaSampler:
    """One of Optuna's samplers: a study in memory that is told what has been tried.

    Words have no order, so to the sampler they are choices; the search's own study keeps their indices.
    """

    def __init__(self, name: str, space: Space, seed: int, n_terms: int = 1) -> None:
        """A name in SAMPLERS."""
        self._name, self._space, self._known = name, space, 0
        with experimental():
            self._study = optuna.create_study(directions=["maximize"] * n_terms, sampler=SAMPLERS[name](seed % 2**32))
        self._distributions: dict[str, BaseDistribution] = {
            slot.name: CategoricalDistribution(tuple(range(len(slot.options)))) for slot in space.slots
        }
        self._asked: dict[Candidate, optuna.Trial] = {}

    def __call__(self, tried: History, gains: Gains, n: int, rng: np.random.Generator) -> list[Proposal]:  # noqa: ARG002
        """The next `n` that have not been tried; fewer where the sampler keeps on repeating itself."""
        for proposal, point in zip(tried.proposals[self._known :], tried.points[self._known :], strict=True):
            self._tell(proposal.candidate, point)
        self._known = len(tried.proposals)
        found: list[Proposal] = []
        for _ in range(4 * n):
            if len(found) == n:
                break
            trial = self._study.ask(self._distributions)
            asked = tuple(int(trial.params[slot.name]) for slot in self._space.slots)
            candidate = within(self._space, asked, rng)
            if candidate in tried.seen or candidate in self._asked or any(candidate == one.candidate for one in found):
                self._study.tell(trial, state=TrialState.FAIL)
                continue
            if candidate == asked:
                self._asked[candidate] = trial
            else:  # what it would have asked for has too many edits; it is told of this one as a trial of its own
                self._study.tell(trial, state=TrialState.FAIL)
            found.append(Proposal(candidate, self._name))
        return found

    def _tell(self, candidate: Candidate, point: Floats) -> None:
        trial = self._asked.pop(candidate, None)
        failed = bool(np.isnan(point).any())
        if trial is not None:
            self._study.tell(trial, None if failed else point.tolist(), state=TrialState.FAIL if failed else None)
        elif not failed:
            params = {slot.name: index for slot, index in zip(self._space.slots, candidate, strict=True)}

            self._study.add_trial(create_trial(values=point.tolist(), params=params, distributions=self._distributions))
