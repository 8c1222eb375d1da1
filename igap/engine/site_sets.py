"""F with any set of a site's components, in all layers at once, replaced.

Components that are kept are recomputed from what the replaced ones before them give.
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from igap.components import Site
from igap.engine.baselines import Baseline
from igap.engine.contrast import Contrast
from igap.engine.open_pairs import OpenPairs
from igap.vocabulary import Direction


def set_metrics(
    opened: OpenPairs,
    site: Site,
    kept: Bool[Tensor, "set layer component"],
    *,
    baseline: Baseline,
    direction: Direction = "noising",
    batch_size: int | None = None,
    memory_gib: float | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Float[Tensor, "pair set"]:
    """Return F, in its unit, of each prompt with the components that a set does not keep moved to the baseline.

    Args:
        opened: The open prompt pairs, the rows of what is returned.
        site: Its components of every layer are kept or moved in one run, at all positions.
        kept: The components that each set keeps; the sets are the columns of what is returned.
        baseline: What the other components are moved to.
        direction: "noising" (default) moves them in the clean run, "denoising" in the corrupted run, to the clean one.
        batch_size: Rows of a pass; None: what `memory_gib` holds.
        memory_gib: GiB of a pass beyond the model; None: 2, on a GPU half of what is free.
        on_progress: Called with (values done, values in all).

    Raises:
        InputError: These pairs cannot have the baseline.
    """
    metrics = torch.empty(len(opened.pairs), len(kept), dtype=torch.float64)
    done = 0
    for indices, contrast in opened.contrasts(baseline, direction):
        rows = contrast.rows(batch_size, memory_gib, gradients=False)
        of_sets = partial(_with_sets, contrast, site, kept.to(contrast.base.tokens.device))
        for few, values in rows.each(of_sets, torch.arange(len(kept)), len(indices)):
            metrics[torch.tensor(indices)[:, None], few] = values.double().cpu()
            done += values.numel()
            if on_progress:
                on_progress(done, metrics.numel())
    return metrics


def _with_sets(contrast: Contrast, site: Site, kept: Bool[Tensor, "set layer component"], few: Tensor) -> Tensor:
    """Return F with each of these sets, `[pair, set]`."""

    def change(layer: int, own: Tensor) -> Tensor:
        keep = kept[few, layer].reshape(1, len(few), 1, -1, *[1] * (own.ndim - 4))
        return torch.where(keep, own, contrast.source[site][layer][:, None, -own.shape[2] :])

    changes = {(site, layer): partial(change, layer) for layer in range(contrast.n_layers)}
    with torch.no_grad():
        return contrast.engine.with_changes(changes, len(few))
