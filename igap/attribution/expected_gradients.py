"""Expected gradients: IG towards many reference prompts in place of one, each at a single point of its path.

The references are `baseline.n` generated prompts of the clean prompt's token length, drawn with `baseline.seed`: those
that `baseline=mean` averages over. The points are the middles of n equal parts of the path, in an order drawn with the
same seed. Unlike IG towards the mean, no point lies on the way to an activation that no prompt has. The effects of a
layer sum, up to sampling, to the mean of F(all of the site replaced by a reference's) - F(x).

Source: Erion et al. 2021 (arXiv 1906.10670).
"""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from igap.attribution.maps import Advance, AttributionMap, ignore, per_component
from igap.attribution.method import Method
from igap.attribution.over_pairs import maps_of
from igap.components import Site
from igap.config import RunConfig
from igap.engine.activations import ForwardPass
from igap.engine.baselines import Baseline, Request, reference_runs, reference_tokens
from igap.engine.batching import AdaptiveBatch
from igap.engine.contrast import Contrast
from igap.engine.hooks import slopes_of
from igap.engine.metrics import by_question
from igap.engine.positions import Positions
from igap.storage.cache import use_cache


def expect_gradients(
    contrast: Contrast,
    site: Site,
    advance: Advance = ignore,
    *,
    n: int = 100,
    seed: int = 0,
    positions: Positions = "all",
    batch_size: int | None = None,
    memory_gib: float | None = None,
) -> list[AttributionMap]:
    """Expected gradients of each question of a contrast towards the mean of these references; see the module."""
    rows, n_pairs = contrast.rows(batch_size, memory_gib, gradients=True), len(contrast.pairs)
    baseline = Baseline("mean", n=n, seed=seed)
    request = Request(contrast.model, contrast.pairs, contrast.clean, contrast.corrupted.activations, baseline)
    prompts = torch.cat(reference_tokens(request))
    alphas = (torch.randperm(n, generator=torch.Generator().manual_seed(seed)) + 0.5).to(contrast.gap) / n
    by_answer: dict[tuple[int, ...], list[int]] = {}
    for index, pair in enumerate(contrast.pairs):
        by_answer.setdefault(pair.forced, []).append(index)
    parts, done = dict[int, Tensor](), 0
    n_metrics = len(contrast.readout.metrics)
    for few in by_answer.values():
        before, total = 0, torch.zeros((), dtype=alphas.dtype, device=alphas.device)
        with use_cache(None):  # of the prompts themselves nothing is needed again
            for run in reference_runs(contrast.model, prompts, contrast.pairs[few[0]], [site]):
                shares = alphas[before : before + len(run.tokens)]
                total = total + _at_points(contrast, site, few, run, shares, rows) / n
                before += len(shares)
                advance(
                    contrast.n_layers * contrast.n_components(site) * (done * n + len(few) * before) // (n * n_pairs)
                )
        done += len(few)
        parts |= zip(few, total.unflatten(0, (len(few), n_metrics)), strict=True)
    effects = torch.cat([parts[index] for index in range(n_pairs)])
    return maps_of("expected_gradients", contrast, site, effects, positions)


def _at_points(
    contrast: Contrast, site: Site, few: list[int], run: ForwardPass, alphas: Tensor, rows: AdaptiveBatch
) -> Float[Tensor, "question layer pos component"]:
    """The sum over references of (a' - a) . dF/da, each at its share of the way."""

    def of_layer(layer: int, some: Tensor) -> Float[Tensor, "question pos component"]:
        function, start, _ = contrast.path(site, layer, few)
        step = run.activations[site][layer][some, contrast.first :] - start[:, None]
        leaf = (start[:, None] + alphas[some].view(-1, *[1] * (start.ndim - 1)) * step).requires_grad_()
        with torch.enable_grad():
            slopes = slopes_of(function(leaf), len(contrast.readout.metrics), [leaf])
        return by_question([per_component((step * slope).sum(1), site) for (slope,) in slopes])

    layers = []
    for layer in range(contrast.n_layers):
        each = rows.each(partial(of_layer, layer), torch.arange(len(alphas)), len(few))
        layers.append(sum((of_some for _, of_some in each), start=contrast.gap.new_zeros(())))
    return torch.stack(layers, 1)


def _attribute(contrast: Contrast, site: Site, config: RunConfig, advance: Advance) -> list[AttributionMap]:
    return expect_gradients(
        contrast,
        site,
        advance,
        n=config.baseline.n,
        seed=config.baseline.seed,
        positions=config.positions.value,
        batch_size=config.batch_size,
        memory_gib=config.memory_gib,
    )


def _reason_missing(config: RunConfig, site: Site, n_layers: int) -> str:  # noqa: ARG001 - whatever the model
    return "" if config.direction == "noising" else "towards reference prompts, of noising alone"


METHOD = Method("expected_gradients", _attribute, draws_prompts=True, optional=True, missing=_reason_missing)
