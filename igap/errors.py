"""The one exception meant for users."""


class InputError(ValueError):
    """Something the user gave cannot be used. One line: which item, what was got, what is wanted, the remedy."""
