"""What a config asks for, checked as far as the tokenizer and the checkpoint's files allow: before the weights load."""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from igap.analyses.registry import check_analyses, check_pairs
from igap.attribution.integrated_gradients import check_quadrature
from igap.attribution.methods import METHODS, check_methods
from igap.config import RunConfig
from igap.engine.baselines import Baseline, baseline_of, check_same_length, reference_ids
from igap.engine.batching import machine_bytes
from igap.engine.positions import check_lengths, check_spans, own_spans
from igap.engine.user_metrics import source_digest, try_metric
from igap.errors import InputError
from igap.inputs import sources
from igap.inputs.prompts import PromptPair, TokenPair, encode_pair, encode_prompt
from igap.metrics import METRICS
from igap.models.cached import header_of, resolve_device
from igap.models.fingerprint import fingerprint
from igap.models.load import Header, check_sites

_REFERENCES = 20
"""Prompts of a mean baseline that are drawn before the model loads: a generator that has these has more."""


@dataclass(frozen=True, eq=False)
class Checked:
    """What a config asks for, as the tokenizer and the checkpoint's files alone give it."""

    pairs: tuple[PromptPair, ...]
    tokens: tuple[TokenPair, ...]
    """Token ids, BOS included."""
    checkpoint: str
    """The model's fingerprint."""
    key: str
    """12 hex digits of what determines the numbers: see RunConfig.key_of."""
    left_out: tuple[str, ...] = ()
    """Why rows of the file are no pairs here: `prompts.skip_invalid`."""


def check(config: RunConfig) -> Checked:
    """Refuse everything that can be refused before the weights load, and return the tokenised pairs and the key.

    Raises:
        InputError: A pair (the first bad one by its row), the quadrature, the device, the checkpoint, the baseline, or
            what an analysis checks, is invalid.
    """
    check_quadrature(config.ig.method, config.ig.n_steps, config.ig.path)
    resolve_device(config.device)
    header = header_of(config.model.name, config.model.revision)
    check_sites(header, config.asked_sites, config.model.name)
    _check_top(config, header)
    check_methods(config, header)
    contents = {"checkpoint": fingerprint(header.folder)}
    contents = {**check_analyses(config, header), **contents}
    if config.metric.name == "custom":
        contents["metric"] = source_digest(config.metric)
    several = config.metric.name == "custom" or METRICS[config.metric.name].takes_several
    limits: Any = {"prepend_bos": header.prepends_bos, "n_ctx": header.n_ctx, "n_vocab": header.n_vocab}
    left_out: list[str] = []
    pairs = sources.read_prompt_pairs(config.prompts, header.tokenizer, left_out)
    _check_memory(config, len(pairs), header)
    pairs, tokens = sources.encode_fitting(config.prompts, pairs, header.tokenizer, left_out, several=several, **limits)
    if config.metric.name == "custom" and header.n_vocab is not None:
        try_metric(config.metric, tokens, header.n_vocab)
    _check_positions(config, tokens)
    check_pairs(config, tokens)
    if config.metric.name == "custom" and config.ablation.kind != "none" and any(pair.forced for pair in tokens):
        raise InputError(
            "ablation: got it with metric=custom and an answer of several tokens, but prompts of an ablation have "
            "answers of one, of which the function sees other logits. Leave ablation out, or use metric=logprob."
        )
    if config.positions.kind == "each":
        _check_memory(config, len(pairs), header, n_maps=1 + tokens[0].clean.shape[1])
    baseline = baseline_of(config.baseline)
    moved_to = {baseline, *(method.baseline(config) for method in METHODS.values() if method.is_requested(config))}
    for references in (each for each in moved_to if each.kind == "mean" and config.direction == "noising"):
        for n_tokens in {pair.n_prompt for pair in tokens}:
            _check_references(header.tokenizer, references, n_tokens, bos=config.prompts.bos, **limits)
    other = baseline.prompt
    if other is not None:
        ids = encode_prompt(header.tokenizer, other, item="baseline.prompt", bos=config.prompts.bos, **limits)
        for pair, encoded in zip(pairs, tokens, strict=True):
            if len(pairs) > 1 and len(ids) != encoded.n_prompt:
                raise InputError(
                    f"baseline.prompt: got {len(ids) - encoded.n_leading} tokens, the prompts of "
                    f"{pair.place.rstrip(': ')} have {encoded.n_prompt - encoded.n_leading} (without the token "
                    "before every prompt); all need one length. Use pairs of one length, or another baseline."
                )
            check_same_length(ids, encoded)
    if config.positions.kind == "own":
        contents["spans"] = _digest([own_spans(pair) for pair in tokens])
    # Keys are of the prompts without the model's own BOS token, which goes with the checkpoint.
    bare = {**limits, "prepend_bos": False, "several": several}
    contents["tokens"] = _digest([encode_pair(pair, header.tokenizer, **bare).identity for pair in pairs])
    key = config.key_of([pair.texts for pair in pairs], contents)
    return Checked(pairs, tuple(tokens), contents["checkpoint"], key, tuple(left_out))


@functools.lru_cache(maxsize=64)
def _check_references(tokenizer: Any, baseline: Baseline, n_tokens: int, **limits: Any) -> None:
    """Raise InputError where the generator has too few prompts of the pairs' length for a mean over them."""
    reference_ids(tokenizer, baseline, n_tokens, first=_REFERENCES, **limits)


def _check_positions(config: RunConfig, tokens: Sequence[TokenPair]) -> None:
    """Raise InputError on positions that the prompts do not have."""
    check_lengths(config.positions.value, tokens, config.direction)
    for index, pair in enumerate(tokens):
        try:
            check_spans(config.positions.value, pair, config.direction, config.baseline.kind)
        except InputError as error:
            if len(tokens) == 1:
                raise
            raise InputError(f"{error} This is pair {index}, counted from 0.") from None


def _check_top(config: RunConfig, header: Header) -> None:
    """Raise InputError where no site has so many components."""
    most = max((header.n_layers or 0) * (header.widths[site] or 0) for site in config.asked_sites)
    if config.ap.top is not None and config.ap.top >= most > 0:
        raise InputError(
            f"ap.top: got {config.ap.top} with sites={config.sites}, of which none has more than {most} components, "
            "wanted fewer than that. Leave it out to patch them all."
        )


def _check_memory(config: RunConfig, n_pairs: int, header: Header, n_maps: int = 1) -> None:
    """Raise InputError on more pairs than this machine's memory holds the maps of, at the least.

    The effects of each pair and method are kept, `n_maps` of them by position; effects and scores are there twice while
    the tensors are written.
    """
    sizes = [(header.n_layers or 0) * (header.widths[site] or 0) for site in config.asked_sites]
    methods = [method for method in METHODS.values() if method.is_requested(config)]
    numbers = n_pairs * sum(sizes) * len(methods) * 5 * n_maps
    size, memory = numbers * getattr(torch, config.model.dtype).itemsize, machine_bytes()
    if n_pairs > 1 and memory is not None and size > memory:
        raise InputError(
            f"prompts: got {n_pairs} pairs, whose maps of {sum(sizes)} components take {size / 2**30:.0f} GiB, wanted "
            f"what this machine's memory holds ({memory / 2**30:.0f} GiB). Use fewer (prompts.n, prompts.limit), or "
            "sites=heads."
        )


def _digest(values: object) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
