"""The main job, in order: pairs, model, an attribution map a method and site, their comparison, spread and follow-ups.

Reads no file but the checkpoint and the pairs, and writes none: the result goes to `records`, `tracking` and `report`.
"""

import functools
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge

from igap import ablation_study, circuit, curves, explanation, faithfulness, pair_sources, qk, screening
from igap.attribution import (
    AttributionMap,
    activation_patching,
    atp_star,
    attribution_patching,
    integrated_gradients,
)
from igap.attribution.integrated_gradients import check_quadrature
from igap.attribution.kept import kept
from igap.attribution.maps import Progress
from igap.baselines import Baseline, configured, reference_ids, same_length
from igap.cautions import cautions, n_unscored, spacing
from igap.comparison import Comparison, compare
from igap.config import AblationConfig, ModelConfig, RunConfig
from igap.contrast import contrasts
from igap.errors import InputError
from igap.failures import Failure, surviving
from igap.findings import Compared, Finding, complete
from igap.memory import machine_bytes
from igap.models.fingerprint import fingerprint
from igap.models.load import Header, check_sites, find_checkpoint, is_hub_name, load_model, read_header
from igap.performance import encode_prompts
from igap.prompts import PromptPair, TokenPair, encode_prompt, least_gap, tokenize
from igap.replacements import check_donors, too_few_references
from igap.sites import Site, locate
from igap.spread import Spread, spread
from igap.store import Store, sharing
from igap.versions import versions

Stage = Callable[[str], AbstractContextManager[Progress | None]]
"""Opens a stage of long work by its name and gives what to tell its progress to."""


def silent(name: str) -> AbstractContextManager[Progress | None]:  # noqa: ARG001 - the interface of a Stage
    """A stage that tells nobody."""
    return nullcontext()


_REFERENCES = 20
"""Prompts of a mean baseline that are looked for before the model loads: where they are, there are more."""


def _heads(config: RunConfig) -> bool:
    return "heads" in config.asked_sites


FOLLOW_UPS: Mapping[str, tuple[Callable[[RunConfig], bool], Callable[[Compared, Progress | None], Finding]]] = {
    "screening": (lambda config: True, screening.follow_up),  # noqa: ARG005 - the interface of them all
    "qk": (_heads, qk.follow_up),
    "circuit": (lambda config: config.model.circuit is not None and _heads(config), circuit.follow_up),
    "explain": (lambda config: config.explain and _heads(config), explanation.follow_up),
    "curves": (
        lambda config: config.curves.components != "none" and (config.curves.components != "default" or _heads(config)),
        curves.follow_up,
    ),
    "ablation": (lambda config: config.ablation.kind != "none", ablation_study.follow_up),
    "faithfulness": (lambda config: config.faithfulness != "none", faithfulness.follow_up),
}
"""What comes after the comparison, in this order: whether a run asks for it, and what does it."""


@dataclass(frozen=True, eq=False)
class Result:
    """Everything a run found out."""

    config: RunConfig
    key: str
    """12 hex digits of what determines the numbers: see RunConfig.key_of."""
    checkpoint: str
    """The model's fingerprint."""
    device: str
    pairs: tuple[PromptPair, ...]
    tokens: tuple[TokenPair, ...]
    """Of each pair, as the model takes it."""
    clean_logit_diffs: tuple[float, ...]
    """F(x) of each pair, in logits."""
    corrupted_logit_diffs: tuple[float, ...]
    """F(x') of each pair, in logits."""
    route: str
    """How the engine ran the model: what comes after the site (`suffix`) or whole with hooks (`hooks`)."""
    why_route: str
    maps: Mapping[Site, Mapping[str, AttributionMap]]
    """By site, then method: ig, ap, atp, and atp_star in models of several layers. Of several pairs the mean."""
    comparisons: Mapping[Site, Comparison]
    """IG against AP, by site. Of several pairs, of the mean maps."""
    spread: Spread | None
    """None for one pair."""
    findings: Mapping[str, Finding]
    """Of the follow-ups that had something to do, by their names."""
    seconds: Mapping[str, float]
    versions: Mapping[str, str]
    warnings: tuple[str, ...]
    beside: Mapping[str, "Result"] = field(default_factory=dict)
    """The other runs of a study, by folder name."""
    failures: Mapping[str, Failure] = field(default_factory=dict)
    """Why follow-ups failed, by their names: they have no finding."""

    @property
    def clean_logit_diff(self) -> float:
        """F(x), in logits; the mean over pairs."""
        return fmean(self.clean_logit_diffs)

    @property
    def corrupted_logit_diff(self) -> float:
        """F(x'), in logits; the mean over pairs."""
        return fmean(self.corrupted_logit_diffs)

    @property
    def gaps(self) -> tuple[float, ...]:
        """D = F(x) - F(x') of each pair, in logits."""
        return tuple(x - y for x, y in zip(self.clean_logit_diffs, self.corrupted_logit_diffs, strict=True))

    @property
    def gap(self) -> float:
        """D = F(x) - F(x'), in logits; the mean over pairs."""
        return fmean(self.gaps)

    @property
    def n_unscored(self) -> int:
        """Pairs whose gap is too small to divide by: they have effects, and no scores."""
        return n_unscored(self.clean_logit_diffs, self.gaps, self.config.prompts.min_gap)

    @property
    def has_scores(self) -> bool:
        """Whether there is a gap that is large enough to divide by."""
        return self.n_unscored < len(self.gaps)


