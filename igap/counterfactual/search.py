"""The search: proposals, evaluations and trials, round after round, and the certificate of the best."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from optuna.storages import BaseStorage, InMemoryStorage
from transformer_lens.model_bridge import TransformerBridge

from igap.counterfactual.certificate import Certificate, certify
from igap.counterfactual.evaluation import Evaluator, Measure, Target
from igap.counterfactual.objectives import Aggregate, Objective, Sign
from igap.counterfactual.proposals import PROPOSERS, START, Floats, History, Proposal, Proposer, draw
from igap.counterfactual.space import Candidate, Filled, Space, build, clean_prompts, fill
from igap.counterfactual.study import OptunaSampler, Trials, Tried, history
from igap.errors import InputError
from igap.prompts import PromptPair, encode_pair
from igap.runs import frozen
from igap.sites import Site, locate

SLOTS: Mapping[str, Sequence[str]] = {
    "first": ["names"],
    "second": ["names"],
    "subject": ["names", "animals"],
    "place": ["places"],
    "verb": ["verbs"],
    "object": ["objects"],
}
"""The default space: words for every slot of the notebook's template."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A space, and the clean prompts that it is searched and tried on."""

    filled: Filled
    heldout: Filled | None


def prepare(
    pair: PromptPair,
    tokenizer: Any,
    *,
    slots: Mapping[str, Sequence[str]] = SLOTS,
    template: str | None = None,
    clean_n: int = 8,
    heldout_n: int = 32,
    seed: int = 0,
    prepend_bos: bool = False,
    device: torch.device | str = "cpu",
) -> Prepared:
    """The space for the clean prompts, without a model. Raises InputError on a pair or lists that cannot be used."""
    encode_pair(pair, tokenizer, prepend_bos=prepend_bos, n_ctx=None, n_vocab=None)
    space = build(template, slots, pair, tokenizer, prepend_bos=prepend_bos)
    pairs = clean_prompts(pair, space, clean_n + heldout_n, seed, tokenizer)
    filled = fill(space, pairs[:clean_n], tokenizer, prepend_bos=prepend_bos, device=device)
    rest = pairs[clean_n:]
    return Prepared(filled, fill(space, rest, tokenizer, prepend_bos=prepend_bos, device=device) if rest else None)


@dataclass(frozen=True)
class Progress:
    """How far a search is."""

    n: int
    until: int
    best: float
    """Logits; NaN before the first value."""
    rate: float
    """Evaluations a second, of this process."""


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, eq=False)
class SearchResult:
    """What a search found."""

    space: Space
    clean: tuple[PromptPair, ...]
    """The clean prompts, each with the corrupted prompt made by hand."""
    tried: tuple[Tried, ...]
    """Every trial, in order."""
    certificate: Certificate
    route: str
    """How the effects were computed: `suffix` (the model's weights) or `hooks` (the whole model)."""
    seconds: float
    cost: float
    """Forward equivalents of this process's evaluations and gradients."""

    @property
    def best(self) -> PromptPair:
        """The first clean prompt with its best corrupted one."""
        return self.certificate.pairs[0]

    @property
    def best_value(self) -> float:
        """The objective of the best candidate, in logits."""
        return max(one.value for one in self.tried if one.value == one.value)


def search(
    model: TransformerBridge,
    pair: PromptPair,
    head: str,
    *,
    slots: Mapping[str, Sequence[str]] = SLOTS,
    template: str | None = None,
    objective: Measure = "ap",
    sign: Sign = "abs",
    aggregate: Aggregate = "mean",
    until: int = 300,
    sampler: str = "hybrid",
    batch: int = 16,
    control: int = 60,
    clean_n: int = 8,
    heldout_n: int = 32,
    seed: int = 0,
    storage: BaseStorage | None = None,
    checkpoint: str | None = None,
    memory_gib: float | None = None,
    on_progress: OnProgress | None = None,
) -> SearchResult:
    """The corrupted prompts, of a space of words for a template's slots, for which a component's effect is largest.

    `until` counts trials in the storage: the same call with the same storage goes on. `control` of them are random, so
    that chance is measured and not assumed. Interrupted (KeyboardInterrupt), it ends with what there is. `checkpoint`
    is what a storage knows the model by. Raises ValueError on what cannot be, and on a storage with another search.
    """
    target = component(model, head)
    wanted = Objective(objective, "abs" if objective == "disagreement" else sign, aggregate)
    prepend_bos = bool(model.cfg.default_prepend_bos)
    prepared = prepare(
        pair,
        model.tokenizer,
        slots=slots,
        template=template,
        clean_n=clean_n,
        heldout_n=heldout_n,
        seed=seed,
        prepend_bos=prepend_bos,
        device=model.W_E.device,
    )
    filled, space = prepared.filled, prepared.filled.space
    identity = {
        "model": checkpoint,
        "head": head,
        "objective": [objective, wanted.sign, aggregate],
        "clean prompts": [list(one.texts) for one in filled.pairs],
        "seed": seed,
    }
    trials = Trials(storage or InMemoryStorage(), space, identity)
    since = time.perf_counter()
    with frozen(model):
        evaluator = Evaluator(model, filled, target, memory_gib=memory_gib)
        try:
            explore(evaluator, wanted, trials, until, sampler, batch, control, seed, on_progress)
        except KeyboardInterrupt:
            if not trials.tried():
                raise
        tried = trials.tried()
        certificate = certify(
            model,
            filled,
            prepared.heldout,
            target,
            wanted,
            tried,
            prepend_bos=prepend_bos,
            memory_gib=memory_gib,
            seed=seed,
        )
    return SearchResult(
        space=space,
        clean=filled.pairs,
        tried=tuple(tried),
        certificate=certificate,
        route=evaluator.route,
        seconds=time.perf_counter() - since,
        cost=evaluator.cost,
    )


