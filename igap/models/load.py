"""One loader for the embedded model, a local folder, a GGUF file and a hub name: each becomes a folder of safetensors.

Nothing is unpickled and no remote code runs. A hub name is looked up in the local cache before the network is used.
"""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge

from igap.components import Site, widths_of
from igap.errors import InputError, one_line, short_repr
from igap.errors.arguments import checks_arguments
from igap.models import agreement, families, files, gguf_files
from igap.models.patterns import check_patterns
from igap.models.quiet import as_input_error, hold_stderr, silence_libraries
from igap.vocabulary import DTypeName, Processing

EMBEDDED = "ioi-mini"
_EMBEDDED_FOLDER = Path(__file__).parent / "ioi_mini"
_HUB_FILES = ["*.json", "*.safetensors", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model"]
_TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model")
_CHOICES = f"Use model={EMBEDDED}, model=gpt2-small, model=smollm2, or model=hf model.name=NAME_OR_FOLDER_OR_GGUF."


@dataclass(frozen=True)
class Header:
    """Everything about a checkpoint that is known before its weights are read."""

    folder: Path
    tokenizer: Any
    config: Any
    """The config object of transformers."""
    stored: Mapping[str, files.TensorHeader]
    """Headers of the weights' tensors, by name."""
    prepends_bos: bool
    """Whether the model wants its BOS token before every prompt, with prompts.bos=auto."""
    n_ctx: int | None
    """Tokens of the longest prompt. This and the sizes below are None where config.json does not say."""
    n_vocab: int | None
    n_layers: int | None
    n_heads: int | None
    n_neurons: int | None
    neurons_reason: str | None
    """The reason why it has no neurons to compare; None if it has."""

    @property
    def widths(self) -> dict[Site, int | None]:
        """Components a layer of each site; None where the header does not say."""
        return widths_of(self.n_heads, families.n_kv_heads(self.config), self.n_neurons)


def is_hub_name(name: str) -> bool:
    """Whether the name is one of the hub, whose snapshots do not change, and not that of a local checkpoint."""
    return name != EMBEDDED and name not in gguf_files.PACKAGED and not os.path.exists(os.path.expanduser(name))


def find_checkpoint(name: str, revision: str | None = None) -> Path:
    """Find the folder of the checkpoint `name`: embedded model, folder, GGUF file, or hub name (cached or downloaded).

    Raises InputError if there is none, or if it has no safetensors.
    """
    if name == EMBEDDED:
        return _EMBEDDED_FOLDER
    if name in gguf_files.PACKAGED:
        return gguf_files.dequantise(gguf_files.packaged_file(name), name)
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):  # unlike Path, os.path takes a name that is too long
        folder = path
    elif os.path.isfile(path):
        return gguf_files.dequantise(path, name)
    elif os.path.exists(path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"model.name: got {short_repr(name)}, which is no folder. {_CHOICES}")
    else:
        folder = _from_hub(name, revision)
    files.check_files(folder, name)
    if not (folder / "config.json").is_file():
        raise InputError(
            f"model.name: got {name!r}, a folder without config.json, wanted a Hugging Face checkpoint "
            "(config.json, *.safetensors, tokenizer.json). Save one there with save_pretrained."
        )
    if not any(folder.glob("*.safetensors")):
        raise InputError(
            f"model.name: got {name!r}, a checkpoint without *.safetensors; igap unpickles nothing. Convert it with "
            "save_pretrained (which writes safetensors)."
        )
    return folder


def read_header(name: str, revision: str | None = None) -> Header:
    """Read tokenizer, config and sizes of a checkpoint, without its weights.

    Raises InputError as `find_checkpoint` does, on a damaged file, and on sizes that no weights can have.
    """
    from transformers import AutoConfig

    folder = find_checkpoint(name, revision)
    files.check_sizes(files.read_object(folder, "config.json", name), name)
    with as_input_error(lambda why: files.damaged_file_error(name, "config.json", why)), hold_stderr():
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        families.check_family(config, name)
        has_bos = families.prepends_bos(config)
        n_layers, n_heads, n_vocab, n_ctx = (files.size_of(config, field, name) for field in files.SIZES)
    stored = files.read_tensor_headers(folder, name, getattr(config, "transformers_weights", None))
    files.check_layers(config, stored, name)
    if n_vocab is not None and not any(n_vocab in tensor.shape for tensor in stored.values()):
        raise files.damaged_file_error(
            name, "config.json", f"it says {n_vocab} tokens, but no tensor of the weights has as many"
        )
    check_patterns(folder, name)
    try:
        with as_input_error(InputError):
            tokenizer = _read_tokenizer(folder)
    except InputError as error:
        with hold_stderr():
            raise files.tokenizer_error(folder, name, str(error), _read_tokenizer) from error
    dropout = getattr(getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None), "dropout", None)
    if dropout:
        why = f"its dropout is {dropout:.3g}, with which a text has other tokens each time, wanted null"
        raise files.damaged_file_error(name, "tokenizer.json", why)
    return Header(
        folder,
        tokenizer,
        config,
        stored,
        has_bos,
        n_ctx=n_ctx,
        n_vocab=n_vocab,
        n_layers=n_layers,
        n_heads=n_heads,
        n_neurons=families.n_neurons(config),
        neurons_reason=families.neurons_reason(config),
    )


