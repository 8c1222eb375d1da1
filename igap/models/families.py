"""Model families by their config: whether igap supports one, and how many components a layer has. Reads no weights."""

from collections.abc import Sequence
from typing import Any

import torch
from transformer_lens.factories.architecture_adapter_factory import (
    SUPPORTED_ARCHITECTURES,
    ArchitectureAdapterFactory,
)
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import build_bridge_config_from_hf
from transformer_lens.model_bridge.sources.transformers import determine_architecture_from_hf_config
from transformer_lens.utilities.architectures import (
    MASKED_LM_ARCHITECTURES,
    classify_architecture,
    classify_model_config,
)

from igap.components import PLACES, SITES, Site, widths_of
from igap.errors import InputError, printable

_KINDS = {
    "seq2seq": "an encoder and a decoder",
    "masked_lm": "an encoder, which also reads what comes after a token",
    "multimodal": "a model of more than text",
    "audio": "a model of sounds",
    "vision": "a model of images",
}
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def check_family(config: Any, name: str) -> None:
    """Raises InputError on a config whose model is no causal decoder, or one that TransformerLens cannot wrap."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    architectures = config.architectures or ()
    if not isinstance(architectures, list | tuple) or not all(isinstance(each, str) for each in architectures):
        raise InputError(
            f"model.name: got {name!r}, which cannot be read as a checkpoint: config.json: architectures is "
            f"{str(architectures)!r:.60}, wanted a list of names"
        )
    declared = printable(" ".join(architectures) or config.model_type, 60)
    kind, architecture = classify_model_config(config), None
    try:
        architecture = determine_architecture_from_hf_config(config)  # type: ignore[no-untyped-call]
    except ValueError:  # it has no adapter
        pass
    else:
        encoders = {SUPPORTED_ARCHITECTURES[each] for each in MASKED_LM_ARCHITECTURES & SUPPORTED_ARCHITECTURES.keys()}
        if kind == "causal_lm":
            kind = classify_architecture(architecture)
        if SUPPORTED_ARCHITECTURES[architecture] in encoders:
            kind = "causal_lm" if config.is_decoder and kind == "causal_lm" else "masked_lm"
    if kind != "causal_lm" or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(
            f"model.name: got {name!r} ({declared}), {_KINDS.get(kind, 'no language model')}; wanted a causal decoder, "
            "which predicts the next token. Use one such as GPT-2, Llama or Qwen, with its own config.json."
        )
    if architecture is None:
        raise InputError(
            f"model.name: got {name!r} ({declared}), wanted an architecture that TransformerLens' TransformerBridge "
            "has. Use one such as GPT-2, Llama or Qwen, with its own config.json."
        )


def architecture_of(config: Any) -> str:
    """Return what TransformerLens takes a causal decoder for, by its config."""
    return str(determine_architecture_from_hf_config(config))  # type: ignore[no-untyped-call]


def prepends_bos(config: Any) -> bool:
    """Return whether TransformerLens puts a BOS token before every prompt of a causal decoder, by its config."""
    bridge_config = build_bridge_config_from_hf(config, architecture_of(config), "", torch.float32)
    adapter = ArchitectureAdapterFactory.select_architecture_adapter(bridge_config)
    return bool(adapter.cfg.default_prepend_bos)


def n_neurons(config: Any) -> int | None:
    """MLP neurons in a layer; None if layers differ. A width that a config leaves out is four times the hidden size."""
    for field in ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner"):
        width = getattr(config, field, None)
        if width is not None:
            return width if isinstance(width, int) else None
    return 4 * config.hidden_size if hasattr(config, "hidden_size") else None


def n_kv_heads(config: Any) -> int | None:
    """Key-value heads in a layer: as many as heads, unless the config says that several heads share them."""
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1
    for field in ("num_key_value_heads", "num_kv_heads", "num_attention_heads"):
        n = getattr(config, field, None)
        if n is not None:
            return n if isinstance(n, int) else None
    return None


def neurons_reason(config: Any) -> str | None:
    """The reason why this model's MLPs have no neurons that igap can patch; None if they have."""
    experts = next((n for field in _EXPERTS if (n := getattr(config, field, None))), None)
    if experts is None:
        return None
    return f"an MLP of it is a mixture of {experts} experts, and which of their neurons there are depends on the token"


def no_neurons_error(name: str, reason: str) -> InputError:
    """The error for `sites` with neurons on a model without patchable neurons."""
    return InputError(f"model.name: got {name}, whose neurons have no effects: {reason}. Use sites=heads, or heads.")


def check_heads(config: Any, width: int, name: str) -> None:
    """Raises InputError if TransformerLens' hook_z does not have one column a head, as with latent attention."""
    wanted = getattr(config, "num_attention_heads", None)
    if isinstance(wanted, int) and width != wanted:
        raise InputError(
            f"model.name: got {name}, whose {wanted} heads come as {width} pieces in TransformerLens' hook_z, wanted "
            "one a head. Use a model with plain attention, such as GPT-2, Llama or Qwen."
        )


def check_neurons(config: Any, width: int, name: str) -> None:
    """Raises InputError if hook_post, with `width` columns, does not hold the neurons of the config's MLP."""
    reason, wanted = neurons_reason(config), n_neurons(config)
    if reason is None and wanted is not None and width != wanted:
        reason = f"TransformerLens' hook_post has {width} columns, but an MLP of it has {wanted} neurons"
    if reason is not None:
        raise no_neurons_error(name, reason)


def widths_of_model(model: TransformerBridge) -> dict[Site, int | None]:
    """Return how many components of each site a layer of a loaded model has; None where its config does not say.

    The config's own number comes first: TransformerLens' `d_mlp` is 4 d_model where it does not know the field's name
    (OPT, XGLM, Falcon).
    """
    config = getattr(model.original_model, "config", None)
    if config is None:
        return widths_of(model.cfg.n_heads, model.cfg.n_key_value_heads or model.cfg.n_heads, model.cfg.d_mlp)
    return widths_of(model.cfg.n_heads, n_kv_heads(config), n_neurons(config))


def check_columns(model: TransformerBridge, site: Site, shape: Sequence[int]) -> None:
    """Raises InputError if the columns of the site's activations `[pair, pos, *shape]` are not its components."""
    config, name = getattr(model.original_model, "config", None), model.cfg.model_name
    if site in SITES:
        if config is not None:
            (check_heads if site == "heads" else check_neurons)(config, shape[0], name)
    elif not PLACES[site].is_vector:
        n_heads, d_head = model.cfg.n_heads, model.cfg.d_head
        wanted = (n_heads,) if site == "q" else [n for n in range(1, n_heads + 1) if n_heads % n == 0]
        if len(shape) != 2 or shape[0] not in wanted or shape[1] != d_head:
            raise InputError(
                f"site: got {site} of {name}, whose {PLACES[site].hook} comes as {list(shape)}, wanted one column a "
                f"head, with d_head={d_head}. Use heads."
            )
