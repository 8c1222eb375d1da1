"""A safetensors file that holds a text beside its tensors, and a hash of both: it is as it was written, or refused."""

import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from igap.errors import printable
from igap.storage.untrusted import check_file

LARGEST = 256 * 2**20
"""Bytes of the tensors of a file."""

_LARGEST_HEADER = 100_000_000
"""Bytes. What safetensors takes for one at most."""


def to_bytes(text: str, tensors: Mapping[str, Tensor]) -> bytes:
    """Return the content of a file from which `read` gives text and tensors."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return save(plain, metadata={"asked": text, "sha256": _digest(text, plain)})


def read(path: Path) -> tuple[str, dict[str, Tensor]]:
    """Return the text and the tensors of a file. Raises ValueError on one that is not as it was written."""
    try:
        check_file(path, LARGEST + _LARGEST_HEADER)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        text, digest = metadata["asked"], metadata["sha256"]
    except (OSError, ValueError, SafetensorError, KeyError) as error:
        raise ValueError(f"it cannot be read ({printable(error)})") from error
    if digest != _digest(text, tensors):
        raise ValueError("its numbers do not agree with its hash")
    return text, tensors


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the hash of the text, and of names, types, shapes and bytes of the tensors."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        head = f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
        digest.update(struct.pack("<q", len(head)) + head)
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
