"""Queries and keys as nodes: activation patching of a head's q or k, and how near cheap methods come to it.

A head's query (or key) is replaced at all positions; what it does it does through the head's z, which is had exactly
from one hooked pass: q of every head replaced, z read, and the clean z handed on, so that later layers see none of it.
So the exact effect is the engine's, with another end for z.

- `ap`: F with that z, minus F.  `atp`: (q' - q) . dF/dq, to first order through the softmax too.
- `atp_qk`: the QK fix, (z(q') - z) . dF/dz: the pattern exactly, the rest to first order.
- `atp_star`: the QK fix with GradDrop, a magnitude; see `atp_star`.

Source: Kramar et al. 2024 (arXiv 2403.00745), whose nodes are single positions.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from igap.attribution.atp_star import gradients
from igap.attribution.maps import AttributionMap, Progress, listed, mean
from igap.contrast import Contrast, Direction, contrasts
from igap.errors import InputError
from igap.hooking import Change, changed, metric
from igap.prompts import PromptPair
from igap.sites import hook_name

Node = Literal["q", "k"]
METHODS = ("ap", "atp", "atp_qk", "atp_star")
"""In models of one layer there is no atp_star."""


class NoNodesError(InputError):
    """The model or the pairs have no queries and keys that could be patched one by one; says why."""


def qk_patching(
    model: TransformerBridge,
    pair: PromptPair | Sequence[PromptPair],
    *,
    direction: Direction = "noising",
    batch_size: int | None = None,
    memory_gib: float | None = None,
    on_progress: Progress | None = None,
) -> dict[Node, dict[str, AttributionMap]]:
    """The maps `[layer, head]` of every method of METHODS, of queries and of keys, in logits.

    Towards the corrupted q and k when noising, the clean ones when denoising. Of several pairs, means. Raises
    NoNodesError where heads share keys, where prompts are not aligned position by position, or where z is not what
    the hooked q, k and v give.
    """
    pairs = listed(pair)
    found: dict[int, dict[Node, dict[str, AttributionMap]]] = {}
    with contrasts(model, pairs, direction=direction, sites=("heads",)) as groups:
        for indices, question in groups:
            found |= zip(indices, _of_group(question, batch_size, memory_gib), strict=True)
            if on_progress:
                on_progress(len(found), len(pairs))
    return {
        node: {method: mean([found[i][node][method] for i in range(len(pairs))]) for method in found[0][node]}
        for node in get_args(Node)
    }


def _of_group(
    question: Contrast, batch_size: int | None, memory_gib: float | None
) -> list[dict[Node, dict[str, AttributionMap]]]:
    """Of each pair its maps."""
    n_layers, n_pairs = question.n_layers, len(question.pairs)
    here, there = _projections(question)
    rows = question.rows(batch_size, memory_gib, gradients=True)
    every = torch.arange(n_pairs, device=question.around.tokens.device)
    start = question.around.activations["heads"]
    zs = [hook_name("heads", layer) for layer in range(n_layers)]

    def first_order(names: Sequence[str], moves: Sequence[Tensor], dropped: int | None = None) -> Tensor:
        """Sum over positions and d_head of move . gradient, `[pair, layer, head]`."""

        def of_pairs(few: Tensor) -> Tensor:
            both = zip(gradients(question, names, few, dropped), moves, strict=True)
            return torch.stack([(move[few] * gradient).sum((1, 3)) for gradient, move in both], 1)

        return torch.cat([effects for _, effects in rows.each(of_pairs, every)])

    maps: list[dict[Node, dict[str, AttributionMap]]] = [{} for _ in question.pairs]
    for node in get_args(Node):
        names = [_name(node, layer) for layer in range(n_layers)]
        ends = _z(question, {name: there[name] for name in names})
        moves = [end - own for end, own in zip(ends, start, strict=True)]
        effects = {
            "ap": _exact(question, ends, batch_size, memory_gib),
            "atp": first_order(names, [there[name] - here[name] for name in names]),
            "atp_qk": first_order(zs, moves),
        }
        if n_layers > 1:
            dropped = torch.stack([first_order(zs, moves, layer).abs() for layer in range(n_layers)])
            effects["atp_star"] = dropped.sum(0) / (n_layers - 1)
        for index, (least, gap) in enumerate(zip(question.least_gaps, question.gap.tolist(), strict=True)):
            maps[index][node] = {
                method: AttributionMap(method, "heads", effect[index].cpu(), gap, least, signed=method != "atp_star")
                for method, effect in effects.items()
            }
    return maps


def _exact(
    question: Contrast, ends: Sequence[Tensor], batch_size: int | None, memory_gib: float | None
) -> Float[Tensor, "pair layer head"]:
    """F with one head's z replaced, minus F."""
    rows = question.rows(batch_size, memory_gib, gradients=False)
    found = question.around.residual[0].new_zeros(len(question.pairs), len(ends), question.n_components("heads"))
    with torch.no_grad():
        for layer, whole in enumerate(ends):
            start, end = question.around.activations["heads"][layer][:, question.first :], whole[:, question.first :]
            unpatched = question.function("heads", layer)(start[:, None])
            patches = question.engine.patches("heads", layer, start, end)
            for heads, patched in rows.each(patches, torch.arange(found.shape[2]), len(found)):
                found[:, layer, heads] = patched - unpatched
    return found


