"""Cache of results that the jobs of a sweep share, keyed by a hash of everything a result depends on.

A result is a file `KIND-DIGEST.safetensors`. Its name is never trusted: the file holds the inputs it was computed from
and a hash of its numbers. One that does not agree is reported and computed again. Two processes that need the same
result at once compute it once. Parts of a long result, `part-RESULT-DIGEST.safetensors`, are kept until it is whole: a
process that was killed leaves them to the next.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock
from torch import Tensor

from igap.storage import tensors_file
from igap.storage.atomic import write_bytes

FOLDER = ".store"
"""Name of the cache in a sweep's folder."""

LARGEST = tensors_file.LARGEST
"""Bytes. A larger result is not cached: reading it back takes about as long as computing it."""

PART_EVERY = 1.0
"""Seconds of work after which parts are written."""

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
        return self.get_or_compute_first(kind, [inputs], lambda _: [compute()])

    def get_or_compute_first(
        self,
        kind: str,
        inputs: Sequence[Mapping[str, object]],
        compute: Callable[[Sequence[int]], Sequence[Tensors | None]],
    ) -> Tensors:
        """Load the first of several results, or compute it, and those that are not cached, and cache them.

        `compute` takes the places of the results that are missing, the first's among them, and gives each, or None.
        """
        files = [self._file(kind, each) for each in inputs]
        cached = _load(*files[0], warn=False)  # the second look, with the lock, warns
        if cached is not None:
            return cached
        with ExitStack() as locks:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                for path, _ in sorted(files):  # in one order, so that no two processes wait for each other
                    locks.enter_context(FileLock(path.with_suffix(".lock")))
            except OSError as error:
                log.warning(
                    "%s: nothing can be shared there (%s); computing what is needed", self.folder, error.strerror
                )
                return _require(compute([0])[0])
            cached = _load(*files[0])  # written by another process while this one waited
            if cached is not None:
                return cached
            missing = [0, *(place for place in range(1, len(files)) if _load(*files[place]) is None)]
            parts = _Parts(self, _digest(files[0][1]))
            token = _parts.set(parts)
            try:
                made = compute(missing)
            finally:
                _parts.reset(token)
            for place, tensors in zip(missing, made, strict=True):
                if tensors is not None and _size(tensors) <= LARGEST:
                    _save(*files[place], tensors)
            parts.forget()
            return _require(made[0])

    def _file(self, kind: str, inputs: Mapping[str, object], prefix: str = "") -> tuple[Path, str]:
        """The path of a result, and what it must say that it was computed from."""
        identity = json.dumps({"kind": kind, **self.common, "inputs": inputs}, sort_keys=True)
        return self.folder / f"{prefix or kind}-{_digest(identity)}.safetensors", identity


@dataclass
class _Parts:
    """Parts of a result that is being computed."""

    cache: ResultCache
    of: str
    """The digest of what the result depends on."""
    waiting: list[tuple[Path, str, Tensors]] = field(default_factory=list)
    written: float = field(default_factory=time.perf_counter)
    """When parts were last written."""

    def get_or_compute(self, inputs: Mapping[str, object], compute: Callable[[], Tensors]) -> Tensors:
        path, identity = self.cache._file("part", {"of": self.of, **inputs}, f"part-{self.of}")
        cached = _load(path, identity)
        if cached is not None:
            return cached
        made = compute()
        self.waiting.append((path, identity, made))
        if time.perf_counter() - self.written >= PART_EVERY:
            for each in self.waiting:
                if _size(each[2]) <= LARGEST:
                    _save(*each)
            self.waiting, self.written = [], time.perf_counter()
        return made

    def forget(self) -> None:
        """Remove what the whole result holds."""
        for path in self.cache.folder.glob(f"part-{self.of}-*.safetensors"):
            with suppress(OSError):
                path.unlink(missing_ok=True)


_parts: ContextVar[_Parts | None] = ContextVar("parts", default=None)
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


def get_or_compute_first(
    kind: str, inputs: Sequence[Mapping[str, object]], compute: Callable[[Sequence[int]], Sequence[Tensors | None]]
) -> Tensors:
    """As `get_or_compute` the first of several results; those that are missing in the cache are computed beside it."""
    cache = _active.get()
    return _require(compute([0])[0]) if cache is None else cache.get_or_compute_first(kind, inputs, compute)


def part(inputs: Mapping[str, object], compute: Callable[[], Tensors]) -> Tensors:
    """Load a part of the result that is being computed, where a killed process left it, or compute it.

    `inputs` is what tells the part from the result's other parts, as JSON values.
    """
    parts = _parts.get()
    return compute() if parts is None else parts.get_or_compute(inputs, compute)


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


def _digest(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()[:24]


def _size(tensors: Tensors) -> int:
    """In bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _require(tensors: Tensors | None) -> Tensors:
    assert tensors is not None
    return tensors
