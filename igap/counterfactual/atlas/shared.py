"""One search for all heads: every prompt that is tried is a candidate for each of them.

AtP of all heads takes one run of a corrupted prompt, and chooses what is tried next, for one head after the other.
What is reported is AP: of each head in the few prompts where its AtP is largest, and of all heads in those prompts that
together show most.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64
from optuna.storages import BaseStorage

from igap.counterfactual.atlas.atlas import BY_HAND, SHARE, Atlas
from igap.counterfactual.atlas.cover import fewest_prompts
from igap.counterfactual.history import Floats, History, Proposal
from igap.counterfactual.objective.members import MembersEvaluator
from igap.counterfactual.quiet import quiet_logs
from igap.counterfactual.samplers.base import draw
from igap.counterfactual.samplers.registry import make_sampler
from igap.counterfactual.session import OnProgress, Progress, SearchSession
from igap.counterfactual.spaces.base import BoundSpace, Candidate
from igap.counterfactual.target import Target
from igap.counterfactual.trials.storages import open_storage
from igap.counterfactual.trials.study import EvaluatedTrial, TrialStore
from igap.errors import InputError
from igap.errors.interrupts import keep_interrupts

VERIFIED = 3
"""Prompts with the largest |AtP| of a head in which its AP is measured."""
_LIKELY = 0.97
"""Share of what all prompts show by AtP that those in which all heads are patched show."""


STUDY = "shared"
"""What a study of such a search is known by, in the place of an objective."""


def open_trials(session: SearchSession, target: Target, storage: BaseStorage, name: str = "igap") -> TrialStore:
    """The trials of a search for all members of the target; raises InputError on a study of another search.

    A trial has the sum over heads of |AtP| as its value, AtP of every head as its effects, and the head that it was
    proposed for.
    """
    target = in_order(target)
    every = session.model.cfg.n_layers * session.model.cfg.n_heads == len(target.members)
    heads = f"all{target.at}" if every else " ".join(_names(target))
    identity = {**session.study_identity, "head": heads, "objective": [STUDY]}
    return TrialStore(storage, session.space, identity, name=name)


def search_together(
    session: SearchSession,
    target: Target,
    until: int,
    sampler: str,
    batch: int,
    control: int,
    on_progress: OnProgress | None = None,
    *,
    trials: TrialStore | None = None,
) -> Atlas:
    """Search for prompts that show any of the heads, and return the atlas of those that do.

    After a KeyboardInterrupt it is of what has been tried. The same call with the same trials goes on.

    Args:
        session: of one of the heads; its space, clean prompts, held-out prompts and metric are those of all.
        target: all of the heads, at the span that is patched.
        until: prompts that are tried.
        sampler: what proposes them, a registered one; for one head after the other, from what is known of that head.
        batch: prompts that are proposed at once.
        control: prompts that are drawn at random first.
        on_progress: called before every batch, with the sum over heads of the largest |AtP| as the best value.
        trials: of `open_trials`; None (default): in memory.
    """
    if any(len(each.groups) > 1 for each in (session.bound, session.heldout) if each is not None):
        raise InputError(
            "atlas: got shared with clean prompts or answers of several lengths, which do not share its passes. Use "
            "atlas=true, or clean.lengths=one."
        )
    target, bound = in_order(target), session.bound.unshare()
    store = trials or open_trials(session, target, open_storage("memory", Path()))
    pool, interrupted = _Pool(session, target, store), False
    try:
        with keep_interrupts():
            pool.explore(until, sampler, batch, min(control, until), on_progress)
    except KeyboardInterrupt:
        if not pool.n:
            raise
        interrupted = True
    best, alone = pool.verify()
    if not alone.any():
        raise InputError("head: got heads that no prompt tried moves. Use other words, or a later span.")
    exact = _evaluator(session, bound, target)
    reference = torch.cat([session.tokenize(pair).corrupted for pair in bound.pairs])
    columns = [_effects(exact, reference[:, None])[0]]
    named = dict(sorted(((each, head) for head, each in enumerate(best)), key=lambda at: abs(alone[at[1]])))
    prompts = list(named)
    likely = np.abs(pool.estimates_of(prompts))
    order = list(fewest_prompts(likely, _LIKELY).chosen)
    order += [place for place in np.argsort(-likely.sum(0)).tolist() if place not in order]
    n = len(fewest_prompts(likely, _LIKELY).chosen)
    chosen: list[Candidate] = []
    # AtP is wrong about some: prompts are added until the measured ones show enough.
    while len(chosen) < len(prompts):
        more = [prompts[place] for place in order[len(chosen) : max(n, len(chosen) + 1)]]
        columns += list(_effects(exact, bound.tokens(more)))
        chosen += more
        shown = np.abs(columns).max(0)
        if shown.sum() >= SHARE * np.maximum(shown, np.abs(alone)).sum():
            break
    heldout, cost = None, pool.cost + exact.cost
    if session.heldout is not None:
        others = session.heldout.unshare()
        evaluator = _evaluator(session, others, target)
        measured = _effects(evaluator, others.tokens(chosen))
        cost += evaluator.cost
        heldout = np.stack([np.full(len(best), np.nan), *measured], 1)
    names = [name.partition("@")[0] for name in _names(target)]
    rules = [session.space.rule(each) for each in best]
    return Atlas(
        heads=tuple(names),
        prompts=(BY_HAND, *(names[named[each]] for each in chosen)),
        effects=np.stack(columns, 1),
        heldout=heldout,
        space=session.space,
        candidates=(None, *chosen),
        corrupted=(bound.pairs[0].corrupted, *(bound.texts(each)[0] for each in chosen)),
        unit=session.objective.unit,
        alone=alone,
        rules=tuple(rules),
        n_tried=pool.n,
        cost=cost,
        interrupted=interrupted,
    )


def in_order(target: Target) -> Target:
    """The target with its members in the model's order, in which a trial has their effects."""
    return replace(target, members=tuple(sorted(target.members)))


