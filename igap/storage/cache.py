"""Cache of results that the jobs of a sweep share, keyed by a hash of everything a result depends on.

A result is a file `KIND-DIGEST.safetensors`. Its name is never trusted: the file holds the inputs it was computed from
and a hash of its numbers. One that does not agree is reported and computed again. Two processes that need the same
result at once compute it once.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from torch import Tensor

from igap.storage import tensors_file
from igap.storage.atomic import write_bytes

FOLDER = ".store"
"""Name of the cache in a sweep's folder."""

LARGEST = tensors_file.LARGEST
"""Bytes. A larger result is not cached: reading it back takes about as long as computing it."""

Tensors = Mapping[str, Tensor]

log = logging.getLogger("igap")


@dataclass(frozen=True)
class ResultCache:
    """A folder of cached results, and what all of them depend on."""

    folder: Path
    common: Mapping[str, object]
    """Model, numerics, versions: JSON values."""

    def get_or_compute(self, kind: str, inputs: Mapping[str, object], compute: Callable[[], Tensors]) -> Tensors:
        """Load the result from the folder, or compute and cache it. A damaged file is replaced."""
        identity = json.dumps({"kind": kind, **self.common, "inputs": inputs}, sort_keys=True)
        path = self.folder / f"{kind}-{hashlib.sha256(identity.encode()).hexdigest()[:24]}.safetensors"
        cached = _load(path, identity, warn=False)  # the second look, with the lock, warns
        if cached is not None:
            return cached
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path.with_suffix(".lock")).acquire()
        except OSError as error:
            log.warning("%s: nothing can be shared there (%s); computing what is needed", self.folder, error.strerror)
            return compute()
        with lock:
            cached = _load(path, identity)  # written by another process while this one waited
            if cached is not None:
                return cached
            tensors = compute()
            if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) <= LARGEST:
                _save(path, identity, tensors)
            return tensors


_active: ContextVar[ResultCache | None] = ContextVar("store", default=None)


@contextmanager
def use_cache(cache: ResultCache | None) -> Iterator[None]:
    """Use this cache for calls of `get_or_compute` inside the block; None caches nothing."""
    token = _active.set(cache)
    try:
        yield
    finally:
        _active.reset(token)


def get_or_compute(kind: str, inputs: Mapping[str, object], compute: Callable[[], Tensors]) -> Tensors:
    """Load the result from the cache in use, or compute it; without a cache it is computed.

    `inputs` is everything the result depends on beyond model, numerics and versions, as JSON values.
    """
    cache = _active.get()
    return compute() if cache is None else cache.get_or_compute(kind, inputs, compute)


def inputs_of(path: Path) -> str:
    """The inputs that a cached file was computed from, as JSON. Raises ValueError on a damaged file."""
    return tensors_file.read(path)[0]


def _load(path: Path, identity: str, *, warn: bool = True) -> Tensors | None:
    if not os.path.lexists(path):
        return None
    try:
        inputs, tensors = tensors_file.read(path)
        if inputs != identity:
            raise ValueError("it holds what other inputs gave")
    except ValueError as error:
        if warn:
            log.warning("%s: %s; computing it again", path, error)
        return None
    return tensors


def _save(path: Path, identity: str, tensors: Tensors) -> None:
    try:
        write_bytes(path, tensors_file.to_bytes(identity, tensors))
    except OSError as error:
        log.warning("%s: cannot be kept for other jobs (%s)", path, error.strerror)
