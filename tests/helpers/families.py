"""Model families: random checkpoints of each, with what makes the family what it is switched on and made to matter.

The table is for tests and for the page docs/families.md. Nothing here is of igap, and importing it loads no library.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORDS = (
    "<|endoftext|> <unk> After Then John Mary Tom Anna and went to the store , gave a bottle of milk cat dog . it"
).split()
WINDOW = 5
"""Positions that a sliding window lets a query see: far fewer than a prompt has."""


@dataclass(frozen=True)
class Sizes:
    """How large a checkpoint is. The defaults are as small as every family's pieces allow."""

    n_layers: int = 3
    n_heads: int = 4
    n_key_value_heads: int = 2
    d_head: int = 8
    d_mlp: int = 48
    n_ctx: int = 24

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.n_heads * self.d_head


@dataclass(frozen=True)
class Family:
    """One family: an architecture of transformers, and the settings that make it what it is."""

    model_type: str
    """What transformers' config calls it."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Values of its config; a function is called with the sizes."""
    off: Mapping[str, Any] = field(default_factory=dict)
    """For the settings that can be switched off with the same weights: the value that does it."""
    sites: tuple[str, ...] = ("heads", "neurons")
    """What igap takes apart; experts have no neurons that are the same at every position."""
    dtype: str = "float64"
    """In which it is compared; float32 where transformers itself does no float64."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """By `model.processing`, why igap does not take it; empty where it does."""


def _alternating(sizes: Sizes) -> list[str]:
    """Sliding windows in every other layer, the first one first."""
    return [("sliding_attention", "full_attention")[layer % 2] for layer in range(sizes.n_layers)]


def _rope(rope_type: str = "default", **settings: Any) -> dict[str, Any]:
    """Rotary positions whose slowest pair still turns by half a radian over a short prompt."""
    return {"rope_parameters": {"rope_theta": 100.0, "rope_type": rope_type, **settings}}


def _everywhere(why: str) -> dict[str, str]:
    return {"raw": why, "processed": why}


_PLAIN_ROPE = _rope()["rope_parameters"]
_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 20}
_PARTIAL = _rope(partial_rotary_factor=0.5)
_WHOLE = _rope(partial_rotary_factor=1.0)
_CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
_NO_CAPS = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
_SCALAR = {"query_pre_attn_scalar": 3}
_SLIDING = {"sliding_window": WINDOW, "layer_types": _alternating}
_NO_WINDOW = {"sliding_window": 1000}
_GRANITE = {
    "embedding_multiplier": 3.0,
    "logits_scaling": 0.4,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.7,
}
_YARN = {"factor": 4.0, "original_max_position_embeddings": 6}

_FULL = {"num_key_value_heads": lambda sizes: sizes.n_heads}
_LATENT = {
    "head_dim": 4,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 12,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
}
_NO_ADAPTER = _everywhere("TransformerLens has no adapter for it")

FAMILIES: dict[str, Family] = {
    "GPT-2": Family("gpt2"),
    "GPT-2, attention scaled by layer": Family(
        "gpt2", {"scale_attn_by_inverse_layer_idx": True}, {"scale_attn_by_inverse_layer_idx": False}
    ),
    "GPT-2, attention not scaled": Family(
        "gpt2",
        {"scale_attn_weights": False},
        {"scale_attn_weights": True},
        refused=_everywhere("TransformerLens scales its attention"),
    ),
    "GPT-2, reordered (Stanford's)": Family(
        "gpt2", {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True}, dtype="float32"
    ),
    "GPT-Neo": Family(
        "gpt_neo",
        {
            "attention_types": lambda sizes: [
                [["local", "global"], sizes.n_layers // 2],
                [["local"], sizes.n_layers % 2],
            ],
            "window_size": WINDOW,
        },
        {"window_size": 1000},
    ),
    "GPT-J": Family("gptj", {"rotary_dim": lambda sizes: sizes.d_head // 2}),
    "CodeGen": Family("codegen", {"rotary_dim": lambda sizes: sizes.d_head // 2}),
    "GPT-NeoX": Family("gpt_neox", _PARTIAL, {"use_parallel_residual": False, **_WHOLE}),
    "GPT-NeoX, sequential": Family(
        "gpt_neox", {"use_parallel_residual": False, **_PARTIAL}, {"use_parallel_residual": True, **_WHOLE}
    ),
    "GPTBigCode (multi-query)": Family("gpt_bigcode", {"num_key_value_heads": 1}),
    "OPT": Family("opt", off={"do_layer_norm_before": False}),
    "OPT, norms after (350m)": Family(
        "opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}, {"do_layer_norm_before": True}
    ),
    "BLOOM": Family("bloom"),
    "MPT": Family(
        "mpt",
        {"attn_config": {"clip_qkv": 1.5, "softmax_scale": 0.7, "alibi": True}},
        {"attn_config": {"clip_qkv": None, "softmax_scale": 0.7, "alibi": True}},
    ),
    "XGLM": Family("xglm", off={"scale_embedding": False}, dtype="float32"),
    "Falcon": Family("falcon", {"multi_query": True, "parallel_attn": True, **_rope()}, {"parallel_attn": False}),
    "Falcon, new decoder": Family(
        "falcon",
        {"new_decoder_architecture": True, **_rope()},
        refused=_everywhere("TransformerLens splits its queries, keys and values wrongly"),
    ),
    "Falcon, alibi (RW)": Family(
        "falcon",
        {
            "alibi": True,
            "multi_query": False,
            "parallel_attn": False,
            "bias": True,
            "num_kv_heads": lambda sizes: sizes.n_heads,
        },
        {"alibi": False},
    ),
    "Llama 2": Family("llama", {**_FULL, **_rope()}),
    "Llama 3": Family("llama", _rope("llama3", **_LLAMA3), {"rope_parameters": _PLAIN_ROPE}),
    "Llama, linear rope": Family("llama", _rope("linear", factor=4.0), {"rope_parameters": _PLAIN_ROPE}),
    "Llama, yarn rope": Family("llama", _rope("yarn", **_YARN), {"rope_parameters": _PLAIN_ROPE}),
    "Llama, dynamic rope": Family("llama", _rope("dynamic", factor=4.0)),
    "Llama, biases": Family("llama", {"attention_bias": True, "mlp_bias": True, **_rope()}),
    "Mistral": Family("mistral", {"sliding_window": WINDOW, **_rope()}, {"sliding_window": None}),
    "Ministral": Family("ministral", {**_SLIDING, **_rope()}, _NO_WINDOW, refused=_NO_ADAPTER),
    "Ministral 3": Family(
        "ministral3",
        _rope("yarn", **_YARN, llama_4_scaling_beta=0.7),
        _rope("yarn", **_YARN, llama_4_scaling_beta=0.0),
    ),
    "Qwen2": Family("qwen2", _rope()),
    "Qwen2.5, sliding window": Family(
        "qwen2",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1, **_rope()},
        {"use_sliding_window": False},
    ),
    "Qwen3": Family("qwen3", {"head_dim": lambda sizes: 2 * sizes.d_head, **_rope()}),
    "Gemma": Family("gemma", {"head_dim": lambda sizes: 2 * sizes.d_head, **_rope()}),
    "Gemma 2": Family(
        "gemma2", {**_CAPS, **_SCALAR, **_SLIDING, **_rope()}, {**_NO_CAPS, **_NO_WINDOW, "query_pre_attn_scalar": 8}
    ),
    "Gemma 3": Family(
        "gemma3_text",
        {
            **_SLIDING,
            **_SCALAR,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 10.0, "factor": 2.0},
            },
        },
        {
            **_NO_WINDOW,
            "query_pre_attn_scalar": 8,
            "rope_parameters": {"sliding_attention": _PLAIN_ROPE, "full_attention": _PLAIN_ROPE},
        },
    ),
    "VaultGemma": Family(
        "vaultgemma",
        {**_CAPS, **_SCALAR, **_SLIDING, **_rope()},
        {**_NO_CAPS, **_NO_WINDOW, "query_pre_attn_scalar": 8},
        refused={"processed": "TransformerLens cannot process its weights"},
    ),
    "Phi": Family("phi", {**_FULL, **_PARTIAL}, _WHOLE),
    "Phi-3": Family("phi3", {"sliding_window": WINDOW, **_PARTIAL}, {"sliding_window": None}),
    "Phi-3, long rope": Family(
        "phi3",
        {
            **_rope(
                "longrope",
                short_factor=lambda sizes: [1.0] * (sizes.d_head // 2),
                long_factor=lambda sizes: [1.0 + i / 2 for i in range(sizes.d_head // 2)],
                original_max_position_embeddings=8,
            ),
            "original_max_position_embeddings": 8,
        },
        {"rope_parameters": _PLAIN_ROPE},
    ),
    "StableLM": Family("stablelm", {"use_qkv_bias": True, **_PARTIAL}),
    "StableLM 2 12B": Family(
        "stablelm",
        {"qk_layernorm": True, "use_parallel_residual": True, **_PARTIAL},
        {"qk_layernorm": False},
    ),
    "OLMo": Family("olmo", {"clip_qkv": 1.0, **_rope()}, {"clip_qkv": None}),
    "OLMo 2": Family("olmo2", _rope()),
    "OLMo 3": Family(
        "olmo3",
        {
            **_SLIDING,
            "rope_parameters": {
                "sliding_attention": _PLAIN_ROPE,
                "full_attention": {"rope_type": "yarn", "rope_theta": 100.0, **_YARN},
            },
        },
        {**_NO_WINDOW, "rope_parameters": {"sliding_attention": _PLAIN_ROPE, "full_attention": _PLAIN_ROPE}},
    ),
    "Granite": Family(
        "granite",
        {**_GRANITE, **_rope()},
        {**dict.fromkeys(_GRANITE, 1.0), "attention_multiplier": 8**-0.5},
    ),
    "Cohere": Family("cohere", {"logit_scale": 0.25, **_rope()}, {"logit_scale": 1.0}),
    "Cohere, query-key norm (R+)": Family(
        "cohere", {"logit_scale": 0.25, "use_qk_norm": True, **_rope()}, {"use_qk_norm": False}
    ),
    "Cohere 2": Family("cohere2", {"logit_scale": 0.25, **_SLIDING, **_rope()}, {"logit_scale": 1.0, **_NO_WINDOW}),
    "SmolLM3": Family("smollm3", {"no_rope_layer_interval": 2, **_rope()}, {"no_rope_layer_interval": 100}),
    "StarCoder2": Family("starcoder2", {"sliding_window": WINDOW, **_rope()}, {"sliding_window": None}),
    "Nemotron": Family("nemotron", _PARTIAL, _WHOLE),
    "GLM": Family("glm", _PARTIAL, _WHOLE),
    "GLM-4": Family("glm4", _PARTIAL, _WHOLE),
    "EXAONE 4": Family("exaone4", {**_SLIDING, **_rope()}, _NO_WINDOW),
    "Apertus": Family("apertus", _rope("llama3", **_LLAMA3), {"rope_parameters": _PLAIN_ROPE}),
    "Hunyuan": Family("hunyuan_v1_dense", _rope()),
    "ERNIE 4.5": Family("ernie4_5", {"use_bias": True, **_rope()}),
    "Seed-OSS": Family("seed_oss", {"attention_bias": True, **_rope()}),
    "Arcee": Family("arcee", _rope()),
    "BitNet": Family("bitnet", _rope(), refused={"processed": "TransformerLens processes its weights wrongly"}),
    "Jais 2": Family("jais2", _rope()),
    "nanochat": Family("nanochat", {"final_logit_softcapping": 1.5, **_rope()}, {"final_logit_softcapping": 1000.0}),
    "Youtu (latent attention)": Family(
        "youtu",
        {**_FULL, **_LATENT, **_rope()},
        refused=_everywhere("TransformerLens cuts what all its heads give in pieces of the rotated width"),
    ),
    "Helium": Family("helium", _rope(), refused=_NO_ADAPTER),
    "Persimmon": Family("persimmon", _PARTIAL, refused=_NO_ADAPTER),
    "BioGPT": Family("biogpt", refused=_NO_ADAPTER),
    "Mixtral (experts)": Family("mixtral", {"num_local_experts": 4, **_rope()}, sites=("heads",), dtype="float32"),
    "Qwen2 (experts)": Family(
        "qwen2_moe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 32,
            **_rope(),
        },
        sites=("heads",),
        dtype="float32",
        refused={"processed": "TransformerLens processes its weights wrongly"},
    ),
    "GPT-1": Family("openai-gpt"),
    "ModernBERT decoder": Family("modernbert-decoder", {"local_attention": 2 * WINDOW}, {"local_attention": 1000}),
}

_NAMES = {
    "d_model": ("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"),
    "n_layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "n_heads": ("num_attention_heads", "n_head", "num_heads", "attention_heads", "n_heads"),
    "n_key_value_heads": ("num_key_value_heads", "num_kv_heads"),
    "d_head": ("head_dim",),
    "d_mlp": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"),
    "n_ctx": ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"),
}
"""What transformers' configs call each size."""