def _names(target: Target) -> list[str]:
    """The names of its members, each as if it were searched alone."""
    return [replace(target, members=(member,), every=False).name for member in target.members]


class _Pool:
    """The prompts tried so far, with the AtP effect of every head in each."""

    def __init__(self, session: SearchSession, target: Target, trials: TrialStore) -> None:
        self._session, self._trials, self._names = session, trials, _names(target)
        self._evaluator = _evaluator(session, session.bound, target)
        self._tried: list[EvaluatedTrial] = []
        self._estimates = np.empty((0, len(self._names)))
        self._read()

    @property
    def n(self) -> int:
        """Prompts tried."""
        return len(self._tried)

    @property
    def cost(self) -> float:
        """Forward equivalents that this process's took."""
        return self._evaluator.cost

    def _read(self) -> None:
        """Take in the trials that have come."""
        new = self._trials.all()[self.n :]
        self._tried += new
        if new:
            self._estimates = np.concatenate([self._estimates, np.array([trial.effects for trial in new])])

    @quiet_logs()
    def explore(self, until: int, sampler: str, batch: int, control: int, on_progress: OnProgress | None) -> None:
        """Try prompts until there are so many, or no other. What comes next depends on the trials and nothing else."""
        space, seed = self._session.space, self._session.seed
        propose, most = make_sampler(sampler, space, seed, 1), min(until, space.size)
        order = np.random.default_rng(seed).permutation(len(self._names)).tolist()
        self._trials.expect(most)
        while (n := self.n) < most:
            if on_progress:
                shown = float(np.abs(self._estimates).max(0).sum()) if n else float("nan")
                on_progress(Progress(n, until, shown, 0.0))
            rng, sought = np.random.default_rng([seed, n]), ""
            if n < control:
                new = draw(self._history(0), min(batch, control - n), rng)
            else:
                last = self._tried[-1].sought if n else ""
                head = order[(order.index(self._names.index(last)) + 1) % len(order) if last else 0]
                sought, scores = self._names[head], Scores(self._evaluator, head)
                new = propose(self._history(head), scores, min(batch, until - n), rng)
            if not new:
                return
            tokens = self._session.bound.tokens([each.candidate for each in new])
            made = self._evaluator.estimates_of_all(tokens).double().mean(1).tolist()
            self._trials.add([_trial(*each, sought) for each in zip(new, made, strict=True)], until)
            self._read()

    def verify(self) -> tuple[list[Candidate], Float64[np.ndarray, " head"]]:
        """Each head's best prompt and AP effect there, of those with its largest |AtP|."""
        asked: dict[int, list[int]] = {}
        for head, column in enumerate(np.abs(self._estimates).T):
            for place in np.argsort(-column, kind="stable")[:VERIFIED].tolist():
                asked.setdefault(place, []).append(head)
        best, effects = [0] * len(self._names), np.zeros(len(self._names))
        for place, heads in asked.items():
            tokens = self._session.bound.tokens([self._tried[place].proposal.candidate])
            made = self._evaluator.effects_of(tokens, heads).double().mean(1)[0].tolist()
            for head, effect in zip(heads, made, strict=True):
                if abs(effect) >= abs(effects[head]):
                    best[head], effects[head] = place, effect
        return [self._tried[place].proposal.candidate for place in best], effects

    def estimates_of(self, candidates: Sequence[Candidate]) -> Float64[np.ndarray, "head prompt"]:
        """AtP of every head in some of the prompts."""
        places = {trial.proposal.candidate: place for place, trial in enumerate(self._tried)}
        return np.asarray(self._estimates[[places[each] for each in candidates]].T)

    def _history(self, head: int) -> History:
        """What is known of one head; what was proposed for another is a random start to it."""
        name = self._names[head]
        proposals = [
            trial.proposal if trial.sought == name else Proposal(trial.proposal.candidate, "random")
            for trial in self._tried
        ]
        estimates = self._estimates[:, head]
        sides = np.where(estimates < 0, -1.0, 1.0)
        return History(self._session.space, tuple(proposals), np.abs(estimates)[:, None], sides)


