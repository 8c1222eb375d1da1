"""A study on a model: proposals, evaluations and trials, round after round."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from igap.config import checked
from igap.counterfactual.config import Bounds, SpaceConfig
from igap.counterfactual.history import Floats, History, Proposal
from igap.counterfactual.objective.cache import Remembered
from igap.counterfactual.objective.evaluator import Evaluator, Target
from igap.counterfactual.objective.objective import Objective
from igap.counterfactual.objective.typicality import LEAST, ordinary
from igap.counterfactual.samplers.base import START, Proposer, draw
from igap.counterfactual.samplers.registry import SAMPLERS, make_sampler, samplers_for
from igap.counterfactual.spaces.base import Candidate, Filled, Space
from igap.counterfactual.spaces.prompt_list import fill_listed, listed
from igap.counterfactual.spaces.substitution import fill_substitutes, substitute
from igap.counterfactual.spaces.template import SLOTS, build, clean_prompts, fill, matching_template
from igap.counterfactual.trials.study import Trials, Tried
from igap.datasets.pair_files import read_text
from igap.errors import InputError, printable
from igap.prompts import PromptPair, encode_pair, tokenize
from igap.sites import Site, locate

_ORDINARY = 200
"""Ordinary prompts that activations are compared with."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A space, and the prompts of its kind that a search may be made on."""

    space: Space
    pairs: tuple[PromptPair, ...]
    """The pair, then others of its template, more of them than are needed: some may turn out below `min_clean`."""
    fill: Callable[[Sequence[PromptPair]], Filled]


def prepare(
    pair: PromptPair,
    tokenizer: Any,
    *,
    space: SpaceConfig | Mapping[str, Sequence[str]] | None = None,
    clean_n: int = 8,
    heldout_n: int = 32,
    seed: int = 0,
    prepend_bos: bool = False,
    device: torch.device | str = "cpu",
) -> Prepared:
    """The space for the clean prompts, without a model. Raises InputError on a pair or lists that cannot be used."""
    tokens = encode_pair(pair, tokenizer, prepend_bos=prepend_bos, n_ctx=None, n_vocab=None)
    if tokens.clean.shape != tokens.corrupted.shape:
        raise InputError(
            f"prompts.corrupted: got {tokens.corrupted.shape[1]} tokens, prompts.clean has {tokens.clean.shape[1]}; a "
            "search needs prompts of one length. Reword one of them."
        )
    if not isinstance(space, SpaceConfig):
        space = checked(SpaceConfig, {"slots": _tuples(SLOTS if space is None else space)})
    if space.kind == "slots":
        found = build(space.template, space.slots, pair, tokenizer, prepend_bos=prepend_bos, max_edits=space.max_edits)
        fills = fill
    elif space.kind == "substitute":
        found = substitute(pair, space.positions, space.vocabulary, space.max_edits, tokenizer, prepend_bos=prepend_bos)
        fills = fill_substitutes
    else:
        found = listed(pair, _prompts(space), tokenizer, prepend_bos=prepend_bos)
        fills = fill_listed
    template = found.template or matching_template(pair.clean)
    n = clean_n + heldout_n
    pairs = clean_prompts(pair, template, n if n == 1 else 2 * n, seed, tokenizer, at_least=n)

    def filling(some: Sequence[PromptPair]) -> Filled:
        return fills(found, some, tokenizer, prepend_bos=prepend_bos, device=device)

    filling(pairs)  # a rule whose word does not fit is refused now
    return Prepared(found, tuple(pairs), filling)


def _tuples(lists: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(words) for name, words in lists.items()}


def _prompts(asked: SpaceConfig) -> Sequence[str]:
    if asked.file is None:
        return asked.prompts
    text = read_text(Path(os.path.expanduser(asked.file)), printable(asked.file), item="search.space.file")
    return [line for line in text.splitlines() if line.strip()]


@dataclass(frozen=True)
class Progress:
    """How far a search is."""

    n: int
    until: int
    best: float
    """Of the first term; NaN before the first value."""
    rate: float
    """Evaluations a second, of this process."""


OnProgress = Callable[[Progress], None]


