"""The whole search from Python: a study explored until its target, and the validation of its best prompt."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import pandas as pd
from optuna.storages import BaseStorage

from igap.counterfactual.config import Aggregate, Constraints, Lengths, Sign, SpaceConfig
from igap.counterfactual.evaluation import is_exact
from igap.counterfactual.identity import check_json, hash_weights, source_of
from igap.counterfactual.objective.objective import Objective
from igap.counterfactual.samplers.registry import SamplerNames
from igap.counterfactual.session import OnProgress, SearchSession
from igap.counterfactual.spaces.base import Space
from igap.counterfactual.terms import Term, check_terms
from igap.counterfactual.trials.storages import open_storage
from igap.counterfactual.trials.study import EvaluatedTrial
from igap.counterfactual.validation.optimality import Optimality, check_budget, estimate_optimality
from igap.counterfactual.validation.results import Validation
from igap.counterfactual.validation.validate import validate
from igap.counterfactual.validation.verdict import format_signed, verdict
from igap.display import markup
from igap.engine.activations import Model, borrow
from igap.engine.metrics import as_metric
from igap.errors.arguments import NotNegative, Positive, Range, Seed, checks_arguments
from igap.errors.interrupts import keep_interrupts
from igap.errors.missing import Missing
from igap.inputs.prompts import PromptPair
from igap.metrics import AnyMetric, LogitDiff


@checks_arguments
@dataclass(frozen=True, eq=False)
class SearchResult:
    """What a search found: every trial, the best corrupted prompt, and how far to believe it.

    Example:
        >>> space = {name: ["=keep"] for name in ("first", "second", "place", "verb", "object")}
        >>> space["subject"] = ["John", "Tom"]
        >>> result = search(model, pair, "0.3", space=space, until=2, control=1, clean_n=1, heldout_n=0)
        >>> result.best.corrupted == pair.corrupted, len(result.trials)
        (True, 2)
    """

    id: str
    """The study's, which stays the same when the search goes on."""
    head: str
    """What was searched for: "9.6", "L5.N1234", "9.6+9.9@S2"."""
    sampler: str
    """The one that chose the trials: never `auto`."""
    space: Space
    objective: Objective
    clean: tuple[PromptPair, ...]
    """The clean prompts, each with the corrupted prompt of its reference pair."""
    trials: tuple[EvaluatedTrial, ...]
    """Every trial, in order."""
    validation: Validation
    route: str
    """How the effects were computed: `suffix` (the model's weights) or `hooks` (the whole model)."""
    why_route: str
    """Why that way."""
    seconds: float
    cost: float
    """Forward equivalents of this process's evaluations and gradients."""
    n_cached: int
    """Candidates whose numbers an earlier search had left on disk."""
    interrupted: bool = False
    """Whether a KeyboardInterrupt ended it early."""
    optimality: Optimality | Missing | None = None
    """The share of the space's prompts that are better; None: not asked for, or `is_exact`."""

    @property
    def best(self) -> PromptPair:
        """The first clean prompt with its best corrupted one."""
        return self.validation.pairs[0]

    @property
    def n_tried(self) -> int:
        """Candidates tried: one a trial, or those of the chunks that a space was tried in as a whole."""
        chunks = [trial.chunk for trial in self.trials if trial.chunk]
        return sum(chunk.n_tried for chunk in chunks) if chunks else len(self.trials)

    @property
    def is_exact(self) -> bool:
        """True if every candidate of the space was tried, so that no other is better than the best."""
        return is_exact(self.trials, self.space)

    @property
    def best_value(self) -> float:
        """The first term's value of the best candidate: F's unit."""
        return self.validation.best.value

    @property
    def verdict(self) -> str:
        """Three lines, a sentence each: whether the component stands out, its effect holds elsewhere, and its kind."""
        return "\n".join(verdict(self.validation, self.head, self.objective))

    def to_frame(self) -> pd.DataFrame:
        """Return a row a trial, in order, with the columns of a search's `trials.csv`.

        Who proposed it, its terms, its option in each slot, effects in F's unit, why it failed.
        """
        names = [f"slot/{slot.name}" for slot in self.space.slots]
        rows: list[dict[str, object]] = []
        for number, trial in enumerate(self.trials):
            row: dict[str, object] = {"trial": number, "source": trial.proposal.source}
            row |= dict(zip(self.objective.terms, trial.values, strict=True))
            row |= {"counts": trial.is_feasible}
            row |= dict(zip(names, self.space.words(trial.proposal.candidate), strict=True))
            row |= {f"effect/{i}": effect for i, effect in enumerate(trial.effects)}
            row |= {f"violation/{name}": by for name, by in trial.violations.items()}
            if trial.chunk:
                n_tried, n_failed, n_out = trial.chunk.as_list()[2:]
                row |= {"chunk/tried": n_tried, "chunk/failed": n_failed, "chunk/out_of_bounds": n_out}
            rows.append({**row, "reason": trial.reason})
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        return f"SearchResult({'; '.join(self._facts())})"

    def _repr_html_(self) -> str:
        heading, *lines = self._facts()
        return markup.block(heading, [*self.verdict.split("\n"), *lines])

    def _facts(self) -> list[str]:
        terms, best = ", ".join(self.objective.terms), self.best
        feasible = sum(trial.is_feasible for trial in self.trials)
        metric = self.objective.f
        of = "" if metric == LogitDiff() else f" on {metric.name}"
        tried = f"{len(self.trials)} trials by {self.sampler}, {feasible} within the constraints"
        return [
            f"search for {terms} of {self.head}{of}: {tried}",
            f"best {self.objective.terms[0]} {format_signed(self.best_value)} {self.objective.unit}",
            f"clean: {best.clean}",
            f"corrupted: {best.corrupted}",
        ]


