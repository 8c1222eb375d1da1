"""How near a search's best prompt is to the best of its space, in words."""

from igap.counterfactual.search import SearchResult


def describe_optimality(result: SearchResult) -> list[str]:
    """How near the best prompt is to the best of the space, as far as that is known."""
    if result.is_exact:
        return [f"the best of all {result.space.size:,} prompts of this space (exact)"]
    return []
