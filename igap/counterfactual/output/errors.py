"""What a search for errors of an estimator says on the terminal of the chain to AP."""

from igap.counterfactual.validation.results import EstimatorError
from igap.counterfactual.validation.verdict import format_signed
from igap.errors.missing import Missing


def describe_error(error: EstimatorError | None, unit: str) -> list[str]:
    """AP less the estimate, term by term; nothing of another search."""
    if error is None:
        return []
    if isinstance(error.terms, Missing):
        return [f"no terms of {error.estimator}'s error: {error.terms.reason}"]
    terms = ", ".join(f"{term} {format_signed(value)}" for term, value in error.terms.items())
    return [
        f"AP - {error.estimator} at {error.component}: {format_signed(error.ap - error.estimate)} {unit}, of which "
        f"{terms}"
    ]
