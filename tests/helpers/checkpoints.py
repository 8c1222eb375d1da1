"""Random checkpoints of small models, with a tokenizer of a few words."""

from pathlib import Path
from typing import Any

import torch

from igap.bench.blueprint import WORDS, save_tokenizer


def save_checkpoint(architecture: str, n_layers: int, folder: Path, **settings: object) -> None:
    """A random checkpoint of this architecture, with these settings of its transformers config."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    gpt = {"n_embd": 32, "n_layer": n_layers, "n_head": 4, "n_inner": 48, "n_positions": 24}
    later = {"hidden_size": 32, "num_hidden_layers": n_layers, "num_attention_heads": 4, "max_position_embeddings": 24}
    shape = {
        "gpt2": gpt,
        "gptj": {**gpt, "rotary_dim": 4},
        "llama": {**later, "intermediate_size": 48},
        "gpt_neox": {**later, "intermediate_size": 48},
        "gemma": {**later, "intermediate_size": 48, "head_dim": 8, "num_key_value_heads": 2},
        "bloom": {"hidden_size": 32, "n_layer": n_layers, "n_head": 4},
        "opt": {**later, "ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3},
    }[architecture]
    config = CONFIG_MAPPING[architecture](
        vocab_size=len(WORDS), bos_token_id=0, eos_token_id=0, **{"initializer_range": 0.3, **shape, **settings}
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases and norms, which start at 0 and 1 and would hide mistakes
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    save_tokenizer(folder)


def save_beside(folder: Path, architecture: str, **settings: object) -> tuple[Any, Any]:
    """A checkpoint of 3 layers as igap's model, with its raw weights in float64, and as plain modules, for `ByHand`."""
    from transformers import AutoModelForCausalLM

    from igap import load_model

    save_checkpoint(architecture, 3, folder, **settings)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval().requires_grad_(False)
    return load_model(str(folder), processing="raw", dtype="float64"), plain
