"""Checkpoints with damaged files: every field of every JSON file set to values that no checkpoint should have.

For the tests and for programs. Nothing here is of igap, and importing it loads no library.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

DEPTH = 100_000
ENDLESS = r"^(?:(?:[A-Za-z, ]+)+)+!$"
"""A pattern that a backtracking engine tries on an English sentence in more ways than it will ever finish."""

VALUES: Mapping[str, str] = {
    "null": "null",
    "5": "5",
    "[]": "[]",
    "{}": "{}",
    '"x"': '"x"',
    '""': '""',
    "-1": "-1",
    "0": "0",
    "0.5": "0.5",
    "1e9": "1e9",
    "1000000000": "1000000000",
    "10**400": "1" + "0" * 400,
    "10**5000": "1" + "0" * 5000,
    "1e400": "1e400",
    "true": "true",
    "NaN": "NaN",
    "-Infinity": "-Infinity",
    "[[5]]": "[[5]]",
    "deep lists": "[" * DEPTH + "]" * DEPTH,
    "deep objects": '{"a":' * DEPTH + "5" + "}" * DEPTH,
    "lone surrogate": r'"\ud800"',
    "zero character": r'"a\u0000b"',
    "new lines": r'"a\nb\n\u001b[31mc"',
    "long text": '"' + "y" * 1_000_000 + '"',
    "another folder": '"../../../etc/passwd"',
    "endless pattern": json.dumps({"Regex": ENDLESS}),
    "endless pattern as text": json.dumps(ENDLESS),
}
"""Names to values, as they are written in the file."""

JSON_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "model.safetensors.index.json",
)

ADDED: Mapping[str, str] = {
    "config.json": (
        "auto_map transformers_weights quantization_config attn_implementation _attn_implementation torch_dtype "
        "text_config pruned_heads id2label num_labels tokenizer_class rope_scaling rope_theta sliding_window "
        "layer_types attn_config experts_implementation fusion_config kernel_config distributed_config "
        "base_model_tp_plan output_attentions return_dict is_decoder is_encoder_decoder problem_type "
        "chunk_size_feed_forward gguf_file _commit_hash _name_or_path attribute_map n_ctx sub_configs"
    ),
    "tokenizer_config.json": (
        "auto_map added_tokens_decoder chat_template additional_special_tokens extra_special_tokens add_bos_token "
        "add_prefix_space clean_up_tokenization_spaces legacy from_slow tokenizer_file vocab_file model_input_names "
        "padding_side processor_class name_or_path split_special_tokens tokenizer_type fix_mistral_regex use_fast "
        "gguf_file trust_remote_code local_files_only subfolder tokenizer_object"
    ),
    "generation_config.json": "max_length temperature transformers_version custom_generate cache_implementation",
}
"""Fields that the files of a small checkpoint lack, and that libraries look for."""

LISTS = ("vocab", "merges", "weight_map")

Place = tuple[str | int, ...]
"""Keys and positions from the root of a JSON value; the empty one is the root itself."""


def places(value: Any) -> Iterator[Place]:
    """Every place in a JSON value; of what only lists words and weights, the first and the last."""
    yield ()
    children = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    for key, child in children:
        for place in places(child):
            if key not in LISTS or len(place) < 1 or place[0] in _ends(child):
                yield (key, *place)


def _ends(value: Any) -> tuple[Any, ...]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return (keys[0], keys[-1]) if len(keys) else ()


def replaced(value: Any, place: Place, text: str) -> str:
    """The JSON text of `value`, with `text` in place of what is at `place`."""
    mark = "\ufdd0"

    def marked(inner: Any, rest: Place) -> Any:
        if not rest:
            return mark
        copy: Any = dict(inner) if isinstance(inner, dict) else list(inner)
        copy[rest[0]] = marked(inner[rest[0]], rest[1:])
        return copy

    return json.dumps(marked(value, place), ensure_ascii=False).replace(json.dumps(mark, ensure_ascii=False), text)


KINDS = ("directory", "pipe", "device", "dangling link", "cyclic link", "empty", "not UTF-8", "UTF-16", "cut short")
"""What a file may be instead of itself."""


def make_kind(path: Path, kind: str) -> None:
    """The file at `path` replaced: by what is no file, or by a file with other content."""
    whole = path.read_bytes() if path.is_file() else b""
    path.unlink(missing_ok=True)
    match kind:
        case "directory":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "dangling link":
            path.symlink_to("nowhere")
        case "cyclic link":
            path.symlink_to(path.name)
        case "empty":
            path.touch()
        case "not UTF-8":
            path.write_bytes(b"\xff\xfe\x00\x80" * 64)
        case "UTF-16":
            path.write_bytes(whole.decode("utf-8", "replace").encode("utf-16"))
        case "cut short":
            path.write_bytes(whole[: len(whole) // 2])


HEADERS: Mapping[str, Callable[[dict[str, Any], str], Any]] = {
    "dtype null": lambda header, name: header[name].update(dtype=None),
    "dtype of its own": lambda header, name: header[name].update(dtype="x"),
    "whole numbers": lambda header, name: header[name].update(dtype="I32"),
    "unsigned numbers": lambda header, name: header[name].update(dtype="U32"),
    "complex numbers": lambda header, name: header[name].update(
        dtype="C64", shape=[header[name]["shape"][0] // 2, *header[name]["shape"][1:]]
    ),
    "no shape": lambda header, name: header[name].update(shape=[]),
    "shape null": lambda header, name: header[name].update(shape=None),
    "turned shape": lambda header, name: header[name].update(shape=[*header[name]["shape"][::-1], 1]),
    "huge shape": lambda header, name: header[name].update(shape=[10**9, 10**9]),
    "shape beyond 64 bits": lambda header, name: header[name].update(shape=[10**40]),
    "negative shape": lambda header, name: header[name].update(shape=[-1]),
    "reversed offsets": lambda header, name: header[name].update(data_offsets=header[name]["data_offsets"][::-1]),
    "huge offsets": lambda header, name: header[name].update(data_offsets=[0, 10**15]),
    "negative offsets": lambda header, name: header[name].update(data_offsets=[-8, 0]),
    "offsets null": lambda header, name: header[name].update(data_offsets=None),
    "another name": lambda header, name: header.update({"another": header.pop(name)}),
    "name with a lone surrogate": lambda header, name: header.update({"\ud800": header.pop(name)}),
    "a description that is no text": lambda header, name: header.update(__metadata__={"format": 5}),
    "made by another library": lambda header, name: header.update(__metadata__={"format": "own"}),
    "made by TensorFlow": lambda header, name: header.update(__metadata__={"format": "tf"}),
    "described by a number": lambda header, name: header.update(__metadata__=5),
    "without a description": lambda header, name: header.pop("__metadata__", None),
}
"""Changes of a safetensors header, at a tensor of this name."""

RAW_HEADERS: Mapping[str, bytes] = {
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "no tensors": b"{}",
    "deep lists": b"[" * DEPTH + b"]" * DEPTH,
    "deep objects": b'{"a":' * DEPTH + b"5" + b"}" * DEPTH,
    "100 MB of spaces": b"{" + b" " * 100_000_001 + b"}",
}

CONTENTS: Mapping[str, bytes] = {
    "NaN": b"\0\0\xc0\x7f",
    "infinity": b"\0\0\x80\x7f",
    "the largest float32": b"\xff\xff\x7f\x7f",
    "zero": bytes(4),
}
"""Four bytes, with which a whole tensor of float32 is filled."""


def read_tensors(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    return json.loads(whole[8:start]), whole[start:]


def write_tensors(path: Path, header: bytes, data: bytes, length: int | None = None) -> None:
    """A safetensors file, whose header claims to be `length` bytes long (None: as long as it is)."""
    path.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + data)


def damaged_weights(path: Path) -> Iterator[str]:
    """Descriptions, at each of which the safetensors file at `path` is damaged so; it is written anew each time."""
    whole = path.read_bytes()
    header, data = read_tensors(path)
    packed = json.dumps(header).encode()
    name = next(each for each, entry in header.items() if each != "__metadata__" and len(entry["shape"]) == 2)
    for size in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        yield f"cut to {size} bytes"
    path.write_bytes(whole + bytes(8))
    yield "8 bytes too many"
    for length in (0, 1, 100_000_001, 2**63, 2**64 - 1):
        write_tensors(path, packed, data, length)
        yield f"a header of {length} bytes"
    for what, raw in RAW_HEADERS.items():
        write_tensors(path, raw, data)
        yield f"header: {what}"
    for what, change in HEADERS.items():
        changed = json.loads(packed)
        change(changed, name)
        write_tensors(path, json.dumps(changed).encode(), data)
        yield f"{name}: {what}"
    start, end = header[name]["data_offsets"]
    for what, number in CONTENTS.items():
        write_tensors(path, packed, data[:start] + number * ((end - start) // 4) + data[end:])
        yield f"{name}: all {what}"
    fewer = json.loads(packed)
    del fewer[name]
    write_tensors(path, json.dumps(fewer).encode(), data)
    yield f"{name}: a hole in its place"
    path.write_bytes(whole)


def damaged_json(path: Path, values: Mapping[str, str] = VALUES) -> Iterator[str]:
    """Descriptions, at each of which the JSON file at `path` has one of the values in one of its places."""
    whole = path.read_bytes()
    value = json.loads(whole)
    for place in places(value):
        for what, text in values.items():
            path.write_text(replaced(value, place, text), "utf-8")
            yield f"{'.'.join(map(str, place)) or 'all of it'}: {what}"
    for field in ADDED.get(path.name, "").split():
        for what, text in values.items():
            path.write_text(replaced({**value, field: None}, (field,), text), "utf-8")
            yield f"{field}, added: {what}"
    path.write_bytes(whole)


def damaged_checkpoints(folder: Path, work: Path, values: Mapping[str, str] = VALUES) -> Iterator[tuple[str, Path]]:
    """Copies of the checkpoint in `folder`, one after the other in `work`, each with one file damaged or replaced.

    With each comes what was done to it, which begins with the file's name.
    """
    copy = work / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    for path in sorted(folder.iterdir()):
        damaged = copy / path.name
        for kind in (*KINDS, "missing"):
            if kind == "missing":
                damaged.unlink()
            else:
                make_kind(damaged, kind)
            yield f"{path.name}: {kind}", copy
            if damaged.is_dir():
                damaged.rmdir()
            damaged.unlink(missing_ok=True)
            shutil.copy(path, damaged)
        damages = damaged_weights(damaged) if path.suffix == ".safetensors" else iter(())
        if path.name in JSON_FILES:
            damages = damaged_json(damaged, values)
        for what in damages:
            yield f"{path.name}: {what}", copy
