"""A model's weights as the engine multiplies with them, and the one place that says which models have such a form.

A family is what its blocks have beyond attention and MLP, each with a norm before it: `Block` has a field for each such
piece (norms after, norms of queries and keys, rotary positions in some layers, windows, caps, factors), and `_block`
reads them from the model. `ARCHITECTURES` are those that were tried beside plain Hugging Face modules. What `read` does
not know it does not guess: it raises `UnknownDecoderError` with the reason.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components import JointQKVAttentionBridge

from igap.engine.linear import ACTIVATIONS, Activation, Linear
from igap.engine.rules import DERIVATIVES, Norm, Rules, hold_denominator, scale_gradient

ARCHITECTURES = (
    "ArceeForCausalLM",
    "Cohere2ForCausalLM",
    "CohereForCausalLM",
    "Ernie4_5ForCausalLM",
    "GPT2LMHeadModel",
    "GPTBigCodeForCausalLM",
    "GPTNeoForCausalLM",
    "GPTNeoXForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "GemmaForCausalLM",
    "Glm4ForCausalLM",
    "GlmForCausalLM",
    "GraniteForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "NemotronForCausalLM",
    "OPTForCausalLM",
    "Olmo2ForCausalLM",
    "Olmo3ForCausalLM",
    "OlmoForCausalLM",
    "Phi3ForCausalLM",
    "PhiForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "SeedOssForCausalLM",
    "SmolLM3ForCausalLM",
    "StableLmForCausalLM",
    "Starcoder2ForCausalLM",
)
_UNKNOWN = ("reorder_and_upcast_attn", "add_cross_attention", "clip_qkv", "use_bidirectional_attention", "qk_layernorm")
"""Settings of a config that change what the blocks compute, and that the engine has no form for."""
_TURNED_WHERE_SLIDING = ("Cohere2ForCausalLM",)
"""Only layers with a sliding window have positions."""
_SCALES = {"GPTNeoForCausalLM": 1.0}
"""The factor of attention scores, where the model's module does not say it."""


Edit = Callable[[Tensor], Tensor]
"""A site's activation `[pair, row, pos, component, ...]` to what becomes of it."""


_NORMS = ("norm1", "norm2", "post1", "post2", "query_norm", "key_norm")


def keep(x: Tensor) -> Tensor:
    """No norm, and no edit."""
    return x


