"""The one exception meant for users, and how it shows what they gave."""

import re
from typing import Any

_LONG = re.compile(r"[^\s|]{300,}")
"""A word that is no word. What | parts are tokens, which stay whole."""
_MOST = 4000
"""Characters of a message."""


class InputError(ValueError):
    """Something the user gave cannot be used. One line: which item, what was got, what is wanted, the remedy."""

    def __init__(self, message: str) -> None:
        """The message, with what is too long to be read cut short."""
        message = _LONG.sub(lambda word: f"{word[0][:100]}...{word[0][-20:]}", message)
        super().__init__(message if len(message) <= _MOST else f"{message[: _MOST - 1000]} ... {message[-900:]}")


def shown(value: object) -> str:
    """What was got as a message shows it: as Python writes it, on one line and cut short; an array by its shape."""
    try:
        if type(value).__module__ in ("numpy", "torch") and hasattr(value, "dtype"):
            array: Any = value
            return f"{type(value).__name__} of shape {tuple(array.shape)} and type {array.dtype}"
        text = re.sub(r"\s*\n\s*", " ", repr(value))
    except Exception:  # whatever the object's own code raises; Python itself on a number of 5000 digits
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:150]}...{text[-30:]}"


def named(file: str) -> str:
    """A file's name as a message shows it: as it is, unless line breaks or other control characters are in it."""
    return file if file.isprintable() else repr(file)
