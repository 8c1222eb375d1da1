"""How near a search's best prompt is to the best of its space, in words."""

import math

from igap.counterfactual.search import SearchResult
from igap.errors.missing import Missing

_OF = {"a hundred": 2, "a thousand": 3, "a million": 6, "a billion": 9, "10^12": 12}
"""What shares are told of, with their powers of ten."""


def describe_optimality(result: SearchResult) -> list[str]:
    """The share of the space's prompts that are better, as far as asked for."""
    optimality = result.optimality
    if result.is_exact:
        return [f"the best of all {result.space.size:,} prompts of this space (exact)"]
    if optimality is None:
        return []
    if isinstance(optimality, Missing):
        return [f"how many prompts of this space are better is not known: {optimality.reason}"]
    within = " within the constraints" if any(trial.violations for trial in result.trials) else ""
    estimate = (
        optimality.share.reason
        if isinstance(optimality.share, Missing)
        else f"the estimate is {in_words(optimality.share)}"
    )
    return [
        f"at most {in_words(optimality.upper)} prompts of this space{within} are better (95%); {estimate} "
        f"({optimality.n_evaluations:,} evaluations)"
    ]


def in_words(share: float) -> str:
    """A share as "3.1 in a million", rounded up to two digits."""
    name, power = next(((name, power) for name, power in _OF.items() if share * 10**power >= 1), ("10^12", 12))
    number = share * 10**power
    digits = 1 - math.floor(math.log10(number)) if number > 0 else 0
    return f"{math.ceil(number * 10**digits - 1e-9) / 10**digits:g} in {name}"
