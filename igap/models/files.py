"""A checkpoint's files before a library reads them, and which of them it was that a library could not read.

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
from igap.models.quiet import quiet, refusing
from igap.storage.untrusted import check_file

_MOST_BYTES = 2**27
"""The size of a file that is no safetensors file. The longest tokenizer.json of a known model has a quarter of it."""
_LARGEST = 2**24
"""Lists and loops of this length take a second; a vocabulary or a width is far below."""
_SIZE = re.compile(r"^n_|^num_|size|dim|layer|block|head|embd|embed|inner|hidden|expert|label|rank|width|vocab|ffn")
_UNBOUNDED = ("param", "step", "theta", "seed", "token", "position", "length", "window", "context", "ctx")
"""Parts of the names of numbers that give nothing its size, or that only learned positions have among the weights."""
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_READ = (
    *("*config.json", "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt"),
    *("*.safetensors", "*.safetensors.index.json", "*.model"),
)
"""Names of the files that libraries read; a fingerprint leaves out what is no file."""
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Stored:
    """A tensor in a file of weights."""

    file: str
    shape: tuple[int, ...]
    dtype: str
    """As safetensors calls it: F32, BF16, I64, ..."""


def unreadable(name: str, file: str, why: str) -> InputError:
    """The error for a file of the checkpoint `name` that cannot be used."""
    return InputError(f"model.name: got {name!r}, which cannot be read as a checkpoint: {file}: {why}")


def check_files(folder: Path, name: str) -> None:
    """Raises InputError on what bears the name of a checkpoint's file and is none that can be read to its end."""
    try:
        paths = sorted(path for path in folder.iterdir() if any(path.match(pattern) for pattern in _READ))
    except OSError as error:
        raise InputError(f"model.name: got {name!r}, a folder that cannot be read ({error.strerror}).") from error
    for path in paths:
        try:
            check_file(path, None if path.suffix == ".safetensors" else _MOST_BYTES)
            path.open("rb").close()
        except OSError as error:
            raise unreadable(name, path.name, error.strerror or one_line(error, 200)) from error
        except ValueError as error:
            raise unreadable(name, path.name, str(error)) from None


def read_stored(folder: Path, name: str, chosen: Any = None) -> dict[str, Stored]:
    """The tensors of the weights, by name, as the headers of their files have them.

    `chosen`: the file of weights, or their index, that config.json names. Raises InputError on a file that safetensors
    does not open, and on one that is not in the folder, whose content no fingerprint has.
    """
    from safetensors import safe_open

    here = [path.name for pattern in ("*.safetensors", "*.safetensors.index.json") for path in folder.glob(pattern)]
    start = chosen or next((file for file in (_SINGLE, _INDEX) if file in here), None)
    if start not in here:
        why = f"it names {chosen!r:.100}, no file here" if chosen else f"there is none, and no {_INDEX}"
        raise unreadable(name, "config.json" if chosen else _SINGLE, why)
    stored = {}
    for file in _indexed(folder, start, here, name) if start.endswith(".json") else [start]:
        with (
            refusing(lambda why, file=file: unreadable(name, file, why)),  # type: ignore[misc]
            safe_open(folder / file, framework="pt") as tensors,
        ):
            for key in tensors.keys():  # noqa: SIM118 - it is no dictionary
                entry = tensors.get_slice(key)
                stored[key] = Stored(file, tuple(entry.get_shape()), entry.get_dtype())
    return stored


def _indexed(folder: Path, file: str, here: list[str], name: str) -> list[str]:
    """The files that an index names."""
    whole = read_object(folder, file, name)
    if not isinstance(whole.get("metadata", {}), dict):
        raise unreadable(name, file, "its metadata is no object")
    index = whole.get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(each, str) for each in index.values()):
        raise unreadable(name, file, "its weight_map is no object of tensors' names and files' names")
    missing = sorted(set(index.values()).difference(here))
    if missing or not index:
        raise unreadable(name, file, f"it names {missing[0]!a:.100}, no file here" if missing else "it names no file")
    return sorted(set(index.values()))


