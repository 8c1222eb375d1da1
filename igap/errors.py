"""The one exception meant for users, and how it shows what they gave."""

import re
from typing import Any


class InputError(ValueError):
    """Something the user gave cannot be used. One line: which item, what was got, what is wanted, the remedy."""


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
