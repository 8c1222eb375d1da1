"""A search on a model: proposals, evaluations and trials, round after round."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformer_lens.model_bridge import TransformerBridge

from igap.counterfactual.clean_prompts import check_answers, choose_prompts
from igap.counterfactual.config import Constraints, Lengths, SpaceConfig
from igap.counterfactual.evaluation import EvaluatedBatch, evaluate_chunk
from igap.counterfactual.history import Floats, History, Proposal
from igap.counterfactual.objective.cache import CachedEvaluator
from igap.counterfactual.objective.downstream import Downstream, fit_downstream
from igap.counterfactual.objective.objective import Objective
from igap.counterfactual.objective.parts import AnyEvaluator, make_evaluator
from igap.counterfactual.objective.patch import check_reaches, resolve
from igap.counterfactual.objective.typicality import MIN_PROMPTS, Distribution, Ordinary, by_shape, fit_distributions
from igap.counterfactual.quiet import quiet_logs
from igap.counterfactual.samplers.base import START, FirstOrderScores, Proposer, draw
from igap.counterfactual.samplers.registry import SAMPLERS, make_sampler, samplers_for
from igap.counterfactual.spaces.base import BoundSpace, Candidate
from igap.counterfactual.spaces.prepare import MOST_ORDINARY, prepare
from igap.counterfactual.spaces.template import find_template, generate_clean_prompts
from igap.counterfactual.target import Target, locate_target
from igap.counterfactual.trials.chunks import check_exhaustible, is_complete, next_chunk
from igap.counterfactual.trials.study import EvaluatedTrial, TrialStore
from igap.engine.metrics import Custom
from igap.errors import InputError
from igap.inputs.prompts import PromptPair, TokenPair, tokenize
from igap.models.families import widths_of_model


@dataclass(frozen=True)
class Progress:
    """The progress of a search."""

    n: int
    """Trials so far."""
    until: int
    """Trials in all."""
    best: float
    """The best value of the first term; NaN before the first value."""
    rate: float
    """Evaluations a second, of this process."""


OnProgress = Callable[[Progress], None]


class SearchSession:
    """An open search: the clean prompts and space it is made on, its trials, and the evaluator of its candidates.

    The model is `frozen` as long as the session is used.
    """

    def __init__(
        self,
        model: TransformerBridge,
        pair: PromptPair | Sequence[PromptPair],
        head: str,
        objective: Objective,
        *,
        space: SpaceConfig | Mapping[str, Sequence[str]] | None,
        heldout: Sequence[PromptPair] | None = None,
        reference: Sequence[PromptPair] | None = None,
        clean_n: int,
        heldout_n: int,
        clean_lengths: Lengths = "one",
        seed: int,
        storage: Any | Callable[[], Any],
        name: str | Callable[[Any], str],
        identity: Mapping[str, object],
        remember: Path | None,
        memory_gib: float | None,
    ) -> None:
        """Open the study, or make it, once nothing else can be refused.

        The arguments are those of `igap.search`; the storage, and the study's name in it, may be functions. Raises
        InputError on an invalid argument, and on a storage with another study of that name."""
        self.model, self.seed, self.memory_gib = model, seed, memory_gib
        self._evaluators: list[AnyEvaluator] = []
        self._downstream: Downstream | None = None
        self.sampler = ""
        """The one that chose the last trials."""
        self.objective, examines = objective, "error" in objective.terms
        target = locate_target(head, model.cfg.n_layers, widths_of_model(model), each=examines)
        objective.check(target, model.cfg.n_layers)
        prepared = prepare(
            pair,
            model.tokenizer,
            space=space,
            heldout=heldout,
            reference=reference,
            clean_n=clean_n,
            heldout_n=heldout_n,
            lengths=clean_lengths,
            several=objective.f.takes_several,
            seed=seed,
            prepend_bos=bool(model.cfg.default_prepend_bos),
            device=model.W_E.device,
        )
        pair = prepared.pairs[0]
        tokens = self.tokenize(pair)
        self.target, self.leading = resolve(target, tokens), tokens.leading
        """The token before every prompt, as text; None: there is none."""
        check_answers(prepared.every, self.tokenize, objective)
        prompts = choose_prompts(model, prepared, objective.constraints.min_clean, clean_n, heldout_n)
        self.space, self.bound = prepared.space, prepared.bind(prompts.clean)
        self.heldout = prepared.bind(prompts.heldout) if heldout_n else None
        self.ordinary = prompts.ordinary
        """Pairs whose clean prompts are ordinary ones; None: those of igap's generator."""
        self.swapped, self.neutral = prepared.swapped, prepared.neutral
        for each in filter(None, (self.bound, self.heldout)):
            check_reaches(self.target, each, self.tokenize, model.cfg.n_layers)
        metric = "custom" if isinstance(objective.f, Custom) else objective.f.name
        identity = {**identity, **({} if metric == "logit_diff" else {"metric": metric})}
        self._remember, self._identity = remember, identity
        self.study_identity = study = {
            **identity,
            "head": self.target.name,
            "objective": list(objective.terms),
            "sign": objective.sign,
            "aggregate": objective.aggregate,
            "penalty": objective.penalty if "selectivity" in objective.terms else None,
            **({"estimator": objective.estimator} if examines else {}),
            # Studies from before `max_downstream` do not have it.
            "constraints": objective.constraints.model_dump(
                exclude={"max_downstream"} if objective.constraints.max_downstream is None else None
            ),
            # Once it was the largest percentile of a layer.
            **({"what follows": "percentile of the farthest layer's distance"} if objective.asks_downstream else {}),
            "clean prompts": [list(each.texts) for each in self.bound.pairs],
            "seed": seed,
            **({} if pair.bos == "auto" else {"bos": pair.bos}),
            **self._bounds_of_ordinary(),
        }
        self.cached = self.cached_evaluator(self.bound)
        self._typical = self._typical_prompts(pair, any_length=clean_lengths == "any")
        self.distribution = None if examines and target.single is None else self.distribution_of(self.cached.evaluator)
        self.cached.distribution = self.distribution
        limits = objective.constraints
        if limits.max_percentile is not None and self.distribution is None:
            raise _too_few_ordinary(f"constraints.max_percentile: got {limits.max_percentile}", "null")
        if objective.asks_downstream:
            self._downstream = self.cached.downstream = self.downstream_of(self.cached.evaluator)
            if self._downstream is None and limits.max_downstream is not None:
                raise _too_few_ordinary(f"constraints.max_downstream: got {limits.max_downstream}", "null")
            if self._downstream is None:
                raise _too_few_ordinary("objective: got downstream", "leave it out")
        # Last of all: no refusal leaves an empty study behind.
        opened = storage() if callable(storage) else storage
        self.trials = TrialStore(opened, self.space, study, objective, name(opened) if callable(name) else name)

    def tokenize(self, pair: PromptPair) -> TokenPair:
        """The pair's tokens; an answer may be several where the metric knows such."""
        return tokenize(self.model, pair, several=self.objective.f.takes_several)

    def downstream_of(self, evaluator: AnyEvaluator) -> Downstream | None:
        """The distributions of what follows the evaluator's target in ordinary runs; None: of too few prompts.

        Those of the search's own target are known where trials asked for them.
        """
        known = self._downstream if evaluator.target == self.target else None
        return known or fit_downstream(evaluator, *self._typical.values())

    def distribution_of(self, evaluator: AnyEvaluator) -> Distribution | None:
        """The distribution of the evaluator's target over ordinary prompts; None where there are too few."""
        return fit_distributions(evaluator, self._typical)

    def cached_evaluator(self, bound: BoundSpace, target: Target | None = None) -> CachedEvaluator:
        """The evaluator for these clean prompts, which looks on disk first; of the search's target or another."""
        evaluator = make_evaluator(
            self.model, bound, target or self.target, metric=self.objective.f, memory_gib=self.memory_gib
        )
        self._evaluators.append(evaluator)
        cached = CachedEvaluator(evaluator, self._remember, self._identity)
        cached.downstream = self._downstream
        return cached

    @property
    def cost(self) -> float:
        """Forward equivalents of all evaluations and gradients of this process."""
        return sum(evaluator.cost for evaluator in self._evaluators)

    @quiet_logs()
    def explore(
        self,
        until: int,
        sampler: str = "auto",
        batch: int = 16,
        control: int = 60,
        worker: int = 0,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Add trials until there are `until` of them, or no candidate is left.

        Args:
            until: trials in all, those of other workers among them.
            sampler: a registered sampler, or auto.
            batch: candidates that are proposed and evaluated at once.
            control: trials that are drawn at random, a third of `until` at most.
            worker: each worker of a study draws random numbers of its own.
            on_progress: called before every batch.

        A space that is not larger than `until` is tried as a whole, by the sampler "brute"; a larger one only where
        that is asked for, and then a trial is the best of many candidates.

        Raises:
            InputError: "brute" of a space that is too large for it. OSError: the storage has failed.
        """
        n_terms = len(self.objective.terms)
        sampler = samplers_for(n_terms, gradient=self.objective.follows_gradient)[0] if sampler == "auto" else sampler
        if self.space.size <= until:
            sampler, control = "brute", 0
        self.sampler = sampler
        if until:
            self.trials.expect(min(until, self.space.size))
        if sampler == "brute" and self.space.size > until:
            check_exhaustible(self.space.size, until, n_terms)
            self._explore_chunks(until, worker, on_progress)
            return
        if is_complete(trial.chunk for trial in self.trials.all() if trial.chunk):
            return
        propose = make_sampler(sampler, self.space, self.seed, n_terms)
        known: dict[tuple[Candidate, int], list[Floats]] = {}
        unconstrained = replace(self.objective, constraints=Constraints())

        def first_order_scores(candidate: Candidate, term: int = 0) -> list[Floats]:
            if (candidate, term) not in known:
                known[candidate, term] = unconstrained.first_order_scores(self.cached.evaluator, candidate, term)
            return known[candidate, term]

        control = min(control, until // 3)
        since, n_before = time.perf_counter(), None
        while True:
            history = self.trials.history()
            n = len(history.proposals)
            n_before = n if n_before is None else n_before
            if on_progress:
                best = float(np.fmax.reduce(history.values, initial=np.nan))
                on_progress(Progress(n, until, best, (n - n_before) / max(time.perf_counter() - since, 1e-9)))
            # Seeded by the trials and nothing else: a search that goes on proposes what it would have proposed.
            rng = np.random.default_rng([self.seed, worker, n])
            proposals = _next_proposals(
                history,
                first_order_scores,
                propose,
                min(batch, until - n),
                n_own=until
                - n
                - max(0, control - self.trials.count("start", "random")),  # the random control comes last
                random_trials=SAMPLERS[sampler].random_trials,
                rng=rng,
            )
            if not proposals:
                return
            self.trials.add(self._evaluate(proposals), until)

    def _explore_chunks(self, until: int, worker: int, on_progress: OnProgress | None) -> None:
        """Try the whole space, a trial for each of its chunks."""
        since, n_tried = time.perf_counter(), 0
        while True:
            trials = self.trials.all()
            chunks = [trial.chunk for trial in trials if trial.chunk]
            if on_progress:
                best = max((trial.value for trial in trials if trial.is_feasible), default=float("nan"))
                rate = n_tried / max(time.perf_counter() - since, 1e-9)
                on_progress(Progress(len(trials), until, best, rate))
            chunk = next_chunk(self.space.size, chunks, until - len(trials), worker, [self.seed, worker, len(trials)])
            if chunk is None:
                return
            self.trials.add([evaluate_chunk(self.space, self.evaluate, chunk)], until)
            first, behind = chunk.ends(self.space.size)
            n_tried += behind - first

    def evaluate(self, candidates: Sequence[Candidate], *, remember: bool = False) -> EvaluatedBatch:
        """The candidates' values and what they violate; with `remember` from the file of numbers, and into it."""
        tokens = self.bound.tokens(candidates)
        measurements = self.cached.measure(tokens, self.objective, remember=remember)
        violations = self.objective.violations(measurements)
        return EvaluatedBatch(
            candidates,
            self.objective.values(measurements),
            self.objective.effects(measurements),
            {name: np.asarray(each, dtype=np.float64) for name, each in violations.items()},
            (tokens != self.bound.clean[:, None]).any(-1).any(0).cpu().numpy(),
        )

    def _evaluate(self, proposals: Sequence[Proposal]) -> list[EvaluatedTrial]:
        batch = self.evaluate([proposal.candidate for proposal in proposals], remember=True)
        return [batch.trial(i, proposal) for i, proposal in enumerate(proposals)]

    def _bounds_of_ordinary(self) -> dict[str, str]:
        """What percentiles of trials depend on beside the clean prompts: ordinary prompts that were given."""
        asked = self.objective.asks_downstream or self.objective.constraints.max_percentile is not None
        if self.ordinary is None or not asked:
            return {}
        texts = "\n".join(each.clean for each in self.ordinary)
        return {"ordinary prompts": hashlib.sha256(texts.encode()).hexdigest()[:12]}

    def _typical_prompts(self, pair: PromptPair, *, any_length: bool) -> Ordinary:
        """Ordinary prompts: those given, or of the pair's template; where it follows none, the clean prompt alone."""
        if self.ordinary is not None:
            return by_shape(list(map(self.tokenize, self.ordinary or [pair])))
        template = self.space.template or find_template(pair.clean)
        try:
            pairs = generate_clean_prompts(
                pair, template, MOST_ORDINARY, self.seed + 1, self.model.tokenizer, at_least=0, any_length=any_length
            )
            return by_shape(list(map(self.tokenize, pairs)))
        except InputError:  # also where the tokenizer does not know the template's words
            return by_shape([self.tokenize(pair)])


def _too_few_ordinary(asked: str, otherwise: str) -> InputError:
    return InputError(
        f"{asked}, but there are fewer than {MIN_PROMPTS} ordinary prompts of this prompt's kind to compare with. Use "
        f"a prompt that follows one of igap's IOI templates, a reference.file with more prompts, or {otherwise}."
    )


def _next_proposals(
    history: History,
    first_order_scores: FirstOrderScores,
    propose: Proposer,
    n: int,
    *,
    n_own: int,
    random_trials: bool,
    rng: np.random.Generator,
) -> list[Proposal]:
    """The next batch of at most `n`: random starts first, the rest of the random control last, between them `propose`.

    `n_own` is how many trials are left to `propose`; without `random_trials` all are.
    """
    if n <= 0:
        return []
    if not random_trials:
        return propose(history, first_order_scores, n, rng)
    n_tried = len(history.proposals)
    if n_tried < START:
        return draw(history, min(n, START - n_tried), rng, "start")
    if n_own <= 0:
        return draw(history, n, rng)
    return propose(history, first_order_scores, min(n, n_own), rng) or draw(history, n, rng)
