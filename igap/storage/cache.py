"""Results that jobs of a sweep share: computed once, kept under the hash of all they depend on, checked when loaded.

A file is a safetensors file `KIND-DIGEST.safetensors`. Its name is never believed: it holds the inputs it was computed
from and a hash of its numbers, and whatever does not agree is reported and computed again. Two processes that need the
same result at once compute it once.
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
"""Its name in a sweep's folder."""

LARGEST = tensors_file.LARGEST
"""Bytes. A larger result is computed where it is needed: reading it back takes about as long."""

Tensors = Mapping[str, Tensor]

log = logging.getLogger("igap")


@dataclass(frozen=True)
class Store:
    """A folder of shared results and what all of them depend on."""

    folder: Path
    common: Mapping[str, object]
    """Model, numerics, versions: JSON values."""

    def shared(self, kind: str, inputs: Mapping[str, object], compute: Callable[[], Tensors]) -> Tensors:
        """What `compute` gives, from the folder if it is there; a file that is not what it should be is replaced."""
        asked = json.dumps({"kind": kind, **self.common, "inputs": inputs}, sort_keys=True)
        path = self.folder / f"{kind}-{hashlib.sha256(asked.encode()).hexdigest()[:24]}.safetensors"
        found = _load(path, asked, said=False)  # once, with the lock
        if found is not None:
            return found
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path.with_suffix(".lock")).acquire()
        except OSError as error:
            log.warning("%s: nothing can be shared there (%s); computing what is needed", self.folder, error.strerror)
            return compute()
        with lock:
            found = _load(path, asked)  # kept by another process, while this one waited
            if found is not None:
                return found
            tensors = compute()
            if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) <= LARGEST:
                _keep(path, asked, tensors)
            return tensors


_active: ContextVar[Store | None] = ContextVar("store", default=None)


@contextmanager
def sharing(store: Store | None) -> Iterator[None]:
    """A block in which `shared` keeps results in this store; None keeps nothing."""
    token = _active.set(store)
    try:
        yield
    finally:
        _active.reset(token)


def shared(kind: str, inputs: Mapping[str, object], compute: Callable[[], Tensors]) -> Tensors:
    """What `compute` gives, kept in the store around this call, if there is one.

    `inputs` are all that the result depends on beyond model, numerics and versions, as JSON values.
    """
    store = _active.get()
    return compute() if store is None else store.shared(kind, inputs, compute)


def inputs_of(path: Path) -> str:
    """What a file of a store was computed from, as JSON. Raises ValueError on a file that is not as it was written."""
    return tensors_file.read(path)[0]


def _load(path: Path, asked: str, *, said: bool = True) -> Tensors | None:
    if not os.path.lexists(path):
        return None
    try:
        kept, tensors = tensors_file.read(path)
        if kept != asked:
            raise ValueError("it holds what other inputs gave")
    except ValueError as error:
        if said:
            log.warning("%s: %s; computing it again", path, error)
        return None
    return tensors


def _keep(path: Path, asked: str, tensors: Tensors) -> None:
    try:
        write_bytes(path, tensors_file.to_bytes(asked, tensors))
    except OSError as error:
        log.warning("%s: cannot be kept for other jobs (%s)", path, error.strerror)
