"""Queries, keys and values as nodes: activation patching of q, k or v, and how near cheap methods come to it.

A head's query (or key, or value) is replaced at all positions; what it does it does through the head's z, which is had
exactly from one hooked pass: q of every head replaced, z read, and the clean z handed on, so that later layers see none
of it. So the exact effect is the engine's, with another end for z. Where heads share keys and values (grouped-query
attention), a key is that of a key-value head, and acts through z of all heads that share it.

- `ap`: F with that z, minus F.  `atp`: (q' - q) . dF/dq, to first order through the softmax too.
- `atp_qk`: the QK fix, (z(q') - z) . dF/dz: the pattern exactly, the rest to first order. Values leave the pattern as
  it is, so that it is `atp` there.
- `atp_star`: the QK fix with GradDrop, a magnitude; see `atp_star`.

Source: Kramar et al. 2024 (arXiv 2403.00745), whose nodes are single positions.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from igap.attribution.atp_star import first_order
from igap.attribution.maps import AttributionMap, Progress
from igap.attribution.over_pairs import mean
from igap.components import hook_name
from igap.engine.batching import AdaptiveBatch
from igap.engine.contrast import Contrast
from igap.engine.hooks import Change, SiteFunction, edit_hooks, metric, swap_components
from igap.engine.open_pairs import OpenPairs
from igap.errors import InputError
from igap.vocabulary import Direction

Node = Literal["q", "k", "v"]
METHODS = ("ap", "atp", "atp_qk", "atp_star")
"""In models of one layer there is no atp_star."""


class NoNodesError(InputError):
    """The model or the pairs have no queries and keys that could be patched one by one; says why."""


def qk_patching(
    opened: OpenPairs,
    *,
    direction: Direction = "noising",
    batch_size: int | None = None,
    memory_gib: float | None = None,
    on_progress: Progress | None = None,
) -> dict[Node, dict[str, AttributionMap]]:
    """The maps of every method of METHODS, of queries `[layer, head]`, keys and values `[layer, kv_head]`, in logits.

    Towards the corrupted q, k and v when noising, the clean ones when denoising. Of several pairs, means. Raises
    NoNodesError where prompts are not aligned position by position, or where z is not what the hooked q, k and v give.
    """
    n_pairs = len(opened.pairs)
    maps: dict[int, dict[Node, dict[str, AttributionMap]]] = {}
    for indices, contrast in opened.contrasts(direction=direction):
        maps |= zip(indices, _patch_group(contrast, batch_size, memory_gib), strict=True)
        if on_progress:
            on_progress(len(maps), n_pairs)
    return {
        node: {method: mean([maps[i][node][method] for i in range(n_pairs)]) for method in maps[0][node]}
        for node in get_args(Node)
    }


def _patch_group(
    contrast: Contrast, batch_size: int | None, memory_gib: float | None
) -> list[dict[Node, dict[str, AttributionMap]]]:
    """The maps of each pair."""
    n_layers, n_pairs = contrast.n_layers, len(contrast.pairs)
    here, there = _projections(contrast)
    start = contrast.base.activations["heads"]
    names = {node: [_name(node, layer) for layer in range(n_layers)] for node in get_args(Node)}
    widths = {node: here[own[0]].shape[2] for node, own in names.items()}
    ends = {node: _z(contrast, {name: there[name] for name in own}) for node, own in names.items()}
    moves = {node: [end - own for end, own in zip(ends[node], start, strict=True)] for node in names}

    def sum_over_heads(node: Node, move: Tensor, slope: Tensor) -> Float[Tensor, "pair node"]:
        """Over positions, d_head and the node's heads."""
        by_head = (move * slope).sum((1, 3))
        effects: Tensor = by_head.unflatten(1, (widths[node], -1)).sum(2)
        return effects

    def estimates(few: Tensor) -> Float[Tensor, "3 pair layer node"]:
        """To first order, with the QK fix, and that with GradDrop: the nodes of q, k and v side by side."""
        slopes: dict[int, Tensor] = {}

        def fix_layer(layer: int, slope: Tensor) -> Tensor:
            slopes.setdefault(layer, functional.pad(slope, (0, 0, 0, 0, contrast.first, 0)))
            return torch.cat(
                [sum_over_heads(node, moves[node][layer][few, contrast.first :], slope) for node in names], 1
            )

        atp_qk, atp_star = first_order(contrast, "heads", few.tolist(), fix_layer)
        through: dict[int, Tensor] = {}
        for layer, of_nodes in _through_attention(contrast, few.tolist(), slopes).items():
            each = [
                sum_over_heads(node, (there[_name(node, layer)] - here[_name(node, layer)])[few], slope)
                for node, slope in of_nodes.items()
            ]
            through[layer] = torch.cat(each, 1)
        return torch.stack([torch.stack([through[layer] for layer in range(n_layers)], 1), atp_qk, atp_star])

    rows = contrast.rows(batch_size, memory_gib, gradients=True)
    estimated = torch.cat([of_few for _, of_few in rows.each(estimates, torch.arange(n_pairs))], 1)
    cheap = estimated.split([widths[node] for node in names], 3)
    exact = _exact(contrast, ends, widths, contrast.rows(batch_size, memory_gib, gradients=False))
    methods = METHODS if n_layers > 1 else METHODS[:-1]
    maps: list[dict[Node, dict[str, AttributionMap]]] = [{} for _ in contrast.pairs]
    for node, of_node in zip(names, cheap, strict=True):
        effects = dict(zip(methods, (exact[node], *of_node), strict=False))
        for index, (least, gap) in enumerate(zip(contrast.least_gaps, contrast.gap.tolist(), strict=True)):
            maps[index][node] = {
                method: AttributionMap(
                    method,
                    "heads",
                    effect[index].cpu(),
                    gap,
                    least,
                    metric=contrast.readout.metric.name,
                    unit=contrast.readout.metric.unit,
                    signed=method != "atp_star",
                )
                for method, effect in effects.items()
            }
    return maps