def make_config(family: Family, sizes: Sizes = Sizes(), **changed: Any) -> Any:
    """The family's config of transformers, with these settings changed."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[family.model_type]
    known = kind().to_dict()
    shape = {name: getattr(sizes, size) for size, names in _NAMES.items() for name in names if name in known}
    tokens = {"vocab_size": len(WORDS), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    return kind(**shape | tokens | _resolved({**family.settings, **changed}, sizes))


def _resolved(settings: Mapping[str, Any], sizes: Sizes) -> dict[str, Any]:
    return {
        key: _resolved(value, sizes) if isinstance(value, Mapping) else value(sizes) if callable(value) else value
        for key, value in settings.items()
    }


def build(family: Family, sizes: Sizes = Sizes(), gain: float = 1.5, **changed: Any) -> Any:
    """The family's model of Hugging Face with random weights, each piece of which matters to the logits.

    `gain`: about how much larger a matrix makes what it is multiplied with.
    """
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = make_config(family, sizes, **changed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            if parameter.ndim == 1:  # norms, which begin at 0 or 1, and biases, at 0: they would hide mistakes
                parameter.add_(0.3 * noise)
            else:
                parameter.copy_(gain * noise / min(parameter.shape) ** 0.5)
    return model


def save(family: Family, folder: Path, sizes: Sizes = Sizes(), gain: float = 1.5) -> None:
    """A checkpoint of the family, with a tokenizer of a few words."""
    build(family, sizes, gain).save_pretrained(folder)
    save_tokenizer(folder)
    if family.model_type == "qwen2":  # transformers reads every Qwen2 tokenizer as a byte-level one, but for this
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoTokenizer": ["none", "none"]}}))


def save_tokenizer(folder: Path) -> None:
    """One token a word of WORDS."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    end = WORDS[0]
    PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=end, eos_token=end, pad_token=end, unk_token="<unk>"
    ).save_pretrained(folder)
