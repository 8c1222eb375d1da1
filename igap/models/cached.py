"""Caches of checkpoints: headers by content, and the model of consecutive jobs."""

import functools
from pathlib import Path

import torch
from transformer_lens.model_bridge import TransformerBridge

from igap.config import ModelConfig, RunConfig
from igap.errors import InputError
from igap.models.fingerprint import fingerprint
from igap.models.load import Header, find_checkpoint, is_hub_name, load_model, read_header


def header_of(name: str, revision: str | None) -> Header:
    """The checkpoint's header, read again when its files change."""
    folder = _find_folder(name, revision)
    return _read_header(name, revision, fingerprint(folder))


def _find_folder(name: str, revision: str | None) -> Path:
    return _from_hub(name, revision) if is_hub_name(name) else find_checkpoint(name)


_from_hub = functools.lru_cache(maxsize=16)(find_checkpoint)
"""The hub is asked only once for each name."""


@functools.lru_cache(maxsize=4)
def _read_header(name: str, revision: str | None, content: str) -> Header:  # noqa: ARG001 - the content is a key only
    return read_header(name, revision)


def resolve_device(device: str) -> str:
    """Resolve `auto` to cuda or cpu; keep any other device. Raises InputError on one that this machine lacks."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    kind, _, index = device.partition(":")
    if not available[kind] or (kind == "cuda" and index and int(index) >= torch.cuda.device_count()):
        raise InputError(f"device: got {device}, which this machine does not have. Use device=cpu or device=auto.")
    return device


def run_model(config: RunConfig, checkpoint: str | None = None) -> TransformerBridge:
    """The model of a run, as `cached_model` returns it."""
    return cached_model(config.model, config.device, checkpoint)


def cached_model(model: ModelConfig, device: str, checkpoint: str | None = None) -> TransformerBridge:
    """Load the model, once for consecutive runs and searches of the same model.

    Raises InputError if its files do not have the fingerprint `checkpoint` (None: their present one), or change while
    they are read: numbers of one checkpoint must not be stored under another's key.
    """
    folder = _find_folder(model.name, model.revision)
    checkpoint = checkpoint or fingerprint(folder)
    bridge = _cached_model(model, resolve_device(device), checkpoint)
    if fingerprint(folder) != checkpoint:
        _cached_model.cache_clear()
        raise InputError(
            f"model.name: got {model.name}, whose files have changed since the run was planned. Start it again."
        )
    return bridge


@functools.lru_cache(maxsize=1)
def _cached_model(model: ModelConfig, device: str, content: str) -> TransformerBridge:  # noqa: ARG001 - as in _read_header
    return load_model(
        model.name, processing=model.processing, device=device, dtype=model.dtype, revision=model.revision
    )
