"""What a command's searches will be: each config with one component, checked before the weights load."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from igap.components import component_names
from igap.config import TEXTS
from igap.counterfactual.clean_prompts import check_answers
from igap.counterfactual.config import SearchConfig
from igap.counterfactual.objective.errors import find_estimator
from igap.counterfactual.objective.objective import NEEDS, Objective
from igap.counterfactual.objective.patch import check_reaches, resolve
from igap.counterfactual.objective.shared_prefixes import SERVED
from igap.counterfactual.spaces.prepare import Prepared, prepare
from igap.counterfactual.target import Target, locate_target
from igap.counterfactual.trials.chunks import check_exhaustible
from igap.counterfactual.trials.dashboard import check_dashboard
from igap.counterfactual.validation.optimality import check_budget
from igap.engine.batching import most_processes
from igap.engine.user_metrics import metric_of
from igap.errors import InputError
from igap.inputs.answers import from_cell
from igap.inputs.prompts import PromptPair, TokenPair, encode_pair
from igap.inputs.sources import read_prompt_pairs
from igap.models import cached
from igap.models.fingerprint import fingerprint
from igap.models.load import Header, check_sites


@dataclass(frozen=True)
class PlannedStudy:
    """One search: a config with one component, and what is known of it before the weights load."""

    config: SearchConfig
    folder: Path
    """Where its results go."""
    checkpoint: str
    """Fingerprint of the model's files."""
    size: int
    """Candidates of its space."""
    left_out: str = ""
    """Rules that its space does not have, since they do not fit the answers."""

    @property
    def place(self) -> Path:
        """Its folder, in the folder of searches."""
        return self.folder.relative_to(self.config.output)


def plan_studies(searches: Sequence[SearchConfig]) -> tuple[list[PlannedStudy], list[SearchConfig]]:
    """Check the searches and split them by component, before anything is computed.

    Returns:
        The studies, and the config of every worker, in order; each config has a single component.

    Raises:
        InputError: the first invalid search.
    """
    studies: dict[Path, PlannedStudy] = {}
    workers: list[SearchConfig] = []
    spaces: dict[str, Prepared] = {}  # a space is the same for every component
    for search in searches:
        if search.search.dashboard:
            check_dashboard(search.search.storage.kind)
        header = cached.header_of(search.model.name, search.model.revision)
        checkpoint = fingerprint(header.folder)
        prompts = search.model_dump_json(include=_OF_THE_SPACE) + checkpoint
        for config, folder in _split_components(search, header):
            target = _check_target(config, header)
            if prompts not in spaces:
                spaces[prompts] = _prepare(config, header)
            _check_span(target, spaces[prompts], header)
            if config.search.sampler == "brute":
                check_exhaustible(spaces[prompts].space.size, config.search.until, len(config.objective))
            elif config.optimality is not None and spaces[prompts].space.size > config.search.until:
                check_budget(config.optimality, spaces[prompts].space.size)
            space = spaces[prompts].space
            rules = "; ".join(why for why in space.left_out if ": =" in why)
            study = PlannedStudy(config, folder, checkpoint, space.size, rules)
            asked = config.search.model_dump(exclude={"worker"})
            known = studies.setdefault(folder, study)
            if known.config.model_copy(update={"search": None}) != config.model_copy(update={"search": None}) or (
                known.config.search.model_dump(exclude={"worker"}) != asked
            ):
                raise InputError(
                    f"name: got one folder ({folder}) for two searches that differ. Write several heads as one "
                    "(head=0.6,1.2), sweep search.worker only, or give each search a name."
                )
            workers.append(config)
    asked_for, most = max(config.search.workers for config in workers), most_processes()
    if asked_for > most:
        raise InputError(
            f"search.workers: got {asked_for}, wanted at most {most}, four a core: each is a process with a model of "
            "its own. Use fewer, or search.worker='range(N)' with a cluster's launcher."
        )
    shared = [config.search.storage.kind for config in workers if config.search.workers > 1]
    if "memory" in shared or (len(workers) > len(studies) and workers[0].search.storage.kind == "memory"):
        raise InputError(
            "search.storage: got memory, which several workers cannot share. Use search/storage=sqlite, or journal."
        )
    return list(studies.values()), workers


def describe(study: PlannedStudy) -> str:
    """Describe a study in one line, before it runs."""
    config = study.config
    rest = config.search.sampler
    if study.size <= config.search.until:
        rest = "brute force"
    elif rest == "brute":
        rest = f"brute, the best of {math.ceil(study.size / config.search.until):,} candidates each{_slow_part(config)}"
    metric = "" if config.metric.is_default else f" on {config.metric.name}"
    return (
        f"{config.head}: {' and '.join(config.objective)}{metric}, {study.size:.4g} candidates, "
        f"{config.search.until} trials ({rest}), {config.clean.n} clean prompts, {config.heldout.n} held out, "
        f"in {study.folder}" + (f"; left out: {study.left_out}" if study.left_out else "")
    )


