"""The terms of an objective, and which of them make a search together. Imports no heavy library."""

from typing import Literal

from igap.counterfactual.samplers.registry import samplers_for
from igap.errors import InputError, short_repr

Term = Literal["ap", "ig", "disagreement", "selectivity", "curve", "error", "fluency", "edits", "downstream"]
SECONDARY = ("fluency", "edits", "downstream")
"""Terms that stand beside another, never alone or first."""
MAGNITUDES = ("disagreement", "error")
"""Terms without a direction: they are 0 or above."""


def follows_gradient(terms: tuple[str, ...], estimator: str) -> bool:
    """Whether words have first-order scores: of all terms those of AP, of `error` those of AtP's error alone."""
    return terms[0] != "error" or estimator == "atp"


def check_terms(terms: tuple[str, ...], sampler: str, estimator: str = "atp", optimality: int | None = None) -> None:
    """Raises InputError on objectives that make no search together, or that sampler or optimality cannot serve."""
    if len(set(terms)) < len(terms):
        raise InputError(f"objective: got {', '.join(terms)}, one of them twice. Name each once.")
    if set(terms) <= set(SECONDARY):
        raise InputError(
            f"objective: got {', '.join(terms)}, which says nothing of the head. Put ap, ig, disagreement, "
            "selectivity, curve or error beside it: objective=[ap,fluency]."
        )
    if terms[0] in SECONDARY:
        raise InputError(
            f"objective: got {', '.join(terms)}, whose first says nothing of the head; the best prompt is the best by "
            f"the first. Write objective=[{','.join(sorted(terms, key=SECONDARY.__contains__))}]."
        )
    if estimator != "atp" and "error" not in terms:
        raise InputError(
            f"estimator: got {short_repr(estimator)} with objective={','.join(terms)}, wanted objective=error, which "
            "examines an estimator. Leave one of the two out."
        )
    if optimality is not None and len(terms) > 1:
        raise InputError(
            f"optimality: got {optimality} with several objectives, of which none says alone which prompt is better. "
            "Use optimality=null, or one objective."
        )
    gradient = follows_gradient(terms, estimator)
    known = samplers_for(len(terms), gradient=gradient)
    if sampler not in ("auto", *known):
        what = "one objective" if len(terms) == 1 else "several objectives"
        what += "" if gradient else f", the error of {estimator}, which has no gradient that is cheap"
        raise InputError(
            f"search.sampler: got {sampler!r} for {what}, wanted one of auto, {', '.join(known)}. Use "
            "search.sampler=auto."
        )
