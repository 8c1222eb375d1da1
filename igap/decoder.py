"""A model's weights as the engine multiplies with them, and the one place that says which models have such a form.

`read` gives a Decoder for plain pre-norm decoders whose attention is causal and whole: GPT-2 (learned positions),
GPT-NeoX/Pythia and Llama (rotary positions). What it does not know it does not guess: the reason is given instead.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformer_lens.model_bridge import TransformerBridge

ARCHITECTURES = ("GPT2LMHeadModel", "GPTNeoXForCausalLM", "LlamaForCausalLM")


@dataclass(frozen=True)
class Activation:
    """A nonlinearity, and its name in oneDNN, which applies it while a product is still in the cache."""

    function: Callable[[Tensor], Tensor]
    onednn: tuple[str, str]


ACTIVATIONS = {
    "gelu_new": Activation(partial(functional.gelu, approximate="tanh"), ("gelu", "tanh")),
    "gelu_pytorch_tanh": Activation(partial(functional.gelu, approximate="tanh"), ("gelu", "tanh")),
    "gelu": Activation(functional.gelu, ("gelu", "none")),
    "relu": Activation(functional.relu, ("relu", "")),
    "silu": Activation(functional.silu, ("swish", "")),
}


class Linear:
    """x W^T + b with frozen weights: W `[d_out, d_in]`, b `[d_out]` or None.

    On the CPU in float32 oneDNN multiplies, with W packed once: torch takes MKL there, which leaves AMD processors
    at less than half of their rate. Results differ by rounding only.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """The weights are shared, not copied, until a product asks for them packed."""
        self.weight = weight.detach()
        self.bias = None if bias is None else bias.detach()
        self._onednn = (
            weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()
        )

    def __call__(self, x: Tensor, activation: Activation | None = None) -> Tensor:
        """The product of `[..., d_in]`, after the activation if there is one."""
        if self._onednn and not (torch.is_grad_enabled() and x.requires_grad):
            return _multiply(x, self.packed, self.bias, *(activation.onednn if activation else ()))
        differentiable: Callable[..., Tensor] = _Differentiable.apply
        product = differentiable(x, self) if self._onednn else functional.linear(x, self.weight, self.bias)
        return activation.function(product) if activation else product

    @cached_property
    def packed(self) -> Tensor:
        """W as oneDNN reads it; not a matrix for anybody else."""
        return _pack(self.weight)

    @cached_property
    def packed_transpose(self) -> Tensor:
        """W^T as oneDNN reads it, for gradients."""
        return _pack(self.weight.T.contiguous())

    def rows(self, start: int, stop: int) -> "Linear":
        """The outputs `start` to `stop` alone."""
        return Linear(self.weight[start:stop].contiguous(), None if self.bias is None else self.bias[start:stop])


class _Differentiable(torch.autograd.Function):
    """x W^T + b with the gradient for x; oneDNN's operator has none of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: Linear) -> Tensor:
        ctx.linear = linear
        return _multiply(x, linear.packed, linear.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _multiply(gradients[0], ctx.linear.packed_transpose, None), None


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


def _multiply(x: Tensor, packed: Tensor, bias: Tensor | None, activation: str = "none", variant: str = "") -> Tensor:
    operator = torch.ops.mkldnn._linear_pointwise
    product: Tensor = operator(x.contiguous(), packed, bias, activation, [], variant)
    return product


@dataclass(frozen=True, eq=False)
class Block:
    """One pre-norm block: attention, then MLP, or both of one input (`parallel`)."""

    norm1: nn.Module
    qkv: Linear
    """Queries, keys and values of all heads, one below the other."""
    out: Linear
    """W_O: heads side by side to the residual stream."""
    norm2: nn.Module
    up: Linear
    """W_in, for gated MLPs below W_gate."""
    down: Linear
    """W_out: neurons to the residual stream."""
    activation: Activation
    gated: bool
    parallel: bool
    n_heads: int
    n_key_value_heads: int
    d_head: int
    scale: float

    def mlp(self, residual: Tensor) -> Tensor:
        """What the MLP writes to the residual stream `[..., d_model]` that it reads."""
        return self.down(self.neurons(residual))

    def neurons(self, residual: Tensor) -> Tensor:
        """The MLP's activations `[..., d_mlp]` after the nonlinearity."""
        if not self.gated:
            return self.up(self.norm2(residual), self.activation)
        gate, linear = self.up(self.norm2(residual)).chunk(2, -1)
        return self.activation.function(gate) * linear

    def heads(self, projected: Tensor, kind: str) -> Tensor:
        """Queries (`q`), or keys and values (`kv`), side by side to one a head: `[..., head, d_head]`."""
        split: Tensor = projected.unflatten(
            -1, (self.n_heads if kind == "q" else 2 * self.n_key_value_heads, self.d_head)
        )
        return split

    @property
    def d_query(self) -> int:
        """Outputs of `qkv` that are queries; keys and values follow."""
        return self.n_heads * self.d_head

    @cached_property
    def split(self) -> tuple[Linear, Linear]:
        """Queries alone; keys and values alone."""
        return self.qkv.rows(0, self.d_query), self.qkv.rows(self.d_query, len(self.qkv.weight))