def _read_tokenizer(folder: Path) -> Any:
    """Read the tokenizer, and try it on a text and on its special tokens."""
    from transformers import AutoTokenizer

    with hold_stderr():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        # The text comes from its own vocabulary: not every tokenizer has a token for unknown words.
        own = [number for number in range(len(tokenizer)) if number not in tokenizer.all_special_ids][:1]
        tokenizer.decode(tokenizer(tokenizer.decode(own), add_special_tokens=False)["input_ids"])
        for kind in ("bos", "eos", "unk", "pad"):
            number = getattr(tokenizer, f"{kind}_token_id")
            if number is not None and not isinstance(number, int):
                raise InputError(f"the {kind}_token's id is {number!r:.40}, wanted a whole number")
    return tokenizer


def read_tokenizer(name: str, *, item: str) -> Any:
    """Read a tokenizer alone: the embedded model's, a folder's, or one in the local Hugging Face cache.

    Nothing is downloaded. Raises InputError naming `item` where there is none of that name, or it is damaged.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        if name in (EMBEDDED, *gguf_files.PACKAGED):
            folder = find_checkpoint(name)
        elif os.path.isdir(path := os.path.expanduser(name)):
            folder = Path(path)
        else:
            folder = Path(snapshot_download(name, local_files_only=True, allow_patterns=_HUB_FILES))
    except (OSError, HFValidationError):
        raise InputError(
            f"{item}: got {short_repr(name)}, whose tokenizer is not on this machine: it is no folder, and not in the "
            f"local Hugging Face cache. Copy its tokenizer.json here and name the folder, {item}=FOLDER."
        ) from None
    try:
        with as_input_error(InputError):
            files.check_files(folder, name)
            if not any((folder / file).is_file() for file in _TOKENIZERS):
                raise InputError(f"it has none of {', '.join(_TOKENIZERS)}")
            check_patterns(folder, name)
            return _read_tokenizer(folder)
    except InputError as error:
        why = str(error).rstrip(".")
        raise InputError(
            f"{item}: got {short_repr(name)}, whose tokenizer cannot be read ({why}). Name a folder with its "
            "tokenizer.json."
        ) from error


def check_sites(header: Header, sites: Collection[Site], name: str) -> None:
    """Raises InputError if neurons are among the sites and the checkpoint has none to compare."""
    if "neurons" in sites and header.neurons_reason is not None:
        raise families.no_neurons_error(name, header.neurons_reason)


@checks_arguments
def load_model(
    name: str | Path = EMBEDDED,
    *,
    processing: Processing = "processed",
    device: str | torch.device = "cpu",
    dtype: DTypeName = "float32",
    revision: str | None = None,
) -> TransformerBridge:
    """Load a model as a TransformerBridge in evaluation mode.

    Nothing is unpickled and no code of a checkpoint runs. Any other TransformerBridge serves igap as well.

    Args:
        name: "ioi-mini" (default, the embedded model), a folder or GGUF file, "smollm2", or a name on the hub.
        processing: "processed" (default) folds layer norms and value biases and centres the weights, as the older
            HookedTransformer does; "raw" keeps the checkpoint's weights. Logit differences and patching agree between
            the two; zero ablation and zero baselines of heads do not.
        device: Where the model lies, default "cpu".
        dtype: What it computes in, default "float32".
        revision: Branch, tag or commit on the hub. None (default): the main branch.

    Returns:
        The bridge. Its next-token logits were compared with those of the Hugging Face model.

    Raises:
        InputError: The checkpoint is missing, damaged, incomplete or no causal decoder; or the bridge's logits are
            not those of the Hugging Face model; or this machine lacks the device.

    Example:
        >>> model = load_model()
        >>> model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_mlp
        (4, 8, 512)
    """
    name = str(name)
    _check_device(device)
    header = read_header(name, revision)
    torch_dtype: torch.dtype = getattr(torch, dtype)
    with silence_libraries():
        hf_model = _load_weights(header, name, torch_dtype).to(device).eval()
        ran = f"model.name: got {name!r}, which does not run in {dtype} on {device}"
        with as_input_error(
            lambda why: InputError(f"{ran} ({why}). Check its config.json, or use another model.dtype.")
        ):
            wanted = agreement.reference(hf_model, header.n_ctx, name)
        remedy = "Try model.processing=raw, or use" if processing == "processed" else "Use"
        checked = "check its config.json and tokenizer_config.json"
        wrapped = f"model.name: got {name!r}, which TransformerLens' bridge cannot wrap ({processing}"
        with as_input_error(lambda why: InputError(f"{wrapped}: {why}). {remedy} another model, or {checked}.")):
            model = TransformerBridge.boot_transformers(
                str(header.folder), hf_model=hf_model, tokenizer=header.tokenizer, device=device, dtype=torch_dtype
            )
            if processing == "processed":
                model.enable_compatibility_mode()
            model.eval()
            agreement.check(model, wanted, name, processing)
    return model


def _check_device(device: str | torch.device) -> None:
    """Raises InputError if this machine lacks the device."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device: got {short_repr(str(device))}, which this machine does not have ({one_line(error)}). "
            "Try device='cpu'."
        ) from None


