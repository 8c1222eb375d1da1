"""How far rounding alone may put F off, measured on the path that Integrated Gradients goes."""

import torch
from jaxtyping import Float
from torch import Tensor

from igap.components import Site
from igap.engine.batching import AdaptiveBatch
from igap.engine.contrast import Contrast
from igap.metrics import LogitDiff

_NUDGES = torch.arange(8) * 2.0**-20
"""Shares of a path that move F by less than it is rounded, but for a straight line."""


def rounding_of(contrast: Contrast, site: Site, rows: AdaptiveBatch) -> Float[Tensor, "question layer"]:
    """How far rounding alone may put F(end) - F(start), or a sum that should be equal to it, in logits.

    Measured in layer 0: points so near to the start that F is a straight line there, but for rounding. Eight times
    the standard deviation from that line, because what near points share of it does not show: on SmolLM2 errors
    against float64 were 2.5 times as large (root mean square), 6.6 times at most. Every block adds rounding of its
    own and such errors add in squares, hence the square root of the blocks that are left. At least ten roundings
    of float32, in which Captum has its weights whatever the model's type; of bfloat16, where near points are the
    same, no more is known.
    """
    function, (start, end) = contrast.function(site, 0), contrast.ends(site, 0)
    nudges = _NUDGES.to(start)

    def near(shares: Tensor) -> Tensor:
        return function(start[:, None] + shares.view(-1, *[1] * (start.ndim - 1)) * (end - start)[:, None])

    with torch.no_grad():
        values = torch.cat([near_f for _, near_f in rows.each(near, nudges, len(contrast.pairs))], 1).cpu().double()
    line = torch.stack([torch.ones_like(_NUDGES), _NUDGES / _NUDGES[-1]], 1).double()
    off = values.T - line @ (torch.linalg.pinv(line) @ values.T)
    deviation = (off.square().sum(0) / (len(nudges) - 2)).sqrt()
    left = 1 - torch.arange(contrast.n_layers).double() / contrast.n_layers
    gap, ends = contrast.gap.abs(), [contrast.value(run).abs() for run in (contrast.clean, contrast.corrupted)]
    size = torch.where(
        torch.tensor([isinstance(metric, LogitDiff) for _, metric in contrast.questions], device=gap.device),
        gap.clamp(min=1.0),
        torch.stack([gap, *ends]).amax(0),  # others are of any size
    )
    least = 10 * torch.finfo(torch.float32).eps * size.cpu().double()
    return torch.maximum(8 * deviation[:, None] * left.sqrt(), least[:, None]).to(start)
