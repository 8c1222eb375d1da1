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
from jaxtyping import Bool, Float, Float64
from scipy import stats
from torch import Tensor

_MOST_GROUPS, _LEAST_MEMBERS = 256, 8
"""Groups that the components are divided into at random, again and again, and members of a group."""


def random_subsets(n_components: int, n_subsets: int, generator: torch.Generator) -> Bool[Tensor, "subset component"]:
    """The groups of as many random partitions of the components as it takes to have about `n_subsets`.

    Each component is in one group of every partition, so that all are in equally many subsets.
    """
    n_groups = max(2, min(_MOST_GROUPS, n_components // _LEAST_MEMBERS))
    group = torch.arange(n_components) % n_groups
    n_partitions = max(1, round(n_subsets / n_groups))
    groups = torch.stack([group[torch.randperm(n_components, generator=generator)] for _ in range(n_partitions)])
    subsets: Tensor = torch.arange(n_groups)[None, :, None] == groups[:, None]
    return subsets.flatten(0, 1)


def upper_limits(
    changes: Float64[Tensor, " subset"],
    subsets: Bool[Tensor, "subset component"],
    estimate: Float[Tensor, " component"],
    doubt: float,
) -> Float64[Tensor, " component"]:
    """What each component's |effect| is at most, but for a chance of `doubt`, in F's unit.

    The chance is of one component, whichever it is, chosen before the subsets were drawn. The largest of the limits is
    therefore below the largest |effect| with a chance of at most `doubt` too: the component that has the largest effect
    is one such component, and the largest limit is not below its own.

    Args:
        changes: F with each subset's members moved together minus F without, in F's unit.
        subsets: Of `random_subsets`.
        estimate: An estimate of the components' effects, in F's unit; it may be wrong, and 0 is one.
        doubt: Between 0 and 1.
    """
    members = subsets.double()
    estimate = estimate.double()
    unexplained = changes - members @ estimate
    n_with = members.sum(0)
    n_without = len(changes) - n_with
    total = unexplained.sum()
    of_members = members.T @ unexplained
    correction = of_members / n_with - (total - of_members) / n_without
    error = unexplained.std() * (1 / n_with + 1 / n_without).sqrt()
    return (estimate + correction).abs() + float(stats.t.isf(doubt, len(changes) - 1)) * error
