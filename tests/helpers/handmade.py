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


def _name_only(body, unembed, n_heads, d_head) -> None:
    """All weights 0 but linear norms; John is 6 in dimension 0, which every head of every block reads: z = (1, 0, ...).

    At the last of 6 positions, over which heads average. Vectors have mean 0: x and -x side by side.
    """
    from helpers.checkpoints import WORDS

    for parameter in [*body.parameters(), unembed]:
        parameter.zero_()
    for norm in [body.ln_f, *(norm for block in body.h for norm in (block.ln_1, block.ln_2))]:
        norm.weight.fill_(_ROOT)
    body.wte.weight[WORDS.index("John"), :2] = torch.tensor([6.0, -6.0], dtype=torch.float64)
    for block in body.h:
        for head in range(n_heads):
            block.attn.c_attn.weight[0, 2 * n_heads * d_head + head * d_head] = 1.0


def _writes(linear, row: int, dim: int, by: float) -> None:
    linear.weight[row, dim], linear.weight[row, dim + 1] = by, -by


def gates(folder: Path) -> TransformerBridge:
    """One layer of 6 heads, each 1 for John and 0 for Mary: F = (0.0 AND 0.1) + (0.2 OR 0.3) + (0.4 + 0.5) / 2.

    F of `PAIR` is 3 clean and 0 corrupted.
    """
    from helpers.checkpoints import WORDS

    def write(body, unembed):
        _name_only(body, unembed, 6, 4)
        (block,) = body.h
        for head, (dim, by) in enumerate([(2, 1), (2, 1), (4, 1), (4, 1), (6, 0.5), (6, 0.5)]):
            _writes(block.attn.c_proj, 4 * head, dim, by)
        # relu(sum - 1) is AND; relu(sum) - relu(sum - 1) is OR.
        for neuron, (dim, bias, by) in enumerate([(2, -1, 1), (4, 0, 1), (4, -1, -1)]):
            block.mlp.c_fc.weight[dim, neuron], block.mlp.c_fc.bias[neuron] = 1.0, bias
            _writes(block.mlp.c_proj, neuron, 6, by)
        unembed[WORDS.index("John"), 6] = 1.0

    shape = {"n_embd": 24, "n_head": 6, "n_inner": 3}
    return _load(folder, 1, write, activation_function="relu", **shape, **_LINEAR)


def backup(folder: Path) -> TransformerBridge:
    """Two layers of two heads: F = 2 z(0.0) + z(1.0) + z(0.1) / 2 + z(1.1) / 4, where 1.0 is the backup of 0.0.

    Neuron L0.N0 is on at John where 0.0 is not, and 1.0 reads nothing else. Clean z(0.0) = z(0.1) = z(1.1) = 1 and
    z(1.0) = 0; corrupted all are 0. With 0.0 patched z(1.0) is 1. F of `PAIR` is 2.75 clean and 0 corrupted.
    """
    from helpers.checkpoints import WORDS

    def write(body, unembed):
        _name_only(body, unembed, 2, 8)
        first, second = body.h
        for block, head, dim, by in ((first, 0, 2, 1), (first, 1, 8, 0.5), (second, 0, 6, 1), (second, 1, 8, 0.25)):
            _writes(block.attn.c_proj, 8 * head, dim, by)
        # At John, the third token, head 0.0 averages 6 over three positions: 2.
        first.mlp.c_fc.weight[0, 0], first.mlp.c_fc.weight[2, 0] = 1.0, -3.0
        _writes(first.mlp.c_proj, 0, 4, 1)
        values = second.attn.c_attn.weight
        values[0, 32], values[4, 32] = 0.0, 1.0
        for dim, by in ((2, 2.0), (6, 1.0), (8, 1.0)):
            unembed[WORDS.index("John"), dim] = by

    shape = {"n_embd": 16, "n_head": 2, "n_inner": 1}
    return _load(folder, 2, write, activation_function="relu", **shape, **_LINEAR)
