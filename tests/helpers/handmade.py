"""Models whose F can be worked out on paper, as GPT-2 checkpoints in float64: most are `igap.bench.blueprint`'s.

Heads are uniform over the positions so far: a word's feature of 6 is 1 in them, at the last of 6 positions.
"""

from pathlib import Path

import torch
from transformer_lens.model_bridge import TransformerBridge

from helpers.checkpoints import save_checkpoint
from igap import PromptPair, load_model
from igap.bench.blueprint import ONE, Blueprint

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
    model = Blueprint(1, 2, 1, activation)
    for word, (first, second) in z.items():
        model.word(word, first=6.0 * first, second=6.0 * second)
    model.head("0.0", ({"first": 1.0}, {"z": 1.0}))
    model.head("0.1", ({"second": 1.0}, {"z": 1.0}))
    model.neuron("L0.N0", {"z": weight, ONE: bias}, {"out": sign})
    model.constant(0, out=constant)
    return _saved(model, folder)


def _saved(model: Blueprint, folder: Path) -> TransformerBridge:
    """The model, of whose answer the feature `out` is the logit, from its checkpoint, which stays in the folder."""
    model.logit("John", out=1.0)
    model.save(folder)
    return load_model(str(folder), processing="raw", dtype="float64")


def gates(folder: Path) -> TransformerBridge:
    """One layer of 6 heads, each 1 for John and 0 for Mary: F = (0.0 AND 0.1) + (0.2 OR 0.3) + (0.4 + 0.5) / 2.

    F of `PAIR` is 3 clean and 0 corrupted.
    """
    model = Blueprint(1, 6, 3)
    model.word("John", name=6.0)
    for head, (feature, by) in enumerate(
        [("and", 1.0), ("and", 1.0), ("or", 1.0), ("or", 1.0), ("out", 0.5), ("out", 0.5)]
    ):
        model.head(f"0.{head}", ({"name": 1.0}, {feature: by}))
    # relu(sum - 1) is AND; relu(sum) - relu(sum - 1) is OR.
    for neuron, (feature, bias, by) in enumerate([("and", -1.0, 1.0), ("or", 0.0, 1.0), ("or", -1.0, -1.0)]):
        model.neuron(f"L0.N{neuron}", {feature: 1.0, ONE: bias}, {"out": by})
    return _saved(model, folder)


def backup(folder: Path) -> TransformerBridge:
    """Two layers of two heads: F = 2 z(0.0) + z(1.0) + z(0.1) / 2 + z(1.1) / 4, where 1.0 is the backup of 0.0.

    Neuron L0.N0 is on at John where 0.0 is not, and 1.0 reads nothing else. Clean z(0.0) = z(0.1) = z(1.1) = 1 and
    z(1.0) = 0; corrupted all are 0. With 0.0 patched z(1.0) is 1. F of `PAIR` is 2.75 clean and 0 corrupted.
    """
    model = Blueprint(2, 2, 1)
    model.word("John", name=6.0)
    model.head("0.0", ({"name": 1.0}, {"first": 1.0, "out": 2.0}))
    model.head("0.1", ({"name": 1.0}, {"out": 0.5}))
    # At John, the third token, head 0.0 averages 6 over three positions: 2.
    model.neuron("L0.N0", {"name": 1.0, "first": -3.0}, {"missing": 1.0})
    model.head("1.0", ({"missing": 1.0}, {"out": 1.0}))
    model.head("1.1", ({"name": 1.0}, {"out": 0.25}))
    return _saved(model, folder)
