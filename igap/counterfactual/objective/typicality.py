"""Mahalanobis distance of a component's activation from its distribution over ordinary prompts.

A counterfactual far outside that distribution says little about what the component does within it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from igap.counterfactual.objective.evaluator import Evaluator
from igap.counterfactual.objective.parts import AnyEvaluator, PartedEvaluator
from igap.inputs.prompts import TokenPair

MIN_PROMPTS = 20
"""Ordinary prompts below which nothing is said."""
_SHRINKAGE = 0.1
"""Share of the covariance that is taken from its diagonal: there are few prompts beside dimensions."""


@dataclass(frozen=True, eq=False)
class ActivationDistribution:
    """Mean and covariance of a component's activation in ordinary prompts, and the distances of others of them."""

    mean: Float[Tensor, "changed d"]
    """A position's own."""
    precision: Float[Tensor, "d d"]
    """The inverse of the covariance around each position's mean."""
    distances: Float64[np.ndarray, " prompt"]
    """Squared distances of ordinary prompts that mean and covariance were not made from, ascending."""

    def percentile(
        self, evaluator: AnyEvaluator, tokens: Int[Tensor, "corrupted candidate pos"]
    ) -> Float[Tensor, "candidate pair"]:
        """The percentage of ordinary prompts nearer to the mean than the corrupted run, 0 to 100."""
        assert isinstance(evaluator, Evaluator)
        distances = self._distances(_flatten(evaluator.activations(tokens)))
        share = np.searchsorted(self.distances, distances.cpu().numpy()) / len(self.distances)
        return torch.from_numpy(100 * share).T.expand(-1, len(evaluator.bound.pairs))

    def _distances(self, z: Tensor) -> Float[Tensor, "corrupted candidate"]:
        off = z - self.mean
        squared: Tensor = ((off @ self.precision) * off).sum(-1)
        return squared.mean(-1)


@dataclass(frozen=True, eq=False)
class PartedDistribution:
    """The distributions of a component's activation at the positions of each part of an evaluator's clean prompts."""

    parts: tuple[ActivationDistribution, ...]

    def percentile(
        self, evaluator: AnyEvaluator, tokens: Int[Tensor, "corrupted candidate pos"]
    ) -> Float[Tensor, "candidate pair"]:
        """As of one part, each in its own."""
        assert isinstance(evaluator, PartedEvaluator)
        own = dict(zip(evaluator.parts, self.parts, strict=True))
        return evaluator.by_part(lambda part: own[part].percentile(part.evaluator, part.tokens(tokens)))


Distribution = ActivationDistribution | PartedDistribution

Ordinary = Mapping[tuple[int, int], Int[Tensor, "prompt pos"]]
"""Ordinary prompts by their tokens and at how many of them F is read."""


def by_shape(pairs: Sequence[TokenPair]) -> Ordinary:
    """The clean prompts of these pairs."""
    shapes: dict[tuple[int, int], list[Tensor]] = {}
    for pair in pairs:
        shapes.setdefault((pair.clean.shape[1], pair.n_read), []).append(pair.clean)
    return {shape: torch.cat(prompts) for shape, prompts in shapes.items()}


def fit_distributions(evaluator: AnyEvaluator, ordinary: Ordinary) -> Distribution | None:
    """Fit the component's distribution in each part of the evaluator to the ordinary prompts of its shape.

    None where there are too few for a part.
    """
    parts = [evaluator] if isinstance(evaluator, Evaluator) else [part.evaluator for part in evaluator.parts]
    made: list[ActivationDistribution] = []
    for part in parts:
        prompts = ordinary.get(part.shape)
        distribution = None if prompts is None else fit_distribution(part, prompts)
        if distribution is None:
            return None
        made.append(distribution)
    return made[0] if isinstance(evaluator, Evaluator) else PartedDistribution(tuple(made))


def fit_distribution(evaluator: Evaluator, prompts: Int[Tensor, "prompt pos"]) -> ActivationDistribution | None:
    """Fit the component's distribution to prompts of the clean prompts' length; None where there are too few.

    Every second prompt makes mean and covariance, the others the distances that percentiles are of. Distances are
    squared Mahalanobis distances, means over the positions that candidates change.
    """
    if len(prompts) < MIN_PROMPTS:
        return None
    z = _flatten(evaluator.activations_of_others(prompts)[None])[0]
    made, rest = z[::2], z[1::2]
    mean = made.mean(0)
    off = (made - mean).flatten(0, 1)
    covariance = off.T @ off / max(1, len(off) - 1)
    diagonal = covariance.diagonal()
    covariance = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * torch.diag(diagonal)
    covariance = covariance + 1e-6 * diagonal.mean().clamp(min=1e-12) * torch.eye(len(diagonal), device=z.device)
    unmeasured = ActivationDistribution(mean, torch.linalg.inv(covariance), np.zeros(0))
    return ActivationDistribution(
        mean, unmeasured.precision, np.sort(unmeasured._distances(rest[None])[0].cpu().numpy())
    )


def _flatten(activations: Tensor) -> Float[Tensor, "corrupted candidate changed d"]:
    """Activations in float64; a neuron's has one dimension."""
    return (activations if activations.ndim == 4 else activations[..., None]).double()
