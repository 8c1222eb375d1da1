"""What stands where a number would if it were defined. One type for the whole program, so that no reason gets lost."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Missing:
    """A number that is not defined. Flat files have null under its name, and the reason under NAME/reason.

    Example:
        >>> Missing("heldout.n=0").to_flat("heldout/value")
        {'heldout/value': None, 'heldout/value/reason': 'heldout.n=0'}
    """

    reason: str
    """Why it is not defined, in a few words."""

    def to_flat(self, name: str) -> dict[str, str | None]:
        """Two entries of a flat file: null under `name`, the reason under NAME/reason."""
        return {name: None, f"{name}/reason": self.reason}


def or_none(value: float | Missing) -> float | None:
    """The number, or None where it is missing: for tables, whose cells have no room for a reason."""
    return None if isinstance(value, Missing) else value
