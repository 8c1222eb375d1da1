"""InputError, the one exception meant for users, and short one-line texts for its messages."""

import difflib
import re
from collections.abc import Sequence
from typing import Any

_LONG = re.compile(r"[^\s|]{300,}")
"""A run of characters too long to be a word. Tokens, which | separates, stay whole."""
_MOST = 4000
"""Characters of the longest message."""


class InputError(ValueError):
    """Invalid input from the user. Its one line names the item, what was got, what is wanted, and the remedy.

    Args:
        message: The line; very long words and messages are cut in the middle.

    Example:
        >>> try:
        ...     integrated_gradients(model, pair, n_steps=0)
        ... except InputError as error:
        ...     print(error)
        n_steps: got 0, wanted a whole number, at least 1 and at most 1000000 or auto. Try n_steps=50.
    """

    def __init__(self, message: str) -> None:
        """Cut the message to a readable length."""
        message = _LONG.sub(lambda word: f"{word[0][:100]}...{word[0][-20:]}", message)
        super().__init__(message if len(message) <= _MOST else f"{message[: _MOST - 1000]} ... {message[-900:]}")


def short_repr(value: object) -> str:
    """The repr of a value for a message: on one line and cut short; of an array its shape and type."""
    try:
        if type(value).__module__ in ("numpy", "torch") and hasattr(value, "dtype"):
            array: Any = value
            return f"{type(value).__name__} of shape {tuple(array.shape)} and type {array.dtype}"
        text = re.sub(r"\s*\n\s*", " ", repr(value))
    except Exception:  # an object's own code may raise anything, and Python refuses a number of 5000 digits
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:150]}...{text[-30:]}"


def printable(text: object, most: int = 300) -> str:
    """A text that is safe on a terminal, in one line: control characters are escaped, as `\\x1b`.

    A longer text is cut to `most` characters.
    """
    whole = str(text)
    cut = whole if len(whole) <= most else whole[: most - 1] + "…"
    if cut.isprintable():
        return cut
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def one_line(error: BaseException, most: int = 500) -> str:
    """The message of an error in one line; its type if it has no message."""
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


def did_you_mean_of(got: object, wanted: str) -> str:
    """As `did_you_mean`, where a message already lists the known names: empty where `wanted` is more than names.

    >>> did_you_mean_of("head", "one of 'both', 'heads' or 'neurons'")
    ' Did you mean heads?'
    """
    known = re.split(r", | or ", wanted.removeprefix("one of ").replace("'", ""))
    return did_you_mean(got, known) if isinstance(got, str) and not any(" " in name for name in known) else ""
