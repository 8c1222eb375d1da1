"""The one exception meant for users, and how it shows what they gave."""

import difflib
import re
from collections.abc import Sequence
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


def printable(text: object, most: int = 300) -> str:
    """A text in one line: what moves a cursor, colours or turns a terminal's text is written out, as `\\x1b`.

    Of more than `most` characters the first are left.
    """
    whole = str(text)
    cut = whole if len(whole) <= most else whole[: most - 1] + "…"
    if cut.isprintable():
        return cut
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def one_line(error: BaseException, most: int = 500) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    return printable(" ".join(str(error).split()) or type(error).__name__, most)


def did_you_mean(name: str, known: Sequence[str], most: int = 1) -> str:
    """The end of a message about an unknown name: which known ones look like it.

    Args:
        name: what was given.
        known: the names there are.
        most: names that are suggested at most.

    Returns:
        " Did you mean A or B?", the most similar name first; empty where none is similar.

    >>> did_you_mean("basline", ["model", "baseline"])
    ' Did you mean baseline?'
    """
    near = difflib.get_close_matches(name, known, n=most)
    return f" Did you mean {' or '.join(near)}?" if near else ""
