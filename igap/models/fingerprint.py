"""Fingerprint of a checkpoint by its content: copies share one, a changed file gives another."""

import functools
import hashlib
from pathlib import Path

DEQUANTISED = "dequantised"
"""Folder in igap's cache; its subfolders are named by the SHA-256 of the GGUF file they came from."""

FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
"""Names of the files that make up a checkpoint."""


def fingerprint(folder: Path) -> str:
    """Hash of the weights, config and tokenizer files in a folder, 16 hex digits.

    For a snapshot in the hub's cache it is `hub:` and the commit that names its folder, so that gigabytes need not be
    read; for dequantised weights it is `gguf:` and the hash of the GGUF file.
    """
    if folder.parent.name == DEQUANTISED:
        return f"gguf:{folder.name[:16]}"
    if folder.parent.name == "snapshots" and len(folder.name) == 40:
        return f"hub:{folder.name[:16]}"
    files = sorted({path for pattern in FILES for path in folder.glob(pattern) if path.is_file()})
    return _hash_files(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files))


@functools.lru_cache(maxsize=16)
def _hash_files(files: tuple[tuple[Path, int, int], ...]) -> str:
    whole = hashlib.sha256()
    for path, _, _ in files:
        with path.open("rb") as file:
            whole.update(f"{path.name}\0".encode() + hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()[:16]
