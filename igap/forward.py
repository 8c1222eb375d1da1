"""The engine: the metric F as a function of one site's activation.

Everything before the site stays at the run it belongs to, everything after it is recomputed. Many rows make one
batch. Two routes give the same numbers: `blocks` restarts at the site's block, `hooks` runs the whole model with the
site replaced, for architectures whose blocks need what only the outer model computes (rotary embeddings, soft caps).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from igap.errors import InputError
from igap.prompts import TokenPair
from igap.runs import Run
from igap.sites import SITES, Site, hook_name

Route = Literal["blocks", "hooks"]
SiteFunction = Callable[[Tensor], Float[Tensor, " rows"]]
"""`[rows, pos, ...]` activations of a site to F, in logits, one value a row. Differentiable."""

_TOKENS_A_BATCH = 4096


def site_function(
    model: TransformerBridge, pair: TokenPair, around: Run, site: Site, layer: int, route: Route
) -> SiteFunction:
    """F with the site's activation in `layer` given and the rest of the run `around` it."""
    return (_restart_at_block if route == "blocks" else _whole_model)(model, pair, around, site, layer)


def choose_route(model: TransformerBridge, pair: TokenPair, around: Run, other: Run) -> Route:
    """`blocks` where calling the blocks directly gives what the whole model gives, else `hooks`.

    Tried on both sites of layer 0, as they are and taken from `other`, so it is an observation and not a list of
    names. The neurons' rows go through the attention of every block, the heads' through every MLP.
    """
    if model.cfg.positional_embedding_type != "standard":  # blocks would run without their rotary embeddings
        return "hooks"
    if around.residual[0].dtype == torch.bfloat16:  # whose rounding hides any difference
        return "hooks"
    # Both are float sums over d_model and the depth of the model: a thousand roundings of the metric's size.
    scale = max(1.0, abs(around.logit_diff), abs(other.logit_diff))
    tolerance = 1000 * torch.finfo(around.residual[0].dtype).eps * scale
    for site in SITES:
        rows = torch.cat([around.activations[site][0], other.activations[site][0]])
        try:
            with torch.no_grad():
                direct = site_function(model, pair, around, site, 0, "blocks")(rows)
        except (AttributeError, TypeError, RuntimeError):  # blocks that need more than the residual stream
            return "hooks"
        with torch.no_grad():
            whole = site_function(model, pair, around, site, 0, "hooks")(rows)
        if not (direct - whole).abs().max().item() <= tolerance:
            return "hooks"
    return "blocks"


def rows_a_batch(n_positions: int, asked: int | None = None) -> int:
    """Rows of `n_positions` tokens that make one batch: as asked, or enough to fill the cores and no cache twice.

    Raises ValueError on fewer than 1.
    """
    if asked is not None and asked < 1:
        raise InputError(f"batch_size: got {asked}, wanted at least 1. Try batch_size=64.")
    return asked or max(1, _TOKENS_A_BATCH // n_positions)


@contextmanager
def replaced(point: HookPoint, rows: Tensor) -> Iterator[None]:
    """A block in which the hook point gives `rows`; other hooks of the model stay as they are."""
    handle = point.add_hook(lambda activation, hook: rows)  # noqa: ARG005 - TransformerLens passes `hook` by name
    try:
        yield
    finally:
        handle.hook.remove()
        point.fwd_hooks.remove(handle)


def _restart_at_block(model: TransformerBridge, pair: TokenPair, around: Run, site: Site, layer: int) -> SiteFunction:
    point = model.hook_dict[hook_name(site, layer)]
    blocks = list(model.blocks)[layer:]
    direction = (model.W_U[:, pair.answer] - model.W_U[:, pair.distractor]).detach()
    offset = (model.b_U[pair.answer] - model.b_U[pair.distractor]).detach()

    def metric(rows: Tensor) -> Float[Tensor, " rows"]:
        residual = around.residual[layer].expand(len(rows), -1, -1)
        with replaced(point, rows):
            residual = _first(blocks[0](residual))
        for block in blocks[1:]:
            residual = _first(block(residual))
        value: Tensor = model.ln_final(residual[:, -1:])[:, 0] @ direction + offset
        return value

    return metric


def _whole_model(model: TransformerBridge, pair: TokenPair, around: Run, site: Site, layer: int) -> SiteFunction:
    point = model.hook_dict[hook_name(site, layer)]

    def metric(rows: Tensor) -> Float[Tensor, " rows"]:
        with replaced(point, rows):
            logits = model(around.tokens.expand(len(rows), -1), logits_to_keep=1)
        value: Tensor = logits[:, -1, pair.answer] - logits[:, -1, pair.distractor]
        return value

    return metric


def _first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
