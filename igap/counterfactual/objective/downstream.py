"""How unusual what follows a patch is: the later residual streams of the patched run among those of ordinary runs.

A component's activation may be an ordinary one and yet fit nothing else in the clean run. What comes after it then lies
where no ordinary run does, and later components answer to what they never see.

Distances are squared Mahalanobis distances. The covariance is shrunk towards a multiple of the identity by the amount
of Ledoit & Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices": there are fewer prompts
than dimensions.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from igap.counterfactual.objective.evaluator import Evaluator
from igap.counterfactual.objective.typicality import MIN_PROMPTS

_ROUNDING = 32
"""Roundings by which two passes over one prompt may differ, in units of the last place of the stream's mean size."""
_FLOOR = 1024
"""The least standard deviation of a dimension, in the same unit: where all prompts agree, roundings are no distance."""


@dataclass(frozen=True, eq=False)
class StreamDistribution:
    """Mean and covariance of a layer's residual stream in ordinary runs, and the distances of others of them."""

    mean: Float64[Tensor, " d"]
    directions: Float64[Tensor, "k d"]
    """Eigenvectors of the covariance that differ in their eigenvalue from the rest."""
    variances: Float64[Tensor, " k"]
    """Their eigenvalues."""
    rest: float
    """The eigenvalue of everything else."""
    rounding: float
    """What roundings add to a distance."""
    distances: Float64[Tensor, " prompt"]
    """Those of ordinary prompts that mean and covariance were not made from, ascending."""

    def distance(self, streams: Float[Tensor, "*rows d"]) -> Float64[Tensor, "*rows"]:
        """The squared Mahalanobis distance from the mean."""
        off = streams.double() - self.mean
        along = off @ self.directions.T
        across = off - along @ self.directions
        squared: Tensor = (along**2 / self.variances).sum(-1) + (across**2).sum(-1) / self.rest
        return squared

    def percentile(self, streams: Float[Tensor, "*rows d"]) -> Float64[Tensor, "*rows"]:
        """The percentage of ordinary prompts that are nearer to the mean, 0 to 100."""
        n_nearer = torch.searchsorted(self.distances, (self.distance(streams) - self.rounding).contiguous())
        return 100 * n_nearer.double() / len(self.distances)


@dataclass(frozen=True, eq=False)
class Downstream:
    """The distributions of the residual stream at the read position, after each block from the target's first on."""

    first: int
    """The layer of the first."""
    layers: tuple[StreamDistribution, ...]

    def by_layer(self, streams: Float[Tensor, "*rows layer d"]) -> Float64[Tensor, "*rows layer"]:
        """The percentile of each stream among those of ordinary runs, 0 to 100."""
        return torch.stack(
            [each.percentile(own) for each, own in zip(self.layers, streams.unbind(-2), strict=True)], -1
        )

    def patched(
        self, evaluator: Evaluator, tokens: Int[Tensor, "given candidate pos"]
    ) -> Float64[Tensor, "candidate pair layer"]:
        """The percentiles of the clean runs with the target patched from these prompts."""
        return evaluator.later_streams(tokens, self.by_layer)

    def percentile(
        self, evaluator: Evaluator, tokens: Int[Tensor, "given candidate pos"]
    ) -> Float64[Tensor, "candidate pair"]:
        """The largest of them over the layers."""
        return self.patched(evaluator, tokens).amax(-1)


def fit_downstream(evaluator: Evaluator, prompts: Int[Tensor, "prompt pos"]) -> Downstream | None:
    """Fit the later residual streams to prompts of the clean prompts' length; None where there are too few."""
    if len(prompts) < MIN_PROMPTS:
        return None
    streams = evaluator.streams_of_others(prompts)
    first = evaluator.target.places[0][1]
    return Downstream(first, tuple(fit_stream(own) for own in streams.unbind(1)))


def fit_stream(streams: Float[Tensor, "prompt d"]) -> StreamDistribution:
    """Fit a distribution: every second prompt makes mean and covariance, the others the distances.

    With the centred rows x_k of n prompts, S their covariance (over n) and m the mean of its eigenvalues, the shrunk
    covariance is w m I + (1 - w) S, where w = min(1, sum_k ||x_k x_k' - S||^2 / n^2 / ||S - m I||^2) in squared
    Frobenius norms (Ledoit & Wolf 2004, equation 14).
    """
    made, others = streams[::2].double(), streams[1::2]
    mean, (n, d) = made.mean(0), made.shape
    off = made - mean
    _, scales, directions = torch.linalg.svd(off, full_matrices=False)
    eigenvalues = scales**2 / n
    m, square = eigenvalues.sum() / d, (eigenvalues**2).sum()
    between = square - d * m**2  # ||S - m I||^2
    within = ((off**2).sum(1) ** 2).sum() / n**2 - square / n
    w = torch.where(between > 0, within / between, 1.0).clamp(0, 1)
    unit = torch.finfo(streams.dtype).eps * made.square().mean().sqrt().clamp(min=1e-12)
    rest = w * m + (_FLOOR * unit) ** 2
    variances = rest + (1 - w) * eigenvalues
    inverses = (1 / variances).sum() + (d - len(variances)) / rest
    rounding = float((_ROUNDING * unit) ** 2 * inverses)
    unmeasured = StreamDistribution(mean, directions, variances, float(rest), rounding, made.new_zeros(0))
    return StreamDistribution(
        mean, directions, variances, float(rest), rounding, unmeasured.distance(others).sort().values
    )
