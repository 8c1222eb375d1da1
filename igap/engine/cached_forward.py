"""Logits after whole prompts, with sites of any layers edited: restarted at the first edit, continued token by token.

`forward` asks for F of a pair as a function of one site; here every logit after many prompts of one length is wanted,
and a few tokens that follow them. What is recomputed, when the first edit is in block L:

    block < L     nothing: its output is the unedited run's
    block L       from z on; of edits before z, the whole block
    block > L     the whole block; of the last one the last position only
    a new token   all blocks, for its own position; it attends to the keys and values that were kept
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from igap.components import Site
from igap.engine.attention import attend, visible
from igap.engine.decoder import Block, Decoder, Edit, keep

KeysValues = tuple[Tensor, Tensor]
"""Keys, rotated, and values of one block, each `[prompt, 1, kv_head, pos, d_head]`."""

_KEYS_VALUES: tuple[Site, Site] = ("k", "v")
_BEFORE_Z: tuple[Site, ...] = ("resid_pre", "q", *_KEYS_VALUES)
"""The sites of a block that come before z."""

Edits = Mapping[tuple[Site, int], Callable[[Tensor], Tensor]]
"""Site and layer to what becomes of its activations `[prompt, pos, component, ...]` at the last positions."""


@dataclass(frozen=True, eq=False)
class Pass:
    """A forward pass, ready to be continued."""

    last: Float[Tensor, "prompt d_model"]
    """The residual stream after the last block, at the last position."""
    kept: tuple[KeysValues, ...]
    """Keys and values of every block; of those before the restart only if it was given them."""


class CachedForward:
    """The blocks of a model, for prompts of one token length that may grow."""

    def __init__(self, decoder: Decoder, residual: Float[Tensor, "prompt pos d_model"], n_more: int = 0) -> None:
        """`residual` is the input of some block; at most `n_more` tokens will follow the prompts."""
        self._decoder = decoder
        with torch.no_grad():
            positions = torch.arange(residual.shape[1] + n_more, device=residual.device)
            rotaries = {block.rotary for block in decoder.blocks if block.rotary is not None}
            self._turns = {rotary: rotary.tables(residual, positions) for rotary in rotaries}

    def keys_values(self, layer: int, residual: Float[Tensor, "prompt pos d_model"]) -> KeysValues:
        """Keys and values of a block from its input, at the prompts' positions."""
        return self._keys_values(self._decoder.blocks[layer], self._decoder.blocks[layer].norm1(residual), 0)

    def restart(
        self,
        layer: int,
        residual: Float[Tensor, "prompt pos d_model"],
        z: Float[Tensor, "prompt pos head d_head"],
        kept: Sequence[KeysValues],
        edits: Edits,
    ) -> Pass:
        """The pass from the first edited site of `layer` on, with no edit in the layers before.

        `residual` and `z` are the unedited run's, and so are the keys and values `kept` of the blocks up to `layer`;
        without them the pass gives its logits and cannot be continued.
        """
        if any((site, layer) in edits for site in _BEFORE_Z):
            keys_values, stream, first = list(kept[:layer]), residual, layer
        else:
            is_last = layer == len(self._decoder.blocks) - 1
            stream = self._after_attention(layer, residual, (z[:, -1:] if is_last else z).flatten(2), edits)
            keys_values, first = list(kept), layer + 1
        for later in range(first, len(self._decoder.blocks)):
            stream, added = self._block(later, stream, None, edits, n_queries=1)
            keys_values.append(added)
        return Pass(stream[:, -1], tuple(keys_values))

    def extend(self, embedded: Float[Tensor, "prompt new d_model"], kept: Sequence[KeysValues], edits: Edits) -> Pass:
        """The pass that goes on with new tokens, from what block 0 gets for them; edits see the new positions."""
        keys_values, stream = [], embedded
        for layer, past in enumerate(kept):
            stream, whole = self._block(layer, stream, past, edits)
            keys_values.append(whole)
        return Pass(stream[:, -1], tuple(keys_values))

    def logits(self, last: Float[Tensor, "prompt d_model"]) -> Float[Tensor, "prompt d_vocab"]:
        """The logits of every token, from the residual stream after the last block."""
        return self._decoder.logits(self._decoder.norm(last))

    def _block(
        self, layer: int, stream: Tensor, past: KeysValues | None, edits: Edits, n_queries: int | None = None
    ) -> tuple[Tensor, KeysValues]:
        """The residual stream after a block and all keys and values it has; of the last block `n_queries` positions."""
        block = self._decoder.blocks[layer]
        stream = _edit_vectors(edits.get(("resid_pre", layer)), stream)
        normed = block.norm1(stream)
        n_past = 0 if past is None else past[0].shape[3]
        k, v = self._keys_values(block, normed, n_past, *(edits.get((site, layer), keep) for site in _KEYS_VALUES))
        if past is not None:
            k, v = (torch.cat([old, new], 3) for old, new in zip(past, (k, v), strict=True))
        asked = normed[:, -n_queries:] if n_queries and layer == len(self._decoder.blocks) - 1 else normed
        positions = torch.arange(k.shape[3], device=stream.device)
        first = len(positions) - asked.shape[1]
        q = self._rotate(block, block.queries(asked, edits.get(("q", layer), keep))[:, None], first).transpose(2, 3)
        z = attend(block, q, None, (k, v), visible(positions[first:, None] - positions, block.window))
        return self._after_attention(layer, stream, z[:, 0].transpose(1, 2).flatten(2), edits), (k, v)

    def _after_attention(self, layer: int, stream: Tensor, z: Tensor, edits: Edits) -> Tensor:
        """The residual stream after a block, from its input and its unedited z, at the positions of z."""
        block = self._decoder.blocks[layer]
        stream = stream[:, -z.shape[1] :]
        if edit := edits.get(("heads", layer)):
            z = edit(z.unflatten(-1, (-1, block.d_head))).flatten(2)
        attended = stream + _edit_vectors(edits.get(("attn_out", layer)), block.attention_adds(block.out(z)))
        attended = _edit_vectors(edits.get(("resid_mid", layer)), attended)
        neurons = block.neurons(stream if block.parallel else attended)
        if edit := edits.get(("neurons", layer)):
            neurons = edit(neurons)
        written = _edit_vectors(edits.get(("mlp_out", layer)), block.mlp_adds(block.down(neurons)))
        return _edit_vectors(edits.get(("resid_post", layer)), attended + written)

    def _keys_values(
        self, block: Block, normed: Tensor, start: int, edit_keys: Edit = keep, edit_values: Edit = keep
    ) -> KeysValues:
        k, v = (x[:, None] for x in block.keys_values(normed, edit_keys, edit_values))
        return self._rotate(block, k, start).transpose(2, 3), v.transpose(2, 3)

    def _rotate(self, block: Block, x: Tensor, start: int) -> Tensor:
        """Queries or keys `[prompt, 1, pos, head, d_head]` of the positions from `start` on, rotated."""
        if block.rotary is None:
            return x
        cos, sin = (part[start : start + x.shape[2]] for part in self._turns[block.rotary])
        return block.rotary.rotate(x, cos, sin)


def _edit_vectors(edit: Edit | None, vectors: Tensor) -> Tensor:
    """A site `[prompt, pos, d_model]`, which is one component, edited."""
    return vectors if edit is None else edit(vectors.unsqueeze(2)).squeeze(2)
