"""The main job, in order: model, pair, three attribution maps a site, their comparison.

Reads no file but the checkpoint and writes none: the result goes to `records`, `tracking` and `report`.
"""

import functools
import importlib.metadata
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge

from igap.attribution import AttributionMap, activation_patching, attribution_patching, integrated_gradients
from igap.attribution.integrated_gradients import check_quadrature
from igap.attribution.maps import Progress, scores_exist
from igap.baselines import Baseline, same_length
from igap.comparison import Comparison, compare
from igap.config import ModelConfig, RunConfig
from igap.contrast import contrast
from igap.errors import InputError
from igap.models.load import load_model, read_header
from igap.prompts import PromptPair, TokenPair, encode_pair, encode_prompt
from igap.sites import SITES, Site

DELTA_TOLERANCE = 0.01
"""Share of a layer's effect above which its completeness delta is worth a warning."""

Stage = Callable[[str], AbstractContextManager[Progress | None]]
"""Opens a stage of long work by its name and gives what to tell its progress to."""


def silent(name: str) -> AbstractContextManager[Progress | None]:  # noqa: ARG001 - the interface of a Stage
    """A stage that tells nobody."""
    return nullcontext()


_PACKAGES = ("igap", "torch", "transformers", "transformer-lens", "captum", "numpy", "scipy")


@dataclass(frozen=True, eq=False)
class Result:
    """Everything a run found out."""

    config: RunConfig
    device: str
    tokens: TokenPair
    clean_logit_diff: float
    """F(x), in logits."""
    corrupted_logit_diff: float
    """F(x'), in logits."""
    route: str
    """How the engine ran the model: what comes after the site (`suffix`) or whole with hooks (`hooks`)."""
    why_route: str
    maps: Mapping[Site, Mapping[str, AttributionMap]]
    """By site, then method: ig, ap, atp."""
    comparisons: Mapping[Site, Comparison]
    """IG against AP, by site."""
    seconds: Mapping[str, float]
    versions: Mapping[str, str]
    warnings: tuple[str, ...]

    @property
    def gap(self) -> float:
        """D = F(x) - F(x'), in logits."""
        return self.clean_logit_diff - self.corrupted_logit_diff

    @property
    def has_scores(self) -> bool:
        """Whether the gap is large enough to divide by."""
        return scores_exist(self.gap, self.config.prompts.min_gap)


def prompt_pair(config: RunConfig) -> PromptPair:
    """The config's prompt pair. Raises ValueError on identical prompts or words."""
    return PromptPair(**config.prompts.model_dump())


def check(config: RunConfig) -> TokenPair:
    """The tokenised pair, from the tokenizer alone: everything that can be refused before the weights load.

    Raises ValueError on a bad pair, quadrature, checkpoint or device.
    """
    pair = prompt_pair(config)
    check_quadrature(config.ig.method, config.ig.n_steps, config.ig.path)
    resolve_device(config.device)
    header = read_header(config.model.name, config.model.revision)
    known: Any = {"prepend_bos": False, "n_ctx": header.n_ctx, "n_vocab": header.n_vocab}
    tokens = encode_pair(pair, header.tokenizer, **known)
    other = reference_baseline(config).prompt
    if other is not None:
        same_length(encode_prompt(header.tokenizer, other, item="baseline.prompt", **known), tokens)
    return tokens


def reference_baseline(config: RunConfig) -> Baseline:
    """The config's baseline; a prompt that its kind does not use is left out, so that kinds can be swept."""
    asked = config.baseline
    return Baseline(asked.kind, asked.prompt if asked.kind == "prompt" else None, asked.n, asked.seed)


