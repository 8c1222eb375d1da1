"""The main job, in order: pairs, model, an attribution map a method and site, their comparison, spread, analyses.

Reads no file but the checkpoint and the pairs, and writes none: the result goes to `igap.output`.
"""

import functools
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from igap.analyses.base import Finding, RunContext, complete
from igap.analyses.registry import ANALYSES
from igap.attribution import AttributionMap, activation_patching, atp_star, attribution_patching, integrated_gradients
from igap.attribution.caching import kept
from igap.attribution.maps import Progress
from igap.components import Site
from igap.config import RunConfig
from igap.engine.baselines import configured
from igap.engine.contrast import contrasts
from igap.failures import Failure, surviving
from igap.inputs.prompts import least_gap, tokenize
from igap.models.cached import model_of, resolve_device
from igap.pipeline.prepare import Checked, check
from igap.pipeline.result import Result
from igap.statistics.across_pairs import spread
from igap.statistics.comparison import compare
from igap.statistics.warnings import cautions, spacing
from igap.storage.cache import Store, sharing
from igap.storage.versions import versions

Stage = Callable[[str], AbstractContextManager[Progress | None]]
"""Opens a stage of long work by its name and gives what to tell its progress to."""


def silent(name: str) -> AbstractContextManager[Progress | None]:  # noqa: ARG001 - the interface of a Stage
    """A stage that tells nobody."""
    return nullcontext()


def run(config: RunConfig, stage: Stage = silent, store: Path | None = None) -> Result:
    """The result of one run. Raises ValueError on input that cannot be used; leaves the cached model unchanged.

    `store` is a folder in which runs share what depends on neither baseline nor steps.
    """
    started = time.perf_counter()
    checked, device = check(config), resolve_device(config.device)
    if store is None:
        return _run(config, checked, device, stage, started)
    common = {
        "checkpoint": checked.checkpoint,
        "processing": config.model.processing,
        "dtype": config.model.dtype,
        "device": device.partition(":")[0],
        "versions": dict(versions()),
    }
    with sharing(Store(store, common)):
        return _run(config, checked, device, stage, started)


def _named(
    name: str, method: Callable[[Site, Progress | None], AttributionMap], site: Site, progress: Progress | None
) -> dict[str, AttributionMap]:
    return {name: method(site, progress)}


def _run(config: RunConfig, checked: Checked, device: str, stage: Stage, started: float) -> Result:
    pairs = checked.pairs
    # One pair is asked for as one: its map is no mean.
    asked = pairs if len(pairs) > 1 else pairs[0]
    seconds: dict[str, float] = {}
    with stage("load model"):
        model = model_of(config, checked.checkpoint)
    seconds["model"] = time.perf_counter() - started
    baseline = configured(config.baseline)
    tokens = tuple(tokenize(model, pair) for pair in pairs)
    clean, corrupted = [0.0] * len(pairs), [0.0] * len(pairs)
    with contrasts(model, pairs, sites=config.asked_sites) as groups:
        for indices, question in groups:
            route, why = question.route, question.why
            for site in config.asked_sites:
                question.check(site)
            for index, x, y in zip(
                indices, question.clean.logit_diff.tolist(), question.corrupted.logit_diff.tolist(), strict=True
            ):
                clean[index], corrupted[index] = x, y

    maps: dict[Site, dict[str, AttributionMap]] = {site: {} for site in config.asked_sites}
    methods: dict[str, Callable[[Site, Progress | None], AttributionMap]] = {
        "ig": lambda site, progress: integrated_gradients(
            model,
            asked,
            site,
            baseline=baseline,
            direction=config.direction,
            n_steps=config.ig.n_steps,
            tolerance=config.ig.tolerance,
            method=config.ig.method,
            path=config.ig.path,
            batch_size=config.batch_size,
            memory_gib=config.memory_gib,
            on_progress=progress,
        ),
        "ap": lambda site, progress: activation_patching(
            model,
            asked,
            site,
            direction=config.direction,
            batch_size=config.batch_size,
            memory_gib=config.memory_gib,
            on_progress=progress,
        ),
        "atp": lambda site, progress: attribution_patching(
            model, asked, site, direction=config.direction, on_progress=progress
        ),
    }
    if model.cfg.n_layers > 1:
        methods["atp_star"] = lambda site, progress: atp_star(
            model,
            asked,
            site,
            direction=config.direction,
            batch_size=config.batch_size,
            memory_gib=config.memory_gib,
            on_progress=progress,
        )
    least = [least_gap(pair.min_gap, x) for pair, x in zip(tokens, clean, strict=True)]
    share = functools.partial(kept, direction=config.direction, pairs=tokens, least_gaps=least)
    for name, method in methods.items():
        since = time.perf_counter()
        for site in maps:
            with stage(f"{name} {site}") as progress:
                compute = functools.partial(_named, name, method, site, progress)
                # The run's IG depends on baseline and steps; what the others depend on is in their arguments.
                maps[site] |= compute() if name == "ig" else share(name, site, compute=compute)
        seconds[name] = time.perf_counter() - since
    comparisons = {site: compare(maps[site]["ig"], maps[site]["ap"]) for site in maps}
    since = time.perf_counter()
    spreads = spread(maps, seed=config.prompts.seed) if len(pairs) > 1 else None
    if spreads:
        seconds["intervals"] = time.perf_counter() - since
    context = RunContext(config, model, pairs, maps, comparisons)
    findings: dict[str, Finding] = {}
    failures: dict[str, Failure] = {}
    for name, analysis in ANALYSES.items():
        if not analysis.asked_for(config):
            continue
        since = time.perf_counter()
        with surviving(name, failures), stage(name) as progress:
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
        clean_logit_diffs=tuple(clean),
        corrupted_logit_diffs=tuple(corrupted),
        route=route,
        why_route=why,
        maps=maps,
        comparisons=comparisons,
        spread=spreads,
        findings=findings,
        seconds=seconds,
        versions=versions(),
        warnings=(
            *spacing(tokens),
            *cautions(config, clean, [x - y for x, y in zip(clean, corrupted, strict=True)], maps),
        ),
        failures=failures,
    )
