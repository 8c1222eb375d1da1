"""The search: a study explored until its target, and the certificate of its best."""

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Annotated

import torch
from optuna.storages import BaseStorage
from transformer_lens.model_bridge import TransformerBridge

from igap.arguments import NotNegative, Positive, Range, Seed, checks_arguments
from igap.counterfactual.config import Bounds, SpaceConfig, Term, check_terms
from igap.counterfactual.objective.objective import Aggregate, Objective, Sign
from igap.counterfactual.samplers.registry import SamplerNames
from igap.counterfactual.session import OnProgress, Search
from igap.counterfactual.spaces.base import Space
from igap.counterfactual.trials.storages import storage_of
from igap.counterfactual.trials.study import Tried
from igap.counterfactual.validation.validate import Certificate, certify
from igap.errors import InputError, shown
from igap.prompts import PromptPair
from igap.runs import Model, frozen


@checks_arguments
@dataclass(frozen=True, eq=False)
class SearchResult:
    """What a search found."""

    id: str
    """Of the study, also when it goes on."""
    sampler: str
    """That chose the trials, `auto` settled."""
    space: Space
    objective: Objective
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
    n_found: int
    """Candidates whose numbers an earlier search had left on disk."""
    interrupted: bool = False

    @property
    def best(self) -> PromptPair:
        """The first clean prompt with its best corrupted one."""
        return self.certificate.pairs[0]

    @property
    def best_value(self) -> float:
        """The first term of the best candidate: logits."""
        return float(str(self.certificate.summary["best/value"]))


@checks_arguments
def search(
    model: Model,
    pair: PromptPair,
    head: str,
    *,
    space: SpaceConfig | Mapping[str, Sequence[str]] | None = None,
    objective: Term | Sequence[Term] = "ap",
    sign: Sign = "abs",
    aggregate: Aggregate = "mean",
    penalty: NotNegative = 1.0,
    constraints: Bounds | None = None,
    until: Annotated[int, Range(1, 1_000_000)] = 300,
    sampler: Annotated[str, SamplerNames()] = "auto",
    batch: Annotated[int, Range(1, 100_000)] = 16,
    control: Annotated[int, Range(0, 1_000_000)] = 60,
    clean_n: Annotated[int, Range(1, 500)] = 8,
    heldout_n: Annotated[int, Range(0, 500)] = 32,
    seed: Seed = 0,
    storage: BaseStorage | None = None,
    name: str = "igap",
    identity: Mapping[str, object] | None = None,
    remember: str | Path | None = None,
    memory_gib: Positive | None = None,
    on_progress: OnProgress | None = None,
) -> SearchResult:
    """The corrupted prompts, of a space of words and rules, for which a component's effect is largest.

    `space` maps the slots of the prompt's template to what they offer (None: words and rules for every slot), or is a
    SpaceConfig. `until` counts trials in the Optuna `storage` (None: in memory): the same call with the same storage
    goes on. `control` of them are random, so that chance is measured and not assumed. Interrupted
    (KeyboardInterrupt), it ends with what there is. `remember` is a file of numbers that searches share; `identity` is
    what it and the storage know the model by (None: a hash of its weights). Raises ValueError on what cannot be, and on
    a storage with another search.
    """
    terms: tuple[Term, ...] = (objective,) if isinstance(objective, str) else tuple(objective)
    check_terms(terms, sampler)
    _check_json(identity)
    wanted = Objective(terms, sign, aggregate, penalty, constraints or Bounds())
    since = time.perf_counter()
    with frozen(model):
        opened = Search(
            model,
            pair,
            head,
            wanted,
            space=space,
            clean_n=clean_n,
            heldout_n=heldout_n,
            seed=seed,
            storage=storage_of("memory", Path()) if storage is None else storage,
            name=name,
            identity=identity or (_weights(model) if storage is not None or remember is not None else {}),
            remember=None if remember is None else Path(os.path.expanduser(remember)),
            memory_gib=memory_gib,
        )
        interrupted = False
        try:
            opened.explore(until, sampler, batch, control, on_progress=on_progress)
        except KeyboardInterrupt:
            interrupted = True
            if not opened.trials.tried():
                raise
        return concluded(opened, since, interrupted=interrupted)


def _check_json(identity: Mapping[str, object] | None) -> None:
    """Raises InputError on what is not written as JSON, as storages have it."""
    try:
        json.dumps(identity)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"identity: got {shown(identity)}, which is no JSON ({error}), wanted texts and numbers by names. Leave it "
            "out: then it is a hash of the model's weights."
        ) from None


def _weights(model: TransformerBridge) -> dict[str, str]:
    """A hash of the model's weights, as they are now."""
    digest = hashlib.sha256()
    for name, weight in sorted((*model.named_parameters(), *model.named_buffers()), key=itemgetter(0)):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return {"weights": digest.hexdigest()[:16]}


def concluded(opened: Search, since: float, *, interrupted: bool = False) -> SearchResult:
    """What a study shows, `since` a time of perf_counter. Raises InputError where no trial is within the bounds."""
    tried = opened.trials.tried()
    certificate = certify(opened, tried)
    return SearchResult(
        id=opened.trials.id,
        sampler=opened.sampler,
        space=opened.space,
        objective=opened.objective,
        clean=opened.filled.pairs,
        tried=tuple(tried),
        certificate=certificate,
        route=opened.remembered.evaluator.route,
        seconds=time.perf_counter() - since,
        cost=opened.cost,
        n_found=opened.remembered.n_found,
        interrupted=interrupted,
    )
