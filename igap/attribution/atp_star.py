"""AtP*: attribution patching by magnitude, with gradients dropped layer by layer so that paths cannot cancel.

Source: Kramar et al. 2024 (arXiv 2403.00745). Of its two changes to attribution patching

- GradDrop is all of what is here. For each layer one backward pass gives every component's first-order effect with
  no gradient through what that layer's attention and MLP write to the residual stream: of a direct and an indirect
  effect that cancel, one is left. The mean magnitude over these passes is the effect.
- The QK fix recomputes attention patterns exactly. A head's z and a neuron's activation come after the softmax: their
  difference a' - a is exact already and the fix has nothing to do. It matters to queries and keys: see `qk_patching`.
"""

import itertools
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from igap.attribution.maps import Advance, AttributionMap, Progress, over_pairs, per_component
from igap.baselines import Baseline, BaselineKind
from igap.contrast import Contrast, Direction
from igap.errors import InputError
from igap.hooking import Change, changed, metric
from igap.prompts import PromptPair
from igap.sites import Site, hook_name

WRITERS = ("attn.hook_out", "mlp.hook_out")
"""The hook points of a block that give what it adds to the residual stream."""


def atp_star(
    model: TransformerBridge,
    pair: PromptPair | Sequence[PromptPair],
    site: Site = "heads",
    *,
    baseline: BaselineKind | Baseline = "corrupted",
    direction: Direction = "noising",
    batch_size: int | None = None,
    memory_gib: float | None = None,
    on_progress: Progress | None = None,
) -> AttributionMap:
    """Sum over layers l of |(a' - a) . dF/da without the gradient through l's output| / (layers - 1), in logits.

    `[layer, component]`, at least 0: effect and score are magnitudes and have no sign. A component's own layer leaves
    it no gradient, hence layers - 1. In the last layer it is |attribution patching|. Of several pairs, the mean of
    the magnitudes. Each layer costs a forward and a backward pass. Raises ValueError on a model of one layer.
    """

    def method(question: Contrast, advance: Advance) -> list[AttributionMap]:
        names = [hook_name(site, layer) for layer in range(question.n_layers)]
        moves = [e - s for s, e in zip(question.around.activations[site], question.replacement[site], strict=True)]

        in_all = question.n_layers * question.n_components(site)
        maps: list[AttributionMap] = []

        def first_order(few: Tensor, slopes: Sequence[Tensor]) -> Float[Tensor, "pair layer component"]:
            return torch.stack([per_component(m[few] * g, site).sum(1) for m, g in zip(moves, slopes, strict=True)], 1)

        def magnitudes(few: Tensor) -> Float[Tensor, "pair layer component"]:
            total = question.gap.new_zeros(())
            for done, slopes in enumerate(itertools.islice(gradients(question, names, few), 1, None), start=1):
                total = total + first_order(few, slopes).abs()
                share = (len(maps) + len(few) * done / question.n_layers) / len(question.pairs)
                advance(round(share * in_all))
            return total / (question.n_layers - 1)

        rows = question.rows(batch_size, memory_gib, gradients=True, whole=True)
        for few, effects in rows.each(magnitudes, torch.arange(len(question.pairs), device=moves[0].device)):
            maps += [
                AttributionMap("atp_star", site, effect, gap, question.least_gaps[pair], signed=False)
                for pair, effect, gap in zip(few.tolist(), effects.cpu(), question.gap[few].tolist(), strict=True)
            ]
        return maps

    check_layers(model.cfg.n_layers)
    return over_pairs(method, model, pair, site, on_progress, baseline=baseline, direction=direction, route=None)


def check_layers(n_layers: int) -> None:
    """Raises InputError on a model of one layer, which leaves no other layer to drop."""
    if n_layers < 2:
        raise InputError(
            f"method: got atp_star with a model of {n_layers} layer, wanted at least 2: GradDrop is a mean over the "
            "other layers. Use attribution_patching."
        )


def gradients(
    question: Contrast, names: Sequence[str], few: Tensor
) -> Iterator[tuple[Float[Tensor, "pair pos *component"], ...]]:
    """dF/da of these pairs at the hook points, one a layer: first as it is, then without what goes through layer 0's
    output to the residual stream, then without what goes through layer 1's, ...

    One forward pass serves them all. Where the fast route is right, later blocks see a layer through the residual
    stream alone: then what comes after the layer that is dropped is taken from the first pass.
    """
    leaves: dict[str, Tensor] = {}
    streams: dict[int, Tensor] = {}
    dropped: int | None = None

    def add_zeros(name: str, activation: Tensor) -> Tensor:
        leaves[name] = torch.zeros_like(activation).requires_grad_()
        return activation + leaves[name]

    def keep(layer: int, stream: Tensor) -> Tensor:
        streams[layer] = stream
        return stream

    def drop(layer: int, written: Tensor) -> Tensor:
        if not written.requires_grad:
            return written
        written = written.view_as(written)
        written.register_hook(lambda gradient: torch.zeros_like(gradient) if layer == dropped else None)
        return written

    layers = range(question.n_layers)
    changes: dict[str, Change] = {name: partial(add_zeros, name) for name in names}
    changes |= {f"blocks.{layer}.{writer}": partial(drop, layer) for layer in layers for writer in WRITERS}
    if question.route == "suffix":
        changes |= {f"blocks.{layer}.hook_in": partial(keep, layer) for layer in layers[1:]}
    with torch.enable_grad(), changed(question.model, changes):
        pairs = [question.pairs[index] for index in few.tolist()]
        value = metric(question.model, question.around.tokens[few][:, None], pairs).sum()
    at = [leaves[name] for name in names]
    whole = torch.autograd.grad(value, [*at, *streams.values()], retain_graph=True, materialize_grads=True)
    of_names, of_streams = whole[: len(at)], dict(zip(streams, whole[len(at) :], strict=True))
    yield of_names
    for dropped in layers:
        after = streams.get(dropped + 1, value)
        found = torch.autograd.grad(
            after, at, of_streams.get(dropped + 1), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        yield found if after is value else (*found[: dropped + 1], *of_names[dropped + 1 :])