@checks_arguments
def search(
    model: Model,
    pair: PromptPair | Sequence[PromptPair],
    head: str,
    *,
    heldout: Sequence[PromptPair] | None = None,
    reference: Sequence[PromptPair] | None = None,
    space: SpaceConfig | Mapping[str, Sequence[str]] | None = None,
    objective: Term | Sequence[Term] = "ap",
    metric: AnyMetric = "logit_diff",
    sign: Sign = "abs",
    aggregate: Aggregate = "mean",
    penalty: NotNegative = 1.0,
    estimator: str = "atp",
    constraints: Constraints | None = None,
    until: Annotated[int, Range(1, 1_000_000)] = 300,
    sampler: Annotated[str, SamplerNames()] = "auto",
    batch: Annotated[int, Range(1, 100_000)] = 16,
    control: Annotated[int, Range(0, 1_000_000)] = 60,
    clean_n: Annotated[int, Range(1, 500)] = 8,
    heldout_n: Annotated[int, Range(0, 500)] = 32,
    clean_lengths: Lengths = "one",
    seed: Seed = 0,
    storage: BaseStorage | None = None,
    name: str = "igap",
    identity: Mapping[str, object] | None = None,
    remember: str | Path | None = None,
    memory_gib: Positive | None = None,
    optimality: Annotated[int, Range(1, 100_000_000)] | None = None,
    on_progress: OnProgress | None = None,
) -> SearchResult:
    """Search a space of words and rules for the corrupted prompts with the largest effect of one component.

    The same call with the same storage goes on where it stopped. After a KeyboardInterrupt it returns what it has.

    Args:
        model: A TransformerBridge, for example of `load_model`; it comes back unchanged.
        pair: The prompt pair that the search starts from, whose other clean prompts igap makes; or several, of which
            clean and held-out ones are drawn by `seed`, from those of one template. That is `space`'s, the pair's
            (`further={"template": "The {noun} near the tree"}`), or one of igap's.
        head: What is patched: a head such as "9.6", a neuron such as "L5.N1234", a component of another site such as
            "L5.resid_pre" or "9.6.q", or a set such as "9.6+9.9", at all positions, or at a span: "9.6@END". A span is
            a role of generated prompts (IO, S1, S1+1, S2, END), "last", "diff" (where a candidate differs from its
            clean prompt), or an index, a range or words of the pair's clean prompt: "9.6@10", "9.6@2-3", "9.6@Mary:2".
        heldout: Pairs with held-out prompts. None (default): others of several pairs, or generated ones.
        reference: Pairs whose clean prompts are ordinary ones, for percentiles and the component's mean. None
            (default): what is left of several pairs, or generated ones.
        space: Slots of the prompt's template to the words and rules that they offer, or a SpaceConfig. None (default):
            words and rules for every slot.
        objective: What is maximised, or several terms for a Pareto study. Default "ap", the effect in F's unit.
        metric: F, default "logit_diff". "logit", "logprob", "prob": of the answer. "prob_diff": of answer and
            distractor. "kl", "js": to the clean output. Or a function of logits `[row, vocab]` and the pair as token
            ids to one number a row.
        sign: "drop", "raise" or "abs" (default): which effect on F is wanted.
        aggregate: Over clean prompts: "mean" (default), "cvar" (mean of the worst quarter) or "min".
        penalty: For "selectivity": what one unit of the other heads' mean |AtP| takes away. Default 1.0.
        estimator: For "error": what is compared with activation patching. Default "atp"; "atp_star", "ig", "ig_zero",
            "ig_inputs", "conductance", "relp", "gim", "shapley", each with a run's default settings.
        constraints: Bounds of a candidate. None (default): the clean prompt's logit difference is above 0.
        until: Trials in all, default 300.
        sampler: How candidates are chosen, default "auto".
        batch: Candidates evaluated at once, default 16.
        control: Random trials, default 60, so that chance is measured and not assumed.
        clean_n: Clean prompts that the search sees, default 8.
        heldout_n: Clean prompts that it does not see, default 32.
        clean_lengths: "one" (default), all clean prompts have one length in tokens; or "any". Then a word is an option
            of a slot if it takes as many tokens as what stands there in every clean prompt.
        seed: Seed of everything drawn, default 0.
        storage: An Optuna storage. None (default): in memory.
        name: The study's name in it, default "igap".
        identity: What storage and cache know the model by, JSON values. None (default): a hash of its weights.
        remember: A file of numbers that searches share. None (default): no file.
        memory_gib: GiB of a pass beyond the model. None (default): 2.
        optimality: Evaluations for an estimate of how many prompts of the space are better than the best found. None
            (default): no estimate.
        on_progress: Called as trials end.

    Returns:
        Every trial, the best prompt, and its validation.

    Raises:
        InputError: An argument is invalid, no candidate is within the bounds, or the storage holds another search.
        OSError: The storage fails after the first trials were read; what it has is kept.

    Example:
        >>> space = {name: ["=keep"] for name in ("first", "second", "place", "verb", "object")}
        >>> space["subject"] = ["John", "Tom"]
        >>> result = search(model, pair, "0.3", space=space, until=2, control=1, clean_n=1, heldout_n=0)
        >>> round(result.best_value, 2)
        0.96
    """
    terms: tuple[Term, ...] = (objective,) if isinstance(objective, str) else tuple(objective)
    check_terms(terms, sampler, estimator, optimality)
    check_json(identity)
    wanted = Objective(terms, sign, aggregate, penalty, constraints or Constraints(), metric, estimator)
    keeps = storage is not None or remember is not None
    since = time.perf_counter()
    with borrow(model):
        session = SearchSession(
            model,
            pair,
            head,
            wanted,
            heldout=heldout,
            reference=reference,
            space=space,
            clean_n=clean_n,
            heldout_n=heldout_n,
            clean_lengths=clean_lengths,
            seed=seed,
            storage=open_storage("memory", Path()) if storage is None else storage,
            name=name,
            identity={**(identity or hash_weights(model)), **source_of(as_metric(metric))} if keeps else identity or {},
            remember=None if remember is None else Path(os.path.expanduser(remember)),
            memory_gib=memory_gib,
        )
        if optimality is not None and sampler != "brute" and session.space.size > until:
            check_budget(optimality, session.space.size)
        explore = partial(session.explore, until, sampler, batch, control, on_progress=on_progress)
        return explore_and_validate(session, explore, since, optimality=optimality)


