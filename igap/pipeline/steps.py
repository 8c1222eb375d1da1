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
from igap.analyses.registry import ANALYSES, misfit, missing_analyses
from igap.attribution.caching import cached_maps_beside
from igap.attribution.maps import Advance, AttributionMap, Progress
from igap.attribution.method import Method
from igap.attribution.methods import METHODS, missing_methods
from igap.attribution.over_pairs import attribute_metrics, check_finite
from igap.components import Site
from igap.config import MetricConfig, RunConfig
from igap.engine.backend import Backend
from igap.engine.batching import budget_bytes
from igap.engine.contrast import Contrast
from igap.engine.metrics import as_metric
from igap.engine.open_pairs import OpenPairs, open_pairs
from igap.engine.user_metrics import metric_of
from igap.errors import InputError
from igap.errors.failures import Failure, collect_failure
from igap.metrics import METRICS
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


def run(
    config: RunConfig, stage: Stage = silent, store: Path | None = None, beside: Sequence[MetricConfig] = ()
) -> Result:
    """The result of one run. Raises InputError on invalid input; leaves the cached model unchanged.

    `store` is a folder in which runs share what depends on neither baseline nor steps. `beside` are the metrics of
    runs that will ask there for the same maps of theirs; they are computed in the same passes.
    """
    started = time.perf_counter()
    checked, device = check(config), resolve_device(config.device)
    if store is None:
        return _open([config], checked, device, stage, started)
    # A function of the user's that fails is its own run's to tell, and what an answer of several tokens is none of.
    any_metric = all(pair.has_logit_diff for pair in checked.tokens)
    names = dict.fromkeys(
        metric.name
        for metric in beside
        if metric.name != "custom"
        and metric.name != config.metric.name
        and (any_metric or METRICS[metric.name].takes_several)
    )
    configs = [config, *(config.model_copy(update={"metric": MetricConfig(name=name)}) for name in names)]
    common = {
        "checkpoint": checked.checkpoint,
        "processing": config.model.processing,
        "dtype": config.model.dtype,
        "device": device.partition(":")[0],
        "versions": dict(versions()),
    }
    with use_cache(ResultCache(store, common)):
        return _open(configs, checked, device, stage, started)


def _open(configs: Sequence[RunConfig], checked: Checked, device: str, stage: Stage, started: float) -> Result:
    """The result of the first config; the others differ from it in their metrics."""
    config, metrics = configs[0], [metric_of(each.metric) for each in configs]
    with stage("load model"):
        model = run_model(config, checked.checkpoint)
    seconds = {"model": time.perf_counter() - started}
    # What methods and analyses share may take as much again as a pass.
    kept = budget_bytes(torch.device(device), config.memory_gib)
    about: Any = {"sites": config.asked_sites, "kept_bytes": kept, "metric": metrics[0], "beside": metrics[1:]}
    with open_pairs(model, checked.pairs, **about) as opened:
        return _run(configs, checked, opened, device, stage, seconds, started)


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
    configs: Sequence[RunConfig], opened: OpenPairs, clean: Sequence[float], stage: Stage, seconds: dict[str, float]
) -> dict[Site, dict[str, AttributionMap]]:
    """The maps of every method by site, then method, of the first config; adds the seconds of each method."""
    config, n_layers = configs[0], opened.model.cfg.n_layers
    maps: dict[Site, dict[str, AttributionMap]] = {site: {} for site in config.asked_sites}
    least = least_gaps(config, clean)
    for name, method in METHODS.items():
        since = time.perf_counter()
        sites = [site for site in maps if not method.missing(config, site, n_layers)]
        if not method.is_requested(config) or not sites:
            continue
        for site in sites:
            with stage(f"{name} {site}") as progress:
                if (made := method.of_all(opened, site, config, progress)) is not None:
                    maps[site][name] = made
                    continue
                compute = functools.partial(_maps, opened, method, site, progress)
                if method.shared:
                    having = [config, *(each for each in configs[1:] if not method.missing(each, site, n_layers))]
                    maps[site] |= cached_maps_beside(name, site, having, opened.tokens, least, compute)
                else:
                    maps[site] |= compute([config])[0] or {}
        seconds[name] = time.perf_counter() - since
    return maps


def _maps(
    opened: OpenPairs, method: Method, site: Site, progress: Progress | None, configs: Sequence[RunConfig]
) -> list[dict[str, AttributionMap] | None]:
    """The method's map of each config, in the same passes; None of one but the first that is not finite."""
    config, others = configs[0], [as_metric(metric_of(each.metric)) for each in configs[1:]]

    def attribute(contrast: Contrast, advance: Advance) -> list[AttributionMap]:
        return method.attribute(contrast, site, config, advance)

    about: Any = {
        "baseline": method.baseline(config),
        "direction": config.direction,
        "positions": config.positions.value,
        "metrics": [*opened.metrics, *others] if others else None,
    }
    first, *rest = attribute_metrics(attribute, opened, site, progress, **about)
    check_finite(first)
    return [{method.name: first}, *({method.name: each} if _is_finite(each) else None for each in rest)]


def _is_finite(made: AttributionMap) -> bool:
    try:
        check_finite(made)
    except InputError:  # which its own run will raise
        return False
    return True


def _on_the_slow_route(stage: Stage) -> Stage:
    """Stages whose names say so: whoever waits longer than for other models sees why at once."""
    return lambda name: stage(f"{name} (route hooks)")


def _run(
    configs: Sequence[RunConfig],
    checked: Checked,
    opened: OpenPairs,
    device: str,
    stage: Stage,
    seconds: dict[str, float],
    started: float,
) -> Result:
    config, pairs, tokens = configs[0], opened.pairs, opened.tokens
    backend, measured = _measure(opened, config.asked_sites)
    clean, corrupted = measured["clean_values"], measured["corrupted_values"]
    slow = backend.route == "hooks"
    maps = _attribute(configs, opened, clean, _on_the_slow_route(stage) if slow else stage, seconds)
    comparisons = {site: compare(maps[site]["ig"], maps[site]["ap"]) for site in maps}
    since = time.perf_counter()
    spread = pair_statistics(maps, seed=config.prompts.seed) if len(pairs) > 1 else None
    if spread is not None:
        seconds["intervals"] = time.perf_counter() - since
    context = RunContext(config, opened, maps, comparisons)
    findings: dict[str, Finding] = {}
    failures: dict[str, Failure] = {}
    for name, analysis in ANALYSES.items():
        if not analysis.is_requested(config) or misfit(analysis, config):
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
            *missing_methods(config, int(opened.model.cfg.n_layers)),
        ),
        left_out=checked.left_out,
        failures=failures,
    )