@dataclass(frozen=True, eq=False)
class Checked:
    """What a config asks for, as the tokenizer and the checkpoint's files alone give it."""

    pairs: tuple[PromptPair, ...]
    tokens: tuple[TokenPair, ...]
    """With prompts.bos=auto without a BOS, which is the model's."""
    checkpoint: str
    """The model's fingerprint."""
    key: str
    """12 hex digits of what determines the numbers: see RunConfig.key_of."""


def check(config: RunConfig) -> Checked:
    """The tokenised pairs and the key, without the model: everything that can be refused before the weights load.

    Raises ValueError on a bad pair, the first of them by its row, on a bad quadrature, checkpoint or device.
    """
    check_quadrature(config.ig.method, config.ig.n_steps, config.ig.path)
    resolve_device(config.device)
    header = _header(config.model.name, config.model.revision)
    check_sites(header, config.asked_sites, config.model.name)
    contents = {"checkpoint": fingerprint(header.folder)}
    if config.model.circuit is not None:
        circuit.check_shape(header.n_layers, header.n_heads)
    widths: dict[Site, int | None] = {"heads": header.n_heads, "neurons": header.n_neurons}
    if config.curves.components not in ("default", "none"):
        for name in config.curves.components.split():
            locate(name, header.n_layers, widths, item="curves.components")
    if config.ablation.kind != "none":
        if config.ablation.components not in ("outliers", "top"):
            for name in config.ablation.components.split():
                locate(name, header.n_layers, widths, item="ablation.components")
        n_heads = (header.n_layers or 0) * (header.n_heads or 0)
        asked_for = config.ablation.top != AblationConfig.model_fields["top"].default
        if config.ablation.components == "top" and asked_for and 0 < n_heads < config.ablation.top:
            raise InputError(
                f"ablation.top: got {config.ablation.top}, but the model has {n_heads} heads. Use fewer, or name some "
                "in ablation.components."
            )
        prompts = ablation_study.prompts_of(config.ablation, header.tokenizer, config.prompts.bos)
        limits: Any = {"prepend_bos": False, "n_ctx": header.n_ctx, "n_vocab": header.n_vocab}
        encoded_prompts = encode_prompts(prompts, header.tokenizer, item=config.ablation.file or "ablation.n", **limits)
        contents["ablation"] = _digest([[one.text, one.answer, one.distractor] for one in prompts])
        kinds = {config.ablation.kind, *config.ablation.also}
        if "resample" in kinds:
            check_donors(len(one.ids) for one in encoded_prompts)
        if config.ablation.reference_n > len(prompts) and kinds & {"mean", "mean_positional"}:
            raise too_few_references(config.ablation.reference_n, len(prompts))
    if config.interactions is not None:
        locate(config.interactions, header.n_layers, widths, item="interactions")
    known: Any = {"prepend_bos": False, "n_ctx": header.n_ctx, "n_vocab": header.n_vocab}
    pairs = pair_sources.read(config.prompts, header.tokenizer)
    _check_memory(config, len(pairs), header)
    tokens = pair_sources.encode(config.prompts, pairs, header.tokenizer, **known)
    baseline = configured(config.baseline)
    if baseline.kind == "mean":
        # Whether the model wants a BOS token only the model itself knows; a pair that has one is left to it.
        own = header.tokenizer.bos_token_id if config.prompts.bos == "auto" else None
        for n_tokens in {pair.clean.shape[1] for pair in tokens if int(pair.clean[0, 0]) != own}:
            _check_references(header.tokenizer, baseline, n_tokens, bos=config.prompts.bos, **known)
    other = baseline.prompt
    if other is not None:
        ids = encode_prompt(header.tokenizer, other, item="baseline.prompt", bos=config.prompts.bos, **known)
        for pair, encoded in zip(pairs, tokens, strict=True):
            if len(pairs) > 1 and len(ids) != encoded.clean.shape[1]:
                raise InputError(
                    f"baseline.prompt: got {len(ids)} tokens, the prompts of {pair.place.rstrip(': ')} have "
                    f"{encoded.clean.shape[1]}; all need one length. Use pairs of one length, or another baseline."
                )
            same_length(ids, encoded)
    contents["tokens"] = _digest([pair.identity for pair in tokens])
    key = config.key_of([pair.texts for pair in pairs], contents)
    return Checked(pairs, tuple(tokens), contents["checkpoint"], key)