def resolve_device(device: str) -> str:
    """`auto` as cuda or cpu, any other device as it is. Raises ValueError for one this machine lacks."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    kind, _, index = device.partition(":")
    if not available[kind] or (kind == "cuda" and index and int(index) >= torch.cuda.device_count()):
        raise InputError(f"device: got {device}, which this machine does not have. Use device=cpu or device=auto.")
    return device


def run(config: RunConfig, stage: Stage = silent) -> Result:
    """The result of one run. Raises ValueError on input that cannot be used; leaves the cached model unchanged."""
    started = time.perf_counter()
    pair, device = prompt_pair(config), resolve_device(config.device)
    check(config)
    seconds: dict[str, float] = {}
    with stage("load model"):
        model = _cached_model(config.model, device)
    seconds["model"] = time.perf_counter() - started
    baseline = reference_baseline(config)
    with contrast(model, pair) as question:
        (tokens,) = question.pairs
        clean, corrupted = question.clean.logit_diff.item(), question.corrupted.logit_diff.item()
        route, why = question.route, question.why

    maps: dict[Site, dict[str, AttributionMap]] = {site: {} for site in SITES}
    methods: dict[str, Callable[[Site, Progress | None], AttributionMap]] = {
        "ig": lambda site, progress: integrated_gradients(
            model,
            pair,
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
            pair,
            site,
            direction=config.direction,
            batch_size=config.batch_size,
            memory_gib=config.memory_gib,
            on_progress=progress,
        ),
        "atp": lambda site, progress: attribution_patching(
            model, pair, site, direction=config.direction, on_progress=progress
        ),
    }
    for name, method in methods.items():
        since = time.perf_counter()
        for site in SITES:
            with stage(f"{name} {site}") as progress:
                maps[site][name] = method(site, progress)
        seconds[name] = time.perf_counter() - since
    comparisons = {site: compare(maps[site]["ig"], maps[site]["ap"]) for site in SITES}
    seconds["total"] = time.perf_counter() - started
    return Result(
        config=config,
        device=device,
        tokens=tokens,
        clean_logit_diff=clean,
        corrupted_logit_diff=corrupted,
        route=route,
        why_route=why,
        maps=maps,
        comparisons=comparisons,
        seconds=seconds,
        versions={name: importlib.metadata.version(name) for name in _PACKAGES},
        warnings=_warnings(config, clean - corrupted, maps),
    )


@functools.lru_cache(maxsize=1)
def _cached_model(model: ModelConfig, device: str) -> TransformerBridge:
    """The model of the last run in this process, so that a multirun loads it once."""
    return load_model(
        model.name, processing=model.processing, device=device, dtype=model.dtype, revision=model.revision
    )


def _warnings(config: RunConfig, gap: float, maps: Mapping[Site, Mapping[str, AttributionMap]]) -> tuple[str, ...]:
    found = []
    if not scores_exist(gap, config.prompts.min_gap):
        found.append(
            f"prompts: the gap F(clean) - F(corrupted) is {gap:.4g} logits, wanted at least "
            f"prompts.min_gap={config.prompts.min_gap}; scores (effect / gap) would explode and are missing, effects "
            "in logits are kept. Choose prompts that the model tells apart."
        )
    coarse = config.model.dtype == "bfloat16"
    if coarse:
        found.append(
            "model.dtype: bfloat16 keeps 8 bits of a logit; effects and completeness deltas below some hundredths of a "
            "logit are rounding. Use model.dtype=float32 for numbers that count."
        )
    for site in SITES if not coarse else ():
        ig = maps[site]["ig"]
        layers = ig.incomplete_layers(DELTA_TOLERANCE)
        if layers and ig.delta is not None and ig.layer_effect is not None:
            worst = max(layers, key=ig.delta.abs().tolist().__getitem__)
            found.append(
                f"ig: the completeness delta of {site} is above {DELTA_TOLERANCE:.0%} of the layer's effect in "
                f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))} (worst: {ig.delta[worst]:+.3g} of "
                f"{ig.layer_effect[worst]:+.3g} logits in layer {worst}). "
                + (
                    "No number of steps tried was enough: the path has a kink there."
                    if config.ig.n_steps == "auto"
                    else f"Use more steps: ig.n_steps={4 * config.ig.n_steps}, or ig.n_steps=auto."
                )
            )
    return tuple(found)
