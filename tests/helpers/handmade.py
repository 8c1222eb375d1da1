"""Models with weights written by hand, whose F can be worked out on paper, as GPT-2 checkpoints in float64.

A norm with a huge epsilon divides by the root of that epsilon, whatever its input: it is linear. Attention with query
and key weights of 0 is uniform over the positions so far.
"""

from pathlib import Path

import torch
from transformer_lens.model_bridge import TransformerBridge

from helpers.checkpoints import save_checkpoint
from igap import PromptPair, load_model

_ROOT = 1e6
_LINEAR = {"layer_norm_epsilon": _ROOT**2, "tie_word_embeddings": False}


def _load(folder: Path, n_layers: int, write, **settings) -> TransformerBridge:
    from transformers import AutoModelForCausalLM

    save_checkpoint("gpt2", n_layers, folder, **settings)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.no_grad():
        write(model.transformer, model.lm_head.weight)
    model.save_pretrained(folder)
    return load_model(str(folder), processing="raw", dtype="float64")


def linear(folder: Path) -> TransformerBridge:
    """Random weights, 3 layers of 4 heads: F is linear in every activation, and in those of all layers together."""

    def write(body, unembed):
        for block in body.h:
            for norm in (block.ln_1, block.ln_2):
                norm.bias.zero_()
            block.attn.c_attn.bias.zero_()
            # Scores stay as small as the norm's output, so that attention is uniform; the rest gets its size back.
            block.attn.c_proj.weight.mul_(_ROOT)
            block.ln_2.weight.mul_(_ROOT)
        body.ln_f.weight.mul_(_ROOT)

    return _load(folder, 3, write, activation_function="linear", **_LINEAR)


def one_still_head(folder: Path) -> TransformerBridge:
    """Random weights; head 0.1 has no values, so that its activation is 0 on every prompt."""

    def write(body, unembed):
        body.h[0].attn.c_attn.weight[:, 72:80] = 0  # 64 columns of queries and keys, then values, 8 a head
        body.h[0].attn.c_attn.bias[72:80] = 0

    return _load(folder, 2, write)


PAIR = PromptPair("After John gave it to", "After Mary gave it to", " John", " Mary", min_gap=0.0)
"""6 tokens with BOS, one of them different. On `two_heads` F is 16 clean and 9 corrupted."""


def two_heads(folder: Path) -> TransformerBridge:
    """One layer of two heads: F = max(0, 1 + z_0 + z_1)^2, with z = (1, 2) for a prompt with John, (3, -1) with Mary.

    z_h is the first dimension of head h at the last of 6 positions, over which it averages.
    """
    return _heads_and_a_neuron(folder, {"John": (1, 2), "Mary": (3, -1)}, "relu2", weight=1.0, bias=1.0)


def gate(folder: Path, kind: str) -> TransformerBridge:
    """As `two_heads`, with z = (1, 1) for a prompt with John and (0, 0) with Mary: F is 1 and 0.

    `and`: F = max(0, z_0 + z_1 - 1). `or`: F = 1 - max(0, 1 - z_0 - z_1).
    """
    z = {"John": (1, 1), "Mary": (0, 0)}
    if kind == "and":
        return _heads_and_a_neuron(folder, z, "relu", weight=1.0, bias=-1.0)
    return _heads_and_a_neuron(folder, z, "relu", weight=-1.0, bias=1.0, sign=-1.0, constant=1.0)


def _heads_and_a_neuron(
    folder: Path,
    z: dict[str, tuple[int, int]],
    activation: str,
    *,
    weight: float,
    bias: float,
    sign: float = 1.0,
    constant: float = 0.0,
) -> TransformerBridge:
    """F = constant + sign * activation(bias + weight * (z_0 + z_1)), z by the word of the prompt."""
    from helpers.checkpoints import WORDS

    def write(body, unembed):
        (block,) = body.h
        for parameter in [*body.parameters(), unembed]:
            parameter.zero_()
        for norm in (block.ln_1, block.ln_2, body.ln_f):
            norm.weight.fill_(_ROOT)
        # Every vector in the residual stream has mean 0 (x and -x side by side), so that no norm changes it.
        for word, (first, second) in z.items():
            own = torch.tensor([first, -first, second, -second], dtype=torch.float64)
            body.wte.weight[WORDS.index(word), :4] = 6 * own
        values = block.attn.c_attn.weight[:, 16:]  # [d_model, head * d_head]: heads of 4 dimensions
        values[0, 0] = values[2, 4] = 1.0
        for head, dim in ((0, 4), (1, 6)):
            block.attn.c_proj.weight[4 * head, dim], block.attn.c_proj.weight[4 * head, dim + 1] = 1.0, -1.0
            block.mlp.c_fc.weight[dim, 0] = weight
        block.mlp.c_fc.bias[0] = bias
        block.mlp.c_proj.weight[0, 0], block.mlp.c_proj.weight[0, 1] = sign, -sign
        block.mlp.c_proj.bias[0], block.mlp.c_proj.bias[1] = constant, -constant
        unembed[WORDS.index("John"), 0] = 1.0

    shape = {"n_embd": 8, "n_head": 2, "n_inner": 1}
    return _load(folder, 1, write, activation_function=activation, **shape, **_LINEAR)