def _trial(proposal: Proposal, effects: Sequence[float], sought: str) -> EvaluatedTrial:
    value = float(np.abs(effects).sum())
    finite = bool(np.isfinite(value))
    reason = "" if finite else "a number is not finite"
    return EvaluatedTrial(proposal, (value if finite else float("nan"),), tuple(effects), {}, reason, None, sought)


class Scores:
    """First-order scores of one head's |mean AP effect|."""

    def __init__(self, evaluator: MembersEvaluator, head: int) -> None:
        """`head` is its place in the evaluator's target."""
        self._evaluator, self._head = evaluator, head
        self._known: dict[Candidate, list[Floats]] = {}

    def __call__(self, candidate: Candidate, term: int = 0, /) -> list[Floats]:
        """An array a slot; there is one term."""
        assert term == 0
        if candidate not in self._known:
            evaluator, head = self._evaluator, self._head
            sign = evaluator.estimates_of_all(evaluator.bound.tokens([candidate]))[0, :, head].mean().sign()
            weights = torch.full((len(evaluator.bound.pairs),), float(sign) / len(evaluator.bound.pairs))
            scores = evaluator.first_order_scores(candidate, weights, head)
            self._known[candidate] = [np.asarray(each.double().numpy()) for each in scores]
        return self._known[candidate]


def _evaluator(session: SearchSession, bound: BoundSpace, target: Target) -> MembersEvaluator:
    return MembersEvaluator(session.model, bound, target, metric=session.objective.f, memory_gib=session.memory_gib)


def _effects(evaluator: MembersEvaluator, tokens: torch.Tensor) -> Float64[np.ndarray, "prompt head"]:
    """AP of every head, means over the clean prompts."""
    made = evaluator.effects_of(tokens, range(len(evaluator.target.members)))
    return np.asarray(made.double().mean(1).numpy())
