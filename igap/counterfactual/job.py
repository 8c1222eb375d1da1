"""One search from its config: checked before the model loads, searched, written to disk, shown, logged."""

import logging
from pathlib import Path

from rich.console import Console

from igap import disk, pipeline, records, tracking
from igap.config import TEXTS, RunConfig
from igap.counterfactual import report
from igap.counterfactual.config import SearchConfig
from igap.counterfactual.records import write
from igap.counterfactual.search import SearchResult, prepare, search
from igap.counterfactual.study import storage_of
from igap.models.fingerprint import fingerprint
from igap.models.load import read_header
from igap.prompts import PromptPair
from igap.sites import Site, locate

RUNS = "runs"
"""In a search's folder: the full runs of its best pairs, named by their keys."""

log = logging.getLogger("igap")


def check(config: SearchConfig) -> str:
    """The checkpoint's fingerprint, once all is refused that can be before the weights load. Raises InputError."""
    pipeline.resolve_device(config.device)
    header = read_header(config.model.name, config.model.revision)
    widths: dict[Site, int | None] = {"heads": header.n_heads, "neurons": header.n_neurons}
    locate(config.head, header.n_layers, widths, item="head")
    space = config.search.space
    prepare(
        _pair(config),
        header.tokenizer,
        slots=space.slots,
        template=space.template,
        clean_n=config.clean.n,
        heldout_n=config.heldout.n,
        seed=config.seed,
    )
    return fingerprint(header.folder)


def run(config: SearchConfig, defaults: RunConfig, out: Console, progress: Console) -> int:
    """The exit code: 0, or 1 when the best pair's run failed.

    `defaults` are the settings of the run of the best pair, beside model and prompts. Raises InputError.
    """
    checkpoint = check(config)
    folder = Path(config.output) / config.folder_name
    disk.check_writable(folder)
    first = _run_of(_pair(config), config, defaults)
    with report.stage(progress, "load model"):
        model = pipeline.model_of(first)
    with report.searching(progress) as tell:
        result = search(
            model,
            _pair(config),
            config.head,
            slots=config.search.space.slots,
            template=config.search.space.template,
            objective=config.objective,
            sign=config.sign,
            aggregate=config.aggregate,
            until=config.search.until,
            sampler=config.search.sampler,
            batch=config.search.batch,
            control=config.search.control,
            clean_n=config.clean.n,
            heldout_n=config.heldout.n,
            seed=config.seed,
            storage=storage_of(config.search.storage.kind, folder),
            checkpoint=checkpoint,
            memory_gib=config.memory_gib,
            on_progress=tell,
        )
    write(result, config, folder)
    report.show(out, result, config.head)
    code = _run_of_the_best(result, config, defaults, folder, progress)
    report.show_paths(out, folder)
    return code


def _run_of_the_best(
    result: SearchResult, config: SearchConfig, defaults: RunConfig, folder: Path, progress: Console
) -> int:
    """The exit code of the full run of the best pair, in a folder of its own, unless it is there already."""
    asked = _run_of(result.best, config, defaults)
    place = folder / RUNS / pipeline.check(asked).key
    if (place / "summary.json").exists():
        return 0
    try:
        records.prepare(place)
        records.write(pipeline.run(asked, lambda name: report.stage(progress, name)), place)
        tracking.log(place, tracking.decided(config.tracking)[0])
    except Exception as error:
        log.error("the run of the best pair, in %s, failed: %s", place, error)
        return 1
    return 0


def _run_of(pair: PromptPair, config: SearchConfig, defaults: RunConfig) -> RunConfig:
    texts = dict(zip(TEXTS, pair.texts, strict=True))
    prompts = config.prompts.model_copy(update=texts)
    settings = {"model": config.model, "prompts": prompts, "device": config.device, "memory_gib": config.memory_gib}
    return defaults.model_copy(update=settings)


def _pair(config: SearchConfig) -> PromptPair:
    prompts = config.prompts
    clean, corrupted, answer, distractor = (str(getattr(prompts, name)) for name in TEXTS)
    return PromptPair(clean, corrupted, answer, distractor, prompts.min_gap)
