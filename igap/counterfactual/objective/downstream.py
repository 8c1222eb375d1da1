"""How unusual what follows a patch is: the later residual streams of the patched run among those of ordinary runs.

A component's activation may be an ordinary one and yet fit nothing else in the clean run. What comes after it then lies
where no ordinary run does, and later components answer to what they never see.

A run is unusual where it is far from ordinary runs after some layer. The largest of many percentiles is above 95 for
far more than 5 in 100 ordinary runs, so that it is not the measure: a run's largest distance, each in units of its
layer's spread, has its place among the largest distances of ordinary runs.

Distances are squared Mahalanobis distances. The covariance is shrunk towards a multiple of the identity by the amount
of Ledoit & Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices": there are fewer prompts
than dimensions.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from igap.counterfactual.objective.parts import AnyEvaluator, PartedEvaluator
from igap.counterfactual.objective.typicality import MIN_PROMPTS

_ROUNDING = 32
"""Roundings by which two passes over one prompt may differ, in units of the last place of the stream's mean size."""
_FLOOR = 1024
"""The least standard deviation of a dimension, in the same unit: where all prompts agree, roundings are no distance."""
_LEAST_SPREAD = 0.01
"""The least standard deviation of the logarithms of a layer's distances."""
_TIE = 1e-3
"""Standard deviations by which one run must be farther than another to count as farther."""


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
    """Those of ordinary prompts that mean and covariance were not made from, in the prompts' order."""

    def distance(self, streams: Float[Tensor, "*rows d"]) -> Float64[Tensor, "*rows"]:
        """The squared Mahalanobis distance from the mean."""
        off = streams.double() - self.mean
        along = off @ self.directions.T
        across = off - along @ self.directions
        squared: Tensor = (along**2 / self.variances).sum(-1) + (across**2).sum(-1) / self.rest
        return squared

    def percentile(self, streams: Float[Tensor, "*rows d"]) -> Float64[Tensor, "*rows"]:
        """The percentage of ordinary prompts that are nearer to the mean, 0 to 100."""
        return _percentile(self.distances.sort().values, self.distance(streams) - self.rounding)

    def standardize(self, streams: Float[Tensor, "*rows d"]) -> Float64[Tensor, "*rows"]:
        """How many standard deviations the logarithm of the distance is above its mean over ordinary prompts."""
        logs = (self.distances + self.rounding).log()
        own: Tensor = (self.distance(streams) + self.rounding).log() - logs.mean()
        return own / logs.std().clamp(min=_LEAST_SPREAD)

    def leave_one_out(self) -> Float64[Tensor, " prompt"]:
        """The same of each ordinary prompt by the others: mean and standard deviation are taken without it."""
        logs = (self.distances + self.rounding).log()
        n, off = len(logs), logs - logs.mean()
        # Without one of n, the sum of squares loses off^2 n / (n - 1) and the mean off / (n - 1).
        squares = ((off**2).sum() - off**2 * n / (n - 1)).clamp(min=0)
        return off * n / (n - 1) / (squares / (n - 2)).sqrt().clamp(min=_LEAST_SPREAD)


@dataclass(frozen=True, eq=False)
class Downstream:
    """The distributions of the residual stream at the read position, after each block from the target's first on."""

    first: int
    """The layer of the first."""
    layers: tuple[StreamDistribution, ...]

    @cached_property
    def largest(self) -> Float64[Tensor, " prompt"]:
        """The largest distance over the layers of each ordinary run, measured by the others, ascending."""
        return torch.stack([each.leave_one_out() for each in self.layers]).amax(0).sort().values

    def by_layer(self, streams: Float[Tensor, "*rows layer d"]) -> Float64[Tensor, "*rows layer"]:
        """The percentile of each stream among those of ordinary runs, 0 to 100."""
        pairs = zip(self.layers, streams.unbind(-2), strict=True)
        return torch.stack([each.percentile(own) for each, own in pairs], -1)

    def standardize(self, streams: Float[Tensor, "*rows layer d"]) -> Float64[Tensor, "*rows layer"]:
        """How far each stream is, in standard deviations of its layer; see `StreamDistribution.standardize`."""
        pairs = zip(self.layers, streams.unbind(-2), strict=True)
        return torch.stack([each.standardize(own) for each, own in pairs], -1)

    def of_runs(self, streams: Float[Tensor, "*rows layer d"]) -> Float64[Tensor, "*rows"]:
        """The percentage of ordinary runs that are nowhere as far as the run is somewhere, 0 to 100.

        Of an ordinary run it is above p with a probability of (100 - p)%.
        """
        return _percentile(self.largest, self.standardize(streams).amax(-1) - _TIE)

    def standardize_patched(
        self, evaluator: AnyEvaluator, tokens: Int[Tensor, "corrupted candidate pos"]
    ) -> Float64[Tensor, "candidate pair"]:
        """The same of the clean runs with the target patched from these prompts."""
        return evaluator.later_streams(tokens, self.of_runs)


def _percentile(ascending: Float64[Tensor, " prompt"], values: Float64[Tensor, "*rows"]) -> Float64[Tensor, "*rows"]:
    """The percentage of the first that are smaller, 0 to 100."""
    return 100 * torch.searchsorted(ascending, values.contiguous()).double() / len(ascending)


def clean_streams(evaluator: AnyEvaluator) -> Float[Tensor, "pair layer d"]:
    """The later residual streams of the clean runs, unpatched."""
    if isinstance(evaluator, PartedEvaluator):
        return evaluator.by_part(lambda part: clean_streams(part.evaluator)[None])[0]
    return evaluator.streams_of_others(evaluator.bound.clean)


def fit_downstream(evaluator: AnyEvaluator, *prompts: Int[Tensor, "_prompt _pos"]) -> Downstream | None:
    """Fit the later residual streams to prompts, those of one length in a tensor; None where there are too few."""
    if sum(map(len, prompts)) < MIN_PROMPTS:
        return None
    streams = torch.cat([evaluator.streams_of_others(own) for own in prompts])
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
    return replace(unmeasured, distances=unmeasured.distance(others))
