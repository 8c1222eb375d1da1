"""F with any set of components of one or more sites, in all layers at once, replaced.

Components that are kept are recomputed from what the replaced ones before them give.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from igap.components import Site
from igap.engine.baselines import Baseline
from igap.engine.contrast import Contrast
from igap.engine.open_pairs import OpenPairs
from igap.engine.positions import Positions, Spans
from igap.vocabulary import Direction


def set_metrics(
    opened: OpenPairs,
    kept: Mapping[Site, Bool[Tensor, "set layer *span component"]],
    *,
    baseline: Baseline,
    direction: Direction = "noising",
    positions: Positions = "all",
    named_in: Direction | None = None,
    batch_size: int | None = None,
    memory_gib: float | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Float[Tensor, "pair set"]:
    """Return F, in its unit, of each prompt with the components that a set does not keep moved to the baseline.

    Args:
        opened: The open prompt pairs, the rows of what is returned.
        kept: By site, the components of every layer that each set keeps; the others are moved in one run. The sets are
            the columns of what is returned.
        baseline: What the other components are moved to.
        direction: "noising" (default) moves them in the clean run, "denoising" in the corrupted run, to the clean one.
        positions: Where components are moved; with "each" or spans a component at each of them is one, which is kept or
            moved for itself. At other positions than these all is kept.
        named_in: The direction whose patched prompt the positions are of; None: noising, the clean one.
        batch_size: Rows of a pass; None: what `memory_gib` holds.
        memory_gib: GiB of a pass beyond the model; None: 2, on a GPU half of what is free.
        on_progress: Called with (values done, values in all).

    Raises:
        InputError: These pairs cannot have the baseline.
    """
    n_sets = len(next(iter(kept.values())))
    metrics = torch.empty(len(opened.pairs), n_sets, dtype=torch.float64)
    done = 0
    for indices, each in opened.contrasts(baseline, direction):
        contrast = replace(each, named_in=named_in)
        rows = contrast.rows(batch_size, memory_gib, gradients=False)
        spans = contrast.spans(positions)
        of_sets = partial(_with_sets, contrast, {site: _by_span(each, contrast, spans) for site, each in kept.items()})
        for few, values in rows.each(of_sets, torch.arange(n_sets), len(indices)):
            metrics[torch.tensor(indices)[:, None], few] = values.double().cpu()
            done += values.numel()
            if on_progress:
                on_progress(done, metrics.numel())
    return metrics


def _by_span(
    kept: Bool[Tensor, "set layer *span component"], contrast: Contrast, spans: Spans | None
) -> tuple[Bool[Tensor, "set layer span component"], Int[Tensor, "pair pos"]]:
    """What sets keep of each span, all of the last one, which is of no span; and the span of each position."""
    tokens = contrast.base.tokens
    kept = kept.to(tokens.device)
    kept = kept if spans is not None and spans.has_axis else kept.unsqueeze(2)
    span_of = torch.zeros_like(tokens)
    if spans is not None:
        span_of.fill_(len(spans.masks))
        for place, mask in enumerate(spans.masks):
            span_of[mask] = place
    return torch.cat([kept, torch.ones_like(kept[:, :, :1])], 2), span_of


def _with_sets(
    contrast: Contrast,
    of_sites: Mapping[Site, tuple[Bool[Tensor, "set layer span component"], Int[Tensor, "pair pos"]]],
    few: Tensor,
) -> Tensor:
    """Return F with each of these sets, `[pair, set]`."""

    def change(site: Site, layer: int, own: Tensor) -> Tensor:
        kept, span_of = of_sites[site]
        late = slice(-own.shape[2], None)
        keep = kept[few, layer][:, span_of[:, late]].transpose(0, 1)
        keep = keep.view(*keep.shape, *[1] * (own.ndim - 4))
        return torch.where(keep, own, contrast.source[site][layer][:, None, late])

    changes = {(site, layer): partial(change, site, layer) for site in of_sites for layer in range(contrast.n_layers)}
    with torch.no_grad():
        return contrast.engine.with_changes(changes, len(few))
