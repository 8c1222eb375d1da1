"""What a checkpoint is, by its content: two copies have one fingerprint, and a changed file another."""

import functools
import hashlib
from pathlib import Path

DEQUANTISED = "dequantised"
"""The folder in igap's cache whose folders are named by the SHA-256 of the GGUF file they came from."""

FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
"""Names of the files that a checkpoint is."""


def fingerprint(folder: Path) -> str:
    """16 hex digits of the weights, config and tokenizer files in a folder; `hub:` and the commit of a hub snapshot.

    The hub's cache names a snapshot's folder by its commit, so that its gigabytes need not be read; igap's own cache
    names what it dequantised by the hash of the GGUF file (`gguf:`).
    """
    if folder.parent.name == DEQUANTISED:
        return f"gguf:{folder.name[:16]}"
    if folder.parent.name == "snapshots" and len(folder.name) == 40:
        return f"hub:{folder.name[:16]}"
    files = sorted({path for pattern in FILES for path in folder.glob(pattern) if path.is_file()})
    return _of(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files))


@functools.lru_cache(maxsize=16)
def _of(files: tuple[tuple[Path, int, int], ...]) -> str:
    whole = hashlib.sha256()
    for path, _, _ in files:
        with path.open("rb") as file:
            whole.update(f"{path.name}\0".encode() + hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()[:16]
