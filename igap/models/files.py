"""Checks of a checkpoint's files before a library reads them, and errors that name the damaged file.

Reads the headers of the weights, not the weights.
"""

import contextlib
import json
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from igap.errors import InputError, one_line
from igap.models.quiet import as_input_error, silence_libraries
from igap.storage.untrusted import check_file

_MOST_BYTES = 2**27
"""Bytes of the largest file beside the weights, four times the longest tokenizer.json of a known model."""
_LARGEST = 2**24
"""The largest size that a config may name: a list of this length takes a second, and every real size is far below."""
SIZES = ("num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings")
"""The sizes in a config that a header has, layers first."""
_SIZE = re.compile(r"^n_|^num_|size|dim|layer|block|head|embd|embed|inner|hidden|expert|label|rank|width|vocab|ffn")
_UNBOUNDED = ("param", "step", "theta", "seed", "token", "position", "length", "window", "context", "ctx")
"""Parts of names of numbers that are not sizes of weights, or only of learned positions."""
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_READ = (
    *("*config.json", "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt"),
    *("*.safetensors", "*.safetensors.index.json", "*.model"),
)
"""Names of the files that libraries read, all of which have to be regular files."""
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class TensorHeader:
    """Header of a tensor in a file of weights."""

    file: str
    shape: tuple[int, ...]
    dtype: str
    """safetensors' name of the type: F32, BF16, I64, ..."""


def damaged_file_error(name: str, file: str, why: str) -> InputError:
    """The error for a damaged file of the checkpoint `name`."""
    reason = why.rstrip(".")
    return InputError(
        f"model.name: got {name!r}, which cannot be read as a checkpoint: {file}: {reason}. Save or download it again."
    )


def check_files(folder: Path, name: str) -> None:
    """Raises InputError if something with the name of a checkpoint's file is not a readable regular file."""
    try:
        paths = sorted(path for path in folder.iterdir() if any(path.match(pattern) for pattern in _READ))
    except OSError as error:
        raise InputError(
            f"model.name: got {name!r}, a folder that cannot be read ({error.strerror}). Check its permissions."
        ) from error
    for path in paths:
        try:
            check_file(path, None if path.suffix == ".safetensors" else _MOST_BYTES)
            path.open("rb").close()
        except OSError as error:
            raise damaged_file_error(name, path.name, error.strerror or one_line(error, 200)) from error
        except ValueError as error:
            raise damaged_file_error(name, path.name, str(error)) from None


def read_tensor_headers(folder: Path, name: str, chosen: Any = None) -> dict[str, TensorHeader]:
    """Read the headers of all tensors of the weights, by name.

    `chosen` is the file of weights, or the index, that config.json names. Raises InputError on a file that safetensors
    cannot open, and on one outside the folder, which no fingerprint covers.
    """
    from safetensors import safe_open

    present = [path.name for pattern in ("*.safetensors", "*.safetensors.index.json") for path in folder.glob(pattern)]
    start = chosen or next((file for file in (_SINGLE, _INDEX) if file in present), None)
    if start not in present:
        why = f"it names {chosen!r:.100}, no file here" if chosen else f"there is none, and no {_INDEX}"
        raise damaged_file_error(name, "config.json" if chosen else _SINGLE, why)
    stored = {}
    for file in _read_index(folder, start, present, name) if start.endswith(".json") else [start]:
        with (
            as_input_error(lambda why, file=file: damaged_file_error(name, file, why)),  # type: ignore[misc]
            safe_open(folder / file, framework="pt") as tensors,
        ):
            for key in tensors.keys():  # noqa: SIM118 - it is no dictionary
                entry = tensors.get_slice(key)
                stored[key] = TensorHeader(file, tuple(entry.get_shape()), entry.get_dtype())
    return stored


def _read_index(folder: Path, file: str, present: list[str], name: str) -> list[str]:
    """The files that an index names. Raises InputError on a damaged index and on missing files."""
    whole = read_object(folder, file, name)
    if not isinstance(whole.get("metadata", {}), dict):
        raise damaged_file_error(name, file, "its metadata is no object")
    index = whole.get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(each, str) for each in index.values()):
        raise damaged_file_error(name, file, "its weight_map is no object of tensors' names and files' names")
    missing = sorted(set(index.values()).difference(present))
    if missing or not index:
        raise damaged_file_error(
            name, file, f"it names {missing[0]!a:.100}, no file here" if missing else "it names no file"
        )
    return sorted(set(index.values()))


def read_object(folder: Path, file: str, name: str) -> dict[str, Any]:
    """Read the object in a JSON file. Raises InputError naming the file if there is none."""
    with as_input_error(lambda why: damaged_file_error(name, file, why)):
        value = json.loads((folder / file).read_text("utf-8"))
    if not isinstance(value, dict):
        raise damaged_file_error(name, file, f"it holds {str(value)!r:.40}, wanted an object")
    return value