def _name(kind: str, layer: int) -> str:
    return f"blocks.{layer}.attn.hook_{kind}"


def _projections(question: Contrast) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """q, k, v of every layer in the run around and in the other one, by hook name. Raises NoNodesError."""
    model, around = question.model, question.around
    other = question.corrupted if around is question.clean else question.clean
    names = [_name(kind, layer) for layer in range(question.n_layers) for kind in "qkv"]
    if not all(pair.alignment.is_plain for pair in question.pairs):
        raise NoNodesError("prompts of different lengths have no query for every query")
    if any(name not in model.hook_dict for name in names):
        raise NoNodesError(f"{model.cfg.model_name} has no hooks at its queries, keys and values")
    here, there = (
        {name: cache[name] for name in names}
        for cache in (model.run_with_cache(run.tokens, names_filter=names)[1] for run in (around, other))
    )
    z, k = around.activations["heads"][0], here[_name("k", 0)]
    if k.shape != z.shape or here[_name("q", 0)].shape != z.shape:
        raise NoNodesError(f"keys have the shape {list(k.shape[2:])} and heads {list(z.shape[2:])}: heads share them")
    # Attention must be what lies between q, k, v and z, and the hooks must reach it: those of the other run give its z.
    for found, own in zip(_z(question, there), other.activations["heads"], strict=True):
        tolerance = 1000 * torch.finfo(own.dtype).eps * max(1.0, own.abs().max().item())
        if not (found - own).abs().max() <= tolerance:
            raise NoNodesError("the hooked queries, keys and values do not give the heads' z")
    return here, there


def _z(question: Contrast, given: Mapping[str, Tensor]) -> list[Tensor]:
    """z of every layer with these queries, keys or values in it, and nothing changed before it."""
    found: dict[int, Tensor] = {}

    def read(layer: int, z: Tensor) -> Tensor:
        found[layer] = z
        return question.around.activations["heads"][layer]

    changes: dict[str, Change] = {name: partial(_instead, activation) for name, activation in given.items()}
    changes |= {hook_name("heads", layer): partial(read, layer) for layer in range(question.n_layers)}
    with torch.no_grad(), changed(question.model, changes):
        metric(question.model, question.around.tokens[:, None], question.pairs)
    return [found[layer] for layer in range(question.n_layers)]


def _instead(replacement: Tensor, activation: Tensor) -> Tensor:  # noqa: ARG001 - the interface of a Change
    return replacement