def explore_and_validate(
    session: SearchSession,
    explore: Callable[[], None],
    since: float,
    *,
    interrupted: bool = False,
    validating: AbstractContextManager[object] | None = None,
    heldout_heads: bool = False,
    optimality: int | None = None,
    estimating: AbstractContextManager[Callable[[int, int], None]] | None = None,
) -> SearchResult:
    """Make the trials, then validate the best of them. Ctrl-C ends the trials: the best so far is validated.

    Args:
        session: an open search on a frozen model.
        explore: makes the trials.
        since: when the search began, as perf_counter has it.
        interrupted: whether it was interrupted before.
        validating: a block around the validation, such as a line on the terminal.
        heldout_heads: see `validate`.
        optimality: evaluations for the share of better prompts; None, or where all were tried: none.
        estimating: a block around that estimate, which is told how many evaluations of how many are made.

    Raises:
        InputError: no trial satisfies the constraints.
        KeyboardInterrupt: it was interrupted before the first trial.
    """
    try:
        with keep_interrupts():
            explore()
    except KeyboardInterrupt:
        interrupted = True
    if interrupted and not session.trials.all():
        raise KeyboardInterrupt
    with validating or nullcontext():
        trials = session.trials.all()
        validation = validate(session, trials, heldout_heads=heldout_heads)
    share: Optimality | Missing | None = None
    if optimality is not None and not interrupted and not is_exact(trials, session.space):
        with estimating or nullcontext() as on_progress:
            share = estimate_optimality(session, trials, optimality, on_progress)
    return SearchResult(
        id=session.trials.id,
        head=session.target.name,
        sampler=session.sampler,
        space=session.space,
        objective=session.objective,
        clean=session.bound.pairs,
        trials=tuple(trials),
        validation=validation,
        route=session.cached.evaluator.route,
        why_route=session.cached.evaluator.why_route,
        seconds=time.perf_counter() - since,
        cost=session.cost,
        n_cached=session.cached.n_cached,
        interrupted=interrupted,
        optimality=share,
    )
