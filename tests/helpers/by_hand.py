"""Three architectures written out block by block on Hugging Face's weights, with every site open to a change.

Nothing of igap's engine or of TransformerLens runs here. Every activation is `[row, pos, component, d]`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Edit = Callable[[str, int, Tensor], Tensor]
"""A site, a layer and the activation there to what becomes of it."""

MLP_IN = "mlp_in"
"""What the MLP reads of the residual stream, which is no site of igap: TransformerLens' bridge has hook_resid_mid
there."""


class ByHand:
    """F of a prompt of one model: logit[answer] - logit[distractor] at its last position, in logits."""

    def __init__(self, model: Any, answer: int, distractor: int) -> None:
        self.model, self.answer, self.distractor = model, answer, distractor
        self.kind: str = model.config.model_type
        self.body = {"gpt2": "transformer", "llama": "model", "gpt_neox": "gpt_neox"}[self.kind]
        body = getattr(model, self.body)
        self.blocks = body.h if self.kind == "gpt2" else body.layers
        self.n_heads: int = model.config.num_attention_heads
        self.parallel = bool(getattr(model.config, "use_parallel_residual", False))

    def f(self, tokens: Tensor, edit: Edit = lambda site, layer, activation: activation) -> Tensor:
        """F of each row of `tokens` `[row, pos]`."""
        body = getattr(self.model, self.body)
        positions = torch.arange(tokens.shape[1])
        embed = {"gpt2": "wte", "llama": "embed_tokens", "gpt_neox": "embed_in"}[self.kind]
        stream = getattr(body, embed)(tokens)
        if self.kind == "gpt2":
            stream = stream + body.wpe(positions)
        for layer, block in enumerate(self.blocks):

            def at(site: str, activation: Tensor, layer: int = layer) -> Tensor:
                return edit(site, layer, activation)

            def at_vector(site: str, vectors: Tensor, layer: int = layer) -> Tensor:
                return edit(site, layer, vectors[:, :, None])[:, :, 0]

            stream = at_vector("resid_pre", stream)
            attended = at_vector("attn_out", self._attention(block, stream, positions, at))
            middle = stream + attended
            if not self.parallel:
                middle = at_vector("resid_mid", middle)
            neurons = self._neurons(block, at_vector(MLP_IN, stream if self.parallel else middle))
            neurons = at("neurons", neurons[..., None])[..., 0]
            down = {"gpt2": "c_proj", "llama": "down_proj", "gpt_neox": "dense_4h_to_h"}[self.kind]
            stream = middle + at_vector("mlp_out", getattr(block.mlp, down)(neurons))
            stream = at_vector("resid_post", stream)
        last = {"gpt2": "ln_f", "llama": "norm", "gpt_neox": "final_layer_norm"}[self.kind]
        return self.read_out(getattr(body, last)(stream), self.model.get_output_embeddings().weight)

    def read_out(self, normed: Tensor, unembed: Tensor) -> Tensor:
        """F of the final norm's output `[row, pos, d_model]`."""
        return normed[:, -1] @ (unembed[self.answer] - unembed[self.distractor])

    def read(self, tokens: Tensor) -> dict[tuple[str, int], Tensor]:
        """The activations of a prompt by site and layer, one row."""
        activations = {}

        def note(site: str, layer: int, activation: Tensor) -> Tensor:
            activations[site, layer] = activation
            return activation

        with torch.no_grad():
            self.f(tokens, note)
        return activations

    def patched(self, tokens: Tensor, site: str, layer: int, end: Tensor, spans: Sequence[Sequence[int]]) -> Tensor:
        """Effects `[span, component]` of replacing each component at the positions of each span by `end`'s."""
        start = self.read(tokens)[site, layer]
        rows = start[0].expand(len(spans), start.shape[2], *start.shape[1:]).clone()
        for i, span in enumerate(spans):
            for component in range(start.shape[2]):
                rows[i, component, span, component] = end[0, span, component]
        with torch.no_grad():
            values = self.given(tokens, site, layer, rows.flatten(0, 1))
            return values.unflatten(0, rows.shape[:2]) - self.f(tokens)

    def held(self, tokens: Tensor, ends: Any, *changes: tuple[str, int, int, Sequence[int]]) -> float:
        """F with all of these (site, layer, component, positions) held at `ends`, by site and layer, together."""

        by_place: dict[tuple[str, int], list[tuple[int, list[int]]]] = {}
        for site, layer, component, positions in changes:
            by_place.setdefault((site, layer), []).append((component, list(positions)))

        def edit(site: str, layer: int, activation: Tensor) -> Tensor:
            if (site, layer) in by_place:
                activation = activation.clone()
            for component, positions in by_place.get((site, layer), []):
                activation[:, positions, component] = ends[site, layer][:, positions, component]
            return activation

        with torch.no_grad():
            return self.f(tokens, edit).item()

    def given(self, tokens: Tensor, site: str, layer: int, rows: Tensor) -> Tensor:
        """F of each of these activations of one site and layer."""
        here = (site, layer)
        return self.f(tokens.expand(len(rows), -1), lambda *place_and: rows if place_and[:2] == here else place_and[2])

    def integrated(self, tokens: Tensor, site: str, layer: int, end: Tensor, n_steps: int) -> Tensor:
        """Joint-path IG `[pos, component]`: a sum over Gauss-Legendre nodes."""
        start = self.read(tokens)[site, layer]
        nodes, weights = (torch.tensor(each / 2) for each in np.polynomial.legendre.leggauss(n_steps))
        points = (start + (nodes + 0.5)[:, None, None, None] * (end - start)).requires_grad_()
        (gradient,) = torch.autograd.grad(self.given(tokens, site, layer, points).sum(), points)
        return ((end - start)[0] * (weights[:, None, None, None] * gradient).sum(0)).sum(-1)

    def first_orders(self, tokens: Tensor, ends: Any) -> dict[tuple[str, int], Tensor]:
        """(a' - a) . dF/da `[pos, component]` of every site and layer, by autograd through the whole model."""
        run = self.read(tokens)
        zeros = {place: torch.zeros_like(activation).requires_grad_() for place, activation in run.items()}
        value = self.f(tokens, lambda site, layer, activation: activation + zeros[site, layer])
        slopes = torch.autograd.grad(value.sum(), list(zeros.values()))
        return {
            place: ((ends[place] - run[place])[0] * slope[0]).sum(-1) for place, slope in zip(run, slopes, strict=True)
        }

    def _attention(self, block: Any, stream: Tensor, positions: Tensor, at: Callable[[str, Tensor], Tensor]) -> Tensor:
        q, k, v = (at(site, x) for site, x in zip("qkv", self.project(block, stream), strict=True))
        d_head = q.shape[-1]
        if self.kind != "gpt2":
            cos, sin = (part[0, :, None] for part in getattr(self.model, self.body).rotary_emb(stream, positions[None]))
            q, k = _rotated(q, cos, sin), _rotated(k, cos, sin)
        k, v = (x.repeat_interleave(self.n_heads // x.shape[2], 2) for x in (k, v))
        scores = torch.einsum("rqhd,rkhd->rhqk", q, k) / d_head**0.5
        scores = scores.masked_fill(positions > positions[:, None], -torch.inf)
        z = at("heads", torch.einsum("rhqk,rkhd->rqhd", scores.softmax(-1), v))
        return self.output(block)(z.flatten(2))

    def project(self, block: Any, stream: Tensor) -> list[Tensor]:
        """Queries, keys and values `[row, pos, head, d_head]` of what attention reads of the residual stream."""
        if self.kind == "gpt2":
            q, k, v = block.attn.c_attn(block.ln_1(stream)).chunk(3, -1)
        elif self.kind == "llama":
            normed, attn = block.input_layernorm(stream), block.self_attn
            q, k, v = attn.q_proj(normed), attn.k_proj(normed), attn.v_proj(normed)
        else:
            joint = block.attention.query_key_value(block.input_layernorm(stream))
            # Head by head its query, key and value.
            q, k, v = (part.flatten(2) for part in joint.unflatten(-1, (self.n_heads, -1)).chunk(3, -1))
        d_head = q.shape[-1] // self.n_heads
        return [x.unflatten(-1, (-1, d_head)) for x in (q, k, v)]

    def output(self, block: Any) -> Any:
        """W_O, from heads side by side to the residual stream."""
        if self.kind == "gpt2":
            return block.attn.c_proj
        return block.self_attn.o_proj if self.kind == "llama" else block.attention.dense

    def _neurons(self, block: Any, stream: Tensor) -> Tensor:
        if self.kind == "gpt2":
            return block.mlp.act(block.mlp.c_fc(block.ln_2(stream)))
        normed = block.post_attention_layernorm(stream)
        if self.kind == "llama":
            return block.mlp.act_fn(block.mlp.gate_proj(normed)) * block.mlp.up_proj(normed)
        return block.mlp.act(block.mlp.dense_h_to_4h(normed))


class ForcedByHand(ByHand):
    """F is the sum of the log-probabilities of an answer's tokens, of which all but the last end the prompt."""

    def __init__(self, model: Any, answer: Sequence[int]) -> None:
        super().__init__(model, answer[0], answer[0])
        self.tokens = list(answer)

    def read_out(self, normed: Tensor, unembed: Tensor) -> Tensor:
        """F, one token after the other."""
        total = torch.zeros(len(normed), dtype=normed.dtype)
        for back, token in enumerate(reversed(self.tokens), start=1):
            total = total + (normed[:, -back] @ unembed.T).log_softmax(-1)[:, token]
        return total


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    turned, kept = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    low, high = turned.chunk(2, -1)
    return torch.cat([turned * cos + torch.cat([-high, low], -1) * sin, kept], -1)