class Search:
    """A study on a model that is `frozen` meanwhile, and what its candidates are evaluated with."""

    def __init__(
        self,
        model: TransformerBridge,
        pair: PromptPair,
        head: str,
        objective: Objective,
        *,
        space: SpaceConfig | Mapping[str, Sequence[str]] | None,
        clean_n: int,
        heldout_n: int,
        seed: int,
        storage: Any,
        name: str,
        identity: Mapping[str, object],
        remember: Path | None,
        memory_gib: float | None,
    ) -> None:
        """Opens the study. Raises InputError on what cannot be, and on a storage with another study of that name."""
        self.model, self.seed, self._memory_gib = model, seed, memory_gib
        self._evaluators: list[Evaluator] = []
        self.sampler = ""
        """That chose the last trials."""
        self.target, self.objective = component(model, head), objective
        prepend_bos = bool(model.cfg.default_prepend_bos)
        prepared = prepare(
            pair, model.tokenizer, space=space, clean_n=clean_n, heldout_n=heldout_n, seed=seed,
            prepend_bos=prepend_bos, device=model.W_E.device,
        )  # fmt: skip
        self.leading = tokenize(model, pair).leading
        """The token before every prompt, as text; None: there is none."""
        pairs = _sound(model, prepared.pairs, objective.bounds.min_clean, clean_n + heldout_n)
        self.space, self.filled = prepared.space, prepared.fill(pairs[:clean_n])
        self.heldout = prepared.fill(pairs[clean_n:]) if heldout_n else None
        self._remember, self._identity = remember, identity
        study = {
            **identity,
            "head": head,
            "objective": list(objective.terms),
            "sign": objective.sign,
            "aggregate": objective.aggregate,
            "penalty": objective.penalty if "selectivity" in objective.terms else None,
            "constraints": objective.bounds.model_dump(),
            "clean prompts": [list(one.texts) for one in self.filled.pairs],
            "seed": seed,
            **({} if pair.bos == "auto" else {"bos": pair.bos}),
        }
        self.trials = Trials(storage, self.space, study, objective, name)
        self.remembered = self.remembering(self.filled)
        self.ordinary = ordinary(self.remembered.evaluator, self._ordinary_prompts(pair))
        self.remembered.ordinary = self.ordinary
        if objective.bounds.max_percentile is not None and self.ordinary is None:
            raise InputError(
                f"constraints.max_percentile: got {objective.bounds.max_percentile}, but there are fewer than {LEAST} "
                "ordinary prompts of this prompt's kind to compare with. Use a prompt that follows one of igap's IOI "
                "templates, or null."
            )

    def remembering(self, filled: Filled) -> Remembered:
        """The evaluator for these clean prompts, which looks on disk first."""
        evaluator = Evaluator(self.model, filled, self.target, memory_gib=self._memory_gib)
        self._evaluators.append(evaluator)
        return Remembered(evaluator, self._remember, self._identity)

    @property
    def cost(self) -> float:
        """Forward equivalents of all evaluations and gradients of this process."""
        return sum(evaluator.cost for evaluator in self._evaluators)

    def explore(
        self,
        until: int,
        sampler: str = "auto",
        batch: int = 16,
        control: int = 60,
        worker: int = 0,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Trials until there are `until` of them, or no candidate is left; `worker` draws numbers of its own."""
        n_terms = len(self.objective.terms)
        sampler = samplers_for(n_terms)[0] if sampler == "auto" else sampler
        if self.space.size <= until:
            sampler, control = "brute", 0
        self.sampler = sampler
        chosen, known = make_sampler(sampler, self.space, self.seed, n_terms), {}
        gradient = replace(self.objective, bounds=Bounds())

        def gains(candidate: Candidate) -> list[Floats]:
            if candidate not in known:
                known[candidate] = gradient.gains(self.remembered.evaluator, candidate)
            return known[candidate]

        control = min(control, until // 3)
        since, n_before = time.perf_counter(), None
        while True:
            history = self.trials.history()
            n = len(history.proposals)
            n_before = n if n_before is None else n_before
            if on_progress:
                best = float(np.nanmax(history.values)) if history.order else float("nan")
                on_progress(Progress(n, until, best, (n - n_before) / max(time.perf_counter() - since, 1e-9)))
            # Of what has been tried and nothing else: a search that goes on proposes what it would have proposed.
            rng = np.random.default_rng([self.seed, worker, n])
            proposals = _next(history, gains, chosen, min(batch, until - n), until, control, sampler, rng)
            if not proposals:
                return
            self.trials.add(self._evaluate(proposals), until)

    def _evaluate(self, proposals: Sequence[Proposal]) -> list[Tried]:
        measured = self.remembered.measured(self.filled.tokens([one.candidate for one in proposals]), self.objective)
        values, effects = self.objective.values(measured), self.objective.effects(measured)
        violations = {name: each.tolist() for name, each in self.objective.violations(measured).items()}
        done = []
        for i, proposal in enumerate(proposals):
            own = {name: each[i] for name, each in violations.items()}
            finite = bool(np.isfinite([*values[i], *own.values()]).all())
            done.append(
                Tried(
                    proposal,
                    tuple(map(float, values[i])) if finite else (float("nan"),) * values.shape[1],
                    tuple(effects[i].tolist()),
                    own if finite else {},
                    "" if finite else "a number is not finite",
                )
            )
        return done

    def _ordinary_prompts(self, pair: PromptPair) -> Tensor:
        """Prompts of the pair's template, as many as there are; where it follows none, the clean prompt alone."""
        template = self.space.template or matching_template(pair.clean)
        try:
            pairs = clean_prompts(pair, template, _ORDINARY, self.seed + 1, self.model.tokenizer, at_least=0)
            return torch.cat([tokenize(self.model, one).clean for one in pairs])
        except InputError:  # also where the tokenizer does not know the template's words
            return tokenize(self.model, pair).clean


def component(model: TransformerBridge, head: str) -> Target:
    """The component of this name. Raises InputError where the model has none."""
    cfg = model.cfg
    widths: dict[Site, int | None] = {"heads": cfg.n_heads, "neurons": cfg.d_mlp}
    return Target(*locate(head, cfg.n_layers, widths, item="head"))


def _sound(
    model: TransformerBridge, pairs: Sequence[PromptPair], least: float | None, n: int
) -> tuple[PromptPair, ...]:
    """The first `n` pairs whose clean F is at least `least`, the first pair among them.

    Raises InputError where the first is not, or too few are.
    """
    if least is None:
        return tuple(pairs[:n])
    tokens = [tokenize(model, pair) for pair in pairs]
    with torch.no_grad():
        logits = model(torch.cat([one.clean for one in tokens]), logits_to_keep=1)[:, -1]
    each = torch.arange(len(tokens))
    metric = logits[each, [one.answer for one in tokens]] - logits[each, [one.distractor for one in tokens]]
    if not metric[0] >= least:
        raise InputError(
            f"constraints.min_clean: got {least}, but F of prompts.clean is {metric[0].item():.3f} logits: the model "
            "does not prefer the answer there. Use another pair, or constraints.min_clean=null."
        )
    sound = [pair for pair, value in zip(pairs, metric.tolist(), strict=True) if value >= least]
    if len(sound) < n:
        raise InputError(
            f"constraints.min_clean: got {least}, which {len(sound)} of {len(pairs)} clean prompts reach, wanted {n} "
            "(clean.n + heldout.n). Use fewer, or a lower bound."
        )
    return tuple(sound[:n])


def _next(
    tried: History, gains: Callable[[Candidate], list[Floats]], chosen: Proposer, n: int, until: int, control: int,
    sampler: str, rng: np.random.Generator,
) -> list[Proposal]:  # fmt: skip
    """The next batch: random starts first, the rest of the random control last, the sampler's between them."""
    if n <= 0:
        return []
    n_tried = len(tried.proposals)
    n_random = sum(one.source in ("start", "random") for one in tried.proposals)
    if not SAMPLERS[sampler].random_trials:
        return chosen(tried, gains, n, rng)
    if n_tried < START:
        return draw(tried, min(n, START - n_tried), rng, "start")
    left = until - n_tried - max(0, control - n_random)
    if left <= 0:
        return draw(tried, n, rng)
    return chosen(tried, gains, min(n, left), rng) or draw(tried, n, rng)