def _load_weights(header: Header, name: str, dtype: torch.dtype) -> Any:
    """Load the Hugging Face model. Raises InputError unless every weight comes from the checkpoint."""
    from transformers import AutoModelForCausalLM

    files.check_allocation(header.config, header.stored, name)
    with as_input_error(lambda why: _unreadable_weights(header.folder, name, why)):
        model_and_info: Any = AutoModelForCausalLM.from_pretrained(
            header.folder,
            dtype=dtype,
            attn_implementation="eager",
            output_loading_info=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # rejected below, with both shapes
            trust_remote_code=False,
        )
    hf_model, info = model_and_info
    for key, there, wanted in sorted(info["mismatched_keys"], key=str):
        raise InputError(
            f"model.name: got {name!r}, whose weights are not those of its config.json: {key} is {list(there)}"
            f"{f' in {header.stored[key].file}' if key in header.stored else ''}, and config.json says {list(wanted)}. "
            "Save the model again, with its config."
        )
    # transformers fills missing weights with random numbers and only logs it.
    missing = sorted(map(str, info["missing_keys"]))
    if missing:
        raise InputError(
            f"model.name: got {name!r}, a checkpoint without {len(missing)} of the model's weights "
            f"({missing[0]}, ...), wanted all that its config.json asks for. Save the model again, with its "
            "language-model head."
        )
    files.check_dtypes(hf_model, header.stored, name)
    return hf_model


def _unreadable_weights(folder: Path, name: str, why: str) -> InputError:
    """The error for weights that fail to load though their headers are sound; it names the config at fault."""
    from transformers import GenerationConfig

    file = "config.json"
    if (folder / "generation_config.json").exists():
        try:
            with as_input_error(InputError):
                GenerationConfig.from_pretrained(folder)
        except InputError:
            file = "generation_config.json"
    return InputError(
        f"model.name: got {name!r}, whose weights cannot be read: {file}: {why.rstrip('.')}. Save the model again."
    )


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    reason = ""
    for local_only in (True, False):
        try:
            folder = Path(
                snapshot_download(name, revision=revision, local_files_only=local_only, allow_patterns=_HUB_FILES)
            )
        except (OSError, HFValidationError, HfHubHTTPError) as error:
            reason = str(error).splitlines()[0][:200].rstrip(".")
        else:
            # A cached snapshot may hold only the few files that another program needed.
            if any(folder.glob("*.safetensors")) or not local_only:
                return folder
    raise InputError(
        f"model.name: got {short_repr(name)}, which is no folder here, is not in the local Hugging Face cache, and did "
        "not "
        f"come from the hub ({reason}). Check the name and the network; without a network, copy the checkpoint here "
        f"and use model=hf model.name=FOLDER, or use model={EMBEDDED}."
    )
