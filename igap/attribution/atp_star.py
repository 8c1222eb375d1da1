"""AtP*: attribution patching by magnitude, with gradients dropped layer by layer so that paths cannot cancel.

Source: Kramar et al. 2024 (arXiv 2403.00745). Of its two changes to attribution patching

- GradDrop is all of what is here. For each layer one backward pass gives every component's first-order effect with
  no gradient through what that layer's attention and MLP write to the residual stream: of a direct and an indirect
  effect that cancel, one is left. The mean magnitude over these passes is the effect.
- The QK fix recomputes attention patterns exactly. A head's z and a neuron's activation come after the softmax: their
  difference a' - a is exact already and the fix has nothing to do. It matters to queries and keys: see `qk_patching`.
"""

from collections.abc import Sequence
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
        n_layers, n_pairs = question.n_layers, len(question.pairs)
        rows = question.rows(batch_size, memory_gib, gradients=True)
        total = question.around.residual[0].new_zeros(n_pairs, n_layers, question.n_components(site))
        for dropped in range(n_layers):
            of_pairs = partial(_first_order, question, site, dropped)
            for few, effects in rows.each(of_pairs, torch.arange(n_pairs, device=total.device)):
                total[few] += effects.abs()
            advance((dropped + 1) * question.n_components(site))
        return [
            AttributionMap("atp_star", site, effect.cpu(), gap=gap, min_gap=least, signed=False)
            for effect, gap, least in zip(
                total / (n_layers - 1), question.gap.tolist(), question.least_gaps, strict=True
            )
        ]

    check_layers(model.cfg.n_layers)
    return over_pairs(method, model, pair, site, on_progress, baseline=baseline, direction=direction, route="hooks")


def check_layers(n_layers: int) -> None:
    """Raises InputError on a model of one layer, which leaves no other layer to drop."""
    if n_layers < 2:
        raise InputError(
            f"method: got atp_star with a model of {n_layers} layer, wanted at least 2: GradDrop is a mean over the "
            "other layers. Use attribution_patching."
        )


def _first_order(question: Contrast, site: Site, dropped: int, few: Tensor) -> Float[Tensor, "pair layer component"]:
    """First-order effects of these pairs with no gradient through what layer `dropped` writes, in logits."""
    around = question.around
    names = [hook_name(site, layer) for layer in range(question.n_layers)]
    moves = zip(around.activations[site], question.replacement[site], strict=True)
    return torch.stack(
        [
            per_component((end[few] - start[few]) * gradient, site).sum(1)
            for gradient, (start, end) in zip(gradients(question, names, few, dropped), moves, strict=True)
        ],
        1,
    )


def gradients(
    question: Contrast, names: Sequence[str], few: Tensor, dropped: int | None = None
) -> tuple[Float[Tensor, "pair pos *component"], ...]:
    """dF/da of these pairs at each of these hook points, from one backward pass through the whole model.

    None of it goes through what layer `dropped` writes to the residual stream, if one is named.
    """
    leaves: dict[str, Tensor] = {}

    def add_zeros(name: str, activation: Tensor) -> Tensor:
        leaves[name] = torch.zeros_like(activation).requires_grad_()
        return activation + leaves[name]

    changes: dict[str, Change] = {name: partial(add_zeros, name) for name in names}
    if dropped is not None:
        changes |= {f"blocks.{dropped}.{writer}": torch.detach for writer in WRITERS}
    pairs = [question.pairs[index] for index in few.tolist()]
    with torch.enable_grad(), changed(question.model, changes):
        value = metric(question.model, question.around.tokens[few][:, None], pairs).sum()
    return torch.autograd.grad(value, [leaves[name] for name in names], materialize_grads=True)