def component(model: TransformerBridge, head: str) -> Target:
    """The component of this name. Raises InputError where the model has none."""
    cfg = model.cfg
    widths: dict[Site, int | None] = {"heads": cfg.n_heads, "neurons": cfg.d_mlp}
    return Target(*locate(head, cfg.n_layers, widths, item="head"))


def explore(
    evaluator: Evaluator,
    objective: Objective,
    trials: Trials,
    until: int,
    sampler: str,
    batch: int,
    control: int,
    seed: int,
    on_progress: OnProgress | None,
) -> None:
    """Trials until there are `until` of them, or no candidate is left."""
    space, known = trials.space, {}

    def gains(candidate: Candidate) -> list[Floats]:
        if candidate not in known:
            known[candidate] = objective.gains(evaluator, candidate)
        return known[candidate]

    if space.size <= until:
        sampler, control = "brute", 0
    chosen = _proposer(sampler, space, seed)
    control = min(control, until // 3)
    since, n_before = time.perf_counter(), None
    while True:
        tried = history(space, trials.tried())
        n = len(tried.values)
        n_before = n if n_before is None else n_before
        if on_progress:
            best = float(np.nanmax(tried.values)) if tried.order else float("nan")
            on_progress(Progress(n, until, best, (n - n_before) / max(time.perf_counter() - since, 1e-9)))
        proposals = _next(tried, gains, chosen, min(batch, until - n), until, control, sampler, seed)
        if not proposals:
            return
        trials.add(_evaluate(evaluator, objective, proposals))


def _next(
    tried: History, gains: Callable[[Candidate], list[Floats]], chosen: Proposer, n: int, until: int, control: int,
    sampler: str, seed: int,
) -> list[Proposal]:  # fmt: skip
    """The next batch: random starts first, the rest of the random control last, the sampler's between them."""
    if n <= 0:
        return []
    # Of what has been tried and nothing else: a search that goes on proposes what it would have proposed.
    rng = np.random.default_rng([seed, len(tried.values)])
    n_random = sum(one.source in ("start", "random") for one in tried.proposals)
    if sampler in ("random", "brute"):
        return chosen(tried, gains, n, rng)
    if len(tried.values) < START:
        return draw(tried, min(n, START - len(tried.values)), rng, "start")
    left = until - len(tried.values) - max(0, control - n_random)
    if left <= 0:
        return draw(tried, n, rng)
    return chosen(tried, gains, min(n, left), rng) or draw(tried, n, rng)


def _proposer(sampler: str, space: Space, seed: int) -> Proposer:
    if sampler in PROPOSERS:
        return PROPOSERS[sampler]
    if sampler in ("tpe", "nsga2", "gp"):
        return OptunaSampler(sampler, space, seed)
    raise InputError(f"search.sampler: got {sampler!r}, wanted one of {', '.join(PROPOSERS)}, tpe, nsga2, gp.")


def _evaluate(evaluator: Evaluator, objective: Objective, proposals: Sequence[Proposal]) -> list[Tried]:
    effects = objective.effects(evaluator, [one.candidate for one in proposals])
    values = objective.of(effects)
    return [
        Tried(one, float(value) if finite else float("nan"), tuple(row), "" if finite else "the effect is not finite")
        for one, value, row, finite in zip(
            proposals, values, effects.tolist(), torch.isfinite(effects).all(1).tolist(), strict=True
        )
    ]