@dataclass(frozen=True, eq=False)
class Rotary:
    """Rotary positions of some layers, by the model's own module."""

    module: nn.Module
    layer_type: str | None
    """What the module is asked for where layers of two types have frequencies of their own (Gemma 3)."""
    adjacent: bool
    """Whether the dimensions that turn together are neighbours (Cohere, GLM), not half of the width apart.

    The models that do so turn in float32, whatever their dtype.
    """
    repeated: bool
    """Whether the module gives the angles for dimensions half of the width apart although they are neighbours (GLM)."""

    def tables(self, stream: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of every position, each `[pos, 1, d_rotary]`; `stream` gives their dtype and device."""
        kind = {} if self.layer_type is None else {"layer_type": self.layer_type}
        cos, sin = (part[0, :, None] for part in self.module(stream, positions[None], **kind))
        if self.repeated:
            cos, sin = (part.chunk(2, -1)[0].repeat_interleave(2, -1) for part in (cos, sin))
        return cos, sin

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Queries or keys `[..., pos, head, d_head]`, rotated; dimensions beyond d_rotary stay as they are."""
        turned, kept = x.split([cos.shape[-1], x.shape[-1] - cos.shape[-1]], -1)
        if self.adjacent:
            turned = turned.float()
            across = torch.stack([-turned[..., 1::2], turned[..., ::2]], -1).flatten(-2)
        else:
            low, high = turned.chunk(2, -1)
            across = torch.cat([-high, low], -1)
        return torch.cat([(turned * cos + across * sin).to(x.dtype), kept], -1)


@dataclass(frozen=True, eq=False)
class Block:
    """One block: attention, then MLP, or both of one input (`parallel`), each with a norm before, after or both."""

    norm1: Norm
    query: Linear
    """W_Q of all heads, one below the other; `key` and `value` as well."""
    key: Linear
    value: Linear
    out: Linear
    """W_O: heads side by side to the residual stream."""
    norm2: Norm
    gate: Linear | None
    """W_gate; None in an MLP that is not gated."""
    up: Linear
    """W_in."""
    down: Linear
    """W_out: neurons to the residual stream."""
    activation: Activation
    parallel: bool
    d_head: int
    scale: float
    post1: Norm = keep
    """The norm of what attention writes (Gemma 2 and 3, OLMo 2)."""
    post2: Norm = keep
    """The norm of what the MLP writes."""
    query_norm: Norm = keep
    key_norm: Norm = keep
    norm_by_head: bool = True
    """Whether the norms of queries and keys are over d_head (Qwen 3, Gemma 3), not over all heads at once (OLMo 2)."""
    rotary: Rotary | None = None
    window: int | None = None
    """How many positions a query sees, its own among them; None: all before it."""
    softmax: torch.dtype | None = None
    """The type in which the model takes its softmax; None: its own."""
    score_cap: float | None = None
    """c of Gemma 2's c tanh(score / c)."""
    residual_scale: float = 1.0
    """Factor of what attention and MLP add to the residual stream (Granite)."""
    rules: Rules = DERIVATIVES
    """How backward passes go through what is not linear."""

    def attention_adds(self, written: Tensor) -> Tensor:
        """What the residual stream gets of attention's output `[..., d_model]`."""
        return self._scale(self.post1(written))

    def mlp_adds(self, written: Tensor) -> Tensor:
        """What the residual stream gets of the MLP's output `[..., d_model]`."""
        return self._scale(self.post2(written))

    def _scale(self, added: Tensor) -> Tensor:
        return added if self.residual_scale == 1 else self.residual_scale * added

    def neurons(self, residual: Tensor) -> Tensor:
        """The MLP's activations `[..., d_mlp]` after the nonlinearity."""
        normed = self.norm2(residual)
        if self.gate is None:
            return self.up(normed, self.activation)
        return scale_gradient(self.gate(normed, self.activation) * self.up(normed), self.rules.product)

    def queries(self, normed: Tensor, edit: Edit = keep) -> Tensor:
        """Queries of a normed residual stream, edited, normalised, before they are rotated: `[..., head, d_head]`."""
        return self._heads(self.query(normed), self.query_norm, edit)

    def keys_values(self, normed: Tensor, edit_keys: Edit = keep, edit_values: Edit = keep) -> tuple[Tensor, Tensor]:
        """Keys, edited, normalised, before they are rotated, and edited values: each `[..., kv_head, d_head]`."""
        keys = self._heads(self.key(normed), self.key_norm, edit_keys)
        return keys, self._heads(self.value(normed), keep, edit_values)

    def _heads(self, projected: Tensor, norm: Norm, edit: Edit) -> Tensor:
        by_head: Tensor = edit(projected.unflatten(-1, (-1, self.d_head)))
        if self.norm_by_head:
            return norm(by_head)
        return norm(by_head.flatten(-2)).unflatten(-1, (-1, self.d_head))  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class Decoder:
    """The blocks, the final norm and the unembedding."""

    blocks: Sequence[Block]
    norm: Norm
    unembed: Float[Tensor, "d_model d_vocab"]
    """W_U."""
    unembed_bias: Float[Tensor, " d_vocab"]
    logit_scale: float
    """Factor of the logits (Cohere, Granite)."""
    logit_cap: float | None
    """c of Gemma 2's c tanh(logit / c)."""

    def logits(self, normed: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_vocab"]:
        """The logits of every token, from the final norm's output."""
        logits = normed @ self.unembed + self.unembed_bias
        if self.logit_scale != 1:
            logits = self.logit_scale * logits
        return logits if self.logit_cap is None else self.logit_cap * torch.tanh(logits / self.logit_cap)

    def with_rules(self, rules: Rules) -> "Decoder":
        """The same decoder, whose backward passes follow these rules and hold the denominators of norms."""

        def hold(norm: Norm) -> Norm:
            return norm if norm is keep else hold_denominator(norm)

        return replace(self, norm=hold(self.norm), blocks=[_with_rules(block, rules, hold) for block in self.blocks])


def _with_rules(block: Block, rules: Rules, hold: Callable[[Norm], Norm]) -> Block:
    norms: Any = {name: hold(getattr(block, name)) for name in _NORMS}
    return replace(block, **norms, rules=rules, activation=rules.activation(block.activation))


class UnknownDecoderError(Exception):
    """The engine has no form for a model's weights; says why, in a few words."""


def unknown(architecture: str, hf: Any) -> str:
    """Why the engine has no form for the weights of a model of this config, in a few words; empty where it may have."""
    if architecture not in ARCHITECTURES:
        return f"the engine has no form for {architecture}"
    for setting in _UNKNOWN:
        if getattr(hf, setting, None):
            return f"the engine has no form for its {setting}={getattr(hf, setting)}"
    return (
        "" if getattr(hf, "do_layer_norm_before", True) else "its blocks norm the residual stream after they add to it"
    )


def read(model: TransformerBridge) -> Decoder:
    """The model's weights, shared with it. Raises UnknownDecoderError where the engine has no form for them."""
    cfg, hf = model.cfg, getattr(model.original_model, "config", None)
    if reason := unknown(str(cfg.architecture), hf):
        raise UnknownDecoderError(reason)
    if cfg.act_fn not in ACTIVATIONS:
        raise UnknownDecoderError(f"its activation {cfg.act_fn} is none of {', '.join(ACTIVATIONS)}")
    rotaries = _rotaries(model)
    return Decoder(
        blocks=[_block(model, layer, rotaries) for layer in range(cfg.n_layers)],
        norm=_norm(model.ln_final),
        unembed=model.W_U,
        unembed_bias=model.b_U,
        # TransformerLens may have folded logit_scale into W_U; the model's attribute is 1 then, its config's is not.
        logit_scale=getattr(model.original_model, "logit_scale", 1.0) / getattr(hf, "logits_scaling", 1.0),
        logit_cap=getattr(hf, "final_logit_softcapping", None),
    )


def _rotaries(model: TransformerBridge) -> Mapping[str | None, Rotary]:
    """The rotary positions of each type of layer that has its own, or of all (None); empty without rotary positions."""
    cfg = model.cfg
    if cfg.positional_embedding_type != "rotary":
        return {}
    module = model.rotary_emb.original_component
    repeated = bool(getattr(cfg, "rotary_adjacent_pairs", False))
    adjacent = repeated or bool(getattr(cfg, "rotary_interleaved_cos_sin", False))
    kinds: Sequence[str | None] = getattr(module, "layer_types", None) or [None]
    return {kind: Rotary(module, kind, adjacent, repeated) for kind in kinds}


def _block(model: TransformerBridge, layer: int, rotaries: Mapping[str | None, Rotary]) -> Block:
    cfg, hf, block = model.cfg, model.original_model.config, model.blocks[layer]
    attention, mlp = block.attn, block.mlp
    inner = attention.original_component
    parallel = bool(cfg.parallel_attn_mlp)
    query_norm = getattr(attention, "q_norm", None)
    # Configs without types of layers have one window for all, or none at all.
    types = getattr(hf, "layer_types", None) or getattr(hf, "attention_layers", None)
    kind = types[layer] if types else None
    slides = kind in (None, "sliding_attention", "local")
    window = getattr(hf, "sliding_window", getattr(hf, "window_size", None)) if slides else None
    turned = slides if cfg.architecture in _TURNED_WHERE_SLIDING else getattr(inner, "use_rope", True)
    return Block(
        norm1=_norm(getattr(block, "ln1", None)),
        query=_linear(attention.q),
        key=_linear(attention.k),
        value=_linear(attention.v),
        out=_linear(attention.o),
        # Blocks whose attention and MLP read one input may have one norm for both.
        norm2=_norm(getattr(block, "ln2", block.ln1 if parallel else None)),
        gate=_linear(mlp.gate) if cfg.gated_mlp else None,
        up=_linear(getattr(mlp, "in")),
        down=_linear(mlp.out),
        activation=ACTIVATIONS[cfg.act_fn],
        parallel=parallel,
        d_head=cfg.d_head,
        scale=inner.scaling if hasattr(inner, "scaling") else _SCALES[str(cfg.architecture)],
        post1=_norm(getattr(block, "ln1_post", None)),
        post2=_norm(getattr(block, "ln2_post", None)),
        query_norm=_norm(query_norm),
        key_norm=_norm(getattr(attention, "k_norm", None)),
        norm_by_head=query_norm is None or query_norm.original_component.weight.shape[-1] == cfg.d_head,
        rotary=(rotaries.get(kind) or rotaries.get(None)) if turned else None,
        window=window,
        softmax=None if isinstance(attention, JointQKVAttentionBridge) else torch.float32,
        score_cap=getattr(inner, "attn_logit_softcapping", None),
        residual_scale=getattr(hf, "residual_multiplier", 1.0),
    )


def _norm(norm: Any) -> Norm:
    return keep if norm is None else norm.original_component


def _linear(projection: Any) -> Linear:
    """A projection, whichever way round its module keeps W."""
    module = projection.original_component
    return Linear(module.weight if isinstance(module, nn.Linear) else module.weight.T, module.bias)