@dataclass(frozen=True, eq=False)
class Decoder:
    """The blocks, the final norm and the unembedding."""

    blocks: Sequence[Block]
    norm: nn.Module
    unembed: Float[Tensor, "d_model d_vocab"]
    """W_U."""
    unembed_bias: Float[Tensor, " d_vocab"]
    rotary: nn.Module | None
    """Residual stream and position ids to the cosines and sines of every position; None without rotary positions."""


def read(model: TransformerBridge) -> Decoder | str:
    """The model's weights, shared with it, or in a few words why the engine has no form for them."""
    cfg = model.cfg
    if cfg.architecture not in ARCHITECTURES:
        return f"{cfg.architecture} is none of {', '.join(ARCHITECTURES)}"
    hf = model.original_model.config
    if getattr(hf, "reorder_and_upcast_attn", False) or getattr(hf, "add_cross_attention", False):
        return "its attention is not the plain one"
    if cfg.act_fn not in ACTIVATIONS:
        return f"its activation {cfg.act_fn} is none of {', '.join(ACTIVATIONS)}"
    return Decoder(
        blocks=[_block(block, cfg) for block in model.blocks],
        norm=model.ln_final.original_component,
        unembed=model.W_U,
        unembed_bias=model.b_U,
        rotary=model.rotary_emb.original_component if cfg.positional_embedding_type == "rotary" else None,
    )


def _block(block: Any, cfg: Any) -> Block:
    attention, mlp = block.attn, block.mlp
    gated = bool(cfg.gated_mlp)
    keys = _affine(attention.k)[0]
    return Block(
        norm1=block.ln1.original_component,
        qkv=_fused([attention.q, attention.k, attention.v]),
        out=_fused([attention.o]),
        norm2=block.ln2.original_component,
        up=_fused([mlp.gate, getattr(mlp, "in")] if gated else [getattr(mlp, "in")]),
        down=_fused([mlp.out]),
        activation=ACTIVATIONS[cfg.act_fn],
        gated=gated,
        parallel=bool(cfg.parallel_attn_mlp),
        n_heads=cfg.n_heads,
        n_key_value_heads=len(keys) // cfg.d_head,
        d_head=cfg.d_head,
        scale=attention.original_component.scaling,
    )


def _fused(projections: Sequence[Any]) -> Linear:
    if len(projections) == 1:
        return Linear(*_affine(projections[0]))
    weights, biases = zip(*map(_affine, projections), strict=True)
    weight = torch.cat(weights)
    if all(bias is None for bias in biases):
        return Linear(weight, None)
    filled = [weight.new_zeros(len(w)) if b is None else b for w, b in zip(weights, biases, strict=True)]
    return Linear(weight, torch.cat(filled))


def _affine(projection: Any) -> tuple[Tensor, Tensor | None]:
    """W `[d_out, d_in]` and b of a projection, whichever way round its module keeps W."""
    module = projection.original_component
    return (module.weight if isinstance(module, nn.Linear) else module.weight.T), module.bias
