"""The main job, in order: pairs, model, an attribution map a method and site, their comparison, spread, analyses.

Reads no file but the checkpoint and the pairs, and writes none: the result goes to `igap.output`.
"""

import functools
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from igap.analyses.base import Finding, RunContext, complete
from igap.analyses.registry import ANALYSES, missing_analyses
from igap.attribution.caching import cached_maps
from igap.attribution.maps import Advance, AttributionMap, Progress, attribute_pairs
from igap.attribution.method import Method
from igap.attribution.methods import METHODS
from igap.components import Site
from igap.config import RunConfig
from igap.engine.backend import Backend
from igap.engine.baselines import Baseline, baseline_of
from igap.engine.batching import budget_bytes
from igap.engine.contrast import Contrast
from igap.engine.open_pairs import OpenPairs, open_pairs
from igap.engine.user_metrics import metric_of
from igap.failures import Failure, collect_failure
from igap.models.cached import resolve_device, run_model
from igap.pipeline.prepare import Checked, check
from igap.pipeline.result import Result
from igap.statistics.across_pairs import pair_statistics
from igap.statistics.comparison import compare
from igap.statistics.warnings import least_gaps, left_out_warnings, run_warnings, spacing_warnings
from igap.storage.cache import ResultCache, use_cache
from igap.storage.versions import versions

Stage = Callable[[str], AbstractContextManager[Progress | None]]
"""Opens a stage of long work by its name and gives what to tell its progress to."""


def silent(name: str) -> AbstractContextManager[Progress | None]:  # noqa: ARG001 - the interface of a Stage
    """A stage that tells nobody."""
    return nullcontext()


def run(config: RunConfig, stage: Stage = silent, store: Path | None = None) -> Result:
    """The result of one run. Raises InputError on invalid input; leaves the cached model unchanged.

    `store` is a folder in which runs share what depends on neither baseline nor steps.
    """
    started = time.perf_counter()
    checked, device = check(config), resolve_device(config.device)
    if store is None:
        return _open(config, checked, device, stage, started)
    common = {
        "checkpoint": checked.checkpoint,
        "processing": config.model.processing,
        "dtype": config.model.dtype,
        "device": device.partition(":")[0],
        "versions": dict(versions()),
    }
    with use_cache(ResultCache(store, common)):
        return _open(config, checked, device, stage, started)


def _open(config: RunConfig, checked: Checked, device: str, stage: Stage, started: float) -> Result:
    with stage("load model"):
        model = run_model(config, checked.checkpoint)
    seconds = {"model": time.perf_counter() - started}
    # What methods and analyses share may take as much again as a pass.
    kept = budget_bytes(torch.device(device), config.memory_gib)
    metric = metric_of(config.metric)
    with open_pairs(model, checked.pairs, sites=config.asked_sites, kept_bytes=kept, metric=metric) as opened:
        return _run(config, checked, opened, device, stage, seconds, started)


def _measure(opened: OpenPairs, sites: Sequence[Site]) -> tuple[Backend, dict[str, Any]]:
    """The backend, and by fields of a Result F and the logit difference of every clean and every corrupted prompt."""
    measured: dict[str, dict[int, float]] = {}
    for indices, contrast in opened.contrasts():
        for site in sites:
            contrast.check(site)
        for name, run in (("clean", contrast.clean), ("corrupted", contrast.corrupted)):
            for what, values in ((f"{name}_logit_diffs", run.logit_diff), (f"{name}_values", contrast.value(run))):
                measured.setdefault(what, {}).update(zip(indices, values.tolist(), strict=True))
    in_order = {what: tuple(values[index] for index in sorted(values)) for what, values in measured.items()}
    return contrast.backend, in_order


def _attribute(
    config: RunConfig, opened: OpenPairs, clean: Sequence[float], stage: Stage, seconds: dict[str, float]
) -> dict[Site, dict[str, AttributionMap]]:
    """The maps of every method by site, then method; adds the seconds of each method."""
    maps: dict[Site, dict[str, AttributionMap]] = {site: {} for site in config.asked_sites}
    least = least_gaps(config, clean)
    for name, method in METHODS.items():
        since = time.perf_counter()
        sites = [site for site in maps if not method.missing(config, site, opened.model.cfg.n_layers)]
        if not method.asked(config) or not sites:
            continue
        for site in sites:
            with stage(f"{name} {site}") as progress:
                compute = functools.partial(_map, config, opened, method, site, progress)
                if method.shared:
                    maps[site] |= cached_maps(name, site, config, opened.tokens, least, compute)
                else:
                    maps[site] |= compute()
        seconds[name] = time.perf_counter() - since
    return maps


def _map(
    config: RunConfig, opened: OpenPairs, method: Method, site: Site, progress: Progress | None
) -> dict[str, AttributionMap]:
    def attribute(contrast: Contrast, advance: Advance) -> list[AttributionMap]:
        return method.attribute(contrast, site, config, advance)

    baseline = baseline_of(config.baseline) if method.towards_baseline else Baseline("corrupted")
    return {
        method.name: attribute_pairs(
            attribute,
            opened,
            site,
            progress,
            baseline=baseline,
            direction=config.direction,
            positions=config.positions.value,
        )
    }


def _run(
    config: RunConfig,
    checked: Checked,
    opened: OpenPairs,
    device: str,
    stage: Stage,
    seconds: dict[str, float],
    started: float,
) -> Result:
    pairs, tokens = opened.pairs, opened.tokens
    backend, measured = _measure(opened, config.asked_sites)
    clean, corrupted = measured["clean_values"], measured["corrupted_values"]
    maps = _attribute(config, opened, clean, stage, seconds)
    comparisons = {site: compare(maps[site]["ig"], maps[site]["ap"]) for site in maps}
    since = time.perf_counter()
    spread = pair_statistics(maps, seed=config.prompts.seed) if len(pairs) > 1 else None
    if spread is not None:
        seconds["intervals"] = time.perf_counter() - since
    context = RunContext(config, opened, maps, comparisons)
    findings: dict[str, Finding] = {}
    failures: dict[str, Failure] = {}
    for name, analysis in ANALYSES.items():
        if not analysis.asked_for(config) or analysis.misfit(config):
            continue
        since = time.perf_counter()
        with collect_failure(name, failures), stage(name) as progress:
            findings[name] = complete(analysis.run(context, progress))
        seconds[name] = time.perf_counter() - since
    seconds["total"] = time.perf_counter() - started
    return Result(
        config=config,
        key=checked.key,
        checkpoint=checked.checkpoint,
        device=device,
        pairs=pairs,
        tokens=tokens,
        **measured,
        route=backend.route,
        why_route=backend.reason,
        maps=maps,
        comparisons=comparisons,
        spread=spread,
        findings=findings,
        seconds=seconds,
        versions=versions(),
        warnings=(
            *left_out_warnings(checked.left_out, len(pairs)),
            *spacing_warnings(tokens),
            *run_warnings(config, clean, [x - y for x, y in zip(clean, corrupted, strict=True)], maps),
            *missing_analyses(config),
        ),
        left_out=checked.left_out,
        failures=failures,
    )