def _through_attention(
    contrast: Contrast, few: list[int], slopes: Mapping[int, Tensor]
) -> Mapping[int, Mapping[Node, Tensor]]:
    """By layer dF/dq, dF/dk and dF/dv of these pairs, from dF/dz. One layer's attention is held at a time."""
    leaves: dict[str, Tensor] = {}
    gradients: dict[int, Mapping[Node, Tensor]] = {}

    def cut(name: str, activation: Tensor) -> Tensor:
        leaves[name] = activation.detach().requires_grad_()
        return leaves[name]

    def read(layer: int, z: Tensor) -> Tensor:
        at = {node: leaves.pop(_name(node, layer)) for node in get_args(Node)}
        gradients[layer] = dict(zip(at, torch.autograd.grad(z, list(at.values()), slopes[layer]), strict=True))
        return z.detach()

    layers = range(contrast.n_layers)
    changes: dict[str, Change] = {
        name: partial(cut, name) for layer in layers for name in (_name(node, layer) for node in get_args(Node))
    }
    changes |= {hook_name("heads", layer): partial(read, layer) for layer in layers}
    with torch.enable_grad(), edit_hooks(contrast.model, changes):
        metric(contrast.model, contrast.base.tokens[few][:, None], contrast.readout.select(few))
    return gradients


def _exact(
    contrast: Contrast, ends: Mapping[Node, Sequence[Tensor]], widths: Mapping[Node, int], rows: AdaptiveBatch
) -> Mapping[Node, Float[Tensor, "pair layer node"]]:
    """F with z of each node's heads, alone, replaced, minus F."""
    n_pairs = len(contrast.pairs)
    effects = {node: contrast.gap.new_zeros(n_pairs, contrast.n_layers, width) for node, width in widths.items()}
    with torch.no_grad():
        for layer in range(contrast.n_layers):
            start = contrast.base.activations["heads"][layer][:, contrast.first :]
            function = contrast.function("heads", layer)
            unpatched = function(start[:, None])
            for node, of_layers in ends.items():
                end, width = of_layers[layer][:, contrast.first :], widths[node]
                if start.shape[2] == width:
                    # By differences, which round less than whole rows.
                    patches = contrast.engine.patches("heads", layer, start, end)
                else:
                    shared = [z.unflatten(2, (width, -1)) for z in (start, end)]
                    patches = partial(_patch_groups, function, *shared)
                for nodes, patched in rows.each(patches, torch.arange(width), n_pairs):
                    effects[node][:, layer, nodes] = patched - unpatched
    return effects


def _patch_groups(function: SiteFunction, start: Tensor, end: Tensor, nodes: Tensor) -> Float[Tensor, "pair row"]:
    """F with each of these nodes, alone, moved: z are `[pair, pos, node, head, d_head]`."""
    return function(swap_components(start, end, nodes).flatten(3, 4))


def _name(kind: str, layer: int) -> str:
    return f"blocks.{layer}.attn.hook_{kind}"


def _projections(contrast: Contrast) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """q, k, v of every layer in the base run and in the other one, by hook name. Raises NoNodesError."""
    model, base = contrast.model, contrast.base
    other = contrast.corrupted if base is contrast.clean else contrast.clean
    names = [_name(kind, layer) for layer in range(contrast.n_layers) for kind in "qkv"]
    if not all(pair.alignment.is_plain for pair in contrast.pairs):
        raise NoNodesError("prompts of different lengths have no query for every query")
    if not model.hook_dict.keys() >= set(names):
        raise NoNodesError(f"{model.cfg.model_name} has no hooks at its queries, keys and values")
    here, there = (
        {name: cache[name] for name in names}
        for cache in (model.run_with_cache(run.tokens, names_filter=names)[1] for run in (base, other))
    )
    z = base.activations["heads"][0]
    shapes = {kind: list(here[_name(kind, 0)].shape[2:]) for kind in "qkv"}
    n_heads, d_head = z.shape[2:]
    if shapes["q"] != [n_heads, d_head] or shapes["k"] != shapes["v"] or n_heads % shapes["k"][0]:
        raise NoNodesError(
            f"queries, keys and values have the shapes {list(shapes.values())}, heads {[n_heads, d_head]}"
        )
    # Attention must be what lies between q, k, v and z, and the hooks must reach it: those of the other run give its z.
    for given, own in zip(_z(contrast, there), other.activations["heads"], strict=True):
        tolerance = 1000 * torch.finfo(own.dtype).eps * max(1.0, own.abs().max().item())
        if not (given - own).abs().max() <= tolerance:
            raise NoNodesError("the hooked queries, keys and values do not give the heads' z")
    return here, there


def _z(contrast: Contrast, given: Mapping[str, Tensor]) -> list[Tensor]:
    """z of every layer with these queries, keys or values in it, and nothing changed before it."""
    z_of: dict[int, Tensor] = {}

    def read(layer: int, z: Tensor) -> Tensor:
        z_of[layer] = z
        return contrast.base.activations["heads"][layer]

    changes: dict[str, Change] = {name: partial(_replace, activation) for name, activation in given.items()}
    changes |= {hook_name("heads", layer): partial(read, layer) for layer in range(contrast.n_layers)}
    with torch.no_grad(), edit_hooks(contrast.model, changes):
        metric(contrast.model, contrast.base.tokens[:, None], contrast.readout)
    return [z_of[layer] for layer in range(contrast.n_layers)]


def _replace(replacement: Tensor, activation: Tensor) -> Tensor:  # noqa: ARG001 - the interface of a Change
    return replacement
