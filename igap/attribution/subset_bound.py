"""An upper bound on the effect of components that nobody has patched alone, from random subsets patched together.

Assumed, and not more: (1) Interactions average out: patching a component changes F, in the mean over random subsets of
the others, by as much as alone. Subsets are small, down to 1/256 of the components, so that little can interact. (2)
What an estimate does not explain of these changes is normally distributed. (3) It is as widely with a component as
without it. Where a subset's members act on each other by much, it is wide, and so is the bound.

Source: the diagnostic of Kramar et al. 2024 (AtP*, arXiv 2403.00745), subset sampling. Added here: what an estimate of
the effects explains of F is taken off first, so that the bound is as narrow as the estimate is good; and each component
is in as many subsets as every other.
"""

import torch
from jaxtyping import Bool, Float, Float64, Int
from scipy import stats
from torch import Tensor

_MOST_GROUPS, _LEAST_MEMBERS = 256, 8
"""Groups that the components are divided into at random, again and again, and members of a group."""


def random_groups(
    n_components: int, n_subsets: int, generator: torch.Generator
) -> tuple[Int[Tensor, "partition component"], int]:
    """The group of each component in as many random partitions as it takes to have about `n_subsets` groups in all.

    Also how many groups a partition has. Every component is in equally many subsets.
    """
    n_groups = max(2, min(_MOST_GROUPS, n_components // _LEAST_MEMBERS))
    group = torch.arange(n_components) % n_groups
    n_partitions = max(1, round(n_subsets / n_groups))
    shuffled = [group[torch.randperm(n_components, generator=generator)] for _ in range(n_partitions)]
    return torch.stack(shuffled), n_groups


def members_of(groups: Int[Tensor, "partition component"], n_groups: int) -> Bool[Tensor, "partition group component"]:
    """Which components each group of each partition has."""
    members: Tensor = torch.arange(n_groups)[:, None] == groups[:, None]
    return members


def upper_limits(
    changes: Float64[Tensor, "partition group"],
    groups: Int[Tensor, "partition component"],
    estimate: Float[Tensor, " component"],
    doubt: float,
) -> Float64[Tensor, " component"]:
    """What each component's |effect| is at most, but for a chance of `doubt`, in F's unit.

    The chance is of one component, whichever it is, chosen before the groups were drawn. The largest of the limits is
    therefore below the largest |effect| with a chance of at most `doubt` too: the component that has the largest effect
    is one such component, and the largest limit is not below its own.

    Args:
        changes: F with each group's members moved together minus F without, in F's unit.
        groups: Of `random_groups`.
        estimate: An estimate of the components' effects, in F's unit; it may be wrong, and 0 is one.
        doubt: Between 0 and 1.
    """
    estimate = estimate.double()
    explained = torch.zeros_like(changes).scatter_add(1, groups, estimate.expand(groups.shape))
    unexplained = changes - explained
    n_with, n_without = len(groups), changes.numel() - len(groups)
    own = unexplained.gather(1, groups).sum(0)
    correction = own / n_with - (unexplained.sum() - own) / n_without
    error = float(unexplained.std()) * (1 / n_with + 1 / n_without) ** 0.5
    limits: Tensor = (estimate + correction).abs() + float(stats.t.isf(doubt, changes.numel() - 1)) * error
    return limits
