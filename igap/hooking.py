"""The whole model with several hook points changed at once, and the metric read from it: any architecture, no engine.

For questions about more than one site and layer; what is about one of them is in `forward`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from igap.prompts import TokenPair

Change = Callable[[Tensor], Tensor]
"""A hook point's activation to what it becomes."""


@contextmanager
def changed(model: TransformerBridge, changes: Mapping[str, Change]) -> Iterator[None]:
    """A block in which each named hook point gives what its change makes of it; other hooks stay as they are.

    Two names of one hook point, or a name that the model lacks, are a mistake of the caller: KeyError, AssertionError.
    """
    points = {name: model.hook_dict[name] for name in changes}
    assert len({id(point) for point in points.values()}) == len(points)
    with ExitStack() as stack:
        for name, change in changes.items():
            stack.enter_context(_one(points[name], change))
        yield


@contextmanager
def _one(point: HookPoint, change: Change) -> Iterator[None]:
    handle = point.add_hook(lambda activation, hook: change(activation))  # noqa: ARG005 - TransformerLens passes `hook`
    try:
        yield
    finally:
        handle.hook.remove()
        point.fwd_hooks.remove(handle)


def metric(
    model: TransformerBridge, tokens: Int[Tensor, "pair row pos"], pairs: Sequence[TokenPair]
) -> Float[Tensor, "pair row"]:
    """F of every row: logit[answer] - logit[distractor] of its pair at the last position, in logits. Differentiable.

    The model sees rows as one batch, pair by pair: `[pair * row, pos]`.
    """
    logits = model(tokens.flatten(0, 1), logits_to_keep=1)[:, -1].unflatten(0, tokens.shape[:2])
    each = torch.arange(len(pairs), device=tokens.device)
    answer, distractor = (
        torch.tensor([getattr(pair, word) for pair in pairs], device=tokens.device) for word in ("answer", "distractor")
    )
    value: Tensor = logits[each, :, answer] - logits[each, :, distractor]
    return value
