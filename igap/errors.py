"""The one exception meant for users."""

_LONGEST = 1200
"""Characters of a line: what was got may be as long as a prompt."""


class InputError(ValueError):
    """Something the user gave cannot be used. One line: which item, what was got, what is wanted, the remedy.

    A line that is too long to read loses its middle.
    """

    def __init__(self, message: str) -> None:
        """The whole message; "\\n" begins another line."""
        super().__init__("\n".join(map(_readable, message.split("\n"))))


def _readable(line: str) -> str:
    half = _LONGEST // 2
    return line if len(line) <= _LONGEST else f"{line[:half]} ... {line[-half:]}"