def read_object(folder: Path, file: str, name: str) -> dict[str, Any]:
    """The object in a JSON file. Raises InputError, naming the file, where there is none."""
    with refusing(lambda why: unreadable(name, file, why)):
        value = json.loads((folder / file).read_text("utf-8"))
    if not isinstance(value, dict):
        raise unreadable(name, file, f"it holds {str(value)!r:.40}, wanted an object")
    return value


def check_sizes(config: Mapping[str, Any], name: str, file: str = "config.json") -> None:
    """Raises InputError where the file's settings have a number to which no library should count."""
    for field, value in _whole_numbers(config):
        if value > _LARGEST and _SIZE.search(field) and not any(part in field for part in _UNBOUNDED):
            raise unreadable(name, file, f"{field} is {value!s:.40}, wanted a size that weights can have")


def check_layers(config: Any, stored: Mapping[str, Stored], name: str, file: str = "config.json") -> None:
    """Raises InputError where the config has more layers than there are tensors: none of them is ever made."""
    n_layers = getattr(config, "num_hidden_layers", None)
    if n_layers is not None and n_layers > len(stored):
        raise unreadable(name, file, f"it says {n_layers} layers, but the weights are {len(stored)} tensors")


def check_allocation(config: Any, stored: Mapping[str, Stored], name: str, file: str = "config.json") -> None:
    """Raises InputError where the model of this config is several times the weights, before memory is taken for it."""
    from transformers import AutoModelForCausalLM

    largest = max((side for tensor in stored.values() for side in tensor.shape), default=0)
    sizes = (size for field, size in _whole_numbers(config.to_dict()) if not any(part in field for part in _UNBOUNDED))
    if all(size <= 4 * largest for size in sizes):
        return  # no need to build it twice
    with refusing(lambda why: unreadable(name, file, why)), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False, attn_implementation="eager")
    wanted = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    there = sum(math.prod(tensor.shape) for tensor in stored.values())
    if wanted > 4 * there + 2**26:
        raise unreadable(name, file, f"its sizes ask for {wanted} numbers, but the weights have {there}")


def check_dtypes(model: torch.nn.Module, stored: Mapping[str, Stored], name: str) -> None:
    """Raises InputError where whole or complex numbers are stored for one of the model's weights."""
    parameters = [each for each, _ in model.named_parameters()]
    for key, tensor in stored.items():
        if "F" not in tensor.dtype and any(each == key or each.endswith(f".{key}") for each in parameters):
            raise unreadable(name, tensor.file, f"{key} is {tensor.dtype}, wanted numbers with a fraction, such as F32")


def _whole_numbers(value: Any, field: str = "") -> Iterator[tuple[str, int]]:
    """Those in a JSON value, each with the key that it stands under, or its list."""
    waiting = [(field, value)]
    while waiting:
        field, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [(str(key), child) for key, child in value.items()]
        elif isinstance(value, list | tuple):
            waiting += [(field, child) for child in value]
        elif isinstance(value, int) and not isinstance(value, bool):
            yield field, value


def blame(folder: Path, name: str, why: str, read: Callable[[Path], object]) -> InputError:
    """The error for a tokenizer that `read` does not read from the folder, naming the file that it is about.

    Which one it is libraries do not say: the one that is no JSON, or that the tokenizers library does not read alone,
    or without which the tokenizer is read.
    """
    from tokenizers import Tokenizer

    there = [file for file in _TOKENIZER if (folder / file).exists()]
    for file in there:
        try:
            read_object(folder, file, name)
        except InputError as error:
            return error
    if "tokenizer.json" in there:
        try:
            with refusing(lambda why: unreadable(name, "tokenizer.json", why)):
                own = Tokenizer.from_file(str(folder / "tokenizer.json"))
                own.encode(own.decode([0]))
        except InputError as error:
            return error
    for file in there[1:]:
        with tempfile.TemporaryDirectory() as other, contextlib.suppress(InputError), quiet():
            for path in folder.iterdir():
                if path.name != file:
                    (Path(other) / path.name).symlink_to(path.absolute())
            with refusing(InputError):
                read(Path(other))
            return unreadable(name, file, why)
    if "tokenizer.json" not in there:
        return unreadable(name, "tokenizer.json", f"there is none. {why}")
    return unreadable(name, " or ".join(there), why)