@functools.lru_cache(maxsize=64)
def _check_references(tokenizer: Any, baseline: Baseline, n_tokens: int, **known: Any) -> None:
    """Raises InputError where the generator has too few prompts of the pairs' length for a mean over them."""
    reference_ids(tokenizer, baseline, n_tokens, first=_REFERENCES, **known)


def _check_memory(config: RunConfig, n_pairs: int, header: Header) -> None:
    """Raises InputError on more pairs than this machine's memory holds the maps of, at their least.

    Of each pair and method (ig, ap, atp) the effects are kept; they and the scores are there twice while the tensors
    are written.
    """
    widths: dict[Site, int | None] = {"heads": header.n_heads, "neurons": header.n_neurons}
    known = [header.n_layers * width for site in config.asked_sites if header.n_layers and (width := widths[site])]
    numbers = n_pairs * sum(known) * 3 * 5
    size, memory = numbers * getattr(torch, config.model.dtype).itemsize, machine_bytes()
    if n_pairs > 1 and memory is not None and size > memory:
        raise InputError(
            f"prompts: got {n_pairs} pairs, whose maps of {sum(known)} components take {size / 2**30:.0f} GiB, wanted "
            f"what this machine's memory holds ({memory / 2**30:.0f} GiB). Use fewer (prompts.n, prompts.limit), or "
            "sites=heads."
        )


def _digest(values: object) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _header(name: str, revision: str | None) -> Header:
    """The checkpoint's header, read again when its files have changed."""
    folder = _folder(name, revision)
    return _read(name, revision, fingerprint(folder))


def _folder(name: str, revision: str | None) -> Path:
    return _from_hub(name, revision) if is_hub_name(name) else find_checkpoint(name)


_from_hub = functools.lru_cache(maxsize=16)(find_checkpoint)
"""The hub is asked once for a name."""


@functools.lru_cache(maxsize=4)
def _read(name: str, revision: str | None, content: str) -> Header:  # noqa: ARG001 - the content is a key only
    return read_header(name, revision)


def resolve_device(device: str) -> str:
    """`auto` as cuda or cpu, any other device as it is. Raises ValueError for one this machine lacks."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    kind, _, index = device.partition(":")
    if not available[kind] or (kind == "cuda" and index and int(index) >= torch.cuda.device_count()):
        raise InputError(f"device: got {device}, which this machine does not have. Use device=cpu or device=auto.")
    return device


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
    compared = Compared(config, model, pairs, maps, comparisons)
    findings: dict[str, Finding] = {}
    failures: dict[str, Failure] = {}
    for name, (asked_for, follow_up) in FOLLOW_UPS.items():
        if not asked_for(config):
            continue
        since = time.perf_counter()
        with surviving(name, failures), stage(name) as progress:
            findings[name] = complete(follow_up(compared, progress))
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


def model_of(config: RunConfig, checkpoint: str | None = None) -> TransformerBridge:
    """The run's model; see `loaded`."""
    return loaded(config.model, config.device, checkpoint)


def loaded(model: ModelConfig, device: str, checkpoint: str | None = None) -> TransformerBridge:
    """The model, loaded once for runs and searches of one model that follow each other.

    Raises InputError where its files are not those of the fingerprint `checkpoint` (None: whatever they are now), or
    change while they are read: numbers of one checkpoint must not be kept under another's name.
    """
    folder = _folder(model.name, model.revision)
    checkpoint = checkpoint or fingerprint(folder)
    found = _cached_model(model, resolve_device(device), checkpoint)
    if fingerprint(folder) != checkpoint:
        _cached_model.cache_clear()
        raise InputError(
            f"model.name: got {model.name}, whose files have changed since the run was planned. Start it again."
        )
    return found


@functools.lru_cache(maxsize=1)
def _cached_model(model: ModelConfig, device: str, content: str) -> TransformerBridge:  # noqa: ARG001 - as in _read
    return load_model(
        model.name, processing=model.processing, device=device, dtype=model.dtype, revision=model.revision
    )
