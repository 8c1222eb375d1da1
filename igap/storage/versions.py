"""Versions of the code that made a result: of the packages its numbers depend on, and of igap's own source."""

import functools
import hashlib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path

_PACKAGES = ("igap", "torch", "transformers", "transformer-lens", "captum", "numpy", "scipy")


@functools.cache
def versions() -> Mapping[str, str]:
    """Package to version, and under `source` 12 hex digits of igap's Python files: they change with any edit."""
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return packages | {"source": digest.hexdigest()[:12]}


def version_differences(made_by: Mapping[str, object]) -> tuple[str, ...]:
    """Differences of the versions in a summary (`version/NAME`) from these, each as "torch 2.12.0 -> 2.13.0"."""
    return tuple(
        f"{name} {made_by.get(f'version/{name}', 'unknown')} -> {version}"
        for name, version in versions().items()
        if made_by.get(f"version/{name}") != version
    )
