"""Along the path of the *inputs*: what the first block reads goes straight from the run's to the other run's.

IG moves a site's activation along a straight line of its own, with everything before it held. Here the embeddings move,
and the site's activation a(alpha) takes the way that the model gives it:

- `ig_inputs`: (a' - a) . mean of dF/da along that way. It is EAP-IG (inputs) of a node (Hanna et al. 2024).
- `conductance`: the integral of dF/da . da/dalpha along that way (Dhamdhere et al. 2018). The effects of a cut through
  the model, as of the residual stream in any layer, sum to F(x') - F(x).

The integral is a sum over Gauss-Legendre nodes. da/dalpha at them is the derivative of the polynomial through a at the
nodes and at both ends, which takes next to no passes of its own and is as exact as the sum.

Sources: Hanna et al. 2024 (arXiv 2403.17806), Dhamdhere et al. 2018 (1805.12233), whose sum over consecutive points
(as in Captum's LayerConductance) has the same limit.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from igap.attribution.integrated_gradients import MOST_NODES
from igap.attribution.maps import Advance, AttributionMap, ignore, per_component
from igap.attribution.method import Method
from igap.attribution.over_pairs import maps_of
from igap.components import Site
from igap.config import RunConfig
from igap.engine.batching import budget_bytes
from igap.engine.contrast import Contrast
from igap.engine.positions import Positions
from igap.errors import InputError
from igap.models.load import Header


def integrate_inputs(
    contrast: Contrast,
    site: Site,
    advance: Advance = ignore,
    *,
    n_steps: int = 50,
    positions: Positions = "all",
    batch_size: int | None = None,
    memory_gib: float | None = None,
) -> list[AttributionMap]:
    """(a' - a) times the mean of dF/da along the path of the inputs, of each question of a contrast; see the module."""
    rows, n_pairs = contrast.rows(batch_size, memory_gib, gradients=True), len(contrast.pairs)
    alphas, weights = gauss_legendre(n_steps, contrast.gap)

    def part(nodes: Tensor) -> Float[Tensor, "question layer pos component"]:
        effects: dict[int, Tensor] = {}
        for layer, _, slope in contrast.along(site, list(range(n_pairs)), alphas[nodes]):
            start, end = contrast.ends(site, layer)
            mean = torch.einsum("r,qr...->q...", weights[nodes].to(slope), slope)
            effects[layer] = per_component(contrast.by_question(end - start) * mean, site)
        return torch.stack([effects[layer] for layer in range(contrast.n_layers)], 1)

    done, effects = 0, torch.zeros((), dtype=weights.dtype, device=weights.device)
    for nodes, some in rows.each(part, torch.arange(n_steps), n_pairs):
        effects, done = effects + some, done + len(nodes)
        advance(contrast.n_layers * contrast.n_components(site) * done // n_steps)
    return maps_of("ig_inputs", contrast, site, effects, positions)


def conduct(
    contrast: Contrast,
    site: Site,
    advance: Advance = ignore,
    *,
    n_steps: int = 50,
    positions: Positions = "all",
    batch_size: int | None = None,
    memory_gib: float | None = None,
) -> list[AttributionMap]:
    """Conductance of each question of a contrast; see the module.

    The site's activations and gradients at every node are held, of as many pairs at once as `memory_gib` allows.
    """
    rows, n_layers, n_pairs = (
        contrast.rows(batch_size, memory_gib, gradients=True),
        contrast.n_layers,
        len(contrast.pairs),
    )
    # The ends, of which no gradient counts, are there for da/dalpha.
    alphas, weights = (
        torch.cat([each.new_zeros(1), each, each.new_tensor([last])])
        for each, last in zip(gauss_legendre(n_steps, contrast.gap), (1.0, 0.0), strict=True)
    )
    derivative = weights[:, None] * _differentiation(alphas)
    start = contrast.base.activations[site][0][0, contrast.first :]
    size = (1 + len(contrast.readout.metrics)) * len(alphas) * n_layers * start.numel() * start.element_size()
    at_once = max(1, int(budget_bytes(start.device, memory_gib) // size))
    effects: list[Tensor] = []
    for few in torch.arange(n_pairs).split(at_once):

        def both(nodes: Tensor, few: Tensor = few) -> Float[Tensor, "layer both node pos *component"]:
            """The activations of the pairs, and after them the gradients of their questions."""
            by_layer = {layer: torch.cat(each) for layer, *each in contrast.along(site, few.tolist(), alphas[nodes])}
            return torch.stack([by_layer[layer] for layer in range(n_layers)])

        held: list[Tensor] = []
        for nodes, some in rows.each(both, torch.arange(len(alphas)), len(few)):
            held.append(some)
            done = len(effects) * at_once + len(few) * (int(nodes[-1]) + 1) / len(alphas)
            advance(int(n_layers * contrast.n_components(site) * done / n_pairs))
        of_layers = []
        for layer in range(n_layers):
            activation, slope = torch.cat([each[layer] for each in held], 1).split(
                [len(few), len(held[0][0]) - len(few)]
            )
            # Differences from the start, which round less.
            steps = torch.einsum("ij,pj...->pi...", derivative.to(activation), activation - activation[:, :1])
            of_layers.append(per_component((contrast.by_question(steps) * slope).sum(1), site))
        effects.append(torch.stack(of_layers, 1))
    return maps_of("conductance", contrast, site, torch.cat(effects), positions)


def gauss_legendre(n: int, like: Tensor) -> tuple[Float[Tensor, " node"], Float[Tensor, " node"]]:
    """Nodes on [0, 1] and their weights, which sum to 1; in float64, but where the device has none."""
    dtype = like.dtype if like.device.type == "mps" else torch.float64
    nodes, weights = (
        torch.tensor(each, dtype=dtype, device=like.device) for each in np.polynomial.legendre.leggauss(n)
    )
    return (nodes + 1) / 2, weights / 2


def _differentiation(nodes: Float[Tensor, " node"]) -> Float[Tensor, "node node"]:
    """The values of a polynomial at these nodes to those of its derivative: barycentric (Berrut & Trefethen 2004)."""
    apart = nodes[:, None] - nodes
    apart.fill_diagonal_(1.0)
    # Of [0, 1], whose capacity is 1/4, products of 4 times the distances neither grow nor shrink without end.
    signs, logs = apart.sign().prod(1), (4 * apart).abs().log().sum(1)
    matrix = signs[:, None] * signs * (logs[:, None] - logs).exp() / apart
    matrix.fill_diagonal_(0.0)
    return matrix - torch.diag(matrix.sum(1))


def _about(config: RunConfig) -> Any:
    return {
        "n_steps": config.ig.n_steps,
        "positions": config.positions.value,
        "batch_size": config.batch_size,
        "memory_gib": config.memory_gib,
    }


def _reason_missing(config: RunConfig, site: Site, n_layers: int) -> str:  # noqa: ARG001 - whatever the site
    """Why the sum cannot have these nodes; empty where it can."""
    if config.ig.n_steps == "auto":
        return "a sum that has no completeness which would tell ig.n_steps=auto when its nodes are enough"
    return "" if config.ig.n_steps <= MOST_NODES else f"a sum of at most {MOST_NODES} nodes"


def _check(config: RunConfig, header: Header) -> None:  # noqa: ARG001 - whatever the model
    """Raises InputError on a number of nodes that the sum cannot have."""
    if reason := _reason_missing(config, "heads", 1):
        raise InputError(
            f"methods: got {config.methods} with ig.n_steps={config.ig.n_steps}, wanted a number that these have: each "
            f"is {reason}. Set ig.n_steps=50."
        )


IG_INPUTS = Method(
    "ig_inputs",
    lambda contrast, site, config, advance: integrate_inputs(contrast, site, advance, **_about(config)),
    optional=True,
    check=_check,
    missing=_reason_missing,
)
CONDUCTANCE = Method(
    "conductance",
    lambda contrast, site, config, advance: conduct(contrast, site, advance, **_about(config)),
    optional=True,
    check=_check,
    missing=_reason_missing,
)
