"""What a command's searches will be: each config with one component, checked before the weights load."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igap.components import SITES, component_names, locate
from igap.config import TEXTS
from igap.counterfactual.config import SearchConfig
from igap.counterfactual.spaces.prepare import prepare
from igap.engine.batching import most_processes
from igap.errors import InputError
from igap.inputs.prompts import PromptPair
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
    sizes: dict[str, int] = {}  # a space is the same for every component
    for search in searches:
        header = cached.header_of(search.model.name, search.model.revision)
        checkpoint = fingerprint(header.folder)
        prompts = search.model_dump_json(include=_OF_THE_SPACE) + checkpoint
        for config, folder in _split_components(search, header):
            _check_component(config, header)
            if prompts not in sizes:
                sizes[prompts] = _space_size(config, header)
            study = PlannedStudy(config, folder, checkpoint, sizes[prompts])
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
    rest = "brute force" if study.size <= config.search.until else config.search.sampler
    return (
        f"{config.head}: {' and '.join(config.objective)}, {study.size:.4g} candidates, {config.search.until} trials "
        f"({rest}), {config.clean.n} clean prompts, {config.heldout.n} held out, in {study.folder}"
    )


def reference_pair(config: SearchConfig) -> PromptPair:
    """The pair that the search starts from."""
    prompts = config.prompts
    clean, corrupted, answer, distractor = (str(getattr(prompts, name)) for name in TEXTS)
    return PromptPair(clean, corrupted, answer, distractor, prompts.min_gap, bos=prompts.bos)


def _split_components(config: SearchConfig, header: Header) -> list[tuple[SearchConfig, Path]]:
    """The config for each of its components, with the folder of its search."""
    output = Path(config.output)
    names = config.head.split()
    if names == ["all"]:
        assert header.n_layers is not None
        assert header.n_heads is not None
        names = component_names("heads", header.n_layers, header.n_heads)
    if len(names) == 1:
        return [(config, output / config.folder_name)]
    parent = output / (config.name or f"heads-{'-'.join(config.objective)}")
    singles = [config.model_copy(update={"head": name, "name": None}) for name in names]
    return [(single, parent / single.folder_name) for single in singles]


def _check_component(config: SearchConfig, header: Header) -> None:
    """Raises InputError on a device that this machine lacks, and on a component that the model lacks."""
    cached.resolve_device(config.device)
    site, _, _ = locate(config.head, header.n_layers, header.widths, item="head", sites=SITES)
    check_sites(header, [site], config.model.name)


_OF_THE_SPACE: Any = {"model": True, "prompts": True, "search": {"space"}, "clean": True, "heldout": True, "seed": True}
"""All that a space and its clean prompts depend on."""


def _space_size(config: SearchConfig, header: Header) -> int:
    """The number of candidates, the same for all components. Raises InputError on an invalid space or pair."""
    return prepare(
        reference_pair(config),
        header.tokenizer,
        space=config.search.space,
        clean_n=config.clean.n,
        heldout_n=config.heldout.n,
        seed=config.seed,
        prepend_bos=header.prepends_bos,
    ).space.size
