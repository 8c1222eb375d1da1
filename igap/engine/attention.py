"""Softmax attention of a block, for queries that see keys all rows share and keys of their own."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from igap.engine.decoder import Block
from igap.engine.rules import scale_gradient


def visible(behind: Tensor, window: int | None) -> Bool[Tensor, "query key"]:
    """Which keys a query sees, from how many positions each lies `behind` it, in a block with this window."""
    return (behind >= 0) if window is None else (behind >= 0) & (behind < window)


def attend(
    block: Block,
    q: Float[Tensor, "pair row head query d_head"],
    shared: tuple[Tensor, Tensor] | None,
    new: tuple[Tensor, Tensor],
    seen: Bool[Tensor, "query key"],
) -> Float[Tensor, "pair row head query d_head"]:
    """z of every head. Keys and values `[pair, row, kv_head, pos, d_head]`: the shared ones of one row, then `new`."""
    n_pairs, n_rows = q.shape[:2]
    rules = block.rules
    q, new = (
        scale_gradient(q, rules.query_key),
        (scale_gradient(new[0], rules.query_key), scale_gradient(new[1], rules.value)),
    )
    # Copies of few shared keys cost less than two products; copies of many cost more than the blocks' matrices.
    many_shared = shared is not None and shared[0].shape[3] > 2 * new[0].shape[3]
    in_parts = many_shared or block.score_cap is not None or rules.temperature is not None
    if in_parts or (block.softmax or q.dtype) != q.dtype:
        none = (new[0][:, :1, :, :0], new[1][:, :1, :, :0])
        return _attend_in_two_parts(block, q, shared or none, new, seen)
    k, v = new
    if shared is not None:
        k, v = (torch.cat([old.expand(-1, n_rows, -1, -1, -1), own], 3) for old, own in zip(shared, new, strict=True))
    z: Tensor = functional.scaled_dot_product_attention(
        q.flatten(0, 1),
        k.flatten(0, 1),
        v.flatten(0, 1),
        attn_mask=seen,
        scale=block.scale,
        enable_gqa=k.shape[2] != q.shape[2],
    ).unflatten(0, (n_pairs, n_rows))
    return z


def _attend_in_two_parts(
    block: Block, q: Tensor, shared: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor], seen: Tensor
) -> Float[Tensor, "pair row head query d_head"]:
    """Attention to shared keys (one product for all rows) and to each row's own keys."""
    n_groups = q.shape[2] // new[0].shape[2]
    if n_groups > 1:
        shared, new = ((k.repeat_interleave(n_groups, 2), v.repeat_interleave(n_groups, 2)) for k, v in (shared, new))
    (shared_k, shared_v), (k, v) = shared, new
    q = q * block.scale
    by_head = q.transpose(1, 2)  # [pair, head, row, query, d_head]
    old_scores = (by_head.flatten(2, 3) @ shared_k[:, 0].mT).unflatten(2, by_head.shape[2:4])
    scores = torch.cat([old_scores, (q @ k.mT).transpose(1, 2)], -1)
    if block.score_cap is not None:
        scores = block.score_cap * torch.tanh(scores / block.score_cap)
    pattern = block.rules.softmax(scores.masked_fill_(~seen, float("-inf")), block.softmax).to(q.dtype)
    old, own = pattern.split([shared_k.shape[3], k.shape[3]], -1)
    from_shared = (old.flatten(2, 3) @ shared_v[:, 0]).unflatten(2, old.shape[2:4]).transpose(1, 2)
    z: Tensor = from_shared + own.transpose(1, 2) @ v
    return z