def check_sizes(config: Mapping[str, Any], name: str, file: str = "config.json") -> None:
    """Raises InputError if the settings hold a size so large that a library would loop over it for ever."""
    for field, value in _whole_numbers(config):
        if value > _LARGEST and _SIZE.search(field) and not any(part in field for part in _UNBOUNDED):
            raise damaged_file_error(name, file, f"{field} is {value!s:.40}, wanted a size that weights can have")


def size_of(config: Any, field: str, name: str, file: str = "config.json") -> int | None:
    """A size in the config, None if it has none. Raises InputError if it is not a positive whole number."""
    size = getattr(config, field, None)
    if size is not None and (not isinstance(size, int) or size < 1):
        own = getattr(config, "attribute_map", {}).get(field, field)
        raise damaged_file_error(name, file, f"{own} is {size!r:.40}, wanted a whole number from 1 on")
    return size


def check_layers(config: Any, stored: Mapping[str, TensorHeader], name: str, file: str = "config.json") -> None:
    """Raises InputError if the config has more layers than the weights have tensors, before any layer is built."""
    n_layers = getattr(config, "num_hidden_layers", None)
    if n_layers is not None and n_layers > len(stored):
        raise damaged_file_error(name, file, f"it says {n_layers} layers, but the weights are {len(stored)} tensors")


def check_allocation(config: Any, stored: Mapping[str, TensorHeader], name: str, file: str = "config.json") -> None:
    """Raises InputError if the config's model is several times as large as the weights, before it takes memory."""
    from transformers import AutoModelForCausalLM

    largest = max((side for tensor in stored.values() for side in tensor.shape), default=0)
    sizes = (size for field, size in _whole_numbers(config.to_dict()) if not any(part in field for part in _UNBOUNDED))
    if all(size <= 4 * largest for size in sizes):
        return  # the sizes fit: no need to build it here as well
    with as_input_error(lambda why: damaged_file_error(name, file, why)), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False, attn_implementation="eager")
    wanted = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    n_stored = sum(math.prod(tensor.shape) for tensor in stored.values())
    if wanted > 4 * n_stored + 2**26:
        raise damaged_file_error(name, file, f"its sizes ask for {wanted} numbers, but the weights have {n_stored}")


def check_dtypes(model: torch.nn.Module, stored: Mapping[str, TensorHeader], name: str) -> None:
    """Raises InputError if a weight of the model is stored as whole or complex numbers."""
    parameters = [each for each, _ in model.named_parameters()]
    for key, tensor in stored.items():
        if "F" not in tensor.dtype and any(each == key or each.endswith(f".{key}") for each in parameters):
            raise damaged_file_error(
                name, tensor.file, f"{key} is {tensor.dtype}, wanted numbers with a fraction, such as F32"
            )


def _whole_numbers(value: Any, field: str = "") -> Iterator[tuple[str, int]]:
    """All whole numbers in a JSON value, each with its key, or that of the list it is in."""
    waiting = [(field, value)]
    while waiting:
        field, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [(str(key), child) for key, child in value.items()]
        elif isinstance(value, list | tuple):
            waiting += [(field, child) for child in value]
        elif isinstance(value, int) and not isinstance(value, bool):
            yield field, value


def tokenizer_error(folder: Path, name: str, why: str, read: Callable[[Path], object]) -> InputError:
    """The error for a tokenizer that `read` fails on, naming the damaged file.

    Libraries do not say which file it is: the one that is no JSON, or that the tokenizers library cannot read alone, or
    without which the tokenizer can be read.
    """
    from tokenizers import Tokenizer

    existing = [file for file in _TOKENIZER if (folder / file).exists()]
    for file in existing:
        try:
            read_object(folder, file, name)
        except InputError as error:
            return error
    if "tokenizer.json" in existing:
        try:
            with as_input_error(lambda why: damaged_file_error(name, "tokenizer.json", why)):
                own = Tokenizer.from_file(str(folder / "tokenizer.json"))
                own.encode(own.decode([0]))
        except InputError as error:
            return error
    for file in existing[1:]:
        with tempfile.TemporaryDirectory() as other, contextlib.suppress(InputError), silence_libraries():
            for path in folder.iterdir():
                if path.name != file:
                    (Path(other) / path.name).symlink_to(path.absolute())
            with as_input_error(InputError):
                read(Path(other))
            return damaged_file_error(name, file, why)
    if "tokenizer.json" not in existing:
        return damaged_file_error(name, "tokenizer.json", f"there is none. {why}")
    return damaged_file_error(name, " or ".join(existing), why)
