"""Cache of results that the jobs of a sweep share, keyed by a hash of everything a result depends on.

A result is a file `KIND-DIGEST.safetensors`. Its name is never trusted: the file holds the inputs it was computed from
and a hash of its numbers. One that does not agree is reported and computed again. Two processes that need the same
result at once compute it once.
"""

import hashlib
import json
import logging
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from igap.errors import printable
from igap.storage.atomic import write_bytes
from igap.storage.untrusted import check_file

FOLDER = ".store"
"""Name of the cache in a sweep's folder."""

LARGEST = 256 * 2**20
"""Bytes. A larger result is not cached: reading it back takes about as long as computing it."""

_LARGEST_HEADER = 100_000_000
"""Bytes of the largest header that safetensors reads."""

Tensors = Mapping[str, Tensor]

log = logging.getLogger("igap")


@dataclass(frozen=True)
class Store:
    """A folder of cached results, and what all of them depend on."""

    folder: Path
    common: Mapping[str, object]
    """Model, numerics, versions: JSON values."""

    def shared(self, kind: str, inputs: Mapping[str, object], compute: Callable[[], Tensors]) -> Tensors:
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


_active: ContextVar[Store | None] = ContextVar("store", default=None)


@contextmanager
def sharing(store: Store | None) -> Iterator[None]:
    """Use this store for calls of `shared` inside the block; None caches nothing."""
    token = _active.set(store)
    try:
        yield
    finally:
        _active.reset(token)


def shared(kind: str, inputs: Mapping[str, object], compute: Callable[[], Tensors]) -> Tensors:
    """Load the result from the store in use, or compute it; without a store it is computed.

    `inputs` is everything the result depends on beyond model, numerics and versions, as JSON values.
    """
    store = _active.get()
    return compute() if store is None else store.shared(kind, inputs, compute)


def inputs_of(path: Path) -> str:
    """The inputs that a cached file was computed from, as JSON. Raises ValueError on a damaged file."""
    return _read(path)[0]


def _load(path: Path, identity: str, *, warn: bool = True) -> Tensors | None:
    if not os.path.lexists(path):
        return None
    try:
        inputs, tensors = _read(path)
        if inputs != identity:
            raise ValueError("it holds what other inputs gave")
    except ValueError as error:
        if warn:
            log.warning("%s: %s; computing it again", path, error)
        return None
    return tensors


def _read(path: Path) -> tuple[str, Tensors]:
    """The inputs and the tensors of a cached file. Raises ValueError on a damaged one."""
    try:
        check_file(path, LARGEST + _LARGEST_HEADER)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        identity, digest = metadata["asked"], metadata["sha256"]
    except (OSError, ValueError, SafetensorError, KeyError) as error:
        raise ValueError(f"it cannot be read ({printable(error)})") from error
    if digest != _digest(identity, tensors):
        raise ValueError("its numbers do not agree with its hash")
    return identity, tensors


def _save(path: Path, identity: str, tensors: Tensors) -> None:
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        write_bytes(path, save(plain, metadata={"asked": identity, "sha256": _digest(identity, plain)}))
    except OSError as error:
        log.warning("%s: cannot be kept for other jobs (%s)", path, error.strerror)


def _digest(identity: str, tensors: Tensors) -> str:
    """Hash of the inputs, and of names, types, shapes and bytes of the tensors."""
    digest = hashlib.sha256(identity.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        head = f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
        digest.update(struct.pack("<q", len(head)) + head)
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