def describe_together(studies: Sequence[PlannedStudy]) -> str:
    """Describe the one search for the heads of all studies in one line, before it runs."""
    first = studies[0]
    config, metric = first.config, "" if first.config.metric.is_default else f" on {first.config.metric.name}"
    return (
        f"atlas of {len(studies)} heads by one search: AtP of each{metric}, {first.size:.4g} candidates, "
        f"{min(config.search.until, first.size)} prompts ({config.search.sampler}), {config.clean.n} clean prompts, "
        f"{config.heldout.n} held out, in {first.folder.parent / 'atlas'}"
    )


def _slow_part(config: SearchConfig) -> str:
    """What of an enumeration takes a run for every candidate, since shared beginnings do not serve it."""
    objective = objective_of(config)
    terms = [term for term in objective.terms if not set(NEEDS[term]) <= set(SERVED) or term == "error"]
    limits = objective.constraints.model_dump(exclude={"min_clean"}, exclude_none=True)
    asked = [f"objective={term}" for term in terms] + [f"constraints.{name}" for name in limits]
    return f"; {' and '.join(asked)}: a run of its own for each" if asked else ""


@dataclass(frozen=True, eq=False)
class GivenPrompts:
    """The prompts that a search is given, as `igap.search` takes them."""

    pair: PromptPair | tuple[PromptPair, ...]
    heldout: tuple[PromptPair, ...] | None
    reference: tuple[PromptPair, ...] | None


def given_prompts(config: SearchConfig, tokenizer: Any) -> GivenPrompts:
    """The pair that the search starts from, and those of its files. Raises InputError on an invalid file."""
    own = config.prompts
    files = {"clean": config.clean.file, "heldout": config.heldout.file, "reference": config.reference.file}
    clean, heldout, reference = (
        None
        if file is None
        else read_prompt_pairs(own.model_copy(update={"file": file}), tokenizer, item=f"{name}.file")
        for name, file in files.items()
    )
    if clean is not None:
        return GivenPrompts(clean, heldout, reference)
    text, corrupted, answer, distractor = (str(getattr(own, name)) for name in TEXTS)
    pair = PromptPair(text, corrupted, from_cell(answer), from_cell(distractor), own.min_gap, bos=own.bos)
    return GivenPrompts(pair, heldout, reference)


def _split_components(config: SearchConfig, header: Header) -> list[tuple[SearchConfig, Path]]:
    """The config for each of its components, with the folder of its search."""
    output = Path(config.output)
    names = config.head.split()
    if names == ["all"] and "error" not in config.objective:
        assert header.n_layers is not None
        assert header.n_heads is not None
        names = component_names("heads", header.n_layers, header.n_heads)
    if len(names) == 1:
        return [(config, output / config.folder_name)]
    parent = output / (config.name or f"heads-{config.question}")
    singles = [config.model_copy(update={"head": name, "name": None}) for name in names]
    return [(single, parent / single.folder_name) for single in singles]


def objective_of(config: SearchConfig) -> Objective:
    """What is maximised. Raises InputError on a metric that cannot be imported, or terms that say nothing with it."""
    metric = metric_of(config.metric)
    return Objective(
        config.objective, config.sign, config.aggregate, config.penalty, config.constraints, metric, config.estimator
    )


def _check_target(config: SearchConfig, header: Header) -> Target:
    """The target. Raises InputError on a device that this machine lacks, and on what the model or a term lacks."""
    cached.resolve_device(config.device)
    target = locate(config, header)
    check_sites(header, target.sites, config.model.name)
    objective = objective_of(config)
    objective.check(target, header.n_layers)
    if "error" in objective.terms:
        method = find_estimator(config.estimator)
        method.method.check(method.config.model_copy(update={"model": config.model}), header)
    return target


def locate(config: SearchConfig, header: Header) -> Target:
    """The target in a model of this header. Raises InputError as `locate_target` does."""
    return locate_target(config.head, header.n_layers, header.widths, each="error" in config.objective)


_OF_THE_SPACE: Any = {
    **dict.fromkeys(("model", "prompts", "clean", "heldout", "reference", "seed", "metric", "constraints"), True),
    "search": {"space"},
}
"""All that a space and its clean prompts depend on."""


def _prepare(config: SearchConfig, header: Header) -> Prepared:
    """The space and its clean prompts, the same for all targets. Raises InputError on an invalid space or pair."""
    given, objective = given_prompts(config, header.tokenizer), objective_of(config)
    prepared = prepare(
        given.pair,
        header.tokenizer,
        heldout=given.heldout,
        reference=given.reference,
        space=config.search.space,
        clean_n=config.clean.n,
        heldout_n=config.heldout.n,
        lengths=config.clean.lengths,
        several=objective.f.takes_several,
        seed=config.seed,
        prepend_bos=header.prepends_bos,
    )
    check_answers(prepared.every, partial(_encode, header), objective)
    return prepared


def _check_span(target: Target, prepared: Prepared, header: Header) -> None:
    """Raises InputError on a span that the clean prompts do not have, or that no prompt of the space changes."""
    if target.span is None:
        return
    tokens_of, bound = partial(_encode, header), prepared.bind(prepared.every)
    check_reaches(resolve(target, tokens_of(prepared.pairs[0])), bound, tokens_of, header.n_layers)


def _encode(header: Header, pair: PromptPair) -> TokenPair:
    """The tokens of a pair that `prepare` has let through."""
    return encode_pair(pair, header.tokenizer, prepend_bos=header.prepends_bos, n_ctx=None, n_vocab=None, several=True)
